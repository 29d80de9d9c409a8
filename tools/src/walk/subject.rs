//! A table to walk, of a format known only at run time.

use std::ops::ControlFlow;

use iopt_formats::catalog::{FormatName, Options, Visitor};
use iopt_formats::walk::{self, Root, VisitError};
use iopt_formats::{Format, Iova, Oa};

use crate::reference;
use crate::walk::list::Listing;
use crate::walk::print::WalkReport;

/// Memory that tables are read from.
pub(crate) type Words<'a> = &'a dyn Fn(Oa) -> Option<u64>;

/// Returns how many items are read at most from a memory of `len` bytes.
///
/// A few tables that point to each other again and again stand for more leaves than any machine
/// has; without sharing, no item is read twice. Small memories may share.
pub(crate) fn item_limit(len: u64) -> u64 {
    (len / 8).clamp(1 << 20, 1 << 28)
}

/// One leaf item.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct LeafItem {
    /// First address.
    pub(crate) iova: u64,
    /// Where it goes.
    pub(crate) oa: u64,
    /// Bytes that the item translates.
    pub(crate) len: u64,
    /// The raw item.
    pub(crate) word: u64,
}

/// A table to walk.
pub(crate) trait Subject {
    /// Returns the name of the format.
    fn format(&self) -> FormatName;

    /// Returns where the table starts.
    fn root(&self) -> Root;

    /// Returns everything that tells the table and its configuration apart from others.
    fn identity(&self) -> String;

    /// Walks one address.
    fn walk(&self, iova: Iova, words: Words<'_>) -> WalkReport;

    /// Collects every leaf, reading at most `limit` items.
    fn list(&self, words: Words<'_>, limit: u64) -> Listing;

    /// Collects every leaf item, up to the first thing that is wrong or the limit of items read.
    fn items(&self, words: Words<'_>, limit: u64) -> (Vec<LeafItem>, Option<VisitError>);
}

/// A table of a known format.
#[derive(Debug)]
struct Typed<F> {
    name: FormatName,
    format: F,
    root: Root,
}

/// Wraps a table that context structures led to.
pub(crate) fn subject<F: Format>(name: FormatName, format: F, root: Root) -> Box<dyn Subject> {
    Box::new(Typed { name, format, root })
}

impl<F: Format> Subject for Typed<F> {
    fn format(&self) -> FormatName {
        self.name
    }

    fn root(&self) -> Root {
        self.root
    }

    fn identity(&self) -> String {
        format!("{:?} at {}", self.format, self.root.oa)
    }

    fn walk(&self, iova: Iova, words: Words<'_>) -> WalkReport {
        WalkReport::new(self.name, &self.format, self.root, iova, words)
    }

    fn list(&self, words: Words<'_>, limit: u64) -> Listing {
        let mut listing = Listing::default();
        let result = walk::visit(&self.format, self.root, limit, words, |found| {
            listing.add(found);
            ControlFlow::Continue(())
        });
        listing.error = result.err();
        listing
    }

    fn items(&self, words: Words<'_>, limit: u64) -> (Vec<LeafItem>, Option<VisitError>) {
        let mut items = Vec::new();
        let result = walk::visit(&self.format, self.root, limit, words, |found| {
            items.push(LeafItem {
                iova: found.iova.start().get(),
                oa: found.oa.get(),
                len: found.iova.len().unwrap_or(u64::MAX),
                word: found.word,
            });
            ControlFlow::Continue(())
        });
        (items, result.err())
    }
}

/// Makes the subject of a format by name, and the same table for the reference walker.
pub(crate) struct MakeSubject<'a> {
    /// The format.
    pub(crate) name: FormatName,
    /// Its options.
    pub(crate) options: &'a Options,
    /// Where the root table lies.
    pub(crate) root: Oa,
}

impl Visitor for MakeSubject<'_> {
    type Output = (Box<dyn Subject>, iopt_reference::Table);

    fn visit<F: Format>(self, format: F) -> Self::Output {
        // A table that can grow is taken to be as low as it starts, unless the options say more.
        let level = format.geometry().top;
        let root = Root {
            oa: self.root,
            level,
        };
        let judge = reference::table(self.name, self.options, &format, root);
        (subject(self.name, format, root), judge)
    }
}
