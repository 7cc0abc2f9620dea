//! What lies out of a jump's reach. Each test runs in a child with an engine of its own, which has
//! no memory near the code yet.

use klp_core::addr::{CodeAddr, TextRange};
use klp_core::error::PortFault;
use klp_core::port::PortErrorKind;
use klp_core::{Error, Func, Object, Patch};
use klp_os_linux_fixtures::*;

#[test]
fn a_patch_is_refused_if_no_memory_is_in_reach() {
    let before = text();
    let status = in_child(|| {
        let patch = add("far", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
        take_all_memory_in_reach();
        let error = livepatch()
            .enable(patch)
            .expect_err("there is no memory in reach");
        println!("{error}");
        assert!(error.to_string().contains("'far'"));
        matches!(
            &error,
            Error::Port(PortFault {
                kind: PortErrorKind::NoMemoryInReach,
                ..
            })
        ) && text() == before
            && fx_value() == 1
    });
    assert_eq!(status, 0);
}

#[test]
fn far_targets_are_reached_through_veneers() {
    let status = in_child(|| {
        // Farther away than any jump reaches.
        let code = machine::SEVENTY_SEVEN;
        let far = page_of_value() + (5 << 30);
        // SAFETY: nothing is there (MAP_FIXED_NOREPLACE), and what is written is code.
        let new = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            let at = libc::mmap(far as *mut _, 4096, prot, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            core::ptr::copy_nonoverlapping(code.as_ptr(), at.cast(), code.len());
            machine::written(at as u64, code.len());
            TextRange::new(CodeAddr::new(at as u64), code.len() as u64).expect("it does not wrap")
        };
        let before = text();
        // SAFETY: `code` is a function of the same type, and all of it; the mapping stays.
        let func = unsafe { Func::with_range("fx_value", new) }.expect("there is memory");
        let object = Object::vmlinux().and_then(|object| object.func(func));
        let patch = Patch::builder("veneer")
            .object(object)
            .build()
            .expect("the patch is well formed");
        let patch = livepatch().engine().add(patch).expect("the name is new");
        enable(patch);
        assert_eq!(fx_value(), 77);
        disable(patch);
        fx_value() == 1 && text() == before
    });
    assert_eq!(status, 0);
}

/// The page that `fx_value` is on.
fn page_of_value() -> u64 {
    addr_of_fn!(fx_value) & !(page_size() as u64 - 1)
}

/// Reserves every gap within 4 GiB of the executable: no jump reaches farther.
fn take_all_memory_in_reach() {
    let here = page_of_value();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("there is a /proc");
    let mut end = 0x1_0000;
    let ranges = maps.lines().filter_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        Some((
            u64::from_str_radix(start, 16).ok()?,
            u64::from_str_radix(end, 16).ok()?,
        ))
    });
    for (start, next) in ranges.chain([(!0xfff, 0)]) {
        let (low, high) = (
            end.max(here.saturating_sub(1 << 32)),
            start.min(here + (1 << 32)),
        );
        if low < high {
            // SAFETY: nothing is there, and MAP_FIXED_NOREPLACE makes sure of it.
            unsafe {
                let flags = libc::MAP_PRIVATE
                    | libc::MAP_ANONYMOUS
                    | libc::MAP_NORESERVE
                    | libc::MAP_FIXED_NOREPLACE;
                libc::mmap(
                    low as *mut _,
                    (high - low) as usize,
                    libc::PROT_NONE,
                    flags,
                    -1,
                    0,
                );
            }
        }
        end = next;
    }
}
