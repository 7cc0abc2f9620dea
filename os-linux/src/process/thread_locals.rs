//! Thread-local variables of the objects, which patches may use ("ELF Handling For Thread-Local
//! Storage", 3).
//!
//! Each thread has a block of variables for each object. Those of the objects that are loaded at the
//! start lie at the same distance from each thread's pointer, and so do those of libraries whose code
//! counts on it; of others, a thread gets its block when it first asks for it, anywhere.

use super::arch::thread::{POINTER_BIAS, thread_pointer};
use super::error::Error;
use super::loaded;
use super::objects::Object;
use super::peek::Copied;
use super::symbol_table::Symbol;
use core::ops::ControlFlow;
use klp_core::model::VMLINUX;
use klp_core::port::ThreadLocal;

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
    let Some(block) = block_of(object.tls_module) else {
        return Ok(None);
    };
    let block = block.wrapping_sub(thread_pointer().wrapping_add(POINTER_BIAS));
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

/// The calling thread's block for an object, if it has one. To ask does not give it one: then the
/// dynamic linker would decide that the block may lie anywhere.
fn block_of(module: u64) -> Option<u64> {
    let mut block = None;
    loaded::each(&mut |info| {
        if info.dlpi_tls_modid as u64 != module {
            return ControlFlow::Continue(());
        }
        block = Some(info.dlpi_tls_data.addr() as u64).filter(|block| *block != 0);
        ControlFlow::Break(())
    });
    block
}
