//! Names to addresses: the port [`SymbolResolver`], on the symbol tables of the objects' files.

use super::error::Error;
use super::maps;
use super::shadow;
use super::space::Space;
use super::symbol_table::Kind;
use alloc::sync::Arc;
use core::fmt;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::model::VMLINUX;
use klp_core::port::{Symbol, SymbolResolver};
use std::ffi::CString;

/// The symbols of the process.
///
/// The executable is the object [`VMLINUX`]; a shared object is called by its file name up to
/// `.so`, with `.` and `-` turned into `_`. Its symbols are those of `.symtab`, or of `.dynsym` if
/// the file is stripped, in their order. Of a name with several versions, the one without `@` means
/// the version that new programs get.
///
/// A variable of a library that the executable holds a copy of is that copy: it is what the program
/// and the library use.
pub struct Symbols {
    space: Arc<Space>,
}

impl Symbols {
    pub(crate) fn new(space: Arc<Space>) -> Self {
        Self { space }
    }
}

// SAFETY: the symbol tables of the files that the objects were mapped from (`Object::file` proves
// that), and only of objects that are alive.
unsafe impl SymbolResolver for Symbols {
    type Error = Error;

    fn is_loaded(&self, object: &str) -> bool {
        self.space.objects.named(object).is_some()
    }

    fn symbols(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(Symbol),
    ) -> Result<(), Error> {
        let Some(object) = self.space.objects.named(object) else {
            return Ok(());
        };
        let file = object.file()?;
        for symbol in file.symbols.named(name) {
            let addr = match symbol.kind {
                Kind::Indirect => return Err(Error::indirect(&object.name, name)),
                Kind::Data if symbol.preemptible && !file.symbolic => self.copy_of(name)?,
                Kind::Data | Kind::Function => None,
            };
            found(Symbol {
                addr: addr.unwrap_or_else(|| object.in_memory(symbol.addr)),
                len: symbol.len,
            });
        }
        Ok(())
    }

    fn clones(&self, object: &str, name: &str, found: &mut dyn FnMut(&str)) -> Result<(), Error> {
        let Some(object) = self.space.objects.named(object) else {
            return Ok(());
        };
        let symbols = &object.file()?.symbols;
        let clones = symbols.clones_of(name);
        clones.for_each(|clone| found(symbols.name(clone)));
        Ok(())
    }

    fn exported(&self, name: &str) -> Result<Option<CodeAddr>, Error> {
        if let Some(function) = shadow::function(name) {
            return Ok(Some(function));
        }
        let Ok(c_name) = CString::new(name) else {
            return Ok(None);
        };
        // SAFETY: the name ends with a zero byte.
        let addr = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c_name.as_ptr()) };
        let addr = CodeAddr::new(addr as u64);
        // Of a thread-local variable, `dlsym` finds the calling thread's, which lies in no object.
        if self.space.objects.segment(addr).is_some() {
            return Ok(Some(addr));
        }
        // An executable exports little to the dynamic linker; the static linker would bind to any
        // of its globals.
        let Some(executable) = self.space.objects.named(VMLINUX) else {
            return Ok(None);
        };
        let mut symbols = executable.file()?.symbols.named(name);
        match symbols.find(|symbol| !symbol.local) {
            Some(symbol) if symbol.kind == Kind::Indirect => {
                Err(Error::indirect(&executable.name, name))
            }
            symbol => Ok(symbol.map(|symbol| executable.in_memory(symbol.addr))),
        }
    }

    fn function_at(&self, addr: CodeAddr) -> Option<TextRange> {
        function(&self.space, addr, |range, _, _| range)
    }

    fn parts(
        &self,
        func: TextRange,
        known_as: Option<(&str, &str)>,
        found: &mut dyn FnMut(TextRange),
    ) -> Result<(), Error> {
        if self.space.patches.parts_of(func.start(), found) {
            return Ok(());
        }
        let Some(object) = self.space.objects.at(func.start()) else {
            return Ok(());
        };
        let symbols = &object.file()?.symbols;
        let start = func.start().get().wrapping_sub(object.bias);
        // A function may have several names; a part bears one of them.
        let names = symbols
            .functions_from(start)
            .map(|symbol| symbols.name(symbol));
        let given = known_as.map(|(_, name)| name);
        for part in names.chain(given).flat_map(|name| symbols.parts_of(name)) {
            if let Some(range) = TextRange::new(object.in_memory(part.addr), part.len) {
                found(range);
            }
        }
        Ok(())
    }

    fn describe(&self, addr: CodeAddr, out: &mut dyn fmt::Write) -> fmt::Result {
        describe(&self.space, addr, out)
    }
}

