//! What one call and everything that it led to has seen: code of a patch beside its functions,
//! parts, sibling calls, stacks that no task runs, code that is freed.

use super::*;
use klp_core::addr::TextRange;
use klp_core::model::{CallbackContext, Callbacks, Replace};
use klp_core::sim::{End, rmmod};
use std::sync::{Arc, Mutex};

/// `f` replaced by code that has a part split off and a helper behind it; all of it is given as the
/// patch's code.
fn whole(host: &SimOs, name: &str, f: SimFunc, replace: Replace) -> Patch {
    let new = host.replacement(name, f, Place::Far);
    host.cold_part_of(new);
    let helper = host.helper(name, new);
    let code = TextRange::new(new.start(), helper.end().get() - new.start().get())
        .expect("it does not wrap");
    let object = Object::vmlinux().and_then(|object| object.func(sim::func("f", new)?));
    Patch::builder(name)
        .object(object)
        .code(code)
        .replace(replace)
        .build()
        .expect("it is well formed")
}

/// A task sleeps in code of the patch `a` that is none of its functions; nothing else of `a` is on
/// its stack.
fn asleep_in_helper() -> (Basic, PatchId) {
    let basic = Basic::new();
    basic.host().by_pointer(basic.f);
    let a = add(
        &basic.engine,
        whole(basic.host(), "a", basic.f, Replace::None),
    );
    assert_eq!(basic.engine.enable(a), complete(a, true));
    assert!(basic.host().call(basic.task, basic.f) && basic.host().go_helper(basic.task));
    assert_eq!(basic.host().whereabouts(basic.task), "a_helper");
    (basic, a)
}

#[track_caller]
fn waits(poll: Result<Poll, Error>) {
    assert!(
        matches!(poll, Ok(Poll::Waiting { pending: 1, .. })),
        "{poll:?}"
    );
}

#[test]
fn disabling_waits_for_all_code_of_the_patch() {
    let (basic, a) = asleep_in_helper();
    waits(basic.engine.disable(a));
    let blockers = basic.engine.blockers(a).expect("it is in transition");
    assert!(
        blockers[0]
            .to_string()
            .contains("'(other code of the patch)' of 'a'"),
        "{}",
        blockers[0]
    );
    basic.host().ret(basic.task);
    assert_eq!(
        basic.engine.poll(),
        complete(a, false).expect("it completes")
    );
    check(&basic.engine);
}

#[test]
fn replacing_waits_for_all_code_of_what_gives_way() {
    let (basic, a) = asleep_in_helper();
    let b = add(
        &basic.engine,
        whole(basic.host(), "b", basic.f, Replace::All),
    );
    waits(basic.engine.enable(b));
    let blockers = basic.engine.blockers(b).expect("it is in transition");
    assert!(
        blockers[0]
            .to_string()
            .contains("'(code of an older patch)' of 'b'"),
        "{}",
        blockers[0]
    );
    assert!(matches!(
        basic.engine.remove(a),
        Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled))
    ));
    basic.host().ret(basic.task);
    assert_eq!(
        basic.engine.poll(),
        complete(b, true).expect("it completes")
    );
    basic.engine.remove(a).expect("nobody is in it");
    basic.host().forbid_code_of("a");
    check(&basic.engine);
}

#[test]
fn stacking_waits_for_code_below_that_may_belong_to_the_function() {
    let (basic, _) = asleep_in_helper();
    let b = add(
        &basic.engine,
        patch(basic.host(), "b", &[(VMLINUX, "f", basic.f)]),
    );
    waits(basic.engine.enable(b));
    basic.host().ret(basic.task);
    assert_eq!(
        basic.engine.poll(),
        complete(b, true).expect("it completes")
    );
    check(&basic.engine);
}

#[test]
fn stacking_does_not_wait_for_other_functions_of_the_patch_below() {
    let basic = Basic::new();
    let host = basic.host();
    let (f, g) = (
        host.replacement("a", basic.f, Place::Far),
        host.replacement("a", basic.g, Place::Far),
    );
    let code =
        TextRange::new(f.start(), g.end().get() - f.start().get()).expect("it does not wrap");
    let object = Object::vmlinux()
        .and_then(|object| object.func(sim::func("f", f)?)?.func(sim::func("g", g)?));
    let a = add(
        &basic.engine,
        Patch::builder("a")
            .object(object)
            .code(code)
            .build()
            .expect("it is well formed"),
    );
    assert_eq!(basic.engine.enable(a), complete(a, true));
    assert!(
        host.call(basic.task, basic.g),
        "it sleeps in `g` of `a` for ever"
    );
    let b = add(&basic.engine, patch(host, "b", &[(VMLINUX, "f", basic.f)]));
    assert_eq!(basic.engine.enable(b), complete(b, true));
    check(&basic.engine);
}

