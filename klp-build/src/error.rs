//! Why no patch can be made.

use crate::convert::ConvertError;
use crate::layout::LayoutChange;
use core::fmt;
use klp_core::config::{ABOUT_LEN, OBJECT_NAME_LEN};
use std::path::PathBuf;

/// Why no patch can be made of two builds.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// A file cannot be read as an ELF file.
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: object::read::Error,
    },
    /// A file is no object file of a compiler.
    NotRelocatable {
        /// The file.
        file: PathBuf,
    },
    /// Object files are of different architectures, or of different variants of one.
    Mismatch {
        /// One that differs from those before it.
        file: PathBuf,
    },
    /// The name of the object is none that a livepatch symbol can have.
    BadObject {
        /// The name.
        object: String,
    },
    /// A text for people, or a name, that a patch object cannot carry.
    BadText {
        /// What it is to be, as the key of `.modinfo`.
        key: &'static str,
        /// The text.
        text: String,
    },
    /// No function of the original has changed: both builds are the same, or only new functions were
    /// added.
    NothingChanged,
    /// What was changed cannot be patched.
    Refused(Vec<Refusal>),
    /// The result cannot be written.
    Convert(ConvertError),
}

/// A change that cannot be patched.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Refusal {
    /// The object file of the patched build.
    pub file: PathBuf,
    /// What is at fault: a symbol, or a section.
    pub name: String,
    /// Why.
    pub why: Why,
}

