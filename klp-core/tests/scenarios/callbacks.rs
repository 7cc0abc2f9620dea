//! The nine tests of the kernel's callbacks document, line by line, without time stamps and in the
//! newest wording.

use super::linux::{Linux, Wanted};
use klp_core::Poll;
use klp_core::model::VMLINUX;
use klp_core::port::TaskId;
use klp_core::sim::{SimFunc, SimOs};

const DEMO: &str = "livepatch_callbacks_demo";
const MOD: &str = "livepatch_callbacks_mod";
const BUSY: &str = "livepatch_callbacks_busymod";

/// The samples: a module, a busy one whose work function is patched, and a patch with callbacks for
/// both and for the base image.
struct Samples {
    linux: Linux,
    work: SimFunc,
    worker: TaskId,
}

impl Samples {
    fn new() -> Self {
        let host = SimOs::new();
        host.function(MOD, "livepatch_callbacks_mod_init");
        let work = host.function(BUSY, "busymod_work_func");
        let worker = host.spawn("kworker");
        host.not_loaded(MOD);
        host.not_loaded(BUSY);
        Self {
            linux: Linux::new(host),
            work,
            worker,
        }
    }

    fn insmod(&self) {
        self.linux
            .insmod(MOD, "", &["livepatch_callbacks_mod_init"]);
    }

    fn rmmod(&self) {
        self.linux.rmmod(MOD, &["livepatch_callbacks_mod_exit"]);
    }

    fn load(&mut self, parameters: &str) {
        let funcs = [(BUSY, "busymod_work_func", self.work)];
        self.linux.load(
            &Wanted {
                name: DEMO,
                talks: &[VMLINUX, MOD, BUSY],
                funcs: &funcs,
                ..Wanted::default()
            },
            parameters,
        );
    }

    fn disable(&self) {
        assert!(matches!(
            self.linux.echo_0(DEMO),
            Poll::Complete { enabled: false, .. }
        ));
    }

    fn insmod_busy(&self, seconds: u32) {
        let starts = format!("busymod_work_func, sleeping {seconds} seconds ...");
        self.linux.insmod(
            BUSY,
            &format!("sleep_secs={seconds}"),
            &["livepatch_callbacks_mod_init", &starts],
        );
        assert!(self.linux.host().call(self.worker, self.work));
        if seconds == 0 {
            self.work_ends();
        }
    }

    fn work_ends(&self) {
        assert!(self.linux.host().ret(self.worker));
        self.linux
            .console
            .say("livepatch_callbacks_busymod: busymod_work_func exit");
    }
}

#[test]
fn test_1_target_module_before_livepatch() {
    let mut samples = Samples::new();
    samples.insmod();
    samples.load("");
    samples.disable();
    samples.linux.unload(DEMO);
    samples.rmmod();
    samples.linux.log(
        "
        % insmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch_callbacks_mod: livepatch_callbacks_mod_init
        % insmod samples/livepatch/livepatch-callbacks-demo.ko
        livepatch: enabling patch 'livepatch_callbacks_demo'
        livepatch: 'livepatch_callbacks_demo': initializing patching transition
        livepatch_callbacks_demo: pre_patch_callback: vmlinux
        livepatch_callbacks_demo: pre_patch_callback: livepatch_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': starting patching transition
        livepatch: 'livepatch_callbacks_demo': completing patching transition
        livepatch_callbacks_demo: post_patch_callback: vmlinux
        livepatch_callbacks_demo: post_patch_callback: livepatch_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': patching complete
        % echo 0 > /sys/kernel/livepatch/livepatch_callbacks_demo/enabled
        livepatch: 'livepatch_callbacks_demo': initializing unpatching transition
        livepatch_callbacks_demo: pre_unpatch_callback: vmlinux
        livepatch_callbacks_demo: pre_unpatch_callback: livepatch_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': starting unpatching transition
        livepatch: 'livepatch_callbacks_demo': completing unpatching transition
        livepatch_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch_callbacks_demo: post_unpatch_callback: livepatch_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': unpatching complete
        % rmmod samples/livepatch/livepatch-callbacks-demo.ko
        % rmmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch_callbacks_mod: livepatch_callbacks_mod_exit
        ",
    );
}

