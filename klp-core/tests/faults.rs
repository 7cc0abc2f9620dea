//! Every port call and every allocation of enabling, disabling and of a module's coming fails once; each time the system is as it was before, or the
//! transition goes on, and the next attempt succeeds.

mod common;

use common::{Sim, add, check, patch_at};
use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::mem::Name;
use klp_core::model::{CallbackContext, Callbacks, Func, Object, Patch, Replace, VMLINUX};
use klp_core::port::{Doubt, Fill, ImageLayout, Platform, TaskId, Text};
use klp_core::relocs::{Detours, Field, KlpSymbol, Reloc};
use klp_core::sim::machine::Insn;
use klp_core::sim::relocator::{ABS64, NEAR32, SLOT32};
use klp_core::sim::{Pad, Place, SimFunc, SimOs, Snapshot, insmod};
use klp_core::{Engine, Error, PatchId, Poll};
use std::alloc::System;

/// Fails the engine's `n`-th allocation of this thread, and counts what the engine has and has not given back.
struct Failing;

thread_local! {
    /// Allocations until one fails; 0: none does.
    static FAIL_IN: Cell<u64> = const { Cell::new(0) };
    static FAILED: Cell<bool> = const { Cell::new(false) };
    /// More than 0 while the simulated OS, or the test, runs.
    static NOT_ENGINE: Cell<u32> = const { Cell::new(1) };
    static LIVE: Cell<i64> = const { Cell::new(0) };
    /// What callbacks have set up and not taken down: `pre_patch` counts 1, `post_patch` 100.
    static SET_UP: Cell<i32> = const { Cell::new(0) };
}

impl Failing {
    fn engine() -> bool {
        NOT_ENGINE.get() == 0
    }

    /// Counts one allocation; whether it fails.
    fn strikes() -> bool {
        let left = FAIL_IN.get();
        if !Self::engine() || left == 0 {
            return false;
        }
        FAIL_IN.set(left - 1);
        if left == 1 {
            FAILED.set(true);
        }
        left == 1
    }

    fn live(by: i64) {
        if Self::engine() {
            LIVE.set(LIVE.get() + by);
        }
    }
}

