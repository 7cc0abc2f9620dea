//! Patches that take the place of others: what goes back to the original, what stays, what may go,
//! what is refused.

use super::check;
use super::linux::{Linux, Wanted};
use klp_core::error::{ApiMisuse, Error, PatchReason};
use klp_core::model::{Replace, VMLINUX};
use klp_core::port::TaskState;
use klp_core::sim::{SimFunc, SimOs, rmmod};
use klp_core::{PatchId, Poll};

/// Two functions of the base image, two of a module.
pub(super) struct Old {
    pub(super) linux: Linux,
    pub(super) funcs: [(&'static str, &'static str, SimFunc); 4],
}

pub(super) const F: usize = 0;
pub(super) const G: usize = 1;
pub(super) const M: usize = 2;
pub(super) const N: usize = 3;

impl Old {
    pub(super) fn new() -> Self {
        let host = SimOs::new();
        let func = |object, name| (object, name, host.function(object, name));
        let funcs = [
            func(VMLINUX, "f"),
            func(VMLINUX, "g"),
            func("mod", "m"),
            func("mod", "n"),
        ];
        Self {
            linux: Linux::new(host),
            funcs,
        }
    }

    /// Adds a patch for some of the functions.
    pub(super) fn add(
        &mut self,
        name: &str,
        funcs: &[usize],
        replace: Replace,
        states: &[(u64, u32)],
    ) -> PatchId {
        let funcs: Vec<_> = funcs.iter().map(|func| self.funcs[*func]).collect();
        let patch = self.linux.build(&Wanted {
            name,
            funcs: &funcs,
            replace,
            states,
            ..Wanted::default()
        });
        self.linux.host().know(&patch);
        self.linux.engine.add(patch).expect("it is new")
    }

    pub(super) fn enabled(&mut self, name: &str, funcs: &[usize], replace: Replace) -> PatchId {
        let id = self.add(name, funcs, replace, &[]);
        assert_eq!(
            self.enable(id),
            Ok(Poll::Complete {
                patch: id,
                enabled: true
            })
        );
        id
    }

    pub(super) fn enable(&self, id: PatchId) -> Result<Poll, Error> {
        let poll = self.linux.engine.enable(id);
        check(&self.linux.engine);
        poll
    }

    #[track_caller]
    pub(super) fn runs(&self, expected: [&str; 4]) {
        let version =
            |(_, _, func): (&str, &str, SimFunc)| self.linux.host().version(self.linux.shell, func);
        assert_eq!(self.funcs.map(version), expected);
    }

    /// Names of the enabled patches.
    pub(super) fn on(&self) -> Vec<String> {
        let status = self.linux.engine.status().expect("memory");
        status
            .iter()
            .filter(|patch| patch.enabled)
            .map(|patch| patch.name.to_string())
            .collect()
    }

    /// Somebody is inside a function, so that a transition that changes it waits.
    pub(super) fn hold(&self, func: usize) -> klp_core::port::TaskId {
        let holder = self.linux.host().spawn("holder");
        assert!(self.linux.host().call(holder, self.funcs[func].2));
        holder
    }

    pub(super) fn poll(&self) -> Poll {
        let poll = self.linux.engine.poll();
        check(&self.linux.engine);
        poll
    }
}

pub(super) const BUILT: [&str; 4] = ["f", "g", "m", "n"];

#[test]
fn what_the_new_patch_does_not_have_goes_back_to_the_original() {
    let mut old = Old::new();
    let a = old.enabled("a", &[F, G, M], Replace::None);
    let b = old.enabled("b", &[G, N], Replace::None);
    old.runs(["a_f", "b_g", "a_m", "b_n"]);
    let all = old.enabled("all", &[F], Replace::All);
    old.runs(["all_f", "g", "m", "n"]);
    assert_eq!(old.on(), ["all"]);
    // Replaced patches may go, or come again.
    old.linux.engine.remove(b).expect("nothing runs in it");
    assert_eq!(
        old.enable(a),
        Ok(Poll::Complete {
            patch: a,
            enabled: true
        })
    );
    old.runs(["a_f", "a_g", "a_m", "n"]);
    assert_eq!(old.on(), ["all", "a"]);
    for id in [all, a] {
        old.linux.engine.disable(id).expect("disables");
        check(&old.linux.engine);
    }
    old.runs(BUILT);
}

