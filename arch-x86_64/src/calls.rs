//! What a call called, and where a procedure linkage table leads: bytes in, numbers out.
//!
//! All of it may be used in signal handlers: it allocates nothing and cannot panic.
#![forbid(unsafe_code)]

use crate::opcodes::{CALL, ENDBR64, JMP_MEMORY};
use klp_core::addr::CodeAddr;

/// Bytes of a `call rel32`.
pub const CALL_LEN: usize = 5;

/// The target of the direct call that ends at `return_address`; `before` are the bytes that end
/// there. `None` if they are none.
///
/// Instructions cannot be read backwards: bytes inside of an indirect call, or of what stands
/// before it, may look like a direct one. Then the answer is an address that has nothing to do with
/// it, where hardly anything will be.
#[must_use]
pub fn called(return_address: CodeAddr, before: [u8; CALL_LEN]) -> Option<CodeAddr> {
    let [opcode, rel32 @ ..] = before;
    (opcode == CALL).then(|| relative(return_address, rel32))
}

/// Bytes of a `call [rip + disp32]`.
pub const SLOT_CALL_LEN: usize = 6;

/// If the call that ends at `return_address` went through memory at a fixed address, as calls of
/// other objects' functions do that use no procedure linkage table: the address of the eight bytes
/// that say where; `before` are the bytes that end there. What stands in these eight bytes now is
/// what was called only if they never change.
#[must_use]
pub fn called_slot(return_address: CodeAddr, before: [u8; SLOT_CALL_LEN]) -> Option<u64> {
    let [0xff, 0x15, rel32 @ ..] = before else {
        return None;
    };
    Some(relative(return_address, rel32).get())
}

/// Most bytes that [`linkage_slot`] wants to see.
pub const MAX_LINKAGE: usize = ENDBR64.len() + 1 + JMP_MEMORY.len() + 4;

/// If a jump through memory stands at `at`, as in an entry of a procedure linkage table (psABI 5.2,
/// "Procedure Linkage Table"): the address of the eight bytes that say where it leads. An `endbr64`
/// and a prefix `bnd` or `notrack` may stand before the jump.
#[must_use]
pub fn linkage_slot(at: CodeAddr, code: &[u8]) -> Option<u64> {
    const BND: u8 = 0xf2;
    const NOTRACK: u8 = 0x3e;
    let jump = code.strip_prefix(&ENDBR64).unwrap_or(code);
    let jump = match jump {
        [BND | NOTRACK, jump @ ..] => jump,
        _ => jump,
    };
    let distance = jump.strip_prefix(&JMP_MEMORY)?;
    let end = at.wrapping_add((code.len() - distance.len() + 4) as u64);
    Some(relative(end, *distance.first_chunk()?).get())
}

/// Where `rel32` leads to, in an instruction that ends at `end`.
fn relative(end: CodeAddr, rel32: [u8; 4]) -> CodeAddr {
    CodeAddr::new(
        end.get()
            .wrapping_add_signed(i32::from_le_bytes(rel32).into()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: CodeAddr = CodeAddr::new(0x40_1000);

    #[test]
    fn direct_calls() {
        let called = |return_address, before| {
            called(CodeAddr::new(return_address), before).map(CodeAddr::get)
        };
        assert_eq!(
            called(0x40_1000, [0xe8, 0x00, 0x10, 0x00, 0x00]),
            Some(0x40_2000)
        );
        assert_eq!(
            called(0x40_1000, [0xe8, 0xfb, 0xff, 0xff, 0xff]),
            Some(0x40_0ffb)
        );
        assert_eq!(
            called(0, [0xe8, 0xff, 0xff, 0xff, 0xff]),
            Some(u64::MAX),
            "addresses wrap"
        );
        // call rax; call [rip + 0x1000]; call [rax + 0x1000]; jmp rel32
        for other in [
            [0x90, 0x90, 0x90, 0xff, 0xd0],
            [0x15, 0x00, 0x10, 0x00, 0x00],
            [0x90, 0x00, 0x10, 0x00, 0x00],
            [0xe9, 0x00, 0x10, 0x00, 0x00],
        ] {
            assert_eq!(called(0x40_1000, other), None, "{other:x?}");
        }
    }

    #[test]
    fn calls_through_memory() {
        let slot = |before| called_slot(AT, before);
        assert_eq!(slot([0xff, 0x15, 0x00, 0x10, 0x00, 0x00]), Some(0x40_2000));
        assert_eq!(slot([0xff, 0x15, 0xf8, 0xff, 0xff, 0xff]), Some(0x40_0ff8));
        // call rel32; jmp [rip + disp32]; call [rax + disp32]
        for first in [[0x90, 0xe8], [0xff, 0x25], [0xff, 0x90]] {
            assert_eq!(
                slot([first[0], first[1], 0, 0x10, 0, 0]),
                None,
                "{first:x?}"
            );
        }
    }

    #[test]
    fn entries_of_linkage_tables() {
        let jump = [0xff, 0x25, 0x00, 0x10, 0x00, 0x00];
        let endbr = [0xf3, 0x0f, 0x1e, 0xfa];
        let cases: [(&[&[u8]], u64); 5] = [
            (&[&jump, &[0x66, 0x90]], 0x40_2006),       // -z now
            (&[&jump, &[0x68, 0, 0, 0, 0]], 0x40_2006), // lazy
            (&[&[0xf2], &jump], 0x40_2007),
            (&[&endbr, &jump, &[0x66, 0x0f, 0x1f, 0x44, 0, 0]], 0x40_200a),
            (
                &[&endbr, &[0xf2], &jump, &[0x0f, 0x1f, 0x44, 0, 0]],
                0x40_200b,
            ),
        ];
        for (parts, slot) in cases {
            assert_eq!(linkage_slot(AT, &parts.concat()), Some(slot), "{parts:x?}");
        }
        assert_eq!(
            linkage_slot(AT, &[0xff, 0x25, 0xfa, 0xff, 0xff, 0xff]),
            Some(0x40_1000),
            "backwards"
        );
        let longest = [&endbr[..], &[0xf2], &jump].concat();
        assert_eq!(longest.len(), MAX_LINKAGE);
        for cut in 0..longest.len() {
            assert_eq!(
                linkage_slot(AT, &longest[..cut]),
                None,
                "cut off after {cut} bytes"
            );
        }
        for other in [
            &[0xff, 0xe0, 0, 0, 0, 0, 0, 0][..],
            &[0xe9, 0, 0, 0, 0],
            &endbr,
            &[0xff, 0x15, 0, 0, 0, 0],
        ] {
            assert_eq!(linkage_slot(AT, other), None, "{other:x?}");
        }
    }
}
