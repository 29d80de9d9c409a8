//! Pages that another program has filled.
//!
//! A memory that was handed over knows at first of none of its pages whether a table lies in it. So
//! every page counts as handed out, to nobody yet; who finds a table in one adopts it.

#![expect(unsafe_code, reason = "the trait that implementors vouch for")]

use alloc::sync::Arc;

use iopt_formats::{Oa, PageSize};

use crate::mem::{FlushLine, NonSnooped, TableMemory};

/// Why a page cannot be adopted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// The page does not lie wholly inside of the memory, or no page has this size.
    #[error("no page of {size} at {oa} lies inside of the memory")]
    Outside {
        /// Where it would be.
        oa: Oa,
        /// Its size.
        size: PageSize,
    },
    /// Its address is no multiple of its size.
    #[error("the address {oa} is not a multiple of {size}")]
    Unaligned {
        /// The address.
        oa: Oa,
        /// The size.
        size: PageSize,
    },
    /// A part of the page has an owner: a table that was adopted before, or this one, or the memory
    /// itself, because it was not handed over or its other pages were freed already.
    #[error("a part of the {size} page at {oa} has an owner already")]
    Taken {
        /// Where it lies.
        oa: Oa,
        /// Its size.
        size: PageSize,
    },
}

/// A memory whose pages may hold what another program has left in them.
///
/// # Safety
///
/// An implementor guarantees what [`TableMemory`] asks for, and:
///
/// - **M4** (adopted): a page that [`adopt_page`](Self::adopt_page) returns `Ok` for is the caller's
///   as if [`alloc`](TableMemory::alloc) had returned it, but for what it holds: any words, which
///   nobody changes any more but the caller and hardware that walks tables.
pub unsafe trait Adoptable: TableMemory {
    /// Takes the page of `size` at `oa`, with what it holds, if it lies inside of the memory and
    /// nobody has taken a part of it.
    ///
    /// # Errors
    ///
    /// [`PageError`] says which rule it breaks; nothing changed then.
    fn adopt_page(&self, oa: Oa, size: PageSize) -> Result<(), PageError>;

    /// Undoes [`adopt_page`](Self::adopt_page): the page belongs to nobody again and holds what it
    /// holds.
    ///
    /// # Safety
    ///
    /// The page was adopted with this `size`, was neither given back nor freed since, and the caller
    /// uses it no more.
    unsafe fn disown_page(&self, oa: Oa, size: PageSize);
}

macro_rules! forward {
    ($($pointer:ty),+) => {$(
        // SAFETY: M4 holds because every call reaches the same `M`, which upholds it.
        unsafe impl<M: Adoptable> Adoptable for $pointer {
            fn adopt_page(&self, oa: Oa, size: PageSize) -> Result<(), PageError> {
                (**self).adopt_page(oa, size)
            }

            unsafe fn disown_page(&self, oa: Oa, size: PageSize) {
                // SAFETY: the caller's contract is that of the memory behind the pointer.
                unsafe { (**self).disown_page(oa, size) }
            }
        }
    )+};
}

forward!(&M, Arc<M>);

// SAFETY: M4 holds because every page comes from the memory behind, which upholds it.
unsafe impl<M: Adoptable, L: FlushLine> Adoptable for NonSnooped<M, L> {
    fn adopt_page(&self, oa: Oa, size: PageSize) -> Result<(), PageError> {
        self.memory().adopt_page(oa, size)
    }

    unsafe fn disown_page(&self, oa: Oa, size: PageSize) {
        // SAFETY: the caller's contract is that of the memory behind.
        unsafe { self.memory().disown_page(oa, size) }
    }
}
