//! The conformance suites on this process.

use core::ops::ControlFlow;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::config::MAX_STACK_ENTRIES;
use klp_core::conformance::{symbol_resolver, task_set, text, tracer, unwinder};
use klp_core::model::VMLINUX;
use klp_core::port::{
    Arch, Doubt, Frame, FrameKind, Platform, Poke, Symbol, SymbolResolver, TaskId, TaskSet,
    TaskState, Unwinder,
};
use klp_os_linux::process::{Process, Stopped};
use klp_os_linux_fixtures::machine::{
    BREAKPOINT, PADS_ARE_SPLIT, Processor, STEP, framed, regs, stack_of,
};
use klp_os_linux_fixtures::*;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

fn host() -> &'static Process {
    livepatch().engine().host()
}

/// The function that `addr` lies in.
fn function(addr: u64) -> TextRange {
    host()
        .symbols()
        .function_at(CodeAddr::new(addr))
        .expect("it is a function")
}

fn bytes(range: TextRange) -> Vec<u8> {
    // SAFETY: code can be read.
    unsafe { core::slice::from_raw_parts(range.start().get() as *const u8, range.len() as usize) }
        .to_vec()
}

#[test]
fn text() {
    let _alone = alone();
    let funcs = [addr_of_fn!(fx_first), addr_of_fn!(fx_mcount)].map(function);
    let entries =
        funcs.map(|func| Processor::entry(func.start(), &bytes(func)).expect("it has a pad"));
    let old = [0, 1].map(|index| bytes(funcs[index])[..usize::from(entries[index].len)].to_vec());
    let resume = [0, 1].map(|index| {
        funcs[index]
            .start()
            .wrapping_add(entries[index].resume.into())
    });
    let new = [0, 1].map(|index| {
        Processor::jump(funcs[index].start(), resume[index], entries[index].len)
            .expect("it is near")
    });
    let poke = |index: usize| Poke {
        at: funcs[index].start(),
        old: &old[index],
        new: &new[index],
        resume: resume[index],
        split: entries[index].split,
        body: resume[index],
    };
    let split = entries.map(|entry| entry.split);
    assert_eq!(split, [PADS_ARE_SPLIT, false], "pads of all kinds");
    let mut pokes = [poke(0), poke(1)];
    pokes.sort_by_key(|poke| poke.at);
    // SAFETY: pads of functions that nobody calls meanwhile.
    unsafe { text::check(host().text(), pokes, Processor::REACH) };
}

#[test]
fn tracer() {
    let _alone = alone();
    let limit = Mutex::new(None);
    let spoil = |on: bool| {
        // Code cannot be made writable where a process may have no more data. (0 would not count:
        // `may_expand_vm` in the kernel's `mm/mmap.c`.)
        let mut limit = limit.lock().expect("nobody panics here");
        // SAFETY: limits are the process's own business.
        unsafe {
            if on {
                let mut before: libc::rlimit = core::mem::zeroed();
                libc::getrlimit(libc::RLIMIT_DATA, &raw mut before);
                let none = libc::rlimit {
                    rlim_cur: 4096,
                    ..before
                };
                libc::setrlimit(libc::RLIMIT_DATA, &raw const none);
                *limit = Some(before);
            } else if let Some(before) = limit.take() {
                libc::setrlimit(libc::RLIMIT_DATA, &raw const before);
            }
        }
    };
    let before = Mutex::new(Vec::new());
    let hold = |on: bool| {
        let mut before = before.lock().expect("nobody panics here");
        let bytes = if on { BREAKPOINT } else { &before };
        *before = overwrite(addr_of_fn!(fx_value), bytes);
    };
    let pair = |old, new| (function(old), function(new));
    let bench = tracer::Bench {
        tracer: host().tracer(),
        funcs: &[
            pair(addr_of_fn!(fx_value), addr_of_fn!(fx_value_new)),
            pair(addr_of_fn!(fx_endbr), addr_of_fn!(fx_endbr_new)),
            pair(addr_of_fn!(fx_mcount), addr_of_fn!(fx_mcount_new)),
        ],
        without_site: function(addr_of_fn!(fx_nopad)),
        notrace: function(addr_of_fn!(fx_notrace)),
        bytes: &bytes,
        replaced: &|index| match index {
            0 => fx_value() == 2,
            1 => fx_endbr() == 32,
            _ => fx_mcount(0) == 42,
        },
        hold: Some(&hold),
        spoil: Some(&spoil),
    };
    // SAFETY: pairs of functions of the same type; no patch is enabled meanwhile.
    unsafe { tracer::check(&bench) };
}

#[test]
fn symbol_resolver() {
    let _alone = alone();
    let symbol = |addr| Symbol {
        addr: function(addr).start(),
        len: function(addr).len(),
    };
    assert_eq!(
        (fx_call_local1(), fx_call_local2()),
        (11, 22),
        "there are two functions of the same name"
    );
    let mut duplicates = Vec::new();
    host()
        .symbols()
        .symbols(VMLINUX, "fx_local", &mut |symbol| duplicates.push(symbol))
        .expect("the file can be read");
    let mut answers: Vec<i32> = duplicates.iter().map(|symbol| call(symbol.addr)).collect();
    answers.sort_unstable();
    assert_eq!(answers, [11, 22], "these are the two");
    symbol_resolver::check(
        host().symbols(),
        &symbol_resolver::Known {
            object: VMLINUX,
            exported: ("fx_value", symbol(addr_of_fn!(fx_value))),
            local: ("fx_once", symbol(fx_once_addr() as u64)),
            duplicates: ("fx_local", &duplicates),
        },
    );
}

