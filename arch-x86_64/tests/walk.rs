//! Walks of stacks that are only numbers, on any machine.

use core::ops::ControlFlow;
use klp_arch_x86_64::unwind::{FrameRule, Place, Reg, Regs, Rule, Slot, Table, TableBuilder, walk};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::conformance::unwinder::{Case, check};
use klp_core::port::Doubt::{BadMemory, Corrupt, NoEnd, NoTable, UnknownRule};
use klp_core::port::{Frame, FrameKind, Unreliable, Unwinder};

const TEXT: u64 = 0x1000;
const STACK: u64 = 0x8000;
/// Frames that are visited at most.
const LIMIT: usize = 90;

// Functions, 16 bytes each.
const PLAIN: u64 = TEXT; // CFA = rsp + 8
const PUSHES: u64 = TEXT + 0x10; // CFA = rsp + 24, rbx and rbp saved
const POINTER: u64 = TEXT + 0x20; // CFA = rbp + 16, rbp saved
const SIGNAL: u64 = TEXT + 0x30;
const START: u64 = TEXT + 0x40; // end of the stack
const STRANGE: u64 = TEXT + 0x50;
const FAR: u64 = TEXT + 0x60; // CFA = rsp + 8, rbx saved 136 bytes below rsp
const DOWN: u64 = TEXT + 0x70; // CFA = rsp - 8
const BY_RBX: u64 = TEXT + 0x80; // CFA = rbx + 16
const STANDS: u64 = TEXT + 0x90; // CFA = rsp
// CFA in memory at rbp - 16; rbp at rbp, r12 at rbp - 8, r13 16 below the CFA.
const REALIGNED: u64 = TEXT + 0xa0;
const NOTHING: u64 = TEXT + 0xb0;

fn frame(cfa_base: Reg, cfa_offset: i32, saved: &[(Reg, i64)]) -> Rule {
    let mut slots = [Slot::default(); 6];
    for &(reg, below) in saved {
        slots[reg as usize] = Slot::new(Place::BelowTop(below.unsigned_abs())).expect("a slot");
    }
    Rule::Frame(FrameRule {
        cfa_base,
        cfa_in_memory: false,
        cfa_offset,
        saved: slots,
    })
}

fn realigned() -> Rule {
    let mut saved = [Slot::default(); 6];
    saved[Reg::Rbp as usize] = Slot::new(Place::BelowBase(0)).expect("a slot");
    saved[Reg::R12 as usize] = Slot::new(Place::BelowBase(8)).expect("a slot");
    saved[Reg::R13 as usize] = Slot::new(Place::BelowTop(16)).expect("a slot");
    Rule::Frame(FrameRule {
        cfa_base: Reg::Rbp,
        cfa_in_memory: true,
        cfa_offset: -16,
        saved,
    })
}

struct Machine(Table);

impl Machine {
    fn new() -> Self {
        let mut table =
            TableBuilder::new(TextRange::new(CodeAddr::new(TEXT), 0x1000).expect("a range"))
                .expect("a small one");
        for (start, rule) in [
            (PLAIN, frame(Reg::Rsp, 8, &[])),
            (
                PUSHES,
                frame(Reg::Rsp, 24, &[(Reg::Rbx, 16), (Reg::Rbp, 24)]),
            ),
            (POINTER, frame(Reg::Rbp, 16, &[(Reg::Rbp, 16)])),
            (SIGNAL, Rule::Signal),
            (START, Rule::End),
            (STRANGE, Rule::Unknown),
            (FAR, frame(Reg::Rsp, 8, &[(Reg::Rbx, 144)])),
            (DOWN, frame(Reg::Rsp, -8, &[])),
            (BY_RBX, frame(Reg::Rbx, 16, &[])),
            (STANDS, frame(Reg::Rsp, 0, &[])),
            (REALIGNED, realigned()),
            (NOTHING, Rule::Gap),
        ] {
            table.push(CodeAddr::new(start), rule).expect("in order");
        }
        Self(table.build())
    }
}

