//! The grammar of `.klp.*` names.
//!
//! | name | what it names |
//! |---|---|
//! | `.klp.sym.OBJECT.NAME,POSITION` | a symbol of the patched system |
//! | `.klp.rela.OBJECT.SECTION` | relocations that wait for an object |
//!
//! OBJECT is 1 to 55 bytes without a dot, NAME text without a comma, POSITION a decimal number below
//! 2^32: 0 for a symbol that must be the only one of its name, `n` for the n-th. Linux reads the same
//! fields (`klp_resolve_symbols`, `klp_write_section_relocs`) but stops looking behind the position's
//! digits; here nothing may follow them, and no zero stand before them: a symbol has one name. How
//! long NAME may be depends on the system ([`SymbolResolver::NAME_LEN`]): names of C++ functions can
//! be longer than any of Linux.
//!
//! [`SymbolResolver::NAME_LEN`]: crate::port::SymbolResolver::NAME_LEN

use crate::config::OBJECT_NAME_LEN;
use core::fmt;

/// What names of livepatch symbols begin with.
pub const SYMBOL_PREFIX: &str = ".klp.sym.";

/// What names of livepatch relocation sections begin with.
pub const RELA_PREFIX: &str = ".klp.rela.";

/// What is wrong with a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadName {
    /// It does not begin as it must.
    Prefix,
    /// The object's name is missing or too long, or no dot follows it.
    Object,
    /// The symbol's name is missing, or no comma follows it.
    Symbol,
    /// What follows the comma is not a decimal number below 2^32, or has zeros before it.
    Position,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix => write!(f, "it must begin with {SYMBOL_PREFIX} or {RELA_PREFIX}"),
            Self::Object => write!(
                f,
                "the object must have 1 to {OBJECT_NAME_LEN} bytes and a dot behind it"
            ),
            Self::Symbol => f.write_str("the symbol must have a name and a comma behind it"),
            Self::Position => f.write_str(
                "the position must be a decimal number below 2^32, without zeros before it",
            ),
        }
    }
}

/// A parsed `.klp.sym.OBJECT.NAME,POSITION`. Displays as what it was parsed from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SymbolName<'a> {
    /// The object that the symbol belongs to.
    pub object: &'a str,
    /// The symbol's own name.
    pub name: &'a str,
    /// 0 if the name must be unique in the object, otherwise which of its symbols is meant, counted
    /// from 1.
    pub pos: u32,
}

impl<'a> SymbolName<'a> {
    /// Parses the name of a livepatch symbol.
    ///
    /// # Errors
    ///
    /// [`BadName`].
    pub fn parse(text: &'a str) -> Result<Self, BadName> {
        let (object, rest) =
            split_object(text.strip_prefix(SYMBOL_PREFIX).ok_or(BadName::Prefix)?)?;
        let (name, pos) = rest.split_once(',').ok_or(BadName::Symbol)?;
        if name.is_empty() {
            return Err(BadName::Symbol);
        }
        let is_padded = pos.len() > 1 && pos.starts_with('0');
        if is_padded || !pos.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(BadName::Position);
        }
        Ok(Self {
            object,
            name,
            pos: pos.parse().map_err(|_| BadName::Position)?,
        })
    }
}

impl fmt::Display for SymbolName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{SYMBOL_PREFIX}{}.{},{}",
            self.object, self.name, self.pos
        )
    }
}

/// A parsed `.klp.rela.OBJECT.SECTION`. Displays as what it was parsed from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelaName<'a> {
    /// The object that must be there before the relocations can be applied.
    pub object: &'a str,
    /// The section to which they apply, with its own dot if it has one. For people: `sh_info` is
    /// what counts.
    pub section: &'a str,
}

impl<'a> RelaName<'a> {
    /// Parses the name of a livepatch relocation section.
    ///
    /// # Errors
    ///
    /// [`BadName`].
    pub fn parse(text: &'a str) -> Result<Self, BadName> {
        let tail = text.strip_prefix(RELA_PREFIX).ok_or(BadName::Prefix)?;
        let (object, _) = split_object(tail)?;
        Ok(Self {
            object,
            section: &tail[object.len()..],
        })
    }
}

impl fmt::Display for RelaName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.section.starts_with('.') {
            ""
        } else {
            "."
        };
        write!(f, "{RELA_PREFIX}{}{dot}{}", self.object, self.section)
    }
}

