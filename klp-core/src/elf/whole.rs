//! What a patch object says of the patch as a whole, in `.modinfo` (kernel: `replace` and `states`
//! of `struct klp_patch`, which a module there fills in itself; these keys are ours).
//!
//! * `klp_replace=all`: the patch takes the place of all enabled ones
//! * `klp_replace=set:N`: it takes the place of those of set N, a number below 2^32
//! * `klp_state=ID:VERSION`: it changes state ID, a number below 2^64, in a version below 2^32; one
//!   entry for each state
//! * `klp_build=OBJECT:BUILDID`: what it has for OBJECT is for the build of it with this build-id,
//!   in hexadecimal; one entry for each such object
//! * `klp_text=OBJECT:ALGORITHM:HEX`: it is for the build of it with this digest of all its code;
//!   one entry for each such object
//! * `klp_func=OBJECT:NAME,POSITION:LEN:ALGORITHM:HEX`: the function that it replaces there has so
//!   many bytes of code, with this digest, in the build that it is for; one entry for each such
//!   function
//! * `klp_depends=NAME`: it depends on the patch called NAME; one entry for each such patch
//! * `klp_label=TEXT`: what the patch is known by elsewhere, as the number of a CVE. With
//!   `description=TEXT` and `author=TEXT`, which are Linux's, for people. One entry for each; no
//!   control characters
//!
//! An entry that begins with `klp_` and is none of these is refused: it asks for something.
//!
//! Numbers are written as in C: decimal, or hexadecimal behind `0x`. Leading zeros, which would
//! mean octal there, are refused.

use super::Refusal;
use super::view::View;
use crate::config::{ABOUT_LEN, OBJECT_NAME_LEN};
use crate::mem::{Name, try_push};
use crate::model::{About, BuildId, Digest, OldCode, Replace};
use crate::state::State;
use alloc::vec::Vec;

const REPLACE: &str = "klp_replace";
const STATE: &str = "klp_state";
const BUILD: &str = "klp_build";
const TEXT: &str = "klp_text";
const FUNC: &str = "klp_func";
const DEPENDS: &str = "klp_depends";
const LABEL: &str = "klp_label";
const DESCRIPTION: &str = "description";
const AUTHOR: &str = "author";

/// Our keys.
const OURS: [&str; 7] = [REPLACE, STATE, BUILD, TEXT, FUNC, DEPENDS, LABEL];

/// Refuses entries that are for us and that nobody here understands.
pub(super) fn check_keys(view: &View<'_>) -> Result<(), Refusal> {
    for entry in view.modinfo_entries() {
        if !entry.starts_with(b"klp_") {
            continue;
        }
        let text = core::str::from_utf8(entry)
            .map_err(|_| Refusal::malformed("an entry that is not text", ".modinfo"))?;
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if !OURS.contains(&key) {
            let what = "an entry that this engine does not know";
            return Err(Refusal::unsupported(what, format_args!("{key}={value}")));
        }
    }
    Ok(())
}

/// What the patch says of itself to people.
pub(super) fn about(view: &View<'_>) -> Result<About, Refusal> {
    let texts = |key| {
        let mut texts = Vec::new();
        for text in view.modinfo_all(key) {
            if !(1..=ABOUT_LEN).contains(&text.len()) || text.chars().any(char::is_control) {
                let what = "not 1 to 512 bytes of text without control characters";
                return Err(Refusal::malformed(what, key));
            }
            try_push(&mut texts, Name::new(text)?)?;
        }
        Ok(texts)
    };
    Ok(About {
        descriptions: texts(DESCRIPTION)?,
        authors: texts(AUTHOR)?,
        labels: texts(LABEL)?,
    })
}

/// Which enabled patches the patch takes the place of.
pub(super) fn replace(view: &View<'_>) -> Result<Replace, Refusal> {
    let mut entries = view.modinfo_all(REPLACE);
    let Some(value) = entries.next() else {
        return Ok(Replace::None);
    };
    if let Some(second) = entries.next() {
        return Err(malformed(
            "which patches are replaced is said twice",
            REPLACE,
            second,
        ));
    }
    if value == "all" {
        return Ok(Replace::All);
    }
    let set = value
        .strip_prefix("set:")
        .and_then(number)
        .and_then(|set| u32::try_from(set).ok());
    set.map(Replace::Set).ok_or_else(|| {
        malformed(
            "neither `all` nor `set:` and a number below 2^32",
            REPLACE,
            value,
        )
    })
}

