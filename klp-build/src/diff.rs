//! A patch object out of two builds: the original one, which runs, and the patched one.
//!
//! | file | what it does |
//! |---|---|
//! | `unit.rs` | bytes → sections, symbols, relocations, and what these refer to |
//! | `bias.rs` | how far x86's instructions reach behind their fields |
//! | `matches.rs` | which symbol of the patched build is which of the original |
//! | `compare.rs` | which functions changed, and which changes cannot be patched |
//! | `calls.rs` | which references are calls |
//! | `target.rs` | the positions of symbols in the program |
//! | `frames.rs` | unwind information of some functions |
//! | `select.rs` | what goes into the patch |
//! | `info.rs` | what the patch says of itself as a whole |
//! | `write.rs` | the bytes of the patch |

use crate::compare::Pair;
use crate::error::BuildError;
use crate::info::Info;
use crate::select::{Replaced, select};
use crate::target::{Target, hex};
use crate::unit::{Unit, UnitHeader};
use crate::write::write;
use klp_core::config::OBJECT_NAME_LEN;
use klp_core::model::VMLINUX;
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
}

/// A patch object.
#[derive(Debug)]
pub struct Built {
    /// What is to be written to a file.
    pub bytes: Vec<u8>,
    /// The functions that it replaces.
    pub functions: Vec<String>,
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

    /// Makes the patch.
    ///
    /// # Errors
    ///
    /// [`BuildError::Refused`] says all that cannot be patched; [`BuildError::NothingChanged`];
    /// [`BuildError::BadText`] if the patch's name is no name.
    pub fn build(&self) -> Result<Built, BuildError> {
        let contents = select(&self.pairs, &self.object, self.target.as_ref());
        let contents = contents.map_err(BuildError::Refused)?;
        let replaced = contents.replaced.iter();
        let functions: Vec<_> = replaced.map(|replaced| replaced.old_name.clone()).collect();
        let header = self.header.filter(|_| !functions.is_empty());
        let header = header.ok_or(BuildError::NothingChanged)?;
        let bytes = write(
            header,
            &self.object,
            self.info(&contents.replaced)?,
            contents,
        )?;
        Ok(Built { bytes, functions })
    }

    /// What the patch object says of the patch as a whole.
    fn info(&self, replaced: &[Replaced]) -> Result<Info, BuildError> {
        let mut info = Info::default();
        info.add_text("name", &self.name)?;
        info.add("livepatch", "Y")?;
        info.append(&self.about);
        let (Some(target), object) = (&self.target, &self.object) else {
            return Ok(info);
        };
        match (target.build_id(), target.text()) {
            (Some(id), _) => info.add("klp_build", &format!("{object}:{}", hex(id)))?,
            (None, Some(text)) => info.add("klp_text", &format!("{object}:sha256:{text}"))?,
            (None, None) => {}
        }
        for Replaced {
            old_name, position, ..
        } in replaced
        {
            if let Some((len, digest)) = target.function(old_name, *position) {
                let func = format!("{object}:{old_name},{position}:{len}:sha256:{digest}");
                info.add("klp_func", &func)?;
            }
        }
        Ok(info)
    }
}
