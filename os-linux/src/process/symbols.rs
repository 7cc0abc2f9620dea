//! Names to addresses: the port [`SymbolResolver`], on the symbol tables of the objects' files.

use super::arch;
use super::error::Error;
use super::maps;
use super::objects::Object;
use super::peek::Copied;
use super::shadow;
use super::space::Space;
use super::symbol_table::{self, Kind};
use super::thread_locals;
use alloc::sync::Arc;
use core::fmt;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::model::VMLINUX;
use klp_core::port::{Extent, Symbol, SymbolResolver, ThreadLocal};
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

    /// Files have names of any length.
    const NAME_LEN: usize = usize::MAX;

    fn is_loaded(&self, object: &str) -> bool {
        self.space.objects.named(object).is_some()
    }

    fn symbols(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(Symbol),
    ) -> Result<(), Error> {
        let indirect = |object: &Object, _: &_| Err(Error::indirect(&object.name, name));
        self.each(object, name, &indirect, found)
    }

    /// Of an indirect function, the one that it chose when the object was relocated.
    fn references(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(Symbol),
    ) -> Result<(), Error> {
        let chosen = |object: &Object, symbol: &_| self.chosen(object, symbol, name);
        self.each(object, name, &chosen, found)
    }

    fn thread_locals(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(ThreadLocal),
    ) -> Result<(), Error> {
        let Some(object) = self.space.objects.named(object) else {
            return Ok(());
        };
        let file = object.file()?;
        // Without a block there are none, whatever its table says.
        let variables = file.symbols.thread_locals(name);
        for symbol in variables.filter(|_| object.tls_module != 0) {
            if symbol.preemptible && !file.symbolic && object.name != VMLINUX {
                self.check_only(&object, name)?;
            }
            found(thread_locals::find(&object, symbol)?);
        }
        Ok(())
    }

    fn clones(&self, object: &str, name: &str, found: &mut dyn FnMut(&str)) -> Result<(), Error> {
        let look = |object: &Arc<Object>| {
            let symbols = &object.file()?.symbols;
            let clones = symbols.clones_of(name);
            clones.for_each(|clone| found(symbols.name(clone)));
            Ok(())
        };
        let objects = &self.space.objects;
        objects.look_at_named(object, look).unwrap_or(Ok(()))
    }

    fn build_id(&self, object: &str, is: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        let look = |object: &Arc<Object>| object.build_id().map(is);
        let _ = self.space.objects.look_at_named(object, look);
        Ok(())
    }

    fn digests(
        &self,
        object: &str,
        algorithm: &str,
        of: &[Extent],
        is: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), Error> {
        let Some(object) = self.space.objects.named(object) else {
            return Ok(());
        };
        if algorithm == "sha256" {
            for (index, digest) in object.digests(of)?.iter().enumerate() {
                digest.iter().for_each(|digest| is(index, digest));
            }
        }
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
                self.chosen(&executable, symbol, name).map(Some)
            }
            symbol => Ok(symbol.map(|symbol| executable.in_memory(symbol.addr))),
        }
    }

    fn function_at(&self, addr: CodeAddr) -> Option<TextRange> {
        let Space {
            patches, objects, ..
        } = &*self.space;
        let in_image = patches.look_at_function(addr, |range, _| range);
        in_image.or_else(|| {
            let range = |object: &Arc<Object>| Some(object.function_at(addr)?.0);
            objects.look_at(addr, range).flatten()
        })
    }

    fn misfit(
        &self,
        old: TextRange,
        new: TextRange,
        other: Option<u8>,
    ) -> Result<Option<&'static str>, Error> {
        let Some(misfit) = arch::MISFIT else {
            return Ok(None);
        };
        let (objects, start) = (&self.space.objects, old.start());
        let other_at = |object: &Arc<Object>, at| -> Result<Option<u8>, Error> {
            object.file()?;
            Ok(object.function_at(at).map(|(_, symbol)| symbol.other))
        };
        let look = |object: &Arc<Object>| {
            let old = other_at(object, start)?;
            // An image has no table of contents but that of the object that it patches.
            let same = other.is_some() || object.segment(new.start()).is_some();
            Ok::<_, Error>(old.map(|old| (old, same)))
        };
        let Some((old, same)) = objects.look_at(start, look).transpose()?.flatten() else {
            return Ok(None);
        };
        // Of code that is no object's, whoever wrote it gives his word.
        let new = match other {
            Some(other) => Some(other),
            None => objects
                .look_at(new.start(), |object: &Arc<Object>| {
                    other_at(object, new.start())
                })
                .transpose()?
                .flatten(),
        };
        Ok(new.and_then(|new| misfit(old, new, same)))
    }

    fn parts(
        &self,
        func: TextRange,
        // All names of the function are known by its address.
        _known_as: Option<(&str, &str)>,
        found: &mut dyn FnMut(TextRange),
    ) -> Result<(), Error> {
        if self.space.patches.parts_of(func.start(), found) {
            return Ok(());
        }
        let look = |object: &Arc<Object>| {
            let start = func.start().get().wrapping_sub(object.bias);
            let parts = object.file()?.symbols.parts_of(start);
            let range =
                |part: &symbol_table::Symbol| TextRange::new(object.in_memory(part.addr), part.len);
            parts.filter_map(range).for_each(found);
            Ok(())
        };
        let objects = &self.space.objects;
        objects.look_at(func.start(), look).unwrap_or(Ok(()))
    }

    fn describe(&self, addr: CodeAddr, out: &mut dyn fmt::Write) -> fmt::Result {
        describe(&self.space, addr, out)
    }
}

