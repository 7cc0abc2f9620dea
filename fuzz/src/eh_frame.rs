//! Unwind tables: compiling ends, in memory that the section pays for; a lookup always finds a
//! rule; and a walk over any stack ends, within its limit, after aligned reads.

use crate::memory::bounded;
use crate::on_machine;
use klp_arch_aarch64::AArch64;
use klp_arch_ppc64le::Ppc64Le;
use klp_arch_x86_64::X86_64;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::port::Frame;
use klp_unwind::{EhFrame, Machine, Rule, Table, compile, walk, walk_call};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use std::ops::ControlFlow;

/// Where the section is.
const SECTION: u64 = 0x7000_0000;

/// Where the stack is.
const STACK: u64 = 0x7fff_0000;

/// Most frames of a walk.
const LIMIT: usize = 64;

/// A machine whose registers can be set.
trait Fuzzed: Machine {
    fn regs(pc: u64, sp: u64, fp: u64, lr: u64) -> Self::Regs;
}

impl Fuzzed for X86_64 {
    fn regs(pc: u64, sp: u64, fp: u64, other: u64) -> Self::Regs {
        klp_arch_x86_64::unwind::Regs {
            rip: pc,
            rsp: sp,
            rbp: fp,
            rbx: other,
            ..Default::default()
        }
    }
}

impl Fuzzed for AArch64 {
    fn regs(pc: u64, sp: u64, fp: u64, lr: u64) -> Self::Regs {
        let none = klp_arch_aarch64::unwind::Regs::NONE;
        klp_arch_aarch64::unwind::Regs {
            pc,
            sp,
            fp,
            lr,
            ..none
        }
    }
}

impl Fuzzed for Ppc64Le {
    fn regs(pc: u64, r1: u64, r31: u64, lr: u64) -> Self::Regs {
        let none = klp_arch_ppc64le::unwind::Regs::NONE;
        klp_arch_ppc64le::unwind::Regs {
            pc,
            r1,
            r31,
            lr,
            ..none
        }
    }
}

/// Checks one input: a byte for the machine; how long the text is and where, and where a task
/// stands; words of its stack; the section.
pub fn check(input: &[u8]) {
    if let [machine, rest @ ..] = input {
        // Too short: nothing to check.
        let _ = on_machine!(machine, check_on(Unstructured::new(rest)));
    }
}

fn check_on<M: Fuzzed>(mut input: Unstructured<'_>) -> Result<()> {
    let distance: i32 = input.arbitrary()?;
    let len: u32 = input.arbitrary()?;
    let start = CodeAddr::new(SECTION.wrapping_add_signed(distance.into()));
    let regs = input.arbitrary::<[u16; 4]>()?;
    let words = usize::from(input.arbitrary::<u8>()?).min(input.len() / 2);
    let stack = input.bytes(2 * words)?.to_vec();
    let bytes = input.take_rest();
    let Some(text) = TextRange::new(start, len.into()) else {
        return Ok(());
    };
    let section = EhFrame {
        bytes,
        addr: CodeAddr::new(SECTION),
    };
    // An instruction that begins a row takes a byte, and rows are moved as they become more.
    let most = 4096 + bytes.len() * (4 * Table::<M>::ROW + 16);
    let Ok(table) = bounded(most, || compile::<M>(section, text)) else {
        return Ok(());
    };
    check_rules(&table, bytes.len());
    let stack = Stack {
        words: &stack,
        text,
    };
    let [pc, sp, fp, lr] = regs.map(|word| stack.value(word));
    check_walk(&table, M::regs(pc, sp, fp, lr), &stack);
    Ok(())
}

fn check_rules<M: Machine>(table: &Table<M>, len: usize) {
    assert!(
        table.rows() <= 2 * len + 2,
        "{} rows of {len} bytes",
        table.rows()
    );
    let text = table.text();
    for outside in [
        text.start().wrapping_sub(1),
        text.end(),
        CodeAddr::new(u64::MAX),
    ] {
        assert_eq!(table.find(outside), Rule::Gap);
    }
    for nth in 0..16 {
        let _ = table.find(text.start().wrapping_add(text.len() / 16 * nth));
    }
}

/// Words of two bytes, which stand for the addresses and numbers that stacks are made of.
struct Stack<'a> {
    words: &'a [u8],
    text: TextRange,
}

impl Stack<'_> {
    fn value(&self, word: u16) -> u64 {
        let number = u64::from(word >> 2);
        match word & 3 {
            0 => self.text.start().wrapping_add(number).get(),
            1 => STACK + 8 * number,
            2 => number,
            _ => number << 50 | number,
        }
    }

    fn read(&self, addr: u64) -> Option<u64> {
        assert_eq!(addr % 8, 0, "{addr:#x} is not aligned");
        let index = 2 * usize::try_from(addr.checked_sub(STACK)? / 8).ok()?;
        let word = self.words.get(index..index + 2)?;
        Some(self.value(u16::from_le_bytes([word[0], word[1]])))
    }
}

fn check_walk<M: Machine>(table: &Table<M>, regs: M::Regs, stack: &Stack<'_>) {
    let find = |frame: Frame| table.find(frame.lookup());
    let read = |addr| stack.read(addr);
    for in_call in [false, true] {
        let walk = |limit, visit: &mut dyn FnMut(Frame) -> ControlFlow<()>| {
            if in_call {
                walk_call::<M>(regs, limit, find, read, visit)
            } else {
                walk::<M>(regs, limit, find, read, visit)
            }
        };
        let mut visited = 0;
        let whole = walk(LIMIT, &mut |_| {
            visited += 1;
            ControlFlow::Continue(())
        });
        assert!((1..=LIMIT).contains(&visited));
        assert_eq!(walk(LIMIT, &mut |_| ControlFlow::Break(())), Ok(()));
        if whole.is_ok() {
            let cut = walk(visited - 1, &mut |_| ControlFlow::Continue(()));
            assert!(cut.is_err(), "a stack ended before its end");
        }
    }
}
