//! Bad input: each a typed error that names object, function and reason; nothing has changed.

use super::*;

/// Enabling `patch` is refused: with this reason, this message, this errno, these lines of log.
#[track_caller]
fn refuse(engine: &Sim, patch: Patch, message: &str, errno: i32, log: &[&str]) -> Error {
    let id = add(engine, patch);
    let before = engine.host().snapshot();
    let error = engine.enable(id).expect_err("must be refused");
    assert_eq!(error.to_string(), message);
    assert_eq!(error.errno(), errno);
    assert_eq!(engine.host().take_transcript(), log);
    assert_eq!(engine.host().snapshot(), before, "nothing has changed");
    assert!(
        engine
            .status()
            .expect("memory")
            .iter()
            .all(|patch| !patch.enabled && patch.transition.is_none())
    );
    check(engine);
    engine.remove(id).expect("it is not enabled");
    error
}

fn one(name: &str, sympos: u32, host: &SimOs, func: SimFunc) -> Patch {
    let new = sim::func_at(name, host.replacement("p", func, Place::Near).start())
        .expect("memory")
        .sympos(sympos);
    Patch::builder("p")
        .object(Object::vmlinux().and_then(|object| object.func(new)))
        .build()
        .expect("well formed")
}

fn reason(error: Error) -> PatchReason {
    match error {
        Error::Patch(error) => error.reason,
        other => panic!("not the patch's fault: {other:?}"),
    }
}

#[test]
fn no_entry_site() {
    let host = SimOs::new();
    let f = host.function_with(VMLINUX, "f", Pad::None);
    let patch = one("f", 0, &host, f);
    let error = refuse(
        &Engine::new(host),
        patch,
        "patch 'p', object 'vmlinux', function 'f': it cannot be redirected: it has no entry site (compiled without an entry pad?)",
        -22,
        &["failed to find location for function 'f'"],
    );
    assert!(matches!(reason(error), PatchReason::NoEntrySite { .. }));
}

#[test]
fn unknown_name() {
    let host = SimOs::new();
    let f = host.function(VMLINUX, "f");
    let patch = one("nobody", 0, &host, f);
    let error = refuse(
        &Engine::new(host),
        patch,
        "patch 'p', object 'vmlinux', function 'nobody': no symbol has that name",
        -22,
        &["symbol 'nobody' not found in symbol table"],
    );
    assert_eq!(reason(error), PatchReason::SymbolNotFound);
}

#[test]
fn ambiguous_name_and_wrong_position() {
    let host = SimOs::new();
    let first = host.function(VMLINUX, "dup");
    let second = host.function(VMLINUX, "dup");
    let task = host.spawn("worker");
    let patches = [
        one("dup", 0, &host, first),
        one("dup", 3, &host, first),
        one("dup", 2, &host, second),
    ];
    let [ambiguous, wrong, right] = patches;
    let engine = Engine::new(host);
    let error = refuse(
        &engine,
        ambiguous,
        "patch 'p', object 'vmlinux', function 'dup': several symbols have that name; say with sympos which one is meant",
        -22,
        &["unresolvable ambiguity for symbol 'dup' in object 'vmlinux'"],
    );
    assert_eq!(reason(error), PatchReason::SymbolAmbiguous);
    let error = refuse(
        &engine,
        wrong,
        "patch 'p', object 'vmlinux', function 'dup': there is no symbol of that name at position 3",
        -22,
        &["symbol position 3 for symbol 'dup' in object 'vmlinux' not found"],
    );
    assert_eq!(
        reason(error),
        PatchReason::SymbolPositionNotFound { sympos: 3 }
    );
    let id = add(&engine, right);
    assert_eq!(engine.enable(id), complete(id, true));
    assert_eq!(engine.host().version(task, first), "dup");
    assert_eq!(engine.host().version(task, second), "p_dup");
    check(&engine);
}

#[test]
fn symbol_without_size() {
    let host = SimOs::new();
    let f = host.function(VMLINUX, "f");
    host.sizeless_alias(f, "label");
    let patch = one("label", 0, &host, f);
    let error = refuse(
        &Engine::new(host),
        patch,
        "patch 'p', object 'vmlinux', function 'label': its symbol has no size",
        -2,
        &["kallsyms size lookup failed for 'label'"],
    );
    assert_eq!(reason(error), PatchReason::SymbolWithoutSize);
}

