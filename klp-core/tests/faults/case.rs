//! What is done to which patches, and how it fails.

use super::common::{Sim, add, check, patch_at};
use super::failing::{FAIL_IN, FAILED, LIVE, border, engine_runs};
use core::cell::Cell;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::model::{CallbackContext, Callbacks, Object, Patch, Replace, VMLINUX};
use klp_core::port::{Fill, ImageLayout, Owner, Platform, Text};
use klp_core::relocs::{Detours, Field, KlpSymbol, Relocs};
use klp_core::sim::machine::Insn;
use klp_core::sim::relocator::{ABS64, NEAR32, SLOT32};
use klp_core::sim::{self, Pad, Place, SimFunc, SimOs, Snapshot};
use klp_core::{Engine, Error, PatchId, Poll};

thread_local! {
    /// What callbacks have set up and not taken down: `pre_patch` counts 1, `post_patch` 100.
    pub(crate) static SET_UP: Cell<i32> = const { Cell::new(0) };
}

/// Callbacks that count.
pub(crate) struct Counting;

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
pub(crate) enum Kind {
    Plain,
    Split,
    Stacked,
    Far,
    FarStacked,
    Relocated,
    /// It takes the place of another, gives two functions of that back, and has callbacks.
    Replacing,
    /// One like that, and one that has all functions on top of it, as one.
    Several,
}

pub(crate) const KINDS: [Kind; 8] = [
    Kind::Plain,
    Kind::Split,
    Kind::Stacked,
    Kind::Far,
    Kind::FarStacked,
    Kind::Relocated,
    Kind::Replacing,
    Kind::Several,
];

#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    Enable,
    Disable,
}

/// What is done, and to which patch.
pub(crate) struct Case {
    pub(crate) engine: Sim,
    /// The first of the patches.
    pub(crate) id: PatchId,
    pub(crate) ids: Vec<PatchId>,
    pub(crate) operation: Operation,
}

impl Case {
    pub(crate) fn new(kind: Kind, operation: Operation) -> Self {
        let host = SimOs::new();
        let pad = if kind == Kind::Split {
            Pad::Split
        } else {
            Pad::Whole
        };
        let [f, g] = ["f", "g"].map(|name| host.function_with(VMLINUX, name, pad));
        let m = host.function_with("mod", "m", pad);
        let bystander = host.function(VMLINUX, "bystander");
        host.cold_part(f);
        let funcs = [(VMLINUX, "f", f), (VMLINUX, "g", g), ("mod", "m", m)];
        let sleeper = host.spawn("sleeper");
        host.spawn("rests");
        assert!(host.call(sleeper, bystander));
        host.watch_border(border);
        let place = if matches!(kind, Kind::Far | Kind::FarStacked) {
            Place::Far
        } else {
            Place::Near
        };
        let below = patch_at(&host, "below", place, &funcs);
        let patches = match kind {
            Kind::Relocated => vec![relocated(&host, f)],
            Kind::Replacing => vec![replacing(&host, f)],
            Kind::Several => vec![
                replacing(&host, f),
                patch_at(&host, "q", Place::Far, &funcs),
            ],
            _ => vec![patch_at(&host, "p", place, &funcs)],
        };
        let engine = Engine::new(host);
        if matches!(
            kind,
            Kind::Stacked | Kind::FarStacked | Kind::Replacing | Kind::Several
        ) {
            let below = add(&engine, below);
            assert!(matches!(engine.enable(below), Ok(Poll::Complete { .. })));
        }
        let ids: Vec<_> = patches
            .into_iter()
            .map(|patch| add(&engine, patch))
            .collect();
        if let Operation::Disable = operation {
            assert!(matches!(engine.enable_all(&ids), Ok(Poll::Complete { .. })));
        }
        check(&engine);
        engine.host().take_transcript();
        Self {
            engine,
            id: ids[0],
            ids,
            operation,
        }
    }

    pub(crate) fn attempt(&self) -> Result<Poll, Error> {
        engine_runs(|| match self.operation {
            Operation::Enable => self.engine.enable_all(&self.ids),
            Operation::Disable => self.engine.disable_all(&self.ids),
        })
    }

    pub(crate) fn system(&self) -> Snapshot {
        self.engine.host().snapshot().without_images()
    }

    /// The transition that was started comes to its end, and sites settle.
    pub(crate) fn finish(&self, what: &str) {
        let host = self.engine.host();
        for _ in 0..3 {
            if self.engine.poll() == Poll::Idle {
                break;
            }
        }
        check(&self.engine);
        let enabled = matches!(self.operation, Operation::Enable);
        let status = self.engine.status().expect("memory");
        for record in status.iter().filter(|record| self.ids.contains(&record.id)) {
            assert_eq!(
                (record.enabled, record.transition),
                (enabled, None),
                "{what}"
            );
        }
        assert_eq!(self.engine.poll(), Poll::Idle);
        for func in [0x100_0000, 0x200_0000].map(CodeAddr::new) {
            let Some(Insn::Jump(to)) = Insn::decode(host.word(func)) else {
                continue;
            };
            assert!(
                !matches!(Insn::decode(host.word(to)), Some(Insn::Arg(_))),
                "{what}: {func} is not settled"
            );
        }
    }

