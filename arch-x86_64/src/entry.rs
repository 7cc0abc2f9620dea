//! Instructions as bytes: patchable entries, jumps, thunks and veneers.
//!
//! Answers to the kernel's `arch/x86/kernel/ftrace.c`, without its state: encodings only.
#![deny(unsafe_code)]

use crate::jumps::jumps;
use crate::opcodes::{
    CALL, ENDBR64, INT3, JMP, JMP_MEMORY, JMP_NEXT_QUAD, JMP_SHORT, MOVABS_R11, NOP,
};
use klp_core::addr::CodeAddr;
use klp_core::port::{Arch, Code, Entry, Intruder, OutOfReach};

/// The x86-64 processor: [`Arch`] and [`Relocator`](klp_core::port::Relocator).
///
/// # Entries that are recognised
///
/// At the address looked at, or behind an `endbr64` there:
///
/// * one NOP of 5 to 15 bytes (`0f 1f 44 00 XX` and longer): GCC `-mnop-mcount`; LLVM and rustc for
///   patchable entries
/// * five or more `90`: GCC `-fpatchable-function-entry=N`
/// * such a pad in which five `90` have become one NOP, as the engine leaves it
///
/// The jump takes the first five bytes of the NOP. Of the `90`s it takes, if there are enough, five
/// that lie in one aligned word of eight bytes: such a word is stored and fetched at once (AMD64
/// APM volume 2, 7.6.1, "Cache Coherency and Cross-Modifying Code"). Failing that, five in one
/// line of the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct X86_64;

/// Bytes of a `jmp rel32`.
const JMP_LEN: usize = 5;
/// Bytes of a word that is stored and fetched at once.
const WORD: u64 = 8;
/// Bytes of a line of the cache.
const LINE: u64 = 64;
/// A NOP as long as a jump.
const NOP_QUAD: [u8; JMP_LEN] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
/// No instruction is longer.
const MAX_INSN_LEN: usize = 15;

// SAFETY: encodings as the processor's manuals have them; what is not understood counts as a jump
// to anywhere.
#[allow(unsafe_code, reason = "an unsafe trait; all within is safe")]
unsafe impl Arch for X86_64 {
    /// An `endbr64` and as many bytes of pad as an [`Entry`] is looked for in.
    const MAX_ENTRY: usize = 32;

    const SLOT: u64 = 32;

    /// 2 GiB, less the jump itself and what an instruction around a field of 32 bits takes.
    const REACH: u64 = (1 << 31) - 16;

    /// `int3`.
    const FILL: u8 = 0xcc;

    fn entry(at: CodeAddr, bytes: &[u8]) -> Option<Entry> {
        let bytes = bytes.get(..Self::MAX_ENTRY).unwrap_or(bytes);
        let (skip, pad) = match bytes.strip_prefix(&ENDBR64) {
            Some(pad) => (ENDBR64.len(), pad),
            None => (0, bytes),
        };
        let singles = pad.iter().take_while(|&&byte| byte == NOP).count();
        let (first, end, split) = match long_nop(pad) {
            Some(len) if len >= JMP_LEN => (0, len, false),
            None if singles > 0 && pad[singles..].starts_with(&NOP_QUAD) => {
                (singles, singles + JMP_LEN, false)
            }
            None if singles >= JMP_LEN => {
                let fits = |first: &usize, unit: u64| {
                    let offset = at.wrapping_add((skip + first) as u64).get() % unit;
                    offset + JMP_LEN as u64 <= unit
                };
                let mut places = 0..=singles - JMP_LEN;
                let in_word = places.clone().find(|first| fits(first, WORD));
                let first = in_word.or_else(|| places.find(|first| fits(first, LINE)));
                (first.unwrap_or(0), singles, true)
            }
            _ => return None,
        };
        // All of them are at most MAX_ENTRY.
        Some(Entry {
            skip: (skip + first) as u8,
            len: JMP_LEN as u8,
            resume: (end - first) as u8,
            split,
        })
    }