#[test]
fn new_function_unknown() {
    let host = SimOs::new();
    host.function(VMLINUX, "f");
    let func = sim::func_at("f", CodeAddr::new(0x7777_0000)).expect("memory");
    let patch = Patch::builder("p")
        .object(Object::vmlinux().and_then(|object| object.func(func)))
        .build();
    let error = refuse(
        &Engine::new(host),
        patch.expect("well formed"),
        "patch 'p', object 'vmlinux', function 'f': no symbol tells the size of its new version",
        -2,
        &["kallsyms size lookup failed for 'f' replacement"],
    );
    assert_eq!(reason(error), PatchReason::NewFunctionUnknown);
}

#[test]
fn a_new_function_that_callers_cannot_bear() {
    let host = SimOs::new();
    let f = host.function(VMLINUX, "f");
    host.counted_on(f);
    let patch = one("f", 0, &host, f);
    let error = refuse(
        &Engine::new(host),
        patch,
        "patch 'p', object 'vmlinux', function 'f': its new version cannot take its place: its callers count on a register",
        -22,
        &[],
    );
    let why = "its callers count on a register";
    assert_eq!(reason(error), PatchReason::Misfit { why });
}

#[test]
fn another_build() {
    let [old, new] = [b"\x0a\xbc", b"\x0d\xef"];
    let for_old = |host: &SimOs, object: &str, func| {
        let code = host.replacement("p", func, Place::Near);
        let build = BuildId::new(old).expect("memory");
        let object = Object::module(object).and_then(|object| {
            let object = object.func(sim::func("f", code)?)?;
            Ok(object.for_build(build))
        });
        let patch = Patch::builder("p").object(object).build();
        patch.expect("well formed")
    };
    let host = SimOs::new();
    let f = host.function(VMLINUX, "f");
    let patches = [0; 3].map(|_| for_old(&host, VMLINUX, f));
    let engine = Engine::new(host);
    let [unknown, other, same] = patches;
    let error = refuse(
        &engine,
        unknown,
        "patch 'p', object 'vmlinux': the patch is for build 0abc, and nothing tells which build runs",
        -8,
        &[],
    );
    assert!(matches!(
        reason(error),
        PatchReason::OtherBuild { found: None, .. }
    ));
    engine.host().set_build_id(VMLINUX, new);
    refuse(
        &engine,
        other,
        "patch 'p', object 'vmlinux': the patch is for build 0abc, but build 0def runs",
        -8,
        &[],
    );
    engine.host().set_build_id(VMLINUX, old);
    let id = add(&engine, same);
    engine.enable(id).expect("it is the build");

    // An object that comes is looked at when it comes.
    let host = SimOs::new();
    let f = host.function("m", "f");
    host.not_loaded("m");
    host.set_build_id("m", new);
    let patch = for_old(&host, "m", f);
    let engine = Engine::new(host);
    let id = add(&engine, patch);
    engine.enable(id).expect("it waits");
    let error = sim::insmod(&engine, "m").expect_err("it is another build");
    assert_eq!(
        error.to_string(),
        "patch 'p', object 'm': the patch is for build 0abc, but build 0def runs"
    );
    engine.host().set_build_id("m", old);
    sim::insmod(&engine, "m").expect("it is the build");
}

