//! Sets of intervals, as an IO address space needs them: what lies where, what is free, what nobody
//! may have.
//!
//! All of it is plain data under the lock of its owner. Intervals are closed, so that one may end at
//! the last byte of the space, and no sum of an address and one is ever taken unchecked.
//!
//! ```text
//! disjoint       disjoint intervals with values: insert unless one is in the way, find, divide
//!
//! reservations   owners keep ranges out; an allowed list keeps others from doing so
//!   spans        which parts of a range are covered
//!     tree       intervals that may overlap
//!   |
//!   |   gaps     disjoint ranges in use: the lowest free place that fits
//!   v   v
//! augmented      the balanced tree under both, in one block of memory
//! ```

mod augmented;
pub(crate) mod disjoint;
pub(crate) mod gaps;
#[cfg(test)]
pub(crate) mod random;
pub(crate) mod reservations;
pub(crate) mod spans;
pub(crate) mod tree;

#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
pub(crate) use augmented::Handle;
pub(crate) use augmented::OutOfNodes;
