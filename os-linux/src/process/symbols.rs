//! Names to addresses: the port [`SymbolResolver`], on the symbol tables of the objects' files.

use super::error::Error;
use super::objects::Object;
use super::space::Space;
use alloc::sync::Arc;
use core::fmt;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::model::VMLINUX;
use klp_core::port::{Symbol, SymbolResolver};
use std::ffi::CString;

/// The symbols of the process.
///
/// The executable is the object [`VMLINUX`]; a shared object is called by its file name up to `.so`, with `.` and `-` turned into
/// `_`. Its symbols are those of `.symtab`, or of `.dynsym` if the file is stripped, in their order.
pub struct Symbols {
    space: Arc<Space>,
}

impl Symbols {
    pub(crate) fn new(space: Arc<Space>) -> Self {
        Self { space }
    }

    /// The function at `addr` and its name.
    fn function<R>(&self, addr: CodeAddr, found: impl FnOnce(TextRange, &str, Option<&str>) -> R) -> Option<R> {
        if let Some((range, name)) = self.space.patches.function_at(addr) {
            return Some(found(range, &name, None));
        }
        let object = self.space.objects.at(addr)?;
        let file = object.file().ok()?;
        let symbol = file.function_at(addr.get().wrapping_sub(object.bias))?;
        let range = TextRange::new(CodeAddr::new(symbol.addr.wrapping_add(object.bias)), symbol.len)?;
        Some(found(range, file.name(symbol), (object.name != VMLINUX).then_some(&object.name)))
    }
}

impl SymbolResolver for Symbols {
    type Error = Error;

    fn is_loaded(&self, object: &str) -> bool {
        self.space.objects.named(object).is_some()
    }

    fn symbols(&self, object: &str, name: &str, found: &mut dyn FnMut(Symbol)) -> Result<(), Error> {
        let Some(object) = self.space.objects.named(object) else { return Ok(()) };
        let in_memory = |symbol: &super::elf_file::Symbol| Symbol {
            addr: CodeAddr::new(symbol.addr.wrapping_add(object.bias)),
            len: symbol.len,
        };
        object.file()?.named(name).map(in_memory).for_each(found);
        Ok(())
    }

    fn exported(&self, name: &str) -> Option<CodeAddr> {
        let c_name = CString::new(name).ok()?;
        // SAFETY: the name ends with a zero byte.
        let addr = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c_name.as_ptr()) };
        if !addr.is_null() {
            return Some(CodeAddr::new(addr as u64));
        }
        // An executable exports little to the dynamic linker; the static linker would bind to any of its globals.
        let executable = self.space.objects.named(VMLINUX)?;
        global(&executable, name)
    }

    fn function_at(&self, addr: CodeAddr) -> Option<TextRange> {
        self.function(addr, |range, _, _| range)
    }

    fn describe(&self, addr: CodeAddr, out: &mut dyn fmt::Write) -> fmt::Result {
        let written = self.function(addr, |range, name, object| {
            let offset = addr.get() - range.start().get();
            write!(out, "{:#}+{offset:#x}/{:#x}", rustc_demangle::demangle(name), range.len())?;
            object.map_or(Ok(()), |object| write!(out, " [{object}]"))
        });
        match written {
            Some(result) => result,
            None => write!(out, "{addr}"),
        }
    }
}

/// The global symbol `name` of `object`.
fn global(object: &Object, name: &str) -> Option<CodeAddr> {
    let file = object.file().ok()?;
    let symbol = file.named(name).find(|symbol| !symbol.local)?;
    Some(CodeAddr::new(symbol.addr.wrapping_add(object.bias)))
}
