//! What a patch object says of the patch as a whole, in `.modinfo` (kernel: `replace` and `states`
//! of `struct klp_patch`, which a module there fills in itself; these keys are ours).
//!
//! * `klp_replace=all`: the patch takes the place of all enabled ones
//! * `klp_replace=set:N`: it takes the place of those of set N, a number below 2^32
//! * `klp_state=ID:VERSION`: it changes state ID, a number below 2^64, in a version below 2^32; one
//!   entry for each state
//! * `klp_build=OBJECT:BUILDID`: what it has for OBJECT is for the build of it with this build-id,
//!   in hexadecimal; one entry for each such object
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
use crate::config::ABOUT_LEN;
use crate::mem::{Name, try_push};
use crate::model::{About, BuildId, Replace};
use crate::state::State;
use alloc::vec::Vec;

const REPLACE: &str = "klp_replace";
const STATE: &str = "klp_state";
const BUILD: &str = "klp_build";
const LABEL: &str = "klp_label";
const DESCRIPTION: &str = "description";
const AUTHOR: &str = "author";

/// Our keys.
const OURS: [&str; 4] = [REPLACE, STATE, BUILD, LABEL];

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