#[test]
fn other_code() {
    let host = SimOs::new();
    let f = host.function(VMLINUX, "f");
    host.function_with(VMLINUX, "g", Pad::Split);
    let mut range = None;
    let mut keep = |symbol: Symbol| range = TextRange::new(symbol.addr, symbol.len);
    let found = host.symbols().symbols(VMLINUX, "f", &mut keep);
    found.expect("the host tells");
    let range = range.expect("it is there");
    let sum = |of: Extent| {
        let mut sum = Vec::new();
        let mut keep = |_: usize, digest: &[u8]| sum.extend_from_slice(digest);
        let told = host.symbols().digests(VMLINUX, "sum", &[of], &mut keep);
        told.expect("the host tells");
        sum
    };
    let (of_f, of_all) = (sum(Extent::Range(range)), sum(Extent::Object));
    assert_ne!(of_f, of_all);
    let shown = |sum: &[u8]| BuildId::new(sum).expect("memory").to_string();
    let (right, all) = (shown(&of_f), shown(&of_all));
    let digest = |algorithm, value: &[u8]| Digest::new(algorithm, value).expect("memory");
    let make = |name: &str, old: OldCode, say: &dyn Fn(Object) -> Object| {
        let code = host.replacement(name, f, Place::Near);
        let object = Object::vmlinux()
            .and_then(|object| object.func(sim::func("f", code)?.expecting(old)))
            .map(say);
        Patch::builder(name)
            .object(object)
            .build()
            .expect("well formed")
    };
    let len = range.len();
    let any = |object: Object| object;
    let old = |len, algorithm, value: &[u8]| OldCode {
        len,
        digest: digest(algorithm, value),
    };
    let for_build = |object: Object| object.for_build(BuildId::new(&[1]).expect("memory"));
    let mut patches = vec![
        (
            make("p", old(len, "sum", &[0, 0, 0, 1]), &any),
            Some(format!(
                "patch 'p', object 'vmlinux', function 'f': the patch is for other code: {len} \
                 bytes, sum:00000001, not {len} bytes, sum:{right}"
            )),
        ),
        (
            make("p", old(len + 8, "sum", &of_f), &any),
            Some(format!(
                "patch 'p', object 'vmlinux', function 'f': the patch is for other code: {} \
                 bytes, sum:{right}, not {len} bytes, sum:{right}",
                len + 8
            )),
        ),
        (
            make("p", old(len, "sha1", &of_f), &any),
            Some(format!(
                "patch 'p', object 'vmlinux', function 'f': the patch is for the code {len} \
                 bytes, sha1:{right}, and nothing tells which code runs"
            )),
        ),
        // Its build is enough where functions are not compared, but not if its size is another.
        (
            make("p", old(len + 8, "sha1", &of_f), &for_build),
            Some(format!(
                "patch 'p', object 'vmlinux', function 'f': the patch is for other code: {} \
                 bytes, sha1:{right}, not {len} bytes",
                len + 8
            )),
        ),
        (
            make("p", old(len, "sum", &of_f), &|object| {
                object.for_text(digest("sum", &of_f))
            }),
            Some(format!(
                "patch 'p', object 'vmlinux': the patch is for other code: sum:{right}, not \
                 sum:{all}"
            )),
        ),
        (
            make("p", old(len, "sum", &of_f), &|object| {
                object.for_text(digest("sha1", &of_all))
            }),
            Some(format!(
                "patch 'p', object 'vmlinux': the patch is for the code sha1:{all}, and nothing \
                 tells which code runs"
            )),
        ),
        (make("told", old(len, "sha1", &of_f), &for_build), None),
        (
            make("same", old(len, "sum", &of_f), &|object| {
                object.for_text(digest("sum", &of_all))
            }),
            None,
        ),
        // What counts is the code as it was built, not as the patches before have it.
        (make("again", old(len, "sum", &of_f), &any), None),
    ];
    host.set_build_id(VMLINUX, &[1]);
    let engine = Engine::new(host);
    for (patch, refused) in patches.drain(..) {
        let Some(says) = refused else {
            let id = add(&engine, patch);
            assert!(engine.preflight(id).expect("it is known").is_ready());
            engine.enable(id).expect("it is the code");
            while engine.poll() != Poll::Idle {}
            check(&engine);
            continue;
        };
        let error = refuse(&engine, patch, &says, -8, &[]);
        assert!(matches!(reason(error), PatchReason::OtherCode { .. }));
    }
}

#[test]
fn entry_held_by_somebody_else() {
    let host = SimOs::new();
    let f = host.function(VMLINUX, "f");
    let site = host.range(f).start();
    let [first, again] = [one("f", 0, &host, f), one("f", 0, &host, f)];
    let engine = Engine::new(host);
    let held = |engine: &Sim, patch| {
        let id = add(engine, patch);
        let foreign = Insn::Jump(CodeAddr::new(0x1234_0000)).encode();
        let built = engine.host().word(site);
        engine.host().overwrite(site, &foreign);
        let error = engine.enable(id).expect_err("must be refused");
        assert_eq!(
            error.to_string(),
            "patch 'p', object 'vmlinux', function 'f': its entry is taken: a jump to 0x12340000 stands at f+0x0/0x10"
        );
        assert_eq!(error.errno(), -16);
        assert_eq!(engine.host().word(site), foreign, "it is left alone");
        engine.host().overwrite(site, &built);
        check(engine);
        engine.remove(id).expect("it is not enabled");
    };
    held(&engine, first);
    // Also a site that the tracer knows already.
    let id = add(&engine, again);
    engine.enable(id).expect("nobody holds it now");
    engine.disable(id).expect("disables");
    let again = engine.remove(id).expect("disabled");
    held(&engine, again);
}

