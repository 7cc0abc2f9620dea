//! What is said over the socket: one line of JSON each way.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Every patch as it stands. Answered by [`Reply::Status`].
    Status,
    /// Start to enable patches, several as one: later ones stand on top. Answered by
    /// [`Reply::Patches`].
    Enable {
        /// The patches.
        patches: Vec<Source>,
    },
    /// Start to disable patches, several as one. Answered by [`Reply::Patches`].
    Disable {
        /// Their names.
        patches: Vec<String>,
    },
    /// Turn a transition round. Answered by [`Reply::Patch`].
    Reverse {
        /// The patch in transition.
        patch: String,
    },
    /// End a transition now, whatever tasks are in the middle of. Answered by [`Reply::Patch`].
    Force {
        /// The patch in transition.
        patch: String,
    },
    /// Make the tasks that a transition waits for leave interruptible sleeps. Answered by
    /// [`Reply::Patch`].
    Signal {
        /// The patch in transition.
        patch: String,
    },
    /// Forget a disabled patch and free its memory. Answered by [`Reply::Removed`].
    Remove {
        /// The patch's name.
        patch: String,
    },
    /// Who holds the transition of a patch back. Answered by [`Reply::Blockers`].
    Blockers {
        /// The patch in transition.
        patch: String,
    },
    /// All that speaks against enabling the patch object in a file; changes nothing. Answered by
    /// [`Reply::Preflight`].
    Check {
        /// The file; relative paths are those of the serving process.
        file: PathBuf,
    },
    /// List a directory of the attribute tree ([`klp_core::control`]). Answered by
    /// [`Reply::Nodes`].
    List {
        /// The directory; the root is empty.
        path: String,
    },
    /// Read an attribute. Answered by [`Reply::Value`].
    Read {
        /// The attribute.
        path: String,
    },
    /// Write an attribute. Answered by [`Reply::Value`], with what was written.
    Write {
        /// The attribute.
        path: String,
        /// The value.
        value: String,
    },
}

/// Where a patch comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A patch object, which the serving process loads; relative paths are those of that process.
    File(PathBuf),
    /// A patch that is loaded, by its name.
    Loaded(String),
}

/// What the serving process answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// It is still at it: the answer follows. Said again and again, so that a client can tell a
    /// server that takes long from one that does nothing.
    Working,
    /// It refused; nothing has changed.
    Refused {
        /// Why, in words.
        error: String,
        /// The Linux error number that says the same, negative.
        errno: i32,
    },
    /// Every patch: those in force first, in the order of enabling.
    Status {
        /// The serving process.
        pid: u32,
        /// The patches.
        patches: Vec<PatchInfo>,
    },
    /// The patch as it stands now. Its transition may go on.
    Patch {
        /// The patch.
        patch: PatchInfo,
    },
    /// The patches that were asked for, in that order, as they stand now. Their transition may go
    /// on.
    Patches {
        /// The patches.
        patches: Vec<PatchInfo>,
    },
    /// The patch is not known any more.
    Removed {
        /// Its name.
        patch: String,
    },
    /// The tasks that hold a transition back.
    Blockers {
        /// The tasks.
        blockers: Vec<Blocking>,
    },
    /// What a check found.
    Preflight {
        /// The patch's name.
        patch: String,
        /// Whether it can be enabled.
        ready: bool,
        /// How many functions were looked at.
        functions: usize,
        /// Everything that speaks against it.
        findings: Vec<String>,
        /// Objects that are not loaded, and are checked when they come.
        waiting: Vec<String>,
        /// Enabled patches that it would replace.
        replaces: Vec<String>,
        /// Functions that the compiler made of ones that are replaced, and that are not.
        #[serde(default)]
        clones: Vec<String>,
    },
    /// What is in a directory.
    Nodes {
        /// The entries.
        entries: Vec<Node>,
    },
    /// The value of an attribute.
    Value {
        /// The value, with its newline.
        value: String,
    },
}

/// One patch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PatchInfo {
    /// Its name.
    pub name: String,
    /// Whether it is enabled, or will be when its transition ends.
    pub enabled: bool,
    /// Where its transition leads, if it is in one.
    pub transition: Option<Direction>,
    /// Tasks that its transition waits for.
    pub pending: usize,
    /// Whether a forced transition pinned it.
    pub forced: bool,
    /// Whether it takes the place of others.
    pub replace: bool,
    /// Its place among the patches in force, from 1; 0 if it is not in force.
    pub stack_order: usize,
    /// What it is known by elsewhere.
    #[serde(default)]
    pub labels: Vec<String>,
    /// What it does, in its author's words.
    #[serde(default)]
    pub descriptions: Vec<String>,
    /// Who made it.
    #[serde(default)]
    pub authors: Vec<String>,
    /// The objects that it changes.
    pub objects: Vec<ObjectInfo>,
}

/// Where a transition leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To the new functions.
    Patching,
    /// Back.
    Unpatching,
}

/// An object of a patch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// Its name.
    pub name: String,
    /// Whether calls of its functions are redirected now.
    pub patched: bool,
    /// The functions that are replaced, as `NAME,POSITION`.
    pub functions: Vec<String>,
}

/// A task that holds a transition back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Blocking {
    /// The thread's id.
    pub task: u64,
    /// Its name.
    pub name: String,
    /// Who it is and why, in words.
    pub why: String,
    /// Its stack, innermost function first.
    pub stack: Vec<String>,
}

/// An entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether it is a directory.
    pub directory: bool,
    /// Its mode: who may do what.
    pub mode: u16,
}
