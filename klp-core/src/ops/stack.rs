//! The lock-free stack of a function's replacements (kernel: `func_stack`, an RCU list).
//!
//! The engine, under its lock, is the only writer; handlers read at any time. A node leaves the
//! stack before it leaves memory, and between the two every handler that might have seen it has
//! ended: [`Writer`] and [`Synchronized`] see to that order.

use super::writer::{Synchronized, Writer};
use crate::addr::{CodeAddr, TextRange};
use crate::mem::{OutOfMemory, try_vec};
use crate::port::TaskState;
use crate::sync::{
    AtomicBool, AtomicPtr, Ordering, STACK_READ, STACK_WRITE, TRANSITION_READ, TRANSITION_WRITE,
    WrittenOnce,
};
use alloc::boxed::Box;
use core::ptr::{self, NonNull};
// Only the writer looks at it: nothing to be model-checked.
use core::sync::atomic::AtomicBool as PlainBool;

/// One replacement of a function, as the handler sees it (kernel: the internal part of
/// `struct klp_func`).
#[derive(Debug)]
pub struct FuncNode {
    next: AtomicPtr<FuncNode>,
    transition: AtomicBool,
    /// It is on a stack. For the writer.
    linked: PlainBool,
    code: WrittenOnce<Code>,
}

/// The code that runs when a node is chosen.
#[derive(Clone, Copy, Debug)]
struct Code {
    range: TextRange,
    /// It is the original (kernel: `nop`).
    original: bool,
}

impl FuncNode {
    /// A replacement by the function in `range`.
    #[must_use]
    pub fn new(range: TextRange) -> Self {
        Self::with_code(Code {
            range,
            original: false,
        })
    }

    /// A replacement by the original, which is in `range` (kernel: `nop`).
    #[must_use]
    pub fn nop(range: TextRange) -> Self {
        Self::with_code(Code {
            range,
            original: true,
        })
    }

    fn with_code(code: Code) -> Self {
        Self {
            next: AtomicPtr::new(ptr::null_mut()),
            transition: AtomicBool::new(false),
            linked: PlainBool::new(false),
            code: WrittenOnce::new(code),
        }
    }

    /// The code that runs when this node is chosen.
    #[must_use]
    pub fn range(&self) -> TextRange {
        self.code.get().range
    }

    /// Where a call goes when this node is chosen; `None`: to the original.
    #[inline]
    #[must_use]
    pub fn target(&self) -> Option<CodeAddr> {
        let code = self.code.get();
        (!code.original).then_some(code.range.start())
    }

    /// Whether the state of the calling task decides between this node and what stands below
    /// (kernel: `func->transition`).
    #[must_use]
    pub fn in_transition(&self) -> bool {
        self.transition.load(Ordering::Relaxed)
    }

    /// Sets [`in_transition`](FuncNode::in_transition). Where several nodes of a stack enter a
    /// transition together, the lower ones do so first: who sees that the upper one has sees that
    /// all have.
    pub fn set_transition(&self, writer: &mut Writer, on: bool) {
        let _ = writer;
        self.transition.store(on, TRANSITION_WRITE);
    }
}

/// The nodes of one patch: one allocation, nodes at fixed addresses.
///
/// # Invariants
///
/// `nodes` came from a box that nobody else frees. While `published`, stacks or handlers may point
/// there: the memory stays until it is [released](Nodes::release), or for ever. `linked` of the
/// nodes, those that say so, are on stacks.
#[derive(Debug)]
#[must_use]
pub struct Nodes {
    nodes: NonNull<[FuncNode]>,
    linked: usize,
    published: bool,
}

// SAFETY: it is a box of `FuncNode`s, which are `Send` and `Sync`.
unsafe impl Send for Nodes {}
// SAFETY: as above.
unsafe impl Sync for Nodes {}

impl Nodes {
    /// Nodes for the replacements in `ranges`, in that order, on no stack yet.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(ranges: impl ExactSizeIterator<Item = TextRange>) -> Result<Self, OutOfMemory> {
        Self::from_nodes(ranges.map(FuncNode::new))
    }

    /// Nodes that lead back: to an older replacement, or to the original if there is none. Each
    /// item is the original and the older replacement.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn back(
        ranges: impl ExactSizeIterator<Item = (TextRange, Option<TextRange>)>,
    ) -> Result<Self, OutOfMemory> {
        Self::from_nodes(
            ranges.map(|(original, older)| {
                older.map_or_else(|| FuncNode::nop(original), FuncNode::new)
            }),
        )
    }

    fn from_nodes(all: impl ExactSizeIterator<Item = FuncNode>) -> Result<Self, OutOfMemory> {
        let mut nodes = try_vec(all.len())?;
        nodes.extend(all);
        let nodes = NonNull::from(Box::leak(nodes.into_boxed_slice()));
        Ok(Self {
            nodes,
            linked: 0,
            published: false,
        })
    }

    /// The node of the `index`-th replacement.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&FuncNode> {
        self.as_slice().get(index)
    }

    /// All nodes.
    pub fn iter(&self) -> core::slice::Iter<'_, FuncNode> {
        self.as_slice().iter()
    }

    fn as_slice(&self) -> &[FuncNode] {
        // SAFETY: by the invariant, the nodes are there as long as this is.
        unsafe { self.nodes.as_ref() }
    }

    /// Lets the memory go when this is dropped, if no node is on a stack any more.
    pub fn release(&mut self, proof: &Synchronized<'_>) {
        // The proof borrows the writer, so it was made after the last removal.
        let _ = proof;
        self.published = self.linked != 0;
    }
}

