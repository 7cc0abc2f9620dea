//! Whether a patch is for the build of an object that is there.

use crate::error::{Error, PatchReason};
use crate::mem::Name;
use crate::model::BuildId;
use crate::port::SymbolResolver;

/// Refuses `patch`, which has something for the build `expected` of `object`, if that is another
/// one, or if nothing tells which it is. `None`: it is for any.
pub(crate) fn check<S: SymbolResolver>(
    symbols: &S,
    patch: &str,
    object: &str,
    expected: Option<&BuildId>,
) -> Result<(), Error> {
    let Some(expected) = expected else {
        return Ok(());
    };
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
