//! The scenarios of Linux's livepatch selftests, under their titles, on the simulated OS.
//!
//! * `target module before livepatch` … `busy target module` (the first nine of test-callbacks.sh):
//!   [`super::callbacks`], tests 1 to 9
//! * `multiple livepatches`, `atomic replace` (test-callbacks.sh): here, `callbacks_…`
//! * `basic function patching`: `super::basic_function_patching`
//! * `multiple livepatches`, `atomic replace livepatch`, `module function patching`,
//!   `module function patching (livepatch first)`: here
//! * `basic shadow variable API`: tests of `klp_core::shadow`
//! * `system state modification`, `taking over system state modification`,
//!   `compatible cumulative livepatches`, `incompatible cumulative livepatches`: here
//! * `livepatch interaction with kprobed function with post_handler`, `… without post_handler`:
//!   [`super::kprobes`]; the kernel tries to register first, this engine looks first: it refuses
//!   before a transition begins
//! * `patch getpid syscall while being heavily hammered`: here, tasks that call without end
//! * `sysfs test`, `sysfs test object/patched`, `sysfs test replace enabled`,
//!   `sysfs test replace disabled`, `sysfs test stack_order value`: the attributes are the control
//!   tree's; what they tell is here, asked of `Engine::status`
//!
//! About facilities of a kernel, and therefore not here:
//! `livepatch interaction with ftrace_enabled sysctl` (a switch that turns all tracing off),
//! `trace livepatched function and check that the live patch remains in effect` and
//! `livepatch a traced function and check that the live patch remains in effect` (tracers that
//! share ftrace sites; what an engine sees of them is the kprobe without post-handler).

use super::linux::{Linux, Wanted};
use klp_core::Poll;
use klp_core::model::{CallbackContext, Callbacks, Object, Patch, Replace, VMLINUX};
use klp_core::sim::{Chance, Console, SimFunc, SimOs};
use klp_core::state::State;

/// What each of a patch's transitions says when nothing holds it.
pub(super) fn enabling(patch: &str) -> String {
    format!(
        "% insmod test_modules/{patch}.ko
        livepatch: enabling patch '{patch}'
        livepatch: '{patch}': initializing patching transition
        livepatch: '{patch}': starting patching transition
        livepatch: '{patch}': completing patching transition
        livepatch: '{patch}': patching complete\n"
    )
}

pub(super) fn disabling(patch: &str) -> String {
    format!(
        "% echo 0 > /sys/kernel/livepatch/{patch}/enabled
        livepatch: '{patch}': initializing unpatching transition
        livepatch: '{patch}': starting unpatching transition
        livepatch: '{patch}': completing unpatching transition
        livepatch: '{patch}': unpatching complete\n"
    )
}

pub(super) struct Kernel {
    pub(super) linux: Linux,
    pub(super) cmdline: SimFunc,
    meminfo: SimFunc,
}

impl Kernel {
    pub(super) fn new() -> Self {
        let host = SimOs::new();
        let cmdline = host.function(VMLINUX, "cmdline_proc_show");
        let meminfo = host.function(VMLINUX, "meminfo_proc_show");
        Self {
            linux: Linux::new(host),
            cmdline,
            meminfo,
        }
    }

    fn load(&mut self, name: &str, funcs: &[(&str, &str, SimFunc)], replace: Replace) {
        self.linux.load(
            &Wanted {
                name,
                funcs,
                replace,
                ..Wanted::default()
            },
            "",
        );
    }

    /// Which versions run when both functions are called.
    pub(super) fn versions(&self) -> (String, String) {
        let version = |func| self.linux.host().version(self.linux.shell, func);
        (version(self.cmdline), version(self.meminfo))
    }

    pub(super) fn load_livepatch(&mut self) {
        let funcs = [(VMLINUX, "cmdline_proc_show", self.cmdline)];
        self.load("test_klp_livepatch", &funcs, Replace::None);
    }

    fn load_atomic_replace(&mut self, replace: Replace) {
        let funcs = [(VMLINUX, "meminfo_proc_show", self.meminfo)];
        self.load("test_klp_atomic_replace", &funcs, replace);
    }
}

