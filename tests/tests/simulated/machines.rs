//! Machines of every behaviour, and what tests do with them.

use std::ops::RangeInclusive;
use std::sync::Arc;

use iopt_formats::{Format as _, Level, Prot};
use iopt_rig::{Behaviour, Domain, Machine, MachineConfig};
use iopt_sim::{Outcome, Rights, StaleAccess};

/// Makes a module of tests, with one of them for each behaviour.
macro_rules! on_each_behaviour {
    ($($name:ident)+) => {$(
        mod $name {
            #[test]
            fn smmuv3() {
                super::$name(&iopt_rig::Smmuv3::<12>::default());
            }

            #[test]
            fn smmuv3_with_16_kib() {
                super::$name(&iopt_rig::Smmuv3::<14>::default());
            }

            #[test]
            fn smmuv3_with_ranges() {
                super::$name(&iopt_rig::Smmuv3::<12> {
                    has_ranges: true,
                    has_contiguous_erratum: false,
                });
            }

            #[test]
            fn smmuv3_with_ranges_and_64_kib() {
                super::$name(&iopt_rig::Smmuv3::<16> {
                    has_ranges: true,
                    has_contiguous_erratum: true,
                });
            }

            #[test]
            fn vtd() {
                super::$name(&iopt_rig::Vtd::<2>::default());
            }

            #[test]
            fn vtd_with_wide_descriptors_and_small_blocks() {
                super::$name(&iopt_rig::Vtd::<4> {
                    has_caching_mode: false,
                    max_order: Some(9),
                });
            }

            #[test]
            fn vtd_with_caching_mode() {
                super::$name(&iopt_rig::Vtd::<2> {
                    has_caching_mode: true,
                    max_order: None,
                });
            }

            #[test]
            fn amd() {
                super::$name(&iopt_rig::Amd::default());
            }

            #[test]
            fn amd_with_absent_entries() {
                super::$name(&iopt_rig::Amd {
                    has_absent_entries: true,
                });
            }

            #[test]
            fn riscv() {
                super::$name(&iopt_rig::Riscv::default());
            }

            #[test]
            fn riscv_with_ranges_and_non_leaf() {
                super::$name(&iopt_rig::Riscv {
                    has_non_leaf: true,
                    has_ranges: true,
                });
            }
        }
    )+};
}

/// A device without a TLB, and one that has one.
pub(crate) const PLAIN: u16 = 7;
pub(crate) const CACHING: u16 = 8;
/// Where devices' memory begins.
pub(crate) const MEMORY: u64 = 0x40_0000_0000;

/// A machine with one domain, which both devices are attached to.
pub(crate) struct Bench<B: Behaviour> {
    pub(crate) machine: Arc<Machine<B>>,
    pub(crate) domain: Domain<B>,
}

impl<B: Behaviour> Bench<B> {
    pub(crate) fn new(behaviour: &B) -> Self {
        Self::with_config(behaviour, MachineConfig::default())
    }

    pub(crate) fn with_config(behaviour: &B, config: MachineConfig) -> Self {
        let machine = Machine::new(behaviour.clone(), config).expect("the tests need some memory");
        let domain = machine.domain().expect("there is memory");
        let bench = Self { machine, domain };
        bench.attach(PLAIN, false);
        bench.attach(CACHING, true);
        bench
    }

    pub(crate) fn attach(&self, device: u16, has_ats: bool) {
        let attached = self.machine.attach(&self.domain, device, has_ats);
        attached.expect("the hardware answers");
    }

    /// Maps `range` to the addresses from `oa` on.
    pub(crate) fn map(&self, range: &RangeInclusive<u64>, oa: u64) {
        let mapped = self.domain.map(range.clone(), oa, Prot::RW);
        mapped.expect("it is free, and the hardware answers");
    }

    /// Removes `range` and waits until the hardware has forgotten it.
    pub(crate) fn unmap(&self, range: &RangeInclusive<u64>) {
        let unmapped = self.domain.unmap(range.clone());
        unmapped.expect("the hardware answers");
    }

    /// Returns what the requests of both devices get for the first and the last byte of `range`.
    pub(crate) fn look(
        &self,
        range: &RangeInclusive<u64>,
    ) -> Result<Vec<Outcome>, Box<StaleAccess>> {
        let mut outcomes = Vec::new();
        for device in [PLAIN, CACHING] {
            for iova in [*range.start(), *range.end()] {
                outcomes.push(self.machine.access(device, iova, Rights::ALL)?);
            }
        }
        Ok(outcomes)
    }

    /// Checks that devices reach `range` at the addresses from `oa` on.
    pub(crate) fn assert_reached(&self, range: &RangeInclusive<u64>, oa: u64) {
        let outcomes = self.look(range).unwrap_or_else(|stale| panic!("{stale}"));
        let oas: Vec<_> = outcomes
            .iter()
            .map(|outcome| match outcome {
                Outcome::Translated { oa, .. } => Some(*oa),
                Outcome::Refused(_) => None,
            })
            .collect();
        let ends = [Some(oa), Some(oa + (range.end() - range.start()))];
        assert_eq!(oas, [ends, ends].concat(), "{range:x?}");
    }

    /// Checks that devices do not reach `range`, and that nothing at all is stale.
    pub(crate) fn assert_refused(&self, range: &RangeInclusive<u64>) {
        let outcomes = self.look(range).unwrap_or_else(|stale| panic!("{stale}"));
        for outcome in outcomes {
            assert!(
                matches!(outcome, Outcome::Refused(_)),
                "{outcome:?} in {range:x?}"
            );
        }
        self.assert_clean();
    }

    /// Frees the tables that the hardware has forgotten: readers have left, but it takes another look, or more
    /// while others read elsewhere, to find that out.
    pub(crate) fn free_what_is_proven(&self) {
        while self.domain.table().quarantined_count() > 0 {
            let page = pages::<B>(1, 1);
            self.map(&page, MEMORY);
            self.unmap(&page);
        }
    }

    pub(crate) fn assert_clean(&self) {
        self.machine
            .check_all()
            .unwrap_or_else(|stale| panic!("{stale}"));
    }
}

/// Returns the IOVA of `count` pages from page `first` on.
pub(crate) fn pages<B: Behaviour>(first: u64, count: u64) -> RangeInclusive<u64> {
    range(first * page_len::<B>(), count * page_len::<B>())
}

/// Returns the IOVA of `count` items of level 1 from item `first` on.
pub(crate) fn blocks<B: Behaviour>(first: u64, count: u64) -> RangeInclusive<u64> {
    let len = 1 << B::Format::item_lg2(Level(1));
    range(first * len, count * len)
}

pub(crate) fn page_len<B: Behaviour>() -> u64 {
    B::Format::GRANULE.bytes()
}

pub(crate) fn range(start: u64, len: u64) -> RangeInclusive<u64> {
    start..=start + (len - 1)
}
