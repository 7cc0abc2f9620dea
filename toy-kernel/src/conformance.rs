//! klp-core's suites prove the ports right, in the running kernel: what a porter's own test file
//! does. Ports with a mistake in them show that the suites would notice.

use alloc::vec::Vec;
use core::cell::Cell;
use core::hint::black_box;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use klp_arch_x86_64::X86_64;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::config::MAX_STACK_ENTRIES;
use klp_core::conformance::{arch, symbol_resolver, task_set, text, tracer, unwinder};
use klp_core::model::VMLINUX;
use klp_core::port::{
    Arch, Doubt, EntryHost, Frame, FrameKind, Platform, Poke, Symbol, SymbolResolver, TaskId,
    TaskSet, TaskState, Text, Unreliable, Unwinder,
};
use toy_kernel::entry::Entries;
use toy_kernel::host::Toy;
use toy_kernel::interrupt::{Frame as Registers, yield_now};
use toy_kernel::println;
use toy_kernel::sched::{self, Task};
use toy_kernel::tasks::{self, Tasks};
use toy_kernel::unwind::Tables;

core::arch::global_asm!(
    // No entry pad, no frame; and a local name, which boot.s has given to a function, too.
    ".pushsection .text.conformance,\"ax\"",
    ".type bare, @function",
    ".type long, @function",
    ".globl bare",
    "bare: long: .cfi_startproc",
    "nop",
    "ret",
    ".cfi_endproc",
    ".size bare, . - bare",
    ".size long, . - long",
    // Its frame is where rbp says; and a local name that there is once.
    ".type anchored, @function",
    ".type alone, @function",
    ".globl anchored",
    "anchored: alone: .cfi_startproc",
    ".cfi_def_cfa rbp, 16",
    "nop",
    "ret",
    ".cfi_endproc",
    ".size anchored, . - anchored",
    ".size alone, . - alone",
    ".popsection",
);

unsafe extern "C" {
    fn bare();
    fn anchored();
    fn task_start();
}

/// All suites of an operating system's ports.
pub fn check(host: &Toy) {
    println!("conformance: arch");
    arch::check::<X86_64>(&[&[0x0f, 0x1f, 0x44, 0x00, 0x08]], &[0xcc]);
    check_symbols(host);
    check_text(host);
    check_tracer(host);
    check_tasks(host.tasks());
    check_unwinder(host.unwinder());
}

/// A list of tasks that lacks one.
pub fn a_task_is_missed() {
    check_tasks(&Tasks {
        list: |each| {
            tasks::all(&mut |task: &Task| {
                if task.id != MISSED.load(Ordering::Relaxed) {
                    each(task);
                }
            });
        },
    });
}

/// Walks that see one frame, and say that this was all.
pub fn walks_end_early(host: &Toy) {
    struct Early<'a>(&'a Tables);
    // SAFETY: it is not; the suite finds that.
    unsafe impl Unwinder for Early<'_> {
        type Context = Registers;
        fn walk(
            &self,
            task: &Registers,
            visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
        ) -> Result<(), Unreliable> {
            self.0.walk(task, &mut |frame| {
                let _ = visit(frame);
                ControlFlow::Break(())
            })
        }
    }
    check_unwinder(&Early(host.unwinder()));
}

fn addr(function: usize) -> CodeAddr {
    CodeAddr::new(function as u64)
}

fn function(host: &Toy, function: usize) -> TextRange {
    host.symbols().function_at(addr(function)).expect("it is a function")
}

