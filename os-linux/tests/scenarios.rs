//! The nine tests of the kernel's callbacks document, and those of its selftests that are about
//! what patches do to each other, on a real process: the executable is `vmlinux`, shared libraries
//! are the modules. What is compared is the log without the modules' own lines and without the
//! states of modules, which a process does not have.
//!
//! The same on the simulated OS, with those lines: `klp-core/tests/scenarios`. In other files:
//! `module function patching`, before and after the patch (`library.rs`), the cumulative patches
//! with states (`states.rs`), attributes (`control.rs`), a hammered function (`load.rs`).

use klp_core::event::Event;
use klp_core::model::{CallbackContext, Callbacks, Replace, VMLINUX};
use klp_core::{Error, Func, Object, Patch, PatchId, Poll, addr::CodeAddr};
use klp_os_linux::process::{Library, Livepatch, LoadError, Options};
use klp_os_linux_fixtures::{
    addr_of_fn, fx_first, fx_first_new, fx_value, fx_value_new, libraries, pipe, tid, wait_asleep,
    write_byte,
};
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::Duration;

const DEMO: &str = "livepatch_callbacks_demo";
const MOD: &str = "livepatch_callbacks_mod";
const BUSY: &str = "livepatch_callbacks_busymod";

/// What `pre_patch` answers.
static PRE_PATCH_RET: AtomicI32 = AtomicI32::new(0);

fn log() -> MutexGuard<'static, Vec<String>> {
    static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());
    LOG.lock().expect("nobody panics with it")
}

fn livepatch() -> &'static Livepatch {
    static ONCE: OnceLock<&'static Livepatch> = OnceLock::new();
    ONCE.get_or_init(|| {
        let events = |event: &Event<'_>| {
            // Linux says neither what a patch waits for, nor that it asks for no signatures.
            if !matches!(
                event,
                Event::NotSwitched { .. } | Event::Waiting { .. } | Event::NotVerified
            ) {
                log().push(format!("livepatch: {event}"));
            }
        };
        Livepatch::init(Options {
            events: Some(Box::new(events)),
            ..Options::default()
        })
        .expect("it can be patched")
    })
}

/// Callbacks that say that they were called.
struct Talking;

impl Talking {
    fn say(callback: &str, context: &CallbackContext<'_>) {
        log().push(format!(
            "{}: {callback}_callback: {}",
            context.patch(),
            context.object()
        ));
    }
}

impl Callbacks for Talking {
    fn pre_patch(&self, context: &CallbackContext<'_>) -> Result<(), i32> {
        Self::say("pre_patch", context);
        match PRE_PATCH_RET.load(Relaxed) {
            0 => Ok(()),
            errno => Err(errno),
        }
    }
    fn post_patch(&self, context: &CallbackContext<'_>) {
        Self::say("post_patch", context);
    }
    fn pre_unpatch(&self, context: &CallbackContext<'_>) {
        Self::say("pre_unpatch", context);
    }
    fn post_unpatch(&self, context: &CallbackContext<'_>) {
        Self::say("post_unpatch", context);
    }
}

/// One test at a time, with an empty log.
struct Scenario {
    demo: PatchId,
    _alone: MutexGuard<'static, ()>,
}

impl Scenario {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let object =
            |name| Object::module(name).map(|object| object.with_callbacks(Box::new(Talking)));
        // SAFETY: the replacement is never called: it only has to be a function.
        let busy = unsafe { Func::new("fxm_busy", CodeAddr::new(addr_of_fn!(fx_value_new))) }
            .expect("memory");
        let demo = Patch::builder(DEMO)
            .object(object(VMLINUX))
            .object(object(MOD))
            .object(object(BUSY).and_then(|object| object.func(busy)));
        let demo = livepatch()
            .engine()
            .add(demo.build().expect("well formed"))
            .expect("the name is free");
        PRE_PATCH_RET.store(0, Relaxed);
        log().clear();
        Self {
            demo,
            _alone: alone,
        }
    }

    fn enable(&self) {
        livepatch().enable(self.demo).expect("the patch fits");
        assert!(
            livepatch().wait(Duration::from_secs(20)),
            "nobody is in its way"
        );
    }

    fn disable(&self) {
        livepatch().disable(self.demo).expect("it is enabled");
        assert!(
            livepatch().wait(Duration::from_secs(20)),
            "nobody is in its way"
        );
    }

    /// Compares the log, and forgets the patch.
    fn ends_with(self, expected: &[Vec<String>]) {
        livepatch()
            .engine()
            .remove(self.demo)
            .expect("it is disabled");
        assert_eq!(*log(), expected.concat());
    }
}