fn split_object(tail: &str) -> Result<(&str, &str), BadName> {
    let (object, rest) = tail.split_once('.').ok_or(BadName::Object)?;
    if object.is_empty() || object.len() > OBJECT_NAME_LEN {
        return Err(BadName::Object);
    }
    Ok((object, rest))
}

/// The function that a symbol called `symbol` is a part of: `NAME` of `NAME.cold` and
/// `NAME.cold.N`.
#[must_use]
pub fn part_of(symbol: &str) -> Option<&str> {
    let (name, number) = symbol.rsplit_once(".cold")?;
    let digits = number
        .strip_prefix('.')
        .unwrap_or(if number.is_empty() { "0" } else { "" });
    (!digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::{String, ToString};

    #[test]
    fn symbols_round_trip() {
        for (text, object, name, pos) in [
            (".klp.sym.vmlinux.printk,0", "vmlinux", "printk", 0),
            (
                ".klp.sym.btrfs.can_modify_feature.isra.3,2",
                "btrfs",
                "can_modify_feature.isra.3",
                2,
            ),
            (".klp.sym.9p.a,4294967295", "9p", "a", u32::MAX),
        ] {
            let parsed = SymbolName::parse(text).expect(text);
            assert_eq!(parsed, SymbolName { object, name, pos });
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn sections_round_trip() {
        for (text, object, section) in [
            (
                ".klp.rela.ext4.text.ext4_attr_store",
                "ext4",
                ".text.ext4_attr_store",
            ),
            (".klp.rela.vmlinux.rodata", "vmlinux", ".rodata"),
        ] {
            let parsed = RelaName::parse(text).expect(text);
            assert_eq!(parsed, RelaName { object, section });
            assert_eq!(parsed.to_string(), text);
        }
        let undotted = RelaName {
            object: "ext4",
            section: "__ex_table",
        };
        assert_eq!(undotted.to_string(), ".klp.rela.ext4.__ex_table");
    }

    #[test]
    fn bad_symbols_say_what_is_wrong() {
        for (text, why) in [
            ("", BadName::Prefix),
            (".klp.rela.vmlinux.f,0", BadName::Prefix),
            (".klp.sym.vmlinux", BadName::Object),
            (".klp.sym..f,0", BadName::Object),
            (".klp.sym.vmlinux.f", BadName::Symbol),
            (".klp.sym.vmlinux.,0", BadName::Symbol),
            (".klp.sym.vmlinux.f,", BadName::Position),
            (".klp.sym.vmlinux.f,+1", BadName::Position),
            (".klp.sym.vmlinux.f, 1", BadName::Position),
            (".klp.sym.vmlinux.f,1x", BadName::Position),
            (".klp.sym.vmlinux.f,00", BadName::Position),
            (".klp.sym.vmlinux.f,01", BadName::Position),
            (".klp.sym.vmlinux.f,0,0", BadName::Position),
            (".klp.sym.vmlinux.f,4294967296", BadName::Position),
        ] {
            assert_eq!(SymbolName::parse(text), Err(why), "{text}");
        }
        assert_eq!(RelaName::parse(".klp.rela.vmlinux"), Err(BadName::Object));
        assert_eq!(RelaName::parse(".rela.text"), Err(BadName::Prefix));
    }

    #[test]
    fn names_of_objects_have_the_kernels_length() {
        let symbol = |object: usize, name: usize| {
            let mut text = String::from(SYMBOL_PREFIX);
            text.extend(core::iter::repeat_n('o', object));
            text.push('.');
            text.extend(core::iter::repeat_n('n', name));
            text.push_str(",0");
            SymbolName::parse(&text).map(|_| ())
        };
        assert_eq!(symbol(OBJECT_NAME_LEN, 5000), Ok(()));
        assert_eq!(symbol(OBJECT_NAME_LEN + 1, 1), Err(BadName::Object));
    }

    #[test]
    fn parts_have_the_name_of_their_function() {
        assert_eq!(part_of("work.cold"), Some("work"));
        assert_eq!(part_of("work.cold.12"), Some("work"));
        assert_eq!(part_of("work.constprop.0.cold"), Some("work.constprop.0"));
        for other in [
            "work",
            "work.cold.",
            "work.cold.x",
            "work.colder",
            "work.part.0",
        ] {
            assert_eq!(part_of(other), None, "{other}");
        }
    }
}
