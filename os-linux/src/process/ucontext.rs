//! Contexts that nobody has registered: whether somebody makes such, as far as that can be noticed.
//!
//! A stack of its own needs `makecontext(3)`, or `make_fcontext` of Boost.Context. A program that
//! links this crate has its `makecontext` from here: a way station that takes note and goes on to
//! the C library's. Where the dynamic linker prefers another one (this crate is in a library that
//! came by `dlopen`, say), and for `make_fcontext`, the fact that an object asks for it must do.
//!
//! A program that is linked statically with the C library is not noticed, nor is one that makes its
//! stacks by hand.

use super::arch;
use super::loaded;
use super::sys::KeepErrno;
use core::ffi::{CStr, c_void};
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Somebody has called `makecontext`.
pub(crate) const MADE: u32 = 1;
/// An object asks for `makecontext`, which is not ours.
pub(crate) const WANTED: u32 = 2;
/// An object asks for `make_fcontext`.
pub(crate) const BOOST: u32 = 4;
/// Contexts were left and entered as it cannot be.
pub(crate) const MISUSE: u32 = 8;

/// What was noticed.
static NOTED: AtomicU32 = AtomicU32::new(0);
/// What of that does not matter, by the embedder's word.
static WAIVED: AtomicU32 = AtomicU32::new(0);
/// Whether calls of `makecontext` come to us.
static IN_FORCE: AtomicBool = AtomicBool::new(false);

/// Takes note.
pub(crate) fn note(what: u32) {
    NOTED.fetch_or(what, Ordering::SeqCst);
}

/// Whether there may be contexts that are not registered, and why. May be called anywhere.
pub(crate) fn unregistered() -> Option<Unregistered> {
    match NOTED.load(Ordering::SeqCst) & !WAIVED.load(Ordering::Relaxed) {
        0 => None,
        noted => Some(Unregistered(noted)),
    }
}

/// Why contexts may be suspended that nobody has registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unregistered(u32);

impl Unregistered {
    /// What is to blame, in the few letters that a task's name has.
    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            noted if noted & MISUSE != 0 => "klp_context",
            noted if noted & (MADE | WANTED) != 0 => "makecontext",
            _ => "make_fcontext",
        }
    }
}

impl core::fmt::Display for Unregistered {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.0 & MISUSE != 0 {
            return f.write_str(
                "a context was left or entered (klp_context_leave, klp_context_enter) that the thread was not on, or had not left, so \
                 nobody knows what is suspended inside of a function that changes; see docs/coroutines.md",
            );
        }
        f.write_str(match self.0 {
            noted if noted & MADE != 0 => "the program has called makecontext",
            noted if noted & WANTED != 0 => "an object in the process uses makecontext",
            _ => "an object in the process uses make_fcontext (Boost.Context)",
        })?;
        f.write_str(
            ": a coroutine may be suspended inside of a function that changes, and nobody would see it there; register all contexts \
             (<klp/context.h>, docs/coroutines.md) and say so with Options::contexts",
        )
    }
}

/// All contexts are registered, says the embedder.
pub(crate) fn waive() {
    WAIVED.store(MADE | WANTED | BOOST, Ordering::Relaxed);
}

/// Finds out whether calls of `makecontext` come to us. Not with a lock of the engine held.
pub(crate) fn begin() {
    IN_FORCE.store(station::is_in_force(), Ordering::Relaxed);
}

/// Takes note of objects that ask for functions that make contexts.
pub(crate) fn look_at_objects() {
    let mut came = 0;
    loaded::each(&mut |info| {
        came = info.dlpi_adds;
        if came == LOOKED_AT.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        // SAFETY: it is mapped, and stays so during the call.
        if let Some(imports) = unsafe { Imports::of(info) } {
            if !IN_FORCE.load(Ordering::Relaxed) && imports.name(c"makecontext") {
                note(WANTED);
            }
            if imports.name(c"make_fcontext") {
                note(BOOST);
            }
        }
        ControlFlow::Continue(())
    });
    LOOKED_AT.store(came, Ordering::Relaxed);
}

/// How many objects had come when all were looked at.
static LOOKED_AT: AtomicU64 = AtomicU64::new(0);

/// The symbols by which an object is to be relocated (System V ABI, "Dynamic Section").
struct Imports<'a> {
    relocs: [&'a [Rela]; 2],
    symbols: *const Sym,
    names: *const u8,
}

#[repr(C)]
struct Dyn {
    tag: i64,
    value: u64,
}

#[repr(C)]
struct Rela {
    offset: u64,
    info: u64,
    addend: i64,
}

