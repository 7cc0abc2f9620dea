//! Relocators: a field is changed as a whole and alone, or not at all; and what clears it makes it
//! what the object file had.

use crate::on_machine;
use klp_core::addr::CodeAddr;
use klp_core::port::{Around, Owner, RelocError, Relocation, Relocator, Support, Via};
use libfuzzer_sys::arbitrary::{Result, Unstructured};

/// Checks one input: a byte for the machine, then a relocation and the bytes at its place.
pub fn check(input: &[u8]) {
    if let [machine, rest @ ..] = input {
        // Too short: nothing to check.
        let _ = on_machine!(machine, check_on(Unstructured::new(rest)));
    }
}

fn check_on<R: Relocator>(mut input: Unstructured<'_>) -> Result<()> {
    let kind: u32 = input.arbitrary()?;
    // Of others, there is not much to say.
    let kind = if kind & 0x8000_0000 == 0 {
        kind & 0x7ff
    } else {
        kind
    };
    let place: u64 = input.arbitrary()?;
    let mut near = || Ok(place.wrapping_add_signed(i64::from(input.arbitrary::<i32>()?)));
    let (symbol, toc, pair) = (near()?, near()?, near()?);
    let far: u64 = input.arbitrary()?;
    let choice: u8 = input.arbitrary()?;
    let is = |bit: u8| choice >> bit & 1 == 1;
    let reloc = Relocation {
        kind,
        place: CodeAddr::new(place),
        symbol: if is(0) { symbol } else { far },
        addend: if is(1) {
            input.arbitrary()?
        } else {
            input.arbitrary::<i16>()?.into()
        },
        via: match (R::support(kind), is(2)) {
            (Some(support), _) if support.has_slot() => Via::Slot,
            (Some(Support::Veneer), true) => Via::Veneer,
            _ => Via::Direct,
        },
        around: Around {
            owner: if is(3) {
                Owner::System
            } else {
                Owner::Image {
                    other: choice & 0xe0,
                }
            },
            toc: is(4).then_some(CodeAddr::new(toc)),
            pair: is(5).then_some(CodeAddr::new(pair)),
        },
    };
    check_reloc::<R>(&reloc, input.take_rest());
    Ok(())
}

/// Bytes of memory, with others around them that must not change.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Memory {
    bytes: [u8; 48],
    len: usize,
}

impl Memory {
    const FROM: usize = 16;

    fn new(contents: &[u8]) -> Self {
        let mut memory = Self {
            bytes: [0xa5; 48],
            len: contents.len().min(16),
        };
        memory
            .field()
            .copy_from_slice(&contents[..contents.len().min(16)]);
        memory
    }

    fn field(&mut self) -> &mut [u8] {
        &mut self.bytes[Self::FROM..Self::FROM + self.len]
    }
}

fn check_reloc<R: Relocator>(reloc: &Relocation, contents: &[u8]) {
    let kind = reloc.kind;
    let before = Memory::new(contents);
    let (mut applied, mut cleared) = (before.clone(), before.clone());
    let known = R::support(kind).is_some();
    let result = R::apply(reloc, applied.field());
    let is_cleared = R::clear(kind, cleared.field());
    let unsupported = RelocError::Unsupported { kind };
    assert_eq!(result == Err(unsupported), !known);
    assert_eq!(is_cleared == Err(unsupported), !known);
    assert!(!R::uses_toc(kind) && !R::completes(kind) || known);
    // Whatever happens, it happens in the first bytes of the field.
    let far = (Memory::FROM + R::MAX_LEN).min(before.bytes.len());
    for changed in [&applied, &cleared] {
        assert_eq!(changed.bytes[..Memory::FROM], before.bytes[..Memory::FROM]);
        assert_eq!(changed.bytes[far..], before.bytes[far..]);
    }
    if is_cleared.is_err() {
        assert_eq!(cleared, before, "a refused relocation must not write");
    } else {
        let mut again = cleared.clone();
        assert_eq!(R::clear(kind, again.field()), Ok(()));
        assert_eq!(again, cleared, "what is clear stays as it is");
    }
    if result.is_err() {
        assert_eq!(applied, before, "a refused relocation must not write");
        return;
    }
    assert_eq!(is_cleared, Ok(()), "what can be applied can be cleared");
    let mut again = applied.clone();
    let twice = R::apply(reloc, again.field());
    assert!(
        twice.is_ok() || applied != before,
        "what changes nothing can be repeated"
    );
    assert_eq!(again, applied, "it is applied once");
    let mut undone = applied.clone();
    assert_eq!(R::clear(kind, undone.field()), Ok(()));
    assert_eq!(undone, cleared, "clear undoes apply");
    assert_eq!(R::apply(reloc, undone.field()), Ok(()));
    assert_eq!(undone, applied, "applied to what is clear, it is the same");
}
