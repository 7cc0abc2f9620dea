//! Patches as modules of a Linux kernel.
//!
//! Such a module is linked by Kbuild of two object files: the patch's
//! ([`PatchBuilder::build_for_module`](crate::PatchBuilder::build_for_module)), and that of
//! [`INIT`], which enables the patch when the module is loaded.
//! [`convert()`](crate::convert()) makes a livepatch of the result: linkers would not keep its
//! relocations as they must be.

/// The source of a module's other object file, in C.
pub const INIT: &str = include_str!("../linux/init.c");

/// What [`INIT`] calls the start of the array of objects.
pub(crate) const OBJECTS: &str = "klp_built_objects";

/// What [`INIT`] calls the end of that.
pub(crate) const OBJECTS_END: &str = "klp_built_objects_end";
