//! The unwinders of the process: who follows stacks for C++ exceptions, Rust panics,
//! `pthread_cancel`, `pthread_exit` and `backtrace`.
//!
//! An unwinder finds the unwind information of libraries by itself, but not that of memory which
//! the dynamic linker has not mapped. Whoever makes such code tells it (`__register_frame`, as
//! compilers at run time do). Libgcc's takes a whole `.eh_frame` section, up to an entry of length
//! zero; LLVM's takes one entry for a function (FDE) at a time.
//!
//! A process may have several: libgcc_s, LLVM's libunwind, and in each object that was linked with
//! `-static-libgcc` one of its own. All of them are told. It may have none yet: libgcc_s is what the
//! C library loads for `pthread_cancel` and `backtrace`, so it is loaded here before a patch is.
//!
//! They take locks and allocate. So none of this is for handlers.

use super::arch::{self, EhFrame};
use super::linker::Handle;
use super::objects::Object;
use core::ffi::{CStr, c_void};
use core::ptr;
use klp_core::addr::CodeAddr;
use klp_core::model::VMLINUX;
use std::path::Path;
use std::sync::OnceLock;

type Tell = unsafe extern "C" fn(*const c_void);

/// An unwinder, which stays in memory.
#[derive(Clone, Copy)]
pub(crate) struct Unwinder {
    register: Tell,
    deregister: Tell,
    /// It takes one FDE at a time.
    by_fde: bool,
}

impl Unwinder {
    pub(crate) fn is(self, other: Self) -> bool {
        ptr::fn_addr_eq(self.register, other.register)
    }

    /// Tells it of `section`.
    ///
    /// # Safety
    ///
    /// The section is relocated, ends with a zero word, and stays as it is until
    /// [`forget`](Self::forget).
    pub(crate) unsafe fn tell(self, section: EhFrame<'_>) {
        self.each(section, self.register);
    }

    /// Makes it forget `section`.
    ///
    /// # Safety
    ///
    /// It was told of it, and has not forgotten it. No task is inside of code that it describes.
    pub(crate) unsafe fn forget(self, section: EhFrame<'_>) {
        self.each(section, self.deregister);
    }

    fn each(self, section: EhFrame<'_>, tell: Tell) {
        // SAFETY: the callers' promises; these are the functions that the object has under their
        // names, and it is held.
        let tell = |at: u64| unsafe { tell(at as *const c_void) };
        if self.by_fde {
            fdes(section).for_each(tell);
        } else if fdes(section).next().is_some() {
            tell(section.addr.get());
        }
    }
}

/// Where the FDEs of `section` are (Linux Standard Base, "The .eh_frame section").
fn fdes(section: EhFrame<'_>) -> impl Iterator<Item = u64> {
    let mut at = 0;
    let entries = core::iter::from_fn(move || {
        let word = |at: usize| {
            Some(u32::from_le_bytes(
                section.bytes.get(at..at + 4)?.try_into().ok()?,
            ))
        };
        let start = at;
        let (id, len) = match word(start)? {
            0 => return None,
            u32::MAX => {
                let len = section.bytes.get(start + 4..start + 12)?.try_into().ok()?;
                (start + 12, usize::try_from(u64::from_le_bytes(len)).ok()?)
            }
            len => (start + 4, len as usize),
        };
        at = id.checked_add(len)?;
        // A CIE has the number 0 there, an FDE the way to its CIE.
        Some((start, word(id)? != 0))
    });
    entries
        .filter(|(_, is_fde)| *is_fde)
        .map(move |(at, _)| section.addr.wrapping_add(at as u64).get())
}

/// The unwinder in `object`, if there is one; the object is held in memory then, for good. Not to be
/// called with a lock of the engine: it waits for the dynamic linker.
pub(crate) fn of(object: &Object) -> Option<Unwinder> {
    let [register, deregister, llvm] = FUNCTIONS.each_ref().map(|function| function.place(object));
    let (register, deregister) = (register?, deregister?);
    // The executable stays anyway, and is opened by no name.
    if object.name != VMLINUX {
        let _for_good = Handle::hold(object)?;
    }
    // SAFETY: an unwinder's functions, by their names, which have had this type at all times.
    let tell = |at: CodeAddr| unsafe { core::mem::transmute::<u64, Tell>(at.get()) };
    Some(Unwinder {
        register: tell(register),
        deregister: tell(deregister),
        by_fde: llvm.is_some(),
    })
}

