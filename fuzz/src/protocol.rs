//! The control protocol: a line that is understood is printed as one line, which means the same.

use crate::memory::bounded;
use klp_os_linux::control::{Reply, Request};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// Checks one input: a line.
pub fn check(line: &[u8]) {
    round_trip::<Request>(line);
    round_trip::<Reply>(line);
}

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(line: &[u8]) {
    // A node of a directory has 40 bytes and a mark at least.
    let most = 4096 + 64 * line.len();
    let Ok(said) = bounded(most, || serde_json::from_slice::<T>(line)) else {
        return;
    };
    let printed = serde_json::to_vec(&said).expect("all of it was JSON");
    assert!(!printed.contains(&b'\n'), "it is one line");
    let again: T = serde_json::from_slice(&printed).expect("it is what was printed");
    assert_eq!(again, said);
}
