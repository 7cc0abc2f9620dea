//! Where code jumps to.
//!
//! Decoding is `yaxpeax-x86`'s, which needs no memory; this is what its instructions mean to
//! [`Arch::jumps`].
//!
//! [`Arch::jumps`]: klp_core::port::Arch::jumps
#![forbid(unsafe_code)]

use crate::opcodes::JMP_NEXT_QUAD;
use klp_core::addr::CodeAddr;
use yaxpeax_arch::LengthedInstruction;
use yaxpeax_x86::long_mode::{InstDecoder, Instruction, Opcode, Operand, RegSpec};

/// What an instruction does to the order in which code is executed.
enum Flow {
    /// Nothing, or it comes back, or it returns.
    On,
    /// It may jump by so many bytes from its end.
    By(i64),
    /// It jumps, or returns, to where its bytes do not tell.
    Away,
}

/// See [`Arch::jumps`](klp_core::port::Arch::jumps). Behind bytes that are not understood, nothing
/// is looked at.
pub(crate) fn jumps(at: CodeAddr, code: &[u8], each: &mut dyn FnMut(Option<CodeAddr>)) {
    let decoder = InstDecoder::default();
    let (mut rest, mut next) = (code, at);
    // Whether the instruction before wrote the return address.
    let mut own_return = false;
    while !rest.is_empty() {
        if let Some(to) = veneer(rest) {
            each(Some(to));
            (rest, next) = skip(rest, next, VENEER_LEN);
            own_return = false;
            continue;
        }
        let Ok(instruction) = decoder.decode_slice(rest) else {
            let Some(len) = vex_len(rest) else {
                return each(None);
            };
            (rest, next) = skip(rest, next, len);
            own_return = false;
            continue;
        };
        let len = usize::try_from(instruction.len().to_const()).unwrap_or(0);
        if len == 0 || len > rest.len() {
            return each(None);
        }
        (rest, next) = skip(rest, next, len);
        match flow(&instruction, own_return) {
            Flow::On => {}
            Flow::By(distance) => each(Some(CodeAddr::new(
                next.get().wrapping_add_signed(distance),
            ))),
            Flow::Away => each(None),
        }
        own_return = writes_return_address(&instruction);
    }
}

/// The length of the instruction with a VEX prefix that `code` begins with: the decoder lacks some
/// (moves of opmask registers that have 64 bits, AMD's FMA4), and they are regular. None of them
/// jumps, those in the place of the conditional jumps apart (Knights Corner).
///
/// Intel SDM volume 2, section 2.3.5 ("VEX Encoding"); tables show which of them have an
/// immediate.
fn vex_len(code: &[u8]) -> Option<usize> {
    let (map, opcode, prefix) = match *code {
        [0xc5, _, opcode, ..] => (1, opcode, 2),
        [0xc4, map, _, opcode, ..] => (map & 0x1f, opcode, 3),
        _ => return None,
    };
    let immediate = match (map, opcode) {
        (1, 0x80..=0x8f | 0x77) => return None,
        (1, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6) | (3, _) => 1,
        (1 | 2, _) => 0,
        _ => return None,
    };
    let modrm = *code.get(prefix + 1)?;
    let sib = code.get(prefix + 2).copied();
    let len = prefix + 2 + operand_len(modrm, sib)? + immediate;
    (len <= code.len()).then_some(len)
}

