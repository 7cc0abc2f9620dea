//! Files that are refused: what is said, and that nothing changes.

use crate::file::{ALLOC, DATA, File, TEXT};
use crate::host::{ABS64, BRANCH32, Host, PC32, load};
use klp_core::error::{Error, PatchReason};
use object::build::elf::SectionId;
use object::elf;

/// Changes a good file with `spoil` (which is given the section of the new function) and returns
/// what is said.
#[track_caller]
fn refused(spoil: impl FnOnce(&mut File, SectionId)) -> String {
    let (mut file, text) = File::replacing_victim();
    spoil(&mut file, text);
    refused_bytes(&file.bytes()).to_string()
}

#[track_caller]
fn refused_bytes(bytes: &[u8]) -> Error {
    let host = Host::new()
        .with("vmlinux", "twin", 1)
        .with("vmlinux", "twin", 2)
        .exporting("far", 0x7fff_0000_0000);
    let error = load(&host, bytes, "p")
        .map(|loaded| loaded.patch)
        .expect_err("a bad file");
    assert_eq!(host.images(), 0);
    error
}

#[test]
fn headers() {
    type Change = fn(&mut Vec<u8>);
    let cases: [(Change, &str); 6] = [
        (|file| file[0] = 0, "not an ELF file (ELF header)"),
        (
            |file| file[4] = 1,
            "ELF that is not 64-bit (ELF header) is not supported",
        ),
        (
            |file| file[5] = 2,
            "ELF that is not little-endian (ELF header) is not supported",
        ),
        (|file| file[16] = 2, "not a relocatable file (ELF header)"),
        (
            |file| file[18] = 183,
            "it is for ELF machine 183, this system is 62",
        ),
        (|file| file.truncate(63), "truncated file (ELF header)"),
    ];
    for (change, says) in cases {
        let mut bytes = File::replacing_victim().0.bytes();
        change(&mut bytes);
        assert_eq!(
            refused_bytes(&bytes).to_string(),
            format!("patch 'p': {says}")
        );
    }
}

#[test]
fn modinfo() {
    let said = refused(|file, _| file.modinfo = b"name=fix\0".to_vec());
    assert_eq!(
        said,
        "patch 'fix': not marked as a livepatch module: livepatch=Y is missing (.modinfo)"
    );
}

#[test]
fn what_is_said_of_the_patch_as_a_whole() {
    let said =
        |entries: &str| refused(|file, _| file.modinfo.extend_from_slice(entries.as_bytes()));
    for set in [
        "",
        "any",
        "all ",
        "set:",
        "set:-1",
        "set:+1",
        "set:07",
        "set:a",
        "set:4294967296",
        "set:SET",
    ] {
        assert_eq!(
            said(&format!("klp_replace={set}\0")),
            format!(
                "patch 'fix': neither `all` nor `set:` and a number below 2^32 (klp_replace={set})"
            )
        );
    }
    assert_eq!(
        said("klp_replace=all\0klp_replace=set:1\0"),
        "patch 'fix': which patches are replaced is said twice (klp_replace=set:1)"
    );
    for state in [
        "",
        "1",
        ":1",
        "1:",
        "1:2:3",
        "1 :2",
        "1:-2",
        "0x:1",
        "1:4294967296",
        "18446744073709551616:1",
        "ID:1",
    ] {
        let what = "not the number of a state, a colon, and a version below 2^32";
        assert_eq!(
            said(&format!("klp_state=7:7\0klp_state={state}\0")),
            format!("patch 'fix': {what} (klp_state={state})")
        );
    }
    for build in ["", "vmlinux", "vmlinux:", "vmlinux:0", "vmlinux:0x12", "m:"] {
        let what = "not the name of an object, a colon, and a build-id in hexadecimal";
        assert_eq!(
            said(&format!("klp_build={build}\0")),
            format!("patch 'fix': {what} (klp_build={build})")
        );
    }
    assert_eq!(
        said("klp_build=vmlinux:00\0klp_build=vmlinux:00\0"),
        "patch 'fix': the build is said twice (klp_build=vmlinux:00)"
    );
    let what = "not 1 to 512 bytes of text without control characters";
    let long = "x".repeat(513);
    for text in ["", "CVE\n2024", "\u{1b}[31m", &long] {
        for key in ["klp_label", "description", "author"] {
            assert_eq!(
                said(&format!("{key}={text}\0")),
                format!("patch 'fix': {what} ({key})")
            );
        }
    }
    for entry in ["klp_lable=CVE", "klp_"] {
        let shown = if entry.contains('=') { entry } else { "klp_=" };
        assert_eq!(
            said(&format!("{entry}\0")),
            format!(
                "patch 'fix': an entry that this engine does not know ({shown}) is not supported"
            )
        );
    }
    let said_of_bytes = refused(|file, _| file.modinfo.extend_from_slice(b"klp_label=\xff\0"));
    assert_eq!(
        said_of_bytes,
        "patch 'fix': an entry that is not text (.modinfo)"
    );
    assert_eq!(
        said("klp_state=0x10:1\0klp_state=16:2\0"),
        "patch 'fix': state 16 is listed twice"
    );
}

