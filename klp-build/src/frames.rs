//! Unwind information of some functions, out of that of all functions of an object file.
//!
//! The format is the Linux Standard Base's ("Exception Frames"): records, each with its length in
//! front; a common one (CIE) begins with zero, one for a range of code (FDE) with the distance to
//! its CIE.

use crate::unit::{Home, Reloc, Section, Unit};
use object::Endian;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a length, and of a distance.
const WORD: usize = 4;

/// A length that says that a longer one follows, which no assembler writes.
const LONG: u32 = 0xffff_ffff;

/// Takes from `section`, the `.eh_frame` of `unit`, what it says of the code in `wanted`. `None`: it
/// cannot be read.
pub(crate) fn of(unit: &Unit, section: &Section, wanted: &BTreeSet<usize>) -> Option<Section> {
    let mut out = Section {
        name: section.name.clone(),
        kind: section.kind,
        flags: section.flags,
        align: section.align,
        item: 0,
        len: 0,
        bytes: Vec::new(),
        relocs: Vec::new(),
    };
    // Where each CIE came to stand.
    let mut commons = BTreeMap::new();
    let mut at = 0;
    while at < section.bytes.len() {
        let len = word(unit, section, at)?;
        // Zero ends a program's table; an assembler may pad with it.
        if len == 0 {
            at += WORD;
            continue;
        }
        let end = at
            .checked_add(WORD)?
            .checked_add(usize::try_from(len).ok()?)?;
        if len == LONG || end > section.bytes.len() {
            return None;
        }
        let distance = usize::try_from(word(unit, section, at + WORD)?).ok()?;
        if distance != 0 && is_wanted(unit, section, at + 2 * WORD, wanted)? {
            let common = (at + WORD).checked_sub(distance)?;
            let common = match commons.get(&common) {
                Some(place) => *place,
                None => {
                    let len = usize::try_from(word(unit, section, common)?).ok()?;
                    let place = copy(section, common, common + WORD + len, &mut out)?;
                    commons.insert(common, place);
                    place
                }
            };
            let place = copy(section, at, end, &mut out)?;
            let distance = u32::try_from(place + WORD - common).ok()?;
            let field = out.bytes.get_mut(place + WORD..place + 2 * WORD)?;
            field.copy_from_slice(&unit.header.endian.write_u32(distance));
        }
        at = end;
    }
    out.len = out.bytes.len() as u64;
    Some(out)
}

fn word(unit: &Unit, section: &Section, at: usize) -> Option<u32> {
    let bytes = section.bytes.get(at..at + WORD)?;
    Some(unit.header.endian.read_u32(bytes.try_into().ok()?))
}

/// Whether the code whose address stands at `at` is in a section that is wanted.
fn is_wanted(unit: &Unit, section: &Section, at: usize, wanted: &BTreeSet<usize>) -> Option<bool> {
    let reloc = section.relocs_in(at as u64, 1).first()?;
    Some(match unit.symbols.get(reloc.symbol)?.home {
        Home::Section(code) => wanted.contains(&code),
        Home::Outside | Home::Absolute | Home::Common => false,
    })
}

/// Copies a record. Says where it came to stand.
fn copy(section: &Section, from: usize, to: usize, out: &mut Section) -> Option<usize> {
    let place = out.bytes.len();
    out.bytes.extend_from_slice(section.bytes.get(from..to)?);
    let relocs = section.relocs_in(from as u64, (to - from) as u64);
    out.relocs.extend(relocs.iter().map(|reloc| Reloc {
        at: reloc.at - from as u64 + place as u64,
        ..*reloc
    }));
    Some(place)
}
