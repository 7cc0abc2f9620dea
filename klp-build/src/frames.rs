//! Unwind information of some functions, out of that of all functions of an object file.
//!
//! The format is the Linux Standard Base's ("Exception Frames"): records, each with its length in
//! front; a common one (CIE) begins with zero, one for a range of code (FDE) with the distance to
//! its CIE.

use crate::unit::{Referent, Reloc, Section, Unit};
use object::Endian;
use std::collections::{BTreeMap, BTreeSet};

/// The section with unwind information.
pub(crate) const EH_FRAME: &str = ".eh_frame";

/// What sections are called with tables of exceptions.
pub(crate) const EXCEPTION_TABLE: &str = ".gcc_except_table";

/// Bytes of a length, and of a distance.
const WORD: usize = 4;

/// A length that says that a longer one follows, which no assembler writes.
const LONG: u32 = 0xffff_ffff;

/// Where the table of exceptions of the code in a section is: the section that it is in, and its
/// place there. By the section with the code.
pub(crate) type Tables = BTreeMap<usize, (usize, i64)>;

/// The tables of exceptions of `unit`.
pub(crate) fn tables(unit: &Unit) -> Tables {
    let mut tables = Tables::new();
    let frames = unit
        .sections
        .iter()
        .filter(|section| section.name == EH_FRAME);
    for section in frames {
        for record in records(unit, section).unwrap_or_default() {
            let len = (record.end - record.at) as u64;
            // One of code refers to that, and then to its table.
            let relocs = section.relocs_in(record.at as u64, len);
            let ([_, table, ..], Some(code)) = (relocs, record.code) else {
                continue;
            };
            if let Referent::Nameless { section, offset } = unit.referent(table) {
                tables.insert(code, (section, offset));
            }
        }
    }
    tables
}

/// Takes from `section`, the `.eh_frame` of `unit`, what it says of the code in `wanted`. `None`:
/// it cannot be read.
pub(crate) fn of(unit: &Unit, section: &Section, wanted: &BTreeSet<usize>) -> Option<Section> {
    let mut out = Section {
        len: 0,
        bytes: Vec::new(),
        relocs: Vec::new(),
        ..section.clone()
    };
    // Where each CIE came to stand.
    let mut commons = BTreeMap::new();
    let all = records(unit, section)?;
    let wanted = |record: &&Record| record.code.is_some_and(|code| wanted.contains(&code));
    for record in all.iter().filter(wanted) {
        let common = match commons.get(&record.common) {
            Some(place) => *place,
            None => {
                // They are in the order of their places.
                let common = all.binary_search_by_key(&record.common, |common| common.at);
                let place = copy(section, all.get(common.ok()?)?, &mut out)?;
                commons.insert(record.common, place);
                place
            }
        };
        let place = copy(section, record, &mut out)?;
        let distance = u32::try_from(place + WORD - common).ok()?;
        let field = out.bytes.get_mut(place + WORD..place + 2 * WORD)?;
        field.copy_from_slice(&unit.header.endian.write_u32(distance));
    }
    out.len = out.bytes.len() as u64;
    Some(out)
}

/// A CIE or an FDE.
struct Record {
    at: usize,
    end: usize,
    /// Of an FDE: where its CIE is.
    common: usize,
    /// The section with the code that it is about.
    code: Option<usize>,
}

/// All records of `section`; `None` if it cannot be read.
fn records(unit: &Unit, section: &Section) -> Option<Vec<Record>> {
    let (mut records, mut at) = (Vec::new(), 0);
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
        let is_common = distance == 0;
        let common = (at + WORD).checked_sub(distance)?;
        let code = (!is_common).then(|| code(unit, section, at + 2 * WORD));
        records.push(Record {
            at,
            end,
            common: if is_common { at } else { common },
            code: code.flatten(),
        });
        at = end;
    }
    Some(records)
}

fn word(unit: &Unit, section: &Section, at: usize) -> Option<u32> {
    let bytes = section.bytes.get(at..at + WORD)?;
    Some(unit.header.endian.read_u32(bytes.try_into().ok()?))
}

/// The section with the code whose address stands at `at`.
fn code(unit: &Unit, section: &Section, at: usize) -> Option<usize> {
    let reloc = section.relocs_in(at as u64, 1).first()?;
    unit.section_of(reloc.symbol)
}

/// Copies a record. Says where it came to stand.
fn copy(section: &Section, record: &Record, out: &mut Section) -> Option<usize> {
    let place = out.bytes.len();
    let bytes = section.bytes.get(record.at..record.end)?;
    out.bytes.extend_from_slice(bytes);
    let from = record.at as u64;
    let relocs = section.relocs_in(from, bytes.len() as u64);
    out.relocs.extend(relocs.iter().map(|reloc| Reloc {
        at: reloc.at - from + place as u64,
        ..*reloc
    }));
    Some(place)
}
