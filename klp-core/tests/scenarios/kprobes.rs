//! The scenarios of test-kprobe.sh: a probe and a patch at one function.

use super::selftests::{CMDLINE, Kernel, disabling, enabling, versions};
use klp_core::port::PortErrorKind;
use klp_core::sim::Claim;

const KPROBE: &str = "test_klp_kprobe";

#[test]
fn kprobed_function_with_post_handler() {
    let mut kernel = Kernel::new();
    let probe = format!("kprobe '{KPROBE}' with post_handler");
    kernel
        .linux
        .host()
        .probe(kernel.cmdline, &probe, Claim::Change)
        .expect("nobody is there");
    kernel.load_livepatch();
    assert_eq!(
        kernel.versions(),
        versions("cmdline_proc_show", "meminfo_proc_show")
    );
    kernel.linux.log(
        "% insmod test_modules/test_klp_livepatch.ko
        livepatch: failed to register ftrace handler for function 'cmdline_proc_show' (-16)
        insmod: ERROR: could not insert module test_modules/test_klp_livepatch.ko: Device or resource busy",
    );
    assert_eq!(
        kernel.linux.host().unprobe(kernel.cmdline, &probe),
        Some(1),
        "it saw the call"
    );

    // The other way round the probe is refused, as long as the patch is there.
    kernel.load_livepatch();
    let refused = kernel
        .linux
        .host()
        .probe(kernel.cmdline, &probe, Claim::Change)
        .expect_err("the patch is there");
    assert_eq!(refused.kind, PortErrorKind::Held);
    assert_eq!(kernel.versions(), versions(CMDLINE, "meminfo_proc_show"));
    kernel.linux.echo_0("test_klp_livepatch");
    kernel
        .linux
        .host()
        .probe(kernel.cmdline, &probe, Claim::Change)
        .expect("the patch is gone");
    kernel.linux.log(
        &[
            enabling("test_klp_livepatch"),
            disabling("test_klp_livepatch"),
        ]
        .concat(),
    );
}

#[test]
fn kprobed_function_without_post_handler() {
    let mut kernel = Kernel::new();
    kernel
        .linux
        .host()
        .probe(kernel.cmdline, KPROBE, Claim::Look)
        .expect("nobody is there");
    kernel.load_livepatch();
    assert_eq!(kernel.versions(), versions(CMDLINE, "meminfo_proc_show"));
    kernel
        .linux
        .host()
        .probe(kernel.cmdline, "another", Claim::Look)
        .expect("it only looks on");
    assert_eq!(kernel.versions(), versions(CMDLINE, "meminfo_proc_show"));
    kernel.linux.echo_0("test_klp_livepatch");
    kernel.linux.unload("test_klp_livepatch");
    assert_eq!(
        kernel.versions(),
        versions("cmdline_proc_show", "meminfo_proc_show")
    );
    let unprobe = |name| kernel.linux.host().unprobe(kernel.cmdline, name);
    assert_eq!(
        (unprobe(KPROBE), unprobe("another")),
        (Some(3), Some(2)),
        "both saw every call"
    );
    kernel.linux.log(
        &[
            &*enabling("test_klp_livepatch"),
            &disabling("test_klp_livepatch"),
            "% rmmod test_modules/test_klp_livepatch.ko\n",
        ]
        .concat(),
    );
}
