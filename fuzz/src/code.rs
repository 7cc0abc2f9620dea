//! Instructions: what is said of bytes lies in them, and what an architecture writes it can read.

use crate::on_machine;
use klp_core::addr::CodeAddr;
use klp_core::port::{Arch, Intruder};
use libfuzzer_sys::arbitrary::{Result, Unstructured};

/// Checks one input: a byte for the machine, an address, a target, and code.
pub fn check(input: &[u8]) {
    if let [machine, rest @ ..] = input {
        // Too short: nothing to check.
        let _ = on_machine!(machine, check_on(Unstructured::new(rest)));
    }
}

fn check_on<A: Arch>(mut input: Unstructured<'_>) -> Result<()> {
    // Instructions are aligned, and no code is at either end of memory.
    let at = CodeAddr::new((input.arbitrary::<u64>()? >> 8 & !0xf) + (1 << 33));
    let to = CodeAddr::new(
        at.get()
            .wrapping_add_signed(i64::from(input.arbitrary::<i32>()?) & !0xf),
    );
    let code = input.take_rest();
    if let Some(entry) = A::entry(at, code) {
        let (skip, len) = (usize::from(entry.skip), usize::from(entry.len));
        assert!(len > 0 && skip + len <= code.len().min(A::MAX_ENTRY));
        assert!(entry.resume >= entry.len);
        let alone = code.get(..skip + usize::from(entry.resume)).unwrap_or(code);
        assert_eq!(A::intruder(at, alone), None, "nobody has changed it");
        check_entry::<A>(at.wrapping_add(skip as u64), to, entry.len, code, skip);
    }
    let _ = A::intruder(at, code);
    let mut jumps = 0;
    A::jumps(at, code, &mut |_| jumps += 1);
    assert!(jumps <= code.len() + 1, "more jumps than bytes");
    for made in [
        A::thunk(at, to.get(), to),
        A::veneer(at, to),
        A::call_veneer(at, to),
    ] {
        assert!(made.len() as u64 <= A::SLOT);
    }
    Ok(())
}

/// Puts a jump into an entry, and looks for it.
fn check_entry<A: Arch>(at: CodeAddr, to: CodeAddr, len: u8, code: &[u8], skip: usize) {
    let Ok(jump) = A::jump(at, to, len) else {
        assert!(
            at.distance_to(to).unsigned_abs() >= A::REACH - 16,
            "{at} to {to} is in reach"
        );
        return;
    };
    assert_eq!(jump.len(), usize::from(len));
    let mut patched = code.to_vec();
    patched[skip..skip + jump.len()].copy_from_slice(&jump);
    let start = at.wrapping_sub(skip as u64);
    let found = A::intruder(start, &patched);
    let is_jump = matches!(found, Some(Intruder::Jump { at: from, to: Some(found) }) if from == at && found == to);
    assert!(is_jump, "a jump from {at} to {to} is taken for {found:?}");
}