/// Why a change cannot be patched.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Why {
    /// The variable begins with another value. It has one already where the program runs.
    ChangedData,
    /// The variable has another size.
    ChangedSize {
        /// Bytes in the original build.
        original: u64,
        /// Bytes in the patched build.
        patched: u64,
    },
    /// What runs when the object is loaded or unloaded was changed: it has run.
    ChangedInit,
    /// The compiler left no room at the function's entry.
    NoEntrySite,
    /// Several variables or functions of the original may be meant, or one of several.
    Ambiguous {
        /// Those of the original.
        original: Vec<String>,
    },
    /// The target has several symbols of that name, and nothing tells which one is meant.
    Position {
        /// How many.
        count: usize,
    },
    /// The target has no such symbol.
    NotInTarget,
    /// The original did not use it, and the target has only a local symbol of that name.
    MaybeLocal,
    /// Functions share a section: nothing tells where one ends for certain.
    SharedSection {
        /// The section.
        section: String,
    },
    /// A thread-local variable that the object that is patched does not have, or one of a processor
    /// for which nothing is known of them.
    ThreadLocal,
    /// A new variable that the linker would make room for.
    Common,
    /// The section says something of a function that the patch would have, and is not known.
    SpecialSection {
        /// The section.
        section: String,
    },
    /// The section says to kpatch what this tool does not do.
    ForKpatch,
    /// A new event, parameter, or the like, which the kernel would not find in a patch.
    NewOffer,
    /// The section is aligned to what is no power of two, or to more than two megabytes.
    Alignment,
    /// The section holds what only linkers read, as relocations or names.
    NotContents,
    /// An object has several callbacks of one kind.
    SecondCallback,
    /// The section is a table, and it cannot be told where its entries begin.
    Entries,
    /// An entry of the section refers to something in the object, and is applied before that has
    /// its place.
    AppliedEarly {
        /// The section.
        section: String,
    },
    /// A function of ppc64le ends in a jump to what is not in the patch.
    SiblingCall {
        /// What it jumps to.
        callee: String,
    },
    /// No symbol of the original names what a function refers to.
    Nameless {
        /// The section that it is in.
        section: String,
    },
    /// It was moved here from another object file.
    Moved {
        /// That one.
        from: PathBuf,
    },
    /// Code that belongs to no function was changed.
    Assembly,
    /// Unwind information cannot be read.
    Frames,
    /// The type lies in memory otherwise than before. Objects of it exist where the program runs.
    ChangedLayout {
        /// In what it differs.
        change: LayoutChange,
        /// The functions of the patch that are known to use it.
        users: Vec<String>,
    },
    /// A name is longer than any of the system's.
    LongName {
        /// Bytes of the longest one.
        limit: usize,
    },
    /// Debug information is there, and cannot be read.
    DebugInfo {
        /// What is wrong with it.
        why: String,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ChangedData => f.write_str(
                "the variable begins with another value, but in the running program it has one \
                 already: set it in a pre_patch or post_patch callback, or use a new variable",
            ),
            Self::ChangedSize { original, patched } => write!(
                f,
                "the variable has {patched} bytes instead of {original}, but there is room for \
                 {original}: use a new variable, or shadow variables",
            ),
            Self::ChangedInit => f.write_str(
                "what runs when the object is loaded or unloaded was changed, but it has run: do \
                 the same in a callback",
            ),
            Self::NoEntrySite => f.write_str(
                "the function has no entry pad: compile it with -fpatchable-function-entry, or \
                 patch its callers",
            ),
            Self::Ambiguous { original } => write!(
                f,
                "this may be any of the original's {}: give them different names",
                original.join(", ")
            ),
            Self::Position { count } => write!(
                f,
                "the target has {count} symbols of that name, and nothing tells which one this is",
            ),
            Self::MaybeLocal => f.write_str(
                "the target has a local symbol of that name, and nothing tells whether that or a \
                 library's is meant: give the object file that defines it, too",
            ),
            Self::NotInTarget => f.write_str("the target has no symbol of that name"),
            Self::SharedSection { section } => write!(
                f,
                "it shares the section {section} with others: compile both builds with \
                 -ffunction-sections -fdata-sections",
            ),
            Self::ThreadLocal => f.write_str(
                "a patched function uses a thread-local variable that patches cannot: they have none \
                 of their own, and use those of the object that they patch only, on x86_64. Have a \
                 function that is not patched use it, or use shadow variables",
            ),
            Self::Common => f.write_str(
                "a new variable without a section: compile both builds with -fno-common",
            ),
            Self::SpecialSection { section } => write!(
                f,
                "the section {section} refers to it, and this tool does not know what it says",
            ),
            Self::ForKpatch => f.write_str(
                "this tool does not do what the macro of kpatch-macros.h asks for: do without it",
            ),
            Self::NewOffer => f.write_str(
                "a new event or parameter, which the kernel does not look for in a patch: do without \
                 it",
            ),
            Self::Alignment => f.write_str(
                "the section is aligned to what no compiler aligns to: is the object file damaged?",
            ),
            Self::NotContents => f.write_str(
                "a function or variable is said to be in this section, which has relocations, names \
                 or the like: is the object file damaged?",
            ),
            Self::SecondCallback => f.write_str(
                "the patch has a callback of this kind already: have that one call this one",
            ),
            Self::Entries => f.write_str(
                "it cannot be told where the entries of this section begin: was it made by another \
                 tool, or cut off?",
            ),
            Self::AppliedEarly { section } => write!(
                f,
                "an entry of the section {section} refers to it, and is applied when the patch is \
                 loaded, but then it is not known where the module has it: do without the static \
                 branch, static call, or alternative (static_key_enabled() in place of \
                 static_branch_likely())",
            ),
            Self::SiblingCall { callee } => write!(
                f,
                "it ends in a jump to {callee}, and nothing would restore register 2 for its \
                 caller: compile it with -fno-optimize-sibling-calls",
            ),
            Self::Nameless { section } => write!(
                f,
                "it refers to something in the section {section} that has no name in the running \
                 program: make it a variable of its own",
            ),
            Self::Moved { from } => write!(
                f,
                "it was moved here from {}, and is not compared with what it was there: leave it \
                 there",
                from.display()
            ),
            Self::Assembly => f.write_str(
                "code in this section was changed that belongs to no function: mark its functions \
                 (.type NAME, @function; .size), or leave it as it is",
            ),
            Self::Frames => f.write_str("its unwind information cannot be read"),
            Self::ChangedLayout { change, users } => {
                write!(f, "the layout of the type changed: {change}")?;
                match &users[..] {
                    [] => f.write_str("; its source file is that of functions that changed")?,
                    [_, _, _, _, ..] => {
                        let count = users.len() - 3;
                        let shown = users[..3].join(", ");
                        write!(f, ", which matters to {shown}, and {count} more")?;
                    }
                    users => write!(f, ", which matters to {}", users.join(", "))?,
                }
                f.write_str(
                    ". Objects of the running program have the old layout: keep it, and have new \
                     data in shadow variables (docs/shadow-variables.md); if no object can be at \
                     fault, vouch for the type (--vouch-layout)",
                )
            }
            Self::LongName { limit } => write!(
                f,
                "its name has more than {limit} bytes, which Linux cannot find: patch its callers, \
                 or give it a shorter one (asm labels)",
            ),
            Self::DebugInfo { why } => write!(
                f,
                "debug information cannot be read, so types cannot be compared: {why}. Compile \
                 with another -g, or without",
            ),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.file.display(), self.name, self.why)
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, why } => {
                write!(f, "cannot read the object file {}: {why}", file.display())
            }
            Self::NotRelocatable { file } => write!(
                f,
                "{} is no object file of a compiler (compile with -c; without -flto)",
                file.display()
            ),
            Self::Mismatch { file } => write!(
                f,
                "{} is for another processor than the files before it",
                file.display()
            ),
            Self::BadObject { object } => write!(
                f,
                "'{object}' names no object: it must have 1 to 55 bytes, and no dot",
            ),
            Self::BadText { key, text } => write!(
                f,
                "{key}: {text:?} is not 1 to {ABOUT_LEN} bytes of text without control characters \
                 (names of patches: {OBJECT_NAME_LEN} bytes)",
            ),
            Self::NothingChanged => {
                f.write_str("no function of the original has changed: there is nothing to patch")
            }
            Self::Refused(refusals) => {
                f.write_str("the change cannot be patched")?;
                refusals
                    .iter()
                    .try_for_each(|refusal| write!(f, "\n  {refusal}"))
            }
            Self::Convert(why) => write!(f, "cannot write the patch object: {why}"),
        }
    }
}

impl core::error::Error for BuildError {}

impl From<ConvertError> for BuildError {
    fn from(why: ConvertError) -> Self {
        Self::Convert(why)
    }
}
