//! The loader: what it accepts stays inside an image that is no larger than the file, apart from
//! what alignment takes; relocations can be applied and cleared again and again; and whatever
//! happens, all memory comes back.

use crate::host::Host;
use crate::memory::bounded;
use crate::on_machine;
use klp_core::addr::TextRange;
use klp_core::elf::view::View;
use klp_core::elf::{Loaded, admit, load};
use klp_core::port::{Arch, Relocator};
use klp_core::relocs;

/// Checks one input: a byte for the machine, and a patch object.
pub fn check(input: &[u8]) {
    if let [machine, file @ ..] = input {
        on_machine!(machine, check_on(file));
    }
}

/// Most bytes that loading a file of `len` bytes may take, with the host's own for what begins as
/// zeros: sections that want to be aligned to pages are small.
fn enough(len: usize) -> usize {
    (1 << 20) + 512 * len
}

pub(crate) fn check_on<M: Arch + Relocator>(file: &[u8]) {
    let host = Host::<M>::new();
    let admitted = admit(&host, file, "fuzz").expect("nobody verifies");
    // SAFETY: nothing of the file is executed.
    let loaded = bounded(enough(file.len()), || unsafe {
        load(&host, admitted, "fuzz")
    });
    if let Ok(loaded) = loaded {
        stays_inside::<M>(&loaded, file);
        check_relocs(&host, &loaded);
        // SAFETY: it was never enabled.
        unsafe { loaded.image.unload(&host) };
    }
    assert!(host.is_empty(), "the image was not freed");
}

fn lies_in(part: TextRange, whole: TextRange) -> bool {
    whole.start() <= part.start() && part.end() <= whole.end()
}

fn stays_inside<M: Arch + Relocator>(loaded: &Loaded, file: &[u8]) {
    const PAGE: usize = 4096;
    let image = loaded.image.image();
    for (_, function) in loaded.image.functions() {
        assert!(lies_in(*function, image.text));
    }
    for object in loaded.patch.objects() {
        for func in object.funcs() {
            let range = TextRange::new(func.new_addr(), func.new_len().expect("files tell it"));
            assert!(lies_in(range.expect("it does not wrap"), image.text));
        }
    }
    if let Some((at, bytes)) = loaded.image.eh_frame() {
        let range = TextRange::new(at, bytes.len() as u64).expect("it does not wrap");
        let parts = [image.text, image.rodata, image.data];
        assert!(parts.iter().any(|part| lies_in(range, *part)));
    }
    let view = View::parse(file, M::MACHINE, M::BIG_ENDIAN).expect("the loader has read it");
    let detours = 8 + 2 * M::SLOT as usize;
    let most = file.len() + PAGE * (view.sections().len() + 3) + detours * view.symbols().len();
    let size = image.text.len() + image.rodata.len();
    assert!(
        size <= most as u64,
        "{size} bytes of a file of {}",
        file.len()
    );
}

fn check_relocs<M: Arch + Relocator>(host: &Host<M>, loaded: &Loaded) {
    for object in loaded.patch.objects() {
        let fields = || object.relocs().fields().iter();
        let in_fields = || -> Vec<Vec<u8>> {
            let bytes = fields().map(|field| host.bytes(field.at, field.room.into()));
            bytes.collect()
        };
        let (before, as_loaded) = (host.contents(), in_fields());
        let name = loaded.patch.name();
        // SAFETY: nobody executes code of the patch.
        if unsafe { relocs::apply(host, name, object) }.is_err() {
            assert!(
                host.contents() == before,
                "refused relocations changed something"
            );
            continue;
        }
        let applied = host.contents();
        // SAFETY: as above.
        unsafe { relocs::clear(host, name, object) }.expect("what was applied can be cleared");
        assert!(in_fields() == as_loaded, "clear did not restore");
        // SAFETY: as above.
        unsafe { relocs::apply(host, name, object) }.expect("what was cleared can be applied");
        assert!(
            host.contents() == applied,
            "applied once more, it is something else"
        );
        // SAFETY: as above.
        unsafe { relocs::clear(host, name, object) }.expect("what was applied can be cleared");
    }
}
