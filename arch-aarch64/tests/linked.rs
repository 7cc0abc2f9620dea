//! Patch objects of real compilers are relocated as the linker does it.

use klp_arch_aarch64::AArch64;
use klp_arch_tests::linked::{Base, Compiler, Tools, compare};
use object::elf;

const TOOLS: Tools = Tools {
    gnu: "aarch64-linux-gnu-",
    llvm: "aarch64",
    rust: "aarch64-unknown-linux-gnu",
    no_relax: &["--no-relax"],
    relaxed: &[],
};

const C: [(Base, &[&str]); 6] = [
    (Base::High, &["-fPIC"]),
    (Base::High, &["-fpic"]),
    (Base::High, &["-fpie"]),
    (Base::High, &["-fno-pic"]),
    (Base::High, &["-fno-pic", "-mcmodel=tiny"]),
    (Base::High, &["-fno-pic", "-mcmodel=large"]),
];

const GCC: [(Base, &[&str]); 1] = [(Base::High, &["-fPIC", "-mcmodel=tiny"])];

const RUST: [(Base, &[&str]); 4] = [
    (Base::High, &["-Crelocation-model=pic"]),
    (Base::High, &["-Crelocation-model=static"]),
    (
        Base::High,
        &["-Crelocation-model=static", "-Ccode-model=tiny"],
    ),
    (
        Base::High,
        &["-Crelocation-model=static", "-Ccode-model=large"],
    ),
];

#[test]
fn objects_of_all_compilers_become_what_the_linker_makes_of_them() {
    let gcc = compare::<AArch64>(TOOLS, Compiler::Gcc, &[&C[..], &GCC].concat());
    let clang = compare::<AArch64>(TOOLS, Compiler::Clang, &C);
    let rustc = compare::<AArch64>(TOOLS, Compiler::Rustc, &RUST);
    let (Some(gcc), Some(clang), Some(rustc)) = (gcc, clang, rustc) else {
        return;
    };
    let seen = [gcc, clang, rustc].concat();
    for kind in [
        elf::R_AARCH64_ABS64,
        elf::R_AARCH64_PREL32,
        elf::R_AARCH64_ADR_PREL_LO21,
        elf::R_AARCH64_ADR_PREL_PG_HI21,
        elf::R_AARCH64_ADR_GOT_PAGE,
        elf::R_AARCH64_LD64_GOT_LO12_NC,
        elf::R_AARCH64_LD64_GOTPAGE_LO15,
        elf::R_AARCH64_LD_PREL_LO19,
        elf::R_AARCH64_GOT_LD_PREL19,
        elf::R_AARCH64_CALL26,
        elf::R_AARCH64_JUMP26,
        elf::R_AARCH64_ADD_ABS_LO12_NC,
        elf::R_AARCH64_LDST8_ABS_LO12_NC,
        elf::R_AARCH64_LDST16_ABS_LO12_NC,
        elf::R_AARCH64_LDST32_ABS_LO12_NC,
        elf::R_AARCH64_LDST64_ABS_LO12_NC,
        elf::R_AARCH64_LDST128_ABS_LO12_NC,
        elf::R_AARCH64_MOVW_UABS_G0_NC,
        elf::R_AARCH64_MOVW_UABS_G1_NC,
        elf::R_AARCH64_MOVW_UABS_G2_NC,
        elf::R_AARCH64_MOVW_UABS_G3,
    ] {
        assert!(seen.contains(&kind.0), "no compiler wrote {kind:?}");
    }
}
