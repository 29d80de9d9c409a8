//! Stream tables, context tables, device tables and directories written word by word.

#![expect(
    clippy::decimal_bitwise_operands,
    reason = "sizes in bit fields are decimal in the manuals"
)]

mod amd;
mod riscv;
mod smmu;
mod vtd;

use iopt_reference::PageMap;
use iopt_reference::context::{Binding, Device};

const LIMIT: u64 = 1 << 17;
const OPEN: Binding = Binding::PassThrough {
    read: true,
    write: true,
};

/// Builds a memory from `(address, words)` pairs.
fn memory(structures: &[(u64, &[u64])]) -> PageMap {
    let mut memory = PageMap::new();
    for &(address, words) in structures {
        put(&mut memory, address, words);
    }
    memory
}

fn put(memory: &mut PageMap, address: u64, words: &[u64]) {
    for (index, &word) in (0..).zip(words) {
        memory.write64(address + 8 * index, word);
    }
}

fn ids(devices: &[Device]) -> Vec<u32> {
    devices.iter().map(|device| device.id).collect()
}
