//! The sources, domains and budgets of a test.

use std::sync::Arc;

use iopt::ioas::Pages;
use iopt::pin::{Access, Budget, Firmness, Simulated, Source as _};
use iopt_formats::{Oa, PageSize, Prot, amd, armv8, riscv, vtd, x86_64};

use crate::configuration::{dirty_stage1, legal};
use crate::space::facts::{DomainFacts, Facts, SourceFacts};
use crate::space::fault::{Faults, FragileSource};
use crate::space::witness::{Making, Witness, witness};

/// A choice of domains.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mix {
    /// Four formats with pages of 4 KiB, side by side.
    Small,
    /// ARM alone, with pages of all sizes.
    Arm,
    /// Formats that track what devices write to.
    Dirty,
    /// Devices behind write buffers, or that need pinned pages.
    Strict,
}

impl Mix {
    /// All choices.
    pub const ALL: [Self; 4] = [Self::Small, Self::Arm, Self::Dirty, Self::Strict];

    /// Creates the domains.
    pub fn domains(self, faults: &Arc<Faults>) -> Vec<Box<dyn Witness>> {
        let plain = Making::default();
        let announced = Making {
            announces: true,
            ..plain
        };
        let pinned = Making {
            needs_pinned: true,
            ..plain
        };
        let second_stage = || legal(vtd::SecondStage::new(48));
        let stage1 = || legal(armv8::Stage1::<12>::new(48, 48));
        match self {
            Self::Small => vec![
                witness(legal(vtd::SecondStage::new(39)), plain, faults),
                witness(stage1(), plain, faults),
                witness(amd::V1::new(), plain, faults),
                witness(legal(x86_64::LongMode::new(47)), plain, faults),
                witness(riscv::Sv::sv39().with_svnapot(), plain, faults),
            ],
            Self::Arm => vec![
                witness(stage1(), plain, faults),
                witness(legal(armv8::Stage1::<14>::new(48, 48)), plain, faults),
                witness(legal(armv8::Stage1::<16>::new(48, 48)), plain, faults),
                witness(legal(armv8::Stage2::<12>::new(40, 40)), plain, faults),
            ],
            Self::Dirty => vec![
                witness(second_stage().with_dirty(), plain, faults),
                witness(amd::V1::new().with_dirty(), plain, faults),
                witness(dirty_stage1(stage1()), plain, faults),
                witness(riscv::Svx4::sv39x4(), plain, faults),
            ],
            Self::Strict => vec![
                witness(second_stage(), announced, faults),
                witness(second_stage(), pinned, faults),
                witness(legal(amd::V1::growing(4)), announced, faults),
                witness(legal(armv8::Stage1::<14>::new(48, 48)), pinned, faults),
            ],
        }
    }
}

/// A source as the test sees it, and as the address spaces do.
#[derive(Debug)]
pub struct TestSource {
    /// Counts its pins.
    pub simulated: Arc<Simulated>,
    /// What is mapped.
    pub pages: Arc<Pages>,
}

/// Everything but the address spaces.
#[derive(Debug)]
pub struct Setting {
    /// Lets things fail.
    pub faults: Arc<Faults>,
    /// Sources.
    pub sources: Vec<TestSource>,
    /// Domains.
    pub domains: Vec<Box<dyn Witness>>,
    /// Budgets.
    pub budgets: Vec<Arc<Budget>>,
    /// What never changes of it.
    pub facts: Arc<Facts>,
}

/// Bytes that budgets allow.
const BUDGETS: [u64; 2] = [0x28_0000, 0xa_0000];

impl Setting {
    /// Creates the domains of `mix`, and sources that `seed` scatters.
    pub fn new(mix: Mix, seed: u64) -> Self {
        let faults = Arc::new(Faults::default());
        let domains = mix.domains(&faults);
        let budgets: Vec<_> = BUDGETS
            .iter()
            .map(|&limit| Arc::new(Budget::new(limit)))
            .collect();
        let mut facts = Vec::new();
        let mut sources = Vec::new();
        for (number, (simulated, budget)) in simulated(seed).into_iter().enumerate() {
            let base = Oa::new((8 + 4 * number as u64) << 30);
            let simulated = Arc::new(simulated.with_base(base));
            let page_count = simulated.page_count();
            facts.push(SourceFacts {
                page: simulated.page_size(),
                oas: (0..page_count)
                    .filter_map(|page| simulated.oa_of(page).map(Oa::get))
                    .collect(),
                is_writable: simulated.is_writable(),
                is_firm: simulated.firmness().suits_hardware(),
                budget,
            });
            let source = Arc::new(FragileSource {
                inner: Arc::clone(&simulated),
                faults: Arc::clone(&faults),
            });
            let budget = budget.map(|budget| Arc::clone(&budgets[budget]));
            let pages = Pages::new(source, budget);
            sources.push(TestSource { simulated, pages });
        }
        let facts = Facts {
            sources: facts,
            domains: domains.iter().map(|domain| facts_of(&**domain)).collect(),
            budgets: BUDGETS.to_vec(),
        };
        Self {
            faults,
            sources,
            domains,
            budgets,
            facts: Arc::new(facts),
        }
    }
}

/// Returns the sources, each with the number of its budget.
fn simulated(seed: u64) -> Vec<(Simulated, Option<usize>)> {
    let firm = |page, count| Simulated::new(page, count).with_firmness(Firmness::Pinned);
    let small = PageSize::KIB_4;
    vec![
        (firm(small, 1024), Some(0)),
        (firm(small, 64).scattered(seed, 1), Some(0)),
        (firm(small, 1200).scattered(seed, 512), None),
        (firm(small, 64).with_access(Access::ReadOnly), None),
        (firm(PageSize::KIB_64, 16).scattered(seed, 1), Some(1)),
        (firm(PageSize::MIB_2, 3), None),
        (Simulated::new(small, 64), None),
    ]
}

fn facts_of(domain: &dyn Witness) -> DomainFacts {
    let caps = domain.caps();
    let mut effective: Vec<Option<Prot>> = Vec::new();
    for prot in Prot::all() {
        let index = prot.index();
        if effective.len() <= index {
            effective.resize(index + 1, None);
        }
        effective[index] = domain.effective(prot);
    }
    DomainFacts {
        aperture: caps.aperture,
        page: caps.sizes.smallest().unwrap_or(PageSize::KIB_4),
        needs_pinned: caps.needs_pinned,
        tracks_dirty: caps.tracks_dirty,
        keeps_memory: domain.refuses_cuts(),
        starts_dirty: domain.starts_dirty(),
        effective,
    }
}