pub(super) const CMDLINE: &str = "test_klp_livepatch_cmdline_proc_show";
const MEMINFO: &str = "test_klp_atomic_replace_meminfo_proc_show";

pub(super) fn versions(cmdline: &str, meminfo: &str) -> (String, String) {
    (cmdline.to_string(), meminfo.to_string())
}

#[test]
fn multiple_livepatches() {
    let mut kernel = Kernel::new();
    kernel.load_livepatch();
    assert_eq!(kernel.versions(), versions(CMDLINE, "meminfo_proc_show"));
    kernel.load_atomic_replace(Replace::None);
    assert_eq!(kernel.versions(), versions(CMDLINE, MEMINFO));
    kernel.linux.echo_0("test_klp_atomic_replace");
    kernel.linux.unload("test_klp_atomic_replace");
    assert_eq!(kernel.versions(), versions(CMDLINE, "meminfo_proc_show"));
    kernel.linux.echo_0("test_klp_livepatch");
    kernel.linux.unload("test_klp_livepatch");
    assert_eq!(
        kernel.versions(),
        versions("cmdline_proc_show", "meminfo_proc_show")
    );
    kernel.linux.log(
        &[
            &*enabling("test_klp_livepatch"),
            &enabling("test_klp_atomic_replace"),
            &disabling("test_klp_atomic_replace"),
            "% rmmod test_modules/test_klp_atomic_replace.ko\n",
            &disabling("test_klp_livepatch"),
            "% rmmod test_modules/test_klp_livepatch.ko\n",
        ]
        .concat(),
    );
}

#[test]
fn atomic_replace_livepatch() {
    let mut kernel = Kernel::new();
    kernel.load_livepatch();
    kernel.load_atomic_replace(Replace::All);
    assert_eq!(kernel.versions(), versions("cmdline_proc_show", MEMINFO));
    // The replaced patch is disabled: it can go.
    kernel.linux.unload("test_klp_livepatch");
    assert_eq!(kernel.versions(), versions("cmdline_proc_show", MEMINFO));
    kernel.linux.echo_0("test_klp_atomic_replace");
    kernel.linux.unload("test_klp_atomic_replace");
    assert_eq!(
        kernel.versions(),
        versions("cmdline_proc_show", "meminfo_proc_show")
    );
    kernel.linux.log(
        &[
            &*enabling("test_klp_livepatch"),
            &enabling("test_klp_atomic_replace"),
            "% rmmod test_modules/test_klp_livepatch.ko\n",
            &disabling("test_klp_atomic_replace"),
            "% rmmod test_modules/test_klp_atomic_replace.ko\n",
        ]
        .concat(),
    );
}

/// A module with a function, and a patch for it.
fn module_function(loaded: bool) -> (Linux, SimFunc) {
    let host = SimOs::new();
    let show = host.function("test_klp_mod_target", "test_klp_mod_target_show");
    if !loaded {
        host.not_loaded("test_klp_mod_target");
    }
    (Linux::new(host), show)
}

fn load_mod_patch(linux: &mut Linux, show: SimFunc) {
    let funcs = [("test_klp_mod_target", "test_klp_mod_target_show", show)];
    linux.load(
        &Wanted {
            name: "test_klp_mod_patch",
            funcs: &funcs,
            ..Wanted::default()
        },
        "",
    );
}

#[test]
fn module_function_patching() {
    let (mut linux, show) = module_function(false);
    linux.insmod("test_klp_mod_target", "", &["test_klp_mod_target_init"]);
    let version = |linux: &Linux| linux.host().version(linux.shell, show);
    assert_eq!(version(&linux), "test_klp_mod_target_show");
    load_mod_patch(&mut linux, show);
    assert_eq!(
        version(&linux),
        "test_klp_mod_patch_test_klp_mod_target_show"
    );
    linux.echo_0("test_klp_mod_patch");
    assert_eq!(version(&linux), "test_klp_mod_target_show");
    linux.unload("test_klp_mod_patch");
    linux.rmmod("test_klp_mod_target", &["test_klp_mod_target_exit"]);
    linux.log(
        &[
            "% insmod test_modules/test_klp_mod_target.ko\ntest_klp_mod_target: test_klp_mod_target_init\n",
            &*enabling("test_klp_mod_patch"),
            &disabling("test_klp_mod_patch"),
            "% rmmod test_modules/test_klp_mod_patch.ko
            % rmmod test_modules/test_klp_mod_target.ko
            test_klp_mod_target: test_klp_mod_target_exit",
        ]
        .concat(),
    );
}