/// A stopped task: its registers and its stack, from `STACK` on.
struct Task {
    regs: Regs,
    stack: Vec<u64>,
}

// SAFETY: the tasks are only numbers, nothing relies on them.
unsafe impl Unwinder for Machine {
    type Context = Task;

    fn walk(
        &self,
        task: &Task,
        visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
    ) -> Result<(), Unreliable> {
        let read = |addr: u64| {
            assert_eq!(addr % 8, 0, "{addr:#x}");
            task.stack
                .get(usize::try_from(addr.checked_sub(STACK)? / 8).ok()?)
                .copied()
        };
        walk(
            task.regs,
            LIMIT,
            |frame| self.0.find(frame.lookup()),
            read,
            visit,
        )
    }
}

fn at(pc: u64) -> Regs {
    Regs {
        rip: pc,
        rsp: STACK,
        ..Regs::default()
    }
}

fn interrupted(pc: u64) -> Frame {
    Frame {
        pc: CodeAddr::new(pc),
        kind: FrameKind::Interrupted,
    }
}

fn call(pc: u64) -> Frame {
    Frame {
        pc: CodeAddr::new(pc),
        kind: FrameKind::Call,
    }
}

#[test]
fn conforms() {
    let reliable = Task {
        regs: Regs {
            rbp: 0xb0,
            rbx: 0xbb,
            ..at(PUSHES + 3)
        },
        // PUSHES: rbp, rbx, return address; POINTER: two locals, rbp, return address; PLAIN: return
        // address.
        stack: vec![
            STACK + 40,
            0x77,
            POINTER + 8,
            1,
            2,
            0xb0,
            PLAIN + 4,
            START + 5,
        ],
    };
    // A call at the very end of START: the return address is the next function's.
    let ends_in_call = Task {
        regs: at(PLAIN),
        stack: vec![STRANGE],
    };
    let mut signal = vec![SIGNAL + 1, 0, 0, 0, 0, 0];
    // The ucontext begins at STACK + 8: registers at byte 40 of it, and what they refer to is
    // behind.
    signal.extend((0..17).map(|greg| match greg {
        11 => STACK + 8 * 23, // rbx
        15 => STACK + 8 * 24, // rsp
        16 => BY_RBX,         // rip: interrupted at its first byte
        _ => 0,
    }));
    signal.extend([0, START + 9]);
    let through_signal = Task {
        regs: at(PLAIN),
        stack: signal,
    };
    let task = |pc, stack| Task {
        regs: at(pc),
        stack,
    };
    let mut loops = vec![PLAIN + 1; 200];
    loops[199] = START;
    let as_many: Vec<_> = [interrupted(PLAIN)]
        .into_iter()
        .chain([call(PLAIN + 1); LIMIT - 1])
        .collect();

    let cases = [
        (
            "reliable",
            reliable,
            vec![
                interrupted(PUSHES + 3),
                call(POINTER + 8),
                call(PLAIN + 4),
                call(START + 5),
            ],
            None,
        ),
        (
            "a call that does not return",
            ends_in_call,
            vec![interrupted(PLAIN), call(STRANGE)],
            None,
        ),
        (
            "through a signal",
            through_signal,
            vec![
                interrupted(PLAIN),
                call(SIGNAL + 1),
                interrupted(BY_RBX),
                call(START + 9),
            ],
            None,
        ),
        (
            "outermost",
            task(START, vec![]),
            vec![interrupted(START)],
            None,
        ),
        (
            "nowhere",
            task(0x10, vec![]),
            vec![interrupted(0x10)],
            Some(NoTable),
        ),
        (
            "no function",
            task(NOTHING, vec![]),
            vec![interrupted(NOTHING)],
            Some(NoTable),
        ),
        (
            "null is not an end",
            task(PLAIN, vec![0]),
            vec![interrupted(PLAIN), call(0)],
            Some(NoTable),
        ),
        (
            "strange",
            task(STRANGE, vec![START]),
            vec![interrupted(STRANGE)],
            Some(UnknownRule),
        ),
        (
            "no memory",
            task(PLAIN, vec![]),
            vec![interrupted(PLAIN)],
            Some(BadMemory),
        ),
        (
            "no ucontext",
            task(SIGNAL, vec![0; 20]),
            vec![interrupted(SIGNAL)],
            Some(BadMemory),
        ),
        (
            "downwards",
            task(DOWN, vec![START; 4]),
            vec![interrupted(DOWN)],
            Some(NoEnd),
        ),
        (
            "on the spot",
            task(STANDS, vec![START; 4]),
            vec![interrupted(STANDS)],
            Some(NoEnd),
        ),
        ("endless", task(PLAIN, loops), as_many, Some(NoEnd)),
        (
            "below the red zone",
            task(FAR, vec![START; 4]),
            vec![interrupted(FAR)],
            Some(Corrupt),
        ),
    ];
    let cases = cases.each_ref().map(|(name, context, frames, doubt)| Case {
        name,
        context,
        frames,
        doubt: *doubt,
    });
    check(&Machine::new(), &cases);
}

