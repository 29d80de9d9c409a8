//! The five behaviours by name, for routines that run on each of them.

use std::fmt;

use crate::behaviour::{Amd, Behaviour, Riscv, Smmuv3, Vtd};

/// One of the behaviours.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Choice {
    /// An SMMUv3 with 4 KiB tables that is told address by address.
    Smmuv3,
    /// An SMMUv3 with 4 KiB tables that is told ranges.
    Smmuv3Ranges,
    /// A VT-d unit.
    Vtd,
    /// An AMD-Vi IOMMU.
    Amd,
    /// A RISC-V IOMMU.
    Riscv,
}

/// Something to be done with a behaviour, whichever it is.
pub trait Visitor {
    /// What comes of it.
    type Output;

    /// Does it.
    fn visit<B: Behaviour>(self, behaviour: B) -> Self::Output;
}

impl Choice {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Smmuv3,
        Self::Smmuv3Ranges,
        Self::Vtd,
        Self::Amd,
        Self::Riscv,
    ];

    /// Calls `visitor` with the behaviour.
    pub fn visit<V: Visitor>(self, visitor: V) -> V::Output {
        let smmu = |has_ranges| Smmuv3::<12> {
            has_ranges,
            has_contiguous_erratum: false,
        };
        match self {
            Self::Smmuv3 => visitor.visit(smmu(false)),
            Self::Smmuv3Ranges => visitor.visit(smmu(true)),
            Self::Vtd => visitor.visit(Vtd::<2>::default()),
            Self::Amd => visitor.visit(Amd::default()),
            Self::Riscv => visitor.visit(Riscv::default()),
        }
    }

    /// Returns the choice of a name as [`Display`](fmt::Display) writes it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|choice| choice.to_string() == name)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Smmuv3 => "smmuv3",
            Self::Smmuv3Ranges => "smmuv3-ranges",
            Self::Vtd => "vtd",
            Self::Amd => "amd",
            Self::Riscv => "riscv",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Name;

    impl Visitor for Name {
        type Output = &'static str;

        fn visit<B: Behaviour>(self, behaviour: B) -> &'static str {
            behaviour.name()
        }
    }

    #[test]
    fn a_choice_is_named_as_its_behaviour() {
        for choice in Choice::ALL {
            assert_eq!(choice.visit(Name), choice.to_string());
            assert_eq!(Choice::from_name(&choice.to_string()), Some(choice));
        }
        assert_eq!(Choice::from_name("virtio"), None);
    }
}