#[test]
fn module_function_patching_livepatch_first() {
    let (mut linux, show) = module_function(false);
    load_mod_patch(&mut linux, show);
    linux.insmod("test_klp_mod_target", "", &["test_klp_mod_target_init"]);
    let version = |linux: &Linux| linux.host().version(linux.shell, show);
    assert_eq!(
        version(&linux),
        "test_klp_mod_patch_test_klp_mod_target_show"
    );
    linux.echo_0("test_klp_mod_patch");
    assert_eq!(version(&linux), "test_klp_mod_target_show");
    linux.unload("test_klp_mod_patch");
    linux.rmmod("test_klp_mod_target", &["test_klp_mod_target_exit"]);
    linux.log(
        &[
            &*enabling("test_klp_mod_patch"),
            "% insmod test_modules/test_klp_mod_target.ko
            livepatch: applying patch 'test_klp_mod_patch' to loading module 'test_klp_mod_target'
            test_klp_mod_target: test_klp_mod_target_init\n",
            &disabling("test_klp_mod_patch"),
            "% rmmod test_modules/test_klp_mod_patch.ko
            % rmmod test_modules/test_klp_mod_target.ko
            test_klp_mod_target: test_klp_mod_target_exit",
        ]
        .concat(),
    );
}

/// Tasks call without end, and the engine has to move them while they do.
#[test]
fn patch_getpid_syscall_while_being_heavily_hammered() {
    let host = SimOs::new();
    let getpid = host.function(VMLINUX, "sys_getpid");
    let tasks: Vec<_> = (0..32)
        .map(|number| host.spawn(&format!("hammer{number}")))
        .collect();
    let mut linux = Linux::new(host);
    let mut chance = Chance::new(7);
    // Every task is somewhere on its way into the function or out of it.
    let mut hammer = |linux: &Linux| {
        for task in &tasks {
            for _ in 0..chance.below(6) {
                match linux.host().rests(*task) {
                    true => assert!(linux.host().begin_call(*task, getpid)),
                    false if linux.host().step(*task) == klp_core::sim::Step::InBody => {
                        assert!(linux.host().ret(*task))
                    }
                    false => {}
                }
            }
        }
    };
    hammer(&linux);
    linux.load(
        &Wanted {
            name: "test_klp_syscall",
            funcs: &[(VMLINUX, "sys_getpid", getpid)],
            ..Wanted::default()
        },
        "",
    );
    let mut polls = 0;
    while linux.engine.poll() != Poll::Idle {
        hammer(&linux);
        super::check(&linux.engine);
        polls += 1;
        assert!(polls < 1_000, "it never ends: {:?}", linux.engine.status());
    }
    assert!(polls > 0, "nothing was in the way");
    for task in &tasks {
        while !linux.host().rests(*task) {
            assert!(linux.host().run(*task) && linux.host().ret(*task));
        }
        assert_eq!(
            linux.host().version(*task, getpid),
            "test_klp_syscall_sys_getpid"
        );
    }
    let mut log = linux.host().take_transcript();
    log.retain(|line| {
        !line.starts_with("klp_try_switch_task: ") && line != "signaling remaining tasks"
    });
    let expected = enabling("test_klp_syscall");
    let expected: Vec<&str> = expected
        .lines()
        .map(|line| line.trim().trim_start_matches("livepatch: "))
        .collect();
    assert_eq!(log, expected);
    linux.echo_0("test_klp_syscall");
    linux.unload("test_klp_syscall");
    linux.log(
        &[
            &*disabling("test_klp_syscall"),
            "% rmmod test_modules/test_klp_syscall.ko",
        ]
        .concat(),
    );
}

