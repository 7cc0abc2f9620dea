//! Stacks: the port [`Unwinder`], on tables of every object in the process.
//!
//! Of a thread that sleeps, not all registers are known ([`asleep`](super::asleep)). Functions that
//! were compiled with a frame pointer need one that is not. What is on such a stack can be said
//! without that: return addresses stand in memory, so every word between the stack pointer and the
//! end of the stack is taken for one. There are more of them than there are frames. If none of them
//! keeps the thread, nothing does; unless one leads to code that no table knows, and that may know
//! of return addresses which do not stand there (as return probes do), or to what signal handlers
//! return to: what they interrupted may be on another stack. Where a call leaves its return address
//! in a register, the function that sleeps must have saved it.

use super::arch::{self, Regs, Rule, SIGNAL_RETURN, Table, calls, registers, unwind};
use super::error::Error;
use super::last_walk::LastWalk;
use super::lock::Mutex;
use super::maps::Maps;
use super::objects::Objects;
use super::peek::{CodePages, Copied, Known, Memory, stack_memory};
use super::stop::wait_outside;
use super::tables::table_of;
use super::ucontext;
use alloc::sync::Arc;
use core::cell::Cell;
use core::ops::{ControlFlow, Range};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::port::{Doubt, Frame, FrameKind, Unreliable, Unwinder};

/// A thread or context whose stack does not change: where a walk begins.
#[derive(Debug)]
pub struct Stopped {
    regs: Regs,
    /// Of a thread that sleeps, and may wake up at any moment: what is known of its stack. Memory
    /// of it is copied, if at all, and some of `regs` are unknown.
    asleep: Option<&'static LastWalk>,
    /// Whether the last walk may have visited something else than what there is.
    inexact: Cell<bool>,
    /// The same of any walk.
    incomplete: Cell<bool>,
    /// Whether a sleeper's stack was read.
    read: Cell<bool>,
}

impl From<Regs> for Stopped {
    fn from(regs: Regs) -> Self {
        Self {
            regs,
            asleep: None,
            inexact: Cell::new(false),
            incomplete: Cell::new(false),
            read: Cell::new(false),
        }
    }
}

impl Stopped {
    /// A thread that sleeps, of which the stack pointer and the next instruction are known, and
    /// perhaps the `last` walk of its stack.
    pub(crate) fn from_outside(regs: Regs, last: &'static LastWalk) -> Self {
        Self {
            asleep: Some(last),
            ..regs.into()
        }
    }

    /// Its registers.
    pub(crate) fn regs(&self) -> &Regs {
        &self.regs
    }

    /// Of a thread that sleeps, whether the last walk may have visited something else than what
    /// there is.
    pub(crate) fn was_inexact(&self) -> bool {
        self.inexact.get()
    }

    /// The same of any walk.
    pub(crate) fn was_incomplete(&self) -> bool {
        self.incomplete.get()
    }

    /// Of a thread that sleeps, whether its stack was read. If not, walks have visited what was
    /// known when it was found.
    pub(crate) fn was_read(&self) -> bool {
        self.read.get()
    }

    /// What a walk visits from here on may be something else than what there is.
    fn guess(&self) {
        self.inexact.set(true);
        self.incomplete.set(true);
    }
}

/// The unwind tables of the process.
///
/// Walks read them in signal handlers, so a set of tables never changes: it is replaced, and
/// dropped when no walk is under way.
#[derive(Default)]
pub struct Stacks {
    set: AtomicPtr<Set>,
    /// Walks under way.
    walks: AtomicU32,
    /// See [`foot`]; 0: not known.
    foot: AtomicU64,
    code: CodePages,
    /// Return addresses that are not [dubious](Stacks::is_dubious).
    plain: Known<256>,
    /// What is mapped, in a round of looks in which somebody asked for it.
    maps: Mutex<Option<Arc<Maps>>>,
}

/// What walks look at. Both are sorted by address, and nothing in them overlaps.
#[derive(Clone, Default)]
struct Set {
    /// No other set has it. Not 0.
    number: u64,
    /// By their text.
    objects: Vec<Rules>,
    /// Memory that the dynamic linker has made read-only: what stands there never changes.
    relro: Vec<TextRange>,
}

