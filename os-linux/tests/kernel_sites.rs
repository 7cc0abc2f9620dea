//! The kernel embedding's table of entry sites, tried out in a process: all it asks of the kernel
//! is a task's state.

#[path = "../kernel/sites.rs"]
#[allow(unsafe_code, reason = "read without a lock")]
mod sites;

mod host {
    /// Counts; the memory is leaked.
    #[allow(unsafe_code, reason = "the kernel's gives memory back")]
    pub(crate) unsafe fn klp_host_retire(table: *mut core::ffi::c_void) {
        assert!(!table.is_null());
        RETIRED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) static RETIRED: std::sync::atomic::AtomicUsize =
        std::sync::atomic::AtomicUsize::new(0);
}

mod tasks {
    use klp_core::port::TaskState;

    pub(crate) fn current_state() -> TaskState {
        TaskState::Unpatched
    }
}

/// Only its address is of use here: the real one is in `entry.S`.
#[unsafe(no_mangle)]
#[allow(unsafe_code, reason = "a name that the table asks for")]
extern "C" fn klp_entry_ask() {}

extern crate alloc;

use klp_core::addr::CodeAddr;
use klp_core::mem::try_box;
use klp_core::ops::Ops;
use sites::{Sites, Way, klp_engine_select};
use std::collections::HashMap;

/// Numbers that look random, the same ones in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % end
    }
}

/// Few keys, so that they come again, and many of them for one place in the tables.
fn key(number: u64) -> u64 {
    0xffff_ffff_8100_0005 + 16 * (number % 24) + 0x10_0000 * (number / 24)
}

/// The table is one for the whole process, and so is the test.
#[test]
fn calls_go_where_the_table_was_told() {
    let mut sites = Sites::new().expect("memory");
    let mut model: HashMap<u64, Way> = HashMap::new();
    let mut numbers = Numbers(7);
    for step in 0..20_000 {
        let key = key(numbers.below(600));
        match numbers.below(8) {
            0 => {
                sites.forget(key);
                model.remove(&key);
            }
            1 => sites.reserve(numbers.below(64) as usize).expect("memory"),
            what => {
                let way = match what {
                    2 | 3 => Way::Original,
                    4 => {
                        // No patch is on it: its handler answers with the original, which here is
                        // another place.
                        let original = CodeAddr::new(key - 0x1000_0000);
                        Way::Ask(
                            Ops::leak(try_box(Ops::new(original)).expect("memory"))
                                .arg()
                                .get(),
                        )
                    }
                    _ => Way::To(0x5000 + numbers.below(1000)),
                };
                sites.reserve(1).expect("memory");
                sites.set(key, way);
                model.insert(key, way);
            }
        }
        for key in [key, self::key(numbers.below(700))] {
            let way = model.get(&key).copied().unwrap_or(Way::Original);
            assert_eq!(sites.get(key), way, "step {step}, key {key:#x}");
            let goes = match way {
                Way::Original => key,
                Way::Ask(_) => key - 0x1000_0000,
                Way::To(target) => target,
            };
            assert_eq!(klp_engine_select(key), goes, "step {step}, key {key:#x}");
        }
    }
    assert!(
        host::RETIRED.load(std::sync::atomic::Ordering::Relaxed) >= 2,
        "the table has grown"
    );
}
