//! The sections of a patch: copies of the pairs' sections, whole or of some of their pieces.
//!
//! Linux's module loader looks for one section of each name, so the pieces of all pairs that come
//! from sections of one name are put together.

use crate::compare::{Pair, Place};
use crate::error::{Refusal, Why};
use crate::frames::{self, EH_FRAME};
use crate::pieces::piece_at;
use crate::special;
use crate::unit::{Reloc, Section};
use object::elf;
use std::collections::{BTreeMap, BTreeSet};

/// The sections of a patch of `pairs`.
pub(crate) struct Copies<'a> {
    pairs: &'a [Pair],
    pub(crate) sections: Vec<Section>,
    /// Relocations that are still to be added.
    pub(crate) open: Vec<Open>,
    /// The sections of pairs that are here as a whole, and where.
    pub(crate) whole: BTreeMap<(usize, usize), usize>,
    /// Sections that are put together of pieces, by their names and flags.
    tables: BTreeMap<(&'a str, u64), usize>,
    /// The pieces in them: where they are in a pair, and here.
    pieces: BTreeMap<(usize, Place), (usize, u64)>,
}

/// Relocations of a section of the patch, which still mean symbols of a pair.
pub(crate) struct Open {
    pub(crate) pair: usize,
    pub(crate) section: usize,
    pub(crate) relocs: Vec<Reloc>,
}

/// What the kernel's linker scripts align arrays to (`scripts/module.lds.S`).
const ARRAY: u64 = 8;

impl<'a> Copies<'a> {
    /// No sections.
    pub(crate) fn new(pairs: &'a [Pair]) -> Self {
        Self {
            pairs,
            sections: Vec::new(),
            open: Vec::new(),
            whole: BTreeMap::new(),
            tables: BTreeMap::new(),
            pieces: BTreeMap::new(),
        }
    }

    /// The copy of section `section` of a pair, as a whole.
    pub(crate) fn whole(&mut self, pair: usize, section: usize) -> usize {
        if let Some(known) = self.whole.get(&(pair, section)) {
            return *known;
        }
        let mut copy = self.pairs[pair].patched.sections[section].clone();
        let relocs = core::mem::take(&mut copy.relocs);
        let place = self.add(pair, copy, relocs);
        self.whole.insert((pair, section), place);
        place
    }

    /// Whether there is a copy of a pair's section as a whole.
    pub(crate) fn has_whole(&self, pair: usize, section: usize) -> bool {
        self.whole.contains_key(&(pair, section))
    }

    fn add(&mut self, pair: usize, section: Section, relocs: Vec<Reloc>) -> usize {
        let place = self.sections.len();
        self.sections.push(section);
        self.open.push(Open {
            pair,
            section: place,
            relocs,
        });
        place
    }

    /// The copy of a piece of a pair's section: the section that it is in, and its place there.
    pub(crate) fn piece(&mut self, pair: usize, piece: Place) -> (usize, u64) {
        let section = &self.pairs[pair].patched.sections[piece.section];
        let place = 1_u64.checked_shl(piece.start.trailing_zeros());
        let align = place.map_or(section.align, |place| section.align.min(place));
        // What is not aligned to anything that there is, is refused.
        let align = if section.is_aligned() { align } else { 1 };
        self.aligned(pair, piece, align)
    }

