//! Which relocations only ever serve a call or a jump.
//!
//! A call may go to the new function at once. An address that is kept must be the one that the
//! running program knows: it is compared with others, and must be good when the patch is gone.

use crate::unit::{Reloc, Section};
use object::elf;

/// A call by code that does not use register 2 (64-Bit ELF V2 ABI, "Relocation Types").
const R_PPC64_REL24_NOTOC: elf::RelocationType = elf::RelocationType(116);

/// Whether `reloc`, in `section`, is of a call or a jump.
pub(crate) fn is_call(machine: elf::Machine, section: &Section, reloc: &Reloc) -> bool {
    match machine {
        elf::EM_X86_64 => {
            reloc.kind == elf::R_X86_64_PLT32.0
                || reloc.kind == elf::R_X86_64_PC32.0 && follows_branch(section, reloc.at)
        }
        elf::EM_AARCH64 => {
            let branches = [
                elf::R_AARCH64_CALL26,
                elf::R_AARCH64_JUMP26,
                elf::R_AARCH64_CONDBR19,
                elf::R_AARCH64_TSTBR14,
            ];
            branches.iter().any(|branch| branch.0 == reloc.kind)
        }
        elf::EM_PPC64 => {
            let branches = [elf::R_PPC64_REL24, elf::R_PPC64_REL14, R_PPC64_REL24_NOTOC];
            branches.iter().any(|branch| branch.0 == reloc.kind)
        }
        _ => false,
    }
}

/// Whether `reloc`, in `section`, is of a jump, which leaves nothing behind to come back to.
pub(crate) fn is_jump(machine: elf::Machine, section: &Section, reloc: &Reloc) -> bool {
    /// The lowest bit of an instruction says that it notes where it came from (Power ISA, "Branch
    /// Instructions", LK).
    const LINK: u8 = 1;
    if !is_call(machine, section, reloc) {
        return false;
    }
    match machine {
        elf::EM_X86_64 => {
            let before = section.bytes_in(reloc.at.saturating_sub(2), reloc.at.min(2));
            matches!(before, [.., 0xe9] | [0x0f, 0x80..=0x8f])
        }
        elf::EM_AARCH64 => reloc.kind != elf::R_AARCH64_CALL26.0,
        elf::EM_PPC64 => {
            let word = section.bytes_in(reloc.at, 4).first();
            word.is_some_and(|low| low & LINK == 0)
        }
        _ => false,
    }
}

/// Whether the field at `at` is that of a call or a jump of x86: assemblers before binutils 2.31
/// write the relocation of any other field.
fn follows_branch(section: &Section, at: u64) -> bool {
    let before = section.bytes_in(at.saturating_sub(2), at.min(2));
    matches!(before, [.., 0xe8 | 0xe9] | [0x0f, 0x80..=0x8f])
}