/// What is known of the code of an object or image.
#[derive(Clone)]
struct Rules {
    table: Arc<Table>,
    /// See [`calls::base`].
    base: Option<u64>,
}

impl Set {
    /// What is known of the code that `pc` is in.
    fn object(&self, pc: CodeAddr) -> Option<&Rules> {
        let behind = self
            .objects
            .partition_point(|object| object.table.text().start() <= pc);
        let object = self.objects.get(behind.checked_sub(1)?)?;
        object.table.text().contains(pc).then_some(object)
    }

    /// Whether the word at `addr` never changes.
    fn is_constant(&self, addr: u64) -> bool {
        let at = CodeAddr::new(addr);
        let behind = self.relro.partition_point(|relro| relro.start() <= at);
        let relro = behind
            .checked_sub(1)
            .and_then(|index| self.relro.get(index));
        relro.is_some_and(|relro| relro.contains(at) && relro.contains(at.wrapping_add(7)))
    }

    fn rule(&self, pc: CodeAddr) -> Rule {
        self.object(pc)
            .map_or(Rule::Gap, |object| object.table.find(pc))
    }
}

/// Frames that a walk visits at most: more than any recursion has. Every frame takes eight bytes of
/// a stack at least, so stacks that can be walked end long before.
const MAX_FRAMES: usize = 1 << 24;

/// Bytes of a stack that are taken for return addresses at most.
const MAX_GUESSED: u64 = 1 << 20;

impl Stacks {
    /// Makes the tables those of `objects` and `images`. Not to be called by two threads at once.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`]; the tables stay as they were.
    pub(crate) fn update(&self, objects: &Objects, images: &[Arc<Table>]) -> Result<(), Error> {
        if self.foot.load(Ordering::Relaxed) == 0 {
            self.foot.store(foot(), Ordering::Relaxed);
        }
        let image = |table: &Arc<Table>| Rules {
            table: table.clone(),
            base: None,
        };
        let (mut rules, mut relro): (Vec<_>, _) = (images.iter().map(image).collect(), Vec::new());
        for object in objects.all() {
            let base = || calls::base(object.file().ok()?, object.bias);
            rules.extend(table_of(&object)?.map(|table| Rules {
                table,
                base: base(),
            }));
            relro.extend(object.relro);
        }
        rules.sort_unstable_by_key(|rules| rules.table.text().start());
        relro.sort_unstable_by_key(|relro: &TextRange| relro.start());
        static LAST: AtomicU64 = AtomicU64::new(0);
        let before = self.set.swap(
            Box::into_raw(Box::new(Set {
                number: LAST.fetch_add(1, Ordering::Relaxed) + 1,
                objects: rules,
                relro,
            })),
            Ordering::SeqCst,
        );
        // ORDER(tables): a walk counts itself before it reads the pointer; whoever is not counted
        // here reads the new one.
        wait_outside(&self.walks);
        if !before.is_null() {
            // SAFETY: it came from a box, and no walk uses it any more.
            drop(unsafe { Box::from_raw(before) });
        }
        Ok(())
    }

    /// Whether there are rules for the code at `pc`.
    pub(crate) fn knows(&self, pc: CodeAddr) -> bool {
        let rule = |set: &Set| set.rule(pc);
        self.with_tables(|set| !matches!(set.map_or(Rule::Gap, rule), Rule::Gap | Rule::Unknown))
    }

    /// The number of the tables; 0: there are none.
    fn number(&self) -> u64 {
        self.with_tables(|set| set.map_or(0, |set| set.number))
    }

    /// Whether what the code at the next instruction returns to is in memory, and not in a register.
    fn returns_by_memory(&self, regs: &Regs) -> bool {
        let pc = CodeAddr::new(arch::pc(regs));
        self.with_tables(|set| set.is_some_and(|set| set.rule(pc).returns_by_memory()))
    }

