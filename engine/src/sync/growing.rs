//! Values that are never moved, of which there come to be more.

use alloc::boxed::Box;
use core::ops::Index;

use crate::sync::OnceLock;

/// Pieces, each twice as long as the one before: the first has one value.
const PIECE_COUNT: usize = usize::BITS as usize;

/// A list that only grows, and lends its values while it does.
///
/// Who makes it grow orders that against others, and against whoever asks for what is new.
pub(crate) struct Growing<T> {
    pieces: [OnceLock<Box<[T]>>; PIECE_COUNT],
}

impl<T> Growing<T> {
    pub(crate) const fn new() -> Self {
        Self {
            pieces: [const { OnceLock::new() }; PIECE_COUNT],
        }
    }

    /// Makes `len` values at least, as far as they are not there.
    pub(crate) fn grow(&self, len: usize, make: impl Fn() -> T) {
        let (pieces, _) = place(len);
        let is_needed = |piece: &usize| (1 << piece) - 1 < len;
        for piece in (0..=pieces).filter(is_needed) {
            self.pieces[piece].get_or_init(|| (0..1_usize << piece).map(|_| make()).collect());
        }
    }
}

/// Returns the piece of a value, and where it is there.
const fn place(index: usize) -> (usize, usize) {
    let piece = (index + 1).ilog2() as usize;
    (piece, index + 1 - (1 << piece))
}

impl<T> Index<usize> for Growing<T> {
    type Output = T;

    /// # Panics
    ///
    /// Panics if there is no such value.
    fn index(&self, index: usize) -> &T {
        let (piece, within) = place(index);
        let piece = self.pieces[piece].get();
        &piece.expect("it was made before anybody asked")[within]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::unmodelled::{AtomicUsize, Ordering};

    #[test]
    fn values_stay_where_they_are_while_more_come() {
        let made = AtomicUsize::new(0);
        let list = Growing::new();
        let make = || made.fetch_add(1, Ordering::Relaxed);
        list.grow(0, make);
        assert_eq!(made.load(Ordering::Relaxed), 0);
        list.grow(1, make);
        let first: &usize = &list[0];
        for len in [2, 3, 4, 9, 8, 100] {
            list.grow(len, make);
            let values = (0..len).map(|index| list[index]);
            assert!(values.eq(0..len), "{len}: each is made once, in order");
        }
        assert!(core::ptr::eq(first, &raw const list[0]));
        assert_eq!(made.load(Ordering::Relaxed), 127);
    }
}