/// What stands in the entry is named, whatever it is, wherever in the entry it stands.
#[test]
fn entry_held_by_whom() {
    let host = SimOs::new();
    let f = host.function_with(VMLINUX, "f", Pad::Split);
    let other = host.range(host.function(VMLINUX, "other")).start();
    let site = host.range(f).start();
    let patches = [(); 3].map(|()| one("f", 0, &host, f));
    let built = host.word(site);
    let engine = Engine::new(host);
    let [breakpoint, jump, code] = [Insn::Break, Insn::Jump(other), Insn::Body].map(Insn::encode);
    let mut middle = built;
    middle[1] = breakpoint[0];
    let cases = [
        (
            middle,
            "a breakpoint (of a debugger or probe) stands at f+0x1/0x10",
        ),
        (jump, "a jump to other+0x0/0x18 stands at f+0x0/0x10"),
        (
            code,
            "foreign code 42 00 00 00 00 00 00 00 stands at f+0x0/0x10",
        ),
    ];
    for (patch, (found, who)) in patches.into_iter().zip(cases) {
        engine.host().overwrite(site, &found);
        let message =
            format!("patch 'p', object 'vmlinux', function 'f': its entry is taken: {who}");
        let log = ["failed to register ftrace handler for function 'f' (-16)"];
        let id = add(&engine, patch);
        let error = engine.enable(id).expect_err("must be refused");
        assert_eq!((error.to_string(), error.errno()), (message.clone(), -16));
        assert_eq!(engine.host().take_transcript(), log);
        assert_eq!(engine.host().word(site), found, "it is left alone");
        let report = engine.preflight(id).expect("it is not enabled");
        assert_eq!(
            report
                .findings
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            [message]
        );
        engine.host().overwrite(site, &built);
        check(&engine);
        engine.remove(id).expect("it is not enabled");
    }
}

/// Somebody took the entry while a patch was enabled: going back is refused until they let go.
#[test]
fn entry_taken_while_a_patch_is_enabled() {
    let basic = Basic::new();
    let site = basic.host().range(basic.f).start();
    let p = basic.add("p");
    basic.engine.enable(p).expect("enables");
    let ours = basic.host().word(site);
    basic.host().overwrite(site, &Insn::Break.encode());
    let before = basic.host().snapshot();
    let error = basic.engine.disable(p).expect_err("must be refused");
    assert_eq!(
        error.to_string(),
        "routing entry sites for patch 'p' failed: a breakpoint (of a debugger or probe) stands at f+0x0/0x10"
    );
    assert_eq!(error.errno(), -16);
    assert_eq!(
        basic.host().snapshot().without_images(),
        before.without_images(),
        "nothing has changed"
    );
    basic.host().overwrite(site, &ours);
    check(&basic.engine);
    assert_eq!(basic.engine.disable(p), complete(p, false));
    check(&basic.engine);
}

#[test]
fn notrace() {
    let host = SimOs::new();
    let f = host.function(VMLINUX, "f");
    host.notrace(f);
    let patch = one("f", 0, &host, f);
    let error = refuse(
        &Engine::new(host),
        patch,
        "patch 'p', object 'vmlinux', function 'f': it is marked notrace: it must not be redirected",
        -22,
        &["failed to find location for function 'f'"],
    );
    assert_eq!(reason(error), PatchReason::Notrace);
}

#[test]
fn a_user_of_the_site_that_the_host_knows() {
    let host = SimOs::new();
    let f = host.function(VMLINUX, "f");
    host.probe(f, "return probe 'p_ret'", Claim::Change)
        .expect("nobody is there");
    let patch = one("f", 0, &host, f);
    refuse(
        &Engine::new(host),
        patch,
        "patch 'p', object 'vmlinux', function 'f': its entry is taken: return probe 'p_ret' holds f+0x0/0x10",
        -16,
        &["failed to register ftrace handler for function 'f' (-16)"],
    );
}

#[test]
fn no_memory_in_reach() {
    let host = SimOs::new();
    let f = host.function(VMLINUX, "f");
    host.set_exhausted(true);
    host.spawn("worker");
    let patch = one("f", 0, &host, f);
    let engine = Engine::new(host);
    let error = refuse(
        &engine,
        patch,
        "routing entry sites for patch 'p' failed: Text::alloc failed: NoMemoryInReach",
        -12,
        &[
            "enabling patch 'p'",
            "'p': initializing patching transition",
            "failed to patch object 'vmlinux'",
            "failed to enable patch 'p'",
            "'p': canceling patching transition, going to unpatch",
            "'p': completing unpatching transition",
            "'p': unpatching complete",
        ],
    );
    assert!(matches!(error, Error::Port(fault) if fault.kind == PortErrorKind::NoMemoryInReach));
    engine.host().set_exhausted(false);
    let again = add(&engine, one("f", 0, engine.host(), f));
    assert_eq!(engine.enable(again), complete(again, true));
    check(&engine);
}