    /// Looks behind an `endbr64` and single-byte NOPs. A jump through memory tells where it leads
    /// if the address stands within `bytes`, as in a [`veneer`](Arch::veneer).
    fn intruder(at: CodeAddr, bytes: &[u8]) -> Option<Intruder> {
        let pad = bytes.strip_prefix(&ENDBR64).unwrap_or(bytes);
        let code = &pad[pad.iter().take_while(|&&byte| byte == NOP).count()..];
        let at = at.wrapping_add((bytes.len() - code.len()) as u64);
        let from = |len: u64, distance: i64| {
            CodeAddr::new(at.wrapping_add(len).get().wrapping_add_signed(distance))
        };
        let rel32 = || Some(i32::from_le_bytes(code.get(1..5)?.try_into().ok()?).into());
        match *code.first()? {
            INT3 => Some(Intruder::Breakpoint { at }),
            JMP => Some(Intruder::Jump {
                at,
                to: Some(from(5, rel32()?)),
            }),
            CALL => Some(Intruder::Call {
                at,
                to: from(5, rel32()?),
            }),
            JMP_SHORT => {
                let rel8 = i8::from_le_bytes([*code.get(1)?]);
                Some(Intruder::Jump {
                    at,
                    to: Some(from(2, rel8.into())),
                })
            }
            _ => {
                let memory = code.strip_prefix(&JMP_MEMORY)?;
                let disp32 = i32::from_le_bytes(memory.get(..4)?.try_into().ok()?);
                let quad = usize::try_from(disp32)
                    .ok()
                    .and_then(|disp| memory.get(4..)?.get(disp..)?.get(..8));
                let to = quad.and_then(|quad| {
                    Some(CodeAddr::new(u64::from_le_bytes(quad.try_into().ok()?)))
                });
                Some(Intruder::Jump { at, to })
            }
        }
    }

    fn nop(len: u8) -> Option<Code> {
        (usize::from(len) == JMP_LEN).then(|| Code::from_iter(NOP_QUAD))
    }

    /// `len` is one that [`entry`](Arch::entry) gave; no jump is shorter than 5 bytes, and a
    /// shorter one reaches nothing.
    fn jump(at: CodeAddr, to: CodeAddr, len: u8) -> Result<Code, OutOfReach> {
        let out_of_reach = OutOfReach { from: at, to };
        let distance = at.wrapping_add(JMP_LEN as u64).distance_to(to);
        let rel32 = i32::try_from(distance).map_err(|_| out_of_reach)?;
        let mut code = code(&[&[JMP], &rel32.to_le_bytes()]);
        if usize::from(len) < code.len() {
            return Err(out_of_reach);
        }
        code.resize(len.into(), INT3).map_err(|()| out_of_reach)?;
        Ok(code)
    }

    /// `movabs $arg, %r11`, then as [`veneer`](Arch::veneer); 24 bytes.
    ///
    /// `r11` is the one register that is free at a function's entry (psABI 3.2.3, "Register
    /// Usage"): `rdi`, `rsi`, `rdx`, `rcx`, `r8`, `r9` and `xmm0`–`xmm7` carry arguments, `al` the
    /// number of vector registers of a variadic call, `r10` the static chain, and the others belong
    /// to the caller.
    fn thunk(_at: CodeAddr, arg: u64, stub: CodeAddr) -> Code {
        code(&[
            &MOVABS_R11,
            &arg.to_le_bytes(),
            &JMP_NEXT_QUAD,
            &stub.get().to_le_bytes(),
        ])
    }

    /// `jmp *0(%rip)` and the address; 14 bytes. Needs no register.
    fn veneer(_at: CodeAddr, to: CodeAddr) -> Code {
        code(&[&JMP_NEXT_QUAD, &to.get().to_le_bytes()])
    }