#[test]
fn registers_of_a_ucontext() {
    let regs = Regs::from_ucontext(STACK, |addr| Some((addr - STACK - 40) / 8));
    let expected = Regs {
        r12: 4,
        r13: 5,
        r14: 6,
        r15: 7,
        rbp: 10,
        rbx: 11,
        rsp: 15,
        rip: 16,
    };
    assert_eq!(regs, Some(expected));
    assert_eq!(Regs::from_ucontext(u64::MAX - 80, |_| Some(0)), None);
}

#[test]
fn doubts_name_the_frame() {
    let task = Task {
        regs: at(PLAIN),
        stack: vec![PLAIN + 3, NOTHING + 2],
    };
    let doubt = Machine::new().walk(&task, &mut |_| ControlFlow::Continue(()));
    assert_eq!(
        doubt,
        Err(Unreliable {
            at: CodeAddr::new(NOTHING + 2),
            why: NoTable
        })
    );
}

#[test]
fn strange_registers_are_corrupt() {
    for regs in [
        Regs {
            rsp: STACK + 1,
            ..at(PLAIN)
        },
        Regs {
            rsp: STACK + 4,
            ..at(SIGNAL)
        },
        Regs {
            rsp: u64::MAX - 7,
            ..at(PLAIN)
        },
        Regs {
            rbp: u64::MAX,
            ..at(POINTER)
        },
        Regs {
            rbp: STACK + 4,
            ..at(POINTER)
        },
    ] {
        let task = Task {
            regs,
            stack: vec![START; 64],
        };
        let doubt = Machine::new()
            .walk(&task, &mut |_| ControlFlow::Continue(()))
            .expect_err("not a stack");
        assert_eq!(doubt.why, Corrupt, "{regs:x?}");
    }
}

#[test]
fn the_red_zone_is_the_innermost_frames() {
    // rbx is saved 144 bytes below the CFA, which is 128 below rsp: just inside the red zone.
    let mut rule = TableBuilder::new(TextRange::new(CodeAddr::new(TEXT), 0x100).expect("a range"))
        .expect("small");
    rule.push(CodeAddr::new(TEXT), frame(Reg::Rsp, 16, &[(Reg::Rbx, 144)]))
        .expect("in order");
    rule.push(CodeAddr::new(START), Rule::End)
        .expect("in order");
    let machine = Machine(rule.build());
    let mut stack = vec![0; 64];
    stack[17] = START + 1;
    let inner = Task {
        regs: Regs {
            rsp: STACK + 128,
            ..at(TEXT)
        },
        stack,
    };
    assert_eq!(
        machine.walk(&inner, &mut |_| ControlFlow::Continue(())),
        Ok(())
    );
    // The same frame below a call: its memory below rsp belongs to nobody.
    let mut stack = vec![0; 64];
    (stack[17], stack[19]) = (TEXT + 1, START + 1);
    let outer = Task {
        regs: Regs {
            rsp: STACK + 128,
            ..at(TEXT)
        },
        stack,
    };
    let doubt = machine
        .walk(&outer, &mut |_| ControlFlow::Continue(()))
        .expect_err("overwritten");
    assert_eq!(
        doubt,
        Unreliable {
            at: CodeAddr::new(TEXT + 1),
            why: Corrupt
        }
    );
}

