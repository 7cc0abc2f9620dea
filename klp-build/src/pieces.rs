//! Sections of which each piece stands alone, and is a part of whatever refers to it: a patch takes
//! the pieces that it needs.
//!
//! * Tables of contents: linkers lay out their pointers themselves.
//! * Pieces of code that are no functions ([`special::has_snippets`]): one begins where anything
//!   refers to, and ends where the next one begins.

use crate::special;
use crate::unit::{Referent, Section, TOC_POINTER, Unit};
use object::elf;
use std::collections::{BTreeMap, BTreeSet};

/// Where pieces begin in each section that has some, besides tables of contents.
pub(crate) type Starts = BTreeMap<usize, BTreeSet<u64>>;

/// Finds where pieces begin in `unit`.
pub(crate) fn starts(unit: &Unit) -> Starts {
    let mut starts = Starts::new();
    for (index, section) in unit.sections.iter().enumerate() {
        if special::has_snippets(&section.name) && unit.names_in(index).is_empty() {
            starts.insert(index, BTreeSet::from([0]));
        }
    }
    if starts.is_empty() {
        return starts;
    }
    let users = unit.sections.iter();
    for user in users.filter(|user| user.has(elf::SHF_ALLOC)) {
        for reloc in &user.relocs {
            let Referent::Nameless { section, offset } = unit.referent(reloc) else {
                continue;
            };
            let (Some(starts), Ok(start)) = (starts.get_mut(&section), u64::try_from(offset))
            else {
                continue;
            };
            let snippets = &unit.sections[section];
            if special::is_copied(&snippets.name) || ends_at(unit, snippets, start) {
                starts.insert(start);
            }
        }
    }
    starts
}

/// The piece of section `section` that `place` is in: where it begins, and how long it is.
pub(crate) fn piece_at(unit: &Unit, section: usize, place: i64) -> Option<(u64, u64)> {
    let place = u64::try_from(place).ok()?;
    let table = unit.sections.get(section)?;
    if table.is_toc() {
        return Some((place, TOC_POINTER));
    }
    let starts = unit.pieces.get(&section)?;
    let start = *starts.range(..=place).next_back()?;
    let end = starts.range(start + 1..).next().copied();
    let end = end.unwrap_or(table.len).min(table.len);
    Some((start, end.checked_sub(start)?))
}

/// Whether the code in front of `end` does not go on behind it: then another piece begins there.
fn ends_at(unit: &Unit, section: &Section, end: u64) -> bool {
    let before = |len: u64| {
        let start = end.checked_sub(len)?;
        section
            .bytes
            .get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    };
    let word = || {
        let word = before(4)?.try_into().ok()?;
        Some(object::Endian::read_u32(unit.header.endian, word))
    };
    match unit.header.machine {
        elf::EM_X86_64 => {
            // jmp, with a relocation; ret; ud2; ud0, with or without its operand; int3.
            let jumps = matches!(before(5), Some([0xe9, ..]))
                && end
                    .checked_sub(4)
                    .is_some_and(|at| !section.relocs_in(at, 1).is_empty());
            jumps
                || matches!(before(1), Some([0xc3 | 0xcc]))
                || matches!(before(2), Some([0x0f, 0x0b | 0xff]))
                || matches!(before(3), Some([0x0f, 0xff, _]))
        }
        // b; ret; brk.
        elf::EM_AARCH64 => word().is_some_and(|word| {
            word & 0xfc00_0000 == 0x1400_0000
                || word == 0xd65f_03c0
                || word & 0xffe0_001f == 0xd420_0000
        }),
        // b; blr; trap.
        elf::EM_PPC64 => word().is_some_and(|word| {
            word & 0xfc00_0003 == 0x4800_0000 || word == 0x4e80_0020 || word == 0x7fe0_0008
        }),
        _ => false,
    }
}
