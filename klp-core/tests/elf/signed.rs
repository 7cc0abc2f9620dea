//! A host that takes signed patch objects only. The signatures of these tests are sums, which
//! everybody can make: what a key vouches for is another crate's business, what the loader takes is
//! this one's.

use crate::file::File;
use crate::host::{Host, load};
use klp_core::conformance::verifier;
use klp_core::elf::signature::{self, OPENING, SIGNATURE};
use klp_core::error::PatchReason;
use klp_core::port::{Distrust, KeyId, Signed, Verifier};
use klp_core::{Error, elf};

struct Sums(KeyId);

const TRUSTED: KeyId = KeyId([1; 32]);
const STRANGER: KeyId = KeyId([2; 32]);

impl Verifier for Sums {
    fn verify<'f>(&self, file: &'f [u8]) -> Result<Signed<'f>, Distrust> {
        let signature = signature::read(file)?;
        let key = signature.key;
        if key != self.0 {
            return Err(Distrust::UnknownKey(key));
        }
        if *signature.bytes != sum(signature.message) {
            return Err(Distrust::Changed(key));
        }
        Ok(Signed {
            key,
            object: signature.object,
        })
    }
}

/// A number (FNV-1a) that changes with every byte and its place, as often as it has room.
fn sum(message: &[u8]) -> [u8; SIGNATURE] {
    let add = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let sum = message.iter().fold(0xcbf2_9ce4_8422_2325, add);
    core::array::from_fn(|at| sum.to_le_bytes()[at % 8])
}

fn signed(key: KeyId, object: &[u8]) -> Vec<u8> {
    let sign = |opening: &[u8; OPENING]| sum(&[object, opening].concat());
    [object, &signature::trailer(key, sign)].concat()
}

fn host_with_keys() -> Host {
    let mut host: Host = Host::new();
    host.verifier = Some(Box::new(Sums(TRUSTED)));
    host
}

#[test]
fn sums_are_a_verifier() {
    let object = File::replacing_victim().0.bytes();
    verifier::check(
        &Sums(TRUSTED),
        &verifier::Known {
            signed: &signed(TRUSTED, &object),
            says: Signed {
                key: TRUSTED,
                object: &object,
            },
            stranger: (&signed(STRANGER, &object), STRANGER),
            unsigned: &object,
        },
    );
}

#[test]
fn a_host_without_keys_takes_signed_files_too() {
    let object = File::replacing_victim().0.bytes();
    for file in [object.clone(), signed(STRANGER, &object)] {
        load(&Host::new(), &file, "p").expect("loads");
    }
}

#[test]
fn a_host_with_keys_takes_what_they_vouch_for() {
    let object = File::replacing_victim().0.bytes();
    let (host, file) = (host_with_keys(), signed(TRUSTED, &object));
    let admitted = elf::admit(&host, &file, "p").expect("it is trusted");
    assert_eq!(admitted.key(), Some(TRUSTED));
    assert_eq!(load(&host, &file, "p").expect("loads").patch.name(), &"fix");
    assert_eq!(
        *host.log.lock().expect("nobody panicked"),
        [format!("'fix': signed with key {TRUSTED}")]
    );
}

/// Each with its own words and number, and before anything of the file is looked at: its name does
/// not count.
#[test]
fn a_host_with_keys_refuses_the_rest() {
    let object = File::replacing_victim().0.bytes();
    let good = signed(TRUSTED, &object);
    let mut changed = good.clone();
    changed[object.len() / 2] ^= 1;
    let host = host_with_keys();
    for (file, why, errno, words) in [
        (
            &object[..],
            Distrust::NotSigned,
            -61,
            "it is not signed, and only signed patches are taken",
        ),
        (
            &signed(STRANGER, &object),
            Distrust::UnknownKey(STRANGER),
            -126,
            &format!("it is signed with key {STRANGER}, which is not trusted here"),
        ),
        (
            &changed,
            Distrust::Changed(TRUSTED),
            -129,
            &format!(
                "its signature with key {TRUSTED} does not fit: it was changed after it was signed"
            ),
        ),
        (
            &good[..good.len() - 1],
            Distrust::Damaged("something of it is missing, or changed, or stands behind it"),
            -74,
            "its signature is damaged: something of it is missing, or changed, or stands behind it",
        ),
    ] {
        let error = load(&host, file, "p").expect_err("it is not trusted");
        assert_eq!(error.to_string(), format!("patch 'p': {words}"));
        assert_eq!(error.errno(), errno);
        let Error::Patch(error) = error else {
            panic!("{error}")
        };
        assert_eq!(error.reason, PatchReason::Untrusted { why });
        assert_eq!(host.images(), 0, "no memory was asked for");
    }
}

/// What a signature does not vouch for is not read, wherever the file says that it is.
#[test]
fn the_trailer_is_no_part_of_the_object() {
    let object = File::replacing_victim().0.bytes();
    // The table of section headers is the last thing of the file. A part of it is left out, and the
    // trailer stands in its place.
    let file = signed(TRUSTED, &object[..object.len() - 1]);
    let error = load(&host_with_keys(), &file, "p").expect_err("the file is cut off");
    assert!(
        matches!(
            &error,
            Error::Patch(error) if matches!(error.reason, PatchReason::Malformed { .. })
        ),
        "{error}"
    );
    load(&host_with_keys(), &signed(TRUSTED, &object), "p").expect("loads");
}
