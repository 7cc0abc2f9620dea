//! The attribute tree: what is listed is there, what is not is not; refusals have an error number,
//! and change nothing.

use klp_core::control::{self, ControlError, Kind};
use klp_core::engine::PatchStatus;
use klp_core::port::TaskId;
use klp_core::sim::{self, Place, SimFunc, SimOs};
use klp_core::{Engine, Object, Patch, PatchId};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use std::cell::RefCell;

/// Parts of paths.
const PARTS: [&str; 20] = [
    "livepatch",
    "tasks",
    "fix",
    "next",
    "vmlinux",
    "libfoo",
    "greet,1",
    "count,1",
    "greet,0",
    "patched",
    "enabled",
    "transition",
    "replace",
    "stack_order",
    "blockers",
    "force",
    "signal",
    "1",
    "patch_state",
    "",
];

const VALUES: [&str; 8] = ["0", "1", "y", "n", "on", "off", "", "o"];

/// Checks one input: what is done with the tree, one after the other.
pub fn check(input: &[u8]) {
    SYSTEM.with_borrow_mut(|system| {
        let kept = system.get_or_insert_with(System::new);
        let mut input = Unstructured::new(input);
        for _ in 0..16 {
            if step(&kept.engine, &mut input).is_err() {
                break;
            }
            check_directory(&kept.engine, "");
        }
        assert_eq!(kept.engine.host().violations(), [""; 0]);
        if !kept.rests() {
            *system = None;
        }
    });
}

thread_local! {
    /// One for many inputs: to make one takes longer than to use it.
    static SYSTEM: RefCell<Option<System>> = const { RefCell::new(None) };
}

/// An engine with two patches, and a task that is in a function of both.
struct System {
    engine: Engine<SimOs>,
    task: TaskId,
    greet: SimFunc,
    patches: [PatchId; 2],
}

impl System {
    fn new() -> Self {
        let os = SimOs::new();
        let (greet, count) = (
            os.function("vmlinux", "greet"),
            os.function("libfoo", "count"),
        );
        let patches = ["fix", "next"].map(|name| {
            let (greet, count) = (
                os.replacement(name, greet, Place::Near),
                os.replacement(name, count, Place::Near),
            );
            let vmlinux =
                Object::vmlinux().and_then(|object| object.func(sim::func("greet", greet)?));
            let module =
                Object::module("libfoo").and_then(|object| object.func(sim::func("count", count)?));
            let patch = Patch::builder(name).object(vmlinux).object(module);
            patch.build().expect("a good patch")
        });
        let task = os.spawn("worker");
        assert!(os.call(task, greet));
        let engine = Engine::new(os);
        Self {
            patches: patches.map(|patch| engine.add(patch).expect("a new one")),
            engine,
            task,
            greet,
        }
    }

    /// Makes the system what it was at first; `false`: it cannot be.
    fn rests(&self) -> bool {
        let Self {
            engine,
            task,
            greet,
            patches,
        } = self;
        let os = engine.host();
        os.take_transcript();
        os.ret(*task);
        engine.poll();
        // The one on top first.
        for patch in [patches[1], patches[0], patches[1]] {
            let _ = engine.disable(patch);
        }
        let rests =
            |patch: &PatchStatus| !patch.enabled && !patch.forced && patch.transition.is_none();
        os.call(*task, *greet) && engine.status().is_ok_and(|all| all.iter().all(rests))
    }
}

/// A path: of parts that there are, or any.
fn path(input: &mut Unstructured<'_>) -> Result<String> {
    let mut path = String::new();
    for _ in 0..input.int_in_range(0..=5)? {
        let part: u8 = input.arbitrary()?;
        match PARTS.get(usize::from(part)) {
            Some(part) => path += part,
            None => path += input.arbitrary::<&str>()?,
        }
        path.push('/');
    }
    Ok(path)
}

fn step(engine: &Engine<SimOs>, input: &mut Unstructured<'_>) -> Result<()> {
    let path = path(input)?;
    match input.int_in_range(0..=3)? {
        0 => {
            engine.poll();
        }
        1 => {
            let mut value = String::new();
            match control::read(engine, &path, &mut value) {
                Ok(()) => assert!(value.is_empty() || value.ends_with('\n')),
                Err(error) => check_error(&error),
            }
        }
        2 => {
            if let Err(error) = control::list(engine, &path) {
                check_error(&error);
            }
        }
        _ => {
            let value: u8 = input.arbitrary()?;
            let value = match VALUES.get(usize::from(value)) {
                Some(value) => value,
                None => input.arbitrary::<&str>()?,
            };
            let before = engine.status();
            // SAFETY: the patches are of a simulated system.
            if let Err(error) = unsafe { control::write(engine, &path, value) } {
                check_error(&error);
                assert_eq!(format!("{before:?}"), format!("{:?}", engine.status()));
            }
        }
    }
    Ok(())
}

fn check_error(error: &ControlError) {
    assert!((-200..0).contains(&error.errno()));
    assert!(!error.to_string().is_empty());
}

/// Lists a directory, and looks at all that is in it.
fn check_directory(engine: &Engine<SimOs>, path: &str) {
    let entries = control::list(engine, path).expect("it is a directory");
    for entry in &entries {
        let below = format!("{path}/{}", entry.name);
        let (listed, mut value) = (control::list(engine, &below), String::new());
        let read = control::read(engine, &below, &mut value);
        match entry.kind {
            Kind::Directory => {
                assert_eq!(read, Err(ControlError::IsDirectory), "{below}");
                check_directory(engine, &below);
            }
            Kind::Attribute => {
                assert_eq!(listed.err(), Some(ControlError::NotDirectory), "{below}");
                assert_eq!(read.is_ok(), entry.mode() & 0o444 != 0, "{below}");
            }
        }
        let missing = format!("{below}/nothing");
        assert!(control::list(engine, &missing).is_err(), "{missing}");
    }
}
