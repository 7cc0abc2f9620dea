//! What a processor adds to a relocated field before it uses it.
//!
//! On x86_64 a field that is relative to the instruction pointer is relative to the end of its
//! instruction, which only the instruction tells: the assembler has subtracted the difference from
//! the addend. On the other architectures it is relative to the instruction, and nothing is added.
//! The kernel adds something of its own in a few sections.

use crate::special;
use crate::unit::Section;
use object::elf;
use yaxpeax_arch::LengthedInstruction;
use yaxpeax_x86::long_mode::InstDecoder;

/// Notes the bias of each relocation of `section`.
pub(crate) fn find(machine: elf::Machine, section: &mut Section) {
    for reloc in &mut section.relocs {
        reloc.bias = special::bias(machine, &section.name, reloc.at);
    }
    if machine != elf::EM_X86_64 || !section.is_code() {
        return;
    }
    let decoder = InstDecoder::default();
    let mut relocs = section.relocs.iter_mut().peekable();
    let mut at = 0;
    while relocs.peek().is_some() {
        let rest = section.bytes.get(at..).unwrap_or_default();
        // Of what is not understood, the usual is assumed: the field is the last one.
        let len = decoder.decode_slice(rest).ok();
        let len = len.and_then(|instruction| usize::try_from(instruction.len().to_const()).ok());
        let end = (at + len.unwrap_or(1).max(1)) as u64;
        while let Some(reloc) = relocs.next_if(|reloc| reloc.at < end) {
            if is_relative(reloc.kind) {
                let behind = len.and_then(|_| i64::try_from(end - reloc.at).ok());
                reloc.bias = behind.unwrap_or(FIELD);
            }
        }
        if rest.is_empty() {
            break;
        }
        at = usize::try_from(end).unwrap_or(usize::MAX);
    }
}

/// Bytes of a field that is relative to the instruction pointer.
const FIELD: i64 = 4;

/// Whether the sum of such a relocation is relative to its place.
fn is_relative(kind: u32) -> bool {
    [
        elf::R_X86_64_PC32,
        elf::R_X86_64_PLT32,
        elf::R_X86_64_GOTPCREL,
        elf::R_X86_64_GOTPCRELX,
        elf::R_X86_64_REX_GOTPCRELX,
        elf::R_X86_64_GOTTPOFF,
        elf::R_X86_64_GOTPC32_TLSDESC,
        elf::R_X86_64_TLSGD,
        elf::R_X86_64_TLSLD,
    ]
    .iter()
    .any(|relative| relative.0 == kind)
}