    /// After `fork`, in the child: no other thread is in a walk.
    pub(crate) fn reset_in_child(&self) {
        self.walks.store(0, Ordering::SeqCst);
    }

    /// Begins a round of looks at threads, which ends when the answer is dropped: in it, what was
    /// found once is taken to stay so: code that is readable, return addresses that are plain.
    pub(crate) fn round(&self) -> (impl Drop + '_, impl Drop + '_) {
        *self.maps.lock() = None;
        (self.code.round(), self.plain.round())
    }

    /// Walks from `regs`; `seen` is told of every word of the stack that is read, with its address.
    pub(crate) fn walk_seeing(
        &self,
        regs: &Regs,
        seen: impl Fn(u64, u64),
        visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
    ) -> Result<(), Unreliable> {
        self.during_walk(|rule| {
            let memory = stack_memory();
            let read = |addr| memory.read(addr).inspect(|&value| seen(addr, value));
            unwind::walk(*regs, MAX_FRAMES, rule, read, visit)
        })
    }

    /// Walks the stack of a thread that has just made a call; see [`unwind::walk_call`].
    pub(crate) fn walk_call(
        &self,
        regs: &Regs,
        visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
    ) -> Result<(), Unreliable> {
        self.during_walk(|rule| {
            let memory = stack_memory();
            unwind::walk_call(*regs, MAX_FRAMES, rule, |addr| memory.read(addr), visit)
        })
    }

    /// Visits the words of a sleeping thread's stack above `sp`, up to the first of which `visit`
    /// says `false`; says whether that was all of them. `None`: they cannot be read.
    pub(crate) fn words(&self, sp: u64, visit: impl FnMut(u64) -> bool) -> Option<bool> {
        let end = self.end(sp)?;
        words(&Copied::stack(sp, end), sp..end, visit)
    }

    /// Walks the stack of a thread that sleeps, by its tables alone.
    pub(crate) fn walk_asleep(
        &self,
        regs: &Regs,
        visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
    ) -> Result<(), Unreliable> {
        self.walk_copied(regs, &Copied::new(), visit)
    }

    fn walk_copied(
        &self,
        regs: &Regs,
        memory: &Copied,
        visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
    ) -> Result<(), Unreliable> {
        let read = |addr| memory.read(addr);
        self.during_walk(|rule| unwind::walk(*regs, MAX_FRAMES, rule, read, visit))
    }

    /// Where the mapping ends that `sp` is in.
    fn end(&self, sp: u64) -> Option<u64> {
        Some(self.maps()?.at(sp)?.range.end)
    }

    /// Visits every word of the `stack` that is the address of code, as a return address.
    /// `None`: they cannot be read.
    fn guess(
        &self,
        memory: &Copied,
        stack: Range<u64>,
        visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
    ) -> Option<Result<(), Unreliable>> {
        let maps = self.maps()?;
        let mut doubt = None;
        words(memory, stack, |word| {
            let word = arch::address(word);
            let pc = CodeAddr::new(word);
            if !maps.is_code(word) {
                return true;
            }
            if !self.plain.or_look(word, || !self.is_dubious(pc)) {
                doubt = Some(Unreliable {
                    at: pc,
                    why: Doubt::NoTable,
                });
                return false;
            }
            let kind = FrameKind::PerhapsCall;
            visit(Frame { pc, kind }).is_continue()
        })?;
        Some(doubt.map_or(Ok(()), Err))
    }

    /// Whether the code at `pc` is what signal handlers return to. Where the kernel or the C library
    /// has no unwind information for it, it is known by its bytes.
    fn returns_from_signal(&self, pc: CodeAddr) -> bool {
        let mut bytes = [0; SIGNAL_RETURN.len()];
        let read = self.code.memory().read_bytes(pc.get(), &mut bytes);
        read.is_some() && bytes == SIGNAL_RETURN
    }

