//! The steps of random sequences.

use super::patches::PATCHES;
use klp_core::sim::Sleep;
use proptest::prelude::*;

/// One step of a sequence.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Enable(usize),
    Disable(usize),
    /// Several as one, in this order.
    EnableAll(Vec<usize>),
    DisableAll(Vec<usize>),
    Reverse(usize),
    Force(usize),
    Kick(usize),
    Blockers(usize),
    AddOrRemove(usize),
    /// The module is loaded.
    Insmod,
    /// It is unloaded, if no task is in it.
    Rmmod,
    Poll,
    /// Every task finishes what it is doing; a poll must then complete.
    RestAll,
    Task(usize, TaskOp),
    Spawn,
    /// During the next operation of the engine, this call of a pre-patch callback says no.
    Veto(u32),
    /// During the next operation of the engine, this call of a port fails.
    Fault(u64),
    /// During the next operation of the engine, tasks run.
    Noise(u64),
}

/// What a task does, or what is done to it.
#[derive(Clone, Debug)]
pub(crate) enum TaskOp {
    Call(usize),
    BeginCall(usize),
    Step,
    Return,
    Cold,
    /// To code of the patch that belongs to no function.
    Helper,
    /// It comes to the jump in which the function ends, number so and so; if that goes anywhere, to
    /// that function.
    End(usize, usize),
    /// It takes such a jump, until it is in a body.
    Jump(usize, usize),
    /// Its stack becomes one that no task runs.
    Suspend,
    /// It goes on, by that task.
    Resume(usize),
    Child,
    Fork,
    Exit,
    Sleep(Sleep),
    Unreliable(bool),
    Unstoppable(bool),
}

fn task_op() -> impl Strategy<Value = TaskOp> {
    prop_oneof![
        6 => any::<usize>().prop_map(TaskOp::Call),
        4 => any::<usize>().prop_map(TaskOp::BeginCall),
        8 => Just(TaskOp::Step),
        6 => Just(TaskOp::Return),
        4 => Just(TaskOp::Cold),
        8 => Just(TaskOp::Helper),
        4 => any::<(usize, usize)>().prop_map(|(end, func)| TaskOp::End(end, func)),
        6 => any::<(usize, usize)>().prop_map(|(end, func)| TaskOp::Jump(end, func)),
        1 => Just(TaskOp::Suspend),
        1 => any::<usize>().prop_map(TaskOp::Resume),
        1 => Just(TaskOp::Child),
        1 => Just(TaskOp::Fork),
        1 => Just(TaskOp::Exit),
        1 => prop_oneof![Just(Sleep::Awake), Just(Sleep::Interruptible), Just(Sleep::Deep)].prop_map(TaskOp::Sleep),
        1 => any::<bool>().prop_map(TaskOp::Unreliable),
        1 => any::<bool>().prop_map(TaskOp::Unstoppable),
    ]
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let patch = || 0..PATCHES;
    // Often of few, so that some are accepted; and a patch may be there twice.
    let several = || proptest::collection::vec(patch(), 0..4);
    prop_oneof![
        10 => patch().prop_map(Op::Enable),
        6 => patch().prop_map(Op::Disable),
        8 => several().prop_map(Op::EnableAll),
        4 => several().prop_map(Op::DisableAll),
        4 => patch().prop_map(Op::Reverse),
        2 => patch().prop_map(Op::Force),
        1 => patch().prop_map(Op::Kick),
        2 => patch().prop_map(Op::Blockers),
        4 => patch().prop_map(Op::AddOrRemove),
        5 => Just(Op::Insmod),
        4 => Just(Op::Rmmod),
        8 => Just(Op::Poll),
        2 => (1u32..4).prop_map(Op::Veto),
        2 => Just(Op::RestAll),
        40 => (any::<usize>(), task_op()).prop_map(|(task, op)| Op::Task(task, op)),
        2 => Just(Op::Spawn),
        3 => (1u64..40).prop_map(Op::Fault),
        5 => any::<u64>().prop_map(Op::Noise),
    ]
}