#[test]
fn parts_of_replacements_count_wherever_they_are() {
    for parts in 1..=2 {
        let basic = Basic::new();
        let host = basic.host();
        host.by_pointer(basic.f);
        let new = host.replacement("a", basic.f, Place::Near);
        for _ in 0..parts {
            host.cold_part_of(new);
        }
        let object = Object::vmlinux().and_then(|object| object.func(sim::func("f", new)?));
        let a = add(
            &basic.engine,
            Patch::builder("a")
                .object(object)
                .build()
                .expect("it is well formed"),
        );
        assert_eq!(basic.engine.enable(a), complete(a, true));
        assert!(host.call(basic.task, basic.f));
        (0..parts).for_each(|_| assert!(host.go_cold(basic.task)));
        waits(basic.engine.disable(a));
        host.ret(basic.task);
        assert_eq!(
            basic.engine.poll(),
            complete(a, false).expect("it completes")
        );
    }
}

#[test]
fn all_parts_of_an_original_count() {
    let basic = Basic::new();
    let host = basic.host();
    host.by_pointer(basic.f);
    host.cold_part(basic.f);
    host.cold_part(basic.f);
    assert!(host.call(basic.task, basic.f) && host.go_cold(basic.task) && host.go_cold(basic.task));
    assert_eq!(host.whereabouts(basic.task), "f.cold.1");
    let a = basic.add("a");
    waits(basic.engine.enable(a));
    host.ret(basic.task);
    assert_eq!(
        basic.engine.poll(),
        complete(a, true).expect("it completes")
    );
}

/// `f` ends in a jump to `g`, or to `other`, which nobody patches; both `f` and `g` are replaced by
/// code that does the same.
struct Siblings {
    engine: Sim,
    f: SimFunc,
    g: SimFunc,
    task: TaskId,
    patch: PatchId,
}

impl Siblings {
    fn new(also_elsewhere: bool) -> Self {
        let host = SimOs::new();
        let g = host.function(VMLINUX, "g");
        let other = host.function(VMLINUX, "other");
        let ends = if also_elsewhere {
            vec![End::In(g), End::In(other)]
        } else {
            vec![End::In(g)]
        };
        let f = host.function_ending(VMLINUX, "f", Pad::Whole, &ends);
        let (new_f, new_g) = (
            host.replacement_ending("p", f, Place::Near, &ends),
            host.replacement("p", g, Place::Near),
        );
        let object = Object::vmlinux().and_then(|object| {
            object
                .func(sim::func("f", new_f)?)?
                .func(sim::func("g", new_g)?)
        });
        let patch = Patch::builder("p")
            .object(object)
            .build()
            .expect("it is well formed");
        let task = host.spawn("worker");
        host.set_self_switching(true);
        let engine = Engine::new(host);
        let patch = add(&engine, patch);
        Self {
            engine,
            f,
            g,
            task,
            patch,
        }
    }

    fn host(&self) -> &SimOs {
        self.engine.host()
    }
}

#[test]
fn a_sibling_call_of_the_old_version_reaches_the_old_version() {
    let all = Siblings::new(false);
    assert!(all.host().call(all.task, all.f));
    waits(all.engine.enable(all.patch));
    assert!(all.host().begin_end(all.task, 0, all.g) && all.host().run(all.task));
    assert_eq!(all.host().whereabouts(all.task), "g");
    waits(Ok(all.engine.poll()));
    // `f` is not jumped to by anybody: there a task may switch itself.
    all.host().ret(all.task);
    assert_eq!(all.host().version(all.task, all.f), "p_f");
    check(&all.engine);
}

#[test]
fn a_task_at_an_entry_that_new_code_jumped_to_is_not_switched_there() {
    let all = Siblings::new(false);
    assert_eq!(all.engine.enable(all.patch), complete(all.patch, true));
    assert!(all.host().call(all.task, all.f));
    assert!(all.host().begin_end(all.task, 0, all.g));
    assert_eq!(
        all.host().step(all.task),
        Step::Moved,
        "it stands at the entry of `g`"
    );
    waits(all.engine.disable(all.patch));
    assert!(all.host().run(all.task));
    assert_eq!(all.host().whereabouts(all.task), "p_g");
    check(&all.engine);
}

#[test]
fn what_a_function_jumped_to_is_still_its_call() {
    let all = Siblings::new(true);
    assert!(all.host().call(all.task, all.f));
    assert!(all.host().begin_end(all.task, 1, all.g) && all.host().run(all.task));
    assert_eq!(all.host().whereabouts(all.task), "other");
    // Nothing affected is on the stack, but `f` was called there and has not come back.
    waits(all.engine.enable(all.patch));
    assert_eq!(all.host().version(all.task, all.g), "g");
    all.host().ret(all.task);
    assert_eq!(
        all.engine.poll(),
        complete(all.patch, true).expect("it completes")
    );
    check(&all.engine);
}

#[test]
fn a_suspended_stack_holds_the_transition_and_keeps_its_version() {
    let basic = Basic::new();
    let host = basic.host();
    let (thread, coroutine) = (basic.task, host.spawn("coroutine"));
    assert!(host.call(coroutine, basic.f));
    host.suspend(coroutine);
    let p = basic.add("p");
    waits(basic.engine.enable(p));
    assert!(
        basic.engine.blockers(p).expect("it is in transition")[0]
            .to_string()
            .starts_with("coroutine:")
    );
    assert!(matches!(basic.engine.remove(p), Err(Error::Busy { .. })));
    assert_eq!(host.state(thread), Some(TaskState::Patched));
    host.resume(coroutine, thread);
    assert_eq!(host.version(coroutine, basic.g), "g");
    host.ret(coroutine);
    assert_eq!(
        basic.engine.poll(),
        complete(p, true).expect("it completes")
    );
    check(&basic.engine);
}

