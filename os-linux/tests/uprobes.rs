//! Probes of the kernel in a process that is patched: uprobes and uretprobes. Where the kernel does
//! not let us set any, the tests say so and check nothing.

use klp_core::transition::Hindrance;
use klp_os_linux_fixtures::*;
use std::ffi::CString;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

/// A probe; it goes when it is dropped.
struct Uprobe {
    _event: OwnedFd,
}

/// The beginning of `struct perf_event_attr` (`perf_event_open(2)`, `PERF_ATTR_SIZE_VER1`).
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sampling: [u64; 3],
    flags: u64,
    wakeup: u32,
    bp_type: u32,
    path: u64,
    offset: u64,
}

impl Uprobe {
    /// Sets a probe on the code at `addr`, for when the function there returns if `on_return`.
    /// `None` if the kernel refuses.
    fn set(addr: u64, on_return: bool) -> Option<Self> {
        let kind = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").ok();
        let (path, offset) = file_place(addr);
        let attr = Attr {
            kind: kind
                .and_then(|kind| kind.trim().parse().ok())
                .unwrap_or(u32::MAX),
            size: size_of::<Attr>() as u32,
            config: u64::from(on_return),
            path: path.as_ptr() as u64,
            offset,
            ..Attr::default()
        };
        // SAFETY: the kernel reads `attr` and the path, which outlive the call.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, 0, -1, -1, 0) };
        if fd < 0 {
            eprintln!(
                "NOT TESTED: no uprobes here ({})",
                std::io::Error::last_os_error()
            );
            return None;
        }
        Some(Self {
            // SAFETY: it is a new file descriptor.
            _event: unsafe { OwnedFd::from_raw_fd(fd as i32) },
        })
    }
}

/// The file that `addr` is mapped from, and where in it.
fn file_place(addr: u64) -> (CString, u64) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("there is a /proc");
    let number = |text| u64::from_str_radix(text, 16).ok();
    let place = maps.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-')?;
        let (start, end, offset) = (number(start)?, number(end)?, number(fields[2])?);
        let path = CString::new(*fields.get(5)?).ok()?;
        (start..end)
            .contains(&addr)
            .then(|| (path, offset + addr - start))
    });
    place.expect("it is code from a file")
}

#[test]
fn a_uprobe_at_an_entry_is_refused_while_it_is_there() {
    let _alone = alone();
    livepatch();
    let built = text();
    let funcs = [
        ("fx_value", addr_of_fn!(fx_value), addr_of_fn!(fx_value_new)),
        (
            "fx_mcount",
            addr_of_fn!(fx_mcount),
            addr_of_fn!(fx_mcount_new),
        ),
    ];
    for (name, old, new) in funcs {
        let Some(probe) = Uprobe::set(old, false) else {
            return;
        };
        // Newer kernels turn the breakpoint into a call if it is hit and a long NOP stood there.
        for _ in 0..3 {
            assert_eq!(
                (fx_value(), fx_mcount(0)),
                (1, 41),
                "the probe does not disturb"
            );
        }
        let probed = text();
        assert_ne!(probed, built, "the probe is there");
        let patch = add(
            "probed",
            &[("fx_first", 0, addr_of_fn!(fx_first_new)), (name, 0, new)],
        );
        let error = livepatch()
            .enable(patch)
            .expect_err("the kernel holds the entry")
            .to_string();
        assert!(
            error.contains(&format!("function '{name}': its entry is taken: ")),
            "{error}"
        );
        let known = [
            "a breakpoint (of a debugger or probe) stands at",
            "[uprobes-trampoline] stands at",
        ];
        assert!(known.iter().any(|words| error.contains(words)), "{error}");
        assert!(error.contains(&format!("{name}+0x0/")), "{error}");
        assert_eq!(text(), probed, "the code is what it was");
        assert_eq!(fx_first(), 1);
        drop(probe);
        assert_eq!(text(), built, "the kernel gave the entry back");
        enable(patch);
        disable(patch);
        livepatch().unload(patch).expect("it is disabled");
    }
}

#[test]
fn a_return_probe_on_the_stack_holds_its_thread_back() {
    let _alone = alone();
    livepatch();
    let Some(_probe) = Uprobe::set(addr_of_fn!(fx_read), true) else {
        return;
    };
    let (reader, writer) = pipe();
    let (send_tid, tids) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        send_tid.send(tid()).expect("the test listens");
        fx_read(reader)
    });
    let sleeper = tids.recv().expect("the thread says its id");
    wait_asleep(sleeper);
    let patch = add("returning", &[("fx_first", 0, addr_of_fn!(fx_first_new))]);
    livepatch()
        .enable(patch)
        .expect("nobody holds the entry of that one");
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
    assert!(
        matches!(blocker.hindrance, Hindrance::UnreliableStack(_)),
        "{blocker}"
    );
    assert!(
        blocker
            .stack
            .last()
            .is_some_and(|frame| frame.ends_with(" [uprobes]")),
        "{blocker}"
    );
    write_byte(writer);
    assert_eq!(thread.join().expect("the thread only reads"), 1);
    settle(patch);
    disable(patch);
    livepatch().unload(patch).expect("it is disabled");
}