#[repr(C)]
struct Sym {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

impl<'a> Imports<'a> {
    /// Those of the object that `info` describes; `None` if it is not relocated by symbols.
    ///
    /// # Safety
    ///
    /// It is mapped, as is usual: with the tables that its dynamic section names in memory.
    unsafe fn of(info: &'a libc::dl_phdr_info) -> Option<Self> {
        const STRTAB: i64 = 5;
        const SYMTAB: i64 = 6;
        const RELA: i64 = 7;
        const RELASZ: i64 = 8;
        const PLTRELSZ: i64 = 2;
        const PLTREL: i64 = 20;
        const JMPREL: i64 = 23;
        // SAFETY: the caller's promise.
        let headers =
            unsafe { core::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
        let dynamic = headers
            .iter()
            .find(|header| header.p_type == libc::PT_DYNAMIC)?;
        let mut entry = info.dlpi_addr.wrapping_add(dynamic.p_vaddr) as *const Dyn;
        let (mut values, mut left) = ([0_u64; 24], dynamic.p_memsz / size_of::<Dyn>() as u64);
        while left > 0 {
            // SAFETY: the section is as long as its header says.
            let Dyn { tag, value } = unsafe { entry.read_unaligned() };
            if tag == 0 {
                break;
            }
            if let Some(slot) = usize::try_from(tag)
                .ok()
                .and_then(|tag| values.get_mut(tag))
            {
                *slot = value;
            }
            // SAFETY: as above.
            entry = unsafe { entry.add(1) };
            left -= 1;
        }
        let value = |tag: i64| usize::try_from(tag).map_or(0, |tag| values[tag]);
        // The C library has put addresses in place of most offsets.
        let address = |tag| match value(tag) {
            0 => 0,
            at if at < info.dlpi_addr => info.dlpi_addr.wrapping_add(at),
            at => at,
        };
        let table = |start: u64, size: u64| match start {
            0 => &[][..],
            // SAFETY: the dynamic section says that there is a table.
            start => unsafe {
                core::slice::from_raw_parts(
                    start as *const Rela,
                    usize::try_from(size).unwrap_or_default() / size_of::<Rela>(),
                )
            },
        };
        let (symbols, names) = (address(SYMTAB), address(STRTAB));
        if symbols == 0 || names == 0 {
            return None;
        }
        let plt = if value(PLTREL) == RELA as u64 {
            address(JMPREL)
        } else {
            0
        };
        Some(Self {
            relocs: [
                table(address(RELA), value(RELASZ)),
                table(plt, value(PLTRELSZ)),
            ],
            symbols: symbols as *const Sym,
            names: names as *const u8,
        })
    }

    /// Whether one of them is called `wanted`.
    fn name(&self, wanted: &CStr) -> bool {
        let bytes = wanted.to_bytes_with_nul();
        self.relocs
            .iter()
            .copied()
            .flatten()
            .filter(|reloc| reloc.info >> 32 != 0)
            .any(|reloc| {
                // SAFETY: relocations name symbols of the table, and these have names in the other
                // one, which end with a zero: none is read behind it.
                unsafe {
                    let symbol = &*self.symbols.add((reloc.info >> 32) as usize);
                    let name = self.names.add(symbol.name as usize);
                    symbol.section == 0
                        && bytes
                            .iter()
                            .enumerate()
                            .all(|(index, &byte)| *name.add(index) == byte)
                }
            })
    }
}

/// Runs `work`, whose calls of `makecontext` are not noted: nobody is suspended in these contexts
/// while patches come or go.
pub(crate) fn unnoted<R>(work: impl FnOnce() -> R) -> R {
    let before = UNNOTED.replace(true);
    let result = work();
    UNNOTED.set(before);
    result
}

std::thread_local! {
    static UNNOTED: core::cell::Cell<bool> = const { core::cell::Cell::new(false) };
}

/// The way station. Weak, so that it is in nobody's way who links a `makecontext` of his own.
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
mod station {
    use super::{KeepErrno, MADE, UNNOTED, arch, c_void, note};
    use core::ptr;
    use core::sync::atomic::{AtomicPtr, Ordering};

    arch::makecontext_station!(passed);

    unsafe extern "C" {
        fn klp_os_linux_makecontext();
    }

    /// The C library's, once it was looked for.
    static NEXT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

    /// Takes note of a call, and says where it goes on.
    extern "C" fn passed() -> *mut c_void {
        let _errno = KeepErrno::new();
        if !UNNOTED.get() {
            note(MADE);
        }
        let known = NEXT.load(Ordering::Relaxed);
        if !known.is_null() {
            return known;
        }
        // SAFETY: the name is a string.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"makecontext".as_ptr()) };
        NEXT.store(found, Ordering::Relaxed);
        found
    }

    /// Whether it is what the dynamic linker finds first.
    pub(super) fn is_in_force() -> bool {
        // SAFETY: the name is a string.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"makecontext".as_ptr()) };
        core::ptr::eq(found, klp_os_linux_makecontext as *const c_void)
    }
}

#[cfg(not(all(target_env = "gnu", not(target_feature = "crt-static"))))]
mod station {
    pub(super) fn is_in_force() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_asks_for_a_function_is_found() {
        let mut found = [0; 2];
        loaded::each(&mut |info| {
            // SAFETY: as in `look_at_objects`.
            if let Some(imports) = unsafe { Imports::of(info) } {
                found[0] += u32::from(imports.name(c"sigaction"));
                found[1] += u32::from(imports.name(c"klp no such function"));
            }
            ControlFlow::Continue(())
        });
        assert!(found[0] > 0, "this program asks for sigaction");
        assert_eq!(found[1], 0);
    }
}
