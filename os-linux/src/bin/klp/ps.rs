//! `klp ps`: the processes that can be patched.

use crate::args::Args;
use crate::process;
use crate::several::each;
use crate::show::{print, summary};
use crate::target::Target;
use crate::transition::Outcome;
use anyhow::Result;
use klp_os_linux::control::{PatchInfo, Served, served, served_by};
use serde_json::json;

/// Lists them, or those that the arguments say.
pub(crate) fn list(args: &Args) -> Result<Outcome> {
    let processes = match args.pid {
        Some(pid) => vec![served_by(pid)?],
        None if args.several() => Target::find_all(args)?,
        None => served()?,
    };
    if !args.json {
        print(&format!(
            "{:>7} {:<12} {:<20} PATCHES",
            "PID", "USER", "PROGRAM"
        ));
    }
    let mut all = Outcome::Done;
    each(processes, one, |process| {
        print(&if args.json {
            process.json()
        } else {
            process.line()
        });
        if process.patches.is_err() {
            all = Outcome::Failed;
        }
    });
    Ok(all)
}

struct Process {
    pid: u32,
    user: String,
    program: String,
    patches: Result<Vec<PatchInfo>>,
}

fn one(served: Served) -> Process {
    Process {
        pid: served.pid(),
        user: process::user(served.user()),
        program: process::program(served.pid()),
        patches: Target::Process(served).status(),
    }
}

impl Process {
    fn line(&self) -> String {
        let patches = match &self.patches {
            Ok(patches) if patches.iter().all(|patch| patch.stack_order == 0) => "-".to_owned(),
            Ok(patches) => {
                let moving =
                    |patch: &&PatchInfo| patch.stack_order != 0 || patch.transition.is_some();
                let lines: Vec<String> = patches.iter().filter(moving).map(summary).collect();
                lines.join("; ")
            }
            Err(error) => error.root_cause().to_string(),
        };
        let Self {
            pid, user, program, ..
        } = self;
        format!("{pid:>7} {user:<12} {program:<20} {patches}")
    }

    fn json(&self) -> String {
        let mut object = json!({ "pid": self.pid, "user": self.user, "program": self.program });
        match &self.patches {
            Ok(patches) => object["patches"] = json!(patches),
            Err(error) => object["error"] = json!(error.root_cause().to_string()),
        }
        object.to_string()
    }
}
