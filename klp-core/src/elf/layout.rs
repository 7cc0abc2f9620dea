//! Which section of a patch object goes where in memory, and what is refused to go anywhere.

use super::manifest::{FUNCS_SECTION, OBJECTS_SECTION};
use super::view::{Home, Section, SectionFlags, View};
use super::{Refusal, names};
use crate::addr::CodeAddr;
use crate::mem::try_vec;
use crate::port::{Image, ImageLayout, Relocator, Support};
use crate::relocs::THREAD_LOCAL_SLOTS;
use alloc::vec::Vec;
use object::elf;

/// The largest alignment that a section may ask for: the start of each part of an image is aligned
/// so.
pub(super) const PAGE: u64 = 4096;

/// What unwinders read (Linux Standard Base, "The .eh_frame section").
pub(super) const EH_FRAME: &str = ".eh_frame";

/// The section ends with an entry of length zero, as `__register_frame` wants it; link editors take
/// that from a file of the compiler's.
const END_OF_EH_FRAME: u64 = 4;

/// Kinds of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    Text,
    Rodata,
    Data,
}

/// An offset in one part of the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spot {
    pub(super) part: Part,
    pub(super) offset: u64,
}

impl Spot {
    /// Its address in `image`.
    pub(super) const fn addr(self, image: &Image) -> CodeAddr {
        let part = match self.part {
            Part::Text => image.text,
            Part::Rodata => image.rodata,
            Part::Data => image.data,
        };
        part.start().wrapping_add(self.offset)
    }
}

/// The plan.
#[derive(Debug)]
pub(super) struct Layout {
    /// By section index; `None` for what is not needed in memory.
    pub(super) sections: Vec<Option<Spot>>,
    /// Where the slots begin: the base of a table of contents of the image's own.
    pub(super) toc: Spot,
    /// By symbol index: its slots, in the read-only part.
    pub(super) slots: Vec<Option<Spot>>,
    /// By symbol index: room for a veneer, in the text.
    pub(super) veneers: Vec<Option<Spot>>,
    /// The size of each part.
    pub(super) size: ImageLayout,
    /// How many bytes at the start of the data are not just zeros.
    pub(super) filled_data: u64,
}

impl Layout {
    /// Lays `view` out; a veneer takes `veneer` bytes, a power of two.
    pub(super) fn new<R: Relocator>(view: &View<'_>, veneer: u64) -> Result<Self, Refusal> {
        let mut layout = Self {
            sections: none_for(view.sections().len())?,
            slots: none_for(view.symbols().len())?,
            veneers: none_for(view.symbols().len())?,
            toc: Spot {
                part: Part::Rodata,
                offset: 0,
            },
            size: ImageLayout::default(),
            filled_data: 0,
        };
        let mut order = try_vec(view.sections().len())?;
        for (index, section) in view.sections().iter().enumerate() {
            if let Some(part) = part_of(section)? {
                let zeros = section.is(elf::SHT_NOBITS);
                order.push((zeros, rank(section.name), index, part));
            }
        }
        // What is only zeros comes last; the rarely executed part of a function right behind the
        // function.
        order.sort_unstable_by_key(|&(zeros, rank, index, _)| (zeros, rank, index));
        for (zeros, _, index, part) in order {
            let section = &view.sections()[index];
            layout.sections[index] = Some(layout.reserve(part, section.len, section.align)?);
            if section.name == EH_FRAME {
                layout.reserve(part, END_OF_EH_FRAME, 1)?;
            }
            if part == Part::Data && !zeros {
                layout.filled_data = layout.size.data;
            }
        }
        layout.reserve_detours::<R>(view, veneer)?;
        Ok(layout)
    }

