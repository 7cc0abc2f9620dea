//! The keys of this crate as the engine's verifier.

use klp_core::conformance::verifier;
use klp_core::elf::signature;
use klp_core::port::{Distrust, KeyId, Signed, Verifier};
use klp_ed25519::{BadKey, Keys, PublicKey, SecretKey, SignedAlready};

fn key(number: u8) -> SecretKey {
    SecretKey::new([number; 32]).expect("not all zero")
}

fn id(number: u8) -> KeyId {
    key(number).public().expect("a strong key").id()
}

fn keys(numbers: &[u8]) -> Keys {
    let mut keys = Keys::new();
    for number in numbers {
        let public = key(*number).public().expect("a strong key");
        keys.add(public).expect("there is room");
    }
    keys
}

fn signed(number: u8, object: &[u8]) -> Vec<u8> {
    let trailer = key(number).sign(object).expect("it is not signed");
    [object, &trailer].concat()
}

/// As another program would.
fn sign_bytes(number: u8, message: &[u8]) -> [u8; signature::SIGNATURE] {
    let seed = ed25519_compact::Seed::new([number; 32]);
    *ed25519_compact::KeyPair::from_seed(seed)
        .sk
        .sign(message, None)
}

const OBJECT: &[u8] = b"\x7fELF: what it is made of is nothing to a key";

#[test]
fn keys_are_a_verifier() {
    let (file, stranger) = (signed(1, OBJECT), signed(2, OBJECT));
    verifier::check(
        &keys(&[3, 1]),
        &verifier::Known {
            signed: &file,
            says: Signed {
                key: id(1),
                object: OBJECT,
            },
            stranger: (&stranger, id(2)),
            unsigned: OBJECT,
        },
    );
}

#[test]
fn no_keys_trust_nobody() {
    let refused = keys(&[])
        .verify(&signed(1, OBJECT))
        .map(|signed| signed.key);
    assert_eq!(refused, Err(Distrust::UnknownKey(id(1))));
}

/// What each change is called.
#[test]
fn it_says_why_not() {
    let keys = keys(&[1]);
    let why = |file: &[u8]| keys.verify(file).map(|signed| signed.key);
    let file = signed(1, OBJECT);
    let with = |at: usize, byte: u8| {
        let mut file = file.clone();
        file[at] = byte;
        file
    };
    let end = file.len();
    assert_eq!(why(&with(0, b'x')), Err(Distrust::Changed(id(1))));
    assert_eq!(why(&with(end - 17, 0xff)), Err(Distrust::Changed(id(1))));
    assert!(matches!(why(&with(end - 1, 0)), Err(Distrust::Damaged(_))));
    assert!(matches!(why(&file[..end - 9]), Err(Distrust::Damaged(_))));
    // A key that calls itself by another's name.
    let mut other = signed(2, OBJECT);
    let at = OBJECT.len() + signature::MARK.len();
    other[at..at + 32].copy_from_slice(&id(1).0);
    assert_eq!(why(&other), Err(Distrust::Changed(id(1))));
    // Only the object was signed, as other programs would.
    let bare = signature::trailer(id(1), |_| sign_bytes(1, OBJECT));
    let bare = [OBJECT, &bare].concat();
    assert_eq!(why(&bare), Err(Distrust::Changed(id(1))));
    // Signed rightly, and signed rightly once more.
    let again = |opening: &[u8; signature::OPENING]| sign_bytes(1, &[&file, &opening[..]].concat());
    let twice = [&file[..], &signature::trailer(id(1), again)].concat();
    assert_eq!(
        why(&twice),
        Err(Distrust::Damaged("there is more than one"))
    );
    assert_eq!(key(1).sign(&file), Err(SignedAlready));
    assert_eq!(key(1).sign(&file[..end - 1]), Err(SignedAlready));
}

/// RFC 8032, section 5.1.7: S is below the order of the group. Whoever adds the order to it would
/// have a second signature.
#[test]
fn a_signature_has_one_form() {
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut file = signed(1, OBJECT);
    let s = file.len() - signature::MARK.len() - 32;
    let mut carry = 0;
    for (byte, order) in file[s..].iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(order) + carry;
        (*byte, carry) = (sum as u8, sum >> 8);
    }
    assert_eq!(carry, 0, "the sum has room in 32 bytes");
    let refused = keys(&[1]).verify(&file).map(|signed| signed.key);
    assert_eq!(refused, Err(Distrust::Changed(id(1))));
}

/// Points of small order, in every way to write them: a signature for such a key can be made
/// without a secret.
#[test]
fn weak_keys_are_refused() {
    let order_8 = [
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    ];
    let of_order_8 = order_8.map(|hex| {
        let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
        core::array::from_fn(|byte| digits(2 * byte))
    });
    let small = |first: u8, middle: u8, last: u8| {
        let mut bytes = [middle; 32];
        (bytes[0], bytes[31]) = (first, last);
        bytes
    };
    let [first, second] = of_order_8;
    for mut bytes in [
        first,
        second,
        small(0, 0, 0),
        small(1, 0, 0),
        small(0xec, 0xff, 0x7f),
        // Not reduced: p, p + 1.
        small(0xed, 0xff, 0x7f),
        small(0xee, 0xff, 0x7f),
    ] {
        for sign in [0, 0x80] {
            bytes[31] ^= sign;
            assert!(PublicKey::new(bytes).is_err(), "{bytes:02x?}");
        }
    }
    assert_eq!(PublicKey::new(small(1, 0, 0)), Err(BadKey::Weak));
    assert_eq!(PublicKey::new(small(2, 0, 0)), Err(BadKey::NoPoint));
}
