//! Which symbol of a name is meant: unique, or the n-th (kernel: `klp_find_object_symbol`).
//!
//! The core counts, so no port can get it wrong.

use crate::error::SymbolFault;
use crate::port::{Symbol, SymbolResolver, ThreadLocal};

/// Finds the symbol `name` of `object`. Position 0 demands that there is only one; position n is
/// the n-th in symbol-table order, counted from 1.
///
/// # Errors
///
/// The outer error is the resolver's own, the inner one says what does not fit.
pub fn find<R: SymbolResolver>(
    resolver: &R,
    object: &str,
    name: &str,
    sympos: u32,
) -> Result<Result<Symbol, SymbolFault>, R::Error> {
    pick(sympos, |found| resolver.symbols(object, name, found))
}

/// The same for a symbol that code refers to: [`SymbolResolver::references`].
///
/// # Errors
///
/// As for [`find`].
pub(crate) fn find_reference<R: SymbolResolver>(
    resolver: &R,
    object: &str,
    name: &str,
    sympos: u32,
) -> Result<Result<Symbol, SymbolFault>, R::Error> {
    pick(sympos, |found| resolver.references(object, name, found))
}

/// The same for a thread-local variable that code refers to: [`SymbolResolver::thread_locals`].
///
/// # Errors
///
/// As for [`find`].
pub(crate) fn find_thread_local<R: SymbolResolver>(
    resolver: &R,
    object: &str,
    name: &str,
    sympos: u32,
) -> Result<Result<ThreadLocal, SymbolFault>, R::Error> {
    pick(sympos, |found| resolver.thread_locals(object, name, found))
}

fn pick<S, E>(
    sympos: u32,
    symbols: impl FnOnce(&mut dyn FnMut(S)) -> Result<(), E>,
) -> Result<Result<S, SymbolFault>, E> {
    let mut seen = 0u32;
    let mut hit = None;
    symbols(&mut |symbol| {
        seen = seen.saturating_add(1);
        if seen == sympos.max(1) {
            hit = Some(symbol);
        }
    })?;
    Ok(match (hit, sympos) {
        (Some(_), 0) if seen > 1 => Err(SymbolFault::Ambiguous),
        (Some(symbol), _) => Ok(symbol),
        (None, 0) => Err(SymbolFault::NotFound),
        (None, _) if seen == 0 => Err(SymbolFault::NotFound),
        (None, sympos) => Err(SymbolFault::PositionNotFound(sympos)),
    })
}
