//! A patch object out of two builds: the original one, which runs, and the patched one.
//!
//! | file | what it does |
//! |---|---|
//! | `apply.rs` | a diff → the patched sources |
//! | `unit.rs` | bytes → sections, symbols, relocations, and what these refer to |
//! | `names.rs` | which symbols name what is at a place |
//! | `bias.rs` | how far x86's instructions reach behind their fields |
//! | `matches.rs` | which symbol of the patched build is which of the original |
//! | `compare.rs` | which functions changed, and which changes cannot be patched |
//! | `init.rs` | what runs when an object is loaded |
//! | `lines.rs` | functions that differ in the numbers of lines alone |
//! | `special.rs` | what the kernel's build notes beside code: entries, and what they are about |
//! | `entries.rs` | those entries, by the code that they are about |
//! | `pieces.rs` | sections of which each piece stands alone |
//! | `statics.rs` | static variables of the kernel's macros |
//! | `authors.rs` | what the author says to kpatch: callbacks, and what is not to be looked at |
//! | `texts.rs` | strings that an object file refers to |
//! | `calls.rs` | which references are calls |
//! | `sites.rs` | the sites at the entries of functions |
//! | `target.rs` | the positions of symbols in the program |
//! | `frames.rs` | unwind information of some functions |
//! | `select.rs` | what goes into the patch |
//! | `copies.rs` | the sections of the patch |
//! | `namespaces.rs` | what the patch must say to be given symbols |
//! | `check.rs` | what the patch must not ask of whoever loads it |
//! | `debug_sections.rs` | the sections with debug information, as a linker lays them out |
//! | `debug.rs` | what they say |
//! | `debug_types.rs` | the types that they describe |
//! | `layout.rs` | in what the layouts of two types differ |
//! | `uses.rs` | who has objects of a type |
//! | `types.rs` | which types changed that objects of the program have |
//! | `warnings.rs` | what the author should know |
//! | `info.rs` | what the patch says of itself as a whole |
//! | `write.rs` | the bytes of the patch |
//! | `module.rs` | what makes a kernel module of it |

use crate::check;
use crate::compare::Pair;
use crate::convert::ConvertError;
use crate::error::BuildError;
use crate::info::Info;
use crate::matches::Match;
use crate::select::{Contents, Replaced, select};
use crate::target::{Target, hex};
use crate::types;
use crate::unit::{Unit, UnitHeader};
use crate::warnings::{Warning, warnings};
use crate::write::{write, write_for_module};
use klp_core::config::{OBJECT_NAME_LEN, SYMBOL_NAME_LEN};
use klp_core::model::VMLINUX;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Makes a patch object of the object files of two builds.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use klp_build::{PatchBuilder, Target};
///
/// let mut patch = PatchBuilder::new("fix_price");
/// patch.target(Target::read(&std::fs::read("shop")?)?);
/// let (original, patched) = (std::fs::read("price.o")?, std::fs::read("fixed/price.o")?);
/// patch.pair("price.o".as_ref(), Some(&original), &patched)?;
/// let built = patch.build()?;
/// std::fs::write("fix_price.ko", &built.bytes)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PatchBuilder {
    name: String,
    object: String,
    target: Option<Target>,
    about: Info,
    header: Option<UnitHeader>,
    pairs: Vec<Pair>,
    vouched: BTreeSet<String>,
}

/// A patch object.
#[derive(Debug)]
pub struct Built {
    /// What is to be written to a file.
    pub bytes: Vec<u8>,
    /// The functions that it replaces.
    pub functions: Vec<String>,
    /// What its author should know.
    pub warnings: Vec<Warning>,
}