#[test]
fn during_the_transition_each_task_runs_all_of_the_old_or_all_of_the_new() {
    let mut old = Old::new();
    old.enabled("a", &[F, G], Replace::None);
    let holder = old.hold(G);
    let all = old.add("all", &[F], Replace::All, &[]);
    assert_eq!(
        old.enable(all),
        Ok(Poll::Waiting {
            patch: all,
            pending: 1
        })
    );
    old.runs(["all_f", "g", "m", "n"]);
    let version = |func: usize| old.linux.host().version(holder, old.funcs[func].2);
    assert_eq!(
        (version(F), version(G)),
        ("a_f".to_string(), "a_g".to_string())
    );
    assert!(old.linux.host().ret(holder));
    assert_eq!(
        old.poll(),
        Poll::Complete {
            patch: all,
            enabled: true
        }
    );
    old.runs(["all_f", "g", "m", "n"]);
}

#[test]
fn a_replacement_that_is_turned_round_leaves_the_old_patches_as_they_were() {
    let mut old = Old::new();
    old.enabled("a", &[F, G], Replace::None);
    let holder = old.hold(G);
    let all = old.add("all", &[F], Replace::All, &[]);
    assert_eq!(
        old.enable(all),
        Ok(Poll::Waiting {
            patch: all,
            pending: 1
        })
    );
    assert_eq!(
        old.linux.engine.reverse(all),
        Ok(Poll::Complete {
            patch: all,
            enabled: false
        })
    );
    check(&old.linux.engine);
    assert_eq!(old.on(), ["a"]);
    old.runs(["a_f", "a_g", "m", "n"]);
    assert!(old.linux.host().ret(holder));
    assert_eq!(
        old.enable(all),
        Ok(Poll::Complete {
            patch: all,
            enabled: true
        })
    );
    old.runs(["all_f", "g", "m", "n"]);
}

#[test]
fn a_forced_replacement_pins_those_that_gave_way() {
    let mut old = Old::new();
    let a = old.enabled("a", &[F, G], Replace::None);
    let idle = old.add("idle", &[F], Replace::None, &[]);
    old.hold(G);
    let all = old.add("all", &[F], Replace::All, &[]);
    assert_eq!(
        old.enable(all),
        Ok(Poll::Waiting {
            patch: all,
            pending: 1
        })
    );
    assert_eq!(
        klp_core::sim::force(&old.linux.engine, all),
        Ok(Poll::Complete {
            patch: all,
            enabled: true
        })
    );
    check(&old.linux.engine);
    assert_eq!(
        old.linux.engine.remove(a).err(),
        Some(Error::ApiMisuse(ApiMisuse::Forced))
    );
    old.linux.engine.remove(idle).expect("it was not in force");
    old.linux.engine.disable(all).expect("disables");
    old.linux
        .engine
        .remove(all)
        .expect("it was not pinned itself");
}

/// A patch that replaces all, was enabled long ago and stays after all when it is being disabled:
/// those that were enabled on top of it meanwhile have nothing to do with that.
#[test]
fn later_patches_do_not_give_way_when_disabling_is_turned_round() {
    let mut old = Old::new();
    let all = old.enabled("all", &[F], Replace::All);
    old.enabled("later", &[G], Replace::None);
    let holder = old.hold(F);
    assert_eq!(
        old.linux.engine.disable(all),
        Ok(Poll::Waiting {
            patch: all,
            pending: 1
        })
    );
    assert_eq!(
        old.linux.engine.reverse(all),
        Ok(Poll::Complete {
            patch: all,
            enabled: true
        })
    );
    check(&old.linux.engine);
    assert_eq!(old.on(), ["all", "later"]);
    assert!(old.linux.host().ret(holder));
    old.runs(["all_f", "later_g", "m", "n"]);
}

/// The module has functions that go back to the original; it is unloaded and loaded again in the
/// middle of that, elsewhere.
#[test]
fn a_module_goes_and_comes_while_it_is_given_back() {
    let mut old = Old::new();
    old.enabled("a", &[F, M, N], Replace::None);
    let holder = old.hold(F);
    let all = old.add("all", &[F, N], Replace::All, &[]);
    assert_eq!(
        old.enable(all),
        Ok(Poll::Waiting {
            patch: all,
            pending: 1
        })
    );
    for _ in 0..3 {
        old.runs(["all_f", "g", "m", "all_n"]);
        assert!(rmmod(&old.linux.engine, "mod"));
        check(&old.linux.engine);
        old.linux.insmod("mod", "", &[]);
    }
    // Turned round twice, it still knows them.
    old.linux
        .host()
        .set_unstoppable(old.linux.shell, Some(klp_core::port::Reason::Running));
    assert!(matches!(
        old.linux.engine.reverse(all),
        Ok(Poll::Waiting { .. })
    ));
    assert!(rmmod(&old.linux.engine, "mod"));
    old.linux.insmod("mod", "", &[]);
    assert_eq!(
        old.linux.host().state(old.linux.shell),
        Some(TaskState::Patched)
    );
    old.runs(["all_f", "g", "m", "all_n"]);
    assert!(matches!(
        old.linux.engine.reverse(all),
        Ok(Poll::Waiting { .. })
    ));
    check(&old.linux.engine);
    old.linux.host().rest_all();
    assert!(old.linux.host().rests(holder));
    assert_eq!(
        old.poll(),
        Poll::Complete {
            patch: all,
            enabled: true
        }
    );
    old.runs(["all_f", "g", "m", "all_n"]);
    assert!(rmmod(&old.linux.engine, "mod"));
    check(&old.linux.engine);
}