// SAFETY: everything is the system's allocator, but for null, which says that there is no memory.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Self::strikes() {
            return core::ptr::null_mut();
        }
        Self::live(1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        Self::live(-1);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if Self::strikes() {
            return core::ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// The simulated OS begins (`true`) or ends (`false`) to run.
fn border(inside: bool) {
    NOT_ENGINE.set(if inside { NOT_ENGINE.get() + 1 } else { NOT_ENGINE.get() - 1 });
}

/// Lets the engine do something; its allocations count.
fn engine_runs<R>(run: impl FnOnce() -> R) -> R {
    border(false);
    let result = run();
    border(true);
    result
}

/// Callbacks that count.
struct Counting;

impl Callbacks for Counting {
    fn pre_patch(&self, _: &CallbackContext<'_>) -> Result<(), i32> {
        SET_UP.set(SET_UP.get() + 1);
        Ok(())
    }
    fn post_patch(&self, _: &CallbackContext<'_>) {
        SET_UP.set(SET_UP.get() + 100);
    }
    fn pre_unpatch(&self, _: &CallbackContext<'_>) {
        SET_UP.set(SET_UP.get() - 100);
    }
    fn post_unpatch(&self, _: &CallbackContext<'_>) {
        SET_UP.set(SET_UP.get() - 1);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Plain,
    Split,
    Stacked,
    Far,
    FarStacked,
    Relocated,
    /// It takes the place of another, gives two functions of that back, and has callbacks.
    Replacing,
}

const KINDS: [Kind; 7] =
    [Kind::Plain, Kind::Split, Kind::Stacked, Kind::Far, Kind::FarStacked, Kind::Relocated, Kind::Replacing];

#[derive(Clone, Copy, Debug)]
enum Operation {
    Enable,
    Disable,
}

/// What is done, and to which patch.
struct Case {
    engine: Sim,
    id: PatchId,
    operation: Operation,
}

impl Case {
    fn new(kind: Kind, operation: Operation) -> Self {
        let host = SimOs::new();
        let pad = if kind == Kind::Split { Pad::Split } else { Pad::Whole };
        let [f, g] = ["f", "g"].map(|name| host.function_with(VMLINUX, name, pad));
        let m = host.function_with("mod", "m", pad);
        let bystander = host.function(VMLINUX, "bystander");
        host.cold_part(f);
        let funcs = [(VMLINUX, "f", f), (VMLINUX, "g", g), ("mod", "m", m)];
        let sleeper = host.spawn("sleeper");
        host.spawn("rests");
        assert!(host.call(sleeper, bystander));
        host.watch_border(border);
        let place = if matches!(kind, Kind::Far | Kind::FarStacked) { Place::Far } else { Place::Near };
        let below = patch_at(&host, "below", place, &funcs);
        let patch = match kind {
            Kind::Relocated => relocated(&host, f),
            Kind::Replacing => replacing(&host, f),
            _ => patch_at(&host, "p", place, &funcs),
        };
        let engine = Engine::new(host);
        if matches!(kind, Kind::Stacked | Kind::FarStacked | Kind::Replacing) {
            let below = add(&engine, below);
            assert!(matches!(engine.enable(below), Ok(Poll::Complete { .. })));
        }
        let id = add(&engine, patch);
        if let Operation::Disable = operation {
            assert!(matches!(engine.enable(id), Ok(Poll::Complete { .. })));
        }
        check(&engine);
        engine.host().take_transcript();
        Self { engine, id, operation }
    }

    fn attempt(&self) -> Result<Poll, Error> {
        engine_runs(|| match self.operation {
            Operation::Enable => self.engine.enable(self.id),
            Operation::Disable => self.engine.disable(self.id),
        })
    }

    fn system(&self) -> Snapshot {
        self.engine.host().snapshot().without_images()
    }

    /// The transition that was started comes to its end, and sites settle.
    fn finish(&self, what: &str) {
        let host = self.engine.host();
        for _ in 0..3 {
            if self.engine.poll() == Poll::Idle {
                break;
            }
        }
        check(&self.engine);
        let enabled = matches!(self.operation, Operation::Enable);
        let status = self.engine.status().expect("memory");
        let record = status.iter().find(|record| record.id == self.id).expect("it is known");
        assert_eq!((record.enabled, record.transition), (enabled, None), "{what}");
        assert_eq!(self.engine.poll(), Poll::Idle);
        for func in [0x100_0000, 0x200_0000].map(CodeAddr::new) {
            let Some(Insn::Jump(to)) = Insn::decode(host.word(func)) else { continue };
            assert!(!matches!(Insn::decode(host.word(to)), Some(Insn::Arg(_))), "{what}: {func} is not settled");
        }
    }

    /// Fails in the way that `arm` sets up; says whether anything failed.
    fn survives(&self, what: &str, arm: impl Fn(&Self), disarm: impl Fn(&Self) -> bool) -> bool {
        let before = self.system();
        let status = self.engine.status();
        let set_up = SET_UP.get();
        let mut images = None;
        // The same again and again: what is made once and kept (ops, sites, thunks) is there after some rounds.
        for round in 0..10 {
            LIVE.set(0);
            arm(self);
            let result = self.attempt();
            let failed = disarm(self);
            let Err(error) = result else {
                self.finish(what);
                return failed || round > 0;
            };
            assert!(failed, "{what}: {error} without a fault");
            assert_eq!(self.system(), before, "{what}: {error}");
            assert_eq!(self.engine.status(), status, "{what}: {error}");
            assert_eq!(SET_UP.get(), set_up, "{what}: {error}: callbacks");
            check(&self.engine);
            engine_runs(|| drop(error));
            if round > 7 {
                assert_eq!(LIVE.get(), 0, "{what}: allocations that nobody gives back");
            }
            let now = self.engine.host().images();
            assert!(round <= 7 || images.as_ref() == Some(&now), "{what}: memory that nobody gives back");
            images = Some(now);
        }
        let again = self.attempt();
        assert!(matches!(again, Ok(Poll::Complete { .. })), "{what}, then: {again:?}");
        self.finish(what);
        true
    }
}

/// A patch whose code is in an image of its own, far away, with relocations of every kind.
fn relocated(host: &SimOs, f: SimFunc) -> Patch {
    let name = |text| Name::new(text).expect("memory");
    let far = TextRange::new(CodeAddr::new(0x50_0000_0000), 8).expect("fits");
    let layout = ImageLayout { text: 0x100, rodata: 0x40, data: 0x40 };
    let image = host.text().alloc(far, 1 << 20, layout).expect("memory");
    let code = TextRange::new(image.text.start(), 8).expect("fits");
    // SAFETY: the image was just made, and nothing runs in it.
    unsafe { host.text().fill(&[Fill { at: code.start(), bytes: &Insn::Body.encode() }]) }.expect("it is writable");
    host.adopt("p", f, code);
    let data = |offset| image.data.start().wrapping_add(offset);
    let detours = Detours { slot: Some(data(0x20)), veneer: Some(image.text.start().wrapping_add(0x80)) };
    let field = |offset, kind, room| Field { at: data(offset), kind, addend: 0, room };
    let fields = vec![field(0, ABS64, 8), field(8, NEAR32, 8), field(16, SLOT32, 4)];
    let symbol = KlpSymbol { object: name(VMLINUX), name: name("g"), pos: 0 };
    // SAFETY: fields and detours are in the image, which is never freed.
    let reloc = unsafe { Reloc::new(name(".data"), symbol, detours, fields) };
    let object = Object::vmlinux().and_then(|object| object.func(Func::with_range("f", code)?));
    Patch::builder("p").object(object.map(|object| object.with_relocs(vec![reloc]))).build().expect("well formed")
}

/// A patch that has only `f`, and takes the place of all others.
fn replacing(host: &SimOs, f: SimFunc) -> Patch {
    let new = host.replacement("p", f, Place::Near);
    let object = Object::vmlinux().and_then(|object| object.func(Func::with_range("f", new)?));
    let module = Object::module("mod").map(|object| object.with_callbacks(Box::new(Counting)));
    let object = object.map(|object| object.with_callbacks(Box::new(Counting)));
    Patch::builder("p").object(object).object(module).replace(Replace::All).build().expect("well formed")
}

/// Fails whatever `arm` counts, from the first on until nothing fails any more; says how much there was to fail.
fn fail_each(kind: Kind, operation: Operation, arm: impl Fn(&Case, u64), disarm: impl Fn(&Case) -> bool) -> u64 {
    for n in 1.. {
        let case = Case::new(kind, operation);
        if !case.survives(&format!("{operation:?} {kind:?}, fault {n}"), |case| arm(case, n), &disarm) {
            return n - 1;
        }
    }
    unreachable!("there are not that many calls")
}

fn arm_port(case: &Case, n: u64) {
    case.engine.host().fail_at(n);
}

fn disarm_port(case: &Case) -> bool {
    case.engine.host().disarm().is_some()
}

fn arm_alloc(_: &Case, n: u64) {
    FAILED.set(false);
    FAIL_IN.set(n);
}

fn disarm_alloc(_: &Case) -> bool {
    FAIL_IN.set(0);
    FAILED.get()
}

#[test]
fn every_port_call_of_enabling_fails() {
    for kind in KINDS {
        let calls = fail_each(kind, Operation::Enable, arm_port, disarm_port);
        assert!(calls >= 10, "{kind:?}: only {calls} calls were found");
    }
}

#[test]
fn every_port_call_of_disabling_fails() {
    for kind in KINDS {
        let calls = fail_each(kind, Operation::Disable, arm_port, disarm_port);
        assert!(calls >= 5, "{kind:?}: only {calls} calls were found");
    }
}

#[test]
fn every_allocation_of_enabling_fails() {
    for kind in KINDS {
        let allocations = fail_each(kind, Operation::Enable, arm_alloc, disarm_alloc);
        assert!(allocations >= 10, "{kind:?}: only {allocations} allocations were found");
    }
}

#[test]
fn every_allocation_of_disabling_fails() {
    for kind in KINDS {
        let allocations = fail_each(kind, Operation::Disable, arm_alloc, disarm_alloc);
        assert!(allocations >= 3, "{kind:?}: only {allocations} allocations were found");
    }
}

/// Relocations of a patch are taken back when it is removed; a fault leaves it known, and the next attempt succeeds.
#[test]
fn every_fault_of_removing() {
    for (arm, disarm) in [(arm_port as fn(&Case, u64), disarm_port as fn(&Case) -> bool), (arm_alloc, disarm_alloc)] {
        let mut faults = 0;
        for n in 1.. {
            let case = Case::new(Kind::Relocated, Operation::Disable);
            assert!(matches!(case.engine.disable(case.id), Ok(Poll::Complete { .. })));
            let before = case.system();
            arm(&case, n);
            let result = engine_runs(|| case.engine.remove(case.id));
            if !disarm(&case) {
                result.expect("nothing failed");
                break;
            }
            faults += 1;
            result.expect_err("something failed");
            assert_eq!(case.system(), before);
            check(&case.engine);
            let patch = case.engine.remove(case.id).expect("nothing fails now");
            let fields = patch.objects()[0].relocs()[0].fields();
            assert!(fields.iter().all(|field| case.engine.host().word(field.at)[..4] == [0; 4]), "fields are cleared");
            assert_eq!(case.engine.find("p"), None);
        }
        assert!(faults >= 2, "only {faults} faults");
    }
}

/// The patch is refused before anything is known of it; it comes back.
#[test]
fn every_allocation_of_adding_fails() {
    let mut faults = 0;
    for n in 1.. {
        let host = SimOs::new();
        let f = host.function(VMLINUX, "f");
        let patch = patch_at(&host, "p", Place::Near, &[(VMLINUX, "f", f)]);
        let engine = Engine::new(host);
        FAILED.set(false);
        FAIL_IN.set(n);
        border(false);
        let result = engine.add(patch);
        border(true);
        FAIL_IN.set(0);
        if !FAILED.get() {
            result.expect("nothing failed");
            break;
        }
        faults += 1;
        let refused = result.expect_err("memory ran out");
        assert_eq!((refused.error, engine.find("p")), (Error::OutOfMemory, None));
        engine.add(refused.patch).expect("nothing fails now");
    }
    assert!(faults >= 2, "only {faults} allocations were found");
}

/// Somebody holds the entry: memory may run out while that is put into words, and nothing changes nevertheless.
#[test]
fn every_allocation_of_a_refusal_fails() {
    for enabled in [false, true] {
        let mut faults = 0;
        for n in 1.. {
            let host = SimOs::new();
            let f = host.function(VMLINUX, "f");
            let site = host.range(f).start();
            host.watch_border(border);
            let engine = Engine::new(host);
            let patch = patch_at(engine.host(), "p", Place::Far, &[(VMLINUX, "f", f)]);
            let p = add(&engine, patch);
            if enabled {
                engine.enable(p).expect("nobody holds the entry");
            }
            let free = engine.host().word(site);
            engine.host().overwrite(site, &Insn::Jump(site).encode());
            let held = engine.host().word(site);
            FAILED.set(false);
            FAIL_IN.set(n);
            let refused = engine_runs(|| if enabled { engine.disable(p) } else { engine.enable(p) });
            FAIL_IN.set(0);
            let error = refused.expect_err("somebody holds the entry");
            assert_eq!(engine.host().word(site), held, "it is left alone");
            engine.host().overwrite(site, &free);
            check(&engine);
            if !FAILED.get() {
                assert!(error.to_string().contains("a jump to f+0x0/0x10 stands at f+0x0/0x10"), "{error}");
                break;
            }
            assert_eq!(error, Error::OutOfMemory);
            faults += 1;
        }
        assert!(faults >= 5, "only {faults} allocations were found");
    }
}

/// After `TaskSet::start` errors do not end a transition: it stays under way, and the next poll goes on.
#[test]
fn a_transition_survives_faults_while_it_runs() {
    for n in 1..=12 {
        let case = Case::new(Kind::Stacked, Operation::Enable);
        let host = case.engine.host();
        let [first, _] = host.task_ids()[..] else { panic!("two tasks") };
        host.set_unreliable(first, Some(Doubt::Corrupt));
        assert_eq!(case.attempt(), Ok(Poll::Waiting { patch: case.id, pending: 1 }));
        host.fail_at(n);
        for _ in 0..3 {
            let poll = engine_runs(|| case.engine.poll());
            assert!(matches!(poll, Poll::Waiting { patch, .. } if patch == case.id), "{poll:?}");
            let blockers = engine_runs(|| case.engine.blockers(case.id));
            assert!(blockers.is_err() || blockers.is_ok_and(|blockers| blockers.len() == 1));
            // It may fail to list the tasks.
            let _ = engine_runs(|| case.engine.kick(case.id));
            check(&case.engine);
        }
        assert!(host.disarm().is_some(), "call {n} was made");
        host.set_unreliable(first, None);
        case.finish(&format!("fault {n}"));
    }
}

/// A transition that cannot be turned round goes on as before.
#[test]
fn reversing_that_fails_changes_nothing() {
    let case = Case::new(Kind::Plain, Operation::Enable);
    let host = case.engine.host();
    let [first, _] = host.task_ids()[..] else { panic!("two tasks") };
    host.set_unreliable(first, Some(Doubt::Corrupt));
    assert_eq!(case.attempt(), Ok(Poll::Waiting { patch: case.id, pending: 1 }));
    let (before, status) = (case.system(), case.engine.status());
    host.fail_at(1);
    let error = case.engine.reverse(case.id).expect_err("`start` fails");
    assert_eq!(error.to_string(), "reversing the transition for patch 'p' failed: TaskSet::start failed: Failed");
    assert_eq!(host.disarm(), Some("TaskSet::start"));
    assert_eq!((case.system(), case.engine.status()), (before, status));
    check(&case.engine);
    host.set_unreliable(first, None);
    case.finish("after a failed reversal");
}

const OPERATIONS: [Operation; 2] = [Operation::Enable, Operation::Disable];

/// Two faults in a row: the second one hits the way back. Sites then lead to the handler for a while, which answers as they would.
#[test]
fn the_way_back_fails_too() {
    for operation in OPERATIONS {
        let case = Case::new(Kind::FarStacked, operation);
        let host = case.engine.host();
        let before = case.engine.status();
        // Sites are routed there, then back.
        host.fail_calls(&[("TaskSet::start", 1), ("Text::poke", 2)]);
        let error = case.attempt().expect_err("`start` fails");
        assert!(error.to_string().contains("TaskSet::start"), "{error}");
        host.disarm();
        assert_eq!(case.engine.status(), before);
        check(&case.engine);
        assert!(host.take_transcript().iter().any(|line| line.contains("entry sites not settled")));
        assert_eq!(case.engine.poll(), Poll::Idle, "settles");
        assert!(matches!(case.attempt(), Ok(Poll::Complete { .. })));
        case.finish("after an unsettled time");
    }
}

/// The new contents of a veneer were written, but the site could not be led there: the veneer's old contents must not be
/// trusted any more.
#[test]
fn a_veneer_is_filled_in_vain() {
    let case = Case::new(Kind::FarStacked, Operation::Enable);
    let host = case.engine.host();
    // To the handler, then to the new function.
    host.fail_calls(&[("Text::poke", 2)]);
    assert!(matches!(case.attempt(), Ok(Poll::Complete { enabled: true, .. })));
    assert_eq!(host.disarm(), Some("Text::poke"));
    check(&case.engine);
    assert!(matches!(case.engine.disable(case.id), Ok(Poll::Complete { enabled: false, .. })));
    check(&case.engine);
}

/// A module comes: two patches have it, and a third one, in transition, takes their place and gives one of its functions back.
/// Whatever fails, the module is refused, nobody knows it, and the next time it comes.
#[test]
fn every_fault_of_coming() {
    for (arm, disarm) in [(arm_port as fn(&Case, u64), disarm_port as fn(&Case) -> bool), (arm_alloc, disarm_alloc)] {
        let mut faults = 0;
        for n in 1.. {
            let (case, m, task) = coming();
            let (before, status, set_up) = (case.system(), case.engine.status(), SET_UP.get());
            arm(&case, n);
            let result = engine_runs(|| insmod(&case.engine, "mod"));
            if !disarm(&case) {
                result.expect("nothing failed");
                break;
            }
            faults += 1;
            if let Err(error) = result {
                assert_eq!(case.system(), before, "fault {n}: {error}");
                assert_eq!((case.engine.status(), SET_UP.get()), (status, set_up), "fault {n}: {error}");
                check(&case.engine);
                insmod(&case.engine, "mod").expect("nothing fails now");
            }
            check(&case.engine);
            assert_eq!(case.engine.host().version(task, m), "below2_m", "fault {n}: the task has not moved");
            case.engine.host().rest_all();
            assert_eq!(case.engine.poll(), Poll::Complete { patch: case.id, enabled: true }, "fault {n}");
            check(&case.engine);
            assert_eq!(case.engine.host().version(task, m), "m", "fault {n}");
        }
        assert!(faults >= 10, "only {faults} faults");
    }
}

/// The system into which the module comes, its function, and a task that keeps the transition waiting.
fn coming() -> (Case, SimFunc, TaskId) {
    let host = SimOs::new();
    let (f, m) = (host.function(VMLINUX, "f"), host.function("mod", "m"));
    host.not_loaded("mod");
    let holder = host.spawn("holder");
    host.watch_border(border);
    let olds = ["below", "below2"].map(|name| patch_at(&host, name, Place::Far, &[(VMLINUX, "f", f), ("mod", "m", m)]));
    let new = replacing(&host, f);
    let engine = Engine::new(host);
    for old in olds {
        let old = add(&engine, old);
        assert!(matches!(engine.enable(old), Ok(Poll::Complete { .. })));
    }
    let id = add(&engine, new);
    assert!(engine.host().call(holder, f));
    assert!(matches!(engine.enable(id), Ok(Poll::Waiting { .. })));
    check(&engine);
    (Case { engine, id, operation: Operation::Enable }, m, holder)
}
