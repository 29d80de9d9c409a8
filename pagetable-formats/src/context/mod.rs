//! Entries that point at tables: where a device's translation starts.
//!
//! Each module decodes the structures of one architecture, from the register that holds the base to
//! the format and root of the table, and names the fields of each word for people who read dumps.

pub mod amd;
pub mod riscv;
pub mod smmuv3;
pub mod update;
pub mod vtd;

#[cfg(test)]
mod testing;