#[test]
fn a_set_replaces_its_own_patches_only() {
    let mut old = Old::new();
    old.enabled("plain", &[F], Replace::None);
    let one = old.enabled("one", &[G], Replace::Set(1));
    old.enabled("two", &[M], Replace::Set(2));
    old.enabled("one_later", &[N], Replace::Set(1));
    old.runs(["plain_f", "g", "two_m", "one_later_n"]);
    assert_eq!(old.on(), ["plain", "two", "one_later"]);
    old.linux.engine.remove(one).expect("it gave way");
    // Another set may have neither its functions nor its states.
    let thief = old.add("thief", &[F, N], Replace::Set(3), &[]);
    let Err(Error::Patch(error)) = old.enable(thief) else {
        panic!("it shares 'n' with 'one_later'")
    };
    assert!(
        matches!(error.reason, PatchReason::SharedWithOtherSet { with } if &*with == "one_later")
    );
    let states = old.add("states", &[G], Replace::Set(3), &[(7, 1)]);
    assert!(matches!(old.enable(states), Ok(Poll::Complete { .. })));
    let again = old.add("again", &[M], Replace::Set(2), &[(7, 2)]);
    let Err(Error::Patch(error)) = old.enable(again) else {
        panic!("it shares state 7 with 'states'")
    };
    assert!(matches!(error.reason, PatchReason::SharedWithOtherSet { with } if &*with == "states"));
    assert_eq!(old.on(), ["plain", "two", "one_later", "states"]);
    let all = old.add("all", &[F], Replace::All, &[(7, 1)]);
    assert!(matches!(old.enable(all), Ok(Poll::Complete { .. })));
    assert_eq!(old.on(), ["all"]);
    old.runs(["all_f", "g", "m", "n"]);
}

/// A function of a module that is not loaded has one owner, too.
#[test]
fn sets_and_a_module_that_is_not_there() {
    let mut old = Old::new();
    let m = old.funcs[M].2;
    old.linux.host().alias(m, "alias_of_m");
    assert!(rmmod(&old.linux.engine, "mod"));
    let one = old.enabled("one", &[M], Replace::Set(1));
    let thief = old.add("thief", &[F, M], Replace::Set(2), &[]);
    let report = old.linux.engine.preflight(thief).expect("it is known");
    let error = old.enable(thief).expect_err("it shares 'm' with 'one'");
    assert_eq!(
        error.to_string(),
        "patch 'thief': it shares a function or state with the enabled patch 'one' of another replace set"
    );
    assert_eq!(report.findings, [error]);
    // By another name it shows only when the module comes.
    let funcs = &[("mod", "alias_of_m", m)];
    let hidden = old.linux.build(&Wanted {
        name: "hidden",
        funcs,
        replace: Replace::Set(2),
        ..Wanted::default()
    });
    let hidden = old.linux.engine.add(hidden).expect("it is new");
    assert!(matches!(old.enable(hidden), Ok(Poll::Complete { .. })));
    old.linux.host().take_transcript();
    old.linux.insmod("mod", "", &[]);
    old.linux.log(
        "
        % insmod test_modules/mod.ko
        livepatch: applying patch 'one' to loading module 'mod'
        livepatch: failed to initialize patch 'hidden' for module 'mod' (-22)
        livepatch: patch 'hidden' failed for module 'mod', refusing to load module 'mod'
        livepatch: reverting patch 'one' on unloading module 'mod'
        insmod: ERROR: could not insert module test_modules/mod.ko: Invalid parameters
        ",
    );
    assert!(matches!(
        old.linux.engine.disable(one),
        Ok(Poll::Complete { .. })
    ));
    old.linux.insmod("mod", "", &[]);
    old.runs(["f", "g", "hidden_m", "n"]);
}

/// What a set gives back is what stands below it, which need not be the original.
#[test]
fn a_set_on_top_of_another_patch() {
    let mut old = Old::new();
    old.enabled("below", &[F, G], Replace::None);
    old.enabled("one", &[G], Replace::Set(1));
    let holder = old.hold(G);
    let later = old.add("one_later", &[N], Replace::Set(1), &[]);
    assert_eq!(
        old.linux.engine.enable(later),
        Ok(Poll::Waiting {
            patch: later,
            pending: 1
        })
    );
    old.runs(["below_f", "below_g", "m", "one_later_n"]);
    assert!(old.linux.host().ret(holder));
    assert_eq!(
        old.poll(),
        Poll::Complete {
            patch: later,
            enabled: true
        }
    );
    old.runs(["below_f", "below_g", "m", "one_later_n"]);
}