    /// Whether the code at `pc` is none that a table knows, or what signal handlers return to.
    fn is_dubious(&self, pc: CodeAddr) -> bool {
        let (memory, mut bytes) = (self.code.memory(), [0; SIGNAL_RETURN.len()]);
        let read = memory.read_bytes(pc.get(), &mut bytes);
        // A return address may lie behind its function, a function's own address at its start.
        let has_rule = |set: &Set| {
            [pc, pc.wrapping_sub(1)]
                .iter()
                .any(|pc| set.rule(*pc) != Rule::Gap)
        };
        read.is_none()
            || bytes == SIGNAL_RETURN
            || !self.with_tables(|set| set.is_some_and(has_rule))
    }

    /// What is mapped, as of this round of looks. `None`: that cannot be said.
    fn maps(&self) -> Option<Arc<Maps>> {
        let mut known = self.maps.lock();
        if known.is_none() {
            *known = Some(Arc::new(Maps::now().ok()?));
        }
        known.clone()
    }

    /// Runs `walk` with the rules of frames, which stay as long as it runs.
    fn during_walk<T>(&self, walk: impl FnOnce(&dyn Fn(Frame) -> Rule) -> T) -> T {
        self.with_tables(|set| {
            let foot = self.foot.load(Ordering::Relaxed);
            walk(&|frame| match frame.kind {
                // It goes on in another context, if at all, which is looked at by itself.
                FrameKind::Call if foot != 0 && frame.pc.get() == foot => Rule::End,
                _ => match set.map_or(Rule::Gap, |set| set.rule(frame.lookup())) {
                    Rule::Gap if self.returns_from_signal(frame.pc) => Rule::Signal,
                    rule => rule,
                },
            })
        })
    }

    /// Runs `look` with the tables, which stay as long as it runs.
    fn with_tables<T>(&self, look: impl FnOnce(Option<&Set>) -> T) -> T {
        self.walks.fetch_add(1, Ordering::SeqCst);
        // SAFETY: this walk is counted.
        let result = look(unsafe { self.current() });
        // In the child of a `fork` by a handler that interrupted the walk, it is not counted.
        let _ = self
            .walks
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |walks| {
                walks.checked_sub(1)
            });
        result
    }

    /// The tables.
    ///
    /// # Safety
    ///
    /// They are used only while a walk that has begun before is counted.
    unsafe fn current(&self) -> Option<&Set> {
        // SAFETY: a set lives until it has been replaced and no walk is under way.
        unsafe { self.set.load(Ordering::SeqCst).as_ref() }
    }
}

// SAFETY: `unwind::walk` says `Ok` only if rules from the objects' own unwind tables led to a frame
// that they mark as outermost, or to the return address that `makecontext` puts there. Entry stubs,
// thunks and veneers are in no table. It reads only memory that can be read, of a thread that is
// stopped in the walk.
unsafe impl Unwinder for Stacks {
    type Context = Stopped;

    fn walk(
        &self,
        stopped: &Stopped,
        visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
    ) -> Result<(), Unreliable> {
        let Some(last) = stopped.asleep else {
            return self.walk_seeing(&stopped.regs, |_, _| (), visit);
        };
        stopped.inexact.set(false);
        let tables = self.number();
        if let Some(found) = last.get(tables) {
            let _ = found.visit(|| stopped.guess(), visit);
            return Ok(());
        }
        stopped.read.set(true);
        let mut keeper = last.begin();
        let sp = arch::sp(&stopped.regs);
        let end = self.end(sp).unwrap_or(sp);
        let memory = Copied::stack(sp, end);
        let mut walked = self.walk_copied(&stopped.regs, &memory, &mut |frame| {
            keeper.push(frame, visit(frame))
        });
        if let Err(doubt) = walked {
            stopped.guess();
            // As it would be for want of a register.
            if doubt.why == Doubt::Corrupt && self.returns_by_memory(&stopped.regs) {
                keeper.guess();
                let mut guess = |frame| keeper.push(frame, visit(frame));
                walked = self
                    .guess(&memory, sp..end, &mut guess)
                    .unwrap_or(Err(doubt));
            }
        }
        if walked.is_ok() && self.number() == tables {
            keeper.finish(tables);
        }
        walked
    }

