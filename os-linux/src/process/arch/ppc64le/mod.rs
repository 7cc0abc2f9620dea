//! ppc64le.

#[cfg(test)]
mod linkage;
mod station;

pub(crate) mod calls;
pub(crate) mod registers;
pub(crate) mod text;
pub(crate) mod thread;

pub(crate) use klp_arch_ppc64le::Ppc64Le as Processor;
pub(crate) use klp_arch_ppc64le::entry_stub;
pub(crate) use klp_arch_ppc64le::stub::Preserved;
pub(crate) use klp_arch_ppc64le::unwind::{self, EhFrame, Regs, Rule, SIGNAL_RETURN, Table};
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
pub(crate) use station::makecontext_station;

/// The name of its crate in symbols.
pub(crate) const CRATE: &str = "klp_arch_ppc64le::";

/// The relocation by which a program holds a copy of a library's variable (ELFv2 3.5.3).
pub(crate) const COPY: object::elf::RelocationType = object::elf::R_PPC64_COPY;

/// The relocations of a place that holds what an indirect function has chosen (ELFv2 3.5.4: the
/// linkage table's, and all others).
pub(crate) const CHOSEN: [object::elf::RelocationType; 2] = [
    object::elf::R_PPC64_JMP_IREL,
    object::elf::R_PPC64_IRELATIVE,
];

/// The relocation of a place that holds how far a thread-local variable is from the thread pointer.
pub(crate) const THREAD_OFFSET: object::elf::RelocationType = object::elf::R_PPC64_TPREL64;

/// One above the highest address that programs have memory at. Those above are only for who asks
/// for them (the kernel's `<asm/task_size_64.h>`: `DEFAULT_MAP_WINDOW_USER64`).
pub(crate) const TOP: u64 = 1 << 47;

/// Where a word of a stack leads to, if it is an address.
pub(crate) fn address(word: u64) -> u64 {
    word
}

/// System calls in which a child may run on the stack of the caller.
pub(crate) const FORKS: [libc::c_long; 3] = [libc::SYS_vfork, libc::SYS_clone, libc::SYS_clone3];

/// Why a function with the second `st_other` must not run in the place of one with the first; the
/// flag says whether both have the same table of contents. Whoever calls a function that has the same
/// table counts on register 2 (ELFv2 2.2.1.3), unless the function says that it does not keep it
/// (3.4.1: the highest three bits are 1). A function whose two entries are one (0) leaves it alone.
pub(crate) const MISFIT: Option<super::Misfit> = Some(|old, new, same_table| {
    match (old >> 5, new >> 5) {
        (1, _) => None,
        (_, 1) => Some(
            "its callers count on register 2, which the new version does not keep; compile that with \
             -mno-pcrel",
        ),
        (_, 2..) if !same_table => Some(
            "its callers count on register 2, and the new version belongs to another object, which has \
             a table of contents of its own",
        ),
        _ => None,
    }
});

/// The address of the function `$name`, 0 if whoever linked the engine has none. Assembly cannot
/// look it up by register 2: the compiler does not know that it counts on it.
macro_rules! weak_address {
    ($name:expr) => {{
        mod word {
            core::arch::global_asm!(
                concat!(".weak ", $name),
                ".pushsection .data.rel.ro,\"aw\",@progbits",
                concat!(".hidden klp_os_linux_at_", $name),
                concat!(".globl klp_os_linux_at_", $name),
                concat!(".type klp_os_linux_at_", $name, ",@object"),
                concat!(".size klp_os_linux_at_", $name, ",8"),
                ".balign 8",
                concat!("klp_os_linux_at_", $name, ":"),
                concat!(".quad ", $name),
                ".popsection",
            );
        }
        // SAFETY: defined above, a number that never changes.
        unsafe extern "C" {
            #[link_name = concat!("klp_os_linux_at_", $name)]
            safe static ADDRESS: u64;
        }
        ADDRESS
    }};
}
pub(crate) use weak_address;
