//! The command line, and the help that teaches it.

use clap::{CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

const TEACH: &str = "\
Examples:
  klp check fix.ko              would this patch fit? Nothing is changed.
  klp enable fix.ko             load it, enable it, wait until every thread has moved
  klp status                    what is in force
  klp disable fix               back to the original functions
  klp enable fix                and forth again: a disabled patch stays loaded
  klp enable a.ko b.ko          two as one: no thread ever has one without the other
  klp remove fix                forget it and free its memory

When a transition does not finish (exit code 3), it goes on by itself:
  klp blockers                  which threads it waits for, and in which function each of them is
  klp watch                     follow it
  klp signal fix                interrupt the sleeps of these threads
  klp reverse fix               turn round
  klp force fix --vouch         end it regardless of what the threads are in the middle of

Which process: --pid or --socket; if neither is given, the only one of yours that can be patched.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the transition did not finish within --timeout.";

/// Livepatches a running process: replaces functions while its threads run, so that no thread ever
/// sees half a patch.
#[derive(Parser)]
#[command(name = "klp", version, after_help = TEACH)]
pub(crate) struct Args {
    /// The process to talk to
    #[arg(long, global = true)]
    pub(crate) pid: Option<u32>,
    /// The socket to talk to, if it is not at its default place
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Print JSON: one object in a line for each thing that is said
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Wait at most so many seconds for a transition
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    timeout: f64,
    /// Start the transition and do not wait for its end
    #[arg(long, global = true)]
    pub(crate) no_wait: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Args {
    /// The command line, or the end of the program.
    pub(crate) fn get() -> Self {
        let args = Self::parse();
        // clap does not see conflicts of arguments on both sides of the command's name.
        if args.pid.is_some() && args.socket.is_some() {
            let why = "--pid and --socket cannot be used together";
            Self::command()
                .error(clap::error::ErrorKind::ArgumentConflict, why)
                .exit();
        }
        args
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    Duration::try_from_secs_f64(number)
        .map(|_| number)
        .map_err(|error| error.to_string())
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// List the patches, those in force first
    List,
    /// Show the patches with their objects and functions
    Status {
        /// Only this patch
        patch: Option<String>,
    },
    /// Say all that speaks against enabling a patch object; change nothing
    Check {
        /// The patch object
        file: PathBuf,
    },
    /// Enable a patch, or several as one: no thread ever has some of them without the others
    Enable {
        /// A patch object to load, or the name of a patch that is loaded; later ones stand on top
        #[arg(value_name = "FILE|PATCH", required = true)]
        patches: Vec<PathBuf>,
    },
    /// Disable a patch, or several as one; they stay loaded
    Disable {
        /// The patch's name
        #[arg(value_name = "PATCH", required = true)]
        patches: Vec<String>,
    },
    /// Turn a transition round: a patch that was being enabled goes away again, and the other way
    /// about
    Reverse {
        /// The patch in transition
        patch: String,
    },
    /// Follow a transition to its end
    Watch {
        /// The patch in transition; any, if it is not given
        patch: Option<String>,
    },
    /// Name the threads that hold a transition back, why, and their stacks
    Blockers {
        /// The patch in transition; any, if it is not given
        patch: Option<String>,
    },
    /// Interrupt the sleeps of the threads that a transition waits for
    Signal {
        /// The patch in transition
        patch: String,
    },
    /// End a transition now. Threads may run parts of both versions, and what was forced away can
    /// never be removed
    Force {
        /// The patch in transition
        patch: String,
        /// I have looked at the blockers, and vouch that running parts of both versions does no
        /// harm
        #[arg(long, required = true)]
        vouch: bool,
    },
    /// Forget a disabled patch and free its memory
    Remove {
        /// The patch's name
        patch: String,
    },
    /// List a directory of the attribute tree (as Linux's /sys/kernel/livepatch)
    Ls {
        /// The directory; the root, if it is not given
        #[arg(default_value = "")]
        path: String,
    },
    /// Read an attribute
    Cat {
        /// The attribute, for instance livepatch/fix/enabled
        path: String,
    },
    /// Write an attribute
    Set {
        /// The attribute
        path: String,
        /// The value
        value: String,
    },
}
