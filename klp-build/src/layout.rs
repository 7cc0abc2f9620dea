//! How a type lies in memory, and in what two layouts differ.

use core::fmt;
use std::collections::BTreeSet;

/// The layout of a structure, a class, a union, or an enumeration.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Layout {
    pub(crate) size: Option<u64>,
    pub(crate) align: Option<u64>,
    pub(crate) parts: Vec<Part>,
    /// It is an enumeration whose users are ready for other values, as C's are.
    pub(crate) is_open: bool,
    /// The source file that declares it, without its folder.
    pub(crate) file: Option<String>,
}

/// A member, a base class, a virtual function, or a value of an enumeration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) kind: PartKind,
    /// Its place in bits, the slot, or the value; `None` if that is only known at run time.
    pub(crate) at: Option<i128>,
    /// Bits, of a bit-field.
    pub(crate) bits: Option<u64>,
    /// Its type, the same for types that mean the same.
    pub(crate) key: String,
    /// Its type, as people write it.
    pub(crate) shown: String,
    /// The type with a name that it has in itself.
    pub(crate) holds: Option<String>,
}

/// What a part of a type is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PartKind {
    Member,
    Base,
    Virtual,
    Value,
}

/// In what the layout of a type changed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum LayoutChange {
    /// There is a new member, base class, virtual function, or value.
    New {
        /// Its name.
        member: String,
    },
    /// There is one less.
    Gone {
        /// Its name.
        member: String,
    },
    /// A member has another type, or another number of bits.
    Retyped {
        /// Its name.
        member: String,
        /// The type in the original build.
        original: String,
        /// The type in the patched build.
        patched: String,
    },
    /// A member has another place, or a value is another one.
    Moved {
        /// Its name.
        member: String,
        /// In the original build.
        original: String,
        /// In the patched build.
        patched: String,
    },
    /// All is at its place, but the whole has another size.
    Resized {
        /// Bytes in the original build.
        original: u64,
        /// Bytes in the patched build.
        patched: u64,
    },
    /// It has another alignment.
    Realigned,
}

impl fmt::Display for LayoutChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New { member } => write!(f, "{member} is new"),
            Self::Gone { member } => write!(f, "{member} is gone"),
            Self::Retyped {
                member,
                original,
                patched,
            } => write!(f, "{member} is '{patched}' instead of '{original}'"),
            Self::Moved {
                member,
                original,
                patched,
            } => write!(f, "{member} is {patched} instead of {original}"),
            Self::Resized { original, patched } => {
                write!(f, "it has {patched} bytes instead of {original}")
            }
            Self::Realigned => f.write_str("it has another alignment"),
        }
    }
}

impl Layout {
    /// In what `self`, the original's, differs from `patched`.
    ///
    /// A member that has another name and nothing else is the same one.
    pub(crate) fn change(&self, patched: &Self) -> Option<LayoutChange> {
        let names = |layout: &Self| -> BTreeSet<String> {
            let named = layout.parts.iter().map(|part| part.name.clone());
            named.collect()
        };
        let (before, after) = (names(self), names(patched));
        let mut gone: Vec<_> = self
            .parts
            .iter()
            .filter(|part| !after.contains(&part.name))
            .collect();
        let mut new: Vec<_> = patched
            .parts
            .iter()
            .filter(|part| !before.contains(&part.name))
            .collect();
        gone.retain(|old| {
            let renamed = new.iter().position(|new| old.is_renamed_to(new));
            if let Some(renamed) = renamed {
                new.remove(renamed);
            }
            renamed.is_none()
        });
        new.retain(|part| !self.is_open || part.kind != PartKind::Value);
        let mut kept = self.parts.iter().filter_map(|old| {
            let new = patched.parts.iter().find(|new| new.name == old.name)?;
            Some((old, new))
        });
        let retyped = kept.clone().find_map(|(old, new)| old.retyped(new));
        let first = |parts: &[&Part]| parts.first().map(|part| part.to_string());
        if let Some(member) = first(&new) {
            Some(LayoutChange::New { member })
        } else if let Some(member) = first(&gone) {
            Some(LayoutChange::Gone { member })
        } else if retyped.is_some() {
            retyped
        } else if let Some(moved) = kept.find_map(|(old, new)| old.moved(new)) {
            Some(moved)
        } else if self.size != patched.size {
            let (original, patched) = (self.size.unwrap_or(0), patched.size.unwrap_or(0));
            Some(LayoutChange::Resized { original, patched })
        } else {
            (self.align != patched.align).then_some(LayoutChange::Realigned)
        }
    }
}

impl Layout {
    /// Whether `patched` has the same parts in the same order: then any other change may be nothing
    /// but the consequence of a change of what they contain.
    pub(crate) fn has_parts_of(&self, patched: &Self) -> bool {
        fn ordered(layout: &Layout) -> Vec<&Part> {
            let mut parts: Vec<_> = layout.parts.iter().collect();
            parts.sort_by_key(|part| part.at);
            parts
        }
        let (before, after) = (ordered(self), ordered(patched));
        before.len() == after.len()
            && before.iter().zip(after).all(|(old, new)| {
                let (at, shown) = (new.at, new.shown.clone());
                Part {
                    at,
                    shown,
                    ..(*old).clone()
                } == *new
                    && old.kind != PartKind::Value
            })
    }

    /// The types with names that are parts of it.
    pub(crate) fn contained(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| part.holds.as_deref())
    }
}

impl Part {
    fn is_renamed_to(&self, new: &Self) -> bool {
        let has_data = [PartKind::Member, PartKind::Value].contains(&self.kind);
        has_data
            && Self {
                name: new.name.clone(),
                shown: new.shown.clone(),
                ..self.clone()
            } == *new
    }

    fn retyped(&self, new: &Self) -> Option<LayoutChange> {
        let shown = |part: &Self| match part.bits {
            Some(bits) => format!("{}:{bits}", part.shown),
            None => part.shown.clone(),
        };
        let differs = self.key != new.key || self.bits != new.bits || self.kind != new.kind;
        differs.then(|| LayoutChange::Retyped {
            member: new.to_string(),
            original: shown(self),
            patched: shown(new),
        })
    }

    fn moved(&self, new: &Self) -> Option<LayoutChange> {
        (self.at != new.at).then(|| LayoutChange::Moved {
            member: new.to_string(),
            original: self.place(),
            patched: new.place(),
        })
    }

    fn place(&self) -> String {
        match (self.kind, self.at) {
            (PartKind::Virtual, Some(slot)) => format!("in slot {slot}"),
            (PartKind::Value, Some(value)) => value.to_string(),
            (_, Some(bit)) if bit % 8 == 0 => format!("at byte {}", bit / 8),
            (_, Some(bit)) => format!("at bit {bit}"),
            (_, None) => "where the object tells".to_owned(),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            PartKind::Member => "member",
            PartKind::Base => "base class",
            PartKind::Virtual => "virtual function",
            PartKind::Value => "value",
        };
        write!(f, "the {kind} '{}'", self.name)
    }
}
