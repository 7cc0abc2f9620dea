//! Other users of an entry: a patch is refused, with who holds it. Functions that must not be
//! patched. Return probes.

use klp_core::addr::{CodeAddr, TextRange};
use klp_core::error::PatchReason;
use klp_core::port::{Arch, Platform, PortError, PortErrorKind, SymbolResolver, Tracer};
use klp_core::transition::Hindrance;
use klp_core::{Error, PatchId};
use klp_os_linux_fixtures::machine::{
    self, BREAKPOINT, FOREIGN, JUMP_LEN, Processor, STEP, TRAMPOLINE,
};
use klp_os_linux_fixtures::*;
use std::time::Duration;

/// What `klp check` would say of a patch that is not enabled.
fn findings(patch: PatchId) -> Vec<String> {
    let report = livepatch().engine().preflight(patch);
    let findings = report.expect("it is not enabled").findings;
    findings.iter().map(ToString::to_string).collect()
}

fn function(addr: u64) -> TextRange {
    livepatch()
        .engine()
        .host()
        .symbols()
        .function_at(CodeAddr::new(addr))
        .expect("it is a function")
}

/// `fx_value+OFFSET/LENGTH`, as messages name a place.
fn place(name: &str, addr: u64, offset: usize) -> String {
    format!("{name}+{offset:#x}/{:#x}", function(addr).len())
}

/// With `bytes` at `offset` of `func` (its name, address and new version), a patch of it is refused:
/// `who` stands at that place. Nothing is changed.
#[track_caller]
fn refused(func: (&str, u64, u64), offset: usize, bytes: &[u8], who: &str) {
    let (name, at, new) = func;
    let built = overwrite(at + offset as u64, bytes);
    let before = text();
    let patch = add(
        "refused",
        &[("fx_first", 0, addr_of_fn!(fx_first_new)), (name, 0, new)],
    );
    let message = format!(
        "patch 'refused', object 'vmlinux', function '{name}': its entry is taken: {who} stands at {}",
        place(name, at, offset)
    );
    assert_eq!(findings(patch), [&*message]);
    let error = livepatch()
        .enable(patch)
        .expect_err("somebody holds the entry");
    assert_eq!((error.to_string(), error.errno()), (message, -libc::EBUSY));
    assert_eq!(text(), before, "the code is what it was");
    assert!(
        livepatch().wait(Duration::ZERO),
        "no transition is under way"
    );
    overwrite(at + offset as u64, &built);
    assert!(findings(patch).is_empty(), "they have let go");
    livepatch().unload(patch).expect("it is not enabled");
}

/// A jump to `to` for offset 0 of `fx_value`.
fn jump_to(to: u64) -> Vec<u8> {
    let at = CodeAddr::new(addr_of_fn!(fx_value));
    let jump = Processor::jump(at, CodeAddr::new(to), JUMP_LEN as u8);
    jump.expect("it is near").to_vec()
}

#[test]
fn a_breakpoint_in_any_byte_that_would_be_overwritten() {
    let _alone = alone();
    livepatch();
    // As it was built: no other test patches it.
    let func = addr_of_fn!(fx_second);
    for offset in (0..JUMP_LEN).step_by(STEP) {
        refused(
            ("fx_second", func, addr_of_fn!(fx_second_new)),
            offset,
            BREAKPOINT,
            "a breakpoint (of a debugger or probe)",
        );
    }
    let patch = add("free", &[("fx_second", 0, addr_of_fn!(fx_second_new))]);
    enable(patch);
    assert_eq!(fx_second(), 2, "it fits when nobody is there");
    disable(patch);
    livepatch().unload(patch).expect("it is disabled");
    assert_eq!(fx_second(), 1);
}

#[test]
fn a_jump_or_call_is_named_with_where_it_leads() {
    let _alone = alone();
    livepatch();
    let value = addr_of_fn!(fx_value);
    let func = ("fx_value", value, addr_of_fn!(fx_value_new));
    let second = addr_of_fn!(fx_second);
    let to_second = place("fx_second", second, 0);
    refused(func, 0, &jump_to(second), &format!("a jump to {to_second}"));
    let far = Processor::veneer(CodeAddr::new(0), CodeAddr::new(second));
    refused(func, 0, &far, &format!("a jump to {to_second}"));
    refused(
        func,
        0,
        &machine::call(value, second + STEP as u64),
        &format!("a call of {}", place("fx_second", second, STEP)),
    );
    refused(
        func,
        0,
        &Processor::veneer(CodeAddr::new(0), CodeAddr::new(libc_at())),
        &format!("a jump to {}", libc()),
    );
    let bytes = FOREIGN.map(|byte| format!("{byte:02x}")).join(" ");
    refused(func, 0, &FOREIGN, &format!("foreign code {bytes}"));
}

fn libc_at() -> u64 {
    libc::getpid as *const () as u64
}

/// How the engine describes that place.
fn libc() -> String {
    let mut words = String::new();
    let symbols = livepatch().engine().host().symbols();
    symbols
        .describe(CodeAddr::new(libc_at()), &mut words)
        .expect("a string takes everything");
    assert!(words.ends_with("[libc]"), "{words}");
    words
}

