//! Code whose pages let jumps in at landing pads only (BTI): it is patched, also where the way goes
//! into the middle of a function, and its pages stay guarded.
#![cfg(target_arch = "aarch64")]

use klp_core::addr::CodeAddr;
use klp_core::{Func, Object, Patch};
use klp_os_linux_fixtures::libraries::*;
use klp_os_linux_fixtures::*;

/// Whether the page at `addr` is guarded (`bt` in `proc_pid_smaps(5)`).
fn is_guarded(addr: u64) -> bool {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("there is a /proc");
    let number = |text| u64::from_str_radix(text, 16).ok();
    let mut is_there = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|word| word.split_once('-'));
        if let Some((Some(start), Some(end))) = range.map(|(a, b)| (number(a), number(b))) {
            is_there = (start..end).contains(&addr);
        }
        if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| is_there) {
            return flags.split_whitespace().any(|flag| flag == "bt");
        }
    }
    panic!("nothing is mapped at {addr:#x}");
}

/// `HWCAP2_BTI` of the kernel's `<asm/hwcap.h>`.
fn has_landing_pads() -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & 1 << 17 != 0 }
}

#[test]
fn guarded_code_is_patched_and_stays_guarded() {
    let name = "libguarded";
    let plain = Plain::open(&copy_of(BUILDS[0], name));
    let function = plain.answer();
    let at = function as *const () as u64;
    if !has_landing_pads() {
        eprintln!("NOT TESTED: no BTI here");
        return;
    }
    assert!(is_guarded(at), "the library says that it has landing pads");
    // SAFETY: of the same types as what they replace, and they stay.
    let func = |name, new| unsafe { Func::new(name, CodeAddr::new(new)) }.expect("memory");
    let answer = func("fxm_answer", addr_of_fn!(fx_value_new));
    let pair_new = func("fx_pair", pair_new());
    let patch = Patch::builder("guarded")
        .object(Object::vmlinux().and_then(|object| object.func(pair_new)))
        .object(Object::module(name).and_then(|object| object.func(answer)))
        .build()
        .expect("well formed");
    let patch = livepatch().engine().add(patch).expect("the name is new");
    // On the way, this thread goes on behind the pad of the old function.
    pair(|| {
        livepatch().enable(patch).expect("it fits");
        assert_eq!(function(), 1);
        assert!(is_guarded(at), "while the transition is under way");
    });
    settle(patch);
    assert_eq!(function(), 2);
    assert!(is_guarded(at), "patched");
    disable(patch);
    assert_eq!(function(), 1);
    assert!(is_guarded(at), "as it was");
}