/// Enables a patch called `name` that makes `fx_value` or `fx_first` a new one.
fn load(name: &str, func: &str, new: u64, replace: Replace) -> PatchId {
    // SAFETY: a function of the same type.
    let func = unsafe { Func::new(func, CodeAddr::new(new)) }.expect("memory");
    let object = Object::module(VMLINUX).and_then(|object| object.func(func));
    let patch = Patch::builder(name)
        .object(object)
        .replace(replace)
        .build()
        .expect("well formed");
    let patch = livepatch().engine().add(patch).expect("the name is free");
    livepatch().enable(patch).expect("the patch fits");
    assert!(
        livepatch().wait(Duration::from_secs(20)),
        "nobody is in its way"
    );
    patch
}

fn unload(patch: PatchId) {
    livepatch().disable(patch).expect("it is enabled");
    assert!(
        livepatch().wait(Duration::from_secs(20)),
        "nobody is in its way"
    );
    livepatch().engine().remove(patch).expect("it is disabled");
}

fn open(name: &str) -> Result<Library, LoadError> {
    // SAFETY: the library has no constructors.
    unsafe { livepatch().open_library(libraries::copy(name)) }
}

fn close(library: Library) {
    // SAFETY: no thread is inside of it.
    unsafe { library.close() }.expect("it can be unloaded");
}

/// Calls the library's function that runs `work`.
fn busy(library: &Library, work: extern "C" fn() -> i32) -> i32 {
    let function = library.symbol(c"fxm_busy").expect("the library exports it");
    // SAFETY: it has this type.
    let function: extern "C" fn(extern "C" fn() -> i32) -> i32 =
        unsafe { core::mem::transmute(function) };
    function(work)
}

extern "C" fn nothing() -> i32 {
    0
}

fn lines(lines: &[&str]) -> Vec<String> {
    lines
        .iter()
        .map(|line| line.replace("DEMO", DEMO))
        .collect()
}

fn called(callback: &str, objects: &[&str]) -> Vec<String> {
    objects
        .iter()
        .map(|object| format!("{DEMO}: {callback}_callback: {object}"))
        .collect()
}

/// The patch is on its way, with these objects loaded.
fn starting(objects: &[&str]) -> Vec<String> {
    [
        lines(&[
            "livepatch: enabling patch 'DEMO'",
            "livepatch: 'DEMO': initializing patching transition",
        ]),
        called("pre_patch", objects),
        lines(&["livepatch: 'DEMO': starting patching transition"]),
    ]
    .concat()
}

/// It has arrived.
fn enabling(objects: &[&str]) -> Vec<String> {
    [
        starting(objects),
        lines(&["livepatch: 'DEMO': completing patching transition"]),
        called("post_patch", objects),
        lines(&["livepatch: 'DEMO': patching complete"]),
    ]
    .concat()
}

/// The end of any unpatching.
fn unpatched(objects: &[&str]) -> Vec<String> {
    [
        lines(&["livepatch: 'DEMO': starting unpatching transition"]),
        lines(&["livepatch: 'DEMO': completing unpatching transition"]),
        called("post_unpatch", objects),
        lines(&["livepatch: 'DEMO': unpatching complete"]),
    ]
    .concat()
}

fn disabling(objects: &[&str]) -> Vec<String> {
    [
        lines(&["livepatch: 'DEMO': initializing unpatching transition"]),
        called("pre_unpatch", objects),
        unpatched(objects),
    ]
    .concat()
}

fn applying(module: &str) -> Vec<String> {
    let applying = format!("livepatch: applying patch '{DEMO}' to loading module '{module}'");
    [vec![applying], called("pre_patch", &[module])].concat()
}

