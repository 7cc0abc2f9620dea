//! Allocation that may fail: the only ways in which the engine allocates.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::borrow::Borrow;
use core::fmt;
use core::ops::Deref;

/// The host's allocator said no.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfMemory;

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of memory")
    }
}

impl core::error::Error for OutOfMemory {}

impl From<alloc::collections::TryReserveError> for OutOfMemory {
    fn from(_: alloc::collections::TryReserveError) -> Self {
        Self
    }
}

impl From<hashbrown::TryReserveError> for OutOfMemory {
    fn from(_: hashbrown::TryReserveError) -> Self {
        Self
    }
}

/// Puts `value` into a box of its own.
///
/// # Errors
///
/// [`OutOfMemory`]; `value` is dropped then.
pub fn try_box<T>(value: T) -> Result<Box<[T; 1]>, OutOfMemory> {
    let mut one = Vec::new();
    one.try_reserve_exact(1)?;
    one.push(value);
    // Length and capacity agree, so this moves nothing and allocates nothing.
    one.into_boxed_slice().try_into().map_err(|_| OutOfMemory)
}

/// An empty vector with room for `len` elements.
///
/// # Errors
///
/// [`OutOfMemory`].
pub fn try_vec<T>(len: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len)?;
    Ok(vec)
}

/// Appends `value`.
///
/// # Errors
///
/// [`OutOfMemory`]; the vector is as before then.
pub fn try_push<T>(vec: &mut Vec<T>, value: T) -> Result<(), OutOfMemory> {
    vec.try_reserve(1)?;
    vec.push(value);
    Ok(())
}

/// The name of a patch, an object or a function: text that is owned and never changes.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// A copy of `text`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(text: &str) -> Result<Self, OutOfMemory> {
        let mut copy = alloc::string::String::new();
        copy.try_reserve_exact(text.len())?;
        copy.push_str(text);
        Ok(Self(copy.into_boxed_str()))
    }

    /// A copy; the fallible `Clone`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn try_clone(&self) -> Result<Self, OutOfMemory> {
        Self::new(self)
    }

    /// What `value` displays, as a name.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn display(value: &dyn fmt::Display) -> Result<Self, OutOfMemory> {
        struct Sink(alloc::string::String);
        impl fmt::Write for Sink {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.try_reserve(text.len()).map_err(|_| fmt::Error)?;
                self.0.push_str(text);
                Ok(())
            }
        }
        let mut sink = Sink(alloc::string::String::new());
        fmt::Write::write_fmt(&mut sink, format_args!("{value}")).map_err(|_| OutOfMemory)?;
        Self::new(&sink.0)
    }
}

impl Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        &**self == other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        &**self == *other
    }
}
