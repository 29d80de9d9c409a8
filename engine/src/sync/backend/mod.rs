//! What the locks are made of: `Mutex` and `Condvar` of the platform, without poisoning, and time.
//! Every critical section of the engine leaves its data valid at each step, so a panic inside one
//! hides nothing.

#[cfg(loom)]
mod model;
#[cfg(all(not(loom), feature = "parking_lot"))]
mod parking;
#[cfg(all(not(loom), not(feature = "std")))]
mod spinning;
#[cfg(all(not(loom), feature = "std", not(feature = "parking_lot")))]
mod standard;
mod waiting;

#[cfg(loom)]
pub(crate) use self::model::{CachePadded, Condvar, Mutex, MutexGuard};
#[cfg(all(not(loom), feature = "parking_lot"))]
pub(crate) use self::parking::{Condvar, Mutex, MutexGuard};
#[cfg(all(not(loom), not(feature = "std")))]
pub(crate) use self::spinning::{Condvar, Mutex, MutexGuard};
#[cfg(all(not(loom), feature = "std", not(feature = "parking_lot")))]
pub(crate) use self::standard::{Condvar, Mutex, MutexGuard};
pub(crate) use self::waiting::{Deadline, Left, now_ns, pause};