#[test]
fn sections() {
    let said = refused(|file, _| {
        file.section(".init_array", DATA, 8, &[0; 8]);
    });
    assert_eq!(
        said,
        "patch 'fix': constructor or destructor (.init_array) is not supported"
    );
    let said = refused(|file, _| {
        file.section(".ctors.65535", DATA, 8, &[0; 8]);
    });
    assert_eq!(
        said,
        "patch 'fix': constructor or destructor (.ctors.65535) is not supported"
    );
    let said = refused(|file, _| {
        file.section(".note.GNU-stack", elf::SHF_EXECINSTR, 1, b"");
    });
    assert_eq!(
        said,
        "patch 'fix': executable stack (.note.GNU-stack) is not supported"
    );
    let said = refused(|file, _| {
        file.section(".wx", TEXT | elf::SHF_WRITE, 8, &[0; 8]);
    });
    assert_eq!(
        said,
        "patch 'fix': section both writable and executable (.wx) is not supported"
    );
    let said = refused(|file, _| {
        file.section(".tdata", DATA | elf::SHF_TLS, 8, &[0; 8]);
    });
    assert_eq!(
        said,
        "patch 'fix': thread-local data (.tdata) is not supported"
    );
    let said = refused(|file, _| {
        file.section(".rodata.odd", ALLOC, 24, &[0; 8]);
    });
    assert_eq!(
        said,
        "patch 'fix': alignment is not a power of two (.rodata.odd)".replace("'fix'", "'p'")
    );
    let said = refused(|file, _| {
        file.section(".rodata.wide", ALLOC, 8192, &[0; 8]);
    });
    assert_eq!(
        said,
        "patch 'fix': alignment above 4096 (.rodata.wide) is not supported"
    );
    let said = refused(|file, _| {
        file.section(".klp.arch.vmlinux.x", ALLOC, 8, &[0; 8]);
    });
    assert_eq!(
        said,
        "patch 'fix': architecture-specific section (.klp.arch.vmlinux.x) is not supported"
    );
    let said = refused(|file, _| {
        file.zeros(".bss", DATA, u64::MAX - 4);
    });
    assert!(
        said.contains("toy failure") || said.contains("larger than any memory"),
        "{said}"
    );
}

#[test]
fn symbols() {
    let said = refused(|file, text| {
        let missing = file.undefined("missing");
        file.rela(text, 0, missing, PC32, 0);
    });
    assert_eq!(
        said,
        "patch 'fix': symbol 'missing': not found in symbol table"
    );
    let said = refused(|file, text| {
        let thread_local = file.symbol("errno", elf::STT_TLS, None, 0, 0);
        file.rela(text, 0, thread_local, PC32, 0);
    });
    assert_eq!(
        said,
        "patch 'fix': thread-local symbol (errno) is not supported"
    );
    let said = refused(|file, _| {
        let common = file.undefined("tentative");
        file.elf.symbols.get_mut(common).st_shndx = elf::SHN_COMMON;
    });
    assert_eq!(
        said,
        "patch 'p': common symbol (compile with -fno-common) (tentative) is not supported"
    );
}

