//! Under which names translations are cached.

/// Privilege of the address space, which SMMUv3 keeps apart (`StreamWorld`).
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Regime {
    /// NS-EL1; the only one of other architectures.
    System,
    /// EL2, with ASIDs (E2H).
    Hypervisor,
}

/// Which translation is cached.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stage {
    /// A first stage alone.
    First,
    /// A second stage, alone or the lower half of two. Of one-stage formats the ones that architectures
    /// treat so: VT-d second stage, AMD host tables, RISC-V G-stage.
    Second,
    /// Both in one, from the input of the first to the output of the second.
    Combined,
}

/// The address space within a domain.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Space {
    /// The domain has one only.
    Only,
    /// ASID, PASID, PSCID.
    Id(u32),
    /// Every one of the domain: global pages.
    Global,
}

/// What a cached translation is named by.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Tag {
    /// The privilege.
    pub regime: Regime,
    /// The stage.
    pub stage: Stage,
    /// VMID, domain id, GSCID; `None` for RISC-V contexts without second stage.
    pub domain: Option<u32>,
    /// The address space.
    pub space: Space,
}

impl Tag {
    /// Names a first stage.
    pub const fn first(domain: Option<u32>, space: u32) -> Self {
        Self {
            regime: Regime::System,
            stage: Stage::First,
            domain,
            space: Space::Id(space),
        }
    }

    /// Names a second stage.
    pub const fn second(domain: u32) -> Self {
        Self {
            regime: Regime::System,
            stage: Stage::Second,
            domain: Some(domain),
            space: Space::Only,
        }
    }

    /// Names two stages combined.
    pub const fn combined(domain: u32, space: u32) -> Self {
        Self {
            regime: Regime::System,
            stage: Stage::Combined,
            domain: Some(domain),
            space: Space::Id(space),
        }
    }

    /// Returns the name of the second of two stages.
    pub(crate) const fn of_second(self) -> Self {
        Self {
            stage: Stage::Second,
            space: Space::Only,
            ..self
        }
    }

    /// Returns the name of the global pages of the same domain.
    pub(crate) const fn of_global(self) -> Self {
        Self {
            space: Space::Global,
            ..self
        }
    }
}
