//! What is so.

use crate::args::{engine, function, out, patch};
use crate::error::{Failure, answer, text};
use core::ffi::{CStr, c_char, c_int, c_void};
use klp_core::mem::Name;
use klp_core::model::Replace;
use klp_core::port::TaskState;
use std::ffi::CString;

/// `enum klp_note`.
#[repr(C)]
#[derive(Clone, Copy)]
enum Note {
    Finding = 1,
    Waiting = 2,
    Replaces = 3,
}

/// `struct klp_patch_status`.
#[repr(C)]
struct PatchStatus {
    patch: u64,
    name: *const c_char,
    enabled: c_int,
    transition: c_int,
    pending: usize,
    forced: c_int,
    replace: c_int,
    stack_order: usize,
}

/// `struct klp_blocker`.
#[repr(C)]
struct Blocker {
    task: u64,
    name: *const c_char,
    why: *const c_char,
    stack: *const *const c_char,
    depth: usize,
}

/// `struct klp_ways`.
#[repr(C)]
struct Ways {
    in_system_call: u64,
    running: u64,
    entering: u64,
    suspended: u64,
    joined: u64,
}

/// Calls `each` for all of them, until it says something.
fn for_each<T>(all: impl IntoIterator<Item = T>, mut each: impl FnMut(T) -> c_int) -> c_int {
    all.into_iter()
        .map(&mut each)
        .find(|said| *said != 0)
        .unwrap_or(0)
}

/// `klp_check` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_check(
    number: u64,
    each: Option<extern "C" fn(Note, *const c_char, *mut c_void)>,
    data: *mut c_void,
) -> c_int {
    answer(|| {
        let report = engine()?.preflight(patch(number)?)?;
        let say = |note, words: &str| {
            if let Some(each) = each {
                each(note, text(words).as_ptr(), data);
            }
        };
        let names = |note, names: &[Name]| names.iter().for_each(|name| say(note, name));
        let findings = report.findings.iter();
        findings.for_each(|finding| say(Note::Finding, &finding.to_string()));
        names(Note::Waiting, &report.waiting);
        names(Note::Replaces, &report.replaces);
        Ok(c_int::from(!report.is_ready()))
    })
}

/// `klp_status` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_status(
    each: Option<extern "C" fn(*const PatchStatus, *mut c_void) -> c_int>,
    data: *mut c_void,
) -> c_int {
    answer(|| {
        let each = function(each)?;
        Ok(for_each(engine()?.engine().status()?, |status| {
            let name = text(&status.name);
            let status = PatchStatus {
                patch: status.id.number(),
                name: name.as_ptr(),
                enabled: status.enabled.into(),
                transition: match status.transition {
                    Some(TaskState::Patched) => 1,
                    Some(TaskState::Unpatched) => 2,
                    Some(TaskState::Idle) | None => 0,
                },
                pending: status.pending,
                forced: status.forced.into(),
                replace: (status.replace != Replace::None).into(),
                stack_order: status.stack_order,
            };
            each(&raw const status, data)
        }))
    })
}

/// `klp_objects` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_objects(
    number: u64,
    each: Option<extern "C" fn(*const c_char, c_int, *mut c_void) -> c_int>,
    data: *mut c_void,
) -> c_int {
    answer(|| {
        let each = function(each)?;
        let (engine, id) = (engine()?.engine(), patch(number)?);
        let names = engine.with_patch(id, |patch| {
            let names = patch
                .objects()
                .iter()
                .map(|object| object.name().to_string());
            names.collect::<Vec<String>>()
        })?;
        let objects = names.into_iter().map(|name| {
            let patched = engine.object_patched(id, &name)?.unwrap_or(false);
            Ok((name, patched))
        });
        let objects: Vec<_> = objects.collect::<Result<_, Failure>>()?;
        Ok(for_each(objects, |(name, patched)| {
            each(text(&name).as_ptr(), patched.into(), data)
        }))
    })
}

/// `klp_blockers` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_blockers(
    number: u64,
    each: Option<extern "C" fn(*const Blocker, *mut c_void) -> c_int>,
    data: *mut c_void,
) -> c_int {
    answer(|| {
        let each = function(each)?;
        let blockers = engine()?.engine().blockers(patch(number)?)?;
        Ok(for_each(blockers, |blocker| {
            let name = text(blocker.name.as_ref());
            let words = blocker.to_string();
            let why = text(words.lines().next().unwrap_or_default());
            let frames: Vec<CString> = blocker.stack.iter().map(|frame| text(frame)).collect();
            let stack: Vec<_> = frames.iter().map(|frame| CStr::as_ptr(frame)).collect();
            let blocker = Blocker {
                task: blocker.task.0,
                name: name.as_ptr(),
                why: why.as_ptr(),
                stack: stack.as_ptr(),
                depth: stack.len(),
            };
            each(&raw const blocker, data)
        }))
    })
}

/// `klp_ways` of `<klp.h>`.
///
/// # Safety
///
/// `ways` is null or has room.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_ways(ways: *mut Ways) -> c_int {
    answer(|| {
        let now = engine()?.ways();
        // SAFETY: the caller's promise.
        *unsafe { out(ways, "where the numbers are to go") }? = Ways {
            in_system_call: now.in_system_call,
            running: now.running,
            entering: now.entering,
            suspended: now.suspended,
            joined: now.joined,
        };
        Ok(0)
    })
}