impl Symbols {
    /// Where the program holds the variable `name` of a shared library: the dynamic linker binds
    /// all references to that, the library's own too (ABI supplements, "Relocation Types").
    fn copy_of(&self, name: &str) -> Result<Option<CodeAddr>, Error> {
        let Some(executable) = self.space.objects.named(VMLINUX) else {
            return Ok(None);
        };
        let name = name.split('@').next().unwrap_or_default();
        let copy = executable.file()?.copy_of(name);
        Ok(copy.map(|addr| executable.in_memory(addr)))
    }
}

/// Tells `found` of the function at `addr`: where it is, its name, and its object if that is not
/// the executable.
pub(crate) fn function<R>(
    space: &Space,
    addr: CodeAddr,
    found: impl FnOnce(TextRange, &str, Option<&str>) -> R,
) -> Option<R> {
    if let Some((range, name)) = space.patches.function_at(addr) {
        return Some(found(range, &name, None));
    }
    let object = space.objects.at(addr)?;
    let file = object.file().ok()?;
    let symbols = &file.symbols;
    let symbol = symbols.function_at(addr.get().wrapping_sub(object.bias))?;
    let range = TextRange::new(object.in_memory(symbol.addr), symbol.len)?;
    Some(found(
        range,
        symbols.name(symbol),
        (object.name != VMLINUX).then_some(&object.name),
    ))
}

/// Writes `addr` for people: as a place in a function, in an object, or in a mapping of memory that
/// has a name (`[uprobes]`, where return probes of the kernel lead). What is nothing of these is
/// code that nobody knows.
pub(crate) fn describe(space: &Space, addr: CodeAddr, out: &mut dyn fmt::Write) -> fmt::Result {
    let written = function(space, addr, |range, name, object| {
        let offset = addr.get() - range.start().get();
        write!(
            out,
            "{:#}+{offset:#x}/{:#x}",
            rustc_demangle::demangle(name),
            range.len()
        )?;
        object.map_or(Ok(()), |object| write!(out, " [{object}]"))
    });
    if let Some(result) = written {
        return result;
    }
    if let Some(object) = space.objects.at(addr) {
        return write!(out, "{addr} [{}]", object.name);
    }
    let mapping = maps::mapping_at(addr.get()).filter(|mapping| !mapping.name().is_empty());
    match mapping {
        Some(mapping) => write!(out, "{addr} {}", mapping.name().to_string_lossy()),
        None => write!(out, "unknown code at {addr}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(addr: u64) -> String {
        let space = Space::default();
        space.refresh().expect("there is memory");
        let mut text = String::new();
        describe(&space, CodeAddr::new(addr), &mut text).expect("a string takes everything");
        text
    }

    #[test]
    fn every_place_has_a_description() {
        let here = described as *const () as u64;
        assert!(
            described(here + 1).contains("::described+0x1/0x"),
            "{}",
            described(here + 1)
        );
        let libc_at = described(libc::getpid as *const () as u64 + 1);
        assert!(libc_at.ends_with(" [libc]"), "{libc_at}");
        let mapping = std::fs::read_to_string("/proc/self/maps").expect("there is a /proc");
        let stack = mapping
            .lines()
            .find(|line| line.ends_with(" [stack]"))
            .expect("the first thread has one");
        let stack = stack.split('-').next().expect("a range");
        let addr = u64::from_str_radix(stack, 16).expect("a number");
        assert_eq!(described(addr), format!("{} [stack]", CodeAddr::new(addr)));
        assert_eq!(described(8), "unknown code at 0x8");
    }
}
