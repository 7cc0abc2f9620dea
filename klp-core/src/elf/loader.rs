//! Brings a patch object into memory: lays it out, binds its references, fills the memory,
//! describes the patch.

use super::Refusal;
use super::admit::Admitted;
use super::callbacks::CCallbacks;
use super::layout::{EH_FRAME, Layout, PAGE, Part};
use super::linker::{Linker, Waiting};
use super::manifest::{CALLBACKS, FuncEntry, ObjectEntry, Pointee};
use super::patch_file::PatchFile;
use super::view::{Home, View};
use crate::addr::{CodeAddr, TextRange};
use crate::builds;
use crate::error::{Error, PatchReason};
use crate::event::Event;
use crate::mem::{Name, try_push, try_vec};
use crate::model::{Callbacks, Func, Object, Patch};
use crate::port::{Arch, CallC, Image, Platform, SymbolResolver, Text};
use crate::relocs::Relocs;
use crate::state::State;
use crate::sympos;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use object::elf;

/// A patch object in memory.
#[derive(Debug)]
pub struct Loaded {
    /// The patch, ready to be enabled on the host that it was loaded for.
    pub patch: Patch,
    /// The memory that its functions are in.
    pub image: LoadedImage,
}

/// The memory of a loaded patch object. Dropping it leaks the memory: only
/// [`unload`](LoadedImage::unload) frees it.
#[derive(Debug)]
pub struct LoadedImage {
    image: Image,
    eh_frame: Option<(CodeAddr, Vec<u8>)>,
    functions: Vec<(Name, TextRange)>,
}

impl LoadedImage {
    /// Where the parts are.
    #[must_use]
    pub fn image(&self) -> Image {
        self.image
    }

    /// Address and contents of `.eh_frame`: what a host needs to walk stacks through the patch's
    /// functions. In memory a zero word follows it, which marks its end for unwinders.
    #[must_use]
    pub fn eh_frame(&self) -> Option<(CodeAddr, &[u8])> {
        self.eh_frame.as_ref().map(|(at, bytes)| (*at, &**bytes))
    }

    /// The functions in it, sorted by address.
    #[must_use]
    pub fn functions(&self) -> &[(Name, TextRange)] {
        &self.functions
    }

    /// Frees the memory.
    ///
    /// # Safety
    ///
    /// It was loaded with this `text`; the patch is not enabled any more, no task executes code of
    /// it or will, and nothing refers to its data.
    pub unsafe fn unload<T: Text>(self, text: &T) {
        // SAFETY: the caller's promise.
        unsafe { text.free(self.image) }
    }
}

/// Loads a patch object, which was [admitted](super::admit) by this `platform`. `name` is
/// the patch's name if the file does not give one.
///
/// References to exported symbols and to livepatch symbols that wait for the base image are bound
/// now (as Linux's module loader does); those that wait for another object go to
/// [`Object::relocs`].
///
/// ```compile_fail,E0133
/// # use klp_core::{Error, elf, sim::SimOs};
/// fn load(os: &SimOs, file: &[u8]) -> Result<elf::Loaded, Error> {
///     elf::load(os, elf::admit(os, file, "fix")?, "fix") // who wrote it?
/// }
/// ```
///
/// # Errors
///
/// [`Error::Patch`] says what is wrong with the file, or which symbol or relocation was refused;
/// [`Error::Port`] and [`Error::OutOfMemory`]. Whatever was allocated is freed then, and nothing
/// has changed.
///
/// # Safety
///
/// The file is code, and runs: its functions once the patch is enabled, its callbacks by then. Only
/// its form is checked. So its author is trusted with the system, and in particular with this:
///
/// * What the file names as replacements are such, as for [`Func::with_range`]; its symbols tell
///   the sizes of functions, and the symbols that it refers to are what its code takes them for.
/// * Its callbacks are `int (*)(struct klp_object *)` for `pre_patch` and
///   `void (*)(struct klp_object *)` for the others; they use what they are given during the call
///   only, and write nothing of a state but its data.
/// * It is for this `platform`: for its processor, and for what is loaded there.
pub unsafe fn load<P: Platform>(
    platform: &P,
    admitted: Admitted<'_>,
    name: &str,
) -> Result<Loaded, Error> {
    let file = PatchFile::read::<P::Relocator>(admitted.object(), name)?;
    let (patch, view, objects) = (file.name(), file.view(), file.objects());
    for object in objects {
        if platform.symbols().is_loaded(object.name) {
            let build = (object.build.as_ref(), object.text.as_ref());
            builds::check(platform.symbols(), patch, object.name, build)?;
        }
    }
    let layout =
        Layout::new::<P::Relocator>(view, P::Arch::SLOT).map_err(|refusal| refusal.of(patch))?;
    let memory = Memory::alloc(platform, patch, &layout, near(platform, objects))?;
    let mut linker = Linker::new(platform, patch, view, &layout, memory.image)?;
    let waiting = linker.link(objects)?;
    linker.fill()?;
    let description = Description {
        patch,
        file: &file,
        view,
        layout: &layout,
        image: memory.image,
        call: P::Text::CALL_C,
    };
    let loaded = Loaded {
        patch: description.patch(waiting)?,
        image: LoadedImage {
            image: memory.image,
            eh_frame: description.eh_frame(&linker)?,
            functions: description.functions()?,
        },
    };
    memory.keep();
    if let Some(key) = admitted.key() {
        platform.event(&Event::Signed { patch, key });
    }
    Ok(loaded)
}

