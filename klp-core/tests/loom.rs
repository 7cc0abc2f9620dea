//! The handler's orderings, model-checked: every interleaving of the engine with calls of the
//! handler, and every value that the memory model lets them read.
//!
//! ```text
//! RUSTFLAGS='--cfg loom' cargo test -p klp-core --test loom --release
//! ```
//!
//! With an ordering weakened the models must fail:
//!
//! ```text
//! RUSTFLAGS='--cfg loom --cfg klp_weaken="stack"' cargo test -p klp-core --test loom --release
//! RUSTFLAGS='--cfg loom --cfg klp_weaken="transition"' \
//!     cargo test -p klp-core --test loom --release
//! RUSTFLAGS='--cfg loom --cfg klp_weaken="loan"' cargo test -p klp-core --test loom --release
//! ```

#![cfg(loom)]

use core::ptr::NonNull;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::mem::try_box;
use klp_core::ops::{Nodes, Ops, Writer};
use klp_core::port::{Lending, PortError, PortErrorKind, Routing, TaskState, Tracer};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicI8, Ordering};
use loom::sync::{Arc, RwLock};
use loom::thread;

const ORIGINAL: CodeAddr = CodeAddr::new(0x1000);
const NEW: [CodeAddr; 2] = [CodeAddr::new(0x2000), CodeAddr::new(0x3000)];

/// One patched function, one task's state, and what `synchronize` waits for.
#[derive(Debug)]
struct Host {
    ops: &'static Ops,
    /// The word that `TaskSet::current_state` reads. Nothing but the orderings under test makes it
    /// visible.
    state: AtomicI8,
    /// Read-locked while a handler runs: to get it for writing is to wait for them all.
    running: RwLock<()>,
}

/// What a run of the handler saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    to: CodeAddr,
    /// The state that it read, if it asked.
    state: Option<TaskState>,
}

impl Host {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            ops: Ops::leak(try_box(Ops::new(ORIGINAL)).expect("memory")),
            state: AtomicI8::new(TaskState::Idle as i8),
            running: RwLock::new(()),
        })
    }

    fn set_state(&self, state: TaskState) {
        self.state.store(state as i8, Ordering::Relaxed);
    }

    /// One run of the handler.
    fn call(&self) -> Seen {
        let _running = self.running.read().expect("nobody panics while holding it");
        let mut state = None;
        let ask = || {
            let now = TaskState::from_i8(self.state.load(Ordering::Relaxed)).expect("a state");
            state = Some(now);
            now
        };
        // SAFETY: `synchronize` waits for `running`.
        let to = unsafe { self.ops.select(ask) };
        Seen { to, state }
    }
}

/// The engine's side of a model.
struct Engine<'a> {
    host: &'a Host,
    writer: Writer,
}

impl Engine<'_> {
    fn on(host: &Host) -> Engine<'_> {
        // SAFETY: a model has one engine, and a host of its own.
        Engine {
            host,
            writer: unsafe { Writer::new() },
        }
    }

    /// Handlers may run while this does; the engine's part of enabling, up to where the site is
    /// routed.
    fn push(&mut self, nodes: &mut Nodes, initial: TaskState) {
        self.host.set_state(initial);
        self.set_transition(nodes, true);
        self.settle(nodes);
    }

    /// Without a transition.
    fn settle(&mut self, nodes: &mut Nodes) {
        self.host.ops.stack().push(&mut self.writer, nodes, 0);
    }

    fn remove(&mut self, nodes: &mut Nodes) {
        self.host.ops.stack().remove(&mut self.writer, nodes, 0);
    }

    fn set_transition(&mut self, nodes: &Nodes, on: bool) {
        nodes
            .get(0)
            .expect("one node")
            .set_transition(&mut self.writer, on);
    }

    /// The memory goes when `nodes` are dropped.
    fn release(&mut self, nodes: &mut Nodes) {
        nodes.release(&self.writer.synchronize(self.host));
    }

    /// Every task has moved, and the patch stays.
    fn complete_patching(&mut self, nodes: &Nodes) {
        self.set_transition(nodes, false);
        let _ = self.writer.synchronize(self.host);
        self.host.set_state(TaskState::Idle);
    }

    /// Every task has moved, and the patch goes.
    fn complete_unpatching(&mut self, mut nodes: Nodes) {
        self.remove(&mut nodes);
        let proof = self.writer.synchronize(self.host);
        self.host.set_state(TaskState::Idle);
        nodes.release(&proof);
    }
}

fn nodes(new: CodeAddr) -> Nodes {
    Nodes::new([TextRange::new(new, 0x100).expect("fits")].into_iter()).expect("memory")
}

/// Never asked for.
#[derive(Debug)]
struct NoError;