    /// Of a direct call. If it went to an entry of a procedure linkage table, or to a veneer, the
    /// function is the one that this leads to now: until it has been called once, that may be the
    /// dynamic linker's resolver.
    fn called(&self, _: &Stopped, _: usize, frame: Frame) -> Option<CodeAddr> {
        if frame.kind == FrameKind::Interrupted {
            return None;
        }
        self.with_tables(|set| called(set?, &self.code, frame.pc))
    }
}

/// Visits words of a stack, as [`Stacks::words`] does, that are read from `memory`.
fn words(memory: &Copied, stack: Range<u64>, mut visit: impl FnMut(u64) -> bool) -> Option<bool> {
    let mut addr = stack.start.next_multiple_of(8);
    if stack.end - addr > MAX_GUESSED {
        return None;
    }
    while addr < stack.end {
        for word in memory.words(addr)? {
            if !visit(word) {
                return Some(false);
            }
            addr += 8;
            if addr >= stack.end {
                break;
            }
        }
    }
    Some(true)
}

/// What was called by the call that ends at `return_address`, if its bytes tell.
fn called(set: &Set, pages: &CodePages, return_address: CodeAddr) -> Option<CodeAddr> {
    let memory = pages.memory();
    let mut buffer = [0; calls::SLOT_CALL_LEN];
    // A text may begin right before the shorter call.
    let len = [calls::SLOT_CALL_LEN, calls::CALL_LEN]
        .into_iter()
        .find(|&len| {
            let at = return_address.wrapping_sub(len as u64);
            code(set, &memory, at, &mut buffer[..len]).is_some_and(|bytes| bytes.len() == len)
        })?;
    let before = &buffer[..len];
    let base = set.object(return_address)?.base;
    let slot = before
        .try_into()
        .ok()
        .and_then(|before| calls::called_slot(base, return_address, before))
        .filter(|slot| set.is_constant(*slot));
    let target = match slot {
        Some(slot) => word(&memory, slot)?,
        None => calls::called(return_address, *before.last_chunk()?)?,
    };
    let mut entry = [0; calls::MAX_LINKAGE];
    let entry = code(set, &memory, target, &mut entry);
    let slot = entry.and_then(|entry| calls::linkage_slot(set.object(target)?.base, target, entry));
    Some(match slot {
        Some(slot) => word(&memory, slot)?,
        None => entry
            .and_then(|entry| calls::stub_target(target, entry))
            .unwrap_or(target),
    })
}

/// The address that stands at `slot`.
fn word(memory: &Memory<impl Fn(u64) -> bool>, slot: u64) -> Option<CodeAddr> {
    let mut address = [0; 8];
    memory.read_bytes(slot, &mut address)?;
    Some(CodeAddr::new(u64::from_le_bytes(address)))
}

/// The code at `at`: as much of it as `buffer` has room for, and as lies before the text ends.
/// `None` if it is in no table's text, or cannot be read.
fn code<'a>(
    set: &Set,
    memory: &Memory<impl Fn(u64) -> bool>,
    at: CodeAddr,
    buffer: &'a mut [u8],
) -> Option<&'a [u8]> {
    let left = set
        .object(at)?
        .table
        .text()
        .end()
        .get()
        .checked_sub(at.get())?;
    let len = buffer
        .len()
        .min(usize::try_from(left).unwrap_or(usize::MAX));
    let bytes = buffer.get_mut(..len)?;
    memory.read_bytes(at.get(), bytes)?;
    Some(bytes)
}

/// Where functions that `makecontext` was given return to: the first byte of a function of the C
/// library's, so that what stands before it has nothing to do with it. 0: there is no such place.
#[cfg(target_env = "gnu")]
fn foot() -> u64 {
    extern "C" fn nothing() {}
    let mut stack = [0_u64; 256];
    // SAFETY: all-zero is a valid value of this plain struct. The context is never gone to, so that
    // nothing happens but that `makecontext` writes a return address to the top of its stack, which
    // is as long as it says.
    unsafe {
        let mut context: libc::ucontext_t = core::mem::zeroed();
        if libc::getcontext(&raw mut context) != 0 {
            return 0;
        }
        context.uc_stack.ss_sp = stack.as_mut_ptr().cast();
        context.uc_stack.ss_size = size_of_val(&stack);
        context.uc_link = ptr::null_mut();
        ucontext::unnoted(|| libc::makecontext(&raw mut context, nothing, 0));
        registers::foot(&context)
    }
}