/// A function to be patched, near to which the image should be.
fn near<P: Platform>(platform: &P, objects: &[ObjectEntry<'_>]) -> Option<TextRange> {
    let found = |object: &ObjectEntry<'_>, func: &FuncEntry<'_>| {
        let symbol = sympos::find(platform.symbols(), object.name, func.old_name, func.sympos)
            .ok()?
            .ok()?;
        TextRange::new(symbol.addr, symbol.len)
    };
    let loaded = objects
        .iter()
        .filter(|object| platform.symbols().is_loaded(object.name));
    loaded
        .flat_map(|object| {
            object
                .funcs
                .iter()
                .filter_map(move |func| found(object, func))
        })
        .next()
}

/// Allocated memory, freed when dropped.
struct Memory<'p, T: Text> {
    text: &'p T,
    image: Image,
}

impl<'p, T: Text> Memory<'p, T> {
    fn alloc<P: Platform<Text = T>>(
        platform: &'p P,
        patch: &str,
        layout: &Layout,
        near: Option<TextRange>,
    ) -> Result<Self, Error> {
        // Nothing to be patched is there yet: any place will do.
        let anywhere =
            TextRange::new(CodeAddr::new(0), 0).ok_or(Error::Bug("an empty range wraps"))?;
        let (near, reach) = near.map_or((anywhere, u64::MAX), |near| (near, P::Arch::REACH));
        let text = platform.text();
        let image = text.alloc(near, reach, layout.size).map_err(|error| {
            Error::port("allocating memory for the patch object", patch, &error)
        })?;
        let memory = Self { text, image };
        let fits = |part: TextRange, len: u64| {
            part.len() >= len && (len == 0 || part.start().get() % PAGE == 0)
        };
        if fits(image.text, layout.size.text)
            && fits(image.rodata, layout.size.rodata)
            && fits(image.data, layout.size.data)
        {
            return Ok(memory);
        }
        Err(Error::Bug(
            "the host's memory for a patch object is too small or not aligned to 4096 bytes",
        ))
    }

    fn keep(self) {
        let _ = ManuallyDrop::new(self);
    }
}

impl<T: Text> Drop for Memory<'_, T> {
    fn drop(&mut self) {
        // SAFETY: it came from this `text`, and nobody has learned of it yet.
        unsafe { self.text.free(self.image) }
    }
}

/// Describes what has been built.
struct Description<'a, 'v> {
    patch: &'v str,
    file: &'v PatchFile<'a>,
    view: &'v View<'a>,
    layout: &'v Layout,
    image: Image,
    call: Option<CallC>,
}

impl Description<'_, '_> {
    fn patch(&self, mut waiting: Vec<Waiting<'_>>) -> Result<Patch, Error> {
        // Code of the patch may be on a stack without any new function, as that of a rarely
        // executed part that was split off.
        let mut patch = Patch::builder(self.patch)
            .code(self.image.text)
            .replace(self.file.replace())
            .about(self.file.about().try_clone()?);
        for on in self.file.depends() {
            patch = patch.depends_on(on);
        }
        for state in self.file.states() {
            patch = patch.state(State::new(state.id(), state.version()));
        }
        for entry in self.file.objects() {
            let relocs = waiting
                .iter_mut()
                .find(|waiting| waiting.object == entry.name);
            let relocs = relocs
                .map(|waiting| core::mem::take(&mut waiting.relocs))
                .unwrap_or_default();
            patch = patch.object(self.object(entry, relocs));
        }
        patch.build()
    }