/// Walks a stack that holds `words` from `STACK` on.
fn walked(regs: Regs, words: &[(u64, u64)]) -> (Vec<Frame>, Result<(), Unreliable>) {
    let mut stack = vec![0; 256];
    words
        .iter()
        .for_each(|&(addr, word)| stack[((addr - STACK) / 8) as usize] = word);
    let mut frames = Vec::new();
    let result = Machine::new().walk(&Task { regs, stack }, &mut |frame| {
        frames.push(frame);
        ControlFlow::Continue(())
    });
    (frames, result)
}

#[test]
fn a_realigned_frame_is_walked_through() {
    // The caller's frame, POINTER's, is found only if rbp is right; BY_RBX's only if nothing became
    // of rbx.
    let base = STACK + 64;
    let (cfa, outer) = (base + 40, base + 80);
    let words = [
        (base - 16, cfa),
        (base - 8, 0x12),
        (base, outer),
        (cfa - 16, 0x13),
        (cfa - 8, POINTER + 1),
        (outer, 0xb0),
        (outer + 8, BY_RBX + 1),
        (outer + 40, START + 1),
    ];
    let regs = Regs {
        rip: REALIGNED + 1,
        rsp: STACK + 16,
        rbp: base,
        rbx: outer + 32,
        ..Regs::default()
    };
    let expected = vec![
        interrupted(REALIGNED + 1),
        call(POINTER + 1),
        call(BY_RBX + 1),
        call(START + 1),
    ];
    assert_eq!(walked(regs, &words), (expected, Ok(())));

    let spoiled = |regs: Regs, cfa: u64, why| {
        let words = [(base - 16, cfa), (base + 32, START)];
        let (_, result) = walked(regs, &words);
        assert_eq!(
            result.map_err(|doubt| doubt.why),
            Err(why),
            "{regs:x?}, {cfa:#x}"
        );
    };
    spoiled(regs, regs.rsp, NoEnd);
    spoiled(regs, cfa + 4, Corrupt);
    spoiled(regs, base, Corrupt); // rbp would lie above the frame
    spoiled(regs, u64::MAX - 7, BadMemory);
    spoiled(Regs { rbp: 0, ..regs }, cfa, Corrupt);
    spoiled(
        Regs {
            rbp: u64::MAX,
            ..regs
        },
        cfa,
        Corrupt,
    );
    spoiled(
        Regs {
            rbp: base + 4,
            ..regs
        },
        cfa,
        Corrupt,
    );
    spoiled(
        Regs {
            rsp: base + 1024,
            ..regs
        },
        cfa,
        Corrupt,
    ); // not its memory
}

#[test]
fn a_circle_of_stacks_ends_without_a_limit() {
    let words: Vec<u64> = [SIGNAL + 1].into_iter().chain([STACK + 8; 32]).collect();
    let read = |addr: u64| {
        words
            .get(usize::try_from(addr.checked_sub(STACK)? / 8).ok()?)
            .copied()
    };
    let find = |frame: Frame| {
        if frame.pc == CodeAddr::new(PLAIN) {
            frame_of_plain()
        } else {
            Rule::Signal
        }
    };
    let mut frames = 0;
    let result = walk(at(PLAIN), usize::MAX, find, read, &mut |_| {
        frames += 1;
        ControlFlow::Continue(())
    });
    assert_eq!(result.map_err(|doubt| doubt.why), Err(NoEnd));
    assert!(frames < 200, "{frames}");
}

fn frame_of_plain() -> Rule {
    frame(Reg::Rsp, 8, &[])
}