/// A function of an unwinder.
struct Function {
    name: &'static CStr,
    /// The one that the engine itself is linked with.
    own: fn() -> u64,
}

/// The address of a function, 0 if whoever linked the engine has none. Not in stripped executables'
/// symbol tables either.
macro_rules! function {
    ($name:literal) => {
        Function {
            name: match CStr::from_bytes_with_nul(concat!($name, "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("one zero, at the end"),
            },
            own: || arch::weak_address!($name),
        }
    };
}

/// What makes one known, what takes it back, and what LLVM's libunwind has and libgcc has not.
static FUNCTIONS: [Function; 3] = [
    function!("__register_frame"),
    function!("__deregister_frame"),
    function!("__unw_add_dynamic_fde"),
];

impl Function {
    /// Where it is in `object`: by the symbol table of its file, by the linker of the engine, by
    /// what libgcc_s exports. One of them may know what others do not: static copies are hidden,
    /// files are stripped, or not there any more.
    fn place(&self, object: &Object) -> Option<CodeAddr> {
        let listed = || {
            let symbol = object
                .file()
                .ok()?
                .symbols
                .named(self.name.to_str().ok()?)
                .next()?;
            Some(symbol.addr.wrapping_add(object.bias))
        };
        let exported = || Some(libgcc()?.symbol(self.name)?.as_ptr() as u64);
        let inside = |at: &u64| object.segment(CodeAddr::new(*at)).is_some();
        listed()
            .or_else(|| Some((self.own)()).filter(inside))
            .or_else(|| exported().filter(inside))
            .map(CodeAddr::new)
    }
}

static LIBGCC: OnceLock<Option<Handle>> = OnceLock::new();

/// Loads libgcc_s, if it is installed: the C library would do so as soon as it needs an unwinder.
/// Not to be called with a lock of the engine, nor in a static executable.
pub(crate) fn load() {
    // SAFETY: a part of the system, whose constructors do nothing of note.
    LIBGCC.get_or_init(|| unsafe { Handle::open(Path::new("libgcc_s.so.1")) }.ok());
}

fn libgcc() -> Option<&'static Handle> {
    LIBGCC.get()?.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_from_their_cies_and_the_end() {
        let entry = |id: u32, rest: usize| {
            let mut bytes = (4 + rest as u32).to_le_bytes().to_vec();
            bytes.extend_from_slice(&id.to_le_bytes());
            bytes.resize(8 + rest, 0xab);
            bytes
        };
        let mut long = [0xff; 4].to_vec();
        long.extend_from_slice(&12_u64.to_le_bytes());
        long.extend_from_slice(&7_u32.to_le_bytes());
        long.resize(24, 0xab);
        let mut bytes = [entry(0, 8), entry(20, 12), entry(0, 8), long, entry(9, 0)].concat();
        let addr = CodeAddr::new(0x1000);
        let found = |bytes: &[u8]| fdes(EhFrame { bytes, addr }).collect::<Vec<_>>();
        assert_eq!(found(&bytes), [0x1010, 0x1034, 0x104c]);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend(entry(9, 0));
        assert_eq!(found(&bytes).len(), 3, "zero is the end");
        for len in 0..bytes.len() {
            assert!(found(&bytes[..len]).len() <= 3);
        }
        assert!(found(&[]).is_empty());
    }

    #[test]
    fn this_program_has_an_unwinder() {
        load();
        let objects = super::super::objects::Objects::default();
        objects.refresh(&mut |_| ());
        let found: Vec<_> = objects
            .all()
            .iter()
            .filter_map(|object| of(object))
            .collect();
        assert!(!found.is_empty());
        assert!(found.iter().all(|unwinder| !unwinder.by_fde));
    }
}
