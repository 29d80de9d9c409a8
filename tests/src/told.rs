//! Whether the hardware was told enough.

use iopt::invalidation::Changes;
use iopt_formats::{IovaRange, Level};

use crate::check::Mismatch;
use crate::model::Entry;

/// Checks that `seen` covers each of `entries` and names its size.
pub(crate) fn expect_told(seen: &[Changes], entries: &[Entry]) -> Result<(), Mismatch> {
    for entry in entries {
        let covers = |changes: &Changes| {
            changes
                .range()
                .is_some_and(|range| range.contains(entry.range()))
                && changes.leaf_sizes().contains(entry.size)
        };
        if !seen.iter().any(covers) {
            return Err(Mismatch::new(format!(
                "hardware was not told of {entry:x?}: {seen:x?}"
            )));
        }
    }
    Ok(())
}

/// Checks that `seen` says of each unlinked table that the items which pointed to it are gone.
pub(crate) fn expect_told_tables(
    seen: &[Changes],
    unlinked: &[(Level, IovaRange)],
) -> Result<(), Mismatch> {
    for &(level, span) in unlinked {
        let covers = |changes: &Changes| {
            changes.range().is_some_and(|range| range.contains(span))
                && changes.has_table(Level(level.0 + 1))
        };
        if !seen.iter().any(covers) {
            let text = format!("hardware was not told of the table at {span}: {seen:x?}");
            return Err(Mismatch::new(text));
        }
    }
    Ok(())
}
