//! The code in the file of a program, a library or a kernel: what a digest of an object is made of.

use object::Endianness;
use object::elf::{FileHeader64, SHF_ALLOC, SHF_EXECINSTR, SHT_PROGBITS};
use object::read::elf::{FileHeader, SectionHeader};
use object::read::{ReadRef, Result};

/// A section with code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CodeSection {
    /// Its address, as the file has it.
    pub addr: u64,
    /// Where its contents begin in the file.
    pub offset: u64,
    /// How many bytes they have.
    pub len: u64,
}

/// Shows `each` the sections with code of an ELF file of 64 bits, in the order of the section
/// table. A digest of an object is one of their contents, one after the other. What `strip` takes
/// away is none of them.
///
/// # Errors
///
/// It is no such file.
pub fn sections<'a, R: ReadRef<'a>>(file: R, mut each: impl FnMut(CodeSection)) -> Result<()> {
    let header = FileHeader64::<Endianness>::parse(file)?;
    let endian = header.endian()?;
    for section in header.sections(endian, file)?.iter() {
        let flags = section.sh_flags(endian);
        let is_code = flags.contains(SHF_ALLOC) && flags.contains(SHF_EXECINSTR);
        if section.sh_type(endian) == SHT_PROGBITS && is_code {
            each(CodeSection {
                addr: section.sh_addr(endian),
                offset: section.sh_offset(endian),
                len: section.sh_size(endian),
            });
        }
    }
    Ok(())
}