    /// Decodes one instruction after the other. Beside jumps through registers and memory, `None`
    /// stands for far jumps, for branches that Intel's and AMD's processors read differently, and
    /// for a return to an address that the instruction before it wrote (a retpoline). A
    /// [`veneer`](Arch::veneer) tells where it leads.
    fn jumps(at: CodeAddr, code: &[u8], each: &mut dyn FnMut(Option<CodeAddr>)) {
        jumps(at, code, each);
    }
}

fn code(parts: &[&[u8]]) -> Code {
    let mut code = Code::new();
    for part in parts {
        code.extend_from_slice(part)
            .expect("nothing assembled here is longer than 24 bytes");
    }
    code
}

/// The length of the NOP of several bytes that `bytes` begins with (Intel SDM volume 2, "NOP"):
/// prefixes, `0f 1f`, and a memory operand that is never accessed.
fn long_nop(bytes: &[u8]) -> Option<usize> {
    let prefixes = bytes
        .iter()
        .take_while(|&&byte| matches!(byte, 0x66 | 0x2e))
        .count();
    let operand = match bytes.get(prefixes..)? {
        [0x0f, 0x1f, 0x00, ..] => 1,
        [0x0f, 0x1f, 0x40, _, ..] => 2,
        [0x0f, 0x1f, 0x44, 0x00, _, ..] => 3,
        [0x0f, 0x1f, 0x80, _, _, _, _, ..] => 5,
        [0x0f, 0x1f, 0x84, 0x00, _, _, _, _, ..] => 6,
        _ => return None,
    };
    let len = prefixes + 2 + operand;
    (len <= MAX_INSN_LEN).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use klp_arch_tests::code;

    const NOPL: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
    const BODY: [u8; 4] = [0x8d, 0x47, 0x01, 0xc3];

    /// Where functions begin, as compilers align them.
    const AT: CodeAddr = CodeAddr::new(0x40_1000);

    fn entry(parts: &[&[u8]]) -> Option<Entry> {
        X86_64::entry(AT, &parts.concat())
    }

    #[test]
    fn conforms() {
        let pads: [&[u8]; 7] = [
            &NOPL,
            &[0x0f, 0x1f, 0x44, 0x00, 0x08],
            &[NOP; 5],
            &[NOP; 16],
            &[0xf3, 0x0f, 0x1e, 0xfa, NOP, NOP, NOP, NOP, NOP],
            &[NOP, NOP, 0x0f, 0x1f, 0x44, 0, 0],
            &[
                0x66, 0x66, 0x66, 0x66, 0x66, 0x2e, 0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x02, 0x00,
                0x00,
            ],
        ];
        klp_core::conformance::arch::check::<X86_64>(&pads, &[INT3]);
    }

    #[test]
    fn what_compilers_emit_is_recognised() {
        let one = |resume| {
            Some(Entry {
                skip: 0,
                len: 5,
                resume,
                split: false,
            })
        };
        // gcc -mnop-mcount; rustc -Zpatchable-function-entry=5, =6, =9, =10, =16.
        assert_eq!(entry(&[&NOPL, &BODY]), one(5));
        assert_eq!(entry(&[&[0x0f, 0x1f, 0x44, 0, 8], &BODY]), one(5));
        assert_eq!(entry(&[&[0x66, 0x0f, 0x1f, 0x44, 0, 0], &BODY]), one(6));
        assert_eq!(
            entry(&[&[0x66, 0x0f, 0x1f, 0x84, 0, 0, 2, 0, 0], &BODY]),
            one(9)
        );
        assert_eq!(
            entry(&[&[0x2e, 0x66, 0x0f, 0x1f, 0x84, 0, 0, 2, 0, 0], &BODY]),
            one(10)
        );
        let mut sixteen = [0x66; 16].to_vec();
        sixteen[5] = 0x2e;
        sixteen[7..].copy_from_slice(&[0x0f, 0x1f, 0x84, 0, 0, 2, 0, 0, NOP]);
        assert_eq!(entry(&[&sixteen, &BODY]), one(15));
        // gcc -fpatchable-function-entry=5 and =16, and with -fcf-protection.
        let pad = |skip, resume| {
            Some(Entry {
                skip,
                len: 5,
                resume,
                split: true,
            })
        };
        assert_eq!(entry(&[&[NOP; 5], &BODY]), pad(0, 5));
        assert_eq!(entry(&[&[NOP; 16], &BODY]), pad(0, 16));
        assert_eq!(entry(&[&ENDBR64, &[NOP; 5], &BODY]), pad(4, 5));
        assert_eq!(entry(&[&ENDBR64, &[NOP; 16], &BODY]), pad(8, 12));
        assert_eq!(
            entry(&[&ENDBR64, &NOPL, &BODY]),
            Some(Entry {
                skip: 4,
                ..one(5).expect("an entry")
            })
        );
        // As the engine leaves pads of single bytes.
        assert_eq!(
            entry(&[&ENDBR64, &[NOP; 4], &NOPL, &[NOP; 7], &BODY]),
            Some(Entry {
                skip: 8,
                ..one(5).expect("an entry")
            })
        );
        assert_eq!(
            entry(&[&[NOP; 8], &NOPL, &BODY]),
            Some(Entry {
                skip: 8,
                ..one(5).expect("an entry")
            })
        );
    }

    #[test]
    fn a_place_is_chosen_that_one_store_can_change() {
        let place = |at: u64, nops: usize| {
            let bytes = [NOP; 32];
            let found = X86_64::entry(CodeAddr::new(at), &bytes[..nops]).expect("a pad");
            assert_eq!(u64::from(found.skip + found.resume), nops as u64);
            at + u64::from(found.skip)
        };
        assert_eq!(place(0x1000, 16), 0x1000);
        assert_eq!(place(0x1003, 16), 0x1003);
        assert_eq!(place(0x1004, 16), 0x1008, "in one word");
        assert_eq!(place(0x1004, 8), 0x1004, "there is none, but in one line");
        assert_eq!(place(0x103d, 16), 0x1040);
        assert_eq!(place(0x103e, 6), 0x103e, "there is none");
    }

    #[test]
    fn anything_else_is_not() {
        assert_eq!(entry(&[]), None);
        assert_eq!(entry(&[&BODY]), None);
        assert_eq!(entry(&[&ENDBR64, &BODY]), None);
        assert_eq!(entry(&[&[NOP; 4], &BODY]), None);
        assert_eq!(
            entry(&[&[0x0f, 0x1f, 0x40, 0], &BODY]),
            None,
            "four bytes are too few"
        );
        assert_eq!(entry(&[&NOPL[..4]]), None, "cut off");
        assert_eq!(
            entry(&[&[0x0f, 0x1f, 0x44, 0x24, 0], &BODY]),
            None,
            "no compiler's NOP"
        );
        assert_eq!(
            entry(&[&[0xe8, 1, 2, 3, 4], &BODY]),
            None,
            "a call of mcount"
        );
        assert_eq!(
            entry(&[&[INT3], &NOPL[1..], &BODY]),
            None,
            "a breakpoint is set"
        );
        let mut too_long = [0x66; 16].to_vec();
        too_long.extend_from_slice(&NOPL);
        assert_eq!(entry(&[&too_long]), None, "no instruction has 21 bytes");
    }

    #[test]
    fn intruders_are_recognised() {
        let at = CodeAddr::new(0x40_1000);
        let found = |parts: &[&[u8]]| X86_64::intruder(at, &parts.concat());
        let at_offset = |offset| at.wrapping_add(offset);
        let jump = |offset, to| {
            Some(Intruder::Jump {
                at: at_offset(offset),
                to: Some(CodeAddr::new(to)),
            })
        };
        assert_eq!(
            found(&[&[INT3], &NOPL[1..], &BODY]),
            Some(Intruder::Breakpoint { at })
        );
        assert_eq!(
            found(&[&ENDBR64, &[NOP, NOP, INT3]]),
            Some(Intruder::Breakpoint { at: at_offset(6) })
        );
        assert_eq!(
            found(&[&[INT3], &ENDBR64[1..]]),
            Some(Intruder::Breakpoint { at })
        );
        assert_eq!(found(&[&[JMP, 0xfb, 0xff, 0xff, 0xff]]), jump(0, 0x40_1000));
        assert_eq!(found(&[&[NOP, JMP_SHORT, 0x10]]), jump(1, 0x40_1013));
        assert_eq!(found(&[&[JMP_SHORT, 0xfe]]), jump(0, 0x40_1000));
        let call = Intruder::Call {
            at,
            to: CodeAddr::new(0x40_2005),
        };
        assert_eq!(found(&[&[CALL, 0, 0x10, 0, 0], &BODY]), Some(call));
        let quad = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
        assert_eq!(
            found(&[&JMP_NEXT_QUAD, &quad]),
            jump(0, 0x1122_3344_5566_7788)
        );
        assert_eq!(
            found(&[&JMP_MEMORY, &[2, 0, 0, 0, 0, 0], &quad]),
            jump(0, 0x1122_3344_5566_7788)
        );
        let elsewhere = Some(Intruder::Jump { at, to: None });
        assert_eq!(found(&[&JMP_NEXT_QUAD, &quad[..7]]), elsewhere, "cut off");
        assert_eq!(
            found(&[&JMP_MEMORY, &[0xff; 4], &quad]),
            elsewhere,
            "in front of it"
        );
    }

    #[test]
    fn what_is_no_intruder_is_none() {
        let at = CodeAddr::new(0x40_1000);
        let cases: [&[u8]; 7] = [
            &[],
            &NOPL,
            &[NOP; 16],
            &ENDBR64,
            &BODY,
            &[JMP, 0, 0, 0],
            &[JMP_MEMORY[0], JMP_MEMORY[1], 0],
        ];
        for bytes in cases {
            assert_eq!(X86_64::intruder(at, bytes), None, "{bytes:x?}");
        }
    }

    #[test]
    fn a_long_pad_is_looked_at_in_part() {
        let found = entry(&[&[NOP; 300]]).expect("a pad");
        assert_eq!(usize::from(found.resume), X86_64::MAX_ENTRY);
    }

    #[test]
    fn encodings_are_the_manuals() {
        let at = CodeAddr::new(0x40_1000);
        let jump = |to, len| {
            X86_64::jump(at, CodeAddr::new(to), len)
                .expect("in reach")
                .to_vec()
        };
        assert_eq!(jump(0x40_1005, 5), [0xe9, 0, 0, 0, 0]);
        assert_eq!(jump(0x40_1000, 5), [0xe9, 0xfb, 0xff, 0xff, 0xff]);
        assert_eq!(jump(0x40_1105, 8), [0xe9, 0, 1, 0, 0, 0xcc, 0xcc, 0xcc]);
        let far = CodeAddr::new(0x1122_3344_5566_7788);
        let quad = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
        assert_eq!(
            X86_64::veneer(at, far).to_vec(),
            [&[0xff, 0x25, 0, 0, 0, 0][..], &quad].concat()
        );
        let thunk: Vec<u8> = [
            &[0x49, 0xbb, 7, 0, 0, 0, 0, 0, 0, 0, 0xff, 0x25, 0, 0, 0, 0][..],
            &quad,
        ]
        .concat();
        assert_eq!(X86_64::thunk(at, 7, far).to_vec(), thunk);
    }

    #[test]
    fn the_edges_of_reach() {
        let (up, down) = ((1 << 31) + 4, (1 << 31) - 5);
        code::the_edges_of_reach::<X86_64>(5, up, down, 1);
        let at = CodeAddr::new(0x7000_0000_0000);
        let jump = |to| X86_64::jump(at, to, 5).expect("in reach").to_vec();
        assert_eq!(jump(at.wrapping_add(up)), [0xe9, 0xff, 0xff, 0xff, 0x7f]);
        assert_eq!(jump(at.wrapping_sub(down)), [0xe9, 0, 0, 0, 0x80]);
    }
}