    /// Slots and veneers for the symbols whose relocations may need them.
    fn reserve_detours<R: Relocator>(
        &mut self,
        view: &View<'_>,
        veneer: u64,
    ) -> Result<(), Refusal> {
        self.toc = self.reserve(Part::Rodata, 0, 8)?;
        let is_outside = |symbol: usize| {
            matches!(
                view.symbols()[symbol].home,
                Home::Undefined | Home::Livepatch
            )
        };
        for relas in view.sections() {
            if self.sections[relas.target()].is_none() {
                continue;
            }
            for rela in relas.relas() {
                match R::support(rela.kind) {
                    Some(support) if support.has_slot() && self.slots[rela.symbol].is_none() => {
                        let len = match view.symbols()[rela.symbol].is_thread_local() {
                            true => THREAD_LOCAL_SLOTS,
                            false => 8,
                        };
                        self.slots[rela.symbol] = Some(self.reserve(Part::Rodata, len, 8)?);
                    }
                    Some(Support::Veneer)
                        if self.veneers[rela.symbol].is_none() && is_outside(rela.symbol) =>
                    {
                        self.veneers[rela.symbol] =
                            Some(self.reserve(Part::Text, veneer, veneer)?);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn reserve(&mut self, part: Part, len: u64, align: u64) -> Result<Spot, Refusal> {
        let size = match part {
            Part::Text => &mut self.size.text,
            Part::Rodata => &mut self.size.rodata,
            Part::Data => &mut self.size.data,
        };
        let offset = size.checked_next_multiple_of(align);
        let end = offset.and_then(|offset| offset.checked_add(len));
        let (Some(offset), Some(end)) = (offset, end) else {
            return Err(Refusal::malformed(
                "sections are larger than any memory",
                "section table",
            ));
        };
        *size = end;
        Ok(Spot { part, offset })
    }
}

/// The part of the image that a section belongs to; `None` if it is not needed in memory.
pub(super) fn part_of(section: &Section<'_>) -> Result<Option<Part>, Refusal> {
    let named = |prefixes: &[&str]| {
        prefixes
            .iter()
            .any(|prefix| section.name.starts_with(prefix))
    };
    let has = |flags| section.flags.contains(flags);
    let refuse = |what| Err(Refusal::unsupported(what, section.name));
    check_klp_rela(section)?;
    // GCC's nested functions whose addresses are taken write code on the stack.
    if section.name == ".note.GNU-stack" && has(SectionFlags::EXECINSTR) {
        return refuse("executable stack");
    }
    if !has(SectionFlags::ALLOC) || section.is(elf::SHT_RELA) {
        return Ok(None);
    }
    if section.name == ".modinfo"
        || section.name == OBJECTS_SECTION
        || section.name == FUNCS_SECTION
    {
        return Ok(None);
    }
    if [
        elf::SHT_INIT_ARRAY,
        elf::SHT_FINI_ARRAY,
        elf::SHT_PREINIT_ARRAY,
    ]
    .iter()
    .any(|kind| section.is(*kind))
        || named(&[
            ".init_array",
            ".fini_array",
            ".preinit_array",
            ".ctors",
            ".dtors",
        ])
    {
        return refuse("constructor or destructor");
    }
    if named(&[".klp.arch."]) {
        return refuse("architecture-specific section");
    }
    if section.is(elf::SHT_REL) {
        return refuse("relocations without addends");
    }
    if has(SectionFlags::TLS) {
        return refuse("thread-local data");
    }
    if has(SectionFlags::COMPRESSED) {
        return refuse("compressed section in memory");
    }
    if has(SectionFlags::WRITE | SectionFlags::EXECINSTR) {
        return refuse("section both writable and executable");
    }
    if section.is(elf::SHT_NOBITS) && !has(SectionFlags::WRITE) {
        return refuse("read-only section without contents");
    }
    if section.align > PAGE {
        return refuse("alignment above 4096");
    }
    Ok(Some(
        match (has(SectionFlags::EXECINSTR), has(SectionFlags::WRITE)) {
            (true, _) => Part::Text,
            (false, true) => Part::Data,
            (false, false) => Part::Rodata,
        },
    ))
}

/// A livepatch relocation section is known by its name and by its flags, and both must agree.
fn check_klp_rela(section: &Section<'_>) -> Result<(), Refusal> {
    let flagged = section.is_klp_rela();
    let named = section.name.starts_with(names::RELA_PREFIX);
    if flagged == named {
        return Ok(());
    }
    let what = if flagged {
        "section has an incorrectly formatted name"
    } else {
        "livepatch relocations without their flag"
    };
    Err(Refusal::malformed(what, section.name))
}

/// Sorts `.text.unlikely.f` right behind `.text.f`.
fn rank(name: &str) -> (&str, &str) {
    const COLD: &str = ".text.unlikely";
    match name.strip_prefix(COLD) {
        Some(function) => (function, COLD),
        None => (name.strip_prefix(".text").unwrap_or(name), ""),
    }
}

fn none_for(len: usize) -> Result<Vec<Option<Spot>>, Refusal> {
    let mut vec = try_vec(len)?;
    vec.resize(len, None);
    Ok(vec)
}
