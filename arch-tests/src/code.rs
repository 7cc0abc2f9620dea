//! Code as bytes, on any machine. A test here is called by the test of its name.

use klp_core::addr::CodeAddr;
use klp_core::port::{Arch, Code, OutOfReach};
use proptest::arbitrary::any;
use proptest::collection::vec;
use proptest::test_runner::{Config, TestRunner};

/// Instructions that are words of four bytes, the least significant one first.
#[must_use]
pub fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Where `code` jumps to, which stands at `at`.
#[must_use]
pub fn jumps<A: Arch>(at: u64, code: &[u8]) -> Vec<Option<u64>> {
    let mut found = Vec::new();
    A::jumps(CodeAddr::new(at), code, &mut |to| {
        found.push(to.map(CodeAddr::get));
    });
    found
}

/// Whatever bytes are looked at for jumps, there are not more of these than bytes.
pub fn random_bytes_never_panic<A: Arch>() {
    let mut runner = TestRunner::new(Config {
        failure_persistence: None,
        ..Config::default()
    });
    let inputs = (vec(any::<u8>(), 0..64), any::<u64>());
    let result = runner.run(&inputs, |(code, at)| {
        proptest::prop_assert!(jumps::<A>(at, &code).len() <= code.len());
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// A jump of `len` bytes, the shortest, leads as far as `up` and `down` and no farther, in steps of
/// so many bytes.
pub fn the_edges_of_reach<A: Arch>(len: u8, up: u64, down: u64, step: u64) {
    let at = CodeAddr::new(0x7000_0000_0000);
    let (up, down) = (at.wrapping_add(up), at.wrapping_sub(down));
    assert!(A::jump(at, up, len).is_ok() && A::jump(at, down, len).is_ok());
    let between = (step > 1).then(|| at.wrapping_add(step / 2));
    let beyond = [up.wrapping_add(step), down.wrapping_sub(step)];
    for to in beyond.into_iter().chain(between) {
        assert_eq!(A::jump(at, to, len), Err(OutOfReach { from: at, to }));
    }
    let shorter = A::jump(at, at, len - 1);
    assert!(shorter.is_err(), "no jump is that short");
    let longest = Code::new().capacity() as u8;
    assert!(A::jump(at, at, longest).is_ok());
    let longer = A::jump(at, at, longest + 1);
    assert!(longer.is_err(), "nothing is that long");
}
