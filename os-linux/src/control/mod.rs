//! A process's engine, served on a Unix socket, for the command `klp`.
//!
//! ```no_run
//! use klp_os_linux::process::{Livepatch, Options};
//!
//! let livepatch = Livepatch::init(Options::default())?;
//! let socket = livepatch.serve(None)?;
//! println!("try: klp --socket {} list", socket.display());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The protocol
//!
//! A client connects, writes one [`Request`] as a line of JSON, and reads one [`Reply`] as a line
//! of JSON. One connection carries one request; connections are served one after the other, and one
//! that is silent for a second is closed.
//!
//! # Who may talk
//!
//! Only processes of the same effective user id: the socket's mode is 0600, its default place is a
//! folder of the user's own, and, what counts, the kernel is asked for each connection who is at
//! its other end (`SO_PEERCRED`). Others get no answer, not even that there is an engine. Also the
//! superuser is another user: it can become the right one (`setpriv`, `sudo -u`).
//!
//! # Fork
//!
//! A child of `fork` has neither the socket nor the thread that serves it: it is the parent that is
//! controlled. The child may call [`serve`](crate::process::Livepatch::serve) itself.

mod answer;
mod client;
mod place;
mod protocol;
mod server;
mod sys;

pub use client::{AskError, ask};
pub use place::{folder, socket_of, sockets};
pub use protocol::{Blocking, Direction, Node, ObjectInfo, PatchInfo, Reply, Request, Source};
