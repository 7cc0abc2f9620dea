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
//! of JSON. One connection carries one request. Requests are worked on one after the other; while
//! one takes long, those who wait get [`Reply::Working`] a few times a second, in a line of its own
//! each. So a client knows within a second of a server that is stopped, and in ten of one that
//! hangs.
//!
//! Nobody is waited for: who is silent for a second, or does not take its answer, is let go; so is
//! who sends more than 64 KiB; of 64 that are connected, those who wait for nothing make room for
//! others. A client that closes the connection before its turn has asked for nothing.
//!
//! # Who may talk
//!
//! Only processes of the same effective user id, and the superuser's, who can do to the process
//! whatever it likes anyway. The socket's mode is 0600, its default place is a folder of the user's
//! own, and, what counts, the kernel is asked for each connection who is at its other end
//! (`SO_PEERCRED`). Others get no answer, not even that there is an engine.
//!
//! A client looks, too: at the owner and the mode of the folder, and at who serves there. Where
//! everybody may write, as in `/tmp`, somebody else may have been faster.
//!
//! # Where servers are
//!
//! [`served`] finds them where they have put their sockets, which their environment decides
//! ([`folders`]), not the client's; also in another mount, process or network namespace.
//!
//! # Fork
//!
//! A child of `fork` has neither the socket nor the thread that serves it: it is the parent that is
//! controlled. The child may call [`serve`](crate::process::Livepatch::serve) itself.

mod answer;
mod client;
mod clients;
mod listener;
mod place;
mod protocol;
mod served;
mod server;
mod sys;

pub use client::{AskError, ask};
pub use place::folders;
pub use protocol::{Blocking, Direction, Node, ObjectInfo, PatchInfo, Reply, Request, Source};
pub use served::{Served, served, served_by};
