//! A library in Rust that C can call. What it uses of smallvec is compiled into it: a copy of a
//! function for each type that it is used with; some of them stand inside of their callers.

use smallvec::SmallVec;

/// Numbers, of which nobody says how many there are (`size_hint` is `(0, None)`).
struct Numbers(core::ops::Range<u8>);

impl Iterator for Numbers {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        self.0.next()
    }
}

/// Numbers between two others, in `out`. Answers how many there are.
///
/// # Safety
///
/// There is room for 256.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn between(out: *mut u8, count: u8) -> usize {
    let mut numbers: SmallVec<[u8; 4]> = SmallVec::from_slice(&[200, 201]);
    numbers.insert_many(1, Numbers(0..count));
    // SAFETY: the caller's promise.
    unsafe { core::ptr::copy_nonoverlapping(numbers.as_ptr(), out, numbers.len()) };
    numbers.len()
}

/// How many letters some numbers have, before a word of 4.
#[unsafe(no_mangle)]
pub extern "C" fn letters(count: u8) -> usize {
    let mut words: SmallVec<[String; 2]> = SmallVec::new();
    words.push("word".to_owned());
    words.insert_many(0, Numbers(0..count).map(|number| number.to_string()));
    words.iter().map(String::len).sum()
}

/// The sum of numbers and another one, added at the front.
#[unsafe(no_mangle)]
pub extern "C" fn sum(count: u8) -> usize {
    let mut numbers: SmallVec<[u8; 4]> = SmallVec::from_slice(&[7]);
    numbers.insert_many(0, Numbers(0..count));
    numbers.iter().map(|number| usize::from(*number)).sum()
}
