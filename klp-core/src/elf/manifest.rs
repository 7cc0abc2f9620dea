//! Which functions a patch object replaces, and which are called around that: the arrays that
//! Linux's patch tool writes, with its struct layouts (`include/linux/livepatch_external.h`,
//! 64-bit).

use super::view::{Home, Rela, Section, View};
use super::{Refusal, names, whole};
use crate::addr::CodeAddr;
use crate::error::{Error, PatchReason};
use crate::mem::{OutOfMemory, try_push, try_vec};
use crate::model::{BuildId, VMLINUX};
use crate::port::{Relocation, Relocator};
use alloc::vec::Vec;
use object::elf;

/// The section with the array of `struct klp_object_ext`.
pub const OBJECTS_SECTION: &str = ".init.klp_objects";

/// The section with the arrays of `struct klp_func_ext`.
pub const FUNCS_SECTION: &str = ".init.klp_funcs";

/// `struct klp_object_ext`: `name`, `funcs`, four callbacks, `post_unpatch_enabled`, `nr_funcs`.
pub mod object_ext {
    /// Where the pointer to the object's name is; null for the base image.
    pub const NAME: u64 = 0;
    /// Where the pointer to the first function is.
    pub const FUNCS: u64 = 8;
    pub(in super::super) const CALLBACKS: u64 = 16;
    /// Where the number of functions is, of four bytes.
    pub const NR_FUNCS: u64 = 56;
    /// Bytes of all.
    pub const LEN: u64 = 64;
}

/// `struct klp_func_ext`: `old_name`, `new_func`, `sympos`.
pub mod func_ext {
    /// Where the pointer to the function's name is.
    pub const OLD_NAME: u64 = 0;
    /// Where the pointer to the new function is.
    pub const NEW_FUNC: u64 = 8;
    /// Where the position is, of eight bytes.
    pub const SYMPOS: u64 = 16;
    /// Bytes of all.
    pub const LEN: u64 = 24;
}

/// The callbacks, in the order of `struct klp_callbacks`.
pub const CALLBACKS: [&str; 4] = ["pre_patch", "post_patch", "pre_unpatch", "post_unpatch"];

/// An object to be patched.
#[derive(Debug)]
pub struct ObjectEntry<'a> {
    /// Its name; [`VMLINUX`] for the base image.
    pub name: &'a str,
    /// For which build of it the patch is; `None`: for any.
    pub build: Option<BuildId>,
    /// Its functions that are replaced.
    pub funcs: Vec<FuncEntry<'a>>,
    /// One for each of [`CALLBACKS`]; nobody has looked yet whether there is a function.
    pub callbacks: [Option<Pointee>; 4],
}

/// A function to be replaced.
#[derive(Debug)]
pub struct FuncEntry<'a> {
    /// The name of the function that is replaced.
    pub old_name: &'a str,
    /// Which symbol of that name is meant, counted from 1; 0 if there is only one.
    pub sympos: u32,
    /// Where the new function begins.
    pub new: Pointee,
    /// `st_other` of its symbol.
    pub other: u8,
}

/// Reads what the patch object called `patch` replaces.
pub(super) fn read<'a, R: Relocator>(
    view: &View<'a>,
    patch: &str,
) -> Result<Vec<ObjectEntry<'a>>, Error> {
    let refuse = |refusal: Refusal| refusal.of(patch);
    let (index, section) = view.section(OBJECTS_SECTION).ok_or_else(|| {
        refuse(Refusal::malformed(
            "nothing says which functions are replaced: there must be one section",
            OBJECTS_SECTION,
        ))
    })?;
    if section.bytes.len() as u64 % object_ext::LEN != 0 {
        return Err(refuse(Refusal::malformed(
            "not an array of struct klp_object_ext",
            OBJECTS_SECTION,
        )));
    }
    let pointers = Pointers::read::<R>(view, index).map_err(refuse)?;
    let mut funcs = None;
    let mut objects = Vec::new();
    for at in (0..section.bytes.len() as u64).step_by(object_ext::LEN as usize) {
        let name = pointers
            .text(at + object_ext::NAME)
            .map_err(refuse)?
            .unwrap_or(VMLINUX);
        let mut callbacks = [None; 4];
        for (callback, at) in callbacks
            .iter_mut()
            .zip((at + object_ext::CALLBACKS..).step_by(8))
        {
            *callback = pointers
                .get(at)
                .map_err(|refusal| refusal.of_object(patch, Some(name)))?;
        }
        let nr_funcs = number(section, at + object_ext::NR_FUNCS, 4).map_err(refuse)?;
        let list = match pointers.get(at + object_ext::FUNCS).map_err(refuse)? {
            None => Vec::new(),
            Some(list) => {
                if funcs
                    .as_ref()
                    .is_none_or(|known: &Pointers<'_, '_>| known.section != list.section)
                {
                    funcs = Some(Pointers::read::<R>(view, list.section).map_err(refuse)?);
                }
                let funcs = funcs
                    .as_ref()
                    .ok_or(Error::Bug("a list of functions was lost"))?;
                read_funcs(funcs, list.offset, nr_funcs, |func, reason| {
                    Error::patch(patch, Some(name), func, reason)
                })?
            }
        };
        try_push(
            &mut objects,
            ObjectEntry {
                name,
                build: whole::build(view, name).map_err(refuse)?,
                funcs: list,
                callbacks,
            },
        )?;
    }
    Ok(objects)
}

