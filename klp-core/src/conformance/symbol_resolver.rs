//! The suite of [`SymbolResolver`].

use crate::error::SymbolFault;
use crate::port::{Symbol, SymbolResolver};
use crate::sympos;
use alloc::string::String;
use alloc::vec::Vec;

/// What the porter knows of a loaded object.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Its name, as patches say it.
    pub object: &'a str,
    /// An exported function whose name occurs once in the object.
    pub exported: (&'a str, Symbol),
    /// A function that is not exported; its name occurs once in the object.
    pub local: (&'a str, Symbol),
    /// A name that occurs several times, and its symbols in symbol-table order.
    pub duplicates: (&'a str, &'a [Symbol]),
}

/// A name that no symbol has, and no object.
const NOBODY: &str = "klp_conformance_no_such_name";

/// Checks an implementation of [`SymbolResolver`].
///
/// # Panics
///
/// If the implementation breaks the contract; the message says where.
pub fn check<R: SymbolResolver>(resolver: &R, known: &Known<'_>) {
    let Known {
        object,
        exported,
        local,
        duplicates,
    } = *known;
    assert!(resolver.is_loaded(object), "'{object}' is there");
    assert!(!resolver.is_loaded(NOBODY), "'{NOBODY}' is not there");
    assert!(duplicates.1.len() >= 2, "one symbol is no duplicate");
    assert_eq!(
        symbols(resolver, object, exported.0),
        [exported.1],
        "symbols called '{}'",
        exported.0
    );
    assert_eq!(
        symbols(resolver, object, local.0),
        [local.1],
        "symbols called '{}'",
        local.0
    );
    assert_eq!(
        symbols(resolver, object, duplicates.0),
        duplicates.1,
        "symbols called '{}', in order",
        duplicates.0
    );
    assert_eq!(
        symbols(resolver, object, NOBODY),
        [],
        "a name that is not there"
    );
    assert_eq!(
        symbols(resolver, NOBODY, exported.0),
        [],
        "an object that is not there"
    );

    assert_eq!(
        find(resolver, object, duplicates.0, 0),
        Err(SymbolFault::Ambiguous)
    );
    for (position, symbol) in (1..).zip(duplicates.1) {
        assert_eq!(
            find(resolver, object, duplicates.0, position),
            Ok(*symbol),
            "position {position}"
        );
    }

    assert_eq!(
        resolver.exported(exported.0).ok().flatten(),
        Some(exported.1.addr),
        "what new code is bound to"
    );
    assert!(
        matches!(resolver.exported(local.0), Ok(None)),
        "'{}' is not exported",
        local.0
    );
    assert!(
        matches!(resolver.exported(NOBODY), Ok(None)),
        "a name that nobody exports"
    );
    check_function(resolver, &exported.1);
    check_function(resolver, &local.1);
}

fn check_function<R: SymbolResolver>(resolver: &R, symbol: &Symbol) {
    assert!(
        symbol.len > 0,
        "{symbol:?}: the suite wants functions with a size"
    );
    let (first, last) = (symbol.addr, symbol.addr.wrapping_add(symbol.len - 1));
    for addr in [first, last] {
        let found = resolver
            .function_at(addr)
            .unwrap_or_else(|| panic!("no function at {addr}"));
        assert!(
            found.contains(first) && found.contains(last),
            "{addr} is in {symbol:?}, not in {found:?}"
        );
        let mut words = String::new();
        resolver
            .describe(addr, &mut words)
            .unwrap_or_else(|_| panic!("{addr} cannot be described"));
        assert!(!words.is_empty(), "{addr} is described by nothing");
    }
}

fn symbols<R: SymbolResolver>(resolver: &R, object: &str, name: &str) -> Vec<Symbol> {
    let mut found = Vec::new();
    let listed = resolver.symbols(object, name, &mut |symbol| found.push(symbol));
    listed.unwrap_or_else(|error| panic!("symbols called '{name}' in '{object}': {error}"));
    found
}

fn find<R: SymbolResolver>(
    resolver: &R,
    object: &str,
    name: &str,
    position: u32,
) -> Result<Symbol, SymbolFault> {
    sympos::find(resolver, object, name, position)
        .unwrap_or_else(|error| panic!("'{name}' at position {position} in '{object}': {error}"))
}
