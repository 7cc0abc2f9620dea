//! Random sequences of operations on the simulated OS, against a small model of what the engine
//! should say, with the audit after each step: patches that stack, replace each other and belong to
//! sets, a module that comes and goes at any time, callbacks that veto and that call the engine,
//! a loader of the system's own that relocates patches too, faults in ports, tasks that run while
//! the engine does.
//!
//! `KLP_STEPS` sets the longest sequence (default 60), `PROPTEST_CASES` how many are tried (default
//! 1,500). The long run, with its count of steps (`KLP_SEED` repeats a run; with `KLP_BLIND` the
//! host does not list suspended stacks, and mixes must be found; with `PROPTEST_MAX_SHRINK_ITERS=0`
//! a finding tells how many steps it took):
//!
//! ```text
//! KLP_STEPS=400 PROPTEST_CASES=6000 \
//!     cargo test --release -p klp-core --test properties -- --nocapture
//! ```

#[path = "../common/mod.rs"]
mod common;
mod ledger;
mod model;
mod ops;
mod patches;

use model::Model;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use std::env;
use std::sync::atomic::{AtomicU64, Ordering};

fn number(name: &str, default: u32) -> u32 {
    env::var(name)
        .ok()
        .and_then(|number| number.parse().ok())
        .unwrap_or(default)
}

#[test]
fn random_sequences() {
    let steps = number("KLP_STEPS", 60) as usize;
    let cases = number("PROPTEST_CASES", 1_500);
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = match env::var("KLP_SEED")
        .ok()
        .and_then(|seed| seed.parse::<u64>().ok())
    {
        None => TestRunner::new(config),
        Some(seed) => {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&seed.to_le_bytes());
            TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
        }
    };
    let done = AtomicU64::new(0);
    let sequences = (
        any::<bool>(),
        proptest::collection::vec(ops::op(), 1..=steps),
    );
    let run = runner.run(&sequences, |(self_switching, ops)| {
        let mut model = Model::new(self_switching);
        for op in &ops {
            model.apply(op);
            done.fetch_add(1, Ordering::Relaxed);
        }
        model.take_down();
        Ok(())
    });
    if let Err(error) = run {
        panic!("after {} steps: {error}", done.into_inner());
    }
    println!(
        "{} random steps in {cases} sequences without a finding",
        done.into_inner()
    );
}