impl PatchBuilder {
    /// A patch called `name`, of the base image.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            object: VMLINUX.to_owned(),
            target: None,
            about: Info::default(),
            header: None,
            pairs: Vec::new(),
            vouched: BTreeSet::new(),
        }
    }

    /// Makes it a patch of the object called `object`: a module, or a shared library.
    ///
    /// # Errors
    ///
    /// [`BuildError::BadObject`].
    pub fn object(&mut self, object: &str) -> Result<(), BuildError> {
        if object.is_empty() || object.len() > OBJECT_NAME_LEN || object.contains('.') {
            return Err(BuildError::BadObject {
                object: object.to_owned(),
            });
        }
        object.clone_into(&mut self.object);
        Ok(())
    }

    /// The program or library that the original was linked into. The patch is for this build of it
    /// alone, then: for its build-id or, lacking one, for its code; and for the code that the
    /// functions have there. Without it, symbols that others have the name of are
    /// refused when the patch is enabled.
    pub fn target(&mut self, target: Target) {
        self.target = Some(target);
    }

    /// Makes the patch depend on the one called `name`: it is enabled only while that is. May be
    /// called again.
    ///
    /// # Errors
    ///
    /// [`BuildError::BadText`].
    pub fn depends_on(&mut self, name: &str) -> Result<(), BuildError> {
        if name.len() > OBJECT_NAME_LEN {
            let (key, text) = ("klp_depends", name.to_owned());
            return Err(BuildError::BadText { key, text });
        }
        self.about.add_text("klp_depends", name)
    }

    /// Says what the patch is known by elsewhere, as the number of a CVE. Processes that have the
    /// patch show it. May be called again.
    ///
    /// # Errors
    ///
    /// [`BuildError::BadText`].
    pub fn label(&mut self, label: &str) -> Result<(), BuildError> {
        self.about.add_text("klp_label", label)
    }

    /// Says what the patch does.
    ///
    /// # Errors
    ///
    /// [`BuildError::BadText`].
    pub fn description(&mut self, description: &str) -> Result<(), BuildError> {
        self.about.add_text("description", description)
    }

    /// Says who made the patch. May be called again.
    ///
    /// # Errors
    ///
    /// [`BuildError::BadText`].
    pub fn author(&mut self, author: &str) -> Result<(), BuildError> {
        self.about.add_text("author", author)
    }

    /// Adds an object file: the bytes of both builds, and what to call it. `original` is `None` if
    /// only the patched build has it.
    ///
    /// # Errors
    ///
    /// [`BuildError::Unreadable`], [`BuildError::NotRelocatable`], or [`BuildError::Mismatch`].
    pub fn pair(
        &mut self,
        file: &Path,
        original: Option<&[u8]>,
        patched: &[u8],
    ) -> Result<(), BuildError> {
        let read = |bytes: &[u8]| {
            let file = file.to_path_buf();
            match Unit::read(bytes) {
                Err(why) => Err(BuildError::Unreadable { file, why }),
                Ok(_) if !Unit::is_relocatable(bytes) => Err(BuildError::NotRelocatable { file }),
                Ok(unit) => Ok(unit),
            }
        };
        let patched = read(patched)?;
        let original = match original {
            Some(original) => read(original)?,
            None => Unit::empty(patched.header),
        };
        for header in [original.header, patched.header] {
            if *self.header.get_or_insert(header) != header {
                let file = file.to_path_buf();
                return Err(BuildError::Mismatch { file });
            }
        }
        self.pairs
            .push(Pair::new(PathBuf::from(file), original, patched));
        Ok(())
    }

    /// Says that the type called `name` may have another layout than in the original build: new
    /// code and the objects that exist agree, or there are none. Types that contain it are vouched
    /// for, too, if nothing else of them changed.
    ///
    /// The name is what a refusal says, as `struct shop` or `shop::Visit`; `struct` and the like
    /// may be left out.
    pub fn vouch_layout(&mut self, name: &str) {
        self.vouched.insert(name.to_owned());
    }

    /// Makes the patch.
    ///
    /// # Errors
    ///
    /// [`BuildError::Refused`] says all that cannot be patched; [`BuildError::NothingChanged`];
    /// [`BuildError::BadText`] if the patch's name is no name.
    pub fn build(&self) -> Result<Built, BuildError> {
        let mut info = Info::default();
        info.add_text("name", &self.name)?;
        info.add("livepatch", "Y")?;
        self.build_by(info, usize::MAX, write)
    }

    /// Makes an object file of which Kbuild makes a kernel module, as [`module`](crate::module)
    /// says. The module's name is the patch's.
    ///
    /// # Errors
    ///
    /// As [`Self::build`].
    pub fn build_for_module(&self) -> Result<Built, BuildError> {
        self.build_by(Info::default(), SYMBOL_NAME_LEN, write_for_module)
    }

    /// Makes it for a system whose names have no more than `longest` bytes.
    fn build_by(
        &self,
        mut info: Info,
        longest: usize,
        write: impl FnOnce(UnitHeader, &str, Info, Contents) -> Result<Vec<u8>, ConvertError>,
    ) -> Result<Built, BuildError> {
        let contents = select(&self.pairs, &self.object, self.target.as_ref());
        let going_in = self.going_in(contents.as_ref().ok());
        let compared = types::compare(&self.pairs, &going_in, &self.vouched);
        let mut refusals = compared.refusals;
        if let (Ok(contents), Some(pair)) = (&contents, self.pairs.first()) {
            refusals.extend(check::long_names(pair, contents, longest));
        }
        let contents = match contents {
            Ok(contents) if refusals.is_empty() => contents,
            Ok(_) => return Err(BuildError::Refused(refusals)),
            Err(others) => {
                refusals.extend(others);
                return Err(BuildError::Refused(refusals));
            }
        };
        let replaced = contents.replaced.iter();
        let functions: Vec<_> = replaced.map(|replaced| replaced.old_name.clone()).collect();
        let does_nothing = functions.is_empty() && contents.callbacks.is_empty();
        let header = self.header.filter(|_| !does_nothing);
        let header = header.ok_or(BuildError::NothingChanged)?;
        let mut notes = compared.warnings;
        let target = self.target.as_ref();
        notes.extend(warnings(
            &self.pairs,
            &contents,
            target,
            &compared.producers,
        ));
        self.add_info(&mut info, &contents)?;
        let bytes = write(header, &self.object, info, contents)?;
        Ok(Built {
            bytes,
            functions,
            warnings: notes,
        })
    }

    /// The functions of the patch, by pair and symbol: those in `contents`, and, if something is
    /// refused, those that would have been.
    fn going_in(&self, contents: Option<&Contents>) -> BTreeSet<(usize, usize)> {
        let mut going_in = BTreeSet::new();
        for (index, pair) in self.pairs.iter().enumerate() {
            let goes_in = |function: &usize| match contents {
                Some(contents) => {
                    let section = pair.patched.section_of(*function);
                    section.is_some_and(|section| contents.taken.contains_key(&(index, section)))
                }
                None => pair.changed.contains(function) || pair.matches[*function] == Match::New,
            };
            let functions = pair.patched.functions().filter(goes_in);
            going_in.extend(functions.map(|function| (index, function)));
        }
        going_in
    }

    /// Adds what the patch says of itself, and what its `contents` need.
    fn add_info(&self, info: &mut Info, contents: &Contents) -> Result<(), BuildError> {
        info.append(&self.about);
        for namespace in &contents.namespaces {
            info.add("import_ns", namespace)?;
        }
        let (Some(target), object) = (&self.target, &self.object) else {
            return Ok(());
        };
        match (target.build_id(), target.text()) {
            (Some(id), _) => info.add("klp_build", &format!("{object}:{}", hex(id)))?,
            (None, Some(text)) => info.add("klp_text", &format!("{object}:sha256:{text}"))?,
            (None, None) => {}
        }
        for Replaced {
            old_name, position, ..
        } in &contents.replaced
        {
            if let Some((len, digest)) = target.function(old_name, *position) {
                let func = format!("{object}:{old_name},{position}:{len}:sha256:{digest}");
                info.add("klp_func", &func)?;
            }
        }
        Ok(())
    }
}
