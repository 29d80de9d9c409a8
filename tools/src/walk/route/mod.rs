//! The way from an IOMMU's registers to the table that a device uses, decoded by the library and,
//! for comparison, by the reference walker.

mod amd;
mod riscv;
mod smmu;
mod vtd;

use std::fmt::{self, Write as _};

use iopt_formats::{Field, Oa};
use iopt_reference::context::{self, Binding, ContextFault, Device};
use iopt_tools::fixture::{Fixture, Platform};
use serde::Serialize;

use crate::explain::NamedBits;
use crate::output::Hex;
use crate::walk::subject::{Subject, Words};

/// What happens to a device's requests.
pub(crate) enum End {
    /// They are refused.
    Blocked,
    /// They go out untranslated.
    PassThrough,
    /// A table translates them.
    Table(Box<dyn Subject>),
    /// They take a way that this command does not follow.
    Unsupported(&'static str),
    /// A structure on the way is not legal, so that the hardware refuses them.
    Illegal(String),
    /// A structure on the way lies where no memory is.
    Missing(Oa),
}

/// One structure on the way.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    /// What it is, as the manual calls it.
    pub(crate) name: &'static str,
    address: Hex,
    /// Its words.
    words: Vec<Hex>,
    fields: Vec<Vec<NamedBits>>,
}

/// The structures on the way, and its end.
pub(crate) struct Route {
    /// The structures.
    pub(crate) entries: Vec<Entry>,
    /// Where they lead.
    pub(crate) end: End,
}

/// A fixture without a register that its platform needs.
#[derive(Debug, thiserror::Error)]
#[error("the sidecar has no register {0}")]
pub(crate) struct NoRegister(pub(crate) &'static str);

impl Entry {
    /// Creates the entry of `words` at `address`.
    fn new(name: &'static str, address: Oa, words: &[u64], fields: &[&[Field]]) -> Self {
        let fields = words.iter().zip(fields);
        Self {
            name,
            address: Hex(address.get()),
            words: words.iter().copied().map(Hex).collect(),
            fields: fields
                .map(|(&word, fields)| NamedBits::of(fields, word).0)
                .collect(),
        }
    }

    /// Returns whether the entry starts with `words`.
    pub(crate) fn starts_with(&self, words: &[u64]) -> bool {
        self.words
            .iter()
            .map(|word| word.0)
            .take(words.len())
            .eq(words.iter().copied())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} at {:#x}", self.name, self.address.0)?;
        for (word, fields) in self.words.iter().zip(&self.fields) {
            if word.0 == 0 {
                continue;
            }
            let set = fields.iter().filter(|bits| !bits.is_zero());
            let mut names = String::new();
            for bits in set {
                write!(names, " {}", bits.assignment())?;
            }
            writeln!(f, "  {:#018x} {names}", word.0)?;
        }
        Ok(())
    }
}

/// Follows the entries of a device.
struct Tracer<'a> {
    words: Words<'a>,
    entries: Vec<Entry>,
}

impl Tracer<'_> {
    /// Reads the words of an entry and notes them.
    fn read<const N: usize>(
        &mut self,
        name: &'static str,
        address: Oa,
        fields: &[&[Field]],
    ) -> Result<[u64; N], End> {
        let mut words = [0; N];
        for (index, word) in (0..).zip(&mut words) {
            let address = address
                .checked_add(index * 8)
                .ok_or(End::Missing(address))?;
            *word = (self.words)(address).ok_or(End::Missing(address))?;
        }
        self.entries.push(Entry::new(name, address, &words, fields));
        Ok(words)
    }
}

/// Returns the end that an illegal entry is.
fn illegal(error: impl fmt::Display) -> End {
    End::Illegal(error.to_string())
}

