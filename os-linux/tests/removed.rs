//! The memory of a patch that was removed: it stays while a stack may point into it.

use core::arch::asm;
use core::hint::black_box;
use core::sync::atomic::{AtomicU32, Ordering};
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
    is_memory(code_of_patch())
}

/// A thread that is in the midst of `hold`, which waits at the gate.
struct Holder(JoinHandle<()>);

impl Holder {
    fn new(hold: impl FnOnce() + Send + 'static) -> Self {
        GATE.store(0, Ordering::SeqCst);
        let (send, receive) = channel();
        let thread = std::thread::spawn(move || {
            send.send(tid()).expect("the test listens");
            hold();
        });
        wait_asleep(receive.recv().expect("the thread says its id"));
        Self(thread)
    }

    fn let_go(self) {
        GATE.store(1, Ordering::SeqCst);
        // SAFETY: no memory is involved but the word.
        unsafe { libc::syscall(libc::SYS_futex, GATE.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
        self.0.join().expect("the thread only waits");
    }
}

/// Where threads wait, in a call that goes on after a signal; 0: closed.
static GATE: AtomicU32 = AtomicU32::new(0);

fn wait() {
    while GATE.load(Ordering::SeqCst) == 0 {
        // SAFETY: no memory is involved but the word.
        unsafe { libc::syscall(libc::SYS_futex, GATE.as_ptr(), libc::FUTEX_WAIT, 0, 0_usize) };
    }
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

/// Overwrites what calls that have returned have left below the stack of the caller: whoever it
/// calls next would have it in the holes of its frame.
#[inline(never)]
fn scrub() {
    black_box(&mut [0_u64; 4096]);
}

/// The frames that had the address lay where this one has nothing but zeros, and further down.
#[inline(never)]
#[track_caller]
fn goes() {
    let zeros = black_box([0_u64; 128]);
    scrub();
    tries_until_it_goes();
    black_box(&zeros);
}

/// Tries until the memory is free: a thread may be at a place where it cannot be looked at.
#[inline(never)]
#[track_caller]
fn tries_until_it_goes() {
    for _ in 0..1000 {
        if livepatch().free_removed() == 0 {
            assert!(!is_there());
            return;
        }
        std::thread::sleep(core::time::Duration::from_millis(1));
    }
    panic!("it does not go");
}

/// One after the other, without other threads: these may have addresses in holes of their frames,
/// which hold the memory, too, and the test runner's main thread must not be woken.
#[test]
fn memory_stays_while_a_stack_may_point_into_it() {
    let status = in_child(|| {
        nobody_holds_it();
        a_word_on_the_stack_of_a_sleeping_thread_holds_it();
        a_register_of_a_sleeping_thread_holds_it();
        a_thread_that_would_notice_is_not_woken();
        the_caller_holds_it_too();
        a_suspended_context_holds_it();
        a_context_that_nobody_has_entered_yet_holds_it();
        a_thread_on_an_alternate_stack_holds_it();
        true
    });
    assert_eq!(status, 0);
}

fn nobody_holds_it() {
    come_and_go(|| ());
    goes();
    come_and_go(|| Holder::new(wait).let_go());
    goes();
}

fn a_thread_that_would_notice_is_not_woken() {
    // `poll` fails if a signal comes.
    let (fd, writer) = pipe();
    let holder = Holder::new(move || {
        let mut one = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: there is one.
        assert_eq!(unsafe { libc::poll(&raw mut one, 1, -1) }, 1);
    });
    come_and_go(|| ());
    assert_eq!(livepatch().free_removed(), 1);
    assert!(is_there());
    write_byte(writer);
    holder.let_go();
    goes();
}

fn a_word_on_the_stack_of_a_sleeping_thread_holds_it() {
    let holder = come_and_go(|| {
        Holder::new(|| {
            let word = black_box([code_of_patch()]);
            black_box(&word);
            wait();
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
    /// Waits at the gate, with the address in a register only.
    fn wait_at_gate() {
        extern "C" fn get() -> u64 {
            code_of_patch()
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the system call reads the gate; the call before it follows the C ABI, which keeps
        // x20 to x22.
        unsafe {
            asm!(
                "mov x20, sp",
                // What the call leaves on the stack is far below the stack pointer later.
                "sub x9, x20, #8192",
                "and sp, x9, #-16",
                "bl {get}",
                "mov sp, x20",
                "mov x21, x0",
                "mov x8, #{futex}",
                "mov x0, x22",
                "mov w1, #{wait}",
                "mov x2, #0",
                "mov x3, #0",
                "svc #0",
                "mov x21, #0",
                get = sym get,
                futex = const libc::SYS_futex,
                wait = const libc::FUTEX_WAIT,
                in("x22") GATE.as_ptr(),
                out("x20") _,
                out("x21") _,
                clobber_abi("C"),
            );
        }
        #[cfg(target_arch = "powerpc64")]
        // SAFETY: the system call reads the gate; the call before it follows the C ABI, which keeps
        // r20 to r22. It overwrites the link register, which is kept in r20.
        unsafe {
            asm!(
                "mflr 20",
                // What the call leaves on the stack is far below the stack pointer later.
                "stdu 1, -8192(1)",
                "bl {get}@notoc",
                "addi 1, 1, 8192",
                "mtlr 20",
                "mr 21, 3",
                "li 0, {futex}",
                "mr 3, 22",
                "li 4, {wait}",
                "li 5, 0",
                "li 6, 0",
                "sc",
                "li 21, 0",
                get = sym get,
                futex = const libc::SYS_futex,
                wait = const libc::FUTEX_WAIT,
                in("r22") GATE.as_ptr(),
                out("r20") _,
                out("r21") _,
                clobber_abi("C"),
            );
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the system call reads the gate; the call before it follows the C ABI, which keeps
        // r12 to r15.
        unsafe {
            asm!(
                "mov r13, rsp",
                // What the call leaves on the stack is far below the stack pointer later.
                "sub rsp, 8192",
                "and rsp, -16",
                "call {get}",
                "mov rsp, r13",
                "mov r12, rax",
                "mov eax, {futex}",
                "mov rdi, r15",
                "mov esi, {wait}",
                "xor edx, edx",
                "xor r10d, r10d",
                "syscall",
                "xor r12d, r12d",
                get = sym get,
                futex = const libc::SYS_futex,
                wait = const libc::FUTEX_WAIT,
                in("r15") GATE.as_ptr(),
                out("r12") _,
                out("r13") _,
                clobber_abi("C"),
            );
        }
    }
    let holder = come_and_go(|| Holder::new(wait_at_gate));
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
        wait();
    }
    let mut action: libc::sigaction = zeroed();
    action.sa_sigaction = sleep as extern "C" fn(i32) as usize;
    action.sa_flags = libc::SA_ONSTACK;
    // SAFETY: the handler only makes system calls.
    let done = unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, core::ptr::null_mut()) };
    assert_eq!(done, 0);
    let holder = come_and_go(|| {
        Holder::new(|| {
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
            stack.ss_flags = libc::SS_DISABLE;
            // SAFETY: the thread does not run on it.
            unsafe { libc::sigaltstack(&raw const stack, core::ptr::null_mut()) };
        })
    });
    assert_eq!(livepatch().free_removed(), 1);
    assert!(is_there());
    holder.let_go();
    goes();
}

fn zeroed<T>() -> T {
    // SAFETY: the tests' types are plain structs of C, for which all-zero is a valid value.
    unsafe { core::mem::zeroed() }
}
