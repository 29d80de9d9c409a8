//! What is said about a request that reached what it may not.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::atc::AtcEntry;
use crate::behaviour::Effect;
use crate::context_cache::CachedContext;
use crate::iotlb::LeafEntry;
use crate::memory::Read;
use crate::rights::Rights;
use crate::walk_cache::TableEntry;

/// Which law was broken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Law {
    /// A request was led to what nothing maps any more, or with rights that nothing grants.
    Reach,
    /// A walk read a table that was freed, or a page that is another table by now.
    FreedTable,
    /// A request was refused that a mapping allows whose map side is done.
    Missed,
}

/// What an outcome came from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A device TLB.
    DeviceTlb(Box<AtcEntry>),
    /// The IOTLB.
    Iotlb(Arc<LeafEntry>),
    /// A walk that went on from a cached pointer.
    WalkCache(Arc<TableEntry>),
    /// A walk from the root.
    Walk(Vec<Read>),
    /// The context alone.
    Context,
}

/// A command that passed since something was cached.
#[derive(Clone, Debug)]
pub struct Passed {
    /// Its number, from 0 on.
    pub number: u64,
    /// Virtual nanoseconds when it was consumed.
    pub time: u64,
    /// Its name in the manual.
    pub name: &'static str,
    /// Its words.
    pub words: [u64; 4],
    /// Why it did not drop the entry; `None` if it did, but no sync has completed it.
    pub reason: Option<&'static str>,
}

/// A request that broke a law, or may have, with what the hardware cached and why it still does.
#[derive(Clone, Debug)]
pub struct StaleAccess {
    /// The law.
    pub law: Law,
    /// The device.
    pub device: u32,
    /// Its PASID.
    pub pasid: Option<u32>,
    /// The input address; of two stages that of the second, where only that was examined.
    pub iova: u64,
    /// Where it led, or what was read or refused.
    pub address: Option<u64>,
    /// What was granted.
    pub rights: Option<Rights>,
    /// What the outcome came from.
    pub source: Source,
    /// The context, if it was a cached one.
    pub context: Option<CachedContext>,
    /// Commands that passed since the entry, or the context, was cached; the last ones.
    pub history: Vec<Passed>,
}

/// Most commands that a report lists.
pub(crate) const MOST_PASSED: usize = 24;

impl fmt::Display for StaleAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {:#x}", self.device)?;
        if let Some(pasid) = self.pasid {
            write!(f, " pasid {pasid:#x}")?;
        }
        write!(f, " iova {:#x}: ", self.iova)?;
        f.write_str(match self.law {
            Law::Reach => "reaches what nothing maps",
            Law::FreedTable => "reads a table that was freed",
            Law::Missed => "is refused although mapped",
        })?;
        if let Some(address) = self.address {
            write!(f, ", address {address:#x}")?;
        }
        if let Some(rights) = self.rights {
            write!(f, ", {rights}")?;
        }
        match &self.source {
            Source::DeviceTlb(entry) => {
                write!(
                    f,
                    "\n  device TLB entry {:#x}..={:#x}, fetched at {} ns after {} commands",
                    entry.span.start,
                    entry.span.last(),
                    entry.time,
                    entry.commands
                )?;
                write_leaf(f, &entry.from)?;
            }
            Source::Iotlb(entry) => write_leaf(f, entry)?,
            Source::WalkCache(entry) => {
                write!(
                    f,
                    "\n  cached pointer to {:#x} for {:#x}..={:#x} of {:x?}, cached at {} ns after {} commands, from",
                    entry.next.0,
                    entry.span.start,
                    entry.span.last(),
                    entry.tag,
                    entry.origin.time,
                    entry.origin.commands
                )?;
                write_words(f, &entry.origin.words)?;
            }
            Source::Walk(words) => {
                f.write_str("\n  by a walk of the tables")?;
                write_words(f, words)?;
            }
            Source::Context => f.write_str("\n  by the context alone")?,
        }
        if let Some(context) = &self.context {
            write!(
                f,
                "\n  context cached after {} commands, from",
                context.commands
            )?;
            write_words(f, &context.words)?;
        }
        for passed in &self.history {
            let [low, high, ..] = passed.words;
            write!(
                f,
                "\n  command {} at {} ns, {} {low:#x} {high:#x}: {}",
                passed.number,
                passed.time,
                passed.name,
                passed
                    .reason
                    .unwrap_or("drops it, and no sync has completed since")
            )?;
        }
        Ok(())
    }
}

fn write_leaf(f: &mut fmt::Formatter<'_>, entry: &LeafEntry) -> fmt::Result {
    write!(
        f,
        "\n  IOTLB entry {:#x}..={:#x} of {:x?}, cached at {} ns after {} commands for device {:#x}, from",
        entry.span.start,
        entry.span.last(),
        entry.tag,
        entry.origin.time,
        entry.origin.commands,
        entry.origin.device
    )?;
    write_words(f, &entry.origin.words)
}

fn write_words(f: &mut fmt::Formatter<'_>, words: &[Read]) -> fmt::Result {
    for read in words {
        write!(f, " [{:#x}]={:#x}", read.address, read.word)?;
    }
    Ok(())
}

impl Error for StaleAccess {}

/// A command as it was consumed.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub(crate) number: u64,
    pub(crate) time: u64,
    pub(crate) name: &'static str,
    pub(crate) words: [u64; 4],
    pub(crate) effects: Vec<Effect>,
}

impl Logged {
    /// Returns what the command did to something cached; nothing if it was of another kind.
    ///
    /// `keeps` gives the reason by which one effect spares the entry, within the first `Some` if the
    /// effect is about entries of its kind.
    pub(crate) fn passed(
        &self,
        keeps: impl Fn(&Effect) -> Option<Option<&'static str>>,
    ) -> Option<Passed> {
        let reasons: Vec<_> = self.effects.iter().filter_map(keeps).collect();
        let reason = reasons.iter().find(|reason| reason.is_none());
        let reason = *reason.or(reasons.first())?;
        Some(Passed {
            number: self.number,
            time: self.time,
            name: self.name,
            words: self.words,
            reason,
        })
    }
}