    fn object(&self, entry: &ObjectEntry<'_>, relocs: Relocs) -> Result<Object, Error> {
        let mut funcs = try_vec(entry.funcs.len())?;
        for func in &entry.funcs {
            let range = self.function_at(func.new).ok_or_else(|| {
                Error::patch(
                    self.patch,
                    Some(entry.name),
                    Some(func.old_name),
                    PatchReason::NewFunctionUnknown,
                )
            })?;
            // SAFETY: a function of the image, with the size that the file says it has. The rest is
            // the promise that came with the file.
            let replacement = unsafe { Func::with_range(func.old_name, range) }?;
            let mut replacement = replacement.sympos(func.sympos).with_other(func.other);
            if let Some(old) = &func.old_code {
                replacement = replacement.expecting(old.try_clone()?);
            }
            funcs.push(replacement);
        }
        let mut object = Object::module(entry.name)?
            .with_relocs(relocs)
            .funcs_from(funcs)?;
        if let Some(build) = &entry.build {
            object = object.for_build(build.try_clone()?);
        }
        if let Some(text) = &entry.text {
            object = object.for_text(text.try_clone()?);
        }
        Ok(match self.callbacks(entry)? {
            Some(callbacks) => object.with_callbacks(callbacks),
            None => object,
        })
    }

    fn callbacks(&self, entry: &ObjectEntry<'_>) -> Result<Option<Box<dyn Callbacks>>, Error> {
        if entry.callbacks.iter().all(Option::is_none) {
            return Ok(None);
        }
        let refuse = |refusal: Refusal| Err(refusal.of_object(self.patch, Some(entry.name)));
        let Some(call) = self.call else {
            return refuse(Refusal::unsupported(
                "patch callback",
                "this host calls no functions of patch objects",
            ));
        };
        let mut functions = [None; 4];
        for ((function, place), name) in functions.iter_mut().zip(entry.callbacks).zip(CALLBACKS) {
            let Some(place) = place else { continue };
            match self.function_at(place) {
                Some(range) => *function = Some(range.start()),
                None => {
                    return refuse(Refusal::malformed(
                        "callback is not a function of the patch",
                        name,
                    ));
                }
            }
        }
        // SAFETY: they are functions of the image, which is not freed before the patch is gone
        // (`LoadedImage::unload`); that they have the types of callbacks is promised by whoever
        // called `load`.
        Ok(Some(unsafe {
            CCallbacks::boxed(call, entry.name, functions)
        }?))
    }

    /// The range of the function that begins at `place`.
    fn function_at(&self, place: Pointee) -> Option<TextRange> {
        self.function(self.file.function_at(place)?)
    }

    /// Every function of the image, sorted by address.
    fn functions(&self) -> Result<Vec<(Name, TextRange)>, Error> {
        let mut functions = Vec::new();
        for (index, symbol) in self.view.symbols().iter().enumerate() {
            if let Some(range) = self.function(index) {
                try_push(&mut functions, (Name::new(symbol.name)?, range))?;
            }
        }
        functions.sort_unstable_by_key(|(_, range)| (range.start(), range.end()));
        Ok(functions)
    }

    /// The range of the function that a symbol names, if there is one and it lies in its section.
    fn function(&self, index: usize) -> Option<TextRange> {
        let symbol = &self.view.symbols()[index];
        let Home::Section(home) = symbol.home else {
            return None;
        };
        if symbol.kind != elf::STT_FUNC.0 || symbol.len == 0 {
            return None;
        }
        let spot = self.layout.sections[home].filter(|spot| spot.part == Part::Text)?;
        self.view.sections()[home].range(symbol.value, symbol.len)?;
        TextRange::new(
            spot.addr(&self.image).wrapping_add(symbol.value),
            symbol.len,
        )
    }

    fn eh_frame<P: Platform>(
        &self,
        linker: &Linker<'_, '_, P>,
    ) -> Result<Option<(CodeAddr, Vec<u8>)>, Error> {
        let Some((index, _)) = self.view.section(EH_FRAME) else {
            return Ok(None);
        };
        let (Some(spot), Some(contents)) = (self.layout.sections[index], linker.contents(index))
        else {
            return Ok(None);
        };
        let mut bytes = try_vec(contents.len())?;
        bytes.extend_from_slice(contents);
        Ok(Some((spot.addr(&self.image), bytes)))
    }
}
