//! A machine that tests of a whole life are told on, in the words of a kernel's log: commands,
//! modules, callbacks, the engine.

use super::common::{Sim, add, check};
use klp_core::model::{CallbackContext, Callbacks, Object, Patch, Replace, VMLINUX};
use klp_core::port::TaskId;
use klp_core::sim::{self, Console, Place, SimFunc, SimOs, insmod, rmmod};
use klp_core::state::State;
use klp_core::{Engine, Error, PatchId, Poll};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// Callbacks that say that they were called, and with what; `pre_patch` answers what the patch's
/// parameter says.
pub(crate) struct Talking {
    console: Console,
    pre_patch_ret: Arc<AtomicI32>,
    /// Calls of `pre_patch` until `pre_patch_ret` is what it answers.
    patience: Arc<AtomicI32>,
}

impl Talking {
    fn say(&self, callback: &str, context: &CallbackContext<'_>) {
        let (patch, object) = (context.patch(), context.object());
        let mut line = format!("{patch}: {callback}_callback: {object}");
        if object != VMLINUX {
            let _ = write!(line, " -> {}", self.console.module_state(object));
        }
        self.console.say(&line);
    }
}

impl Callbacks for Talking {
    fn pre_patch(&self, context: &CallbackContext<'_>) -> Result<(), i32> {
        self.say("pre_patch", context);
        let patient = self.patience.fetch_sub(1, Ordering::Relaxed) > 0;
        match self.pre_patch_ret.load(Ordering::Relaxed) {
            _ if patient => Ok(()),
            0 => Ok(()),
            errno => Err(errno),
        }
    }
    fn post_patch(&self, context: &CallbackContext<'_>) {
        self.say("post_patch", context);
    }
    fn pre_unpatch(&self, context: &CallbackContext<'_>) {
        self.say("pre_unpatch", context);
    }
    fn post_unpatch(&self, context: &CallbackContext<'_>) {
        self.say("post_unpatch", context);
    }
}

/// A patch to be loaded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    /// Objects that have talking callbacks.
    pub(crate) talks: &'a [&'a str],
    /// Functions, each with its object.
    pub(crate) funcs: &'a [(&'a str, &'a str, SimFunc)],
    pub(crate) replace: Replace,
    pub(crate) states: &'a [(u64, u32)],
}

/// The machine.
pub(crate) struct Linux {
    pub(crate) engine: Sim,
    pub(crate) console: Console,
    /// A task that tests call with.
    pub(crate) shell: TaskId,
    pub(crate) parameters: BTreeMap<String, Arc<AtomicI32>>,
    patience: Arc<AtomicI32>,
    patches: BTreeMap<String, PatchId>,
}

/// The file that a module is in.
fn file(module: &str) -> String {
    match module.strip_prefix("livepatch_") {
        Some(_) => format!("samples/livepatch/{}.ko", module.replace('_', "-")),
        None => format!("test_modules/{module}.ko"),
    }
}

impl Linux {
    pub(crate) fn new(host: SimOs) -> Self {
        let (console, shell) = (host.console(), host.spawn("sh"));
        Self {
            engine: Engine::new(host),
            console,
            shell,
            parameters: BTreeMap::new(),
            patience: Arc::default(),
            patches: BTreeMap::new(),
        }
    }

    pub(crate) fn host(&self) -> &SimOs {
        self.engine.host()
    }

    pub(crate) fn id(&self, patch: &str) -> PatchId {
        self.patches[patch]
    }

    fn failed(&self, module: &str, error: &Error) {
        let why = match error.errno() {
            -16 => "Device or resource busy",
            -19 => "No such device",
            -22 => "Invalid parameters",
            other => panic!("{error}: {other}"),
        };
        self.console.say(&format!(
            "insmod: ERROR: could not insert module {}: {why}",
            file(module)
        ));
    }

    /// `insmod` of a target module, and what it says of itself when it runs.
    pub(crate) fn insmod(&self, module: &str, parameters: &str, says: &[&str]) {
        self.console
            .say(format!("% insmod {} {parameters}", file(module)).trim_end());
        match insmod(&self.engine, module) {
            Ok(()) => says
                .iter()
                .for_each(|line| self.console.say(&format!("{module}: {line}"))),
            Err(error) => self.failed(module, &error),
        }
        check(&self.engine);
    }