    fn aligned(&mut self, pair: usize, piece: Place, align: u64) -> (usize, u64) {
        if let Some(known) = self.pieces.get(&(pair, piece)) {
            return *known;
        }
        let from = &self.pairs[pair].patched.sections[piece.section];
        // Order is for linkers.
        let flags = elf::SectionFlags(from.flags.0 & !elf::SHF_LINK_ORDER.0);
        let sections = &mut self.sections;
        let table = *self.tables.entry((&from.name, flags.0)).or_insert_with(|| {
            sections.push(Section {
                flags,
                len: 0,
                bytes: Vec::new(),
                relocs: Vec::new(),
                ..from.clone()
            });
            sections.len() - 1
        });
        let out = &mut sections[table];
        out.align = out.align.max(from.align);
        let bytes = from.bytes_in(piece.start, piece.len);
        let place = out
            .len
            .checked_next_multiple_of(align.max(1))
            .unwrap_or(out.len);
        if out.kind == elf::SHT_NOBITS {
            out.len = place.saturating_add(piece.len);
        } else {
            out.bytes.resize(usize::try_from(place).unwrap_or(0), 0);
            out.bytes.extend_from_slice(bytes);
            out.len = out.bytes.len() as u64;
        }
        self.pieces.insert((pair, piece), (table, place));
        let relocs = from.relocs_in(piece.start, piece.len).iter();
        let relocs = relocs.map(|reloc| Reloc {
            at: reloc.at - piece.start + place,
            ..*reloc
        });
        self.open.push(Open {
            pair,
            section: table,
            relocs: relocs.collect(),
        });
        (table, place)
    }

    /// Adds the entries of special sections that are about code that is here. Says whether there
    /// were any.
    pub(crate) fn add_entries(&mut self) -> bool {
        let known = self.pieces.len();
        for (pair, each) in self.pairs.iter().enumerate() {
            for (section, entries) in &each.special {
                let known = self.pieces.len();
                for entry in entries.iter().flatten() {
                    let (code, place) = entry.code;
                    let piece = Place {
                        section: *section,
                        start: entry.start,
                        len: entry.len,
                    };
                    if self.has_code(pair, code, place) {
                        // They are an array. Linkers align what Linux reads as such, and assemblers
                        // may not.
                        let (table, _) = self.aligned(pair, piece, 1);
                        let table = &mut self.sections[table];
                        table.align = table.align.max(ARRAY);
                    }
                }
                if self.pieces.len() > known {
                    self.add_header(pair, *section);
                }
            }
        }
        self.pieces.len() > known
    }

    /// Adds what says something of the whole of a special section of a pair, unless it is there.
    fn add_header(&mut self, pair: usize, of: usize) {
        let unit = &self.pairs[pair].patched;
        let Some(name) = special::header_of(&unit.sections[of].name) else {
            return;
        };
        let is_known = self.sections.iter().any(|section| section.name == name);
        let mut sections = 0..unit.sections.len();
        let header = sections.find(|section| unit.sections[*section].name == name);
        if let Some(header) = header.filter(|_| !is_known) {
            self.whole(pair, header);
        }
    }

    /// Whether the code at `place` of a pair's section is here.
    fn has_code(&self, pair: usize, section: usize, place: u64) -> bool {
        let has_piece = || {
            let place = i64::try_from(place).ok()?;
            let (start, len) = piece_at(&self.pairs[pair].patched, section, place)?;
            let piece = Place {
                section,
                start,
                len,
            };
            self.pieces.get(&(pair, piece))
        };
        self.has_whole(pair, section) || has_piece().is_some()
    }

    /// Adds the unwind information of the code that is here. Returns what of it cannot be read.
    pub(crate) fn add_frames(&mut self) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for (pair, each) in self.pairs.iter().enumerate() {
            let unit = &each.patched;
            let here = self.whole.range((pair, 0)..(pair + 1, 0));
            let here = here.map(|((_, section), _)| *section);
            let code = here.filter(|section| unit.sections[*section].is_code());
            let code: BTreeSet<_> = code.collect();
            let tables = unit.sections.iter();
            let tables = tables.filter(|section| section.name == EH_FRAME);
            for table in tables.filter(|_| !code.is_empty()) {
                match frames::of(unit, table, &code) {
                    Some(mut frames) => {
                        let relocs = core::mem::take(&mut frames.relocs);
                        self.add(pair, frames, relocs);
                    }
                    None => refusals.push(each.refuse(&table.name, Why::Frames)),
                }
            }
        }
        refusals
    }
}
