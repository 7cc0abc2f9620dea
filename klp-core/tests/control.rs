//! The attribute tree on the simulated OS. The tests called `sysfs_test…` are those of Linux's
//! selftest `test-sysfs.sh`.

mod common;

use common::{Basic as Tree, add, check, patch};
use klp_core::control::{ControlError, Kind, enables, list, read, write};
use klp_core::model::{Replace, VMLINUX};
use klp_core::port::TaskId;
use klp_core::sim::{self, SimFunc, insmod, rmmod};
use klp_core::{Object, Patch, PatchId};

impl Tree {
    fn add(&self, name: &str, func: (&str, SimFunc)) -> PatchId {
        add(
            &self.engine,
            patch(self.host(), name, &[(VMLINUX, func.0, func.1)]),
        )
    }

    fn add_replacing(&self, name: &str, replace: Replace) -> PatchId {
        let new = self
            .host()
            .replacement(name, self.f, klp_core::sim::Place::Near);
        let object = Object::vmlinux().and_then(|object| object.func(sim::func("f", new)?));
        let patch = Patch::builder(name).replace(replace).object(object).build();
        add(&self.engine, patch.expect("the patch is well formed"))
    }

    /// The names in a directory, directories with a slash behind.
    #[track_caller]
    fn names(&self, path: &str) -> Vec<String> {
        let slash = |kind| if kind == Kind::Directory { "/" } else { "" };
        let entries = list(&self.engine, path).expect("it is a directory");
        entries
            .iter()
            .map(|entry| format!("{}{}", entry.name, slash(entry.kind)))
            .collect()
    }

    #[track_caller]
    fn mode(&self, path: &str, name: &str) -> u16 {
        let entries = list(&self.engine, path).expect("it is a directory");
        entries
            .iter()
            .find(|entry| entry.name == name)
            .expect("it is there")
            .mode()
    }

    fn try_read(&self, path: &str) -> Result<String, i32> {
        let mut out = String::new();
        read(&self.engine, path, &mut out)
            .map(|()| out)
            .map_err(|error| error.errno())
    }

    #[track_caller]
    fn read(&self, path: &str) -> String {
        self.try_read(path).expect("it can be read")
    }

    fn write(&self, path: &str, value: &str) -> Result<(), i32> {
        // SAFETY: the tasks are simulated: mixed versions do no harm.
        unsafe { write(&self.engine, path, value) }.map_err(|error| error.errno())
    }

    /// The task goes into `f`, so that transitions of `f` wait for it.
    fn hold(&self) {
        assert!(self.host().call(self.task, self.f));
    }

    fn release(&self) {
        assert!(self.host().ret(self.task));
        self.engine.poll();
        check(&self.engine);
    }
}

const ENOENT: Result<(), i32> = Err(-2);
const EACCES: Result<(), i32> = Err(-13);
const EBUSY: Result<(), i32> = Err(-16);
const ENOTDIR: Result<(), i32> = Err(-20);
const EISDIR: Result<(), i32> = Err(-21);
const EINVAL: Result<(), i32> = Err(-22);

#[test]
fn sysfs_test() {
    let tree = Tree::new();
    let p = tree.add("p", ("f", tree.f));
    tree.engine.enable(p).expect("enables");
    let modes = [
        ("enabled", 0o644),
        ("transition", 0o444),
        ("force", 0o200),
        ("replace", 0o444),
        ("stack_order", 0o444),
    ];
    for (name, mode) in modes {
        assert_eq!(tree.mode("livepatch/p", name), mode, "{name}");
    }
    assert_eq!(
        (
            tree.mode("livepatch/p", "signal"),
            tree.mode("livepatch/p", "blockers")
        ),
        (0o200, 0o444)
    );
    assert_eq!(tree.mode("livepatch/p", VMLINUX), 0o755);
    assert_eq!(tree.mode("livepatch/p/vmlinux", "patched"), 0o444);
    assert_eq!(tree.read("livepatch/p/vmlinux/patched"), "1\n");
    assert_eq!(tree.read("livepatch/p/enabled"), "1\n");
    assert_eq!(tree.write("livepatch/p/enabled", "0"), Ok(()));
    assert_eq!(tree.read("livepatch/p/enabled"), "0\n");
    assert_eq!(tree.read("livepatch/p/vmlinux/patched"), "0\n");
}

#[test]
fn sysfs_test_object_patched() {
    let tree = Tree::new();
    let m = tree.host().function("m", "in_m");
    tree.host().not_loaded("m");
    let p = add(
        &tree.engine,
        patch(
            tree.host(),
            "p",
            &[(VMLINUX, "f", tree.f), ("m", "in_m", m)],
        ),
    );
    tree.engine.enable(p).expect("enables without the module");
    assert_eq!(tree.read("livepatch/p/m/patched"), "0\n");
    assert_eq!(tree.read("livepatch/p/vmlinux/patched"), "1\n");
    insmod(&tree.engine, "m").expect("the patch fits");
    assert_eq!(tree.read("livepatch/p/m/patched"), "1\n");
    assert!(rmmod(&tree.engine, "m"));
    assert_eq!(tree.read("livepatch/p/m/patched"), "0\n");
}