/// The bytes behind `modrm` that belong to its memory operand, the first of which is `next` (Intel
/// SDM volume 2, tables 2-2 and 2-3).
fn operand_len(modrm: u8, next: Option<u8>) -> Option<usize> {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    if mode == 3 {
        return Some(0);
    }
    let (sib, base) = if rm == 4 { (1, next? & 7) } else { (0, rm) };
    let displacement = match mode {
        0 if base == 5 => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    Some(sib + displacement)
}

/// Bytes of a [`veneer`](klp_core::port::Arch::veneer).
const VENEER_LEN: usize = JMP_NEXT_QUAD.len() + 8;

/// Where the veneer leads that `code` begins with.
fn veneer(code: &[u8]) -> Option<CodeAddr> {
    let quad = code.strip_prefix(&JMP_NEXT_QUAD)?.first_chunk()?;
    Some(CodeAddr::new(u64::from_le_bytes(*quad)))
}

fn skip(code: &[u8], at: CodeAddr, len: usize) -> (&[u8], CodeAddr) {
    (
        code.get(len..).unwrap_or_default(),
        at.wrapping_add(len as u64),
    )
}

fn flow(instruction: &Instruction, own_return: bool) -> Flow {
    let opcode = instruction.opcode();
    match opcode {
        Opcode::JMP
        | Opcode::JRCXZ
        | Opcode::JECXZ
        | Opcode::LOOP
        | Opcode::LOOPZ
        | Opcode::LOOPNZ => distance(instruction),
        Opcode::XBEGIN => distance(instruction),
        _ if opcode.is_jcc() => distance(instruction),
        // A call comes back, but with this prefix it is not certain where the next instruction
        // begins.
        Opcode::CALL if matches!(distance(instruction), Flow::By(_)) => Flow::On,
        Opcode::CALL if is_indirect(instruction) => Flow::On,
        Opcode::CALL | Opcode::JMPF | Opcode::JMPE | Opcode::Invalid => Flow::Away,
        Opcode::RETURN if own_return => Flow::Away,
        _ => Flow::On,
    }
}

/// Of a direct branch. Intel's processors ignore an operand size prefix there, AMD's take 16 bits
/// of distance and cut off the address (Intel SDM volume 2, "JMP"; AMD APM volume 3, "JMP (Near)"),
/// unless REX.W is there, too.
fn distance(instruction: &Instruction) -> Flow {
    let prefixes = &instruction.prefixes;
    if prefixes.operand_size() && !prefixes.rex().is_some_and(|rex| rex.w()) {
        return Flow::Away;
    }
    match instruction.operand(0) {
        Operand::ImmediateI8 { imm } => Flow::By(imm.into()),
        Operand::ImmediateI32 { imm } => Flow::By(imm.into()),
        Operand::ImmediateI64 { imm } => Flow::By(imm),
        _ => Flow::Away,
    }
}

fn is_indirect(instruction: &Instruction) -> bool {
    let operand = instruction.operand(0);
    operand.is_memory() || matches!(operand, Operand::Register { .. })
}

/// Whether a `ret` behind `instruction` takes what it wrote: `push`, or `mov` to `[rsp]`.
fn writes_return_address(instruction: &Instruction) -> bool {
    match instruction.opcode() {
        Opcode::PUSH => true,
        Opcode::MOV => {
            instruction.operand(0)
                == Operand::MemDeref {
                    base: RegSpec::rsp(),
                }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::X86_64;
    use alloc::vec::Vec;
    use klp_arch_tests::code;
    use klp_core::port::Arch;

    const AT: u64 = 0x40_1000;

    fn found(code: &[u8]) -> Vec<Option<u64>> {
        code::jumps::<X86_64>(AT, code)
    }

    #[test]
    fn direct_branches_tell_their_targets() {
        let cases: [(&[u8], u64); 16] = [
            (&[0xeb, 0x10], AT + 0x12),                           // jmp rel8
            (&[0xeb, 0xfe], AT),                                  // to itself
            (&[0xe9, 0x00, 0x01, 0x00, 0x00], AT + 0x105),        // jmp rel32
            (&[0xe9, 0xfb, 0xff, 0xff, 0xff], AT),                // backwards
            (&[0xf2, 0xe9, 0x00, 0x01, 0x00, 0x00], AT + 0x106),  // bnd jmp
            (&[0x74, 0x02], AT + 4),                              // je
            (&[0x7f, 0x80], AT + 2 - 0x80),                       // jg
            (&[0x2e, 0x75, 0x02], AT + 5),                        // jne, predicted not taken
            (&[0x0f, 0x84, 0x00, 0x10, 0x00, 0x00], AT + 0x1006), // je rel32
            (&[0x3e, 0x0f, 0x8f, 0xf9, 0xff, 0xff, 0xff], AT),    // jg rel32, predicted taken
            (&[0xe0, 0x02], AT + 4),                              // loopne
            (&[0xe1, 0x02], AT + 4),                              // loope
            (&[0xe2, 0xfe], AT),                                  // loop
            (&[0xe3, 0x02], AT + 4),                              // jrcxz
            (&[0x67, 0xe3, 0x02], AT + 5),                        // jecxz
            (&[0xc7, 0xf8, 0x10, 0x00, 0x00, 0x00], AT + 0x16),   // xbegin
        ];
        for (code, to) in cases {
            assert_eq!(found(code), [Some(to)], "{code:x?}");
        }
        // With REX.W, the operand size prefix says nothing.
        assert_eq!(found(&[0x66, 0x48, 0xe9, 0, 0, 0, 0]), [Some(AT + 7)]);
    }

    #[test]
    fn what_the_code_does_not_tell_is_none() {
        let cases: [&[u8]; 20] = [
            &[0xff, 0xe0],                                     // jmp rax
            &[0x41, 0xff, 0xe3],                               // jmp r11
            &[0x3e, 0xff, 0xe0],                               // notrack jmp rax
            &[0xff, 0x20],                                     // jmp [rax]
            &[0xff, 0x24, 0xc5, 0x00, 0x20, 0x40, 0x00],       // jmp [rax * 8 + 0x402000]
            &[0xff, 0x25, 0x10, 0x00, 0x00, 0x00],             // jmp [rip + 16]
            &[0xff, 0x25, 0x00, 0x00, 0x00, 0x00, 0x90, 0x90], // the address is cut off
            &[0xff, 0x2f],                                     // jmp far [rdi]
            &[0x66, 0xe9, 0x00, 0x00, 0x00, 0x00],             // Intel and AMD differ
            &[0x66, 0x74, 0x00],                               // also
            &[0x66, 0xe8, 0x00, 0x00, 0x00, 0x00],             // a call, but of which length?
            &[0x06],                                           // push es: not in 64-bit mode
            &[0xe9, 0x00],                                     // cut off
            &[0x0f],                                           // cut off
            &[0x66; 16],                                       // too long
            &[0xd5, 0x00, 0xa1, 1, 2, 3, 4, 5, 6, 7, 8],       // jmpabs
            &[0x48, 0x89, 0x04, 0x24, 0xc3],                   // mov [rsp], rax; ret
            &[0xc4, 0xe1, 0xf8, 0x85, 0xe9, 0, 0, 0, 0],       // Knights Corner's conditional jump
            &[0xc4, 0xe3, 0xf9, 0x6b, 0xc2],                   // cut off
            &[0x50, 0xc3],                                     // push rax; ret
        ];
        for code in cases {
            assert_eq!(found(code), [None], "{code:x?}");
        }
    }

    #[test]
    fn everything_else_is_nothing() {
        let cases: [&[u8]; 30] = [
            &[],
            &[0xe8, 0x00, 0x10, 0x00, 0x00], // call rel32
            &[0x66, 0x66, 0x48, 0xe8, 0x00, 0x10, 0x00, 0x00], // the call of __tls_get_addr
            &[0x66, 0x48, 0xff, 0x15, 0x00, 0x10, 0x00, 0x00], // also
            &[0x67, 0xe8, 0x00, 0x10, 0x00, 0x00], // a relaxed call
            &[0xff, 0xd0],                   // call rax
            &[0xff, 0x15, 0x00, 0x10, 0x00, 0x00], // call [rip + 0x1000]
            &[0xff, 0x94, 0xe8, 0x00, 0x10, 0x00, 0x00], // call [rax + rbp * 8 + 0x1000]
            &[0xc3],                         // ret
            &[0xf3, 0xc3],                   // rep ret
            &[0xc2, 0x10, 0x00],             // ret 16
            &[0xcc, 0xcc],                   // int3
            &[0x0f, 0x0b],                   // ud2
            &[0xf4],                         // hlt
            &[0xf3, 0x0f, 0x1e, 0xfa],       // endbr64
            &[0x0f, 0x05],                   // syscall
            &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
            &[0; 8],                               // add
            &[0x62, 0xf1, 0x7c, 0x48, 0x10, 0x07], // vmovups zmm0, [rdi]
            &[0xc4, 0xe2, 0x79, 0x78, 0xc0],       // vpbroadcastb xmm0, xmm0
            // What the decoder lacks: kmovq k1, rbx; kmovq rdx, k4; kortestq k0, k0; vfmaddsd of
            // four operands, also with memory.
            &[0xc4, 0xe1, 0xfb, 0x92, 0xcb],
            &[0xc4, 0xe1, 0xfb, 0x93, 0xd4],
            &[0xc4, 0xe1, 0xf8, 0x98, 0xc0],
            &[0xc4, 0xe3, 0xf9, 0x6b, 0xc2, 0x10],
            &[0xc4, 0xe3, 0x79, 0x6b, 0x0d, 0x7e, 0x71, 0x03, 0x00, 0x20],
            &[0xc4, 0xe3, 0xc1, 0x6b, 0x51, 0xe9, 0x00],
            &[0xc4, 0xe3, 0xc1, 0x6b, 0x54, 0x24, 0xe9, 0x00],
            &[
                0xc4, 0xe3, 0xc1, 0x6b, 0x14, 0x25, 0xe9, 0xe9, 0xe9, 0xe9, 0x00,
            ],
            &[0x49, 0xbb, 0xe9, 0xeb, 0xff, 0xe0, 0x74, 0x0f, 0x84, 0xe3], // movabs r11, …
            &[0x50, 0x90, 0xc3],                                           // push rax; nop; ret
        ];
        for code in cases {
            assert_eq!(found(code), [], "{code:x?}");
        }
    }

    #[test]
    fn whole_functions() {
        // gcc -O2: long f(long n) { return n < 8 ? g(n) : n & 1 ? h(n + 1) : p(n); }, with p a
        // pointer.
        let sibling_calls = [
            &[0x48, 0x83, 0xff, 0x07][..],         // cmp rdi, 7
            &[0x7e, 0x12],                         // jle AT + 0x18
            &[0x40, 0xf6, 0xc7, 0x01],             // test dil, 1
            &[0x74, 0x11],                         // je AT + 0x1d
            &[0x48, 0x83, 0xc7, 0x01],             // add rdi, 1
            &[0xe9, 0xeb, 0x0f, 0x00, 0x00],       // jmp AT + 0x1000
            &[0x0f, 0x1f, 0x00],                   // nop
            &[0xe9, 0xe3, 0x1f, 0x00, 0x00],       // jmp AT + 0x2000
            &[0xff, 0x25, 0xe3, 0x2f, 0x00, 0x00], // jmp [rip + …]
        ]
        .concat();
        let expected = [
            Some(AT + 0x18),
            Some(AT + 0x1d),
            Some(AT + 0x1000),
            Some(AT + 0x2000),
            None,
        ];
        assert_eq!(found(&sibling_calls), expected);
    }

    #[test]
    fn our_own_code() {
        let (at, to) = (CodeAddr::new(AT), CodeAddr::new(0x1122_3344_5566_7788));
        let jump = X86_64::jump(at, CodeAddr::new(AT + 0x1000), 8).expect("in reach");
        assert_eq!(found(&jump), [Some(AT + 0x1000)]);
        // Whatever the bytes of the address are, the code goes on behind them.
        for to in [to, CodeAddr::new(0xe9e9_e9e9_e9e9_e9e9), CodeAddr::new(0)] {
            let code = [&X86_64::veneer(at, to)[..], &[0xc3, 0xeb, 0x00]].concat();
            assert_eq!(found(&code), [Some(to.get()), Some(AT + 17)]);
            assert_eq!(found(&X86_64::thunk(at, 7, to)), [Some(to.get())]);
        }
    }

    #[test]
    fn behind_what_is_not_understood_nothing_is_looked_at() {
        assert_eq!(found(&[0xeb, 0x00, 0x06, 0xeb, 0x00]), [Some(AT + 2), None]);
    }

    #[test]
    fn random_bytes_never_panic() {
        code::random_bytes_never_panic::<X86_64>();
    }
}
