//! What is printed: lines for people, or JSON.

use crate::args::Command;
use klp_os_linux::control::{Blocking, Direction, Node, PatchInfo, Reply};
use serde_json::json;
use std::time::Duration;

/// Where everything that is said goes through.
pub(crate) struct Show {
    /// JSON instead of words.
    pub(crate) json: bool,
}

impl Show {
    /// A line for people.
    pub(crate) fn line(&self, text: &str) {
        if self.json {
            println!("{}", json!({ "message": text }));
        } else {
            println!("{text}");
        }
    }

    /// Something was refused or failed.
    pub(crate) fn error(&self, error: &str, errno: Option<i32>) {
        if self.json {
            println!(
                "{}",
                json!({ "reply": "refused", "error": error, "errno": errno })
            );
        } else {
            eprintln!("klp: {error}");
        }
    }

    /// What the process answered.
    pub(crate) fn reply(&self, reply: &Reply, to: &Command) {
        if self.json {
            match serde_json::to_string(reply) {
                Ok(text) => println!("{text}"),
                Err(error) => eprintln!("klp: {error}"),
            }
            return;
        }
        match reply {
            Reply::Refused { error, errno } => self.error(error, Some(*errno)),
            Reply::Status { patches, .. } if patches.is_empty() => println!("no patch is loaded"),
            Reply::Status { patches, .. } => {
                for patch in patches {
                    println!("{}", summary(patch));
                    if !matches!(to, Command::List) {
                        details(patch);
                    }
                }
            }
            Reply::Patch { patch } => {
                println!("{}", summary(patch));
                if matches!(to, Command::Status { .. }) {
                    details(patch);
                }
            }
            Reply::Patches { patches } => patches
                .iter()
                .for_each(|patch| println!("{}", summary(patch))),
            Reply::Removed { patch } => println!("'{patch}': removed"),
            Reply::Blockers { blockers } if blockers.is_empty() => {
                println!("nobody holds it back any more")
            }
            Reply::Blockers { blockers } => blockers
                .iter()
                .for_each(|blocker| println!("{}", text(blocker))),
            Reply::Preflight {
                patch,
                ready,
                functions,
                findings,
                waiting,
                replaces,
                clones,
            } => {
                findings.iter().for_each(|finding| println!("{finding}"));
                waiting.iter().for_each(|object| {
                    println!("object '{object}' is not loaded; checked when it comes")
                });
                clones.iter().for_each(|clone| println!("{clone}"));
                replaces
                    .iter()
                    .for_each(|old| println!("the enabled patch '{old}' will be replaced"));
                let verdict = if *ready {
                    "it can be enabled"
                } else {
                    "it would be refused"
                };
                println!(
                    "'{patch}': {} checked, {verdict}",
                    count(*functions, "function")
                );
            }
            Reply::Nodes { entries } => entries
                .iter()
                .for_each(|entry| println!("{}", entry_line(entry))),
            Reply::Value { value } => {
                print!("{}{}", value, if value.ends_with('\n') { "" } else { "\n" })
            }
        }
    }

    /// A step of a transition, where there is no terminal.
    pub(crate) fn progress(&self, patch: &PatchInfo, doing: &str) {
        if self.json {
            println!(
                "{}",
                json!({ "progress": doing, "patch": patch.name, "pending": patch.pending })
            );
        } else {
            println!(
                "{doing} '{}': {} to go",
                patch.name,
                count(patch.pending, "thread")
            );
        }
    }

    /// A transition is over.
    pub(crate) fn finished(&self, patch: &PatchInfo) {
        if self.json {
            println!("{}", json!({ "reply": "patch", "patch": patch }));
        } else {
            println!("{}", summary(patch));
        }
    }

    /// A transition takes too long.
    pub(crate) fn unfinished(&self, patch: &PatchInfo, timeout: Duration, blockers: &[Blocking]) {
        if self.json {
            println!(
                "{}",
                json!({ "reply": "unfinished", "patch": patch, "blockers": blockers })
            );
            return;
        }
        let name = &patch.name;
        println!("'{name}': not finished after {timeout:?}; it goes on. It waits for:");
        blockers
            .iter()
            .for_each(|blocker| println!("    {}", blocker.why));
        println!(
            "'klp blockers' shows their stacks, 'klp watch' follows it, 'klp reverse {name}' turns it round"
        );
    }
}

/// A patch in a line.
fn summary(patch: &PatchInfo) -> String {
    let state = match (patch.transition, patch.enabled) {
        (Some(Direction::Patching), _) => {
            format!("being enabled, {} to go", count(patch.pending, "thread"))
        }
        (Some(Direction::Unpatching), _) => {
            format!("being disabled, {} to go", count(patch.pending, "thread"))
        }
        (None, true) => "enabled".to_owned(),
        (None, false) => "disabled".to_owned(),
    };
    let pinned = if patch.forced {
        ", pinned by force"
    } else {
        ""
    };
    format!("'{}': {state}{pinned}{}", patch.name, waits_for(patch))
}

/// What a patch in force is not applied to yet.
fn waits_for(patch: &PatchInfo) -> String {
    let objects = patch.objects.iter();
    let missing: Vec<&str> = objects
        .filter(|object| patch.enabled && !object.patched)
        .map(|object| &*object.name)
        .collect();
    match &missing[..] {
        [] => String::new(),
        [one] => format!("; waits for {one}, which is not loaded"),
        several => format!("; waits for {}, which are not loaded", several.join(", ")),
    }
}

fn details(patch: &PatchInfo) {
    if patch.stack_order != 0 {
        println!(
            "    number {} in force{}",
            patch.stack_order,
            if patch.replace {
                ", replaces others"
            } else {
                ""
            }
        );
    }
    for object in &patch.objects {
        println!(
            "    {}: {}",
            object.name,
            if object.patched {
                "patched"
            } else {
                "not patched"
            }
        );
        object
            .functions
            .iter()
            .for_each(|function| println!("        {function}"));
    }
}

fn text(blocker: &Blocking) -> String {
    let stack: String = blocker
        .stack
        .iter()
        .map(|frame| format!("\n        {frame}"))
        .collect();
    format!("    {}{stack}", blocker.why)
}

fn entry_line(entry: &Node) -> String {
    let letter = |bit: u16, letter| if entry.mode & bit != 0 { letter } else { '-' };
    let mode: String = (0..9)
        .rev()
        .map(|bit| letter(1 << bit, ['x', 'w', 'r'][usize::from(bit as u8) % 3]))
        .collect();
    let (kind, slash) = if entry.directory {
        ('d', "/")
    } else {
        ('-', "")
    };
    format!("{kind}{mode} {}{slash}", entry.name)
}

/// `1 thread`, `2 threads`.
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