impl<'a> IntoIterator for &'a Nodes {
    type Item = &'a FuncNode;
    type IntoIter = core::slice::Iter<'a, FuncNode>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // Without the proof that `release` asks for, published memory is leaked rather than pulled
        // away.
        if !self.published {
            // SAFETY: by the invariant they came from a box, and nobody points there.
            drop(unsafe { Box::from_raw(self.nodes.as_ptr()) });
        }
    }
}

/// A function's replacements, newest on top.
///
/// # Invariants
///
/// Every pointer is null or leads to a node of a [`Nodes`] that counts it as linked.
#[derive(Debug)]
pub struct FuncStack {
    head: AtomicPtr<FuncNode>,
}

impl Default for FuncStack {
    fn default() -> Self {
        Self::new()
    }
}

impl FuncStack {
    /// An empty stack.
    #[must_use]
    pub fn new() -> Self {
        Self {
            head: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Puts `nodes[index]` on top; nothing happens if it is on a stack already.
    pub fn push(&self, writer: &mut Writer, nodes: &mut Nodes, index: usize) {
        let _ = writer;
        if nodes.as_slice()[index].linked.swap(true, Ordering::Relaxed) {
            return;
        }
        nodes.linked += 1;
        nodes.published = true;
        let node = &nodes.as_slice()[index];
        node.next
            .store(self.head.load(Ordering::Relaxed), Ordering::Relaxed);
        // ORDER(stack): release; the partner is the handler's read of the head.
        self.head.store(ptr::from_ref(node).cast_mut(), STACK_WRITE);
    }

    /// Takes `nodes[index]` off; nothing happens if it is not on this stack.
    pub fn remove(&self, writer: &mut Writer, nodes: &mut Nodes, index: usize) {
        let _ = writer;
        let node = &nodes.as_slice()[index];
        let mut link = &self.head;
        // SAFETY: the writer is borrowed.
        while let Some(at) = unsafe { follow(link, Ordering::Relaxed) } {
            if ptr::eq(at, node) {
                // ORDER(stack): release; the partner is the handler's read of this link.
                link.store(node.next.load(Ordering::Relaxed), STACK_WRITE);
                node.linked.store(false, Ordering::Relaxed);
                nodes.linked -= 1;
                break;
            }
            link = &at.next;
        }
    }

    /// The replacements, newest first. None leaves memory while the writer is borrowed.
    pub fn nodes<'a>(&'a self, writer: &'a Writer) -> impl Iterator<Item = &'a FuncNode> {
        let _ = writer;
        // SAFETY: the writer is borrowed as long as the nodes are used.
        unsafe { self.peek() }
    }

    /// The same, without the writer.
    ///
    /// # Safety
    ///
    /// Nobody borrows the writer exclusively while the nodes are used.
    pub(crate) unsafe fn peek(&self) -> impl Iterator<Item = &FuncNode> {
        // SAFETY: the caller's promise.
        let node = |link| unsafe { follow(link, STACK_READ) };
        core::iter::successors(node(&self.head), move |above| node(&above.next))
    }

    /// Whether there are no replacements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed).is_null()
    }

    /// Where a call by a task in the state that `state` tells goes; `None`: to the original.
    ///
    /// # Safety
    ///
    /// As for [`Ops::select`](super::Ops::select).
    #[inline]
    pub unsafe fn select(&self, state: impl FnOnce() -> TaskState) -> Option<CodeAddr> {
        // ORDER(stack): acquire; the partners are the writes in `push` and `remove`.
        // SAFETY: this is in a run of the handler.
        let mut node = unsafe { follow(&self.head, STACK_READ) }?;
        // ORDER(transition): acquire; the partner is the write in `set_transition`. The task's
        // state is read after it.
        if node.transition.load(TRANSITION_READ) && state() == TaskState::Unpatched {
            // For this task none of the patches in transition is there yet, or any more.
            loop {
                // SAFETY: as above.
                node = unsafe { follow(&node.next, STACK_READ) }?;
                if !node.transition.load(TRANSITION_READ) {
                    break;
                }
            }
        }
        node.target()
    }
}

/// The node that `link`, of a stack or of a node that was on it, leads to.
///
/// # Safety
///
/// The node is not used any more when the run of the handler ends in which this is called, or when
/// the stack's writer is borrowed exclusively.
#[inline]
unsafe fn follow(link: &AtomicPtr<FuncNode>, order: Ordering) -> Option<&FuncNode> {
    // SAFETY: by `FuncStack`'s invariant the pointer is null or leads to a node that is linked, or
    // was when the run of the handler began that reads here. The memory of such a node stays until
    // it is removed, and released with a `Synchronized` that was made after that.
    unsafe { link.load(order).as_ref() }
}
