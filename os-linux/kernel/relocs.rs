// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! Livepatch relocations of patch modules: names bound by us, bytes written by the kernel's own
//! relocator (kernel: `klp_apply_section_relocs`, `klp_apply_object_relocs`).
//!
//! Those to the kernel itself are written while the module is being loaded; those to a module when
//! that is there.

use crate::host::{self, Elf64_Rela, Elf64_Shdr, Elf64_Sym, errno, module};
use crate::log;
use crate::symbols::KernelSymbols;
use core::ffi::{c_char, c_int, c_uint};
use klp_core::elf::names::{RelaName, SymbolName};
use klp_core::elf::{SHF_RELA_LIVEPATCH, SHN_LIVEPATCH};
use klp_core::error::{Error, PatchReason, SymbolFault};
use klp_core::event::Event;
use klp_core::mem::Name;
use klp_core::model::VMLINUX;
use klp_core::port::SymbolResolver;
use klp_core::sympos;

/// The parts of a patch module's ELF file that the kernel keeps for us.
struct Sections {
    module: *mut module,
    headers: *mut Elf64_Shdr,
    names: *const c_char,
    strings: *const c_char,
    symbols: c_uint,
}

/// Applies the relocations of `patch` that wait for `object`, section by section: all or none.
///
/// # Safety
///
/// No task runs code of the patch that refers to the object, and they are not applied already.
pub(crate) unsafe fn apply(patch: &str, object: &str) -> Result<(), Error> {
    let mut applied = 0;
    let done = each_section(patch, object, |sections, index| {
        // SAFETY: the kernel keeps the sections as long as the module is there; the rest is the
        // caller's promise.
        match unsafe { sections.apply(index, object) } {
            0 => applied = index + 1,
            _ => return Err(refused(patch, object)),
        }
        Ok(())
    });
    if done.is_err() {
        // SAFETY: the caller's promise.
        unsafe { clear_below(applied, patch, object) };
    }
    done
}

fn refused(patch: &str, object: &str) -> Error {
    // What exactly did not fit is in the log.
    let reason = |symbol| PatchReason::Unresolved { symbol, why: SymbolFault::NotFound };
    Name::new(object).map_or(Error::OutOfMemory, |name| Error::patch(patch, Some(object), None, reason(name)))
}

/// Makes the relocated bytes what they were before [`apply`].
///
/// # Safety
///
/// No task runs code of the patch that refers to the object.
pub(crate) unsafe fn clear(patch: &str, object: &str) {
    // SAFETY: the caller's promise.
    unsafe { clear_below(c_uint::MAX, patch, object) };
}

/// # Safety
///
/// As for [`clear`].
unsafe fn clear_below(end: c_uint, patch: &str, object: &str) {
    let _ = each_section(patch, object, |sections, index| {
        if index < end {
            // SAFETY: as in `apply`.
            unsafe { sections.clear(index) };
        }
        Ok(())
    });
}

/// Calls `act` with each relocation section of `patch` that waits for `object`. The module loader
/// does those of the kernel itself.
fn each_section(
    patch: &str,
    object: &str,
    mut act: impl FnMut(&Sections, c_uint) -> Result<(), Error>,
) -> Result<(), Error> {
    // SAFETY: a C string.
    let module = host::with_c_str(patch, |name| unsafe { host::klp_host_module(name) });
    let Some(module) = module.filter(|module| object != VMLINUX && !module.is_null()) else { return Ok(()) };
    // SAFETY: the patch is known, so its module is there; it is marked as a livepatch, so it has
    // kept this.
    let (info, strings) = unsafe { (&*(*module).klp_info, (*module).core_kallsyms.strtab) };
    let sections = Sections {
        module,
        headers: info.sechdrs,
        names: info.secstrings.cast(),
        strings: strings.cast(),
        symbols: info.symndx,
    };
    for index in 1..c_uint::from(info.hdr.e_shnum) {
        // SAFETY: there are `e_shnum` headers.
        let flags = unsafe { (*sections.headers.add(index as usize)).sh_flags };
        // SAFETY: as above.
        if flags & SHF_RELA_LIVEPATCH != 0 && unsafe { sections.object(index) } == Some(object) {
            act(&sections, index)?;
        }
    }
    Ok(())
}