#[test]
fn callbacks_multiple_livepatches() {
    let host = SimOs::new();
    host.function(VMLINUX, "f");
    let mut linux = Linux::new(host);
    let talks = &[VMLINUX];
    linux.load(
        &Wanted {
            name: "test_klp_callbacks_demo",
            talks,
            ..Wanted::default()
        },
        "",
    );
    linux.load(
        &Wanted {
            name: "test_klp_callbacks_demo2",
            talks,
            ..Wanted::default()
        },
        "",
    );
    linux.echo_0("test_klp_callbacks_demo2");
    linux.echo_0("test_klp_callbacks_demo");
    linux.unload("test_klp_callbacks_demo2");
    linux.unload("test_klp_callbacks_demo");
    linux.log(
        "
        % insmod test_modules/test_klp_callbacks_demo.ko
        livepatch: enabling patch 'test_klp_callbacks_demo'
        livepatch: 'test_klp_callbacks_demo': initializing patching transition
        test_klp_callbacks_demo: pre_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': starting patching transition
        livepatch: 'test_klp_callbacks_demo': completing patching transition
        test_klp_callbacks_demo: post_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': patching complete
        % insmod test_modules/test_klp_callbacks_demo2.ko
        livepatch: enabling patch 'test_klp_callbacks_demo2'
        livepatch: 'test_klp_callbacks_demo2': initializing patching transition
        test_klp_callbacks_demo2: pre_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': starting patching transition
        livepatch: 'test_klp_callbacks_demo2': completing patching transition
        test_klp_callbacks_demo2: post_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': patching complete
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo2/enabled
        livepatch: 'test_klp_callbacks_demo2': initializing unpatching transition
        test_klp_callbacks_demo2: pre_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo2': completing unpatching transition
        test_klp_callbacks_demo2: post_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': unpatching complete
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo/enabled
        livepatch: 'test_klp_callbacks_demo': initializing unpatching transition
        test_klp_callbacks_demo: pre_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo': completing unpatching transition
        test_klp_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo': unpatching complete
        % rmmod test_modules/test_klp_callbacks_demo2.ko
        % rmmod test_modules/test_klp_callbacks_demo.ko
        ",
    );
}

/// Only the new patch's callbacks are called: the replaced one has no say in how it goes.
#[test]
fn callbacks_atomic_replace() {
    let host = SimOs::new();
    host.function(VMLINUX, "f");
    let mut linux = Linux::new(host);
    let talks = &[VMLINUX];
    linux.load(
        &Wanted {
            name: "test_klp_callbacks_demo",
            talks,
            ..Wanted::default()
        },
        "",
    );
    linux.host().take_transcript();
    linux.load(
        &Wanted {
            name: "test_klp_callbacks_demo2",
            talks,
            replace: Replace::All,
            ..Wanted::default()
        },
        "",
    );
    linux.echo_0("test_klp_callbacks_demo2");
    linux.unload("test_klp_callbacks_demo2");
    linux.unload("test_klp_callbacks_demo");
    linux.log(
        "
        % insmod test_modules/test_klp_callbacks_demo2.ko
        livepatch: enabling patch 'test_klp_callbacks_demo2'
        livepatch: 'test_klp_callbacks_demo2': initializing patching transition
        test_klp_callbacks_demo2: pre_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': starting patching transition
        livepatch: 'test_klp_callbacks_demo2': completing patching transition
        test_klp_callbacks_demo2: post_patch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': patching complete
        % echo 0 > /sys/kernel/livepatch/test_klp_callbacks_demo2/enabled
        livepatch: 'test_klp_callbacks_demo2': initializing unpatching transition
        test_klp_callbacks_demo2: pre_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': starting unpatching transition
        livepatch: 'test_klp_callbacks_demo2': completing unpatching transition
        test_klp_callbacks_demo2: post_unpatch_callback: vmlinux
        livepatch: 'test_klp_callbacks_demo2': unpatching complete
        % rmmod test_modules/test_klp_callbacks_demo2.ko
        % rmmod test_modules/test_klp_callbacks_demo.ko
        ",
    );
}