/// Follows the entries of the device `sid`.
///
/// # Errors
///
/// [`NoRegister`] if the sidecar lacks one.
pub(crate) fn find(fixture: &Fixture, words: Words<'_>, sid: u32) -> Result<Route, NoRegister> {
    let register = |name| fixture.registers.get(name).copied().ok_or(NoRegister(name));
    let mut tracer = Tracer {
        words,
        entries: Vec::new(),
    };
    let result = match fixture.platform {
        Platform::SmmuV3 => {
            let registers = smmu::Registers {
                cr0: register("CR0")?,
                gbpa: register("GBPA")?,
                strtab_base: register("STRTAB_BASE")?,
                strtab_base_cfg: register("STRTAB_BASE_CFG")?,
            };
            smmu::follow(&mut tracer, &registers, sid)
        }
        Platform::Vtd => vtd::follow(&mut tracer, register("GSTS")?, register("RTADDR")?, sid),
        Platform::Amd => amd::follow(&mut tracer, register("CONTROL")?, register("DEVTAB")?, sid),
        Platform::Riscv => {
            let features = [register("CAP")?, register("FCTL")?];
            riscv::follow(&mut tracer, features, register("DDTP")?, sid)
        }
    };
    let end = result.unwrap_or_else(|end| end);
    Ok(Route {
        entries: tracer.entries,
        end,
    })
}

/// The reference walker's side: the same registers, read by it alone.
pub(crate) enum Judge {
    /// SMMUv3.
    Smmu(context::smmu::Registers),
    /// VT-d.
    Vtd(context::vtd::Registers),
    /// AMD-Vi.
    Amd(context::amd::Registers),
    /// RISC-V.
    Riscv(context::riscv::Registers),
}

impl Judge {
    /// Takes the registers of a fixture.
    ///
    /// # Errors
    ///
    /// [`NoRegister`] if the sidecar lacks one.
    pub(crate) fn new(fixture: &Fixture) -> Result<Self, NoRegister> {
        let register = |name| fixture.registers.get(name).copied().ok_or(NoRegister(name));
        Ok(match fixture.platform {
            Platform::SmmuV3 => Self::Smmu(context::smmu::Registers {
                idr0: register("IDR0")? as u32,
                idr1: register("IDR1")? as u32,
                idr3: register("IDR3").unwrap_or(0) as u32,
                idr5: register("IDR5")? as u32,
                cr0: register("CR0")? as u32,
                gbpa: register("GBPA")? as u32,
                strtab_base: register("STRTAB_BASE")?,
                strtab_base_cfg: register("STRTAB_BASE_CFG")? as u32,
            }),
            Platform::Vtd => Self::Vtd(context::vtd::Registers {
                cap: register("CAP")?,
                ecap: register("ECAP")?,
                gsts: register("GSTS")? as u32,
                rtaddr: register("RTADDR")?,
                host_address_bits: 52,
            }),
            Platform::Amd => Self::Amd(context::amd::Registers {
                devtab: register("DEVTAB")?,
                control: register("CONTROL")?,
            }),
            Platform::Riscv => Self::Riscv(context::riscv::Registers {
                capabilities: register("CAP")?,
                fctl: register("FCTL")? as u32,
                ddtp: register("DDTP")?,
            }),
        })
    }

    /// Returns where the requests of `sid` go.
    ///
    /// # Errors
    ///
    /// The fault of the context structures.
    pub(crate) fn binding(&self, words: Words<'_>, sid: u32) -> Result<Binding, ContextFault> {
        let memory = |address| words(Oa::new(address));
        match self {
            Self::Smmu(registers) => context::smmu::resolve(registers, &memory, sid, None),
            Self::Vtd(registers) => context::vtd::resolve(registers, &memory, sid, None),
            Self::Amd(registers) => context::amd::resolve(registers, &memory, sid, None),
            Self::Riscv(registers) => context::riscv::resolve(registers, &memory, sid, None),
        }
    }

    /// Returns every device that has an entry.
    ///
    /// # Errors
    ///
    /// The fault that stopped the search.
    pub(crate) fn devices(&self, words: Words<'_>) -> Result<Vec<Device>, ContextFault> {
        /// More than any of these IOMMUs tells apart in one fixture.
        const LIMIT: u64 = 1 << 20;
        let memory = |address| words(Oa::new(address));
        match self {
            Self::Smmu(registers) => context::smmu::devices(registers, &memory, LIMIT),
            Self::Vtd(registers) => context::vtd::devices(registers, &memory, LIMIT),
            Self::Amd(registers) => context::amd::devices(registers, &memory, LIMIT),
            Self::Riscv(registers) => context::riscv::devices(registers, &memory, LIMIT),
        }
    }
}
