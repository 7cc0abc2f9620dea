//! [`SymbolResolver`]: the symbols of the kernel's own file, which QEMU has put into memory.

use core::fmt;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::model::VMLINUX;
use klp_core::port::{PortErrorKind, Symbol, SymbolResolver};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSymbol, SymbolKind};

/// The kernel's file.
pub struct Symbols(ElfFile64<'static, LittleEndian>);

impl Symbols {
    /// The symbols of `file`, which is the one that runs.
    pub fn new(file: &'static [u8]) -> object::Result<Self> {
        ElfFile64::parse(file).map(Self)
    }

    fn functions(&self) -> impl Iterator<Item = (&'static str, Symbol, bool)> {
        let functions = self.0.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text);
        functions.filter_map(|function| {
            let addr = CodeAddr::new(function.address());
            let symbol = Symbol { addr, len: function.size() };
            Some((function.name().ok()?, symbol, function.is_global()))
        })
    }

    fn at(&self, addr: CodeAddr) -> Option<(&'static str, TextRange)> {
        let mut ranges = self
            .functions()
            .filter_map(|(name, symbol, _)| Some((name, TextRange::new(symbol.addr, symbol.len)?)));
        ranges.find(|(_, range)| range.contains(addr))
    }
}

// SAFETY: the linker made the table, and there is one object, which is always loaded.
unsafe impl SymbolResolver for Symbols {
    type Error = PortErrorKind;

    fn is_loaded(&self, object: &str) -> bool {
        object == VMLINUX
    }

    fn symbols(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(Symbol),
    ) -> Result<(), PortErrorKind> {
        if self.is_loaded(object) {
            let called = self.functions().filter(|function| function.0 == name);
            called.for_each(|(_, symbol, _)| found(symbol));
        }
        Ok(())
    }

    fn exported(&self, name: &str) -> Result<Option<CodeAddr>, PortErrorKind> {
        let mut exported = self.functions().filter(|(other, _, global)| *global && *other == name);
        Ok(exported.next().map(|(_, symbol, _)| symbol.addr))
    }

    fn function_at(&self, addr: CodeAddr) -> Option<TextRange> {
        self.at(addr).map(|(_, range)| range)
    }

    fn describe(&self, addr: CodeAddr, out: &mut dyn fmt::Write) -> fmt::Result {
        match self.at(addr) {
            Some((name, range)) => {
                let offset = addr.get() - range.start().get();
                let name = rustc_demangle::demangle(name);
                write!(out, "{name:#}+{offset:#x}/{:#x}", range.len())
            }
            None => write!(out, "{addr}"),
        }
    }
}
