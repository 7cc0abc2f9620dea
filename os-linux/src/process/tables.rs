//! Unwind tables of objects and images, from their `.eh_frame`.

use super::arch::{EhFrame, Table, unwind};
use super::error::Error;
use super::objects::Object;
use alloc::sync::Arc;
use klp_core::addr::{CodeAddr, TextRange};

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

/// `.eh_frame`, by what is mapped, or else by the file's section headers.
fn eh_frame(object: &Object) -> Option<EhFrame<'_>> {
    indexed_eh_frame(object).or_else(|| {
        let section = object.file().ok()?.section(".eh_frame")?;
        let addr = section.start().wrapping_add(object.bias);
        Some(EhFrame {
            bytes: object.bytes(TextRange::new(addr, section.len())?)?,
            addr,
        })
    })
}

/// `.eh_frame`, as `.eh_frame_hdr` says where it is (Linux Standard Base, "The .eh_frame_hdr
/// section"). Its end is not said: it ends with an entry of length zero, and at the latest with its
/// segment.
fn indexed_eh_frame(object: &Object) -> Option<EhFrame<'_>> {
    const VERSION: u8 = 1;
    const PCREL_SDATA4: u8 = 0x1b;
    let header = object.eh_frame_hdr?.start();
    let bytes = object.bytes(TextRange::new(header, 8)?)?;
    if bytes[0] != VERSION || bytes[1] != PCREL_SDATA4 {
        return None;
    }
    let distance = i32::from_le_bytes(bytes[4..8].try_into().ok()?);
    let addr = CodeAddr::new(
        header
            .wrapping_add(4)
            .get()
            .checked_add_signed(distance.into())?,
    );
    let end = object.segment(addr)?.range.end();
    let bytes = object.bytes(TextRange::new(addr, end.get() - addr.get())?)?;
    Some(EhFrame { bytes, addr })
}

#[cfg(test)]
mod tests {
    use super::super::arch::Rule;
    use super::super::objects::Objects;
    use super::super::sys;
    use super::*;
    use std::process::Command;

    #[test]
    fn tables_without_an_index_are_found_by_the_file() {
        let dir = std::env::temp_dir().join(format!("klp-no-index-{}", sys::getpid()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let (source, library) = (dir.join("no_index.c"), dir.join("no_index.so"));
        std::fs::write(&source, "int klp_no_index(int x) { return x + 1; }\n").expect("a file");
        let linked = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
            .args(["-shared", "-fPIC", "-Wl,--no-eh-frame-hdr", "-o"])
            .args([&library, &source])
            .status();
        assert!(linked.expect("a C compiler").success());
        let name = std::ffi::CString::new(library.to_str().expect("UTF-8")).expect("no zero");
        // SAFETY: the library has no constructors that do harm.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null());
        // SAFETY: the handle is valid.
        let function = unsafe { libc::dlsym(handle, c"klp_no_index".as_ptr()) } as u64;
        let objects = Objects::default();
        objects.refresh(&mut |_| ());
        let object = objects.at(CodeAddr::new(function)).expect("it is mapped");
        assert_eq!(object.eh_frame_hdr, None);
        let table = table_of(&object).expect("memory").expect("it has a table");
        assert!(matches!(
            table.find(CodeAddr::new(function)),
            Rule::Frame(_)
        ));
        std::fs::remove_dir_all(&dir).expect("it is ours");
    }
}
