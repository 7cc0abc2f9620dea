//! x86-64.

mod station;

#[cfg(test)]
mod linkage;
pub(crate) mod registers;
pub(crate) mod text;
pub(crate) mod thread;

pub(crate) use klp_arch_x86_64::X86_64 as Processor;
pub(crate) use klp_arch_x86_64::calls as by_place;
pub(crate) use klp_arch_x86_64::entry_stub;
pub(crate) use klp_arch_x86_64::stub::Preserved;
pub(crate) use klp_arch_x86_64::unwind::{self, EhFrame, Regs, Rule, Table};
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static")))]
pub(crate) use station::makecontext_station;

/// The name of its crate in symbols.
pub(crate) const CRATE: &str = "klp_arch_x86_64::";

/// The relocation by which a program holds a copy of a library's variable (System V ABI for x86-64,
/// "Relocation Types").
pub(crate) const COPY: object::elf::RelocationType = object::elf::R_X86_64_COPY;

/// The relocation of a place that holds what an indirect function has chosen.
pub(crate) const CHOSEN: [object::elf::RelocationType; 1] = [object::elf::R_X86_64_IRELATIVE];

/// The relocation of a place that holds how far a thread-local variable is from the thread pointer.
pub(crate) const THREAD_OFFSET: object::elf::RelocationType = object::elf::R_X86_64_TPOFF64;

/// One above the highest address that programs have memory at (`TASK_SIZE_MAX` in the kernel's
/// `<asm/page_64.h>`).
pub(crate) const TOP: u64 = 0x7fff_ffff_f000;

/// Where a word of a stack leads to, if it is an address.
pub(crate) fn address(word: u64) -> u64 {
    word
}

/// System calls in which a child may run on the stack of the caller.
pub(crate) const FORKS: [libc::c_long; 3] = [libc::SYS_vfork, libc::SYS_clone, libc::SYS_clone3];

/// A call of `rt_sigreturn` in the one form that it has, by which unwinders know it.
pub(crate) const SIGNAL_RETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];

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
                concat!("mov {at}, qword ptr [rip + ", $name, "@GOTPCREL]"),
                at = out(reg) at,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        at
    }};
}
pub(crate) use weak_address;