fn check_symbols(host: &Toy) {
    println!("conformance: symbol_resolver");
    let named = |name| {
        let mut found = Vec::new();
        let listed = host.symbols().symbols(VMLINUX, name, &mut |symbol| found.push(symbol));
        assert!(listed.is_ok(), "there is a table");
        found
    };
    let symbol = |function: TextRange| Symbol { addr: function.start(), len: function.len() };
    let duplicates = named("long");
    assert_eq!(duplicates.len(), 2, "one in boot.s, one here");
    assert_eq!(duplicates[1].addr, addr(bare as usize), "this one");
    symbol_resolver::check(
        host.symbols(),
        &symbol_resolver::Known {
            object: VMLINUX,
            exported: ("once", symbol(function(host, once as usize))),
            local: ("alone", symbol(function(host, anchored as usize))),
            duplicates: ("long", &duplicates),
        },
    );
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn once(x: u32) -> u32 {
    black_box(x)
}

#[inline(never)]
extern "C" fn once_new(x: u32) -> u32 {
    black_box(x + 1)
}

#[inline(never)]
extern "C" fn twice(x: u32) -> u32 {
    black_box(x * 2)
}

#[inline(never)]
extern "C" fn twice_new(x: u32) -> u32 {
    black_box(x * 2 + 1)
}

fn check_text(host: &Toy) {
    println!("conformance: text");
    let mut sites = [once as usize, twice as usize].map(|it| function(host, it).start());
    sites.sort_unstable();
    let old = sites.map(|site| {
        let mut bytes = [0; 5];
        host.text().read(site, &mut bytes).expect("it is mapped");
        bytes
    });
    let resume = sites.map(|site| site.wrapping_add(5));
    let new = [0, 1].map(|index| X86_64::jump(sites[index], resume[index], 5).expect("near"));
    let poke = |index: usize| Poke {
        at: sites[index],
        old: &old[index],
        new: &new[index],
        resume: resume[index],
        split: false,
        body: resume[index],
    };
    // SAFETY: pads of functions that nobody calls meanwhile.
    unsafe { text::check(host.text(), [poke(0), poke(1)], X86_64::REACH) };
}

fn check_tracer(host: &Toy) {
    println!("conformance: tracer");
    let pair = |old, new| (function(host, old), function(host, new));
    let bytes = |func: TextRange| {
        let mut bytes = alloc::vec![0; func.len() as usize];
        host.text().read(func.start(), &mut bytes).expect("it is mapped");
        bytes
    };
    let first = once as usize as *mut u8;
    let before = Cell::new(0);
    // SAFETY: nobody runs it meanwhile.
    let hold = |on: bool| unsafe {
        if on {
            before.set(first.read());
        }
        first.write(if on { 0xcc } else { before.get() });
    };
    let bench = tracer::Bench {
        tracer: host.tracer(),
        funcs: &[pair(once as usize, once_new as usize), pair(twice as usize, twice_new as usize)],
        without_site: function(host, bare as usize),
        notrace: function(host, Entries.stub().get() as usize),
        bytes: &bytes,
        replaced: &|index| match index {
            0 => once(black_box(7)) == 8,
            _ => twice(black_box(7)) == 15,
        },
        hold: Some(&hold),
        spoil: None,
    };
    // SAFETY: pairs of functions of the same type; no patch is enabled meanwhile.
    unsafe { tracer::check(&bench) };
}

static MISSED: AtomicU64 = AtomicU64::new(0);
/// Which servant is asked (0: none), what for, and what it says.
static ASKED: AtomicU64 = AtomicU64::new(0);
static BIRTH: AtomicBool = AtomicBool::new(false);
static ANSWER: AtomicU64 = AtomicU64::new(0);

extern "C" fn servant() {
    loop {
        if ASKED.load(Ordering::Acquire) == sched::current().id {
            let answer = match BIRTH.load(Ordering::Relaxed) {
                true => sched::spawn("servant", servant),
                false => tasks::state_of(sched::current()) as u64,
            };
            ANSWER.store(answer, Ordering::Relaxed);
            ASKED.store(0, Ordering::Release);
        }
        yield_now();
    }
}

fn ask(servant: TaskId, birth: bool) -> u64 {
    BIRTH.store(birth, Ordering::Relaxed);
    ASKED.store(servant.0, Ordering::Release);
    while ASKED.load(Ordering::Acquire) != 0 {
        yield_now();
    }
    ANSWER.load(Ordering::Relaxed)
}

fn check_tasks(tasks: &Tasks) {
    extern "C" fn nothing() {}
    println!("conformance: task_set");
    let gone = TaskId(sched::spawn("gone", nothing));
    while tasks.exists(gone) {
        yield_now();
    }
    let some = [(); 2].map(|()| TaskId(sched::spawn("servant", servant)));
    MISSED.store(some[1].0, Ordering::Relaxed);
    task_set::check(&task_set::Bench {
        tasks,
        some: &some,
        state: &|task| TaskState::from_i8(ask(task, false) as i8).expect("it is a state"),
        birth: &|task| TaskId(ask(task, true)),
        gone,
    });
}

fn check_unwinder<U: Unwinder<Context = Registers>>(unwinder: &U) {
    println!("conformance: unwinder");
    let inside = bare as usize as u64 + 1;
    let end = task_start as usize as u64 + 2;
    let data = &raw const ANSWER as u64;
    let stacks = [&[inside, inside, end][..], &[inside, data], &[inside; 2 * MAX_STACK_ENTRIES]];
    // On this stack, so that they are a task's.
    let mut memory = [[0; 2 * MAX_STACK_ENTRIES]; 3];
    for (memory, stack) in memory.iter_mut().zip(stacks) {
        memory[..stack.len()].copy_from_slice(stack);
    }
    let frame = |pc, kind| Frame { pc: CodeAddr::new(pc), kind };
    let interrupted = frame(inside, FrameKind::Interrupted);
    let frames = |stack: &[u64]| {
        let calls = stack.iter().map(|pc| frame(*pc, FrameKind::Call));
        core::iter::once(interrupted).chain(calls).take(MAX_STACK_ENTRIES).collect::<Vec<_>>()
    };
    let frames = stacks.map(frames);
    let regs = |stack: &[u64]| Registers {
        rip: inside,
        rsp: stack.as_ptr().addr() as u64,
        ..Registers::default()
    };
    let [deep, astray, endless] = [0, 1, 2].map(|index| regs(&memory[index]));
    let lost = Registers { rip: anchored as usize as u64, rbp: deep.rsp + (1 << 20), ..deep };
    let case = |name, context, frames, doubt| unwinder::Case { name, context, frames, doubt };
    let only = [frame(lost.rip, FrameKind::Interrupted)];
    unwinder::check(
        unwinder,
        &[
            case("deep", &deep, &frames[0], None),
            case("astray", &astray, &frames[1], Some(Doubt::NoTable)),
            case("endless", &endless, &frames[2], Some(Doubt::NoEnd)),
            case("lost", &lost, &only, Some(Doubt::BadMemory)),
        ],
    );
}
