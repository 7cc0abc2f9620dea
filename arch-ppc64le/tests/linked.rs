//! Patch objects of real compilers are relocated as the linker does it.

use klp_arch_ppc64le::Ppc64Le;
use klp_arch_tests::linked::{Base, Compiler, Tools, compare};
use object::elf;

const TOOLS: Tools = Tools {
    gnu: "powerpc64le-linux-gnu-",
    llvm: "powerpc64le",
    rust: "powerpc64le-unknown-linux-gnu",
    no_relax: &[
        "--no-relax",
        "--no-toc-optimize",
        "--no-inline-optimize",
        "--no-pcrel-optimize",
    ],
    // `R_PPC64_ENTRY`: a global entry of the large code model, where the table of contents turns
    // out to be near.
    relaxed: &[118],
};

// Not here is `-mcmodel=small`: its references reach 32 KiB from the table of contents of the
// program, where an image cannot be. Nor is code that is not position-independent: its calls of the
// program's functions have no `nop` behind them, and are refused.
const C: [(Base, &[&str]); 4] = [
    (Base::High, &["-fPIC", "-mcpu=power8"]),
    (Base::High, &["-fPIC", "-mcpu=power9"]),
    (Base::High, &["-fPIC", "-mcpu=power8", "-mcmodel=large"]),
    (Base::High, &["-fPIC", "-mcpu=power10"]),
];

const GCC: [(Base, &[&str]); 1] = [(Base::High, &["-fPIC", "-mcpu=power10", "-fno-plt"])];

const RUST: [(Base, &[&str]); 3] = [
    (Base::High, &["-Crelocation-model=pic"]),
    (Base::High, &["-Crelocation-model=static"]),
    (
        Base::High,
        &["-Crelocation-model=pic", "-Ctarget-cpu=pwr10"],
    ),
];

#[test]
fn objects_of_all_compilers_become_what_the_linker_makes_of_them() {
    let gcc = compare::<Ppc64Le>(TOOLS, Compiler::Gcc, &[&C[..], &GCC].concat());
    let clang = compare::<Ppc64Le>(TOOLS, Compiler::Clang, &C);
    let rustc = compare::<Ppc64Le>(TOOLS, Compiler::Rustc, &RUST);
    let (Some(gcc), Some(clang), Some(rustc)) = (gcc, clang, rustc) else {
        return;
    };
    let seen = [gcc, clang, rustc].concat();
    for elf::RelocationType(kind) in [
        elf::R_PPC64_ADDR64,
        elf::R_PPC64_REL32,
        elf::R_PPC64_REL16_HA,
        elf::R_PPC64_REL16_LO,
        elf::R_PPC64_REL24,
        elf::RelocationType(116), // R_PPC64_REL24_NOTOC
        elf::R_PPC64_TOC16_HA,
        elf::R_PPC64_TOC16_LO,
        elf::R_PPC64_TOC16_LO_DS,
        elf::RelocationType(132), // R_PPC64_PCREL34
        elf::RelocationType(133), // R_PPC64_GOT_PCREL34
        elf::RelocationType(135), // R_PPC64_PLT_PCREL34_NOTOC
    ] {
        assert!(seen.contains(&kind), "no compiler wrote type {kind}");
    }
}