#[test]
fn sysfs_test_replace_enabled() {
    let tree = Tree::new();
    let p = tree.add_replacing("p", Replace::All);
    tree.engine.enable(p).expect("enables");
    assert_eq!(tree.read("livepatch/p/replace"), "1\n");
}

#[test]
fn sysfs_test_replace_disabled() {
    let tree = Tree::new();
    let p = tree.add_replacing("p", Replace::None);
    tree.engine.enable(p).expect("enables");
    assert_eq!(tree.read("livepatch/p/replace"), "0\n");
}

#[test]
fn sysfs_test_stack_order_value() {
    let tree = Tree::new();
    let patches = [
        tree.add("a", ("f", tree.f)),
        tree.add("b", ("g", tree.g)),
        tree.add("c", ("f", tree.f)),
    ];
    let orders = || ["a", "b", "c"].map(|name| tree.read(&format!("livepatch/{name}/stack_order")));
    assert_eq!(orders(), ["0\n", "0\n", "0\n"], "none is in force");
    for patch in patches {
        tree.engine.enable(patch).expect("enables");
    }
    assert_eq!(orders(), ["1\n", "2\n", "3\n"]);
    assert_eq!(tree.write("livepatch/b/enabled", "0"), Ok(()));
    assert_eq!(orders(), ["1\n", "0\n", "2\n"]);
    assert_eq!(tree.write("livepatch/b/enabled", "1"), Ok(()));
    assert_eq!(orders(), ["1\n", "3\n", "2\n"], "enabled again: the newest");
    tree.hold();
    assert_eq!(tree.write("livepatch/c/enabled", "0"), Ok(()));
    assert_eq!(
        orders(),
        ["1\n", "3\n", "2\n"],
        "as long as its transition runs, it counts"
    );
    tree.release();
    assert_eq!(orders(), ["1\n", "2\n", "0\n"]);
}

/// For hosts that have something to do before a patch is enabled, and for objects that come.
#[test]
fn what_would_be_enabled_and_patched() {
    let tree = Tree::new();
    let p = tree.add("p", ("f", tree.f));
    let would = |path, value| enables(&tree.engine, path, value).map_err(|error| error.errno());
    assert_eq!(would("livepatch/p/enabled", "1\n"), Ok(Some(p)));
    for (path, value) in [
        ("livepatch/p/enabled", "0"),
        ("livepatch/p/enabled", "maybe"),
        ("livepatch/p/force", "1"),
    ] {
        assert_eq!(would(path, value), Ok(None), "{path} {value}");
    }
    assert_eq!(would("livepatch/q/enabled", "1"), Err(-2));
    assert!(
        !tree.engine.patches_object(VMLINUX),
        "known, but not in force"
    );
    tree.engine.enable(p).expect("enables");
    assert_eq!(would("livepatch/p/enabled", "1"), Ok(None), "it is enabled");
    assert!(tree.engine.patches_object(VMLINUX) && !tree.engine.patches_object("m"));
    tree.hold();
    tree.engine.disable(p).expect("it is enabled");
    assert!(
        tree.engine.patches_object(VMLINUX),
        "as long as its transition runs, it counts"
    );
    tree.release();
    assert!(!tree.engine.patches_object(VMLINUX));
}

#[test]
fn what_writing_to_enabled_does() {
    let tree = Tree::new();
    let (enabled, transition) = ("livepatch/p/enabled", "livepatch/p/transition");
    tree.add("p", ("f", tree.f));
    tree.add("other", ("g", tree.g));
    assert_eq!(tree.write(enabled, "0"), EINVAL, "it is disabled");
    assert_eq!(tree.write(enabled, "maybe"), EINVAL);
    assert_eq!(tree.write(enabled, ""), EINVAL);

    tree.hold();
    assert_eq!(tree.write(enabled, "1"), Ok(()));
    assert_eq!(
        (tree.read(enabled), tree.read(transition)),
        ("1\n".into(), "1\n".into())
    );
    assert_eq!(tree.write(enabled, "1"), EINVAL, "it is on its way there");
    assert_eq!(tree.write("livepatch/other/enabled", "1"), EBUSY);
    assert_eq!(tree.read("livepatch/other/transition"), "0\n");
    assert_eq!(
        tree.write(enabled, "0"),
        Ok(()),
        "the transition turns round"
    );
    tree.release();
    assert_eq!(
        (tree.read(enabled), tree.read(transition)),
        ("0\n".into(), "0\n".into())
    );

    for (on, off) in [
        ("1\n", "0\n"),
        ("y", "n"),
        ("on", "off"),
        ("T", "F"),
        ("Yes", "No"),
    ] {
        assert_eq!(tree.write(enabled, on), Ok(()));
        assert_eq!(tree.read(enabled), "1\n");
        assert_eq!(tree.write(enabled, on), EINVAL, "it is enabled");
        assert_eq!(tree.write(enabled, off), Ok(()));
        assert_eq!(tree.read(enabled), "0\n");
        check(&tree.engine);
    }
}