#[test]
fn a_host_that_does_not_see_suspended_stacks_mixes() {
    // The limit that such a host must state, and proof that the simulator would notice.
    let basic = Basic::new();
    let host = basic.host();
    host.see_suspended(false);
    let p = basic.add("p");
    let coroutine = host.spawn("coroutine");
    assert!(host.call(coroutine, basic.f));
    host.suspend(coroutine);
    assert_eq!(basic.engine.enable(p), complete(p, true));
    host.resume(coroutine, basic.task);
    assert_eq!(host.version(coroutine, basic.g), "p_g");
    assert_eq!(host.mixes().len(), 1, "{:?}", host.mixes());
}

#[test]
fn an_object_that_goes_takes_its_code_out_of_the_transition() {
    let host = SimOs::new();
    let (m, v) = (host.function("m", "f"), host.function(VMLINUX, "v"));
    let blocker = host.spawn("blocker");
    let p = patch(&host, "p", &[("m", "f", m), (VMLINUX, "v", v)]);
    let (engine, old) = (Engine::new(host), m);
    let p = add(&engine, p);
    assert!(engine.host().call(blocker, v));
    waits(engine.enable(p));
    let place = engine.host().range(old);
    assert!(rmmod(&engine, "m"));
    // Somebody else's code comes to the same place, and a task sleeps there.
    let squatter = engine.host().spawn("squatter");
    engine.host().map_foreign("squat", place);
    assert!(engine.host().stand_at(squatter, place.start()));
    let pending: Vec<_> = engine
        .blockers(p)
        .expect("it is in transition")
        .iter()
        .map(|each| each.task)
        .collect();
    assert!(pending.contains(&blocker));
    engine.poll();
    assert_eq!(engine.host().state(squatter), Some(TaskState::Patched));
}

#[test]
fn veneers_of_patches_that_are_gone_serve_others() {
    let basic = Basic::new();
    let mut images = 0;
    for round in 0..300 {
        let name = format!("p{round}");
        let new = patch_at(basic.host(), &name, Place::Far, &[(VMLINUX, "f", basic.f)]);
        let p = add(&basic.engine, new);
        assert_eq!(basic.engine.enable(p), complete(p, true));
        assert_eq!(
            basic.host().version(basic.task, basic.f),
            format!("{name}_f")
        );
        assert_eq!(basic.engine.disable(p), complete(p, false));
        basic.engine.remove(p).expect("it is disabled");
        check(&basic.engine);
        match round {
            0 => images = basic.host().images().len(),
            _ => assert_eq!(
                basic.host().images().len(),
                images,
                "round {round} took memory"
            ),
        }
    }
}

#[test]
fn a_task_without_a_name_is_there() {
    let basic = Basic::new();
    let nameless = basic.host().spawn("");
    assert_eq!(basic.engine.task_state(nameless), Ok(Some(TaskState::Idle)));
    basic.host().exit(nameless);
    assert_eq!(basic.engine.task_state(nameless), Ok(None));
}

/// A callback that calls the engine.
struct Caller(Arc<Mutex<Option<Arc<Sim>>>>, Arc<Mutex<Vec<String>>>);

impl Callbacks for Caller {
    fn pre_patch(&self, _: &CallbackContext<'_>) -> Result<(), i32> {
        let engine = self
            .0
            .lock()
            .expect("unpoisoned")
            .clone()
            .expect("the test has made it");
        let mut said = self.1.lock().expect("unpoisoned");
        said.push(format!("{:?}", engine.status().map(|_| ())));
        said.push(format!("{:?} {:?}", engine.poll(), engine.find("p")));
        drop(engine.freeze());
        Ok(())
    }
}

#[test]
fn a_callback_that_calls_the_engine_is_refused() {
    let host = SimOs::new();
    let f = host.function(VMLINUX, "f");
    let (cell, said) = (Arc::default(), Arc::default());
    let new = host.replacement("p", f, Place::Near);
    let object = Object::vmlinux().and_then(|object| object.func(sim::func("f", new)?));
    let object = object.map(|object| {
        object.with_callbacks(Box::new(Caller(Arc::clone(&cell), Arc::clone(&said))))
    });
    let patch = Patch::builder("p")
        .object(object)
        .build()
        .expect("it is well formed");
    let engine = Arc::new(Engine::new(host));
    *cell.lock().expect("unpoisoned") = Some(Arc::clone(&engine));
    let p = add(&engine, patch);
    assert_eq!(engine.enable(p), complete(p, true));
    assert_eq!(
        *said.lock().expect("unpoisoned"),
        ["Err(ApiMisuse(InCallback))", "Idle None"]
    );
    assert!(engine.find("p").is_some());
    *cell.lock().expect("unpoisoned") = None;
}
