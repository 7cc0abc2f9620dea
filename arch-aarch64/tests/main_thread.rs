//! The main thread's stack ends reliably, in `_start`.

#[cfg(not(all(target_os = "linux", target_arch = "aarch64")))]
fn main() {}

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
mod common;

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
fn main() {
    let (mut ours, mut theirs) = (common::Frames::new(), common::Frames::new());
    let result = ours.walk(regs_here!());
    theirs.trace();
    assert_eq!(result, Ok(()));
    assert!(ours.as_slice().len() > 3, "main, the runtime, libc, _start");
    assert!(
        ours.ends(&theirs),
        "{:?}\n{:?}",
        ours.as_slice(),
        theirs.as_slice()
    );
}
