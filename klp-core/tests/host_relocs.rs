//! A host whose own loader keeps the relocations of patches (the Linux kernel): asked when an
//! object is there, and when it goes.

use klp_core::error::{Error, PatchReason, SymbolFault};
use klp_core::mem::Name;
use klp_core::model::{Object, Patch, VMLINUX};
use klp_core::port::Platform;
use klp_core::sim::{self, Place, SimOs};
use klp_core::{Engine, Poll};
use std::sync::Mutex;

/// The simulated OS, but for relocations.
struct OwnLoader {
    os: SimOs,
    calls: Mutex<Vec<String>>,
    /// The object whose relocations are refused.
    refused: Mutex<Option<&'static str>>,
}

// SAFETY: the simulated OS's parts.
unsafe impl Platform for OwnLoader {
    type Lock = <SimOs as Platform>::Lock;
    type Tracer = <SimOs as Platform>::Tracer;
    type Unwinder = <SimOs as Platform>::Unwinder;
    type Tasks = <SimOs as Platform>::Tasks;
    type Symbols = <SimOs as Platform>::Symbols;
    type Text = <SimOs as Platform>::Text;
    type Arch = <SimOs as Platform>::Arch;
    type Relocator = <SimOs as Platform>::Relocator;

    fn tracer(&self) -> &Self::Tracer {
        self.os.tracer()
    }
    fn unwinder(&self) -> &Self::Unwinder {
        self.os.unwinder()
    }
    fn tasks(&self) -> &Self::Tasks {
        self.os.tasks()
    }
    fn symbols(&self) -> &Self::Symbols {
        self.os.symbols()
    }
    fn text(&self) -> &Self::Text {
        self.os.text()
    }

    unsafe fn apply_relocs(&self, patch: &str, object: &str) -> Result<(), Error> {
        self.calls
            .lock()
            .expect("unpoisoned")
            .push(format!("apply {patch} {object}"));
        if *self.refused.lock().expect("unpoisoned") != Some(object) {
            return Ok(());
        }
        let reason = PatchReason::Unresolved {
            symbol: Name::new("helper")?,
            why: SymbolFault::NotFound,
        };
        Err(Error::patch(patch, Some(object), None, reason))
    }

    unsafe fn clear_relocs(&self, patch: &str, object: &str) {
        self.calls
            .lock()
            .expect("unpoisoned")
            .push(format!("clear {patch} {object}"));
    }
}

impl OwnLoader {
    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().expect("unpoisoned"))
    }
}

#[test]
fn relocations_are_applied_and_cleared_with_their_object() {
    let os = SimOs::new();
    let (f, g) = (os.function(VMLINUX, "f"), os.function("m", "g"));
    let task = os.spawn("worker");
    let mut builder = Patch::builder("p");
    for (object, name, func) in [(VMLINUX, "f", f), ("m", "g", g)] {
        let code = os.replacement("p", func, Place::Near);
        builder = builder
            .object(Object::module(object).and_then(|object| object.func(sim::func(name, code)?)));
    }
    let engine = Engine::new(OwnLoader {
        os,
        calls: Mutex::default(),
        refused: Mutex::new(Some("m")),
    });
    let host = || engine.host();
    let p = engine
        .add(builder.build().expect("the patch is well formed"))
        .expect("it is new");

    // Refused: nothing is patched, nothing is written, and what was applied waits for the next
    // attempt.
    let error = engine.enable(p).expect_err("the loader refuses");
    assert_eq!(
        error.to_string(),
        "patch 'p', object 'm': symbol 'helper': not found in symbol table"
    );
    assert_eq!(host().calls(), ["apply p vmlinux", "apply p m"]);
    assert_eq!(host().os.version(task, f), "f");

    *host().refused.lock().expect("unpoisoned") = None;
    assert_eq!(
        engine.enable(p),
        Ok(Poll::Complete {
            patch: p,
            enabled: true
        })
    );
    assert_eq!(host().calls(), ["apply p m"]);
    assert_eq!(host().os.version(task, g), "p_g");

    // SAFETY: no task is in it; they are simulated, too.
    unsafe { engine.object_going("m") };
    assert_eq!(host().calls(), ["clear p m"]);
    // SAFETY: as above.
    unsafe { engine.object_coming("m") }.expect("the patch fits");
    assert_eq!(host().calls(), ["apply p m"]);

    assert_eq!(
        engine.disable(p),
        Ok(Poll::Complete {
            patch: p,
            enabled: false
        })
    );
    assert_eq!(host().calls(), [""; 0]);
    engine.remove(p).expect("it is disabled");
    assert_eq!(host().calls(), ["clear p vmlinux", "clear p m"]);
}
