//! Breakpoints: what happens to a thread that meets one while text is being changed.
//!
//! The handler of SIGTRAP sends threads around places that are under change, and passes on every
//! SIGTRAP that is not ours.

use super::context::Interrupted;
use super::error::Error;
use super::stop::wait_outside;
use super::sys::{self, KeepErrno};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use klp_core::addr::CodeAddr;
use klp_core::port::Poke;
use std::sync::OnceLock;

/// The one-byte breakpoint instruction, `int3`.
pub(crate) const INT3: u8 = 0xcc;

/// The changes under way.
static BATCH: AtomicPtr<Batch<'static>> = AtomicPtr::new(ptr::null_mut());
/// Threads inside the handler.
static INSIDE: AtomicU32 = AtomicU32::new(0);
/// What was installed for SIGTRAP before.
static BEFORE: OnceLock<Before> = OnceLock::new();

struct Before(libc::sigaction);

// SAFETY: it is read only; its function pointers are those of a process-wide setting.
unsafe impl Send for Before {}
// SAFETY: as above.
unsafe impl Sync for Before {}

/// Changes of text, sorted by address.
struct Batch<'a>(&'a [Poke<'a>]);

impl Batch<'_> {
    /// Where a thread goes on that met a breakpoint at `at`.
    fn resume(&self, at: CodeAddr) -> Option<CodeAddr> {
        let index = self.0.binary_search_by_key(&at, |poke| poke.at).ok()?;
        self.0.get(index).map(|poke| poke.resume)
    }
}

/// Installs the handler.
///
/// It runs on the thread's own stack, not on an alternate one: a thread at a function's entry has
/// one.
///
/// # Errors
///
/// That of `sigaction`.
pub(crate) fn install() -> Result<(), Error> {
    // SAFETY: the handler allocates nothing, takes no lock, and keeps errno.
    let before = unsafe { sys::install(libc::SIGTRAP, on_trap, libc::SA_RESTART) }
        .map_err(Error::os("sigaction"))?;
    let _ = BEFORE.set(Before(before));
    Ok(())
}

/// Whether nobody has replaced the handler since.
pub(crate) fn is_in_place() -> bool {
    sys::handler(libc::SIGTRAP) == Ok(on_trap as *const () as usize)
}

/// Sends threads around the places of `batch` until `work` has returned and the last of them has
/// gone on.
pub(crate) fn around<R>(batch: &[Poke<'_>], work: impl FnOnce() -> R) -> R {
    let batch = Batch(batch);
    BATCH.store(ptr::from_ref(&batch).cast_mut().cast(), Ordering::SeqCst);
    let result = work();
    BATCH.store(ptr::null_mut(), Ordering::SeqCst);
    // ORDER(trap): a handler counts itself in before it looks for the batch; who is not counted
    // here finds none.
    wait_outside(&INSIDE);
    result
}

/// After `fork`, in the child: no other thread is inside the handler.
pub(crate) fn reset_in_child() {
    INSIDE.store(0, Ordering::SeqCst);
}

extern "C" fn on_trap(signal: i32, info: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
    let _errno = KeepErrno::new();
    // SAFETY: they are this handler's arguments.
    let (code, mut thread) = unsafe { ((*info).si_code, Interrupted::new(ucontext)) };
    INSIDE.fetch_add(1, Ordering::SeqCst);
    let ours = is_breakpoint(code) && go_around(&mut thread);
    INSIDE.fetch_sub(1, Ordering::SeqCst);
    if !ours {
        pass_on(signal, info, ucontext);
    }
}

/// Whether the processor met an `int3`, and nobody just sent the signal.
fn is_breakpoint(code: i32) -> bool {
    const SI_KERNEL: i32 = 0x80;
    matches!(code, SI_KERNEL | libc::TRAP_BRKPT)
}

/// Makes a thread that met a breakpoint of ours go on. `false`: it was not ours.
fn go_around(thread: &mut Interrupted<'_>) -> bool {
    let at = thread.pc().wrapping_sub(1);
    // SAFETY: a batch that is published lives until this handler has counted itself out.
    let batch = unsafe { BATCH.load(Ordering::SeqCst).as_ref() };
    if let Some(resume) = batch.and_then(|batch| batch.resume(CodeAddr::new(at))) {
        thread.set_pc(resume.get());
        return true;
    }
    // The change may have ended since this thread met its breakpoint: the instruction is there
    // again, old or new. SAFETY: the processor has just executed the byte.
    let gone = unsafe { ptr::read_volatile(at as *const u8) } != INT3;
    if gone {
        thread.set_pc(at);
    }
    gone
}

/// Does what would have happened without this handler.
fn pass_on(signal: i32, info: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
    let Some(Before(before)) = BEFORE.get() else {
        return;
    };
    // SAFETY: they are a signal handler's arguments.
    let sent = unsafe { !is_breakpoint((*info).si_code) };
    match before.sa_sigaction {
        // The kernel ignores signals that were sent, but not those of the processor.
        libc::SIG_IGN if sent => {}
        libc::SIG_DFL | libc::SIG_IGN => die_of(signal),
        // SAFETY: it is the handler that the process installed; it gets what the kernel would give
        // it, with the signals blocked that it asked for.
        handler => unsafe {
            let mut mask = (*ucontext.cast::<libc::ucontext_t>()).uc_sigmask;
            sys::add_signals(&mut mask, &before.sa_mask);
            if before.sa_flags & libc::SA_NODEFER == 0 {
                libc::sigaddset(&raw mut mask, signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, ptr::null_mut());
            if before.sa_flags & libc::SA_SIGINFO == 0 {
                core::mem::transmute::<usize, extern "C" fn(i32)>(handler)(signal);
            } else {
                core::mem::transmute::<usize, sys::SignalHandler>(handler)(signal, info, ucontext);
            }
        },
    }
}

/// Ends the process by `signal`, as soon as the handler returns.
fn die_of(signal: i32) {
    // SAFETY: resetting a disposition needs nothing.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    let _ = sys::tgkill(sys::gettid(), signal);
}
