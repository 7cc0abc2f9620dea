//! `klp-convert`: what comes out can be read by the loader's reader if the object file could, and
//! is not converted twice.

use crate::memory::bounded;
use klp_build::{ConvertError, convert};
use klp_core::elf::view::{Section, SectionFlags, View};
use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::FileHeader;

/// Checks one input: a compiler's object file.
pub fn check(object: &[u8]) {
    let converted = bounded((64 << 10) + 128 * object.len(), || convert(object));
    let Ok(converted) = converted else { return };
    // Of 32 bits, there is no loader.
    let Ok(header) = FileHeader64::<Endianness>::parse(&*converted) else {
        return;
    };
    let Ok(endian) = header.endian() else { return };
    let (machine, big_endian) = (header.e_machine(endian).0, endian == Endianness::Big);
    if View::parse(object, machine, big_endian).is_err() {
        return;
    }
    let view = View::parse(&converted, machine, big_endian);
    let view = view.unwrap_or_else(|why| panic!("the loader cannot read it: {why:?}"));
    let waits = |section: &Section<'_>| section.flags.contains(SectionFlags::RELA_LIVEPATCH);
    if view.sections().iter().any(waits) {
        assert!(matches!(convert(&converted), Err(ConvertError::Converted)));
    }
}
