//! Several patches as one: no task runs with some of them and without the others, and what is
//! refused of one is refused of all.

use super::check;
use super::linux::Wanted;
use super::replace::{BUILT, F, G, M, N, Old};
use klp_core::control;
use klp_core::error::{ApiMisuse, Error, PatchReason};
use klp_core::model::{Replace, VMLINUX};
use klp_core::port::{TaskId, TaskState};
use klp_core::sim::{insmod, rmmod};
use klp_core::transition::Hindrance;
use klp_core::{PatchId, Poll};

impl Old {
    fn enable_all(&self, ids: &[PatchId]) -> Result<Poll, Error> {
        let poll = self.linux.engine.enable_all(ids);
        check(&self.linux.engine);
        poll
    }

    fn disable_all(&self, ids: &[PatchId]) -> Result<Poll, Error> {
        let poll = self.linux.engine.disable_all(ids);
        check(&self.linux.engine);
        poll
    }

    fn version(&self, task: TaskId, func: usize) -> String {
        self.linux.host().version(task, self.funcs[func].2)
    }

    fn attribute(&self, path: &str) -> String {
        let mut value = String::new();
        control::read(&self.linux.engine, path, &mut value).expect("it is there");
        value
    }

    /// A plain patch with callbacks for the base image.
    fn talking(&mut self, name: &str, funcs: &[usize]) -> PatchId {
        let funcs: Vec<_> = funcs.iter().map(|func| self.funcs[*func]).collect();
        let patch = self.linux.build(&Wanted {
            name,
            talks: &[VMLINUX],
            funcs: &funcs,
            ..Wanted::default()
        });
        self.linux.engine.add(patch).expect("it is new")
    }

    /// `ids` are refused as one, and nothing has changed.
    #[track_caller]
    fn refuses(&self, ids: &[PatchId]) -> Error {
        let engine = &self.linux.engine;
        let before = (engine.host().snapshot().without_images(), engine.status());
        let error = self.enable_all(ids).expect_err("they do not fit");
        assert_eq!(
            (engine.host().snapshot().without_images(), engine.status()),
            before,
            "{error}"
        );
        error
    }
}

#[test]
fn two_patches_as_one() {
    let mut old = Old::new();
    // Both have `f`; the second one's is on top.
    let (a, b) = (old.talking("a", &[F, G]), old.talking("b", &[F]));
    old.linux.host().take_transcript();
    let holder = old.hold(G);
    assert_eq!(
        old.enable_all(&[a, b]),
        Ok(Poll::Waiting {
            patch: a,
            pending: 1
        })
    );
    old.linux.log(
        "
        livepatch: enabling patch 'a'
        livepatch: enabling patch 'b'
        livepatch: 'a': initializing patching transition
        livepatch: 'b': initializing patching transition
        a: pre_patch_callback: vmlinux
        b: pre_patch_callback: vmlinux
        livepatch: 'a': starting patching transition
        livepatch: 'b': starting patching transition
        ",
    );
    // Only `a` has the function that the task is in; it is in the old version of both.
    old.runs(["b_f", "a_g", "m", "n"]);
    assert_eq!(
        (old.version(holder, F), old.version(holder, G)),
        ("f".to_string(), "g".to_string())
    );
    for (patch, order) in [("a", "1\n"), ("b", "2\n")] {
        assert_eq!(
            old.attribute(&format!("livepatch/{patch}/transition")),
            "1\n"
        );
        assert_eq!(
            old.attribute(&format!("livepatch/{patch}/stack_order")),
            order
        );
    }
    assert!(matches!(
        old.enable_all(&[a]),
        Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled))
    ));
    assert!(matches!(old.disable_all(&[b]), Err(Error::Busy { patch }) if &*patch == "a"));
    assert!(matches!(
        old.linux.engine.remove(b),
        Err(Error::Busy { .. })
    ));
    assert!(old.linux.host().ret(holder));
    assert_eq!(
        old.poll(),
        Poll::Complete {
            patch: a,
            enabled: true
        }
    );
    old.linux.log(
        "
        livepatch: 'a': completing patching transition
        livepatch: 'b': completing patching transition
        a: post_patch_callback: vmlinux
        b: post_patch_callback: vmlinux
        livepatch: 'a': patching complete
        livepatch: 'b': patching complete
        ",
    );
    old.runs(["b_f", "a_g", "m", "n"]);
    // From here on each is a patch of its own.
    assert_eq!(
        old.linux.engine.disable(a),
        Ok(Poll::Complete {
            patch: a,
            enabled: false
        })
    );
    old.runs(["b_f", "g", "m", "n"]);
    assert_eq!(
        old.linux.engine.disable(b),
        Ok(Poll::Complete {
            patch: b,
            enabled: false
        })
    );
    old.runs(BUILT);
}

