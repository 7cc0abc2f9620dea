//! Patch objects of real compilers are relocated as the linker does it.

use klp_arch_tests::linked::{Base, Compiler, Tools, compare};
use klp_arch_x86_64::X86_64;
use object::elf;

const TOOLS: Tools = Tools {
    gnu: "x86_64-linux-gnu-",
    llvm: "x86_64",
    rust: "x86_64-unknown-linux-gnu",
    no_relax: &["--no-relax"],
    relaxed: &[],
};

const C: [(Base, &[&str]); 10] = [
    (Base::High, &["-fPIC"]),
    (Base::High, &["-fpie"]),
    (Base::Low, &["-fno-pic"]),
    (Base::High, &["-fPIC", "-fno-plt"]),
    (Base::Low, &["-fno-pic", "-fno-plt"]),
    (Base::High, &["-fPIC", "-mcmodel=medium"]),
    (Base::Low, &["-fno-pic", "-mcmodel=medium"]),
    (Base::High, &["-fPIC", "-mcmodel=large"]),
    (Base::High, &["-fno-pic", "-mcmodel=large"]),
    (Base::High, &["-fPIC", "-g", "-fasynchronous-unwind-tables"]),
];

const RUST: [(Base, &[&str]); 3] = [
    (Base::High, &["-Crelocation-model=pic"]),
    (Base::Low, &["-Crelocation-model=static"]),
    (
        Base::High,
        &["-Crelocation-model=pic", "-Ccode-model=large"],
    ),
];

#[test]
fn objects_of_all_compilers_become_what_the_linker_makes_of_them() {
    let gcc = compare::<X86_64>(TOOLS, Compiler::Gcc, &C);
    let clang = compare::<X86_64>(TOOLS, Compiler::Clang, &C);
    let rustc = compare::<X86_64>(TOOLS, Compiler::Rustc, &RUST);
    let (Some(gcc), Some(clang), Some(rustc)) = (gcc, clang, rustc) else {
        return;
    };
    let seen = [gcc, clang, rustc].concat();
    for kind in [
        elf::R_X86_64_64,
        elf::R_X86_64_PC32,
        elf::R_X86_64_PC64,
        elf::R_X86_64_32,
        elf::R_X86_64_32S,
        elf::R_X86_64_PLT32,
        elf::R_X86_64_GOTPCREL,
        elf::R_X86_64_GOTPCRELX,
        elf::R_X86_64_REX_GOTPCRELX,
        elf::R_X86_64_GOTPC32,
        elf::R_X86_64_GOTPC64,
        elf::R_X86_64_GOTOFF64,
        elf::R_X86_64_GOT64,
        elf::R_X86_64_PLTOFF64,
    ] {
        assert!(seen.contains(&kind.0), "no compiler wrote {kind:?}");
    }
}
