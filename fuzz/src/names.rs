//! Names: what is parsed displays as what it was parsed from, and names of objects are within the
//! kernel's bounds.

use crate::memory::bounded;
use klp_core::config::OBJECT_NAME_LEN;
use klp_core::elf::names::{RELA_PREFIX, RelaName, SYMBOL_PREFIX, SymbolName, part_of};

/// Checks one input: a name, or what follows its prefix.
pub fn check(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    check_name(text);
    check_name(&format!("{SYMBOL_PREFIX}{text}"));
    check_name(&format!("{RELA_PREFIX}{text}"));
}

fn check_name(text: &str) {
    let (symbol, rela) = bounded(0, || (SymbolName::parse(text), RelaName::parse(text)));
    assert!(symbol.is_err() || rela.is_err());
    if let Ok(name) = symbol {
        assert_eq!(name.to_string(), text);
        assert!((1..=OBJECT_NAME_LEN).contains(&name.object.len()));
        assert!(!name.name.is_empty());
        assert!(!name.object.contains('.') && !name.name.contains(','));
    }
    if let Ok(name) = rela {
        assert_eq!(name.to_string(), text);
        assert!((1..=OBJECT_NAME_LEN).contains(&name.object.len()));
        assert!(!name.object.contains('.') && name.section.starts_with('.'));
    }
    if let Some(whole) = part_of(text) {
        let rest = text
            .strip_prefix(whole)
            .and_then(|part| part.strip_prefix(".cold"));
        let number = rest.expect("a function's name and .cold").strip_prefix('.');
        assert!(number.is_none_or(|number| number.bytes().all(|byte| byte.is_ascii_digit())));
    }
}
