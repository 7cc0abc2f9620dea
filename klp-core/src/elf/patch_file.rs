//! What a patch object says: all that can be known of it without the system that it is for.

use super::layout;
use super::manifest::{self, ObjectEntry, Pointee};
use super::view::{Home, SectionFlags, Symbol, View};
use super::{Refusal, whole};
use crate::error::Error;
use crate::mem::try_push;
use crate::model::{About, Replace};
use crate::port::Relocator;
use crate::state::State;
use alloc::vec::Vec;

/// A patch object, read: what [`load`](super::load) brings into memory, and tools show.
#[derive(Debug)]
pub struct PatchFile<'a> {
    view: View<'a>,
    name: &'a str,
    objects: Vec<ObjectEntry<'a>>,
    replace: Replace,
    states: Vec<State>,
    about: About,
}

impl<'a> PatchFile<'a> {
    /// Reads the patch object in the bytes `file`, for the processor of `R`. `name` is the patch's
    /// name if the file does not give one. What comes behind the parts of the ELF file does not
    /// matter.
    ///
    /// # Errors
    ///
    /// [`Error::Patch`] says what is wrong with the file; [`Error::OutOfMemory`].
    pub fn read<R: Relocator>(file: &'a [u8], name: &'a str) -> Result<Self, Error> {
        let view = View::parse(file, R::MACHINE, R::BIG_ENDIAN);
        let view = view.map_err(|refusal| refusal.of(name))?;
        let name = view.modinfo("name").unwrap_or(name);
        let refuse = |refusal: Refusal| refusal.of(name);
        if view.modinfo("livepatch") != Some("Y") {
            return Err(refuse(Refusal::malformed(
                "not marked as a livepatch module: livepatch=Y is missing",
                ".modinfo",
            )));
        }
        whole::check_keys(&view).map_err(refuse)?;
        let objects = manifest::read::<R>(&view, name)?;
        let replace = whole::replace(&view).map_err(refuse)?;
        let mut states = Vec::new();
        for state in whole::states(&view) {
            try_push(&mut states, state.map_err(refuse)?)?;
        }
        let about = whole::about(&view).map_err(refuse)?;
        for section in view.sections() {
            layout::part_of(section).map_err(refuse)?;
        }
        Ok(Self {
            view,
            name,
            objects,
            replace,
            states,
            about,
        })
    }

    /// Its sections, symbols and relocations.
    #[must_use]
    pub fn view(&self) -> &View<'a> {
        &self.view
    }

    /// The patch's name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The objects to be patched.
    #[must_use]
    pub fn objects(&self) -> &[ObjectEntry<'a>] {
        &self.objects
    }

    /// Which enabled patches it takes the place of.
    #[must_use]
    pub fn replace(&self) -> Replace {
        self.replace
    }

    /// The states that it changes.
    #[must_use]
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// What it says of itself to people.
    #[must_use]
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The symbol of the function that begins at `place`, by its index; the longest one if it has
    /// aliases. `None`: there is none, or it does not fit into its section.
    #[must_use]
    pub fn function_at(&self, place: Pointee) -> Option<usize> {
        let aliases = self.view.functions_at(place.section, place.offset);
        let fits = |symbol: &usize| self.is_code(&self.view.symbols()[*symbol]);
        aliases
            .filter(fits)
            .max_by_key(|symbol| self.view.symbols()[*symbol].len)
    }

    /// Whether the symbol names code that lies in its section.
    fn is_code(&self, symbol: &Symbol<'_>) -> bool {
        let Home::Section(home) = symbol.home else {
            return false;
        };
        let section = &self.view.sections()[home];
        section.flags.contains(SectionFlags::EXECINSTR)
            && section.range(symbol.value, symbol.len).is_some()
    }
}
