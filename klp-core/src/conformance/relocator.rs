//! The suite of [`Relocator`].

use crate::addr::CodeAddr;
use crate::port::{RelocError, Relocation, Relocator};

/// What a porter says of one relocation type that is supported.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The ELF relocation type.
    pub kind: u32,
    /// How many bytes it needs at its place.
    pub len: usize,
    /// Whether it is refused if the symbol is 2^46 bytes away from the place and from address 0.
    /// Types that hold a whole address, or only its lowest bits, are not.
    pub limited: bool,
}

/// Low enough that symbols near it also fit a field of 32 bits; aligned for any instruction.
const PLACE: CodeAddr = CodeAddr::new(0x4000_0000);

/// Bytes at a place before anything is done: no field of them is empty.
const BEFORE: [u8; 32] = [0xa5; 32];

/// Checks an implementation of [`Relocator`] with the types that it supports, and with some that it
/// does not.
///
/// # Panics
///
/// If the implementation breaks the contract; the message says where.
pub fn check<R: Relocator>(known: &[Known], unknown: &[u32]) {
    assert!(
        !known.is_empty(),
        "at least one type is needed to check anything"
    );
    for known in known {
        assert!(R::support(known.kind).is_some(), "{known:?} is supported");
        assert!(
            known.len <= R::MAX_LEN,
            "{known:?}: MAX_LEN is {}",
            R::MAX_LEN
        );
        check_round_trip::<R>(known);
        check_short_buffers::<R>(known);
        check_range::<R>(known);
    }
    for &kind in unknown {
        let mut bytes = BEFORE;
        assert_eq!(R::support(kind), None, "type {kind}");
        assert_eq!(
            R::apply(&Relocation::new(kind, PLACE, PLACE.get(), 0), &mut bytes),
            Err(RelocError::Unsupported { kind })
        );
        assert_eq!(
            R::clear(kind, &mut bytes),
            Err(RelocError::Unsupported { kind })
        );
        assert_eq!(bytes, BEFORE, "type {kind} is refused and must not write");
    }
}

/// The bytes at a place as an object file has them.
fn cleared<R: Relocator>(known: &Known) -> [u8; 32] {
    let mut bytes = BEFORE;
    R::clear(known.kind, &mut bytes).unwrap_or_else(|error| panic!("clear: {error}"));
    assert_eq!(
        bytes[known.len..],
        BEFORE[known.len..],
        "{known:?}: clear wrote behind the field"
    );
    bytes
}

fn check_round_trip<R: Relocator>(known: &Known) {
    let clean = cleared::<R>(known);
    let mut changed = false;
    for distance in [0x10, 0x1000, 0x1230, 0x7ff0] {
        let mut bytes = clean;
        R::apply(
            &Relocation::new(known.kind, PLACE, PLACE.get() + distance, 0),
            &mut bytes,
        )
        .unwrap_or_else(|error| panic!("apply, {distance:#x} bytes away: {error}"));
        changed |= bytes != clean;
        assert_eq!(
            bytes[known.len..],
            clean[known.len..],
            "{known:?}: apply wrote behind the field"
        );

        // An addend is no more than a part of the value.
        let mut by_addend = clean;
        R::apply(
            &Relocation::new(known.kind, PLACE, PLACE.get(), distance as i64),
            &mut by_addend,
        )
        .unwrap_or_else(|error| panic!("apply, with {distance:#x} as the addend: {error}"));
        assert_eq!(
            by_addend, bytes,
            "{known:?}: symbol and addend are added up"
        );

        for _ in 0..2 {
            R::clear(known.kind, &mut bytes)
                .unwrap_or_else(|error| panic!("clear after apply: {error}"));
            assert_eq!(bytes, clean, "{known:?}: clear undoes apply");
        }
    }
    assert!(changed, "{known:?}: apply never wrote anything");
}

fn check_short_buffers<R: Relocator>(known: &Known) {
    let clean = cleared::<R>(known);
    for len in 0..known.len {
        let mut bytes = clean;
        let short = &mut bytes[..len];
        let refused = Err(RelocError::BadPlace { kind: known.kind });
        assert_eq!(
            R::apply(
                &Relocation::new(known.kind, PLACE, PLACE.get() + 0x10, 0),
                short
            ),
            refused,
            "{known:?}: {len} bytes"
        );
        assert_eq!(
            R::clear(known.kind, short),
            refused,
            "{known:?}: {len} bytes"
        );
        assert_eq!(
            bytes, clean,
            "{known:?}: a refused relocation must not write"
        );
    }
}

fn check_range<R: Relocator>(known: &Known) {
    let clean = cleared::<R>(known);
    for symbol in [PLACE.get() + (1 << 46), PLACE.get().wrapping_sub(1 << 46)] {
        let mut bytes = clean;
        match R::apply(&Relocation::new(known.kind, PLACE, symbol, 0), &mut bytes) {
            Ok(()) => assert!(!known.limited, "{known:?}: {symbol:#x} is out of range"),
            Err(RelocError::OutOfRange { kind, .. }) => {
                assert!(known.limited, "{known:?}: {symbol:#x} is in range");
                assert_eq!(kind, known.kind);
                assert_eq!(
                    bytes, clean,
                    "{known:?}: a refused relocation must not write"
                );
            }
            Err(other) => panic!("{known:?}: {other}"),
        }
    }
}