#[test]
fn any_of_them_stands_for_all() {
    let mut old = Old::new();
    let [a, b] =
        [("a", F), ("b", G)].map(|(name, func)| old.add(name, &[func], Replace::None, &[]));
    let holder = old.hold(G);
    let waiting = Ok(Poll::Waiting {
        patch: a,
        pending: 1,
    });
    assert_eq!(old.enable_all(&[a, b]), waiting);
    for id in [a, b] {
        let blockers = old.linux.engine.blockers(id).expect("one is in transition");
        let [blocker] = &blockers[..] else {
            panic!("{blockers:?}")
        };
        let Hindrance::InFunction { object, func } = &blocker.hindrance else {
            panic!("{blocker}")
        };
        assert_eq!((blocker.task, &**object, &**func), (holder, VMLINUX, "g"));
        old.linux.engine.kick(id).expect("one is in transition");
    }
    assert_eq!(old.linux.host().kicks(holder), 2);
    // Turned round by the second one.
    assert_eq!(
        old.linux.engine.reverse(b),
        Ok(Poll::Complete {
            patch: a,
            enabled: false
        })
    );
    check(&old.linux.engine);
    old.runs(BUILT);
    assert_eq!(old.enable_all(&[a, b]), waiting);
    // Forced by the second one; what is forced away is pinned, all of it.
    assert_eq!(
        klp_core::sim::force(&old.linux.engine, b),
        Ok(Poll::Complete {
            patch: a,
            enabled: true
        })
    );
    check(&old.linux.engine);
    assert!(old.linux.host().ret(holder));
    let holder = old.hold(G);
    assert_eq!(
        old.disable_all(&[b, a]),
        waiting,
        "the order of enabling counts"
    );
    let stuck = old.linux.engine.blockers(a).expect("one is in transition");
    assert!(
        matches!(&stuck[0].hindrance, Hindrance::InFunction { func, .. } if &**func == "g"),
        "{stuck:?}"
    );
    assert_eq!(
        klp_core::sim::force(&old.linux.engine, b),
        Ok(Poll::Complete {
            patch: a,
            enabled: false
        })
    );
    check(&old.linux.engine);
    assert!(old.linux.host().ret(holder));
    for id in [a, b] {
        assert_eq!(
            old.linux.engine.remove(id).err(),
            Some(Error::ApiMisuse(ApiMisuse::Forced))
        );
    }
    old.runs(BUILT);
}

#[test]
fn the_order_of_the_list_is_the_order_on_the_stack() {
    let mut old = Old::new();
    let plain = old.enabled("plain", &[F], Replace::None);
    let [a, b, c] = ["a", "b", "c"].map(|name| old.add(name, &[F, G], Replace::None, &[]));
    assert_eq!(
        old.enable_all(&[c, a]),
        Ok(Poll::Complete {
            patch: c,
            enabled: true
        })
    );
    assert_eq!(old.on(), ["plain", "c", "a"]);
    old.runs(["a_f", "a_g", "m", "n"]);
    assert!(matches!(old.enable(b), Ok(Poll::Complete { .. })));
    // Disabling works on those below others as well, and on those that stand apart.
    let holder = old.hold(F);
    assert_eq!(old.version(holder, G), "b_g");
    assert_eq!(
        old.disable_all(&[b, plain, c]),
        Ok(Poll::Waiting {
            patch: plain,
            pending: 1
        })
    );
    old.runs(["a_f", "a_g", "m", "n"]);
    assert_eq!(old.version(holder, F), "b_f");
    assert_eq!(
        old.linux.engine.reverse(c),
        Ok(Poll::Complete {
            patch: plain,
            enabled: true
        })
    );
    check(&old.linux.engine);
    assert_eq!(old.on(), ["plain", "c", "a", "b"]);
    old.runs(["b_f", "b_g", "m", "n"]);
    assert!(old.linux.host().ret(holder));
    assert_eq!(
        old.disable_all(&[b, plain, c]),
        Ok(Poll::Complete {
            patch: plain,
            enabled: false
        })
    );
    assert_eq!(old.on(), ["a"]);
    old.runs(["a_f", "a_g", "m", "n"]);
}