#[test]
fn two_names_of_one_function() {
    let host = SimOs::new();
    let f = host.function(VMLINUX, "f");
    host.alias(f, "also_f");
    let patch = patch(&host, "p", &[(VMLINUX, "f", f), (VMLINUX, "also_f", f)]);
    let error = refuse(
        &Engine::new(host),
        patch,
        "patch 'p', object 'vmlinux', function 'also_f': it is listed twice",
        -22,
        &[],
    );
    assert_eq!(reason(error), PatchReason::ListedTwice);
}

#[test]
fn a_second_patch_during_a_transition() {
    let basic = Basic::new();
    let [p, q] = ["p", "q"].map(|name| basic.add(name));
    assert!(basic.host().call(basic.task, basic.f));
    basic.engine.enable(p).expect("starts");
    basic.host().take_transcript();
    let before = basic.host().snapshot();
    for refused in [
        basic.engine.enable(q),
        basic.engine.disable(p),
        basic.engine.disable(q),
    ] {
        let error = refused.expect_err("one transition at a time");
        assert!(
            matches!(&error, Error::Busy { patch } if patch == "p"),
            "{error:?}"
        );
        assert_eq!(
            error.to_string(),
            "patch 'p' is in transition; one transition at a time"
        );
        assert_eq!(error.errno(), -16);
    }
    assert!(matches!(basic.engine.remove(p), Err(Error::Busy { .. })));
    let misused = [
        basic.engine.reverse(q),
        sim::force(&basic.engine, q),
        basic.engine.kick(q).map(|()| Poll::Idle),
    ];
    for refused in misused {
        assert_eq!(refused, Err(Error::ApiMisuse(ApiMisuse::NoTransition)));
    }
    assert_eq!(
        basic.engine.enable(p),
        Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled))
    );
    assert_eq!(basic.host().snapshot(), before);
    basic.log(&[]);
    basic.host().rest_all();
    assert_eq!(
        basic.engine.poll(),
        Poll::Complete {
            patch: p,
            enabled: true
        }
    );
    assert_eq!(basic.engine.enable(q), complete(q, true), "nothing is lost");
    check(&basic.engine);
}

#[test]
fn misuse() {
    let basic = Basic::new();
    let p = basic.add("p");
    let refused = basic
        .engine
        .add(basic.both("p"))
        .expect_err("the name is taken");
    assert_eq!(
        (refused.error, &**refused.patch.name()),
        (Error::ApiMisuse(ApiMisuse::NameTaken), "p")
    );
    assert_eq!(
        basic.engine.disable(p),
        Err(Error::ApiMisuse(ApiMisuse::NotEnabled))
    );
    basic.engine.enable(p).expect("enables");
    assert_eq!(
        basic.engine.enable(p),
        Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled))
    );
    assert_eq!(
        basic.engine.remove(p).err(),
        Some(Error::ApiMisuse(ApiMisuse::AlreadyEnabled))
    );
    assert_eq!(
        basic.engine.reverse(p),
        Err(Error::ApiMisuse(ApiMisuse::NoTransition))
    );
    assert_eq!(
        basic.engine.blockers(p).map(|_| ()),
        Err(Error::ApiMisuse(ApiMisuse::NoTransition))
    );
    basic.engine.disable(p).expect("disables");
    assert_eq!(basic.engine.find("p"), Some(p));
    basic.engine.remove(p).expect("it is disabled");
    assert_eq!(basic.engine.find("p"), None);
    assert_eq!(
        basic.engine.enable(p),
        Err(Error::ApiMisuse(ApiMisuse::UnknownPatch))
    );
    let unknown = basic.engine.remove(p).expect_err("it is gone");
    assert_eq!(
        (unknown.to_string(), unknown.errno()),
        ("there is no such patch".to_string(), -22)
    );
    check(&basic.engine);
}

#[test]
fn names_that_no_symbol_can_have() {
    let host = SimOs::new();
    let [short, long] = [0, 1].map(|more| "f".repeat(SYMBOL_NAME_LEN + more));
    let f = host.function(VMLINUX, &short);
    let patches = [&short, &long].map(|name| one(name, 0, &host, f));
    let engine = Engine::new(host);
    let [fits, refused] = patches;
    let id = add(&engine, fits);
    engine.remove(id).expect("it is not enabled");
    let error = engine.add(refused).expect_err("longer than Linux's").error;
    assert_eq!(error.errno(), -22);
    let message = format!(
        "patch 'p', object 'vmlinux', function '{long}': its name has more than 511 bytes, as no \
         symbol here has"
    );
    assert_eq!(error.to_string(), message);
}