impl Symbols {
    /// Reports the symbols called `name` of `object`; `indirect` says where indirect functions are.
    fn each(
        &self,
        object: &str,
        name: &str,
        indirect: &dyn Fn(&Object, &symbol_table::Symbol) -> Result<CodeAddr, Error>,
        found: &mut dyn FnMut(Symbol),
    ) -> Result<(), Error> {
        let Some(object) = self.space.objects.named(object) else {
            return Ok(());
        };
        let file = object.file()?;
        for symbol in file.symbols.named(name) {
            let addr = match symbol.kind {
                Kind::Indirect => Some(indirect(&object, symbol)?),
                Kind::Data if symbol.preemptible && !file.symbolic => self.copy_of(name)?,
                Kind::Data | Kind::Function | Kind::ThreadLocal => None,
            };
            found(Symbol {
                addr: addr.unwrap_or_else(|| object.in_memory(symbol.addr)),
                len: symbol.len,
            });
        }
        Ok(())
    }

    /// Refuses a thread-local variable of a library if the program has one of the same name: the
    /// library may use that.
    fn check_only(&self, library: &Object, name: &str) -> Result<(), Error> {
        let Some(executable) = self.space.objects.named(VMLINUX) else {
            return Ok(());
        };
        let mut others = executable.file()?.symbols.thread_locals(name);
        match others.any(|other| !other.local) {
            true => Err(Error::two_thread_locals(&library.name, name)),
            false => Ok(()),
        }
    }

    /// The function that the indirect function `symbol` chose when `object` was relocated, which is
    /// the one that `object` calls. It is not asked again: it might say something else.
    fn chosen(
        &self,
        object: &Object,
        symbol: &symbol_table::Symbol,
        name: &str,
    ) -> Result<CodeAddr, Error> {
        let memory = Copied::new();
        let read = |place| memory.read(object.in_memory(place).get());
        let mut choices = object.file()?.choices_of(symbol.addr).map(read);
        // It may not have been asked yet: then something else stands there, but no function.
        let is_function = |addr: &CodeAddr| {
            let function = self.function_at(*addr);
            function.is_some_and(|function| function.start() == *addr)
        };
        let first = choices.next().flatten();
        let agree = choices.all(|each| each == first);
        let chosen = first
            .map(CodeAddr::new)
            .filter(|_| agree)
            .filter(is_function);
        chosen.ok_or_else(|| Error::indirect(&object.name, name))
    }

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

/// Writes `addr` for people: as a place in a function, in an object, or in a mapping of memory that
/// has a name (`[uprobes]`, where return probes of the kernel lead). What is nothing of these is
/// code that nobody knows.
pub(crate) fn describe(space: &Space, addr: CodeAddr, out: &mut dyn fmt::Write) -> fmt::Result {
    let mut write = |range: TextRange, name: &str| {
        let offset = addr.get() - range.start().get();
        let name = rustc_demangle::demangle(name);
        write!(out, "{name:#}+{offset:#x}/{:#x}", range.len())
    };
    if let Some(written) = space.patches.look_at_function(addr, &mut write) {
        return written;
    }
    if let Some(object) = space.objects.at(addr) {
        match (object.function_at(addr), object.file()) {
            (Some((range, symbol)), Ok(file)) => write(range, file.symbols.name(symbol))?,
            _ => return write!(out, "{addr} [{}]", object.name),
        }
        return match &*object.name {
            VMLINUX => Ok(()),
            name => write!(out, " [{name}]"),
        };
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