impl Sections {
    /// The object that section `index` waits for.
    ///
    /// # Safety
    ///
    /// These are the sections of a module that is there, and there is such a section.
    unsafe fn object(&self, index: c_uint) -> Option<&str> {
        // SAFETY: the caller's promise; names of sections are C strings.
        let name = unsafe { host::str_at(self.names.add((*self.headers.add(index as usize)).sh_name as usize)) };
        match RelaName::parse(name.unwrap_or("")) {
            Ok(name) => Some(name.object),
            Err(_) => {
                log::error!("section {} has an incorrectly formatted name", name.unwrap_or("?"));
                None
            }
        }
    }

    /// Binds the symbols of section `index` and writes its relocations; 0 or an error number.
    ///
    /// # Safety
    ///
    /// As for [`object`](Sections::object), and no code that is relocated runs.
    unsafe fn apply(&self, index: c_uint, object: &str) -> c_int {
        // SAFETY: the caller's promise.
        unsafe {
            match self.resolve(index, object) {
                Err(()) => -errno::EINVAL,
                Ok(()) => host::apply_relocate_add(self.headers, self.strings.cast(), self.symbols, index, self.module),
            }
        }
    }

    /// # Safety
    ///
    /// As for [`apply`](Sections::apply).
    unsafe fn clear(&self, index: c_uint) {
        // SAFETY: the caller's promise.
        unsafe { host::clear_relocate_add(self.headers, self.strings.cast(), self.symbols, index, self.module) }
    }

    /// Gives each symbol that section `index` refers to its value.
    ///
    /// # Safety
    ///
    /// As for [`object`](Sections::object).
    unsafe fn resolve(&self, index: c_uint, object: &str) -> Result<(), ()> {
        // SAFETY: the caller's promise: the section holds relocations, whose symbols are in section
        // `symbols`.
        unsafe {
            let section = &*self.headers.add(index as usize);
            let symbols = (*self.headers.add(self.symbols as usize)).sh_addr as usize as *mut Elf64_Sym;
            let relas = section.sh_addr as usize as *const Elf64_Rela;
            for number in 0..section.sh_size as usize / size_of::<Elf64_Rela>() {
                let symbol = symbols.add(((*relas.add(number)).r_info >> 32) as usize);
                let name = host::str_at(self.strings.add((*symbol).st_name as usize)).unwrap_or("?");
                if (*symbol).st_shndx != SHN_LIVEPATCH {
                    log::error!("symbol {name} is not marked as a livepatch symbol");
                    return Err(());
                }
                (*symbol).st_value = find(name, object)?;
            }
        }
        Ok(())
    }
}

/// The address of the livepatch symbol called `full`, in a section that waits for `object`.
fn find(full: &str, object: &str) -> Result<u64, ()> {
    // kallsyms has no longer ones.
    let is_short = |name: &SymbolName<'_>| name.name.len() <= KernelSymbols::NAME_LEN;
    let Some(name) = SymbolName::parse(full).ok().filter(is_short) else {
        log::error!("symbol {full} has an incorrectly formatted name");
        return Err(());
    };
    if object != VMLINUX && name.object == VMLINUX {
        log::error!(
            "invalid access to vmlinux symbol '{}' from module-specific livepatch relocation section",
            name.name
        );
        return Err(());
    }
    let found = sympos::find(&KernelSymbols::new(), name.object, name.name, name.pos).map_err(|_| ())?;
    found.map(|symbol| symbol.addr.get()).map_err(|fault| {
        let (symbol, object) = (name.name, name.object);
        log::event(&match fault {
            SymbolFault::NotFound => Event::SymbolNotFound { symbol },
            SymbolFault::Ambiguous => Event::SymbolAmbiguous { symbol, object },
            SymbolFault::PositionNotFound(sympos) => Event::SymbolPositionNotFound { sympos, symbol, object },
        });
    })
}

/// Applies section number `secindex` of `module`, which is being loaded, if it waits for `objname`;
/// null: the kernel itself.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_apply_section_relocs(
    module: *mut module,
    headers: *mut Elf64_Shdr,
    names: *const c_char,
    strings: *const c_char,
    symbols: c_uint,
    index: c_uint,
    objname: *const c_char,
) -> c_int {
    let sections = Sections { module, headers, names, strings, symbols };
    // SAFETY: the module loader passes the sections of the module, and a name or null.
    unsafe {
        let wanted = host::str_at(objname).unwrap_or(VMLINUX);
        match sections.object(index) {
            None => -errno::EINVAL,
            Some(object) if object == wanted => sections.apply(index, object),
            Some(_) => 0,
        }
    }
}
