//! A thunk that can be called.

use core::ptr;
use klp_core::addr::CodeAddr;
use klp_core::port::Arch;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};

/// An entry stub.
pub type Stub = unsafe extern "C" fn();

/// A page with one thunk in it.
#[derive(Debug)]
pub struct Page(*mut libc::c_void);

impl Page {
    /// As long as the largest pages of memory.
    const LEN: usize = 1 << 16;

    /// Maps a thunk that enters `stub` with `arg`. The page is one of a file: that what a file
    /// holds can be executed where it is mapped, is the kernel's care on every processor.
    ///
    /// # Panics
    ///
    /// If the system refuses that.
    #[must_use]
    pub fn with_thunk<A: Arch>(arg: u64, stub: Stub) -> Self {
        // SAFETY: the name is a string.
        let file = unsafe { libc::memfd_create(c"klp-thunk".as_ptr(), libc::MFD_CLOEXEC) };
        assert_ne!(file, -1, "memfd_create");
        // SAFETY: it is new, and nobody else's.
        let mut file = unsafe { File::from_raw_fd(file) };
        file.set_len(Self::LEN as u64).expect("a page");
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::LEN,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED, "mmap");
        let page = Self(page);
        let thunk = A::thunk(page.addr(), arg, CodeAddr::new(stub as *const () as u64));
        file.write_all(&thunk).expect("the page is longer");
        page
    }

    /// Where the thunk is.
    #[must_use]
    pub fn addr(&self) -> CodeAddr {
        CodeAddr::new(self.0 as u64)
    }

    /// The thunk as a function, to be cast to the one that its way ends in.
    #[must_use]
    pub fn function(&self) -> *const () {
        self.0.cast_const().cast()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped by `with_thunk`, and nobody executes in it any more.
        assert_eq!(unsafe { libc::munmap(self.0, Self::LEN) }, 0, "munmap");
    }
}