#[test]
fn test_2_module_coming() {
    let mut samples = Samples::new();
    samples.load("");
    samples.insmod();
    samples.disable();
    samples.linux.unload(DEMO);
    samples.rmmod();
    samples.linux.log(
        "
        % insmod samples/livepatch/livepatch-callbacks-demo.ko
        livepatch: enabling patch 'livepatch_callbacks_demo'
        livepatch: 'livepatch_callbacks_demo': initializing patching transition
        livepatch_callbacks_demo: pre_patch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': starting patching transition
        livepatch: 'livepatch_callbacks_demo': completing patching transition
        livepatch_callbacks_demo: post_patch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': patching complete
        % insmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch: applying patch 'livepatch_callbacks_demo' to loading module 'livepatch_callbacks_mod'
        livepatch_callbacks_demo: pre_patch_callback: livepatch_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        livepatch_callbacks_demo: post_patch_callback: livepatch_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        livepatch_callbacks_mod: livepatch_callbacks_mod_init
        % echo 0 > /sys/kernel/livepatch/livepatch_callbacks_demo/enabled
        livepatch: 'livepatch_callbacks_demo': initializing unpatching transition
        livepatch_callbacks_demo: pre_unpatch_callback: vmlinux
        livepatch_callbacks_demo: pre_unpatch_callback: livepatch_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': starting unpatching transition
        livepatch: 'livepatch_callbacks_demo': completing unpatching transition
        livepatch_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch_callbacks_demo: post_unpatch_callback: livepatch_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': unpatching complete
        % rmmod samples/livepatch/livepatch-callbacks-demo.ko
        % rmmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch_callbacks_mod: livepatch_callbacks_mod_exit
        ",
    );
}

#[test]
fn test_3_module_going() {
    let mut samples = Samples::new();
    samples.insmod();
    samples.load("");
    samples.rmmod();
    samples.disable();
    samples.linux.unload(DEMO);
    samples.linux.log(
        "
        % insmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch_callbacks_mod: livepatch_callbacks_mod_init
        % insmod samples/livepatch/livepatch-callbacks-demo.ko
        livepatch: enabling patch 'livepatch_callbacks_demo'
        livepatch: 'livepatch_callbacks_demo': initializing patching transition
        livepatch_callbacks_demo: pre_patch_callback: vmlinux
        livepatch_callbacks_demo: pre_patch_callback: livepatch_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': starting patching transition
        livepatch: 'livepatch_callbacks_demo': completing patching transition
        livepatch_callbacks_demo: post_patch_callback: vmlinux
        livepatch_callbacks_demo: post_patch_callback: livepatch_callbacks_mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': patching complete
        % rmmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch_callbacks_mod: livepatch_callbacks_mod_exit
        livepatch_callbacks_demo: pre_unpatch_callback: livepatch_callbacks_mod -> [MODULE_STATE_GOING] Going away
        livepatch: reverting patch 'livepatch_callbacks_demo' on unloading module 'livepatch_callbacks_mod'
        livepatch_callbacks_demo: post_unpatch_callback: livepatch_callbacks_mod -> [MODULE_STATE_GOING] Going away
        % echo 0 > /sys/kernel/livepatch/livepatch_callbacks_demo/enabled
        livepatch: 'livepatch_callbacks_demo': initializing unpatching transition
        livepatch_callbacks_demo: pre_unpatch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': starting unpatching transition
        livepatch: 'livepatch_callbacks_demo': completing unpatching transition
        livepatch_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': unpatching complete
        % rmmod samples/livepatch/livepatch-callbacks-demo.ko
        ",
    );
}

