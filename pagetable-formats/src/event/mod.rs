//! Records that an IOMMU writes into queues for software: requests for pages, and faults.
//!
//! Unlike commands, records come from hardware, of any revision: decoding drops what it does not know rather
//! than refuse it. `encode` gives the words as hardware would write them, for who plays hardware.

pub mod amd;
pub mod riscv;
pub mod smmuv3;
pub mod vtd;
