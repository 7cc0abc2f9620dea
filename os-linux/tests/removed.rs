//! The memory of a patch that was removed: it stays while a stack may point into it.

use core::arch::asm;
use core::hint::black_box;
use klp_core::engine::PatchId;
use klp_os_linux::process::{Contexts, Livepatch};
use klp_os_linux_fixtures::coroutines::{Coroutine, suspend};
use klp_os_linux_fixtures::*;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

fn engine() -> &'static Livepatch {
    livepatch_with(Contexts::Registered)
}

/// Whether the code of the patch is mapped. A function of its own, so that its address is on no
/// stack when it has returned.
#[inline(never)]
fn is_there() -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("there is a /proc");
    maps.lines().any(|line| {
        let (start, end) = line
            .split_once(' ')
            .and_then(|(range, _)| range.split_once('-'))
            .expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("a number");
        (number(start)..number(end)).contains(&code_of_patch())
    })
}

/// A thread that is in the midst of `hold`, with a descriptor to wait at.
struct Holder {
    thread: JoinHandle<()>,
    writer: i32,
}

impl Holder {
    fn new(hold: fn(i32)) -> Self {
        let (reader, writer) = pipe();
        let (send, receive) = channel();
        let thread = std::thread::spawn(move || {
            send.send(tid()).expect("the test listens");
            hold(reader);
        });
        wait_asleep(receive.recv().expect("the thread says its id"));
        Self { thread, writer }
    }

    fn let_go(self) {
        write_byte(self.writer);
        self.thread.join().expect("the thread only waits");
    }
}

fn wait(fd: i32) {
    fx_read(fd);
}

/// Loads a patch, runs `use_it` while it is enabled, and unloads it; what `use_it` gave.
fn come_and_go<R>(use_it: impl FnOnce() -> R) -> R {
    let patch = engine().load_file(ONLY_CALLBACKS).expect("a patch object");
    enable(patch);
    assert!(is_there());
    let used = use_it();
    disable(patch);
    livepatch().unload(patch).expect("it is disabled");
    assert_eq!(livepatch().engine().find("only_callbacks"), None);
    diary();
    used
}

/// Tries until the memory is free: a thread may be at a place where it cannot be looked at.
#[track_caller]
fn goes() {
    for _ in 0..1000 {
        if livepatch().free_removed() == 0 {
            assert!(!is_there());
            return;
        }
        std::thread::sleep(core::time::Duration::from_millis(1));
    }
    panic!("it does not go");
}

/// One after the other, without threads of other tests: these may have addresses in holes of their
/// frames, which hold the memory, too.
#[test]
fn memory_stays_while_a_stack_may_point_into_it() {
    nobody_holds_it();
    a_word_on_the_stack_of_a_sleeping_thread_holds_it();
    a_register_of_a_sleeping_thread_holds_it();
    the_caller_holds_it_too();
    a_suspended_context_holds_it();
    a_context_that_nobody_has_entered_yet_holds_it();
    a_thread_on_an_alternate_stack_holds_it();
}

fn nobody_holds_it() {
    come_and_go(|| ());
    goes();
    come_and_go(|| Holder::new(wait).let_go());
    goes();
}

fn a_word_on_the_stack_of_a_sleeping_thread_holds_it() {
    let holder = come_and_go(|| {
        Holder::new(|fd| {
            let word = black_box([code_of_patch()]);
            black_box(&word);
            wait(fd);
            black_box(&word);
        })
    });
    assert_eq!(livepatch().free_removed(), 1);
    assert!(is_there());
    // A patch of the same name comes and goes meanwhile.
    let other = livepatch()
        .load_file(ONLY_CALLBACKS)
        .expect("a patch object");
    livepatch().unload(other).expect("it was never enabled");
    assert_eq!(livepatch().free_removed(), 1);
    assert!(is_there(), "what is tried by the way is no worse");
    holder.let_go();
    goes();
}