#[test]
fn force_and_signal_need_a_transition() {
    let tree = Tree::new();
    tree.add("p", ("f", tree.f));
    for name in ["livepatch/p/force", "livepatch/p/signal"] {
        assert_eq!(tree.write(name, "0"), Ok(()), "ignored");
        assert_eq!(tree.write(name, "1"), EINVAL);
        assert_eq!(tree.try_read(name), Err(-13));
    }
    tree.hold();
    assert_eq!(tree.write("livepatch/p/enabled", "1"), Ok(()));
    assert_eq!(tree.write("livepatch/p/signal", "0"), Ok(()));
    assert_eq!(tree.host().kicks(tree.task), 0);
    assert_eq!(tree.write("livepatch/p/signal", "1"), Ok(()));
    assert_eq!(tree.host().kicks(tree.task), 1);
    assert_eq!(tree.write("livepatch/p/force", "0"), Ok(()));
    assert_eq!(tree.read("livepatch/p/transition"), "1\n", "0 is ignored");
    assert_eq!(tree.write("livepatch/p/force", "1"), Ok(()));
    assert_eq!(tree.read("livepatch/p/transition"), "0\n");
    assert_eq!(tree.read("livepatch/p/enabled"), "1\n");
}

#[test]
fn tasks_and_blockers() {
    let tree = Tree::new();
    tree.add("p", ("f", tree.f));
    let other = tree.host().spawn("other");
    let state = |task: TaskId| tree.try_read(&format!("tasks/{}/patch_state", task.0));
    assert_eq!(
        (state(tree.task), state(other)),
        (Ok("-1\n".into()), Ok("-1\n".into()))
    );
    assert_eq!(tree.read("livepatch/p/blockers"), "");
    tree.hold();
    assert_eq!(tree.write("livepatch/p/enabled", "1"), Ok(()));
    assert_eq!(
        (state(tree.task), state(other)),
        (Ok("0\n".into()), Ok("1\n".into()))
    );
    assert_eq!(tree.names("tasks"), ["1/"], "the one that is waited for");
    let blockers = tree.read("livepatch/p/blockers");
    assert!(
        blockers.starts_with("worker:1 is in function 'f' of 'vmlinux'\n    f+0x8/0x10\n"),
        "{blockers}"
    );
    assert!(blockers.ends_with('\n'));
    tree.release();
    assert_eq!(
        (state(tree.task), state(other)),
        (Ok("-1\n".into()), Ok("-1\n".into()))
    );
    assert!(tree.names("tasks").is_empty());
    tree.host().exit(other);
    assert_eq!(state(other), Err(-2));
    assert_eq!(tree.mode("tasks/1", "patch_state"), 0o400);
}

#[test]
fn directories() {
    let tree = Tree::new();
    let m = tree.host().function("m", "in_m");
    let object = Object::vmlinux().and_then(|object| {
        let new = |name| {
            tree.host()
                .replacement("p", name, klp_core::sim::Place::Near)
        };
        object
            .func(sim::func("f", new(tree.f))?)?
            .func(sim::func("g", new(tree.g))?.sympos(2))
    });
    let in_m = Object::module("m")
        .and_then(|object| object.func(sim::func_at("in_m", tree.host().range(m).start())?));
    let patch = Patch::builder("p")
        .object(object)
        .object(in_m)
        .build()
        .expect("the patch is well formed");
    add(&tree.engine, patch);
    assert_eq!(tree.names(""), ["livepatch/", "tasks/"]);
    assert_eq!(tree.names("/livepatch/"), ["p/"]);
    let attributes = [
        "enabled",
        "transition",
        "replace",
        "stack_order",
        "blockers",
        "force",
        "signal",
    ];
    assert_eq!(
        tree.names("livepatch/p"),
        [&attributes[..], &["vmlinux/", "m/"]].concat()
    );
    assert_eq!(
        tree.names("livepatch/p/vmlinux"),
        ["patched", "f,1/", "g,2/"]
    );
    assert!(tree.names("livepatch/p/vmlinux/g,2").is_empty());
    for path in [
        "livepatch/p/vmlinux/g,1",
        "livepatch/p/vmlinux/g",
        "livepatch/p/n",
        "livepatch/q",
        "x",
        "tasks/99",
    ] {
        assert_eq!(
            list(&tree.engine, path).map(|_| ()),
            Err(ControlError::NotFound),
            "{path}"
        );
        assert_eq!(tree.write(path, "1"), ENOENT, "{path}");
    }
    assert_eq!(
        list(&tree.engine, "livepatch/p/enabled")
            .map_err(|error| error.errno())
            .map(|_| ()),
        ENOTDIR
    );
    assert_eq!(tree.write("livepatch/p/enabled/x", "1"), ENOTDIR);
    assert_eq!(tree.write("livepatch/p", "1"), EISDIR);
    assert_eq!(tree.try_read("livepatch/p/vmlinux"), Err(-21));
    for path in [
        "livepatch/p/transition",
        "livepatch/p/blockers",
        "livepatch/p/vmlinux/patched",
        "tasks/1/patch_state",
    ] {
        assert_eq!(tree.write(path, "1"), EACCES, "{path}");
    }
}