    /// Fails in the way that `arm` sets up; says whether anything failed.
    pub(crate) fn survives(
        &self,
        what: &str,
        arm: impl Fn(&Self),
        disarm: impl Fn(&Self) -> bool,
    ) -> bool {
        let before = self.system();
        let status = self.engine.status();
        let set_up = SET_UP.get();
        let mut images = None;
        // The same again and again: what is made once and kept (ops, sites, thunks) is there after
        // some rounds.
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
            assert!(
                round <= 7 || images.as_ref() == Some(&now),
                "{what}: memory that nobody gives back"
            );
            images = Some(now);
        }
        let again = self.attempt();
        assert!(
            matches!(again, Ok(Poll::Complete { .. })),
            "{what}, then: {again:?}"
        );
        self.finish(what);
        true
    }
}

/// A patch whose code is in an image of its own, far away, with relocations of every kind.
pub(crate) fn relocated(host: &SimOs, f: SimFunc) -> Patch {
    let (code, relocs) = relocs(host, f, "p", (VMLINUX, "g"));
    let object = Object::vmlinux().and_then(|object| object.func(sim::func("f", code)?));
    Patch::builder("p")
        .object(object.map(|object| object.with_relocs(relocs)))
        .build()
        .expect("well formed")
}

/// The same, but the relocations refer to a function of the module, and wait for that. The second
/// result is where its address is written.
pub(crate) fn waiting(host: &SimOs, f: SimFunc) -> (Patch, CodeAddr) {
    let (code, relocs) = relocs(host, f, "waits", ("mod", "m"));
    let at = relocs.fields()[0].at;
    let object = Object::vmlinux().and_then(|object| object.func(sim::func("f", code)?));
    let module = Object::module("mod").map(|object| {
        object
            .with_callbacks(Box::new(Counting))
            .with_relocs(relocs)
    });
    (
        Patch::builder("waits")
            .object(object)
            .object(module)
            .build()
            .expect("well formed"),
        at,
    )
}

/// New code for `f` of the patch called `patch`, and references from it to the symbol `to`.
fn relocs(host: &SimOs, f: SimFunc, patch: &str, to: (&str, &str)) -> (TextRange, Relocs) {
    let far = TextRange::new(CodeAddr::new(0x50_0000_0000), 8).expect("fits");
    let layout = ImageLayout {
        text: 0x100,
        rodata: 0x40,
        data: 0x40,
    };
    let image = host.text().alloc(far, 1 << 20, layout).expect("memory");
    let code = TextRange::new(image.text.start(), 8).expect("fits");
    // SAFETY: the image was just made, and nothing runs in it.
    unsafe {
        host.text().fill(&[Fill {
            at: code.start(),
            bytes: &Insn::Body.encode(),
        }])
    }
    .expect("it is writable");
    host.adopt(patch, f, code);
    let data = |offset| image.data.start().wrapping_add(offset);
    let detours = Detours {
        slot: Some(data(0x20)),
        veneer: Some(image.text.start().wrapping_add(0x80)),
    };
    let mut relocs = Relocs::default();
    let symbol = KlpSymbol {
        object: to.0,
        name: to.1,
        pos: 0,
    };
    relocs.begin_section(".data").expect("memory");
    // SAFETY: the detours are in the image, which is never freed.
    let symbol = unsafe { relocs.add_symbol(symbol, detours) }.expect("memory");
    for (offset, kind, room) in [(0, ABS64, 8), (8, NEAR32, 8), (16, SLOT32, 4)] {
        let field = Field {
            at: data(offset),
            kind,
            addend: 0,
            room,
            owner: Owner::System,
            symbol,
            known: None,
        };
        // SAFETY: so is the field.
        unsafe { relocs.add_field(field) }.expect("memory");
    }
    (code, relocs)
}

/// A patch that has only `f`, and takes the place of all others.
pub(crate) fn replacing(host: &SimOs, f: SimFunc) -> Patch {
    let new = host.replacement("p", f, Place::Near);
    let object = Object::vmlinux().and_then(|object| object.func(sim::func("f", new)?));
    let module = Object::module("mod").map(|object| object.with_callbacks(Box::new(Counting)));
    let object = object.map(|object| object.with_callbacks(Box::new(Counting)));
    Patch::builder("p")
        .object(object)
        .object(module)
        .replace(Replace::All)
        .build()
        .expect("well formed")
}

/// Fails whatever `arm` counts, from the first on until nothing fails any more; says how much there
/// was to fail.
pub(crate) fn fail_each(
    kind: Kind,
    operation: Operation,
    arm: impl Fn(&Case, u64),
    disarm: impl Fn(&Case) -> bool,
) -> u64 {
    for n in 1.. {
        let case = Case::new(kind, operation);
        if !case.survives(
            &format!("{operation:?} {kind:?}, fault {n}"),
            |case| arm(case, n),
            &disarm,
        ) {
            return n - 1;
        }
    }
    unreachable!("there are not that many calls")
}

pub(crate) fn arm_port(case: &Case, n: u64) {
    case.engine.host().fail_at(n);
}

pub(crate) fn disarm_port(case: &Case) -> bool {
    case.engine.host().disarm().is_some()
}

pub(crate) fn arm_alloc(_: &Case, n: u64) {
    FAILED.set(false);
    FAIL_IN.set(n);
}

pub(crate) fn disarm_alloc(_: &Case) -> bool {
    FAIL_IN.set(0);
    FAILED.get()
}
