//! Strings that an object file refers to.

use crate::unit::{Referent, Reloc, Unit};

/// Whether `reloc` refers to the name of a source file.
pub(crate) fn is_file_name(unit: &Unit, reloc: &Reloc) -> bool {
    let is_file = |text: &[u8]| SOURCES.iter().any(|ending| text.ends_with(ending));
    text_at(unit, reloc).is_some_and(is_file)
}

/// What names of source files end with.
const SOURCES: [&[u8]; 4] = [b".c", b".h", b".S", b".rs"];

/// The string that `reloc` refers to, by a name (`__func__`) or without one.
pub(crate) fn text_at<'a>(unit: &'a Unit, reloc: &Reloc) -> Option<&'a [u8]> {
    let (section, start) = match unit.final_referent(reloc) {
        Referent::Nameless { section, offset } => (section, u64::try_from(offset).ok()?),
        Referent::Named { symbol, offset } => {
            let start = unit.symbols[symbol].value.checked_add_signed(offset)?;
            (unit.section_of(symbol)?, start)
        }
        Referent::Nothing => return None,
    };
    let section = &unit.sections[section];
    let text = section.bytes.get(usize::try_from(start).ok()?..)?;
    let text = text.split(|byte| *byte == 0).next();
    text.filter(|_| section.is_constant() && !section.is_code())
}
