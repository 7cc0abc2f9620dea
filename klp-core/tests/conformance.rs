//! The conformance suites on the simulated OS: what a porter's own test file looks like.

use klp_core::addr::{CodeAddr, TextRange};
use klp_core::conformance::{arch, relocator, symbol_resolver, task_set, text, tracer, unwinder};
use klp_core::model::VMLINUX;
use klp_core::port::{
    Arch, Doubt, Frame, FrameKind, Platform, Poke, Reason, Stated, Stopper, Symbol, TaskId,
    TaskState, Visitor,
};
use klp_core::sim::machine::{Insn, SimArch};
use klp_core::sim::relocator::{ABS64, NEAR32, SLOT32, SimRelocator};
use klp_core::sim::{Pad, Place, SimContext, SimOs};
use std::cell::Cell;
use std::sync::Mutex;

#[test]
fn arch() {
    arch::check::<SimArch>(
        &[&Insn::Nop.encode(), &Insn::ShortNop.encode()],
        &Insn::Break.encode(),
    );
}

#[test]
fn relocator() {
    let known = [(ABS64, 8, false), (NEAR32, 4, true), (SLOT32, 4, true)];
    relocator::check::<SimRelocator>(
        &known.map(|(kind, len, limited)| relocator::Known { kind, len, limited }),
        &[0, 9],
    );
}

#[test]
fn text() {
    let host = SimOs::new();
    let sites = [Pad::Whole, Pad::Split]
        .map(|pad| host.range(host.function_with(VMLINUX, "f", pad)).start());
    let old = [Insn::Nop, Insn::ShortNop].map(Insn::encode);
    let new = sites.map(|site| SimArch::jump(site, CodeAddr::new(0x100_8000), 8).expect("near"));
    let poke = |index: usize| Poke {
        at: sites[index],
        old: &old[index],
        new: &new[index],
        resume: CodeAddr::new(0x100_8000),
        split: index == 1,
        body: sites[index].wrapping_add(8),
    };
    // SAFETY: code is simulated.
    unsafe { text::check(host.text(), [poke(0), poke(1)], SimArch::REACH) };
    assert_eq!(host.images(), [], "the suite gives back what it took");
}

#[test]
fn tracer() {
    for place in [Place::Near, Place::Far] {
        let host = SimOs::new();
        let funcs =
            [Pad::Whole, Pad::Split, Pad::Whole].map(|pad| host.function_with(VMLINUX, "f", pad));
        let bare = host.range(host.function_with(VMLINUX, "bare", Pad::None));
        let notrace = host.function(VMLINUX, "notrace");
        host.notrace(notrace);
        let task = host.spawn("caller");
        let first = host.range(funcs[0]).start();
        let before = Cell::new([0; 8]);
        let hold = |on: bool| {
            if on {
                before.set(host.word(first));
            }
            host.overwrite(
                first,
                &if on {
                    Insn::Break.encode()
                } else {
                    before.get()
                },
            );
        };
        let spoil = |on: bool| {
            host.disarm();
            if on {
                host.fail_calls(&[("Text::poke", 1)]);
            }
        };
        let pairs = funcs.map(|func| (host.range(func), host.replacement("new", func, place)));
        let bench = tracer::Bench {
            tracer: host.tracer(),
            funcs: &pairs,
            without_site: bare,
            notrace: host.range(notrace),
            bytes: &|func: TextRange| host.word(func.start()).to_vec(),
            replaced: &|index: usize| host.version(task, funcs[index]) == "new_f",
            hold: Some(&hold),
            spoil: Some(&spoil),
        };
        // SAFETY: simulated functions.
        unsafe { tracer::check(&bench) };
        assert_eq!(host.violations(), [""; 0]);
    }
}

#[test]
fn symbol_resolver() {
    let host = SimOs::new();
    let symbol = |func| Symbol {
        addr: host.range(func).start(),
        len: host.range(func).len(),
    };
    let local = symbol(host.function("mod", "local"));
    let duplicates = [host.function("mod", "twice"), host.function("mod", "twice")].map(symbol);
    host.function("other", "twice");
    let in_module = symbol(host.function("mod", "in_module"));
    host.export("in_module");
    let known = symbol_resolver::Known {
        object: "mod",
        exported: ("in_module", in_module),
        local: ("local", local),
        duplicates: ("twice", &duplicates),
    };
    symbol_resolver::check(host.symbols(), &known);
}

#[test]
fn task_set() {
    let host = SimOs::new();
    let some = [host.spawn("one"), host.spawn("two")];
    let gone = host.spawn("gone");
    host.exit(gone);
    task_set::check(&task_set::Bench {
        tasks: host.tasks(),
        some: &some,
        state: &|task| host.state(task).unwrap_or(TaskState::Idle),
        birth: &|task| host.spawn_child("child", task),
        gone,
    });
}

#[test]
fn unwinder() {
    let host = SimOs::new();
    let [outer, inner] = ["outer", "inner"].map(|name| host.function(VMLINUX, name));
    let [deep, odd] = ["deep", "odd"].map(|name| host.spawn(name));
    assert!(host.call(deep, outer) && host.call(deep, inner));
    host.set_unreliable(odd, Some(Doubt::BadMemory));
    let rest = CodeAddr::new(0x9000);
    let frame = |pc, kind| Frame { pc, kind };
    let body = |func| host.range(func).start().wrapping_add(8);
    let frames = [
        frame(body(inner), FrameKind::Interrupted),
        frame(body(outer).wrapping_add(8), FrameKind::Call),
        frame(rest.wrapping_add(8), FrameKind::Call),
    ];
    let contexts = [deep, odd].map(|task| stop(&host, task));
    unwinder::check(
        host.unwinder(),
        &[
            unwinder::Case {
                name: "deep",
                context: &contexts[0],
                frames: &frames,
                doubt: None,
            },
            unwinder::Case {
                name: "odd",
                context: &contexts[1],
                frames: &[frame(rest, FrameKind::Interrupted)],
                doubt: Some(Doubt::BadMemory),
            },
        ],
    );
}

/// What a visitor sees of `task`.
fn stop(host: &SimOs, task: TaskId) -> SimContext {
    struct Keep(Mutex<Option<SimContext>>);
    impl Visitor<SimContext> for Keep {
        fn visit(&self, _index: usize, context: &SimContext) -> Option<TaskState> {
            *self.0.lock().expect("nobody panics") = Some(context.clone());
            None
        }
        fn missed(&self, _index: usize, _reason: Reason) {}
    }
    let keep = Keep(Mutex::new(None));
    // SAFETY: no engine uses the tasks, and nothing is patched.
    unsafe {
        let stated = Stated::init(host.tasks(), TaskState::Patched).expect("it does not fail");
        let moves = stated.start(host.tasks()).expect("it does not fail");
        host.tasks().with_stopped(&moves, &[task], &keep);
        let moves = moves
            .close(host.tasks())
            .expect_err("a look changes nothing");
        moves.force(host.tasks()).finish(host.tasks());
    }
    keep.0
        .into_inner()
        .expect("nobody panics")
        .expect("the task was visited")
}
