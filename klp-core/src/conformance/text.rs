//! The suite of [`Text`].

use crate::addr::TextRange;
use crate::port::{Fill, Image, ImageLayout, Poke, PortError, PortErrorKind, Text};
use alloc::vec;
use alloc::vec::Vec;

/// Checks an implementation of [`Text`].
///
/// `pokes` are two changes of code that no task runs through meanwhile, in ascending order of
/// address: two entry pads of functions that nobody calls, with what a jump there looks like.
/// `reach` is as far as memory must be had from them.
///
/// # Panics
///
/// If the implementation breaks the contract; the message says where.
///
/// # Safety
///
/// `pokes` are as said.
pub unsafe fn check<T: Text>(text: &T, pokes: [Poke<'_>; 2], reach: u64) {
    assert!(
        pokes[0].at < pokes[1].at,
        "the places must be in ascending order"
    );
    let found = pokes.map(|poke| read(text, &poke));
    for (poke, found) in pokes.iter().zip(&found) {
        assert_eq!(
            found, poke.old,
            "the porter's word on the bytes at {}",
            poke.at
        );
        assert_eq!(poke.old.len(), poke.new.len(), "a change keeps its length");
        assert_ne!(
            poke.old, poke.new,
            "a change that changes nothing proves nothing"
        );
    }
    check_poke(text, &pokes[..1]);
    check_poke(text, &pokes[1..]);
    check_poke(text, &pokes);
    check_refusal(text, pokes);
    check_memory(
        text,
        TextRange::new(pokes[0].at, pokes[0].old.len() as u64).expect("a place in memory"),
        reach,
    );
}

fn read<T: Text>(text: &T, poke: &Poke<'_>) -> Vec<u8> {
    let mut bytes = vec![0; poke.old.len()];
    text.read(poke.at, &mut bytes)
        .unwrap_or_else(|error| panic!("reading {}: {error}", poke.at));
    bytes
}

/// The change that takes `poke` back.
fn back<'a>(poke: &Poke<'a>) -> Poke<'a> {
    Poke {
        old: poke.new,
        new: poke.old,
        resume: poke.body,
        split: false,
        ..*poke
    }
}

fn check_poke<T: Text>(text: &T, batch: &[Poke<'_>]) {
    let places = batch.len();
    // SAFETY: no task runs through these places; see `check`.
    unsafe { text.poke(batch) }.unwrap_or_else(|error| panic!("changing {places} places: {error}"));
    for poke in batch {
        assert_eq!(
            read(text, poke),
            poke.new,
            "at {} after a change of {places} places",
            poke.at
        );
    }
    let backwards: Vec<_> = batch.iter().map(back).collect();
    // SAFETY: as above.
    unsafe { text.poke(&backwards) }
        .unwrap_or_else(|error| panic!("changing {places} places back: {error}"));
    for poke in batch {
        assert_eq!(
            read(text, poke),
            poke.old,
            "at {} after it was changed back",
            poke.at
        );
    }
}

/// A place that is not as the caller believes spoils the whole batch.
fn check_refusal<T: Text>(text: &T, pokes: [Poke<'_>; 2]) {
    for wrong in 0..2 {
        let mut batch = pokes;
        batch[wrong] = back(&pokes[wrong]);
        // SAFETY: as in the successful case.
        let refused = unsafe { text.poke(&batch) }.map_err(|error| error.kind());
        assert_eq!(
            refused,
            Err(PortErrorKind::Held),
            "the bytes at {} are not `old`",
            pokes[wrong].at
        );
        for poke in &pokes {
            assert_eq!(read(text, poke), poke.old, "at {} after a refusal", poke.at);
        }
    }
}

fn check_memory<T: Text>(text: &T, near: TextRange, reach: u64) {
    let layout = ImageLayout {
        text: 100,
        rodata: 10,
        data: 20,
    };
    let alloc = || {
        text.alloc(near, reach, layout)
            .unwrap_or_else(|error| panic!("allocating {layout:?}: {error}"))
    };
    let images = [alloc(), alloc()];
    let parts: Vec<TextRange> = images.iter().flat_map(parts).collect();
    for (index, part) in parts.iter().enumerate() {
        let overlaps = |other: &TextRange| other.start() < part.end() && part.start() < other.end();
        assert!(!parts[..index].iter().any(overlaps), "{parts:?} overlap");
        for (from, to) in [(near.start(), part.end()), (near.end(), part.start())] {
            assert!(
                from.distance_to(to).unsigned_abs() <= reach,
                "{part:?} is out of reach of {near:?}"
            );
        }
    }
    for image in &images {
        let lens = [image.text, image.rodata, image.data].map(TextRange::len);
        assert_eq!(
            lens,
            [layout.text, layout.rodata, layout.data],
            "sizes of {image:?}"
        );
        assert_eq!(bytes(text, image.data), [0; 20], "data starts as zeros");
        check_fill(text, image);
    }
    for image in images {
        // SAFETY: the suite made it, and nobody else knows it.
        unsafe { text.free(image) };
    }
    let too_near = text.alloc(near, 0, layout).map_err(|error| error.kind());
    assert_eq!(
        too_near.err(),
        Some(PortErrorKind::NoMemoryInReach),
        "no memory is 0 bytes away from code"
    );
}

fn parts(image: &Image) -> [TextRange; 3] {
    [image.text, image.rodata, image.data]
}

fn bytes<T: Text>(text: &T, range: TextRange) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(range.len()).expect("a small range")];
    text.read(range.start(), &mut bytes)
        .unwrap_or_else(|error| panic!("reading {range:?}: {error}"));
    bytes
}

/// Writes to each part in one batch, odd lengths at odd places.
fn check_fill<T: Text>(text: &T, image: &Image) {
    let before = parts(image).map(|part| bytes(text, part));
    let contents = [[1, 2, 3], [4, 5, 6], [7, 8, 9]];
    let place = |part: TextRange| part.start().wrapping_add(3);
    let batch: Vec<_> = parts(image)
        .into_iter()
        .zip(&contents)
        .map(|(part, bytes)| Fill {
            at: place(part),
            bytes,
        })
        .collect();
    // SAFETY: the suite made the image, and nothing runs in it.
    unsafe { text.fill(&batch) }.unwrap_or_else(|error| panic!("filling {image:?}: {error}"));
    for ((part, contents), mut expected) in parts(image).into_iter().zip(contents).zip(before) {
        expected[3..6].copy_from_slice(&contents);
        assert_eq!(
            bytes(text, part),
            expected,
            "{part:?} after three bytes were filled"
        );
    }
}