/// Calls a function that takes nothing and returns a number.
fn call(addr: CodeAddr) -> i32 {
    // SAFETY: the symbol table says that it is such a function.
    unsafe { core::mem::transmute::<usize, extern "C" fn() -> i32>(addr.get() as usize)() }
}

type Work = Box<dyn FnOnce() + Send>;

/// Threads that do what they are told until the end.
#[derive(Default)]
struct Workers(Mutex<BTreeMap<u64, Sender<Work>>>);

impl Workers {
    /// A thread more, born of the calling one.
    fn birth(&'static self) -> TaskId {
        let (send_id, id) = channel();
        std::thread::spawn(move || {
            let (send, work) = channel();
            self.0
                .lock()
                .expect("nobody panics here")
                .insert(tid() as u64, send);
            send_id
                .send(TaskId(tid() as u64))
                .expect("the parent waits");
            work.iter().for_each(|work: Work| work());
        });
        id.recv().expect("the thread says its id")
    }

    /// Has `task` do `work`.
    fn ask<R: Send + 'static>(&self, task: TaskId, work: impl FnOnce() -> R + Send + 'static) -> R {
        let (send, answer) = channel();
        let work = Box::new(move || drop(send.send(work())));
        self.0.lock().expect("nobody panics here")[&task.0]
            .send(work)
            .expect("the worker lives");
        answer.recv().expect("the worker answers")
    }
}

#[test]
fn task_set() {
    let _alone = alone();
    let workers: &'static Workers = Box::leak(Box::default());
    let some = [workers.birth(), workers.birth()];
    let gone = std::thread::spawn(|| TaskId(tid() as u64))
        .join()
        .expect("the thread only answers");
    while std::fs::exists(format!("/proc/self/task/{}", gone.0)).expect("there is a /proc") {
        std::thread::yield_now();
    }
    task_set::check(&task_set::Bench {
        tasks: host().tasks(),
        some: &some,
        state: &|task| workers.ask(task, || -> TaskState { host().tasks().current_state() }),
        birth: &|parent| workers.ask(parent, || workers.birth()),
        gone,
    });
}

#[test]
fn unwinder() {
    let _alone = alone();
    let start = {
        let mut found = None;
        let symbols = host().symbols().symbols(VMLINUX, "_start", &mut |symbol| {
            found = Some(symbol.addr.get())
        });
        symbols.expect("the file can be read");
        found.expect("every program has it")
    };
    // Stacks as memory: a function, called by itself, called by the outermost function.
    let value = framed();
    let (again, end, data) = (value + STEP as u64, start + STEP as u64, [0_u64; 4]);
    let good = [again, again, end];
    let mut deep = vec![again; 20 * MAX_STACK_ENTRIES];
    deep.push(end);
    let astray = [again, data.as_ptr() as u64];
    let stacks = [
        stack_of(&good, true),
        stack_of(&astray, false),
        stack_of(&deep, true),
    ];
    let stopped = |stack: &[u64]| regs(value, stack.as_ptr() as u64);
    let frames = |calls: &[u64]| -> Vec<Frame> {
        let interrupted = Frame {
            pc: CodeAddr::new(value),
            kind: FrameKind::Interrupted,
        };
        let call = |pc: &u64| Frame {
            pc: CodeAddr::new(*pc),
            kind: FrameKind::Call,
        };
        [interrupted]
            .into_iter()
            .chain(calls.iter().map(call))
            .collect()
    };
    // The first page of memory is never mapped.
    let unmapped = regs(value, 16);
    let cases = [
        ("reliable", stopped(&stacks[0]), frames(&good), None),
        (
            "no table",
            stopped(&stacks[1]),
            frames(&astray),
            Some(Doubt::NoTable),
        ),
        ("deep", stopped(&stacks[2]), frames(&deep), None),
        ("unmapped", unmapped, frames(&[]), Some(Doubt::BadMemory)),
    ]
    .map(|(name, regs, frames, doubt)| (name, Stopped::from(regs), frames, doubt));
    let cases = cases
        .each_ref()
        .map(|(name, context, frames, doubt)| unwinder::Case {
            name,
            context,
            frames,
            doubt: *doubt,
        });
    unwinder::check(host().unwinder(), &cases);

    // Where calls are redirected, nothing is reliable.
    let stub = regs(stub_addr(), stacks[0].as_ptr() as u64);
    let walked = host()
        .unwinder()
        .walk(&stub.into(), &mut |_| ControlFlow::Continue(()));
    assert_eq!(
        walked.expect_err("the stub is in no table").why,
        Doubt::NoTable
    );
}

/// The entry stub.
fn stub_addr() -> u64 {
    use klp_core::port::EntryHost;
    host().tracer().host().stub().get()
}