impl core::fmt::Display for NoError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("no error")
    }
}

impl PortError for NoError {
    fn kind(&self) -> PortErrorKind {
        PortErrorKind::Failed
    }
}

// SAFETY: there is nothing to route; `synchronize` waits until no handler that began before holds
// the lock.
unsafe impl Tracer for Host {
    type Site = ();
    type Error = NoError;

    fn site_of(&self, _func: TextRange) -> Result<(), NoError> {
        Ok(())
    }

    fn original(&self, _site: ()) -> CodeAddr {
        ORIGINAL
    }

    unsafe fn route(&self, _batch: &[Routing<()>]) -> Result<(), NoError> {
        Ok(())
    }

    unsafe fn forget(&self, _: Self::Site) {}

    fn synchronize(&self) {
        drop(
            self.running
                .write()
                .expect("nobody panics while holding it"),
        );
    }
}

/// Runs the handler twice in another thread, beside `engine`; `judge` looks at what each run saw.
fn race(engine: impl Fn(&mut Engine<'_>) + Sync + Send + 'static, judge: fn(Seen)) {
    loom::model(move || {
        let host = Host::new();
        let task = {
            let host = host.clone();
            thread::spawn(move || (0..2).for_each(|_| judge(host.call())))
        };
        engine(&mut Engine::on(&host));
        task.join().expect("no call failed");
    });
}

/// Who sees a node sees what is in it, and the states that the transition starts from. Weakened by
/// `stack`.
#[test]
fn a_node_comes_with_its_contents_and_the_initial_states() {
    race(
        |engine| {
            let mut nodes = nodes(NEW[0]);
            engine.push(&mut nodes, TaskState::Unpatched);
            // Nodes that are on a stack when they are dropped are leaked.
        },
        |seen| {
            // The task is in the old version all the time: it must never run the new one.
            assert_eq!(seen.to, ORIGINAL, "{seen:?}");
            assert_ne!(seen.state, Some(TaskState::Idle), "{seen:?}");
        },
    );
}

/// Two patches: the lower one is what tasks run that have not moved.
#[test]
fn the_previous_function_runs_until_the_task_moves() {
    race(
        |engine| {
            let (mut lower, mut upper) = (nodes(NEW[0]), nodes(NEW[1]));
            engine.settle(&mut lower);
            engine.push(&mut upper, TaskState::Unpatched);
        },
        |seen| assert_ne!(seen.to, NEW[1], "{seen:?}"),
    );
}

/// Who sees a transition under way never reads an idle state: through enabling, completion, and the
/// beginning of disabling. Weakened by `transition`.
#[test]
fn a_transition_comes_with_the_states_that_it_starts_from() {
    race(
        |engine| {
            let mut nodes = nodes(NEW[0]);
            engine.push(&mut nodes, TaskState::Unpatched);
            engine.host.set_state(TaskState::Patched);
            engine.complete_patching(&nodes);
            engine.host.set_state(TaskState::Patched);
            engine.set_transition(&nodes, true);
        },
        |seen| assert_ne!(seen.state, Some(TaskState::Idle), "{seen:?}"),
    );
}

/// In the steady state the new version runs, and when disabling begins it goes on running: nobody
/// has moved.
#[test]
fn disabling_begins_with_the_new_version() {
    loom::model(|| {
        let host = Host::new();
        let mut engine = Engine::on(&host);
        let mut nodes = nodes(NEW[0]);
        engine.push(&mut nodes, TaskState::Unpatched);
        host.set_state(TaskState::Patched);
        engine.complete_patching(&nodes);
        let task = {
            let host = host.clone();
            thread::spawn(move || {
                let seen = host.call();
                assert_eq!(seen.to, NEW[0], "{seen:?}");
                assert_ne!(seen.state, Some(TaskState::Idle), "{seen:?}");
            })
        };
        host.set_state(TaskState::Patched);
        engine.set_transition(&nodes, true);
        task.join().expect("no call failed");
    });
}

/// A removed node is not read after its memory went (loom sees reads of its contents that race with
/// its end).
#[test]
fn removed_nodes_are_not_read_after_they_are_freed() {
    race(
        |engine| {
            let mut nodes = nodes(NEW[0]);
            engine.push(&mut nodes, TaskState::Unpatched);
            engine.complete_unpatching(nodes);
        },
        |seen| {
            assert_eq!(seen.to, ORIGINAL, "{seen:?}");
            assert_ne!(seen.state, Some(TaskState::Idle), "{seen:?}");
        },
    );
}

/// The same for a node from the middle of the stack, whose neighbours stay.
#[test]
fn a_node_is_removed_from_below_another() {
    race(
        |engine| {
            let (mut lower, mut upper) = (nodes(NEW[0]), nodes(NEW[1]));
            engine.settle(&mut lower);
            engine.settle(&mut upper);
            engine.remove(&mut lower);
            engine.release(&mut lower);
        },
        |seen| assert!([ORIGINAL, NEW[0], NEW[1]].contains(&seen.to), "{seen:?}"),
    );
}

/// Patches that are enabled together: a task that has not moved runs none of them. Weakened by
/// `stack`.
#[test]
fn none_of_several_runs_before_the_task_moves() {
    race(
        |engine| {
            let (mut lower, mut upper) = (nodes(NEW[0]), nodes(NEW[1]));
            engine.push(&mut lower, TaskState::Unpatched);
            engine.push(&mut upper, TaskState::Unpatched);
        },
        |seen| {
            assert_eq!(seen.to, ORIGINAL, "{seen:?}");
            assert_ne!(seen.state, Some(TaskState::Idle), "{seen:?}");
        },
    );
}

/// Patches that are disabled together enter the transition from below, so that a task that has
/// moved, and a task that is seen for the first time, skips all of them. Weakened by `transition`.
#[test]
fn none_of_several_runs_after_the_task_has_moved_away() {
    loom::model(|| {
        let host = Host::new();
        let mut engine = Engine::on(&host);
        let (mut lower, mut upper) = (nodes(NEW[0]), nodes(NEW[1]));
        engine.settle(&mut lower);
        engine.settle(&mut upper);
        let task = {
            let host = host.clone();
            thread::spawn(move || {
                let seen = host.call();
                let expected = if seen.state == Some(TaskState::Unpatched) {
                    ORIGINAL
                } else {
                    NEW[1]
                };
                assert_eq!(seen.to, expected, "{seen:?}");
                assert_ne!(seen.state, Some(TaskState::Idle), "{seen:?}");
            })
        };
        host.set_state(TaskState::Patched);
        engine.set_transition(&lower, true);
        engine.set_transition(&upper, true);
        host.set_state(TaskState::Unpatched);
        task.join().expect("no call failed");
    });
}

/// Several nodes leave the stack and memory at once, while a handler walks over them.
#[test]
fn several_nodes_are_removed_at_once() {
    race(
        |engine| {
            let (mut lower, mut upper) = (nodes(NEW[0]), nodes(NEW[1]));
            engine.push(&mut lower, TaskState::Unpatched);
            engine.push(&mut upper, TaskState::Unpatched);
            engine.remove(&mut lower);
            engine.complete_unpatching(upper);
            engine.release(&mut lower);
        },
        |seen| assert_eq!(seen.to, ORIGINAL, "{seen:?}"),
    );
}

/// What is lent: written before, read by whoever finds it.
#[derive(Debug)]
struct Check(UnsafeCell<u32>);

// SAFETY: loom finds it out if a read races with anything.
unsafe impl Sync for Check {}

/// What a task looks at, and what the engine writes for it.
#[derive(Debug)]
struct Lender {
    lending: Lending<Check>,
    /// What the engine says of an entry, for the transition whose check is lent.
    entry: AtomicBool,
    running: RwLock<()>,
}

/// One run of the handler by a task that would switch itself.
fn look(lender: &Lender) {
    let _running = lender
        .running
        .read()
        .expect("nobody panics while holding it");
    // SAFETY: it is used in this run only.
    if let Some(check) = unsafe { lender.lending.borrow() } {
        assert!(
            lender.entry.load(Ordering::Relaxed),
            "the entry's word belongs to another transition"
        );
        // SAFETY: it was written before it was lent, or loom has stopped the model.
        assert_eq!(check.0.with(|check| unsafe { *check }), 7);
    }
}

/// Who finds what is lent finds it whole, with what was said of entries before, and not after it
/// was given back. Weakened by `loan`.
#[test]
fn what_is_lent_is_whole_and_is_given_back_when_nobody_looks() {
    loom::model(|| {
        let (entry, running) = (AtomicBool::new(false), RwLock::new(()));
        let lender = Arc::new(Lender {
            lending: Lending::new(),
            entry,
            running,
        });
        let task = {
            let lender = lender.clone();
            thread::spawn(move || (0..2).for_each(|_| look(&lender)))
        };
        lender.entry.store(true, Ordering::Relaxed);
        let check = Box::new(Check(UnsafeCell::new(7)));
        // SAFETY: it stays until the loan was withdrawn and the runs have ended.
        unsafe { lender.lending.lend(NonNull::from(&*check)) };
        lender.lending.withdraw();
        drop(
            lender
                .running
                .write()
                .expect("nobody panics while holding it"),
        );
        // Nobody may look any more.
        check.0.with_mut(|_| ());
        drop(check);
        task.join().expect("no look failed");
    });
}
