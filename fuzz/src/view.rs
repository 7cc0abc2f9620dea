//! The ELF view: what it accepts lies in the file, can be followed without a look, and is what
//! another reader of ELF sees there.

use crate::memory::bounded;
use klp_core::elf::view::{Home, Section, View};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ObjectSymbol};

/// Bytes that the view of a file of `len` bytes may take: a section has 64 of the file's, a symbol
/// 24.
pub(crate) fn enough(len: usize) -> usize {
    4096 + 16 * len
}

/// Checks one input: a file, for the machine and with the order of bytes that its header says.
pub fn check(file: &[u8]) {
    let (Some(machine), Some(order)) = (file.get(18..20), file.get(5)) else {
        assert!(View::parse(file, 0, false).is_err());
        return;
    };
    let machine = [machine[0], machine[1]];
    let (machine, big_endian) = match order {
        2 => (u16::from_be_bytes(machine), true),
        _ => (u16::from_le_bytes(machine), false),
    };
    let parsed = bounded(enough(file.len()), || {
        View::parse(file, machine, big_endian)
    });
    if let Ok(view) = parsed {
        stays_inside(&view, file);
        agrees(&view, file);
        assert!(View::parse(file, machine.wrapping_add(1), big_endian).is_err());
        assert!(View::parse(file, machine, !big_endian).is_err());
    }
}

fn stays_inside(view: &View<'_>, file: &[u8]) {
    let inside = |bytes: &[u8]| {
        let (file, bytes) = (file.as_ptr_range(), bytes.as_ptr_range());
        file.start <= bytes.start && bytes.end <= file.end
    };
    let inside = |bytes: &[u8]| bytes.is_empty() || inside(bytes);
    let mut size = 0;
    for section in view.sections() {
        assert!(inside(section.name.as_bytes()) && inside(section.bytes));
        assert!(section.align.is_power_of_two());
        assert!(section.bytes.is_empty() || section.bytes.len() as u64 == section.len);
        assert!(section.target() < view.sections().len());
        assert!(
            section
                .relas()
                .all(|rela| rela.symbol < view.symbols().len())
        );
        check_ranges(section);
        size += section.bytes.len();
    }
    assert!(size <= file.len(), "sections are larger than their file");
    for (index, symbol) in view.symbols().iter().enumerate() {
        assert!(inside(symbol.name.as_bytes()) && inside(view.symbol_name(index).as_bytes()));
        if let Home::Section(section) = symbol.home {
            assert!(section < view.sections().len());
            let found = view
                .functions_at(section, symbol.value)
                .any(|at| at == index);
            assert_eq!(
                found,
                symbol.kind == object::elf::STT_FUNC.0 && symbol.len > 0
            );
        }
    }
    for key in ["name", "livepatch", "klp_state", ""] {
        let first = view
            .modinfo_all(key)
            .inspect(|value| assert!(inside(value.as_bytes())));
        assert_eq!(first.count() > 0, view.modinfo(key).is_some());
    }
}

/// Ranges of a section that hold, and that do not.
fn check_ranges(section: &Section<'_>) {
    let len = section.bytes.len() as u64;
    assert_eq!(section.range(0, len), Some(0..section.bytes.len()));
    for (offset, part) in [
        (0, len + 1),
        (len, 1),
        (1, len),
        (u64::MAX, 1),
        (1, u64::MAX),
    ] {
        assert_eq!(section.range(offset, part), None);
    }
    for offset in [0, len / 2, len, u64::MAX] {
        if let Some(text) = section.text_at(offset) {
            assert!(offset + (text.len() as u64) < len);
        }
    }
}

/// What `object` reads there.
fn agrees(view: &View<'_>, file: &[u8]) {
    // It also looks at what patch objects have no use for, and may refuse that.
    let Ok(other) = ElfFile64::<Endianness>::parse(file) else {
        return;
    };
    for section in other.sections() {
        let ours = &view.sections()[section.index().0];
        if ours.kind == object::elf::SHT_NULL.0 {
            continue;
        }
        assert_eq!(section.name(), Ok(ours.name));
        assert_eq!(section.size(), ours.len);
        assert_eq!(section.data(), Ok(ours.bytes));
    }
    for symbol in other.symbols() {
        let ours = &view.symbols()[symbol.index().0];
        assert_eq!(symbol.name(), Ok(ours.name));
        assert_eq!((symbol.address(), symbol.size()), (ours.value, ours.len));
        if let Home::Section(section) = ours.home {
            assert_eq!(symbol.section_index().map_or(0, |index| index.0), section);
        }
    }
}