/// The state that the patches of test-state.sh change: how loud the console is.
const LOGLEVEL: u64 = 1;

/// Callbacks that make the console louder, unless a patch before has done so.
struct Louder(Console);

impl Louder {
    fn say(&self, context: &CallbackContext<'_>, what: &str) {
        self.0.say(&format!("{}: {what}", context.patch()));
    }
}

impl Callbacks for Louder {
    fn pre_patch(&self, context: &CallbackContext<'_>) -> Result<(), i32> {
        self.say(context, "pre_patch_callback: vmlinux");
        let what = match context.prev_state(LOGLEVEL) {
            Some(_) => "space to store console_loglevel already allocated",
            None => "allocating space to store console_loglevel",
        };
        self.say(context, what);
        Ok(())
    }

    fn post_patch(&self, context: &CallbackContext<'_>) {
        self.say(context, "post_patch_callback: vmlinux");
        let own = context.state(LOGLEVEL).expect("the patch has it");
        match context.prev_state(LOGLEVEL) {
            Some(before) => {
                own.set_data(before.data());
                self.say(context, "taking over the console_loglevel change");
            }
            None => {
                own.set_data(7);
                self.say(context, "fixing console_loglevel");
            }
        }
    }

    fn pre_unpatch(&self, context: &CallbackContext<'_>) {
        self.say(context, "pre_unpatch_callback: vmlinux");
        let what = match context.prev_state(LOGLEVEL) {
            Some(_) => "passing the console_loglevel change back to the old livepatch",
            None => "restoring console_loglevel",
        };
        assert_eq!(
            context.state(LOGLEVEL).map(State::data),
            Some(7),
            "what was kept when it was changed"
        );
        self.say(context, what);
    }

    fn post_unpatch(&self, context: &CallbackContext<'_>) {
        self.say(context, "post_unpatch_callback: vmlinux");
        let what = match context.prev_state(LOGLEVEL) {
            Some(_) => "keeping space to store console_loglevel",
            None => "freeing space to store console_loglevel",
        };
        self.say(context, what);
    }
}

fn louder(linux: &Linux, name: &str, version: u32) -> Patch {
    let object = Object::vmlinux()
        .map(|object| object.with_callbacks(Box::new(Louder(linux.console.clone()))));
    Patch::builder(name)
        .object(object)
        .replace(Replace::All)
        .state(State::new(LOGLEVEL, version))
        .build()
        .expect("well formed")
}

const STATE_ON: &str = "
    % insmod test_modules/test_klp_state.ko
    livepatch: enabling patch 'test_klp_state'
    livepatch: 'test_klp_state': initializing patching transition
    test_klp_state: pre_patch_callback: vmlinux
    test_klp_state: allocating space to store console_loglevel
    livepatch: 'test_klp_state': starting patching transition
    livepatch: 'test_klp_state': completing patching transition
    test_klp_state: post_patch_callback: vmlinux
    test_klp_state: fixing console_loglevel
    livepatch: 'test_klp_state': patching complete
";

/// A patch that takes over from one that is enabled.
fn take_over(name: &str) -> String {
    format!(
        "
        % insmod test_modules/{name}.ko
        livepatch: enabling patch '{name}'
        livepatch: '{name}': initializing patching transition
        {name}: pre_patch_callback: vmlinux
        {name}: space to store console_loglevel already allocated
        livepatch: '{name}': starting patching transition
        livepatch: '{name}': completing patching transition
        {name}: post_patch_callback: vmlinux
        {name}: taking over the console_loglevel change
        livepatch: '{name}': patching complete
        "
    )
}

fn restore(name: &str) -> String {
    format!(
        "
        % echo 0 > /sys/kernel/livepatch/{name}/enabled
        livepatch: '{name}': initializing unpatching transition
        {name}: pre_unpatch_callback: vmlinux
        {name}: restoring console_loglevel
        livepatch: '{name}': starting unpatching transition
        livepatch: '{name}': completing unpatching transition
        {name}: post_unpatch_callback: vmlinux
        {name}: freeing space to store console_loglevel
        livepatch: '{name}': unpatching complete
        % rmmod test_modules/{name}.ko
        "
    )
}

