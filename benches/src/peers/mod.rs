//! Published crates that build page tables, on the same workloads and the same memory.
//!
//! All take `&mut self`, none gathers invalidations, and their calls are inlined into the loops.

pub mod aarch64;
#[cfg(target_arch = "x86_64")]
pub mod multiarch;
#[cfg(target_arch = "x86_64")]
pub mod x86;

#[cfg(test)]
mod tests {
    use crate::workload::{Tables, Workload, WorkloadName};

    const WORKLOADS: [WorkloadName; 7] = [
        WorkloadName::W1,
        WorkloadName::W3,
        WorkloadName::W5,
        WorkloadName::W6,
        WorkloadName::W7,
        WorkloadName::W8,
        WorkloadName::W9,
    ];

    fn check<T: Tables + Default>() {
        for name in WORKLOADS {
            Workload::new(name).check(&mut T::default());
        }
    }

    #[test]
    fn aarch64_paging_does_the_workloads() {
        check::<super::aarch64::Stage2Tables>();
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn page_table_multiarch_does_the_workloads() {
        check::<super::multiarch::MultiarchTables>();
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_x86_64_crate_does_the_workloads() {
        check::<super::x86::OffsetTables>();
    }
}
