//! AArch64.

mod station;

#[cfg(test)]
mod linkage;
pub(crate) mod registers;
pub(crate) mod text;
pub(crate) mod thread;

pub(crate) use klp_arch_aarch64::AArch64 as Processor;
pub(crate) use klp_arch_aarch64::calls as by_place;
pub(crate) use klp_arch_aarch64::entry_stub;
pub(crate) use klp_arch_aarch64::stub::Preserved;
pub(crate) use klp_arch_aarch64::unwind::{self, EhFrame, Regs, Rule, SIGNAL_RETURN, Table};
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
pub(crate) use station::makecontext_station;

/// The name of its crate in symbols.
pub(crate) const CRATE: &str = "klp_arch_aarch64::";

/// The relocation by which a program holds a copy of a library's variable ("ELF for the Arm 64-bit
/// Architecture", 5.7.12).
pub(crate) const COPY: object::elf::RelocationType = object::elf::R_AARCH64_COPY;

/// The relocation of a place that holds what an indirect function has chosen.
pub(crate) const CHOSEN: [object::elf::RelocationType; 1] = [object::elf::R_AARCH64_IRELATIVE];

/// The relocation of a place that holds how far a thread-local variable is from the thread pointer.
pub(crate) const THREAD_OFFSET: object::elf::RelocationType = object::elf::R_AARCH64_TLS_TPREL;

/// One above the highest address that programs have memory at. Those of more than 48 bits are only
/// for who asks for them (the kernel's document "Memory Layout on AArch64 Linux"); with a kernel
/// that has fewer bits, nothing is mapped above its own limit.
pub(crate) const TOP: u64 = 1 << 48;

/// Where a word of a stack leads to, if it is an address: return addresses may be signed. Signatures
/// of programs' addresses take the bits from 48 to 54 (the kernel's `<asm/pointer_auth.h>`:
/// `ptrauth_user_pac_mask`), and those above stay zero; so a negative number is no address.
pub(crate) fn address(word: u64) -> u64 {
    const SIGNED: u64 = 55;
    if word >> SIGNED == 0 {
        Processor::return_address(word)
    } else {
        word
    }
}

/// System calls in which a child may run on the stack of the caller.
pub(crate) const FORKS: [libc::c_long; 2] = [libc::SYS_clone, libc::SYS_clone3];

/// Why a function with the second `st_other` must not run in the place of one with the first: they
/// say nothing of that.
pub(crate) const MISFIT: Option<super::Misfit> = None;

/// The address of the function `$name`, 0 if whoever linked the engine has none.
macro_rules! weak_address {
    ($name:expr) => {{
        let at: u64;
        // SAFETY: an address is read that the linker has put into a table.
        unsafe {
            core::arch::asm!(
                concat!(".weak ", $name),
                concat!("adrp {at}, :got:", $name),
                concat!("ldr {at}, [{at}, :got_lo12:", $name, "]"),
                at = out(reg) at,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        at
    }};
}
pub(crate) use weak_address;

use unwind::Machine;

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn signatures_are_told_from_numbers() {
        let code = 0xaaaa_1234_5678;
        for word in [code, code | 0x7f << 48, code | 0x2a << 48] {
            assert_eq!(address(word), code);
        }
        for word in [-12_288_i64 as u64, 1 << 55 | code, 0xff << 56 | code] {
            assert_eq!(address(word), word);
        }
    }
}
