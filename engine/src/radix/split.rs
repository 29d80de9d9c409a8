//! Two mappers out of one, for the threads of a scope.
//!
//! The parts are what mappers of two neighbouring claims would be: each checks every change against
//! its own range, so leaves are stored to by one of them (T3), and a table that translates for both
//! is unlinked by neither (T4). Items above such tables change as between any two mappers. The
//! mapper that they came from is borrowed for as long as they are, and walks nothing meanwhile.
//!
//! Afterwards it goes on where it was, but for one thing: a part may have unlinked tables that lie
//! wholly in its range, so what the mapper remembers of its walks is gone. Its root is not: former
//! roots stay linked (T6). A part that finds or makes a taller root announces it in its own
//! [`MapSync`](crate::invalidation::MapSync), and so does the mapper itself when it first needs
//! that root.

use iopt_formats::{Format, Iova, Level};

use crate::mem::TableMemory;
use crate::radix::Mapper;
use crate::radix::node::Node;
use crate::radix::position::Position;

impl<F: Format, M: TableMemory> Mapper<'_, F, M> {
    /// Splits the claimed range into what lies below `iova` and what lies from it on, each with a
    /// mapper of its own that another thread may have. `None` unless both hold a byte.
    ///
    /// An entry that reaches over `iova` lies inside neither part, and neither can change it.
    #[doc(alias = "split_at_mut")]
    pub fn split_at(&mut self, iova: Iova) -> Option<(Mapper<'_, F, M>, Mapper<'_, F, M>)> {
        let first_last = iova.get().checked_sub(1)?;
        if iova.get() <= self.start || iova.get() > self.last {
            return None;
        }
        self.forget();
        Some((
            self.part(self.start, first_last),
            self.part(iova.get(), self.last),
        ))
    }

    /// Returns a mapper of `start..=last`, a part of the claim that no other mapper changes for as
    /// long as it lives.
    fn part(&self, start: u64, last: u64) -> Mapper<'_, F, M> {
        let &Self {
            table,
            root,
            top,
            reach,
            table_policy,
            ..
        } = self;
        let (root, top): (Node<'_, F>, Level) = (root, top);
        Mapper {
            table,
            start,
            last,
            root,
            top,
            reach,
            table_policy,
            position: Position::NOWHERE,
        }
    }
}
