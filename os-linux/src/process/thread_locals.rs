//! Thread-local variables of the objects, which patches may use ("ELF Handling For Thread-Local
//! Storage", 3).
//!
//! Each thread has a block of variables for each object. `__tls_get_addr` finds any of them. Those
//! of the objects that are loaded at the start lie at the same distance from each thread's pointer,
//! and so do those of libraries whose code counts on it; of others, a thread gets its block when it
//! first asks for it, anywhere.

use super::arch::thread::{BLOCK_BIAS, POINTER_BIAS, thread_pointer};
use super::error::Error;
use super::objects::Object;
use super::peek::Copied;
use super::symbol_table::Symbol;
use klp_core::model::VMLINUX;
use klp_core::port::ThreadLocal;

/// What `__tls_get_addr` is called with.
#[repr(C)]
struct Index {
    module: u64,
    offset: u64,
}

unsafe extern "C" {
    fn __tls_get_addr(index: *const Index) -> *const u8;
}

/// Where each thread has `symbol`, a thread-local variable of `object`.
///
/// # Errors
///
/// As for [`Object::file`].
pub(crate) fn find(object: &Object, symbol: &Symbol) -> Result<ThreadLocal, Error> {
    let offset = symbol.addr;
    let block = fixed_block(object)?;
    Ok(ThreadLocal {
        module: object.tls_module,
        offset,
        from_thread_pointer: block.map(|block| block.wrapping_add(offset) as i64),
    })
}

/// How far the block of `object` is from the thread pointer, if it is proven to be the same in all
/// threads.
fn fixed_block(object: &Object) -> Result<Option<u64>, Error> {
    let is_executable = object.name == VMLINUX;
    let places = &object.file()?.thread_offsets;
    // Who asks for the block of a library has the dynamic linker decide that it may lie anywhere.
    if !is_executable && places.is_empty() {
        return Ok(None);
    }
    let pointer = thread_pointer().wrapping_add(POINTER_BIAS);
    let block = block_of(object.tls_module).wrapping_sub(pointer);
    // The executable's code has the distance in its instructions. For that of a library, the dynamic
    // linker has written it down; what it has written for another object's variable is another
    // number, as no two are at one place.
    let memory = Copied::new();
    let written = |&(place, offset): &(u64, u64)| {
        let written = memory.read(object.in_memory(place).get());
        written == Some(block.wrapping_add(offset))
    };
    Ok((is_executable || places.iter().any(written)).then_some(block))
}

/// The calling thread's block for an object that is loaded and has thread-local variables.
fn block_of(module: u64) -> u64 {
    let index = Index {
        module,
        offset: BLOCK_BIAS.wrapping_neg(),
    };
    // SAFETY: the dynamic linker gave the object this number, and it is held.
    unsafe { __tls_get_addr(&raw const index) }.addr() as u64
}
