//! What is printed: lines for people, or JSON.

use crate::args::Command;
use klp_os_linux::control::{Blocking, Direction, Node, PatchInfo, Reply};
use serde::Serialize;
use serde_json::json;
use std::borrow::Cow;
use std::cell::RefCell;
use std::time::Duration;

/// Where everything that is said goes through.
pub(crate) struct Show {
    /// JSON instead of words.
    pub(crate) json: bool,
    /// What was said, where it is not printed at once.
    kept: Option<RefCell<Vec<String>>>,
}

impl Show {
    /// Prints.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, kept: None }
    }

    /// Keeps what is said.
    pub(crate) fn keeping(json: bool) -> Self {
        Self {
            json,
            kept: Some(RefCell::default()),
        }
    }

    /// Whether somebody may be looking at each step.
    pub(crate) fn is_live(&self) -> bool {
        self.kept.is_none()
    }

    /// What was kept.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.kept.map(RefCell::into_inner).unwrap_or_default()
    }

    /// A line, whatever it has in it.
    fn out(&self, line: &str) {
        match &self.kept {
            Some(kept) => kept.borrow_mut().push(line.to_owned()),
            None => print(line),
        }
    }

    /// An object of JSON.
    fn object(&self, object: &impl Serialize) {
        match serde_json::to_string(object) {
            Ok(text) => self.out(&text),
            Err(error) => self.warn(&error.to_string()),
        }
    }

    fn warn(&self, error: &str) {
        match &self.kept {
            Some(kept) => kept.borrow_mut().push(error.to_owned()),
            None => eprintln!("klp: {}", harmless(error)),
        }
    }

    /// A line for people.
    pub(crate) fn line(&self, text: &str) {
        if self.json {
            self.object(&json!({ "message": text }));
        } else {
            self.out(text);
        }
    }

    /// Something was refused or failed.
    pub(crate) fn error(&self, error: &str, errno: Option<i32>) {
        if self.json {
            self.object(&json!({ "reply": "refused", "error": error, "errno": errno }));
        } else {
            self.warn(error);
        }
    }

    /// What the process answered.
    pub(crate) fn reply(&self, reply: &Reply, to: &Command) {
        if self.json {
            return self.object(reply);
        }
        match reply {
            Reply::Working => {}
            Reply::Refused { error, errno } => self.error(error, Some(*errno)),
            Reply::Status { patches, .. } if patches.is_empty() => self.out("no patch is loaded"),
            Reply::Status { patches, .. } => {
                for patch in patches {
                    self.out(&summary(patch));
                    if !matches!(to, Command::List) {
                        self.details(patch);
                    }
                }
            }
            Reply::Patch { patch } => {
                self.out(&summary(patch));
                if matches!(to, Command::Status { .. }) {
                    self.details(patch);
                }
            }
            Reply::Patches { patches } => {
                patches.iter().for_each(|patch| self.out(&summary(patch)));
            }
            Reply::Removed { patch } => self.out(&format!("'{patch}': removed")),
            Reply::Blockers { blockers } if blockers.is_empty() => {
                self.out("nobody holds it back any more");
            }
            Reply::Blockers { blockers } => {
                for blocker in blockers {
                    self.out(&format!("    {}", blocker.why));
                    blocker
                        .stack
                        .iter()
                        .for_each(|frame| self.out(&format!("        {frame}")));
                }
            }
            Reply::Preflight {
                patch,
                ready,
                functions,
                findings,
                waiting,
                replaces,
                clones,
            } => {
                findings.iter().for_each(|finding| self.out(finding));
                waiting.iter().for_each(|object| {
                    self.out(&format!(
                        "object '{object}' is not loaded; checked when it comes"
                    ));
                });
                replaces.iter().for_each(|old| {
                    self.out(&format!("the enabled patch '{old}' will be replaced"));
                });
                clones.iter().for_each(|clone| self.out(clone));
                let verdict = if *ready {
                    "it can be enabled"
                } else {
                    "it would be refused"
                };
                self.out(&format!(
                    "'{patch}': {} checked, {verdict}",
                    count(*functions, "function")
                ));
            }
            Reply::Nodes { entries } => {
                entries
                    .iter()
                    .for_each(|entry| self.out(&entry_line(entry)));
            }
            Reply::Value { value } => value.lines().for_each(|line| self.out(line)),
        }
    }

    fn details(&self, patch: &PatchInfo) {
        if patch.stack_order != 0 {
            let replaces = if patch.replace {
                ", replaces others"
            } else {
                ""
            };
            self.out(&format!(
                "    number {} in force{replaces}",
                patch.stack_order
            ));
        }
        for (what, texts) in [
            ("label", &patch.labels),
            ("description", &patch.descriptions),
            ("author", &patch.authors),
        ] {
            texts
                .iter()
                .for_each(|text| self.out(&format!("    {what}: {text}")));
        }
        for object in &patch.objects {
            let state = if object.patched {
                "patched"
            } else {
                "not patched"
            };
            self.out(&format!("    {}: {state}", object.name));
            object
                .functions
                .iter()
                .for_each(|function| self.out(&format!("        {function}")));
        }
    }

    /// A step of a transition, where there is no terminal.
    pub(crate) fn progress(&self, patch: &PatchInfo, doing: &str) {
        if !self.is_live() {
            return;
        }
        if self.json {
            self.object(
                &json!({ "progress": doing, "patch": patch.name, "pending": patch.pending }),
            );
        } else {
            self.out(&format!(
                "{doing} '{}': {} to go",
                patch.name,
                count(patch.pending, "thread")
            ));
        }
    }

    /// A transition is over.
    pub(crate) fn finished(&self, patch: &PatchInfo) {
        if self.json {
            self.object(&json!({ "reply": "patch", "patch": patch }));
        } else {
            self.out(&summary(patch));
        }
    }

    /// A transition takes too long.
    pub(crate) fn unfinished(&self, patch: &PatchInfo, timeout: Duration, blockers: &[Blocking]) {
        if self.json {
            return self
                .object(&json!({ "reply": "unfinished", "patch": patch, "blockers": blockers }));
        }
        let name = &patch.name;
        self.out(&format!(
            "'{name}': not finished after {timeout:?}; it goes on. It waits for:"
        ));
        blockers
            .iter()
            .for_each(|blocker| self.out(&format!("    {}", blocker.why)));
        if self.is_live() {
            self.out(&format!(
                "'klp blockers' shows their stacks, 'klp watch' follows it, 'klp reverse {name}' turns it round"
            ));
        }
    }
}

/// A line on standard output, whatever it has in it.
pub(crate) fn print(line: &str) {
    println!("{}", harmless(line));
}

/// The text with what a terminal would obey, or show in a misleading order, written out: other
/// processes choose names. In JSON such characters stand in strings only, where it is the same to
/// write them out so.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let is_harmful = |character: char| {
        character.is_control()
            || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmful(character) {
            safe += &format!("\\u{:04x}", u32::from(character));
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

/// A patch in a line.
pub(crate) fn summary(patch: &PatchInfo) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_obey_nobody() {
        assert_eq!(harmless("fix 1 é"), "fix 1 é");
        assert_eq!(
            harmless("\u{1b}[31m\n\u{9b}\u{202e}"),
            "\\u001b[31m\\u000a\\u009b\\u202e"
        );
    }
}