#[test]
fn livepatch_symbols() {
    const IN: &str = ".klp.rela.vmlinux.text.fixed";
    let klp = |relas: &'static str, name: &'static str| {
        refused(move |file, text| {
            let symbol = file.livepatch(name);
            file.rela_in(relas, text, 0, symbol, PC32, 0);
        })
    };
    assert_eq!(
        klp(IN, ".klp.sym.vmlinux.twin"),
        "patch 'fix': symbol has an incorrectly formatted name (.klp.sym.vmlinux.twin)"
    );
    assert_eq!(
        klp(".klp.rela.vmlinux", ".klp.sym.vmlinux.twin,1"),
        "patch 'fix': section has an incorrectly formatted name (.klp.rela.vmlinux)"
    );
    assert_eq!(
        klp(IN, ".klp.sym.vmlinux.twin,0"),
        "patch 'fix', object 'vmlinux': symbol 'twin': ambiguous; a position must say which one is meant"
    );
    assert_eq!(
        klp(IN, ".klp.sym.vmlinux.twin,3"),
        "patch 'fix', object 'vmlinux': symbol 'twin': not found at position 3"
    );
    assert_eq!(
        klp(IN, ".klp.sym.vmlinux.ghost,0"),
        "patch 'fix', object 'vmlinux': symbol 'ghost': not found in symbol table"
    );
    assert_eq!(
        klp(".klp.rela.libfoo.text.fixed", ".klp.sym.vmlinux.twin,1"),
        "patch 'fix': invalid access to vmlinux symbol from module-specific livepatch relocation section \
         (.klp.sym.vmlinux.twin,1)"
    );
    assert_eq!(
        klp(".klp.rela.libfoo.text.fixed", ".klp.sym.libfoo.f,0"),
        "patch 'fix': livepatch relocations wait for an object that is not patched (.klp.rela.libfoo.text.fixed)"
    );
    assert_eq!(
        klp(".rela.text.fixed", ".klp.sym.vmlinux.twin,1"),
        "patch 'fix': livepatch symbol used outside of livepatch relocations (.klp.sym.vmlinux.twin,1)"
    );
    let said = refused(|file, text| {
        let ordinary = file.undefined("far");
        file.rela_in(IN, text, 0, ordinary, PC32, 0);
    });
    assert_eq!(
        said,
        "patch 'fix': symbol is not marked as a livepatch symbol (far)"
    );
    let said = refused(|file, text| {
        let symbol = file.livepatch(".klp.sym.vmlinux.twin,1");
        file.rela_in(IN, text, 4, symbol, PC32, 0);
        file.rela_in(IN, text, 4, symbol, PC32, 0);
    });
    assert_eq!(
        said,
        format!("patch 'fix': two livepatch relocations of one field ({IN})")
    );
}

#[test]
fn relocations() {
    let said = refused(|file, text| {
        let far = file.undefined("far");
        file.rela(text, 0, far, PC32, 0);
    });
    assert!(
        said.starts_with(
            "patch 'fix', object 'vmlinux': section '.text.fixed', reference to 'far': "
        ),
        "{said}"
    );
    assert!(said.contains("out of range"), "{said}");
    let said = refused(|file, text| {
        let far = file.undefined("far");
        file.rela(text, 0, far, 77, 0);
    });
    assert!(
        said.contains("relocation type 77 is not supported"),
        "{said}"
    );
    let said = refused(|file, text| {
        let far = file.undefined("far");
        file.rela(text, 14, far, BRANCH32, 0);
    });
    assert!(
        said.contains("does not fit the bytes at its place"),
        "{said}"
    );
    let said = refused(|file, text| {
        let far = file.undefined("far");
        file.rela(text, 16, far, BRANCH32, 0);
    });
    assert_eq!(
        said,
        "patch 'fix': relocation behind the end of its section (.text.fixed)"
    );
}

#[test]
fn what_is_replaced() {
    let said = refused(|file, text| {
        let inside = file.function("inside", text, 4, 0);
        file.replace(Some("libfoo"), &[("f", inside, 0)]);
    });
    assert_eq!(
        said,
        "patch 'fix', object 'libfoo', function 'f': no symbol tells the size of its new version"
    );
    let said = refused(|file, _| {
        let section = file.objects_section();
        file.elf.sections.get_mut(section).name = ".other".into();
    });
    assert!(
        said.contains("nothing says which functions are replaced"),
        "{said}"
    );
    let said = refused(|file, text| {
        let new = file.function("again", text, 0, 4);
        file.replace(None, &[("victim", new, 0)]);
    });
    assert_eq!(said, "patch 'fix', object 'vmlinux': it is listed twice");
}

#[test]
fn errors_of_files_are_the_patchs_fault() {
    let mut bytes = File::replacing_victim().0.bytes();
    bytes[18] = 183;
    let Error::Patch(error) = refused_bytes(&bytes) else {
        panic!("not the patch's fault")
    };
    assert_eq!(
        error.reason,
        PatchReason::ForeignMachine {
            machine: 183,
            expected: 62
        }
    );
    let (mut file, text) = File::replacing_victim();
    let far = file.undefined("far");
    file.rela(text, 8, far, ABS64, 0);
    assert_eq!(
        load(&Host::new(), &file.bytes(), "p")
            .expect_err("not exported")
            .errno(),
        -22
    );
}