fn reverting(module: &str) -> Vec<String> {
    let reverting = format!("livepatch: reverting patch '{DEMO}' on unloading module '{module}'");
    [vec![reverting], called("post_unpatch", &[module])].concat()
}

fn coming(module: &str) -> Vec<String> {
    [applying(module), called("post_patch", &[module])].concat()
}

fn going(module: &str) -> Vec<String> {
    [called("pre_unpatch", &[module]), reverting(module)].concat()
}

#[test]
fn test_1_target_module_before_livepatch() {
    let scenario = Scenario::new();
    let module = open(MOD).expect("nothing is enabled");
    scenario.enable();
    scenario.disable();
    close(module);
    scenario.ends_with(&[enabling(&[VMLINUX, MOD]), disabling(&[VMLINUX, MOD])]);
}

#[test]
fn test_2_module_coming() {
    let scenario = Scenario::new();
    scenario.enable();
    let module = open(MOD).expect("no veto");
    scenario.disable();
    close(module);
    scenario.ends_with(&[
        enabling(&[VMLINUX]),
        coming(MOD),
        disabling(&[VMLINUX, MOD]),
    ]);
}

#[test]
fn test_3_module_going() {
    let scenario = Scenario::new();
    let module = open(MOD).expect("nothing is enabled");
    scenario.enable();
    close(module);
    scenario.disable();
    scenario.ends_with(&[enabling(&[VMLINUX, MOD]), going(MOD), disabling(&[VMLINUX])]);
}

#[test]
fn test_4_module_coming_and_going() {
    let scenario = Scenario::new();
    scenario.enable();
    close(open(MOD).expect("no veto"));
    scenario.disable();
    scenario.ends_with(&[
        enabling(&[VMLINUX]),
        coming(MOD),
        going(MOD),
        disabling(&[VMLINUX]),
    ]);
}

#[test]
fn test_5_target_module_not_present() {
    let scenario = Scenario::new();
    scenario.enable();
    scenario.disable();
    scenario.ends_with(&[enabling(&[VMLINUX]), disabling(&[VMLINUX])]);
}

#[test]
fn test_6_pre_patch_callback_enodev() {
    let scenario = Scenario::new();
    let module = open(MOD).expect("nothing is enabled");
    PRE_PATCH_RET.store(-libc::ENODEV, Relaxed);
    let error = livepatch()
        .enable(scenario.demo)
        .expect_err("the callback vetoes");
    assert!(
        matches!(&error, Error::Patch(patch) if patch.object.as_deref() == Some(VMLINUX)),
        "{error}"
    );
    assert_eq!(error.errno(), -libc::ENODEV);
    close(module);
    scenario.ends_with(&[
        lines(&[
            "livepatch: enabling patch 'DEMO'",
            "livepatch: 'DEMO': initializing patching transition",
        ]),
        called("pre_patch", &[VMLINUX]),
        lines(&[
            "livepatch: pre-patch callback failed for object 'vmlinux'",
            "livepatch: failed to enable patch 'DEMO'",
            "livepatch: 'DEMO': canceling patching transition, going to unpatch",
            "livepatch: 'DEMO': completing unpatching transition",
            "livepatch: 'DEMO': unpatching complete",
        ]),
    ]);
}

#[test]
fn test_7_module_coming_and_pre_patch_callback_enodev() {
    let scenario = Scenario::new();
    scenario.enable();
    PRE_PATCH_RET.store(-libc::ENODEV, Relaxed);
    let refused = open(MOD).expect_err("the callback vetoes");
    assert!(
        matches!(&refused, LoadError::Engine(error) if error.errno() == -libc::ENODEV),
        "{refused}"
    );
    scenario.disable();
    scenario.ends_with(&[
        enabling(&[VMLINUX]),
        applying(MOD),
        vec![
            format!("livepatch: pre-patch callback failed for object '{MOD}'"),
            format!("livepatch: patch '{DEMO}' failed for module '{MOD}', refusing to load module '{MOD}'"),
        ],
        disabling(&[VMLINUX]),
    ]);
}

