//! The suite of [`Arch`].

use crate::addr::CodeAddr;
use crate::port::{Arch, Code, Intruder, OutOfReach};

/// Where the suite's sites stand: high enough that every target below has room, aligned for any
/// instruction.
const AT: CodeAddr = CodeAddr::new(1 << 46);

/// Checks an implementation of [`Arch`].
///
/// `entries` are unpatched entries as compilers emit them, one for each form that `A` recognises,
/// each just long enough to be recognised: with the bytes that stay and the bytes that are
/// rewritten, and nothing of a body. `breakpoint` is the instruction that debuggers write.
///
/// # Panics
///
/// If the implementation breaks the contract; the message says where.
pub fn check<A: Arch>(entries: &[&[u8]], breakpoint: &[u8]) {
    assert!(
        !entries.is_empty(),
        "at least one form of entry is needed to check anything"
    );
    for bytes in entries {
        check_entry::<A>(bytes, breakpoint);
    }
    for nothing in [&[][..], &[0; 64], &[0xff; 64]] {
        assert_eq!(A::entry(AT, nothing), None, "{nothing:x?} is no entry");
        assert_eq!(
            A::intruder(AT, nothing),
            None,
            "{nothing:x?} is nothing that is known"
        );
    }
    for len in entries
        .iter()
        .filter_map(|bytes| A::entry(AT, bytes))
        .map(|entry| entry.len)
    {
        check_jump::<A>(len);
    }
    assert!(A::SLOT.is_power_of_two(), "SLOT is {}", A::SLOT);
    assert!(
        A::SLOT <= Code::new().capacity() as u64,
        "SLOT is {}, but code that long cannot be said",
        A::SLOT
    );
    check_long_way(
        |target| Some(in_slot::<A>(A::thunk(AT, 0x1234, target))),
        "thunks to different stubs",
    );
    check_long_way(
        |target| Some(in_slot::<A>(A::thunk(AT, target.get(), AT))),
        "thunks with different arguments",
    );
    check_long_way(
        |target| Some(in_slot::<A>(A::veneer(AT, target))),
        "veneers to different targets",
    );
    check_long_way(
        |target| Some(in_slot::<A>(A::call_veneer(AT, target))),
        "veneers for calls to different targets",
    );
}

fn in_slot<A: Arch>(code: Code) -> Code {
    assert!(
        code.len() as u64 <= A::SLOT,
        "{code:x?} does not fit into SLOT"
    );
    code
}

fn check_entry<A: Arch>(bytes: &[u8], breakpoint: &[u8]) {
    let entry = A::entry(AT, bytes).unwrap_or_else(|| panic!("{bytes:x?} is not recognised"));
    let (skip, len) = (usize::from(entry.skip), usize::from(entry.len));
    assert!(len > 0, "{entry:?}: there must be something to rewrite");
    assert!(
        entry.resume >= entry.len,
        "{entry:?}: the body begins behind the rewritten bytes"
    );
    assert!(
        skip + len <= A::MAX_ENTRY,
        "{entry:?} does not fit into MAX_ENTRY"
    );
    assert!(
        skip + usize::from(entry.resume) <= bytes.len(),
        "{entry:?} reaches behind {bytes:x?}"
    );

    // A body behind it changes nothing, and what is cut off is not part of it.
    let mut longer = [0xff; 128];
    let room = longer
        .get_mut(..bytes.len())
        .expect("no entry is that long");
    room.copy_from_slice(bytes);
    assert_eq!(A::entry(AT, &longer), Some(entry), "with a body behind it");
    for cut in 0..skip + len {
        let found = A::entry(AT, &bytes[..cut]);
        assert!(
            found.is_none_or(|entry| usize::from(entry.skip) + usize::from(entry.resume) <= cut),
            "{bytes:x?} cut off after {cut} bytes: {found:?}"
        );
    }

    // Patched, it is no unpatched entry.
    let place = AT.wrapping_add(skip as u64);
    for to in [place.wrapping_add(0x1000), place.wrapping_sub(0x1000)] {
        let jump = A::jump(place, to, entry.len).expect("a page is within reach");
        longer[skip..skip + len].copy_from_slice(&jump);
        assert_eq!(A::entry(AT, &longer), None, "{longer:x?} holds a jump");
        let found = A::intruder(AT, &longer);
        assert_eq!(
            found,
            Some(Intruder::Jump {
                at: place,
                to: Some(to)
            }),
            "{longer:x?} holds a jump"
        );
    }

    // Nor is it with a breakpoint at any instruction that would be rewritten.
    let places = if entry.split { len } else { 1 };
    for offset in (skip..skip + places).step_by(breakpoint.len()) {
        let mut trapped = longer;
        trapped[..bytes.len()].copy_from_slice(bytes);
        assert_eq!(
            A::intruder(AT, &trapped),
            None,
            "{trapped:x?} is as it was built"
        );
        trapped[offset..offset + breakpoint.len()].copy_from_slice(breakpoint);
        assert_eq!(
            A::entry(AT, &trapped),
            None,
            "{trapped:x?} holds a breakpoint"
        );
        let found = A::intruder(AT, &trapped);
        let at = AT.wrapping_add(offset as u64);
        assert_eq!(
            found,
            Some(Intruder::Breakpoint { at }),
            "{trapped:x?} holds a breakpoint"
        );
    }
}

fn check_jump<A: Arch>(len: u8) {
    // The edges of what is promised to be within reach.
    let reach = A::REACH & !0xf;
    for to in [AT, AT.wrapping_add(reach), AT.wrapping_sub(reach)] {
        let code = A::jump(AT, to, len)
            .unwrap_or_else(|error| panic!("REACH is {:#x}, but {error}", A::REACH));
        assert_eq!(code.len(), usize::from(len), "a jump from {AT} to {to}");
    }
    // Further away, a jump may be refused but not cut off.
    check_long_way(
        |to| match A::jump(AT, to, len) {
            Ok(code) => Some(code),
            Err(error) => {
                assert_eq!(error, OutOfReach { from: AT, to });
                assert!(
                    AT.distance_to(to).unsigned_abs() > A::REACH,
                    "{error}, but REACH is {:#x}",
                    A::REACH
                );
                None
            }
        },
        "jumps to different targets",
    );
}

/// Different targets, near and far, never have the same code: nothing of an address may get lost.
fn check_long_way(encode: impl Fn(CodeAddr) -> Option<Code>, what: &str) {
    let targets = || (4..47).flat_map(|bit| [AT.wrapping_add(1 << bit), AT.wrapping_sub(1 << bit)]);
    for (index, target) in targets().enumerate() {
        let Some(code) = encode(target) else { continue };
        assert!(!code.is_empty(), "{what}: no code for {target}");
        for other in targets().skip(index + 1) {
            assert_ne!(
                encode(other).as_ref(),
                Some(&code),
                "{what}, {target} and {other}, must differ"
            );
        }
    }
}