/// The new patches take the place of `one` and leave `below`: `g` goes back to nobody's, for
/// another one of the batch has it.
#[test]
fn what_one_of_them_gives_back_another_may_have() {
    for names in [["plain", "later"], ["later", "plain"]] {
        let mut old = Old::new();
        old.enabled("below", &[F, G, M], Replace::None);
        old.enabled("one", &[F, G, M], Replace::Set(1));
        let later = old.add("later", &[N], Replace::Set(1), &[]);
        let plain = old.add("plain", &[G], Replace::None, &[]);
        let ids = names.map(|name| if name == "later" { later } else { plain });
        let holder = old.hold(F);
        assert_eq!(
            old.enable_all(&ids),
            Ok(Poll::Waiting {
                patch: ids[0],
                pending: 1
            })
        );
        old.runs(["below_f", "plain_g", "below_m", "later_n"]);
        assert_eq!(old.version(holder, G), "one_g");
        // The module goes and comes in the middle of it.
        assert!(rmmod(&old.linux.engine, "mod"));
        check(&old.linux.engine);
        insmod(&old.linux.engine, "mod").expect("it fits");
        check(&old.linux.engine);
        old.runs(["below_f", "plain_g", "below_m", "later_n"]);
        assert_eq!(old.version(holder, M), "one_m");
        assert!(old.linux.host().ret(holder));
        assert_eq!(
            old.poll(),
            Poll::Complete {
                patch: ids[0],
                enabled: true
            }
        );
        old.runs(["below_f", "plain_g", "below_m", "later_n"]);
        assert_eq!(old.on(), ["below", names[0], names[1]]);
        old.linux.engine.disable(plain).expect("it is enabled");
        old.runs(["below_f", "below_g", "below_m", "later_n"]);
    }
}

/// Both have functions of a module that comes while they are in transition; the second one says no
/// first.
#[test]
fn a_module_comes_during_their_transition() {
    let mut old = Old::new();
    assert!(rmmod(&old.linux.engine, "mod"));
    let funcs = [
        [old.funcs[F], old.funcs[M], old.funcs[N]],
        [old.funcs[G], old.funcs[M], old.funcs[F]],
    ];
    let [a, b] = [("a", &funcs[0][..]), ("b", &funcs[1][..2])].map(|(name, funcs)| {
        let patch = old.linux.build(&Wanted {
            name,
            talks: &["mod"],
            funcs,
            ..Wanted::default()
        });
        old.linux.engine.add(patch).expect("it is new")
    });
    let holder = old.hold(G);
    assert_eq!(
        old.enable_all(&[a, b]),
        Ok(Poll::Waiting {
            patch: a,
            pending: 1
        })
    );
    old.linux.set_pre_patch_ret("b", -19);
    old.linux.host().take_transcript();
    old.linux.insmod("mod", "", &[]);
    old.linux.log(
        "
        % insmod test_modules/mod.ko
        livepatch: applying patch 'a' to loading module 'mod'
        a: pre_patch_callback: mod -> [MODULE_STATE_COMING] Full formed, running module_init
        livepatch: applying patch 'b' to loading module 'mod'
        b: pre_patch_callback: mod -> [MODULE_STATE_COMING] Full formed, running module_init
        livepatch: pre-patch callback failed for object 'mod'
        livepatch: patch 'b' failed for module 'mod', refusing to load module 'mod'
        livepatch: reverting patch 'a' on unloading module 'mod'
        a: post_unpatch_callback: mod -> [MODULE_STATE_COMING] Full formed, running module_init
        insmod: ERROR: could not insert module test_modules/mod.ko: No such device
        ",
    );
    old.linux.set_pre_patch_ret("b", 0);
    old.linux.insmod("mod", "", &[]);
    old.runs(["a_f", "b_g", "b_m", "a_n"]);
    assert_eq!(
        (old.version(holder, M), old.version(holder, N)),
        ("m".to_string(), "n".to_string())
    );
    assert_eq!(old.linux.host().state(holder), Some(TaskState::Unpatched));
    assert!(old.linux.host().ret(holder));
    assert_eq!(
        old.poll(),
        Poll::Complete {
            patch: a,
            enabled: true
        }
    );
    old.runs(["a_f", "b_g", "b_m", "a_n"]);
}

