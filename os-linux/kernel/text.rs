// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! Ports that nothing needs here: ftrace changes instructions, the module loader lays out patches
//! and relocates them (`relocs.rs`). The engine asks none of them, since no
//! [`Object`](klp_core::Object) of ours has relocations; each refuses.

use crate::host::errno::EINVAL;
use crate::log::Errno;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::port::{
    Arch, Code, Entry, Fill, Image, ImageLayout, Intruder, OutOfReach, Poke, RelocError, Relocation, Relocator, Support, Text,
};

/// No text that could be changed.
pub(crate) struct NoText;

const REFUSED: Errno = Errno { what: "code is the module loader's and ftrace's", errno: -EINVAL };

// SAFETY: it changes and hands out nothing.
unsafe impl Text for NoText {
    type Error = Errno;

    fn read(&self, _at: CodeAddr, _into: &mut [u8]) -> Result<(), Errno> {
        Err(REFUSED)
    }

    unsafe fn poke(&self, _batch: &[Poke<'_>]) -> Result<(), Errno> {
        Err(REFUSED)
    }

    fn alloc(&self, _near: TextRange, _reach: u64, _layout: ImageLayout) -> Result<Image, Errno> {
        Err(REFUSED)
    }

    unsafe fn free(&self, _image: Image) {}

    unsafe fn fill(&self, _batch: &[Fill<'_>]) -> Result<(), Errno> {
        Err(REFUSED)
    }
}

/// No instructions.
pub(crate) struct NoArch;

// SAFETY: it makes and recognises nothing.
unsafe impl Arch for NoArch {
    const MAX_ENTRY: usize = 0;
    const SLOT: u64 = 16;
    const REACH: u64 = 0;

    fn entry(_at: CodeAddr, _bytes: &[u8]) -> Option<Entry> {
        None
    }

    fn intruder(_at: CodeAddr, _bytes: &[u8]) -> Option<Intruder> {
        None
    }

    fn jump(from: CodeAddr, to: CodeAddr, _len: u8) -> Result<Code, OutOfReach> {
        Err(OutOfReach { from, to })
    }

    fn thunk(_at: CodeAddr, _arg: u64, _stub: CodeAddr) -> Code {
        Code::new()
    }

    fn veneer(_at: CodeAddr, _to: CodeAddr) -> Code {
        Code::new()
    }
}

/// No relocations.
pub(crate) struct NoRelocator;

// SAFETY: it refuses everything.
unsafe impl Relocator for NoRelocator {
    const MACHINE: u16 = 0;

    fn support(_kind: u32) -> Option<Support> {
        None
    }

    fn apply(reloc: &Relocation, _bytes: &mut [u8]) -> Result<(), RelocError> {
        Err(RelocError::Unsupported { kind: reloc.kind })
    }

    fn clear(kind: u32, _bytes: &mut [u8]) -> Result<(), RelocError> {
        Err(RelocError::Unsupported { kind })
    }
}
