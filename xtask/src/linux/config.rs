//! The kernel's configuration: the smallest one, plus what a list says.

use super::which::Kernel;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// What livepatch, its selftests and our measurements need: options to switch on, or off with `=n`.
const OPTIONS: &str = "64BIT SMP MODULES MODULE_UNLOAD PRINTK BLK_DEV_INITRD RD_GZIP BINFMT_ELF BINFMT_SCRIPT TTY SERIAL_8250 \
    SERIAL_8250_CONSOLE PROC_FS SYSFS DEVTMPFS DEBUG_FS MULTIUSER FUTEX EPOLL POSIX_TIMERS KALLSYMS KALLSYMS_ALL FTRACE \
    FUNCTION_TRACER DYNAMIC_FTRACE KPROBES UNWINDER_ORC LIVEPATCH RUST PROC_SYSCTL ACPI PCI SHMEM TMPFS UNIX98_PTYS \
    PRINTK_TIME DYNAMIC_DEBUG STACKTRACE SYSVIPC UNIX NET EVENTFD SIGNALFD TIMERFD SLUB_TINY=n SLUB_DEBUG";

/// What makes a kernel watch itself.
const DEBUG_OPTIONS: &str = "DEBUG_KERNEL PREEMPT PROVE_LOCKING DEBUG_ATOMIC_SLEEP PROVE_RCU KASAN DEBUG_OBJECTS DEBUG_OBJECTS_FREE \
    DEBUG_OBJECTS_TIMERS DEBUG_OBJECTS_WORK DEBUG_OBJECTS_RCU_HEAD KFENCE DETECT_HUNG_TASK";

/// Much of what distributions switch on and may get in the way: how the kernel is laid out, how it
/// returns, who else traces.
const DISTRO_OPTIONS: &str = "RELOCATABLE RANDOMIZE_BASE RANDOMIZE_MEMORY X86_KERNEL_IBT CC_OPTIMIZE_FOR_PERFORMANCE \
    FUNCTION_GRAPH_TRACER FTRACE_SYSCALLS KPROBE_EVENTS PERF_EVENTS UPROBES BPF_SYSCALL BPF_JIT PROCESSOR_SELECT CPU_SUP_INTEL \
    CPU_SUP_AMD CPU_MITIGATIONS MITIGATION_RETPOLINE MITIGATION_RETHUNK MITIGATION_CALL_DEPTH_TRACKING MITIGATION_SRSO \
    MITIGATION_UNRET_ENTRY PREEMPT_VOLUNTARY PREEMPT_DYNAMIC STACKPROTECTOR STACKPROTECTOR_STRONG FORTIFY_SOURCE VMAP_STACK \
    SLAB_FREELIST_RANDOM SLAB_FREELIST_HARDENED INIT_ON_ALLOC_DEFAULT_ON HARDENED_USERCOPY BUG_ON_DATA_CORRUPTION LIST_HARDENED";

/// Configures `build`, unless its configuration was made from these lists. `make` is a `make` in
/// the kernel's tree.
pub(super) fn configure(
    which: Kernel,
    build: &Path,
    make: &dyn Fn(&str) -> Result<Command>,
) -> Result<()> {
    let wanted: Vec<_> = OPTIONS
        .split_whitespace()
        .chain(more(which).split_whitespace())
        .map(line)
        .collect();
    let lines = wanted.join("\n") + "\n";
    let made_from = build.join("klp-options");
    if std::fs::read_to_string(&made_from).is_ok_and(|old| old == lines) {
        return Ok(());
    }
    std::fs::create_dir_all(build)?;
    // The last word on an option counts.
    let log = build.with_extension("config.log");
    crate::run::quiet(&mut make("tinyconfig")?, &log)?;
    let config = build.join(".config");
    let tiny = std::fs::read_to_string(&config)?;
    std::fs::write(&config, tiny + &lines)?;
    crate::run::quiet(&mut make("olddefconfig")?, &log)?;
    let made = std::fs::read_to_string(&config)?;
    let lacking: Vec<_> = wanted
        .iter()
        .filter(|line| !made.lines().any(|made| made == line.as_str()))
        .collect();
    if !lacking.is_empty() {
        bail!(
            "the kernel's configuration refuses {lacking:?}; see {} and {}",
            config.display(),
            log.display()
        );
    }
    Ok(std::fs::write(made_from, lines)?)
}

/// An option as `.config` has it.
fn line(option: &str) -> String {
    match option.strip_suffix("=n") {
        Some(off) => format!("# CONFIG_{off} is not set"),
        None => format!("CONFIG_{option}=y"),
    }
}

fn more(which: Kernel) -> &'static str {
    match (which.debug, which.distro) {
        (true, _) => DEBUG_OPTIONS,
        (false, true) => DISTRO_OPTIONS,
        (false, false) => "",
    }
}