/// What was set up is taken down, the last first.
#[test]
fn a_veto_of_one_undoes_all() {
    let mut old = Old::new();
    let ids = ["a", "b", "c"].map(|name| old.talking(name, &[F]));
    old.linux.set_pre_patch_ret("c", -19);
    old.linux.host().take_transcript();
    // Not the order of their arrival: that stays.
    let error = old.refuses(&[ids[1], ids[0], ids[2]]);
    assert_eq!(
        error.to_string(),
        "patch 'c', object 'vmlinux': its pre-patch callback said no (error -19)"
    );
    old.linux.log(
        "
        livepatch: enabling patch 'b'
        livepatch: enabling patch 'a'
        livepatch: enabling patch 'c'
        livepatch: 'b': initializing patching transition
        livepatch: 'a': initializing patching transition
        livepatch: 'c': initializing patching transition
        b: pre_patch_callback: vmlinux
        a: pre_patch_callback: vmlinux
        c: pre_patch_callback: vmlinux
        livepatch: pre-patch callback failed for object 'vmlinux'
        livepatch: failed to enable patch 'b'
        livepatch: failed to enable patch 'a'
        livepatch: failed to enable patch 'c'
        livepatch: 'b': canceling patching transition, going to unpatch
        livepatch: 'a': canceling patching transition, going to unpatch
        livepatch: 'c': canceling patching transition, going to unpatch
        livepatch: 'b': completing unpatching transition
        livepatch: 'a': completing unpatching transition
        livepatch: 'c': completing unpatching transition
        a: post_unpatch_callback: vmlinux
        b: post_unpatch_callback: vmlinux
        livepatch: 'b': unpatching complete
        livepatch: 'a': unpatching complete
        livepatch: 'c': unpatching complete
        ",
    );
    old.runs(BUILT);
}

#[test]
fn refused_as_one() {
    let mut old = Old::new();
    let on = old.enabled("on", &[F], Replace::None);
    let a = old.add("a", &[F], Replace::None, &[(1, 2)]);
    let reason = |error: Error| match error {
        Error::Patch(error) => (error.patch.to_string(), error.reason),
        other => panic!("{other}"),
    };
    assert_eq!(old.refuses(&[]), Error::ApiMisuse(ApiMisuse::NoPatches));
    assert_eq!(
        old.refuses(&[a, on]),
        Error::ApiMisuse(ApiMisuse::AlreadyEnabled)
    );
    assert_eq!(
        reason(old.refuses(&[a, a])),
        ("a".to_string(), PatchReason::ListedTwice)
    );
    assert_eq!(
        old.disable_all(&[]),
        Err(Error::ApiMisuse(ApiMisuse::NoPatches))
    );
    assert_eq!(
        old.disable_all(&[on, a]),
        Err(Error::ApiMisuse(ApiMisuse::NotEnabled))
    );
    assert_eq!(
        reason(old.disable_all(&[on, on]).expect_err("twice")).1,
        PatchReason::ListedTwice
    );

    let all = old.add("all", &[G], Replace::All, &[(1, 2)]);
    let error = old.refuses(&[a, all]);
    assert_eq!(
        error.to_string(),
        "patch 'all': it takes the place of the patch 'a', which is to be enabled as one with it"
    );
    let lower = old.add("lower", &[G], Replace::None, &[(1, 1)]);
    let error = old.refuses(&[a, lower]);
    assert_eq!(
        error.to_string(),
        "patch 'lower': its states do not fit those of the enabled patch 'a'"
    );
    let [one, two] = [1, 2].map(|set| old.add(&format!("set{set}"), &[M], Replace::Set(set), &[]));
    let (patch, why) = reason(old.refuses(&[one, two]));
    assert!(
        matches!(why, PatchReason::SharedWithOtherSet { with } if patch == "set2" && &*with == "set1")
    );
    let gone = old.add("gone", &[N], Replace::None, &[]);
    old.linux.engine.remove(gone).expect("it is not enabled");
    assert_eq!(
        old.refuses(&[a, gone]),
        Error::ApiMisuse(ApiMisuse::UnknownPatch)
    );

    // What gives way to the first does not stand in the second one's way.
    assert!(matches!(old.enable(one), Ok(Poll::Complete { .. })));
    assert_eq!(
        old.enable_all(&[all, two]),
        Ok(Poll::Complete {
            patch: all,
            enabled: true
        })
    );
    assert_eq!(old.on(), ["all", "set2"]);
    old.runs(["f", "all_g", "set2_m", "n"]);
}