fn a_register_of_a_sleeping_thread_holds_it() {
    /// Reads a byte, with the address in a register only.
    fn read(fd: i32) {
        let mut byte = 0_u8;
        extern "C" fn get() -> u64 {
            code_of_patch()
        }
        // SAFETY: the system call writes to `byte`; the call before it follows the C ABI, which
        // keeps r12 to r15.
        unsafe {
            asm!(
                "mov r13, rsp",
                // What the call leaves on the stack is far below the stack pointer later.
                "sub rsp, 8192",
                "and rsp, -16",
                "call {get}",
                "mov rsp, r13",
                "mov r12, rax",
                "xor eax, eax",
                "mov edi, r14d",
                "mov rsi, r15",
                "mov edx, 1",
                "syscall",
                "xor r12d, r12d",
                get = sym get,
                in("r14") fd,
                in("r15") &raw mut byte,
                out("r12") _,
                out("r13") _,
                clobber_abi("C"),
            );
        }
    }
    let holder = come_and_go(|| Holder::new(read));
    assert_eq!(livepatch().free_removed(), 1);
    assert!(is_there());
    holder.let_go();
    goes();
}

fn the_caller_holds_it_too() {
    /// A function of its own, so that the address goes with its frame.
    #[inline(never)]
    fn unload_and_hold(patch: PatchId) {
        let word = black_box([code_of_patch()]);
        black_box(&word);
        livepatch().unload(patch).expect("it is disabled");
        assert_eq!(livepatch().free_removed(), 1);
        assert!(is_there());
        black_box(&word);
    }
    let patch = engine().load_file(ONLY_CALLBACKS).expect("a patch object");
    enable(patch);
    disable(patch);
    diary();
    unload_and_hold(patch);
    goes();
}

fn a_suspended_context_holds_it() {
    let mut coroutine = come_and_go(|| {
        let mut coroutine = Coroutine::registered("holds", || {
            let word = black_box([code_of_patch()]);
            black_box(&word);
            suspend();
            black_box(&word);
        });
        coroutine.resume();
        coroutine
    });
    assert_eq!(livepatch().free_removed(), 1);
    assert!(is_there());
    coroutine.resume();
    drop(coroutine);
    goes();
}

fn a_context_that_nobody_has_entered_yet_holds_it() {
    let coroutine = come_and_go(|| Coroutine::registered("fresh", || ()));
    assert_eq!(livepatch().free_removed(), 1);
    drop(coroutine);
    goes();
}

fn a_thread_on_an_alternate_stack_holds_it() {
    extern "C" fn sleep(_: i32) {
        let (reader, writer) = pipe();
        WAKE.store(writer, std::sync::atomic::Ordering::SeqCst);
        wait(reader);
    }
    static WAKE: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);
    let mut action: libc::sigaction = zeroed();
    action.sa_sigaction = sleep as extern "C" fn(i32) as usize;
    action.sa_flags = libc::SA_ONSTACK;
    // SAFETY: the handler only makes system calls.
    let done = unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, core::ptr::null_mut()) };
    assert_eq!(done, 0);
    let holder = come_and_go(|| {
        Holder::new(|fd| {
            let mut memory = vec![0_u8; 1 << 16];
            let mut stack: libc::stack_t = zeroed();
            stack.ss_sp = memory.as_mut_ptr().cast();
            stack.ss_size = memory.len();
            // SAFETY: the memory outlives the thread's use of it.
            let done = unsafe { libc::sigaltstack(&raw const stack, core::ptr::null_mut()) };
            assert_eq!(done, 0);
            let word = black_box([code_of_patch()]);
            black_box(&word);
            send(tid(), libc::SIGUSR2);
            black_box(&word);
            wait(fd);
            stack.ss_flags = libc::SS_DISABLE;
            // SAFETY: the thread does not run on it.
            unsafe { libc::sigaltstack(&raw const stack, core::ptr::null_mut()) };
        })
    });
    assert_eq!(livepatch().free_removed(), 1);
    assert!(is_there());
    write_byte(WAKE.load(std::sync::atomic::Ordering::SeqCst));
    holder.let_go();
    goes();
}

fn zeroed<T>() -> T {
    // SAFETY: the tests' types are plain structs of C, for which all-zero is a valid value.
    unsafe { core::mem::zeroed() }
}
