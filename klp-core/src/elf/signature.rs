//! The signature behind a patch object (ours; that of Linux's modules has another form, and may
//! stand in front of this one).
//!
//! An ELF file says of itself where everything in it is. So what stands behind it is noticed by
//! nobody who does not look for it, Linux's module loader and readelf among them. That is a trailer
//! of [`LEN`] bytes:
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 16 | [`MARK`] |
//! | 16 | 32 | the key's id: an ed25519 public key |
//! | 48 | 64 | the signature (RFC 8032, Ed25519) |
//! | 112 | 16 | [`MARK`] once more |
//!
//! What is signed is all that stands in front of the signature: the ELF file, the mark, the key's
//! id. What stands behind it is always the same. So no bit of the file can be changed unnoticed,
//! there is no length that could lie, and what was signed for another purpose is no patch object.
//!
//! A *detached* signature is the same trailer in a file of its own, which has the name of the object
//! with `.sig` behind it. The two, one behind the other, are the signed file.

use crate::port::{Distrust, KeyId};

/// The length of a trailer.
pub const LEN: usize = OPENING + SIGNATURE + MARK.len();

/// What a trailer begins and ends with.
pub const MARK: [u8; 16] = *b"klp signature 1\n";

/// The length of what stands in front of the signature in a trailer.
pub const OPENING: usize = MARK.len() + 32;

/// The length of an ed25519 signature.
pub const SIGNATURE: usize = 64;

/// A file that has a signature. Whether that is right has not been looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signature<'f> {
    /// The ELF file.
    pub object: &'f [u8],
    /// What is signed.
    pub message: &'f [u8],
    /// The key that it is said to be signed with.
    pub key: KeyId,
    /// The signature itself.
    pub bytes: &'f [u8; SIGNATURE],
}

/// Finds the signature of a file.
///
/// # Errors
///
/// [`Distrust::NotSigned`]; [`Distrust::Damaged`] if a mark is near the end of the file, but not
/// where it should be.
pub fn read(file: &[u8]) -> Result<Signature<'_>, Distrust> {
    let end = &file[file.len().saturating_sub(2 * LEN)..];
    let marks = end.windows(MARK.len()).filter(|bytes| *bytes == MARK);
    let marks = marks.count();
    if marks == 0 {
        return Err(Distrust::NotSigned);
    }
    let signature = split(file).ok_or(Distrust::Damaged(
        "something of it is missing, or changed, or stands behind it",
    ))?;
    if marks > 2 {
        return Err(Distrust::Damaged("there is more than one"));
    }
    Ok(signature)
}

fn split(file: &[u8]) -> Option<Signature<'_>> {
    let file = file.strip_suffix(&MARK)?;
    let (message, bytes) = file.split_last_chunk()?;
    let (object, opening) = message.split_last_chunk::<OPENING>()?;
    let key = opening.strip_prefix(&MARK)?;
    Some(Signature {
        object,
        message,
        key: KeyId(key.try_into().ok()?),
        bytes,
    })
}

/// The trailer of an object. `sign` is given what is to be signed behind the object: the trailer's
/// beginning.
pub fn trailer(key: KeyId, sign: impl FnOnce(&[u8; OPENING]) -> [u8; SIGNATURE]) -> [u8; LEN] {
    let mut opening = [0; OPENING];
    opening[..MARK.len()].copy_from_slice(&MARK);
    opening[MARK.len()..].copy_from_slice(&key.0);
    let mut trailer = [0; LEN];
    trailer[..OPENING].copy_from_slice(&opening);
    trailer[OPENING..OPENING + SIGNATURE].copy_from_slice(&sign(&opening));
    trailer[OPENING + SIGNATURE..].copy_from_slice(&MARK);
    trailer
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const KEY: KeyId = KeyId([7; 32]);

    fn signed(object: &[u8]) -> Vec<u8> {
        [object, &trailer(KEY, |_| [9; SIGNATURE])].concat()
    }

    #[test]
    fn what_is_written_is_read() {
        for object in [&b""[..], b"x", &[b'k'; 300]] {
            let file = signed(object);
            let signature = read(&file).expect("it is signed");
            assert_eq!((signature.object, signature.key), (object, KEY));
            assert_eq!(signature.message, &file[..object.len() + OPENING]);
            assert_eq!(signature.bytes, &[9; SIGNATURE]);
        }
    }

    #[test]
    fn no_signature() {
        for file in [&b""[..], b"x", &MARK[1..], &[0; 3 * LEN]] {
            assert_eq!(read(file), Err(Distrust::NotSigned));
        }
        // It is looked for at the end only.
        let file = [&MARK[..], &[0; 2 * LEN]].concat();
        assert_eq!(read(&file), Err(Distrust::NotSigned));
    }

    #[test]
    fn a_damaged_one_is_told_from_none() {
        let whole = signed(b"object");
        let mut files: Vec<Vec<u8>> = Vec::new();
        // Cut off, down to the last byte of the first mark.
        let short = |len: usize| whole[..len].to_vec();
        files.extend((whole.len() - LEN + MARK.len()..whole.len()).map(short));
        // With something behind it.
        files.extend((1..=LEN).map(|len| [&whole[..], &[0; LEN][..len]].concat()));
        // One of the marks is not as it should be.
        for at in [b"object".len(), whole.len() - 1] {
            let mut file = whole.clone();
            file[at] ^= 1;
            files.push(file);
        }
        // Without the key.
        files.push([&MARK[..], &[9; SIGNATURE], &MARK].concat());
        for file in files {
            assert!(matches!(read(&file), Err(Distrust::Damaged(_))), "{file:?}");
        }
    }

    #[test]
    fn there_is_one() {
        let twice = signed(&signed(b"object"));
        assert_eq!(
            read(&twice),
            Err(Distrust::Damaged("there is more than one"))
        );
    }
}
