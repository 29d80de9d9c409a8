//! What a RISC-V IOMMU can do, from its registers.
//!
//! Source: *RISC-V IOMMU Architecture Specification*, sections "IOMMU capabilities", "Features-control register" and
//! "Device-directory-table pointer".

use iopt_formats::context::riscv::{
    self as context, DeviceContext, DeviceOptions, FirstStage, FirstStageTables, Misconfigured,
    ProcessDirectory, SecondStage,
};
use iopt_formats::riscv::{Paging, Stage as PagingStage, Sv, Svx4};
use iopt_formats::walk::Root;
use iopt_formats::{Format, Oa};

use crate::device::riscv::Stage;

/// No first stage.
pub(super) const BARE: FirstStage = FirstStage::Tables(FirstStageTables::Bare);
/// A page that can be everything.
const ANYWHERE: Oa = Oa::new(0);

/// What of an IOMMU decides how its tables are made. What its contexts can say is asked of
/// [`context::Features`], which knows the rules that hardware checks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Features {
    /// The registers `capabilities` and `fctl`.
    pub registers: context::Features,
    /// Levels of the device directory, 1 to 3: one of those whose `iommu_mode` the register `ddtp` keeps when it is
    /// written, as many as the widest device ID needs.
    pub device_levels: u8,
}

impl Features {
    /// Creates the value from the registers `capabilities` and `fctl`, and the levels of the device directory.
    pub const fn new(capabilities: u64, fctl: u32, device_levels: u8) -> Self {
        Self {
            registers: context::Features::new(capabilities, fctl),
            device_levels,
        }
    }

    /// Makes a context, as its rules allow.
    pub(super) fn context(
        &self,
        first: FirstStage,
        second: SecondStage,
        options: DeviceOptions,
    ) -> Result<DeviceContext, Misconfigured> {
        DeviceContext::new(first, second, options, self.registers)
    }

    fn allows(&self, first: FirstStage, options: DeviceOptions) -> bool {
        self.context(first, SecondStage::Bare, options).is_ok()
    }

    /// Returns whether ATS requests are understood (`capabilities.ATS`).
    pub fn has_ats(&self) -> bool {
        let options = DeviceOptions {
            has_ats: true,
            ..DeviceOptions::default()
        };
        self.allows(BARE, options)
    }

    /// Returns whether page requests are understood, which they are with ATS (`EN_PRI`).
    pub fn has_page_requests(&self) -> bool {
        let options = DeviceOptions {
            has_ats: true,
            has_page_requests: true,
            ..DeviceOptions::default()
        };
        self.allows(BARE, options)
    }

    /// Returns whether hardware can set A and D (`capabilities.AMO_HWAD`).
    pub fn has_updates(&self) -> bool {
        let options = DeviceOptions {
            has_first_stage_updates: true,
            ..DeviceOptions::default()
        };
        self.allows(BARE, options)
    }

    /// Returns whether there is a process directory of that many levels (`capabilities.PD8`, `PD17`, `PD20`).
    pub fn has_process_levels(&self, levels: u8) -> bool {
        let directory = ProcessDirectory::new(ANYWHERE, levels, self.registers);
        let directory = directory.map(ProcessDirectory::with_default_process);
        let has =
            |directory| self.allows(FirstStage::Directory(directory), DeviceOptions::default());
        directory.is_ok_and(has)
    }

    /// Returns how wide process IDs can be: 20, 17 or 8 bits, or 0 without process directories, or without
    /// first-stage tables.
    pub fn process_bits(&self) -> u8 {
        let has_tables = FIRST_STAGES
            .iter()
            .any(|format| self.walked_first(format).is_some());
        let levels = (1..=3)
            .rev()
            .find(|&levels| self.has_process_levels(levels));
        levels.filter(|_| has_tables).map_or(0, process_bits)
    }

    /// Returns the levels of the smallest process directory for process IDs of `bits` bits, or those of the largest
    /// one.
    pub fn process_levels(&self, bits: u8) -> Option<u8> {
        let mut levels = (1..=3).filter(|&levels| self.has_process_levels(levels));
        let mut all = levels.clone();
        levels
            .find(|&levels| process_bits(levels) >= bits)
            .or_else(|| all.next_back())
    }

    /// Returns whether hardware can walk tables.
    pub(super) fn fits(&self, stage: &Stage) -> bool {
        match stage {
            Stage::First { format, .. } => self.fits_first(format),
            Stage::Second { format, .. } | Stage::Nested { format, .. } => self.fits_second(format),
        }
    }

    /// Returns as what hardware walks first-stage tables of that MODE, if it can.
    fn walked_first(&self, format: &Sv) -> Option<Sv> {
        let tables = FirstStageTables::Sv {
            format: *format,
            root: root(format, ANYWHERE),
        };
        let first = FirstStage::Tables(tables);
        let made = self.context(first, SecondStage::Bare, DeviceOptions::default());
        match made.map(DeviceContext::first_stage) {
            Ok(FirstStage::Tables(FirstStageTables::Sv { format, .. })) => Some(format),
            _ => None,
        }
    }

    /// Returns whether first-stage tables of `format` can be walked.
    pub fn fits_first(&self, format: &Sv) -> bool {
        let walked = self.walked_first(format);
        walked.is_some_and(|walked| covers(&walked, format))
    }

    /// Returns whether second-stage tables of `format` can be walked.
    pub fn fits_second(&self, format: &Svx4) -> bool {
        let second = SecondStage::Svx4 {
            format: *format,
            root: root(format, ANYWHERE),
            gscid: 0,
        };
        let made = self.context(BARE, second, DeviceOptions::default());
        match made.map(DeviceContext::second_stage) {
            Ok(SecondStage::Svx4 { format: walked, .. }) => covers(&walked, format),
            _ => false,
        }
    }
}

/// Returns whether hardware that walks tables as `walked` understands all of `format`.
fn covers<S: PagingStage>(walked: &Paging<S>, format: &Paging<S>) -> bool
where
    Paging<S>: Format,
{
    format.oa_bits() <= walked.oa_bits() && (walked.has_svpbmt() || !format.has_svpbmt())
}

/// First-stage formats in the order in which they are tried for domains: the usual one, a smaller one, and a
/// larger one, whose walks are longest.
pub(super) const FIRST_STAGES: [Sv; 3] = [Sv::sv48(), Sv::sv39(), Sv::sv57()];
/// Second-stage formats in that order.
pub(super) const SECOND_STAGES: [Svx4; 3] = [Svx4::sv48x4(), Svx4::sv39x4(), Svx4::sv57x4()];

/// Returns the root of tables of `format` at an address.
fn root(format: &impl Format, oa: Oa) -> Root {
    Root {
        oa,
        level: format.geometry().top,
    }
}

/// Returns the width of the IDs of a process directory (section "Process-Directory-Table").
pub(super) const fn process_bits(levels: u8) -> u8 {
    match levels {
        0 => 0,
        1 => 8,
        2 => 17,
        _ => 20,
    }
}