    /// `rmmod` of a target module; its last words come before the engine takes its patches back.
    pub(crate) fn rmmod(&self, module: &str, says: &[&str]) {
        self.console.say(&format!("% rmmod {}", file(module)));
        says.iter()
            .for_each(|line| self.console.say(&format!("{module}: {line}")));
        assert!(rmmod(&self.engine, module), "{module} is in use");
        check(&self.engine);
    }

    /// The patch, well formed, with its callbacks.
    pub(crate) fn build(&mut self, wanted: &Wanted<'_>) -> Patch {
        let parameter = self
            .parameters
            .entry(wanted.name.to_string())
            .or_default()
            .clone();
        let mut objects: Vec<&str> = wanted.talks.to_vec();
        objects.extend(
            wanted
                .funcs
                .iter()
                .map(|(object, ..)| *object)
                .filter(|object| !wanted.talks.contains(object)),
        );
        objects.dedup();
        let mut patch = Patch::builder(wanted.name).replace(wanted.replace);
        for object in objects {
            let funcs =
                wanted
                    .funcs
                    .iter()
                    .filter(|(of, ..)| *of == object)
                    .map(|(_, old, func)| {
                        let new = self.host().replacement(wanted.name, *func, Place::Near);
                        sim::func(old, new).expect("memory")
                    });
            let mut model = Object::module(object).and_then(|model| model.funcs_from(funcs));
            if wanted.talks.contains(&object) {
                let talking = Talking {
                    console: self.console.clone(),
                    pre_patch_ret: parameter.clone(),
                    patience: self.patience.clone(),
                };
                model = model.map(|model| model.with_callbacks(Box::new(talking)));
            }
            patch = patch.object(model);
        }
        for (id, version) in wanted.states {
            patch = patch.state(State::new(*id, *version));
        }
        patch.build().expect("well formed")
    }

    /// `insmod` of a patch: it is enabled at once, and polled until it cannot get further.
    pub(crate) fn load(&mut self, wanted: &Wanted<'_>, parameters: &str) {
        let patch = self.build(wanted);
        self.load_built(patch, parameters);
    }

    pub(crate) fn load_built(&mut self, patch: Patch, parameters: &str) {
        let name = patch.name().to_string();
        self.console
            .say(format!("% insmod {} {parameters}", file(&name)).trim_end());
        if let Some(errno) = parameters.strip_prefix("pre_patch_ret=") {
            self.set_pre_patch_ret(&name, errno.parse().expect("a number"));
        }
        self.host().know(&patch);
        let id = add(&self.engine, patch);
        if let Err(error) = self.engine.enable(id) {
            self.failed(&name, &error);
            self.engine.remove(id).expect("it is not enabled");
        } else {
            self.patches.insert(name, id);
        }
        check(&self.engine);
    }

    pub(crate) fn set_pre_patch_ret(&self, patch: &str, errno: i32) {
        self.parameters[patch].store(errno, Ordering::Relaxed);
    }

    /// The next `pre_patch` answers well, and those of `patch` after it -ENODEV.
    pub(crate) fn veto_second(&self, patch: &str) {
        self.patience.store(1, Ordering::Relaxed);
        self.set_pre_patch_ret(patch, -19);
    }

    /// `echo 0 > …/enabled`: disables, or turns a transition round.
    pub(crate) fn echo_0(&self, patch: &str) -> Poll {
        self.console
            .say(&format!("% echo 0 > /sys/kernel/livepatch/{patch}/enabled"));
        let id = self.id(patch);
        let poll = match self.engine.disable(id) {
            Err(Error::Busy { .. }) => self.engine.reverse(id),
            other => other,
        };
        check(&self.engine);
        poll.expect("it can be disabled")
    }

    /// `rmmod` of a patch.
    pub(crate) fn unload(&mut self, patch: &str) -> Patch {
        self.console.say(&format!("% rmmod {}", file(patch)));
        let id = self.patches.remove(patch).expect("it is loaded");
        let removed = self.engine.remove(id).expect("it is disabled");
        check(&self.engine);
        removed
    }

    /// The log since the last time is `expected`, line by line: indentation aside, without those of
    /// single tasks, which the kernel's tests do not show either, and with the prefix that a kernel
    /// puts before the engine's lines.
    #[track_caller]
    pub(crate) fn log(&self, expected: &str) {
        let mut log = self.host().take_transcript();
        log.retain(|line| !line.starts_with("klp_try_switch_task: "));
        let lines = expected
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty());
        let lines: Vec<&str> = lines
            .map(|line| line.strip_prefix("livepatch: ").unwrap_or(line))
            .collect();
        assert_eq!(log, lines);
    }
}
