// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! Names to addresses, by kallsyms (kernel: `klp_find_object_symbol`).

use crate::host;
use crate::log::Errno;
use core::ffi::{CStr, c_int, c_void};
use core::ptr;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::mem::{Name, OutOfMemory};
use klp_core::model::VMLINUX;
use klp_core::port::{Symbol, SymbolResolver};

/// kallsyms.
pub(crate) struct KernelSymbols;

impl KernelSymbols {
    pub(crate) fn new() -> Self {
        Self
    }
}

// SAFETY: kallsyms, of the kernel and of modules that are alive.
unsafe impl SymbolResolver for KernelSymbols {
    type Error = Errno;

    fn is_loaded(&self, object: &str) -> bool {
        // SAFETY: a C string.
        let live = |name| unsafe { !host::klp_host_live_module(name).is_null() };
        object == VMLINUX || host::with_c_str(object, live).unwrap_or(false)
    }

    fn symbols(&self, object: &str, name: &str, found: &mut dyn FnMut(Symbol)) -> Result<(), Errno> {
        let mut search = Search { name: name.as_bytes(), what: Sought::Whole, found };
        if object == VMLINUX {
            let arg = (&raw mut search).cast::<c_void>();
            // SAFETY: the callback gets `arg`, a `Search` that is there until the function has
            // returned.
            host::with_c_str(name, |name| unsafe {
                host::kallsyms_on_each_match_symbol(Some(matched), name.cast(), arg)
            });
        } else {
            search.walk(object);
        }
        Ok(())
    }

    /// Finds `NAME.cold` everywhere, and `NAME.cold.N` in modules, whose symbols are all walked
    /// anyway. kallsyms finds those of the kernel itself by their full names; so there numbered
    /// parts, which GCC before 9 makes, are not found.
    fn parts(
        &self,
        _func: TextRange,
        known_as: Option<(&str, &str)>,
        found: &mut dyn FnMut(TextRange),
    ) -> Result<(), Errno> {
        // Those of new functions are code of their patch.
        let Some((object, name)) = known_as else { return Ok(()) };
        let found = &mut |symbol: Symbol| {
            if let Some(part) = TextRange::new(symbol.addr, symbol.len) {
                found(part);
            }
        };
        if object == VMLINUX {
            let cold = Name::display(&format_args!("{name}.cold"))
                .map_err(|OutOfMemory| Errno { what: "no memory for a name", errno: -host::errno::ENOMEM })?;
            return self.symbols(object, &cold, found);
        }
        Search { name: name.as_bytes(), what: Sought::Parts, found }.walk(object);
        Ok(())
    }

    /// Nothing asks: the module loader binds exported symbols.
    fn exported(&self, _name: &str) -> Result<Option<CodeAddr>, Self::Error> {
        Ok(None)
    }

    fn function_at(&self, addr: CodeAddr) -> Option<TextRange> {
        let (len, offset) = size_and_offset(addr.get())?;
        TextRange::new(addr.wrapping_sub(offset), len)
    }

    fn describe(&self, addr: CodeAddr, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        let mut text = [0_u8; host::KSYM_SYMBOL_LEN];
        // SAFETY: the buffer has the length that the kernel asks for.
        unsafe { host::sprint_symbol(text.as_mut_ptr().cast(), addr.get() as usize) };
        let text = CStr::from_bytes_until_nul(&text).ok().and_then(|text| text.to_str().ok());
        out.write_str(text.unwrap_or("?"))
    }
}

/// What a walk over symbols looks for.
struct Search<'a> {
    name: &'a [u8],
    what: Sought,
    found: &'a mut dyn FnMut(Symbol),
}

/// What may follow the name.
#[derive(Clone, Copy)]
enum Sought {
    /// Nothing.
    Whole,
    /// `.cold` or `.cold.N`.
    Parts,
}

impl Sought {
    fn takes(self, rest: &[u8]) -> bool {
        match (self, rest.strip_prefix(b".cold")) {
            (Self::Whole, _) => rest.is_empty(),
            (Self::Parts, None) => false,
            (Self::Parts, Some([])) => true,
            (Self::Parts, Some([b'.', number @ ..])) => {
                !number.is_empty() && number.iter().all(|digit| digit.is_ascii_digit())
            }
            (Self::Parts, Some(_)) => false,
        }
    }
}

impl Search<'_> {
    /// Looks at each symbol of a module.
    fn walk(&mut self, object: &str) {
        let arg = ptr::from_mut(self).cast::<c_void>();
        // SAFETY: the callback gets `arg`, a `Search` that is there until the function has
        // returned.
        host::with_c_str(object, |object| unsafe {
            host::module_kallsyms_on_each_symbol(object.cast(), Some(seen), arg)
        });
    }

    fn hit(&mut self, addr: usize) {
        let addr = addr as u64;
        let len = size_and_offset(addr).map_or(0, |(len, offset)| len - offset.min(len));
        (self.found)(Symbol { addr: CodeAddr::new(addr), len });
    }
}

/// A symbol of the kernel that has the name.
unsafe extern "C" fn matched(arg: *mut c_void, addr: usize) -> c_int {
    // SAFETY: `symbols` passes a `Search`, and does not use it meanwhile.
    unsafe { &mut *arg.cast::<Search<'_>>() }.hit(addr);
    0
}

/// A symbol of the module.
unsafe extern "C" fn seen(arg: *mut c_void, name: *const u8, addr: usize) -> c_int {
    // SAFETY: `walk` passes a `Search`, and does not use it meanwhile.
    let search = unsafe { &mut *arg.cast::<Search<'_>>() };
    // Byte by byte, as most names differ early: this is called for each symbol of the module.
    let mut wanted = search.name.iter().enumerate();
    // SAFETY: kallsyms passes a C string, which is not read beyond its end: a difference is found
    // there at the latest.
    if wanted.all(|(at, byte)| unsafe { *name.add(at) } == *byte) {
        // SAFETY: no byte until here was its end.
        let rest = unsafe { CStr::from_ptr(name.add(search.name.len()).cast()) };
        if search.what.takes(rest.to_bytes()) {
            search.hit(addr);
        }
    }
    0
}

/// The size of the symbol that `addr` is in, and how far in.
fn size_and_offset(addr: u64) -> Option<(u64, u64)> {
    let (mut size, mut offset) = (0_usize, 0_usize);
    // SAFETY: it looks the address up, and writes two numbers.
    let known = unsafe { host::kallsyms_lookup_size_offset(addr as usize, &raw mut size, &raw mut offset) };
    (known != 0).then_some((size as u64, offset as u64))
}

/// Shows the name of the function at `addr` to `look`.
pub(crate) fn with_name_at(addr: usize, look: impl FnOnce(&str)) {
    let mut name = [0_u8; host::KSYM_SYMBOL_LEN];
    // SAFETY: the buffer is longer than any symbol's name.
    let errno = unsafe { host::lookup_symbol_name(addr, name.as_mut_ptr().cast()) };
    let known = CStr::from_bytes_until_nul(&name).ok().and_then(|name| name.to_str().ok());
    look(known.filter(|_| errno == 0).unwrap_or("?"));
}
