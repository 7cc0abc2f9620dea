//! Names to addresses: the port [`SymbolResolver`], on the symbol tables of the objects' files.

use super::error::Error;
use super::objects::Object;
use super::shadow;
use super::space::Space;
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
/// the file is stripped, in their order.
pub struct Symbols {
    space: Arc<Space>,
}

impl Symbols {
    pub(crate) fn new(space: Arc<Space>) -> Self {
        Self { space }
    }
}

// SAFETY: the symbol tables of the files that the objects were mapped from (`Object::file` compares
// build ids), and only of objects that are alive.
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
        let in_memory = |symbol: &super::elf_file::Symbol| Symbol {
            addr: CodeAddr::new(symbol.addr.wrapping_add(object.bias)),
            len: symbol.len,
        };
        object.file()?.named(name).map(in_memory).for_each(found);
        Ok(())
    }

    fn exported(&self, name: &str) -> Option<CodeAddr> {
        if let Some(function) = shadow::function(name) {
            return Some(function);
        }
        let c_name = CString::new(name).ok()?;
        // SAFETY: the name ends with a zero byte.
        let addr = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c_name.as_ptr()) };
        let addr = CodeAddr::new(addr as u64);
        // Of a thread-local variable, `dlsym` finds the calling thread's, which lies in no object.
        if self.space.objects.segment(addr).is_some() {
            return Some(addr);
        }
        // An executable exports little to the dynamic linker; the static linker would bind to any
        // of its globals.
        let executable = self.space.objects.named(VMLINUX)?;
        global(&executable, name)
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
        let file = object.file()?;
        let mut report = |name: &str| {
            for part in file.parts_of(name) {
                if let Some(range) =
                    TextRange::new(CodeAddr::new(part.addr.wrapping_add(object.bias)), part.len)
                {
                    found(range);
                }
            }
        };
        // A function may have several names; a part bears one of them.
        let first = file
            .function_at(func.start().get().wrapping_sub(object.bias))
            .map(|symbol| file.name(symbol));
        let given = known_as
            .map(|(_, name)| name)
            .filter(|name| Some(*name) != first);
        first.into_iter().chain(given).for_each(&mut report);
        Ok(())
    }

    fn describe(&self, addr: CodeAddr, out: &mut dyn fmt::Write) -> fmt::Result {
        describe(&self.space, addr, out)
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
    let symbol = file.function_at(addr.get().wrapping_sub(object.bias))?;
    let range = TextRange::new(
        CodeAddr::new(symbol.addr.wrapping_add(object.bias)),
        symbol.len,
    )?;
    Some(found(
        range,
        file.name(symbol),
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
    match mapping_at(addr) {
        Some(name) => write!(out, "{addr} {name}"),
        None => write!(out, "unknown code at {addr}"),
    }
}

/// The name of the mapping that `addr` lies in, if it has one (`proc_pid_maps(5)`).
fn mapping_at(addr: CodeAddr) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let inside = (number(start)?..number(end)?).contains(&addr.get());
        let name = fields.nth(4)?.trim_start();
        (inside && !name.is_empty()).then(|| name.to_owned())
    })
}

/// The global symbol `name` of `object`.
fn global(object: &Object, name: &str) -> Option<CodeAddr> {
    let file = object.file().ok()?;
    let symbol = file.named(name).find(|symbol| !symbol.local)?;
    Some(CodeAddr::new(symbol.addr.wrapping_add(object.bias)))
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