#[cfg(not(target_env = "gnu"))]
fn foot() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::{Cell, UnsafeCell};
    use core::ffi::{c_int, c_void};
    use core::hint::black_box;

    /// The tables of this process.
    fn stacks() -> Stacks {
        let (objects, stacks) = (Objects::default(), Stacks::default());
        objects.refresh(&mut |_| ());
        stacks.update(&objects, &[]).expect("memory");
        stacks
    }

    /// The registers here, as they are after a call.
    macro_rules! regs_here {
        () => {{
            // SAFETY: all-zero is a valid value of this plain struct, and `getcontext` fills it.
            let mut context: libc::ucontext_t = unsafe { core::mem::zeroed() };
            // SAFETY: the structure is a valid one.
            assert_eq!(unsafe { libc::getcontext(&raw mut context) }, 0);
            registers::interrupted(&context)
        }};
    }

    /// Walks from `regs`; the addresses that the frames' calls went to.
    fn calls_of(stacks: &Stacks, regs: &Regs) -> Vec<Option<CodeAddr>> {
        let mut all = Vec::new();
        let walked = stacks.walk_call(regs, &mut |frame| {
            all.push(stacks.called(&(*regs).into(), all.len(), frame));
            ControlFlow::Continue(())
        });
        assert_eq!(walked, Ok(()));
        all
    }

    #[inline(never)]
    fn inner(stacks: &Stacks) -> Vec<Option<CodeAddr>> {
        let regs = regs_here!();
        black_box(calls_of(stacks, &regs))
    }

    #[inline(never)]
    fn outer(stacks: &Stacks) -> Vec<Option<CodeAddr>> {
        black_box(inner(black_box(stacks)))
    }

    #[test]
    fn a_direct_call_tells_what_it_called() {
        // Of two entries that a function may have, the second one is called.
        let is = |called: Option<CodeAddr>, function: fn(&Stacks) -> Vec<Option<CodeAddr>>| {
            let start = function as *const () as u64;
            called.is_some_and(|called| (start..=start + 8).contains(&called.get()))
        };
        let called = outer(&stacks());
        // Here, `inner` has called `getcontext`.
        assert!(is(called[1], inner) && is(called[2], outer), "{called:x?}");
    }

    // SAFETY: defined for each processor (`arch/…/calls.rs`), with the signature of qsort.
    unsafe extern "C" {
        fn klp_test_call_by_plt(
            base: *mut c_void,
            count: usize,
            size: usize,
            compare: extern "C" fn(*const c_void, *const c_void) -> c_int,
        );
        fn klp_test_called_by_plt();
    }

    std::thread_local! {
        static CALLED: UnsafeCell<Vec<(Frame, Option<CodeAddr>)>> = const { UnsafeCell::new(Vec::new()) };
    }

    extern "C" fn compare(_: *const c_void, _: *const c_void) -> c_int {
        let (stacks, regs) = (stacks(), regs_here!());
        let mut all = Vec::new();
        let walked = stacks.walk_call(&regs, &mut |frame| {
            all.push((frame, stacks.called(&regs.into(), all.len(), frame)));
            ControlFlow::Continue(())
        });
        assert_eq!(walked, Ok(()));
        // SAFETY: the thread's own, and not in use elsewhere.
        CALLED.with(|called| unsafe { *called.get() = all });
        0
    }

    #[test]
    fn a_call_by_a_linkage_table_tells_the_function() {
        let mut two = [2_u8, 1];
        // SAFETY: an array of two elements of one byte.
        unsafe { klp_test_call_by_plt(two.as_mut_ptr().cast(), two.len(), 1, compare) };
        // SAFETY: as in `compare`.
        let all = CALLED.with(|called| unsafe { core::mem::take(&mut *called.get()) });
        let behind = CodeAddr::new(klp_test_called_by_plt as *const () as u64);
        let (_, called) = all
            .iter()
            .find(|(frame, _)| frame.pc == behind)
            .expect("it is on the stack");
        assert_eq!(
            *called,
            Some(CodeAddr::new(libc::qsort as *const () as u64))
        );
    }

    #[test]
    fn what_is_no_code_was_not_called() {
        let (stacks, data) = (stacks(), [0xe8_u8; 32]);
        let frame = |pc, kind| Frame {
            pc: CodeAddr::new(pc),
            kind,
        };
        for pc in [
            0,
            5,
            0x1000,
            data.as_ptr() as u64 + 16,
            u64::MAX - 7,
            u64::MAX,
        ] {
            assert_eq!(
                stacks.called(&Regs::default().into(), 1, frame(pc, FrameKind::Call)),
                None,
                "{pc:#x}"
            );
        }
        let interrupted = frame(
            klp_test_called_by_plt as *const () as u64,
            FrameKind::Interrupted,
        );
        assert_eq!(stacks.called(&Regs::default().into(), 0, interrupted), None);
    }

    /// How many frames there are from here on.
    #[inline(never)]
    fn frames(stacks: &Stacks) -> usize {
        let (mut frames, regs) = (0, regs_here!());
        let walked = stacks.walk_call(&regs, &mut |_| {
            frames += 1;
            ControlFlow::Continue(())
        });
        assert_eq!(walked, Ok(()));
        frames
    }

    #[inline(never)]
    fn deep(depth: usize, stacks: &Stacks) -> usize {
        if depth == 0 {
            black_box(frames(stacks))
        } else {
            black_box(deep(depth - 1, black_box(stacks)))
        }
    }

    #[test]
    fn a_deep_recursion_is_walked_to_its_end() {
        let run = || assert!(deep(200_000, &stacks()) > 200_000);
        let thread = std::thread::Builder::new()
            .stack_size(1 << 28)
            .spawn(run)
            .expect("a thread");
        thread.join().expect("no panic");
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn the_stack_of_a_coroutine_ends() {
        std::thread_local! {
            // SAFETY: all-zero is a valid value of these plain structs.
            static CONTEXTS: UnsafeCell<[libc::ucontext_t; 2]> = const { UnsafeCell::new(unsafe { core::mem::zeroed() }) };
            static FRAMES: Cell<usize> = const { Cell::new(0) };
            static LINKED: Cell<bool> = const { Cell::new(false) };
        }
        extern "C" fn coroutine() {
            FRAMES.set(deep(3, &stacks()));
            if !LINKED.get() {
                // SAFETY: the caller waits there.
                CONTEXTS.with(|contexts| unsafe { libc::setcontext(contexts.get().cast()) });
            }
        }
        let mut stack = vec![0_u64; 1 << 17];
        let [caller, own] = CONTEXTS.with(|contexts| {
            let first: *mut libc::ucontext_t = contexts.get().cast();
            // SAFETY: there are two of them.
            [first, unsafe { first.add(1) }]
        });
        for linked in [false, true] {
            LINKED.set(linked);
            // SAFETY: the thread's own. The coroutine goes back to here, and its stack stays until
            // then.
            unsafe {
                assert_eq!(libc::getcontext(own), 0);
                (*own).uc_stack.ss_sp = stack.as_mut_ptr().cast();
                (*own).uc_stack.ss_size = size_of_val(&*stack);
                (*own).uc_link = if linked { caller } else { ptr::null_mut() };
                ucontext::unnoted(|| libc::makecontext(own, coroutine, 0));
                assert_eq!(libc::swapcontext(caller, own), 0);
            }
            // `frames`, `deep` four times, the coroutine and its foot.
            assert_eq!(FRAMES.get(), 7, "{linked}");
        }
        black_box(&mut stack);
    }
}
