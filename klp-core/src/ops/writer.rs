//! The one writer of what runs of the handler look at, and the proof that such runs have ended.

use crate::port::Tracer;
use core::marker::PhantomData;

/// The right to change what runs of the handler look at: stacks of functions, and what is lent to
/// tasks. An engine has one, under its lock.
///
/// What runs of the handler look at leaves memory in three steps, and their order is a matter of
/// types:
///
/// 1. It is taken away, which borrows the [`Writer`] exclusively: a node leaves its stack, a loan
///    is withdrawn.
/// 2. [`Writer::synchronize`] waits for the runs that may have seen it. The proof of that, a
///    [`Synchronized`], borrows the writer.
/// 3. It is released with the proof, and its memory may go.
///
/// So nothing is taken away while a proof lives, and a proof covers all that was taken away when it
/// is used:
///
/// ```
/// # use klp_core::addr::{CodeAddr, TextRange};
/// # use klp_core::mem::try_box;
/// # use klp_core::ops::{Nodes, Ops, Writer};
/// # use klp_core::port::Platform;
/// # use klp_core::sim::SimOs;
/// # let os = SimOs::new();
/// # let ops = Ops::leak(try_box(Ops::new(CodeAddr::new(0x1000))).unwrap());
/// # let new = TextRange::new(CodeAddr::new(0x2000), 8).unwrap();
/// # let mut nodes = Nodes::new([new].into_iter()).unwrap();
/// // SAFETY: there is no other writer, and no handler reads this stack.
/// let mut writer = unsafe { Writer::new() };
/// ops.stack().push(&mut writer, &mut nodes, 0);
/// ops.stack().remove(&mut writer, &mut nodes, 0);
/// let proof = writer.synchronize(os.tracer());
/// nodes.release(&proof);
/// ```
///
/// In another order it does not compile:
///
/// ```compile_fail,E0502
/// # use klp_core::addr::{CodeAddr, TextRange};
/// # use klp_core::mem::try_box;
/// # use klp_core::ops::{Nodes, Ops, Writer};
/// # use klp_core::port::Platform;
/// # use klp_core::sim::SimOs;
/// # let os = SimOs::new();
/// # let ops = Ops::leak(try_box(Ops::new(CodeAddr::new(0x1000))).unwrap());
/// # let new = TextRange::new(CodeAddr::new(0x2000), 8).unwrap();
/// # let mut nodes = Nodes::new([new].into_iter()).unwrap();
/// // SAFETY: there is no other writer, and no handler reads this stack.
/// let mut writer = unsafe { Writer::new() };
/// ops.stack().push(&mut writer, &mut nodes, 0);
/// let proof = writer.synchronize(os.tracer());
/// ops.stack().remove(&mut writer, &mut nodes, 0); // after the proof was made
/// nodes.release(&proof);
/// ```
///
/// Nor does keeping a node while nodes may be removed:
///
/// ```compile_fail,E0502
/// # use klp_core::{addr::CodeAddr, mem::try_box, ops::{Nodes, Ops, Writer}};
/// fn remove(ops: &'static Ops, writer: &mut Writer, nodes: &mut Nodes) {
///     let top = ops.stack().nodes(writer).next();
///     ops.stack().remove(writer, nodes, 0);
///     println!("{top:?}");
/// }
/// ```
#[derive(Debug)]
pub struct Writer(());

impl Writer {
    /// A writer.
    ///
    /// # Safety
    ///
    /// Stacks, [`Nodes`](super::Nodes) and tasks that it is used with are used with no other
    /// writer. The only tracer that it is used with is the one by whose sites the handler comes to
    /// read those stacks.
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self(())
    }

    /// Waits until every run of the handler that began before has ended.
    pub fn synchronize(&self, tracer: &impl Tracer) -> Synchronized<'_> {
        tracer.synchronize();
        Synchronized(PhantomData)
    }
}

/// Proof that every run of the handler has ended that may have seen what is taken away by now; see
/// [`Writer`].
#[derive(Debug)]
#[must_use]
pub struct Synchronized<'w>(PhantomData<&'w Writer>);
