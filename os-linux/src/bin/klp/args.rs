//! The command line, and the help that teaches it.

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use glob::Pattern;
use std::ffi::OsString;
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
  klp remove fix                forget it; its memory goes when no stack points into it

When a transition does not finish (exit code 3), it goes on by itself:
  klp blockers                  which threads it waits for, and in which function each of them is
  klp watch                     follow it
  klp signal fix                interrupt the sleeps of these threads
  klp reverse fix               turn round
  klp force fix --vouch         end it regardless of what the threads are in the middle of

Which process: --pid or --socket; if neither is given, the only one of yours that can be patched.
Or several, with one line for each:
  klp ps                        which processes can be patched
  klp enable fix.ko --all       every one of yours; for root, everybody's
  klp enable fix.ko --name 'web*' --library libssl.so
                                those whose program is called so, and that use this library

A program that knows nothing of klp:
  klp run ./program --its-args  start it so that it can be patched

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the transition did not finish within
--timeout. Of several processes: 1 if one of them refused or failed, else 3 if one did not finish.
'klp run' has those of the program; 127 if it cannot be started.";

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
    /// All processes that can be patched and are yours; for root, everybody's
    #[arg(long, global = true)]
    pub(crate) all: bool,
    /// Those of them whose program is called so; `*`, `?` and `[...]` stand for parts of a name
    #[arg(long, global = true, value_name = "GLOB", value_parser = Pattern::new)]
    pub(crate) name: Option<Pattern>,
    /// Those of them that have loaded this library: its file's name, with or without `.so` and what
    /// follows; may have `*`, `?` and `[...]`, too
    #[arg(long, global = true, value_name = "NAME", value_parser = Pattern::new)]
    pub(crate) library: Option<Pattern>,
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
        let ways = [args.pid.is_some(), args.socket.is_some(), args.several()];
        if ways.into_iter().filter(|used| *used).count() > 1 {
            let why = "--pid, --socket, and --all, --name, --library cannot be used together";
            Self::command()
                .error(clap::error::ErrorKind::ArgumentConflict, why)
                .exit();
        }
        args
    }

    /// Whether it is for all processes that there are, or some of them.
    pub(crate) fn several(&self) -> bool {
        self.all || self.name.is_some() || self.library.is_some()
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
    /// List the processes that can be patched: their users, programs, and the patches in force
    Ps,
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
    /// Forget a disabled patch; its memory is freed when no stack points into it
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
    /// Start a program that knows nothing of klp so that it can be patched (with libklp.so as
    /// `LD_PRELOAD`)
    Run {
        /// The library, if it is not beside klp or in ../lib
        #[arg(long, value_name = "PATH")]
        libklp: Option<PathBuf>,
        /// The program
        program: OsString,
        /// What it is given
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Print what a shell needs to complete command lines of klp
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, or write those of all commands to a folder
    Man {
        /// The folder
        folder: Option<PathBuf>,
    },
}
