//! Machines with a simulated IOMMU behind the engine's own queues and planners.
//!
//! A [`Machine`] has memory, an [`iopt_sim::Iommu`] that walks tables and reads commands in it, and an
//! [`Instance`](iopt::invalidation::Instance) that writes these commands, over the same registers that a driver
//! would have. Time is virtual: whoever waits for the IOMMU lets it pass. A [`Domain`] is a table with the set
//! of places where it is cached. Everything that is done through it is told to the
//! [`Ledger`](iopt_sim::Ledger) first, so that a stale translation is found by the next access that it could
//! serve.
//!
//! What the IOMMU is, a [`Behaviour`] says.
//!
//! ```
//! use iopt_formats::Prot;
//! use iopt_rig::{Machine, MachineConfig, Vtd};
//! use iopt_sim::{Outcome, Rights};
//!
//! let machine = Machine::new(Vtd::<2>::default(), MachineConfig::default())?;
//! let domain = machine.domain()?;
//! machine.attach(&domain, 7, false)?;
//!
//! domain.map(0x10_0000..=0x10_3fff, 0x8000_0000, Prot::RW)?;
//! let outcome = machine.access(7, 0x10_2345, Rights::WRITE)?;
//! assert!(matches!(outcome, Outcome::Translated { oa: 0x8000_2345, .. }));
//!
//! domain.unmap(0x10_0000..=0x10_3fff)?;
//! let outcome = machine.access(7, 0x10_2345, Rights::READ)?;
//! assert!(matches!(outcome, Outcome::Refused(_)));
//! machine.check_all()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod behaviour;
mod domain;
mod machine;
mod memory;
mod registers;

pub use behaviour::{Amd, Behaviour, EntryOf, Riscv, Smmuv3, TagOf, Vtd};
pub use domain::{Domain, RigError};
pub use machine::{Machine, MachineConfig};
pub use memory::{Physical, Tables};
pub use registers::Registers;
