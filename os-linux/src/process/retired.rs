//! Patch objects whose patches were removed, and words that may point into them.

use super::arch;
use super::sys::PAGE;
use core::sync::atomic::{AtomicBool, Ordering};
use klp_core::addr::TextRange;
use klp_core::port::Image;

/// A patch object that nobody needs any more, unless a word on a stack points into it.
pub(crate) struct Retired {
    /// The number of its first page.
    pub(crate) page: u64,
    pages: u64,
    /// Whether a word was found.
    held: AtomicBool,
}

/// The number of the page that `image` begins with.
pub(crate) fn first_page(image: Image) -> u64 {
    let starts = parts(image).map(|part| part.start().get());
    starts.min().unwrap_or(0) / PAGE
}

fn parts(image: Image) -> impl Iterator<Item = TextRange> {
    let parts = [image.text, image.rodata, image.data];
    parts.into_iter().filter(|part| !part.is_empty())
}

impl Retired {
    pub(crate) fn new(image: Image) -> Self {
        let page = first_page(image);
        let end = parts(image).map(|part| part.end().get()).max();
        Self {
            page,
            pages: end.unwrap_or(0).div_ceil(PAGE) - page,
            held: AtomicBool::new(false),
        }
    }

    fn contains(&self, word: u64) -> bool {
        (word / PAGE).wrapping_sub(self.page) < self.pages
    }

    /// Whether [`hold`] has found a word that points into it.
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }
}

/// Holds each of `retired` that one of `words` points into.
pub(crate) fn hold(retired: &[Retired], words: impl Iterator<Item = u64>) {
    for word in words.map(arch::address) {
        for image in retired.iter().filter(|image| image.contains(word)) {
            image.held.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use klp_core::addr::CodeAddr;

    fn image(text: (u64, u64), data: (u64, u64)) -> Image {
        let range = |(start, len)| TextRange::new(CodeAddr::new(start), len).expect("no wrap");
        Image {
            text: range(text),
            rodata: range((text.0, 0)),
            data: range(data),
        }
    }

    #[test]
    fn every_page_of_an_image_counts_and_no_other() {
        let retired = Retired::new(image((0x40_0000, 0x1234), (0x40_2000, 8)));
        for word in [0x40_0000, 0x40_1fff, 0x40_2000, 0x40_2fff] {
            assert!(retired.contains(word), "{word:x}");
        }
        for word in [0, 0x3f_ffff, 0x40_3000, u64::MAX] {
            assert!(!retired.contains(word), "{word:x}");
        }
        let nothing = Retired::new(image((0x40_0000, 0), (0x40_0000, 0)));
        assert!(!nothing.contains(0) && !nothing.contains(0x40_0000));
    }

    #[test]
    fn a_word_holds_the_image_that_it_points_into() {
        let images = [
            Retired::new(image((0x40_0000, 16), (0x40_1000, 0))),
            Retired::new(image((0x50_0000, 16), (0x50_1000, 0))),
        ];
        hold(&images, [1, 0x50_0008, 3].into_iter());
        assert_eq!(images.map(|image| image.is_held()), [false, true]);
    }
}
