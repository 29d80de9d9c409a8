//! What a user-space driver does with one DMA buffer: claim IOVA, map, let the device work, unmap,
//! and reuse the memory only once the hardware has let go of it.
//!
//! Run with `cargo run -p iopt --example dma_buffer`.

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use std::error::Error;

use iopt::invalidation::{Changes, Invalidate, SyncError};
use iopt::mem::Arena;
use iopt::radix::{Table, UnmapPolicy};
use iopt_formats::vtd::SecondStage;
use iopt_formats::{Iova, IovaRange, Oa, Prot};

/// Stands for the IOMMU: says what it would be told.
struct PrintedQueue;

impl Invalidate for PrintedQueue {
    type Ticket = IovaRange;

    fn submit(&self, changes: &Changes) -> Result<IovaRange, SyncError> {
        let range = changes.range().ok_or(SyncError::Refused)?;
        let scope = if changes.is_leaf_only() {
            "leaves"
        } else {
            "leaves and tables"
        };
        println!(
            "queue:   invalidate {scope} of {range}, pages of {}",
            changes.leaf_sizes()
        );
        Ok(range)
    }

    fn wait(&self, range: IovaRange) -> Result<(), SyncError> {
        println!("queue:   {range} is flushed");
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let table = Table::new(SecondStage::new(48)?, Arena::new(16 << 20)?)?;
    println!(
        "context: second-stage root at {}, level {}",
        table.root().oa,
        table.root().level
    );

    // The driver owns this part of the IO address space for as long as it holds the claim.
    let space = IovaRange::with_len(Iova::new(0xf000_0000), 16 << 20).ok_or("empty range")?;
    let mut claim = table.claim(space)?;
    let mut mapper = table.mapper(&mut claim)?;

    // A scatter list of three pieces, at one IOVA range for the device.
    let pieces = [
        (Oa::new(0x8_1000), 0x1000),
        (Oa::new(0x20_0000), 0x20_0000),
        (Oa::new(0x9_5000), 0x3000),
    ];
    let buffer = IovaRange::with_len(space.start(), 0x20_4000).ok_or("empty range")?;
    mapper
        .map_runs(buffer.start(), &pieces, Prot::RW.cached())?
        .sync(&PrintedQueue)?;

    for offset in [0, 0x1234, 0x20_1fff] {
        let iova = Iova::new(buffer.start().get() + offset);
        let found = table.lookup(iova).ok_or("not mapped")?;
        println!(
            "device:  {iova} -> {} ({}, {})",
            found.oa(),
            found.prot(),
            found.size()
        );
    }

    let unmapped = mapper.unmap(buffer, UnmapPolicy::Exact)?;
    println!(
        "driver:  {} bytes unmapped; the device may still reach them",
        unmapped.bytes
    );
    let flushed = unmapped.gather.sync(&PrintedQueue)?;
    assert!(flushed.covers(buffer));
    println!("driver:  the buffer may be reused");
    Ok(())
}