#[test]
fn test_4_module_coming_and_going() {
    let mut samples = Samples::new();
    samples.load("");
    samples.insmod();
    samples.rmmod();
    samples.disable();
    samples.linux.unload(DEMO);
    samples.linux.log(
        "
        % insmod samples/livepatch/livepatch-callbacks-demo.ko
        livepatch: enabling patch 'livepatch_callbacks_demo'
        livepatch: 'livepatch_callbacks_demo': initializing patching transition
        livepatch_callbacks_demo: pre_patch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': starting patching transition
        livepatch: 'livepatch_callbacks_demo': completing patching transition
        livepatch_callbacks_demo: post_patch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': patching complete
        % insmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch: applying patch 'livepatch_callbacks_demo' to loading module 'livepatch_callbacks_mod'
        livepatch_callbacks_demo: pre_patch_callback: livepatch_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        livepatch_callbacks_demo: post_patch_callback: livepatch_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        livepatch_callbacks_mod: livepatch_callbacks_mod_init
        % rmmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch_callbacks_mod: livepatch_callbacks_mod_exit
        livepatch_callbacks_demo: pre_unpatch_callback: livepatch_callbacks_mod -> [MODULE_STATE_GOING] Going away
        livepatch: reverting patch 'livepatch_callbacks_demo' on unloading module 'livepatch_callbacks_mod'
        livepatch_callbacks_demo: post_unpatch_callback: livepatch_callbacks_mod -> [MODULE_STATE_GOING] Going away
        % echo 0 > /sys/kernel/livepatch/livepatch_callbacks_demo/enabled
        livepatch: 'livepatch_callbacks_demo': initializing unpatching transition
        livepatch_callbacks_demo: pre_unpatch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': starting unpatching transition
        livepatch: 'livepatch_callbacks_demo': completing unpatching transition
        livepatch_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': unpatching complete
        % rmmod samples/livepatch/livepatch-callbacks-demo.ko
        ",
    );
}

#[test]
fn test_5_target_module_not_present() {
    let mut samples = Samples::new();
    samples.load("");
    samples.disable();
    samples.linux.unload(DEMO);
    samples.linux.log(
        "
        % insmod samples/livepatch/livepatch-callbacks-demo.ko
        livepatch: enabling patch 'livepatch_callbacks_demo'
        livepatch: 'livepatch_callbacks_demo': initializing patching transition
        livepatch_callbacks_demo: pre_patch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': starting patching transition
        livepatch: 'livepatch_callbacks_demo': completing patching transition
        livepatch_callbacks_demo: post_patch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': patching complete
        % echo 0 > /sys/kernel/livepatch/livepatch_callbacks_demo/enabled
        livepatch: 'livepatch_callbacks_demo': initializing unpatching transition
        livepatch_callbacks_demo: pre_unpatch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': starting unpatching transition
        livepatch: 'livepatch_callbacks_demo': completing unpatching transition
        livepatch_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': unpatching complete
        % rmmod samples/livepatch/livepatch-callbacks-demo.ko
        ",
    );
}

#[test]
fn test_6_pre_patch_callback_enodev() {
    let mut samples = Samples::new();
    samples.insmod();
    samples.load("pre_patch_ret=-19");
    samples.rmmod();
    samples.linux.log(
        "
        % insmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch_callbacks_mod: livepatch_callbacks_mod_init
        % insmod samples/livepatch/livepatch-callbacks-demo.ko pre_patch_ret=-19
        livepatch: enabling patch 'livepatch_callbacks_demo'
        livepatch: 'livepatch_callbacks_demo': initializing patching transition
        livepatch_callbacks_demo: pre_patch_callback: vmlinux
        livepatch: pre-patch callback failed for object 'vmlinux'
        livepatch: failed to enable patch 'livepatch_callbacks_demo'
        livepatch: 'livepatch_callbacks_demo': canceling patching transition, going to unpatch
        livepatch: 'livepatch_callbacks_demo': completing unpatching transition
        livepatch: 'livepatch_callbacks_demo': unpatching complete
        insmod: ERROR: could not insert module samples/livepatch/livepatch-callbacks-demo.ko: No such device
        % rmmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch_callbacks_mod: livepatch_callbacks_mod_exit
        ",
    );
}

