//! What models need of `loom` besides the facade.

pub(crate) use loom::cell::UnsafeCell;
pub(crate) use loom::thread;
