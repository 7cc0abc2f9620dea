//! Patching while threads run through the code that is changed.

use klp_os_linux_fixtures::*;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long each load lasts.
const TIME: Duration = Duration::from_secs(3);

/// Enables and disables `patch` until the time is over; returns how often.
fn toggle(patch: klp_core::engine::PatchId) -> u32 {
    let (begin, mut count) = (Instant::now(), 0);
    while begin.elapsed() < TIME {
        enable(patch);
        disable(patch);
        count += 1;
    }
    count
}

/// Ends the load when the scope that runs it ends, also by a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn callers_see_one_version_from_entry_to_exit() {
    let _alone = alone();
    let before = text();
    let patch = add_pair("pair");
    let (stop, calls, mixes) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let look = |between: &dyn Fn()| {
        let seen = pair(between);
        calls.fetch_add(1, Ordering::Relaxed);
        if seen != 111 && seen != 222 {
            mixes.fetch_add(1, Ordering::Relaxed);
        }
    };
    let toggles = std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    look(&|| ());
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                look(&|| std::thread::sleep(Duration::from_millis(1)));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // Threads that are born and die all the time.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::thread::scope(|scope| drop(scope.spawn(|| look(&|| ()))));
            }
        });
        toggle(patch)
    });
    let calls = calls.into_inner();
    println!("{toggles} toggles, {calls} calls");
    assert_eq!(mixes.into_inner(), 0);
    assert!(
        toggles >= 1 && calls > 1000,
        "{toggles} toggles, {calls} calls"
    );
    assert_eq!(text(), before);
    livepatch().unload(patch).expect("it is disabled");
}

/// Sends SIGUSR1 `every` so often to a thread that runs `work` all the time, while `meanwhile`
/// runs.
fn bombard<R>(
    every: Duration,
    work: impl FnOnce(&AtomicI32) -> i64 + Send,
    meanwhile: impl FnOnce() -> R,
) -> R {
    struct StopLoop<'a>(&'a AtomicI32);
    impl Drop for StopLoop<'_> {
        fn drop(&mut self) {
            std::thread::sleep(Duration::from_millis(20));
            self.0.store(1, Ordering::Relaxed);
        }
    }
    let (stop, done) = (AtomicI32::new(0), AtomicBool::new(false));
    let (send_tid, target) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            send_tid.send(tid()).expect("somebody listens");
            work(&stop)
        });
        let target = target.recv().expect("the thread says its id");
        std::thread::sleep(Duration::from_millis(20));
        let done = &done;
        let _loop = StopLoop(&stop);
        let _done = Stop(done);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                send(target, libc::SIGUSR1);
                std::thread::sleep(every);
            }
        });
        meanwhile()
    })
}

#[test]
fn code_interrupted_in_a_pad_is_moved_out_of_it() {
    extern "C" fn pause(_: i32) {
        std::thread::sleep(Duration::from_micros(100));
    }
    let _alone = alone();
    on_signal(libc::SIGUSR1, pause);
    let patch = add("spin", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
    let toggles = bombard(Duration::from_micros(500), spin, || toggle(patch));
    println!("{toggles} toggles");
    assert!(toggles >= 1, "{toggles} toggles");
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn a_thread_thrown_out_of_the_handler_holds_nobody_up() {
    let _alone = alone();
    let funcs = [
        ("fx_value", 0, addr_of_fn!(fx_value_new)),
        ("fx_read", 0, addr_of_fn!(fx_read_new)),
    ];
    let patch = add("jump", &funcs);
    let (reader, writer) = pipe();
    let (send_tid, sleeper) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            send_tid.send(tid()).expect("somebody listens");
            fx_read(reader)
        });
        wait_asleep(sleeper.recv().expect("the thread says its id"));
        bombard(
            Duration::from_micros(20),
            |stop| jump_spin(stop, libc::SIGUSR1),
            || {
                // The sleeper keeps the handler in the way of all calls.
                livepatch().enable(patch).expect("the patch fits");
                assert!(!livepatch().wait(Duration::from_millis(300)));
                write_byte(writer);
                settle(patch);
            },
        );
        disable(patch);
    });
    livepatch().unload(patch).expect("it is disabled");
}
