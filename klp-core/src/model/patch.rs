//! A patch, and the builder that checks it (kernel: `struct klp_patch`, `klp_check_patch`).

use super::about::About;
use super::object::Object;
use crate::addr::TextRange;
use crate::config::OBJECT_NAME_LEN;
use crate::error::{Error, PatchReason};
use crate::mem::{Name, try_push, try_vec};
use crate::state::{self, State};
use alloc::vec::Vec;

/// A set of functions to be replaced together.
///
/// # Invariants
///
/// At least one object; each object is named once, has at least one function or callbacks, and each
/// function is listed once; names have the lengths of [`crate::config`].
#[derive(Debug)]
pub struct Patch {
    name: Name,
    objects: Vec<Object>,
    code: Option<TextRange>,
    replace: Replace,
    states: Vec<State>,
    about: About,
    depends: Vec<Name>,
}

/// Which enabled patches a patch takes the place of (kernel: `patch->replace`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Replace {
    /// None: it goes on top of them.
    #[default]
    None,
    /// All.
    All,
    /// Those of the same set. Patches of different sets must not share functions or states. Linux
    /// does not have this.
    Set(u32),
}

impl Patch {
    /// Begins a patch called `name`.
    pub fn builder(name: &str) -> PatchBuilder {
        PatchBuilder {
            patch: Name::new(name)
                .map(|name| Self {
                    name,
                    objects: Vec::new(),
                    code: None,
                    replace: Replace::None,
                    states: Vec::new(),
                    about: About::default(),
                    depends: Vec::new(),
                })
                .map_err(Error::from),
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The objects.
    #[must_use]
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// Which enabled patches it takes the place of.
    #[must_use]
    pub fn replace(&self) -> Replace {
        self.replace
    }

    /// Whether it takes the place of `old` if that is enabled.
    #[must_use]
    pub fn replaces(&self, old: &Self) -> bool {
        match self.replace {
            Replace::None => false,
            Replace::All => true,
            Replace::Set(set) => old.replace == Replace::Set(set),
        }
    }

    /// The states that it changes.
    #[must_use]
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// Its state `id`.
    #[must_use]
    pub fn state(&self, id: u64) -> Option<&State> {
        state::find(&self.states, id)
    }

    /// What it says of itself to people.
    #[must_use]
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The names of the patches that it depends on: it is enabled only while they are. Linux does
    /// not have this.
    #[must_use]
    pub fn depends(&self) -> &[Name] {
        &self.depends
    }

    /// All code of the patch, if it was given: what the new functions call in it, too.
    #[must_use]
    pub fn code(&self) -> Option<TextRange> {
        self.code
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |object: Option<&str>, func: Option<&str>, reason| {
            Err(Error::patch(&self.name, object, func, reason))
        };
        if !(1..=OBJECT_NAME_LEN).contains(&self.name.len()) {
            return refuse(None, None, PatchReason::BadNameLength);
        }
        for (index, state) in self.states.iter().enumerate() {
            if self.states[..index]
                .iter()
                .any(|other| other.id() == state.id())
            {
                return refuse(None, None, PatchReason::StateTwice { id: state.id() });
            }
        }
        if self.objects.is_empty() {
            return refuse(None, None, PatchReason::NoObjects);
        }
        for (index, object) in self.objects.iter().enumerate() {
            let name = &**object.name();
            if !(1..=OBJECT_NAME_LEN).contains(&name.len()) {
                return refuse(Some(name), None, PatchReason::BadNameLength);
            }
            if self.objects[..index]
                .iter()
                .any(|other| other.name() == object.name())
            {
                return refuse(Some(name), None, PatchReason::ListedTwice);
            }
            if object.funcs().is_empty() && object.callbacks().is_none() {
                return refuse(Some(name), None, PatchReason::NoFuncs);
            }
            for func in object.funcs() {
                if func.old_name().is_empty() {
                    return refuse(
                        Some(name),
                        Some(func.old_name()),
                        PatchReason::BadNameLength,
                    );
                }
            }
            // Sorted, so that 10,000 functions are not compared pair by pair.
            let mut sorted = try_vec(object.funcs().len())?;
            sorted.extend(object.funcs());
            sorted.sort_unstable_by_key(|func| (func.old_name(), func.position().max(1)));
            if let Some(pair) = sorted.windows(2).find(|pair| pair[0].same_target(pair[1])) {
                return refuse(
                    Some(name),
                    Some(pair[0].old_name()),
                    PatchReason::ListedTwice,
                );
            }
        }
        Ok(())
    }
}

/// Builds a [`Patch`]; the first mistake is kept and reported by [`build`](PatchBuilder::build).
#[derive(Debug)]
#[must_use]
pub struct PatchBuilder {
    patch: Result<Patch, Error>,
}

impl PatchBuilder {
    /// Adds an object; takes what [`Object`]'s methods return, so that no `?` is needed in between.
    pub fn object<E: Into<Error>>(mut self, object: Result<Object, E>) -> Self {
        if let Ok(patch) = &mut self.patch {
            let added = object
                .map_err(Into::into)
                .and_then(|object| try_push(&mut patch.objects, object).map_err(Error::from));
            if let Err(error) = added {
                self.patch = Err(error);
            }
        }
        self
    }

    /// Sets which enabled patches it takes the place of; [`Replace::None`] if this is not called.
    pub fn replace(mut self, replace: Replace) -> Self {
        if let Ok(patch) = &mut self.patch {
            patch.replace = replace;
        }
        self
    }

    /// Adds a state that its callbacks change.
    pub fn state(mut self, state: State) -> Self {
        if let Ok(patch) = &mut self.patch {
            if let Err(error) = try_push(&mut patch.states, state) {
                self.patch = Err(error.into());
            }
        }
        self
    }

    /// Sets what it says of itself to people.
    pub fn about(mut self, about: About) -> Self {
        if let Ok(patch) = &mut self.patch {
            patch.about = about;
        }
        self
    }

    /// Adds a patch that it depends on: it can be enabled only if that is enabled already, or as one
    /// with it, and that can be disabled or replaced only together with it.
    pub fn depends_on(mut self, name: &str) -> Self {
        if let Ok(patch) = &mut self.patch {
            let added = Name::new(name).and_then(|name| try_push(&mut patch.depends, name));
            if let Err(error) = added {
                self.patch = Err(error.into());
            }
        }
        self
    }

    /// Says where all code of the patch is: beside the new functions, whatever they call in it. A
    /// task anywhere in there is inside the patch; it may be without any of the new functions on
    /// its stack, by a tail call or as a callback.
    pub fn code(mut self, range: TextRange) -> Self {
        if let Ok(patch) = &mut self.patch {
            patch.code = Some(range);
        }
        self
    }

    /// Checks the whole and hands it out.
    ///
    /// # Errors
    ///
    /// [`Error::Patch`] with the first rule that is broken, or [`Error::OutOfMemory`].
    pub fn build(self) -> Result<Patch, Error> {
        let patch = self.patch?;
        patch.check()?;
        Ok(patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::CodeAddr;
    use crate::model::Func;
    use crate::sim;

    fn reason(patch: PatchBuilder) -> PatchReason {
        match patch.build() {
            Err(Error::Patch(error)) => error.reason,
            other => panic!("not refused for the patch's fault: {other:?}"),
        }
    }

    fn func(name: &str) -> Func {
        sim::func_at(name, CodeAddr::new(0x1000)).expect("memory")
    }

    #[test]
    fn rules_of_a_patch() {
        let one = |name: &str| Object::module(name).and_then(|object| object.func(func("f")));
        assert_eq!(reason(Patch::builder("p")), PatchReason::NoObjects);
        assert_eq!(
            reason(Patch::builder("").object(one("m"))),
            PatchReason::BadNameLength
        );
        assert_eq!(
            reason(Patch::builder("p").object(Object::vmlinux())),
            PatchReason::NoFuncs
        );
        assert_eq!(
            reason(Patch::builder("p").object(one("m")).object(one("m"))),
            PatchReason::ListedTwice
        );
        assert_eq!(
            reason(Patch::builder("p").object(one(&"m".repeat(56)))),
            PatchReason::BadNameLength
        );
        assert!(
            Patch::builder("p")
                .object(one("m"))
                .object(one("n"))
                .build()
                .is_ok()
        );
    }

    #[test]
    fn positions_0_and_1_are_the_same_function() {
        let twice = |sympos| {
            Object::vmlinux()
                .and_then(|object| object.func(func("f"))?.func(func("f").sympos(sympos)))
        };
        assert_eq!(
            reason(Patch::builder("p").object(twice(1))),
            PatchReason::ListedTwice
        );
        assert!(Patch::builder("p").object(twice(2)).build().is_ok());
    }
}