#[test]
fn test_8_multiple_target_modules() {
    let scenario = Scenario::new();
    let busymod = open(BUSY).expect("nothing is enabled");
    assert_eq!(busy(&busymod, nothing), 1);
    scenario.enable();
    close(open(MOD).expect("no veto"));
    scenario.disable();
    assert_eq!(busy(&busymod, nothing), 1);
    close(busymod);
    scenario.ends_with(&[
        enabling(&[VMLINUX, BUSY]),
        coming(MOD),
        going(MOD),
        disabling(&[VMLINUX, BUSY]),
    ]);
}

#[test]
fn test_9_busy_target_module() {
    static READER: AtomicI32 = AtomicI32::new(-1);
    extern "C" fn sleep() -> i32 {
        let mut byte = 0_u8;
        // SAFETY: there is room for one byte.
        i32::try_from(unsafe { libc::read(READER.load(Relaxed), (&raw mut byte).cast(), 1) })
            .expect("one byte")
    }

    let scenario = Scenario::new();
    let busymod = open(BUSY).expect("nothing is enabled");
    let (reader, writer) = pipe();
    READER.store(reader, Relaxed);
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let busymod = &busymod;
        let worker = scope.spawn(move || {
            tell.send(tid()).expect("the test waits");
            busy(busymod, sleep)
        });
        wait_asleep(told.recv().expect("the worker says"));

        let poll = livepatch().enable(scenario.demo).expect("the patch fits");
        assert!(matches!(poll, Poll::Waiting { .. }), "{poll:?}");
        close(open(MOD).expect("no veto"));
        livepatch()
            .engine()
            .reverse(scenario.demo)
            .expect("the transition runs");
        assert!(
            livepatch().wait(Duration::from_secs(20)),
            "the worker is where it was"
        );

        write_byte(writer);
        assert_eq!(worker.join().expect("it only calls"), 2);
    });
    close(busymod);
    scenario.ends_with(&[
        starting(&[VMLINUX, BUSY]),
        applying(MOD),
        reverting(MOD),
        lines(&["livepatch: 'DEMO': reversing transition from patching to unpatching"]),
        unpatched(&[VMLINUX, BUSY]),
    ]);
}

/// What is said of another patch.
fn renamed(lines: Vec<String>, name: &str) -> Vec<String> {
    lines
        .into_iter()
        .map(|line| line.replace(DEMO, name))
        .collect()
}

/// Which versions run.
fn versions() -> (i32, i32) {
    (fx_value(), fx_first())
}

#[test]
fn multiple_livepatches() {
    let scenario = Scenario::new();
    assert_eq!(versions(), (1, 1));
    let one = load(
        "test_klp_livepatch",
        "fx_value",
        addr_of_fn!(fx_value_new),
        Replace::None,
    );
    assert_eq!(versions(), (2, 1));
    let other = load(
        "test_klp_atomic_replace",
        "fx_first",
        addr_of_fn!(fx_first_new),
        Replace::None,
    );
    assert_eq!(versions(), (2, 2));
    unload(other);
    assert_eq!(versions(), (2, 1));
    unload(one);
    assert_eq!(versions(), (1, 1));
    scenario.ends_with(&[
        renamed(enabling(&[]), "test_klp_livepatch"),
        renamed(enabling(&[]), "test_klp_atomic_replace"),
        renamed(disabling(&[]), "test_klp_atomic_replace"),
        renamed(disabling(&[]), "test_klp_livepatch"),
    ]);
}

#[test]
fn atomic_replace_livepatch() {
    let scenario = Scenario::new();
    let one = load(
        "test_klp_livepatch",
        "fx_value",
        addr_of_fn!(fx_value_new),
        Replace::None,
    );
    assert_eq!(versions(), (2, 1));
    let other = load(
        "test_klp_atomic_replace",
        "fx_first",
        addr_of_fn!(fx_first_new),
        Replace::All,
    );
    assert_eq!(
        versions(),
        (1, 2),
        "what the new patch does not have goes back to the original"
    );
    livepatch().engine().remove(one).expect("it was replaced");
    unload(other);
    assert_eq!(versions(), (1, 1));
    scenario.ends_with(&[
        renamed(enabling(&[]), "test_klp_livepatch"),
        renamed(enabling(&[]), "test_klp_atomic_replace"),
        renamed(disabling(&[]), "test_klp_atomic_replace"),
    ]);
}