#[test]
fn test_7_module_coming_and_pre_patch_callback_enodev() {
    let mut samples = Samples::new();
    samples.load("");
    samples.linux.set_pre_patch_ret(DEMO, -19);
    samples.insmod();
    samples.disable();
    samples.linux.unload(DEMO);
    samples.linux.log(
        "
        % insmod samples/livepatch/livepatch-callbacks-demo.ko
        livepatch: enabling patch 'livepatch_callbacks_demo'
        livepatch: 'livepatch_callbacks_demo': initializing patching transition
        livepatch_callbacks_demo: pre_patch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': starting patching transition
        livepatch: 'livepatch_callbacks_demo': completing patching transition
        livepatch_callbacks_demo: post_patch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': patching complete
        % insmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch: applying patch 'livepatch_callbacks_demo' to loading module 'livepatch_callbacks_mod'
        livepatch_callbacks_demo: pre_patch_callback: livepatch_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        livepatch: pre-patch callback failed for object 'livepatch_callbacks_mod'
        livepatch: patch 'livepatch_callbacks_demo' failed for module 'livepatch_callbacks_mod', refusing to load module 'livepatch_callbacks_mod'
        insmod: ERROR: could not insert module samples/livepatch/livepatch-callbacks-mod.ko: No such device
        % echo 0 > /sys/kernel/livepatch/livepatch_callbacks_demo/enabled
        livepatch: 'livepatch_callbacks_demo': initializing unpatching transition
        livepatch_callbacks_demo: pre_unpatch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': starting unpatching transition
        livepatch: 'livepatch_callbacks_demo': completing unpatching transition
        livepatch_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch: 'livepatch_callbacks_demo': unpatching complete
        % rmmod samples/livepatch/livepatch-callbacks-demo.ko
        ",
    );
}

#[test]
fn test_8_multiple_target_modules() {
    let mut samples = Samples::new();
    samples.insmod_busy(0);
    samples.load("");
    samples.insmod();
    samples.rmmod();
    samples.disable();
    samples.linux.unload(DEMO);
    samples.linux.rmmod(BUSY, &["livepatch_callbacks_mod_exit"]);
    samples.linux.log(
        "
        % insmod samples/livepatch/livepatch-callbacks-busymod.ko sleep_secs=0
        livepatch_callbacks_busymod: livepatch_callbacks_mod_init
        livepatch_callbacks_busymod: busymod_work_func, sleeping 0 seconds ...
        livepatch_callbacks_busymod: busymod_work_func exit
        % insmod samples/livepatch/livepatch-callbacks-demo.ko
        livepatch: enabling patch 'livepatch_callbacks_demo'
        livepatch: 'livepatch_callbacks_demo': initializing patching transition
        livepatch_callbacks_demo: pre_patch_callback: vmlinux
        livepatch_callbacks_demo: pre_patch_callback: livepatch_callbacks_busymod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': starting patching transition
        livepatch: 'livepatch_callbacks_demo': completing patching transition
        livepatch_callbacks_demo: post_patch_callback: vmlinux
        livepatch_callbacks_demo: post_patch_callback: livepatch_callbacks_busymod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': patching complete
        % insmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch: applying patch 'livepatch_callbacks_demo' to loading module 'livepatch_callbacks_mod'
        livepatch_callbacks_demo: pre_patch_callback: livepatch_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        livepatch_callbacks_demo: post_patch_callback: livepatch_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        livepatch_callbacks_mod: livepatch_callbacks_mod_init
        % rmmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch_callbacks_mod: livepatch_callbacks_mod_exit
        livepatch_callbacks_demo: pre_unpatch_callback: livepatch_callbacks_mod -> [MODULE_STATE_GOING] Going away
        livepatch: reverting patch 'livepatch_callbacks_demo' on unloading module 'livepatch_callbacks_mod'
        livepatch_callbacks_demo: post_unpatch_callback: livepatch_callbacks_mod -> [MODULE_STATE_GOING] Going away
        % echo 0 > /sys/kernel/livepatch/livepatch_callbacks_demo/enabled
        livepatch: 'livepatch_callbacks_demo': initializing unpatching transition
        livepatch_callbacks_demo: pre_unpatch_callback: vmlinux
        livepatch_callbacks_demo: pre_unpatch_callback: livepatch_callbacks_busymod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': starting unpatching transition
        livepatch: 'livepatch_callbacks_demo': completing unpatching transition
        livepatch_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch_callbacks_demo: post_unpatch_callback: livepatch_callbacks_busymod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': unpatching complete
        % rmmod samples/livepatch/livepatch-callbacks-demo.ko
        % rmmod samples/livepatch/livepatch-callbacks-busymod.ko
        livepatch_callbacks_busymod: livepatch_callbacks_mod_exit
        ",
    );
}