#[test]
fn an_entry_that_is_taken_while_a_patch_is_enabled() {
    let _alone = alone();
    let value = addr_of_fn!(fx_value);
    let patch = add(
        "taken",
        &[
            ("fx_first", 0, addr_of_fn!(fx_first_new)),
            ("fx_value", 0, addr_of_fn!(fx_value_new)),
        ],
    );
    let built = text();
    enable(patch);
    let place = place("fx_value", value, 0);
    for (bytes, who) in [
        (
            BREAKPOINT.to_vec(),
            "a breakpoint (of a debugger or probe)".to_owned(),
        ),
        (
            jump_to(addr_of_fn!(fx_second)),
            format!(
                "a jump to {}",
                self::place("fx_second", addr_of_fn!(fx_second), 0)
            ),
        ),
    ] {
        let ours = overwrite(value, &bytes);
        let before = text();
        let error = livepatch()
            .disable(patch)
            .expect_err("somebody holds the entry");
        let Error::Port(fault) = &error else {
            panic!("{error}")
        };
        assert_eq!(fault.kind, PortErrorKind::Held);
        assert_eq!(
            error.to_string(),
            format!("routing entry sites for patch 'taken' failed: {who} stands at {place}")
        );
        assert_eq!(text(), before, "the code is what it was");
        assert!(
            livepatch().wait(Duration::ZERO),
            "no transition is under way"
        );
        assert_eq!(fx_first(), 2, "the patch stays enabled");
        overwrite(value, &ours);
        assert_eq!(fx_value(), 2);
    }
    disable(patch);
    assert_eq!(text(), built);
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn a_function_that_is_marked_notrace() {
    let _alone = alone();
    for marked in ["fx_notrace", "klp_os_linux_entry_stub"] {
        let before = text();
        let patch = add(
            marked,
            &[
                ("fx_first", 0, addr_of_fn!(fx_first_new)),
                (marked, 0, addr_of_fn!(fx_mcount_new)),
            ],
        );
        let error = livepatch()
            .enable(patch)
            .expect_err("it must not be patched");
        assert_eq!(findings(patch), [error.to_string()]);
        assert_eq!(error.errno(), -libc::EINVAL);
        let Error::Patch(error) = error else {
            panic!("{error}")
        };
        assert_eq!(
            (error.func.as_deref(), error.reason),
            (Some(marked), PatchReason::Notrace)
        );
        assert_eq!(text(), before, "the code is what it was");
        livepatch().unload(patch).expect("it is not enabled");
    }
    assert_eq!((fx_first(), fx_notrace()), (1, 61));
}

#[test]
fn the_engine_does_not_patch_its_own_handlers() {
    let _alone = alone();
    let tracer = livepatch().engine().host().tracer();
    // SAFETY: there is room for the answer.
    let handler = unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        let stop_signal = libc::SIGRTMAX() - 2;
        assert_eq!(
            libc::sigaction(stop_signal, core::ptr::null(), &raw mut action),
            0
        );
        action.sa_sigaction
    };
    let refused = tracer
        .site_of(function(handler as u64))
        .expect_err("it is the engine's");
    assert_eq!(refused.kind(), PortErrorKind::Notrace);
    // Other code of this program has no entry pad either, but it may be patched for all the engine
    // knows.
    let refused = tracer
        .site_of(function(addr_of_fn!(function)))
        .expect_err("Rust makes no entry pads");
    assert_eq!(refused.kind(), PortErrorKind::NoSite);
}

/// [`TRAMPOLINE`] in memory that no table knows of.
fn trampoline() -> u64 {
    // SAFETY: the mapping is new and large enough.
    unsafe {
        let (all, map) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        let page = libc::mmap(core::ptr::null_mut(), 4096, all, map, -1, 0);
        assert_ne!(page, libc::MAP_FAILED);
        core::ptr::copy_nonoverlapping(TRAMPOLINE.as_ptr(), page.cast(), TRAMPOLINE.len());
        machine::written(page as u64, TRAMPOLINE.len());
        assert_eq!(
            libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC),
            0
        );
        page as u64
    }
}

#[test]
fn a_thread_whose_return_address_somebody_replaced_is_not_guessed_at() {
    let _alone = alone();
    let trampoline = trampoline();
    let (reader, writer) = pipe();
    let (send_tid, tids) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        send_tid.send(tid()).expect("the test listens");
        // SAFETY: that is the code there.
        unsafe { read_through(reader, trampoline as *const _) }
    });
    let sleeper = tids.recv().expect("the thread says its id");
    wait_asleep(sleeper);
    // Nothing of the patch is on the thread's stack, as far as that can be seen.
    let patch = add("probed", &[("fx_first", 0, addr_of_fn!(fx_first_new))]);
    livepatch().enable(patch).expect("the patch fits");
    assert!(
        !livepatch().wait(Duration::from_millis(50)),
        "what the thread returns to is not known"
    );
    let blockers = livepatch()
        .engine()
        .blockers(patch)
        .expect("the transition runs");
    let [blocker] = &blockers[..] else {
        panic!("{blockers:?}")
    };
    assert_eq!(blocker.task.0, sleeper as u64);
    let Hindrance::UnreliableStack(doubt) = blocker.hindrance else {
        panic!("{blocker}")
    };
    assert_eq!(doubt.at, CodeAddr::new(trampoline));
    let last = blocker.stack.last().expect("it has a stack");
    assert_eq!(
        **last,
        format!("unknown code at {}", CodeAddr::new(trampoline))
    );
    write_byte(writer);
    assert_eq!(thread.join().expect("the thread only reads"), 1);
    settle(patch);
    disable(patch);
    livepatch().unload(patch).expect("it is disabled");
}
