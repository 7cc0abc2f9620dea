//! The suite of [`Unwinder`].

use crate::port::{Doubt, Frame, Unreliable, Unwinder};
use core::ops::ControlFlow;

/// A stopped task whose stack the porter knows.
#[derive(Debug)]
pub struct Case<'a, C: ?Sized> {
    /// Names the case in messages.
    pub name: &'a str,
    /// The task.
    pub context: &'a C,
    /// The frames that are to be visited, from the innermost one; at least one.
    pub frames: &'a [Frame],
    /// If the walk cannot be reliable: why.
    pub doubt: Option<Doubt>,
}

/// Checks an implementation of [`Unwinder`] on stopped tasks. There should be a reliable one, and
/// one for each [`Doubt`] that the unwinder can have.
///
/// # Panics
///
/// If the implementation breaks the contract; the message says where.
pub fn check<U: Unwinder>(unwinder: &U, cases: &[Case<'_, U::Context>]) {
    assert!(
        cases.iter().any(|case| case.doubt.is_none()),
        "a case of a reliable stack is needed to check anything"
    );
    for case in cases {
        assert!(
            !case.frames.is_empty(),
            "{}: every task is somewhere",
            case.name
        );
        // Twice: a walk changes nothing.
        for _ in 0..2 {
            check_walk(unwinder, case);
        }
        for stop in 1..=case.frames.len() {
            check_break(unwinder, case, stop);
        }
    }
}

fn check_walk<U: Unwinder>(unwinder: &U, case: &Case<'_, U::Context>) {
    let Case {
        name,
        context,
        frames,
        doubt,
    } = *case;
    let mut count = 0;
    let result = unwinder.walk(context, &mut |frame| {
        assert_eq!(Some(&frame), frames.get(count), "{name}: frame {count}");
        count += 1;
        ControlFlow::Continue(())
    });
    assert_eq!(count, frames.len(), "{name}: number of frames");
    assert_eq!(
        result.map_err(|Unreliable { why, .. }| why),
        doubt.map_or(Ok(()), Err),
        "{name}"
    );
}

/// A visitor that breaks off sees no more frames, and what lies beyond is no doubt.
fn check_break<U: Unwinder>(unwinder: &U, case: &Case<'_, U::Context>, stop: usize) {
    let mut count = 0;
    let result = unwinder.walk(case.context, &mut |_| {
        count += 1;
        if count == stop {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!(
        count, stop,
        "{}: visited after the visitor broke off",
        case.name
    );
    assert_eq!(
        result,
        Ok(()),
        "{}: broken off after frame {stop}",
        case.name
    );
}