fn state_kernel() -> Linux {
    Linux::new(SimOs::new())
}

fn load_state(linux: &mut Linux, name: &str, version: u32) {
    let patch = louder(linux, name, version);
    linux.load_built(patch, "");
}

#[test]
fn system_state_modification() {
    let mut linux = state_kernel();
    load_state(&mut linux, "test_klp_state", 1);
    linux.echo_0("test_klp_state");
    linux.unload("test_klp_state");
    linux.log(&[STATE_ON, &restore("test_klp_state")].concat());
}

#[test]
fn taking_over_system_state_modification() {
    let mut linux = state_kernel();
    load_state(&mut linux, "test_klp_state", 1);
    load_state(&mut linux, "test_klp_state2", 2);
    linux.unload("test_klp_state");
    linux.echo_0("test_klp_state2");
    linux.unload("test_klp_state2");
    linux.log(
        &[
            STATE_ON,
            &take_over("test_klp_state2"),
            "% rmmod test_modules/test_klp_state.ko\n",
            &restore("test_klp_state2"),
        ]
        .concat(),
    );
}

/// Two patches that know the state in the same version take over from each other, both ways.
#[test]
fn compatible_cumulative_livepatches() {
    let mut linux = state_kernel();
    load_state(&mut linux, "test_klp_state2", 2);
    linux.host().take_transcript();
    load_state(&mut linux, "test_klp_state3", 2);
    linux.unload("test_klp_state2");
    load_state(&mut linux, "test_klp_state2", 2);
    linux.echo_0("test_klp_state2");
    linux.unload("test_klp_state2");
    linux.unload("test_klp_state3");
    linux.log(
        &[
            &*take_over("test_klp_state3"),
            "% rmmod test_modules/test_klp_state2.ko\n",
            &take_over("test_klp_state2"),
            &restore("test_klp_state2"),
            "% rmmod test_modules/test_klp_state3.ko\n",
        ]
        .concat(),
    );
}

#[test]
fn incompatible_cumulative_livepatches() {
    let mut linux = state_kernel();
    load_state(&mut linux, "test_klp_state2", 2);
    linux.host().take_transcript();
    load_state(&mut linux, "test_klp_state", 1);
    linux.echo_0("test_klp_state2");
    linux.unload("test_klp_state2");
    linux.log(
        &[
            "% insmod test_modules/test_klp_state.ko
            livepatch: Livepatch patch (test_klp_state) is not compatible with the already installed livepatches.
            insmod: ERROR: could not insert module test_modules/test_klp_state.ko: Invalid parameters\n",
            &*restore("test_klp_state2"),
        ]
        .concat(),
    );
}

/// What the attributes of a patch tell, asked of the engine.
#[test]
fn sysfs_stack_order_value() {
    let mut kernel = Kernel::new();
    kernel.load_livepatch();
    let order = |kernel: &Kernel| -> Vec<String> {
        let status = kernel.linux.engine.status().expect("memory");
        status
            .iter()
            .filter(|patch| patch.enabled)
            .map(|patch| patch.name.to_string())
            .collect()
    };
    kernel.load(
        "test_klp_syscall",
        &[(VMLINUX, "meminfo_proc_show", kernel.meminfo)],
        Replace::None,
    );
    kernel.load(
        "test_klp_callbacks_demo",
        &[(VMLINUX, "meminfo_proc_show", kernel.meminfo)],
        Replace::None,
    );
    assert_eq!(
        order(&kernel),
        [
            "test_klp_livepatch",
            "test_klp_syscall",
            "test_klp_callbacks_demo"
        ]
    );
    kernel.linux.echo_0("test_klp_syscall");
    assert_eq!(
        order(&kernel),
        ["test_klp_livepatch", "test_klp_callbacks_demo"]
    );
    kernel.load_atomic_replace(Replace::All);
    assert_eq!(order(&kernel), ["test_klp_atomic_replace"]);
}
