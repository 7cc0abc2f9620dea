//! Stacks: the port [`Unwinder`], on tables of every object in the process.

use super::error::Error;
use super::objects::{Object, Objects};
use super::stop::wait_outside;
use super::sys;
use alloc::sync::Arc;
use core::cell::Cell;
use core::ops::ControlFlow;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use klp_arch_x86_64::unwind::{self, EhFrame, Regs, Rule, Table};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::port::{Frame, Unreliable, Unwinder};

/// The unwind tables of the process.
///
/// Walks read them in signal handlers, so a set of tables never changes: it is replaced, and dropped when no walk is under way.
#[derive(Default)]
pub struct Stacks {
    set: AtomicPtr<Set>,
    /// Walks under way.
    walks: AtomicU32,
}

/// Tables, sorted by their text, which does not overlap.
#[derive(Clone, Default)]
struct Set(Vec<Arc<Table>>);

impl Set {
    fn rule(&self, pc: CodeAddr) -> Rule {
        let behind = self.0.partition_point(|table| table.text().start() <= pc);
        match behind.checked_sub(1).and_then(|index| self.0.get(index)) {
            Some(table) => table.find(pc),
            None => Rule::Gap,
        }
    }
}

impl Stacks {
    /// Makes the tables those of `objects` and `images`. Not to be called by two threads at once.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`]; the tables stay as they were.
    pub(crate) fn update(&self, objects: &Objects, images: &[Arc<Table>]) -> Result<(), Error> {
        let mut tables = images.to_vec();
        for object in objects.all() {
            tables.extend(table_of(&object)?);
        }
        tables.sort_unstable_by_key(|table| table.text().start());
        let before = self.set.swap(Box::into_raw(Box::new(Set(tables))), Ordering::SeqCst);
        // ORDER(tables): a walk counts itself before it reads the pointer; whoever is not counted here reads the new one.
        wait_outside(&self.walks);
        if !before.is_null() {
            // SAFETY: it came from a box, and no walk uses it any more.
            drop(unsafe { Box::from_raw(before) });
        }
        Ok(())
    }

    /// After `fork`, in the child: no other thread is in a walk.
    pub(crate) fn reset_in_child(&self) {
        self.walks.store(0, Ordering::SeqCst);
    }

    /// Walks from `regs`; `seen` is told of every word of the stack that is read, with its address.
    pub(crate) fn walk_seeing(
        &self,
        regs: &Regs,
        seen: impl Fn(u64, u64),
        visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
    ) -> Result<(), Unreliable> {
        self.walks.fetch_add(1, Ordering::SeqCst);
        let memory = StackMemory::default();
        let read = |addr| memory.read(addr).inspect(|&value| seen(addr, value));
        let rule = |pc| self.current().map_or(Rule::Gap, |set| set.rule(pc));
        let result = unwind::walk(*regs, rule, read, visit);
        self.walks.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Walks the stack of a thread that has just made a call; see [`unwind::walk_call`].
    pub(crate) fn walk_call(
        &self,
        regs: &Regs,
        visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
    ) -> Result<(), Unreliable> {
        self.walks.fetch_add(1, Ordering::SeqCst);
        let memory = StackMemory::default();
        let rule = |pc| self.current().map_or(Rule::Gap, |set| set.rule(pc));
        let result = unwind::walk_call(*regs, rule, |addr| memory.read(addr), visit);
        self.walks.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// The tables; only to be used by whoever keeps them from being replaced.
    fn current(&self) -> Option<&Set> {
        // SAFETY: a set lives until it has been replaced and no walk is under way.
        unsafe { self.set.load(Ordering::SeqCst).as_ref() }
    }
}

// SAFETY: `unwind::walk` says `Ok` only if rules from the objects' own unwind tables led to a frame that they mark as outermost. Entry
// stubs, thunks and veneers are in no table. It reads only memory that can be read, of a thread that is stopped in the walk.
unsafe impl Unwinder for Stacks {
    type Context = Regs;

    fn walk(&self, regs: &Regs, visit: &mut dyn FnMut(Frame) -> ControlFlow<()>) -> Result<(), Unreliable> {
        self.walk_seeing(regs, |_, _| (), visit)
    }
}

/// Reads stack memory, asking the kernel first whether a page can be read.
///
/// Rules from an object's own tables lead to real stack slots only, but a stack that a bug has overwritten must not kill the
/// process here.
#[derive(Default)]
pub(crate) struct StackMemory {
    /// The page that was last found readable.
    page: Cell<Option<u64>>,
}

impl StackMemory {
    /// The eight bytes at `addr`, which must be a multiple of eight.
    pub(crate) fn read(&self, addr: u64) -> Option<u64> {
        let page = addr / sys::PAGE;
        if addr % 8 != 0 || self.page.get() != Some(page) && !sys::readable(addr) {
            return None;
        }
        self.page.set(Some(page));
        // SAFETY: the page can be read, and an aligned word does not leave it. Another thread may write the word at this moment,
        // hence volatile: no value is assumed.
        Some(unsafe { ptr::read_volatile(addr as *const u64) })
    }
}

/// The table of `object`, compiled at the first call; `None` if it has no unwind information.
pub(crate) fn table_of(object: &Object) -> Result<Option<Arc<Table>>, Error> {
    if let Some(known) = object.unwind.get() {
        return Ok(known.clone());
    }
    let table = match (eh_frame(object), object.text()) {
        (Some(section), Some(text)) => compile(section, text)?.map(Arc::new),
        _ => None,
    };
    Ok(object.unwind.get_or_init(|| table).clone())
}

/// The table for `text` from its `.eh_frame`; `None` if it is too large for one.
pub(crate) fn compile(section: EhFrame<'_>, text: TextRange) -> Result<Option<Table>, Error> {
    match unwind::compile(section, text) {
        Ok(table) => Ok(Some(table)),
        Err(unwind::TableError::OutOfMemory) => Err(Error::OutOfMemory),
        Err(_) => Ok(None),
    }
}

/// `.eh_frame`, as `.eh_frame_hdr` says where it is (Linux Standard Base, "The .eh_frame_hdr section"). Its end is not
/// said: it ends with an entry of length zero, and at the latest with its segment.
fn eh_frame(object: &Object) -> Option<EhFrame<'_>> {
    const VERSION: u8 = 1;
    const PCREL_SDATA4: u8 = 0x1b;
    let header = object.eh_frame_hdr?.start();
    let bytes = object.bytes(TextRange::new(header, 8)?)?;
    if bytes[0] != VERSION || bytes[1] != PCREL_SDATA4 {
        return None;
    }
    let distance = i32::from_le_bytes(bytes[4..8].try_into().ok()?);
    let addr = CodeAddr::new(header.wrapping_add(4).get().checked_add_signed(distance.into())?);
    let end = object.segment(addr)?.range.end();
    let bytes = object.bytes(TextRange::new(addr, end.get() - addr.get())?)?;
    Some(EhFrame { bytes, addr })
}