/// The states that the patch changes.
pub(super) fn states(view: &View<'_>) -> impl Iterator<Item = Result<State, Refusal>> {
    view.modinfo_all(STATE).map(|value| {
        let state = || {
            let (id, version) = value.split_once(':')?;
            Some(State::new(
                number(id)?,
                u32::try_from(number(version)?).ok()?,
            ))
        };
        state().ok_or_else(|| {
            malformed(
                "not the number of a state, a colon, and a version below 2^32",
                STATE,
                value,
            )
        })
    })
}

/// The patches that the patch depends on.
pub(super) fn depends(view: &View<'_>) -> Result<Vec<Name>, Refusal> {
    let mut depends = Vec::new();
    for name in view.modinfo_all(DEPENDS) {
        let is_name = (1..=OBJECT_NAME_LEN).contains(&name.len());
        if !is_name || name.chars().any(char::is_control) {
            return Err(malformed("not the name of a patch", DEPENDS, name));
        }
        try_push(&mut depends, Name::new(name)?)?;
    }
    Ok(depends)
}

/// For which build of `object` the patch is.
pub(super) fn build(view: &View<'_>, object: &str) -> Result<Option<BuildId>, Refusal> {
    let mut found = None;
    for value in view.modinfo_all(BUILD) {
        let (of, id) = value.split_once(':').unwrap_or((value, ""));
        let Some(id) = BuildId::parse(id)? else {
            let what = "not the name of an object, a colon, and a build-id in hexadecimal";
            return Err(malformed(what, BUILD, value));
        };
        if of == object && found.replace(id).is_some() {
            return Err(malformed("the build is said twice", BUILD, value));
        }
    }
    Ok(found)
}

/// Which code `object` has in the build that the patch is for.
pub(super) fn text(view: &View<'_>, object: &str) -> Result<Option<Digest>, Refusal> {
    let mut found = None;
    for value in view.modinfo_all(TEXT) {
        let (of, digest) = value.split_once(':').unwrap_or((value, ""));
        let Some(digest) = Digest::parse(digest)? else {
            let what = "not the name of an object, an algorithm, and a digest in hexadecimal";
            return Err(malformed(what, TEXT, value));
        };
        if of == object && found.replace(digest).is_some() {
            return Err(malformed("the code is said twice", TEXT, value));
        }
    }
    Ok(found)
}

/// A function whose code is said.
pub(super) struct ExpectedFunc<'a> {
    pub(super) object: &'a str,
    pub(super) name: &'a str,
    pub(super) position: u32,
    pub(super) code: OldCode,
    value: &'a str,
}

impl ExpectedFunc<'_> {
    pub(super) fn key(&self) -> (&str, &str, u32) {
        (self.object, self.name, self.position)
    }

    /// Refuses it: the patch does not replace it, or its code is said already.
    pub(super) fn refuse(&self, what: &'static str) -> Refusal {
        malformed(what, FUNC, self.value)
    }
}

/// The functions whose code is said.
pub(super) fn funcs<'a>(view: &View<'a>) -> Result<Vec<ExpectedFunc<'a>>, Refusal> {
    let mut funcs = Vec::new();
    for value in view.modinfo_all(FUNC) {
        let parts = || {
            let (front, digest) = value.rsplit_once(':')?;
            let (front, algorithm) = front.rsplit_once(':')?;
            let (func, len) = front.rsplit_once(':')?;
            let (object, func) = func.split_once(':')?;
            let (name, position) = func.rsplit_once(',')?;
            let position = u32::try_from(number(position)?).ok()?;
            let digest = &value[value.len() - digest.len() - algorithm.len() - 1..];
            Some((object, name, position, number(len)?, digest))
        };
        let bad = || {
            let what = "not the name of an object, a function with its position and its length, an \
                        algorithm, and a digest in hexadecimal";
            malformed(what, FUNC, value)
        };
        let (object, name, position, len, digest) = parts().ok_or_else(bad)?;
        let digest = Digest::parse(digest)?.ok_or_else(bad)?;
        let func = ExpectedFunc {
            object,
            name,
            position,
            code: OldCode { len, digest },
            value,
        };
        try_push(&mut funcs, func)?;
    }
    Ok(funcs)
}

fn malformed(what: &'static str, key: &str, value: &str) -> Refusal {
    Refusal::malformed(what, format_args!("{key}={value}"))
}

/// A number as C has it.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => return None,
        None => (text, 10),
    };
    // `from_str_radix` takes a sign, too.
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}