#[test]
fn test_9_busy_target_module() {
    let mut samples = Samples::new();
    samples.insmod_busy(30);
    samples.load("");
    samples.insmod();
    samples.rmmod();
    samples.disable();
    samples.linux.unload(DEMO);
    samples
        .linux
        .console
        .say("% rmmod samples/livepatch/livepatch-callbacks-busymod.ko");
    assert!(
        !klp_core::sim::rmmod(&samples.linux.engine, BUSY),
        "its work still runs"
    );
    samples.work_ends();
    samples
        .linux
        .console
        .say("livepatch_callbacks_busymod: livepatch_callbacks_mod_exit");
    assert!(klp_core::sim::rmmod(&samples.linux.engine, BUSY));
    samples.linux.log(
        "
        % insmod samples/livepatch/livepatch-callbacks-busymod.ko sleep_secs=30
        livepatch_callbacks_busymod: livepatch_callbacks_mod_init
        livepatch_callbacks_busymod: busymod_work_func, sleeping 30 seconds ...
        % insmod samples/livepatch/livepatch-callbacks-demo.ko
        livepatch: enabling patch 'livepatch_callbacks_demo'
        livepatch: 'livepatch_callbacks_demo': initializing patching transition
        livepatch_callbacks_demo: pre_patch_callback: vmlinux
        livepatch_callbacks_demo: pre_patch_callback: livepatch_callbacks_busymod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': starting patching transition
        % insmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch: applying patch 'livepatch_callbacks_demo' to loading module 'livepatch_callbacks_mod'
        livepatch_callbacks_demo: pre_patch_callback: livepatch_callbacks_mod -> [MODULE_STATE_COMING] Full formed, running module_init
        livepatch_callbacks_mod: livepatch_callbacks_mod_init
        % rmmod samples/livepatch/livepatch-callbacks-mod.ko
        livepatch_callbacks_mod: livepatch_callbacks_mod_exit
        livepatch: reverting patch 'livepatch_callbacks_demo' on unloading module 'livepatch_callbacks_mod'
        livepatch_callbacks_demo: post_unpatch_callback: livepatch_callbacks_mod -> [MODULE_STATE_GOING] Going away
        % echo 0 > /sys/kernel/livepatch/livepatch_callbacks_demo/enabled
        livepatch: 'livepatch_callbacks_demo': reversing transition from patching to unpatching
        livepatch: 'livepatch_callbacks_demo': starting unpatching transition
        livepatch: 'livepatch_callbacks_demo': completing unpatching transition
        livepatch_callbacks_demo: post_unpatch_callback: vmlinux
        livepatch_callbacks_demo: post_unpatch_callback: livepatch_callbacks_busymod -> [MODULE_STATE_LIVE] Normal state
        livepatch: 'livepatch_callbacks_demo': unpatching complete
        % rmmod samples/livepatch/livepatch-callbacks-demo.ko
        % rmmod samples/livepatch/livepatch-callbacks-busymod.ko
        livepatch_callbacks_busymod: busymod_work_func exit
        livepatch_callbacks_busymod: livepatch_callbacks_mod_exit
        ",
    );
}