#[test]
fn states_must_fit() {
    for (replace, states, fits) in [
        (Replace::None, &[][..], true),
        (Replace::None, &[(1, 1)], false),
        (Replace::None, &[(1, 2)], true),
        (Replace::All, &[], false),
        (Replace::All, &[(1, 1), (2, 1)], false),
        (Replace::All, &[(1, 2)], true),
        (Replace::All, &[(2, 9), (1, 3)], true),
        (Replace::Set(1), &[], true),
    ] {
        let mut old = Old::new();
        let first = old.add("first", &[F], Replace::None, &[(1, 2)]);
        assert!(matches!(old.enable(first), Ok(Poll::Complete { .. })));
        let second = old.add("second", &[F], replace, states);
        let result = old.enable(second);
        assert_eq!(result.is_ok(), fits, "{replace:?} {states:?}: {result:?}");
        if let Err(error) = result {
            assert_eq!(
                error.to_string(),
                "patch 'second': its states do not fit those of the enabled patch 'first'"
            );
            old.runs(["first_f", "g", "m", "n"]);
        }
    }
}

/// The second object's `pre_patch` says no: only the first one's has to be undone.
#[test]
fn a_veto_in_the_middle_undoes_what_was_done() {
    let old = Old::new();
    let mut linux = old.linux;
    let talks = &[VMLINUX, "mod"];
    let patch = linux.build(&Wanted {
        name: "p",
        talks,
        funcs: &old.funcs,
        ..Wanted::default()
    });
    let p = linux.engine.add(patch).expect("it is new");
    linux.host().take_transcript();
    linux.veto_second("p");
    let error = linux
        .engine
        .enable(p)
        .expect_err("the module's callback says no");
    assert_eq!(
        (error.errno(), error.to_string()),
        (
            -19,
            "patch 'p', object 'mod': its pre-patch callback said no (error -19)".to_string()
        )
    );
    linux.log(
        "
        livepatch: enabling patch 'p'
        livepatch: 'p': initializing patching transition
        p: pre_patch_callback: vmlinux
        p: pre_patch_callback: mod -> [MODULE_STATE_LIVE] Normal state
        livepatch: pre-patch callback failed for object 'mod'
        livepatch: failed to enable patch 'p'
        livepatch: 'p': canceling patching transition, going to unpatch
        livepatch: 'p': completing unpatching transition
        p: post_unpatch_callback: vmlinux
        livepatch: 'p': unpatching complete
        ",
    );
    check(&linux.engine);
}

/// Two patches for a module that comes; the second one says no: so the first one is not applied
/// either.
#[test]
fn a_veto_at_coming_undoes_earlier_patches() {
    let old = Old::new();
    let mut linux = old.linux;
    assert!(rmmod(&linux.engine, "mod"));
    let m = [old.funcs[M]];
    linux.load(
        &Wanted {
            name: "one",
            talks: &["mod"],
            funcs: &m,
            ..Wanted::default()
        },
        "",
    );
    linux.load(
        &Wanted {
            name: "two",
            talks: &["mod"],
            funcs: &m,
            ..Wanted::default()
        },
        "",
    );
    linux.set_pre_patch_ret("two", -19);
    linux.host().take_transcript();
    linux.insmod("mod", "", &[]);
    linux.log(
        "
        % insmod test_modules/mod.ko
        livepatch: applying patch 'one' to loading module 'mod'
        one: pre_patch_callback: mod -> [MODULE_STATE_COMING] Full formed, running module_init
        livepatch: applying patch 'two' to loading module 'mod'
        two: pre_patch_callback: mod -> [MODULE_STATE_COMING] Full formed, running module_init
        livepatch: pre-patch callback failed for object 'mod'
        livepatch: patch 'two' failed for module 'mod', refusing to load module 'mod'
        livepatch: reverting patch 'one' on unloading module 'mod'
        one: post_unpatch_callback: mod -> [MODULE_STATE_COMING] Full formed, running module_init
        insmod: ERROR: could not insert module test_modules/mod.ko: No such device
        ",
    );
    assert!(
        !linux.host().call(linux.shell, old.funcs[M].2),
        "it is not loaded"
    );
    linux.set_pre_patch_ret("two", 0);
    linux.insmod("mod", "", &[]);
    assert_eq!(linux.host().version(linux.shell, old.funcs[M].2), "two_m");
}
