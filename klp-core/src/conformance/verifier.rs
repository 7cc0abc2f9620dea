//! The suite of [`Verifier`].

use crate::port::{Distrust, KeyId, Signed, Verifier};
use alloc::vec::Vec;

/// Files of the porter's.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// A file that is signed with a trusted key; short, for every byte of it is tried.
    pub signed: &'a [u8],
    /// What must be said of it.
    pub says: Signed<'a>,
    /// A file that is signed with a key which is not trusted, and the key.
    pub stranger: (&'a [u8], KeyId),
    /// A file that is not signed.
    pub unsigned: &'a [u8],
}

/// Checks an implementation of [`Verifier`].
///
/// # Panics
///
/// If the implementation breaks the contract; the message says where.
pub fn check(verifier: &dyn Verifier, known: &Known<'_>) {
    let file = known.signed;
    let signed = verifier.verify(file);
    assert_eq!(signed, Ok(known.says), "the file that is signed");
    if let Ok(Signed { object, .. }) = signed {
        assert!(
            file.as_ptr_range().start <= object.as_ptr()
                && object.as_ptr_range().end <= file.as_ptr_range().end,
            "what is vouched for is a part of the file that was given"
        );
    }
    let (stranger, key) = known.stranger;
    assert_eq!(
        verifier.verify(stranger),
        Err(Distrust::UnknownKey(key)),
        "a key that is not trusted"
    );
    for unsigned in [known.unsigned, &[]] {
        assert_eq!(
            verifier.verify(unsigned),
            Err(Distrust::NotSigned),
            "a file without a signature"
        );
    }

    let refused = |file: &[u8], what: &str| {
        assert!(verifier.verify(file).is_err(), "{what} is no trusted file");
    };
    let mut changed = Vec::from(file);
    for at in 0..changed.len() {
        let bit = 1 << (at % 8);
        changed[at] ^= bit;
        refused(&changed, "one with a byte that was changed");
        changed[at] ^= bit;
    }
    for len in 0..file.len() {
        refused(&file[..len], "the first part of one");
        refused(&file[len + 1..], "the last part of one");
    }
    refused(&[file, &[0]].concat(), "one with a byte behind it");
    refused(&[&[0], file].concat(), "one with a byte in front of it");
    refused(&[file, file].concat(), "one behind another");
}
