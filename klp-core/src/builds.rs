//! Whether a patch is for the build of an object that is there.

use crate::addr::TextRange;
use crate::error::{Error, PatchReason};
use crate::mem::{Name, OutOfMemory, try_push, try_vec};
use crate::model::{BuildId, Digest, Object, OldCode};
use crate::port::{Extent, SymbolResolver};
use alloc::vec::Vec;

/// Refuses `patch`, which has something for the build `id`, with the code `text`, of `object`, if
/// that is another one, or if nothing tells which it is. `None`: it is for any.
pub(crate) fn check<S: SymbolResolver>(
    symbols: &S,
    patch: &str,
    object: &str,
    (id, text): (Option<&BuildId>, Option<&Digest>),
) -> Result<(), Error> {
    if let Some(expected) = id {
        check_id(symbols, patch, object, expected)?;
    }
    let Some(expected) = text else {
        return Ok(());
    };
    let mut found = None;
    let algorithm = expected.algorithm();
    digests(
        symbols,
        patch,
        object,
        algorithm,
        &[Extent::Object],
        |_, digest| {
            found = Some(digest);
        },
    )?;
    if found.as_ref() == Some(expected) {
        return Ok(());
    }
    let reason = PatchReason::OtherCode {
        expected: Name::display(expected)?,
        found: found
            .as_ref()
            .map(|found| Name::display(found))
            .transpose()?,
    };
    Err(Error::patch(patch, Some(object), None, reason))
}

fn check_id<S: SymbolResolver>(
    symbols: &S,
    patch: &str,
    object: &str,
    expected: &BuildId,
) -> Result<(), Error> {
    let (mut found, mut full) = (None, Ok(()));
    symbols
        .build_id(object, &mut |id| match BuildId::new(id) {
            Ok(id) => found = Some(id),
            Err(error) => full = Err(error),
        })
        .map_err(|error| Error::port("looking at a build-id", patch, &error))?;
    full?;
    if found.as_ref() == Some(expected) {
        return Ok(());
    }
    let reason = PatchReason::OtherBuild {
        expected: Name::display(expected)?,
        found: found.as_ref().map(|id| Name::display(id)).transpose()?,
    };
    Err(Error::patch(patch, Some(object), None, reason))
}

/// Shows `refused` every function of `object` that has other code than `patch` was made for, or of
/// which nothing tells the code. `olds` are the numbers of functions, and where their old code is.
/// Where a host compares no functions, it is enough that it has told the object's build.
pub(crate) fn check_functions<S: SymbolResolver>(
    symbols: &S,
    patch: &str,
    object: &Object,
    olds: impl Iterator<Item = (usize, TextRange)>,
    refused: &mut dyn FnMut(Error) -> Result<(), OutOfMemory>,
) -> Result<(), Error> {
    // What is to be looked at, and what was found.
    let mut looks: Vec<(usize, &OldCode, TextRange)> = Vec::new();
    for (func, range) in olds {
        let expected = object.funcs().get(func).and_then(|func| func.old_code());
        if let Some(expected) = expected {
            try_push(&mut looks, (func, expected, range))?;
        }
    }
    let same = |one: &(usize, &OldCode, TextRange), other: &(usize, &OldCode, TextRange)| {
        one.1.digest.algorithm() == other.1.digest.algorithm()
    };
    for looks in looks.chunk_by(same) {
        let mut extents = try_vec(looks.len())?;
        extents.extend(looks.iter().map(|(_, _, range)| Extent::Range(*range)));
        let mut found = try_vec(looks.len())?;
        found.resize_with(looks.len(), || None);
        let algorithm = looks
            .first()
            .map_or("", |(_, code, _)| code.digest.algorithm());
        digests(
            symbols,
            patch,
            object.name(),
            algorithm,
            &extents,
            |index, digest| {
                if let Some(found) = found.get_mut(index) {
                    *found = Some(digest);
                }
            },
        )?;
        let told = object.build().is_some() || object.text().is_some();
        for ((func, expected, range), digest) in looks.iter().zip(found) {
            let len = range.len();
            let found = match digest {
                Some(digest) => {
                    let found = OldCode { len, digest };
                    if found == **expected {
                        continue;
                    }
                    Some(Name::display(&found)?)
                }
                None if len != expected.len => Some(Name::display(&format_args!("{len} bytes"))?),
                None if told => continue,
                None => None,
            };
            let expected = Name::display(*expected)?;
            let func = object.funcs().get(*func).map(|func| &**func.old_name());
            let reason = PatchReason::OtherCode { expected, found };
            refused(Error::patch(patch, Some(object.name()), func, reason))?;
        }
    }
    Ok(())
}

/// Shows `found` the digests of parts of `object`, by their numbers; of those of which nothing tells
/// it, none.
fn digests<S: SymbolResolver>(
    symbols: &S,
    patch: &str,
    object: &str,
    algorithm: &str,
    of: &[Extent],
    mut found: impl FnMut(usize, Digest),
) -> Result<(), Error> {
    let mut full = Ok(());
    symbols
        .digests(
            object,
            algorithm,
            of,
            &mut |index, value| match Digest::new(algorithm, value) {
                Ok(digest) => found(index, digest),
                Err(error) => full = Err(error),
            },
        )
        .map_err(|error| Error::port("comparing code", patch, &error))?;
    Ok(full?)
}