fn read_funcs<'a>(
    pointers: &Pointers<'a, '_>,
    start: u64,
    count: u64,
    error: impl Fn(Option<&str>, PatchReason) -> Error,
) -> Result<Vec<FuncEntry<'a>>, Error> {
    let refuse = |refusal| match refusal {
        Refusal::Reason(reason) => error(None, reason),
        Refusal::OutOfMemory => Error::OutOfMemory,
    };
    let section = &pointers.view.sections()[pointers.section];
    let len = count.saturating_mul(func_ext::LEN);
    if section.range(start, len).is_none() {
        return Err(refuse(Refusal::malformed(
            "array of struct klp_func_ext does not fit its section",
            section.name,
        )));
    }
    let mut funcs = try_vec(usize::try_from(count).map_err(|_| OutOfMemory)?)?;
    for at in (start..start + len).step_by(func_ext::LEN as usize) {
        let old_name = pointers.text(at + func_ext::OLD_NAME).map_err(refuse)?;
        let old_name = old_name
            .ok_or_else(|| refuse(Refusal::malformed("function without a name", section.name)))?;
        let sympos = number(section, at + func_ext::SYMPOS, 8).map_err(refuse)?;
        let sympos = u32::try_from(sympos).map_err(|_| {
            refuse(Refusal::malformed(
                "position of a symbol is out of any range",
                old_name,
            ))
        })?;
        let new = pointers.get(at + func_ext::NEW_FUNC).map_err(refuse)?;
        let symbol = |new: Pointee| {
            let mut symbols = pointers.view.functions_at(new.section, new.offset);
            Some((new, pointers.view.symbols()[symbols.next()?].other))
        };
        let (new, other) = new
            .and_then(symbol)
            .ok_or_else(|| error(Some(old_name), PatchReason::NewFunctionUnknown))?;
        funcs.push(FuncEntry {
            old_name,
            sympos,
            new,
            other,
        });
    }
    Ok(funcs)
}

/// A number of `len` bytes, at most 8.
fn number(section: &Section<'_>, offset: u64, len: u64) -> Result<u64, Refusal> {
    let number = section.number(offset, len);
    number.ok_or_else(|| {
        Refusal::malformed(
            "structure reaches behind the end of its section",
            section.name,
        )
    })
}

/// A place in the file that a pointer points to.
#[derive(Clone, Copy, Debug)]
pub struct Pointee {
    /// The section's index.
    pub section: usize,
    /// How far from its beginning.
    pub offset: u64,
}

/// The pointers in one section: fields with an address-sized absolute relocation.
struct Pointers<'a, 'v> {
    view: &'v View<'a>,
    section: usize,
    /// Sorted by offset.
    relas: Vec<Rela>,
}

impl<'a, 'v> Pointers<'a, 'v> {
    fn read<R: Relocator>(view: &'v View<'a>, section: usize) -> Result<Self, Refusal> {
        let mut relas = Vec::new();
        for rela in view
            .sections()
            .iter()
            .filter(|relas| relas.target() == section && relas.is(elf::SHT_RELA))
        {
            if rela.name.starts_with(names::RELA_PREFIX) {
                return Err(Refusal::malformed(
                    "livepatch relocations in a description of the patch",
                    rela.name,
                ));
            }
            relas
                .try_reserve(rela.relas().len())
                .map_err(OutOfMemory::from)?;
            relas.extend(rela.relas());
        }
        if let Some(odd) = relas.iter().find(|rela| !is_pointer::<R>(rela.kind)) {
            let what = "relocation type in a description of the patch";
            return Err(Refusal::malformed(what, view.symbol_name(odd.symbol)));
        }
        relas.sort_unstable_by_key(|rela| rela.offset);
        Ok(Self {
            view,
            section,
            relas,
        })
    }

    /// What the pointer at `offset` points to; `None` if it is null.
    fn get(&self, offset: u64) -> Result<Option<Pointee>, Refusal> {
        let section = &self.view.sections()[self.section];
        let Ok(index) = self.relas.binary_search_by_key(&offset, |rela| rela.offset) else {
            return match number(section, offset, 8)? {
                0 => Ok(None),
                _ => Err(Refusal::malformed(
                    "pointer without a relocation",
                    section.name,
                )),
            };
        };
        let rela = self.relas[index];
        let symbol = &self.view.symbols()[rela.symbol];
        let Home::Section(home) = symbol.home else {
            let what = "description of the patch points out of the file";
            return Err(Refusal::malformed(what, self.view.symbol_name(rela.symbol)));
        };
        Ok(Some(Pointee {
            section: home,
            offset: symbol.value.wrapping_add_signed(rela.addend),
        }))
    }

    /// The text that the pointer at `offset` points to; `None` if it is null.
    fn text(&self, offset: u64) -> Result<Option<&'a str>, Refusal> {
        let Some(Pointee { section, offset }) = self.get(offset)? else {
            return Ok(None);
        };
        let section = &self.view.sections()[section];
        let text = section.text_at(offset);
        text.map(Some).ok_or_else(|| {
            Refusal::malformed("bad text in a description of the patch", section.name)
        })
    }
}

/// Whether relocations of type `kind` put a symbol's address, as it is, into eight bytes.
fn is_pointer<R: Relocator>(kind: u32) -> bool {
    const ADDR: u64 = 0x0123_4567_89ab_cdef;
    let mut field = [0; 8];
    let address = if R::BIG_ENDIAN {
        ADDR.to_be_bytes()
    } else {
        ADDR.to_le_bytes()
    };
    R::apply(
        &Relocation::new(kind, CodeAddr::new(0), ADDR, 0),
        &mut field,
    )
    .is_ok()
        && field == address
}
