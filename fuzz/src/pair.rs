//! `klp-build`: two builds become a patch object that the loader's reader accepts, the same each
//! time, or are refused. (What cannot be compared counts as changed: of a broken file, something may
//! be, even if both are the same.)

use crate::memory::bounded;
use klp_build::{BuildError, Built, PatchBuilder, Target};
use klp_core::elf::view::View;
use std::path::Path;

/// Checks one input: the length of the original object file, in four bytes, that file, and the
/// patched one.
pub fn check(input: &[u8]) {
    let Some((original, patched)) = split(input) else {
        return;
    };
    let built = bounded(enough(input.len()), || build(original, patched));
    if let Ok(built) = &built {
        assert!(!built.functions.is_empty());
        check_built(built);
    }
    let again = build(original, patched);
    assert_eq!(
        described(&built),
        described(&again),
        "it is another one each time"
    );
    if let Ok(built) = &build(patched, patched) {
        check_built(built);
    }
    let _ = Target::read(original);
}

/// The two files of an input.
pub(crate) fn split(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, files) = input.split_first_chunk()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    files.split_at_checked(len.min(files.len()))
}

/// Most bytes that building a patch of files of `len` bytes may take.
fn enough(len: usize) -> usize {
    (256 << 10) + 128 * len
}

fn build(original: &[u8], patched: &[u8]) -> Result<Built, BuildError> {
    let mut patch = PatchBuilder::new("fuzz");
    patch.pair(Path::new("fuzz.o"), Some(original), patched)?;
    patch.build()
}

fn described(built: &Result<Built, BuildError>) -> Result<&[u8], String> {
    built
        .as_ref()
        .map(|built| &*built.bytes)
        .map_err(|error| error.to_string())
}

fn check_built(built: &Built) {
    let bytes = &built.bytes;
    let machine = u16::from_le_bytes([bytes[18], bytes[19]]);
    if bytes[5] == 1 {
        let view = View::parse(bytes, machine, false);
        let view = view.unwrap_or_else(|why| panic!("the loader cannot read it: {why:?}"));
        assert_eq!(view.modinfo("livepatch"), Some("Y"));
    }
}
