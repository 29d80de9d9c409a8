//! Formats by name, for tools that choose one at run time.

use core::fmt;
use core::str::FromStr;

use crate::amd::V1;
use crate::armv8::{HardwareUpdates, Lpae32, Mali, Stage1, Stage2};
use crate::riscv::{Paging, Stage, Sv, Svx4};
use crate::vtd::{FirstStage, SecondStage};
use crate::x86_64::{AmdV2, LongMode, LongModeTables, Walker};
use crate::{ConfigError, Format, PageSizes};

macro_rules! names {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)?) => {
        /// The name of a format, as the command line spells it.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[non_exhaustive]
        pub enum FormatName {
            $($(#[$doc])* $variant,)+
        }

        impl FormatName {
            /// Every name, in the order of documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Returns the name as text.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

names! {
    /// ARM `VMSAv8-64` stage 1, 4 KiB granule.
    ArmS1_4k = "arm-s1-4k",
    /// ARM `VMSAv8-64` stage 1, 16 KiB granule.
    ArmS1_16k = "arm-s1-16k",
    /// ARM `VMSAv8-64` stage 1, 64 KiB granule.
    ArmS1_64k = "arm-s1-64k",
    /// ARM `VMSAv8-64` stage 2, 4 KiB granule.
    ArmS2_4k = "arm-s2-4k",
    /// ARM `VMSAv8-64` stage 2, 16 KiB granule.
    ArmS2_16k = "arm-s2-16k",
    /// ARM `VMSAv8-64` stage 2, 64 KiB granule.
    ArmS2_64k = "arm-s2-64k",
    /// ARM 32-bit LPAE, stage 1.
    ArmLpae32 = "arm-lpae32",
    /// Mali LPAE.
    ArmMali = "arm-mali",
    /// Intel VT-d second stage.
    VtdSs = "vtd-ss",
    /// Intel VT-d first stage.
    VtdFs = "vtd-fs",
    /// x86-64 CPU tables.
    X86_64 = "x86-64",
    /// AMD IO page tables, version 1.
    AmdV1 = "amd-v1",
    /// AMD guest (version 2) page tables.
    AmdV2 = "amd-v2",
    /// RISC-V Sv39.
    RiscvSv39 = "riscv-sv39",
    /// RISC-V Sv48.
    RiscvSv48 = "riscv-sv48",
    /// RISC-V Sv57.
    RiscvSv57 = "riscv-sv57",
    /// RISC-V G-stage Sv39x4.
    RiscvSv39x4 = "riscv-sv39x4",
    /// RISC-V G-stage Sv48x4.
    RiscvSv48x4 = "riscv-sv48x4",
    /// RISC-V G-stage Sv57x4.
    RiscvSv57x4 = "riscv-sv57x4",
}

impl fmt::Display for FormatName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no format.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no such format; `iopt formats` lists the names")]
pub struct UnknownFormat;

impl FromStr for FormatName {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|known| known.as_str() == name)
            .ok_or(UnknownFormat)
    }
}

/// Options of a format; what is `None` or `false` takes the format's default.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent hardware feature"
)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Options {
    /// Input address bits (IAS, T0SZ, AGAW).
    pub va_bits: Option<u8>,
    /// Output address bits (OAS, IPS, PS).
    pub oa_bits: Option<u8>,
    /// Levels of the table: VT-d, x86-64, AMD.
    pub levels: Option<u8>,
    /// ARM stage 1: the upper half of the space (`TTBR1`).
    pub upper_half: bool,
    /// x86-64, VT-d first stage: both halves of a sign-extended space.
    pub sign_extended: bool,
    /// ARM: 52-bit descriptors, LPA with the 64 KiB granule, else LPA2 (DS).
    pub lpa: bool,
    /// Hardware records dirty pages.
    pub dirty: bool,
    /// ARM stage 1: non-secure tables and pages.
    pub non_secure: bool,
    /// ARM stage 2: forced write-back attributes.
    pub s2fwb: bool,
    /// VT-d SNP, AMD FC: force coherent accesses.
    pub force_snoop: bool,
    /// x86-64, VT-d first stage, AMD version 2: pages can deny execution (XD, NXE).
    pub execute_disable: bool,
    /// RISC-V Svnapot: 64 KiB entries.
    pub svnapot: bool,
    /// RISC-V Svpbmt: memory types.
    pub svpbmt: bool,
    /// The only page sizes to use, out of those of the format.
    pub sizes: Option<PageSizes>,
}

/// What to do with a format that is known only at run time.
pub trait Visitor {
    /// What the visit returns.
    type Output;

    /// Runs with the configured format.
    fn visit<F: Format>(self, format: F) -> Self::Output;
}

/// Configures the format of that name and visits it.
///
/// # Errors
///
/// [`ConfigError`] if the format has no such option or the widths do not go together.
pub fn with_format<V: Visitor>(
    name: FormatName,
    options: &Options,
    visitor: V,
) -> Result<V::Output, ConfigError> {
    use FormatName as Name;
    match name {
        Name::ArmS1_4k => Ok(visitor.visit(stage1::<12>(options)?)),
        Name::ArmS1_16k => Ok(visitor.visit(stage1::<14>(options)?)),
        Name::ArmS1_64k => Ok(visitor.visit(stage1::<16>(options)?)),
        Name::ArmS2_4k => Ok(visitor.visit(stage2::<12>(options)?)),
        Name::ArmS2_16k => Ok(visitor.visit(stage2::<14>(options)?)),
        Name::ArmS2_64k => Ok(visitor.visit(stage2::<16>(options)?)),
        Name::ArmLpae32 => Ok(visitor.visit(lpae32(options)?)),
        Name::ArmMali => Ok(visitor.visit(mali(options)?)),
        Name::VtdSs => Ok(visitor.visit(second_stage(options)?)),
        Name::VtdFs => Ok(visitor.visit(long_mode(
            FirstStage::new,
            FirstStage::sign_extended,
            options,
        )?)),
        Name::X86_64 => {
            Ok(visitor.visit(long_mode(LongMode::new, LongMode::sign_extended, options)?))
        }
        Name::AmdV2 => Ok(visitor.visit(long_mode(AmdV2::new, AmdV2::sign_extended, options)?)),
        Name::AmdV1 => Ok(visitor.visit(amd_v1(options)?)),
        Name::RiscvSv39 => Ok(visitor.visit(riscv(Sv::sv39(), options)?)),
        Name::RiscvSv48 => Ok(visitor.visit(riscv(Sv::sv48(), options)?)),
        Name::RiscvSv57 => Ok(visitor.visit(riscv(Sv::sv57(), options)?)),
        Name::RiscvSv39x4 => Ok(visitor.visit(g_stage(Svx4::sv39x4(), options)?)),
        Name::RiscvSv48x4 => Ok(visitor.visit(g_stage(Svx4::sv48x4(), options)?)),
        Name::RiscvSv57x4 => Ok(visitor.visit(g_stage(Svx4::sv57x4(), options)?)),
    }
}

impl Options {
    /// The options that only some ARM formats have.
    fn of_arm(&self) -> [(&'static str, bool); 4] {
        [
            ("the upper half", self.upper_half),
            ("LPA", self.lpa),
            ("non-secure", self.non_secure),
            ("forced write-back", self.s2fwb),
        ]
    }

    /// The options that no ARM format has.
    fn beside_arm(&self) -> [(&'static str, bool); 6] {
        [
            ("a number of levels", self.levels.is_some()),
            ("sign extension", self.sign_extended),
            ("forced snooping", self.force_snoop),
            ("execute-disable", self.execute_disable),
            ("Svnapot", self.svnapot),
            ("Svpbmt", self.svpbmt),
        ]
    }

    fn of_riscv(&self) -> [(&'static str, bool); 2] {
        [("Svnapot", self.svnapot), ("Svpbmt", self.svpbmt)]
    }

    /// The input and output widths of a 64-bit ARM format: the widest ones unless they are set.
    fn arm_widths(&self) -> (u8, u8) {
        let widest = if self.lpa { 52 } else { 48 };
        (
            self.va_bits.unwrap_or(widest),
            self.oa_bits.unwrap_or(widest),
        )
    }

    /// Limits `format` to the chosen sizes, if there are any.
    fn limit<F>(
        &self,
        format: F,
        with_sizes: fn(F, PageSizes) -> Result<F, ConfigError>,
    ) -> Result<F, ConfigError> {
        match self.sizes {
            Some(sizes) => with_sizes(format, sizes),
            None => Ok(format),
        }
    }
}

/// Refuses the first option of the list that is set.
fn refuse(options: &[(&'static str, bool)]) -> Result<(), ConfigError> {
    match options.iter().find(|(_, is_set)| *is_set) {
        Some((option, _)) => Err(ConfigError::Option {
            option,
            rule: "this format has no such option",
        }),
        None => Ok(()),
    }
}

fn stage1<const G: u8>(options: &Options) -> Result<Stage1<G>, ConfigError> {
    refuse(&options.beside_arm())?;
    refuse(&[("forced write-back", options.s2fwb)])?;
    let (va_bits, oa_bits) = options.arm_widths();
    let mut format = if options.lpa {
        Stage1::new_lpa(va_bits, oa_bits)?
    } else {
        Stage1::new(va_bits, oa_bits)?
    };
    if options.upper_half {
        format = format.in_upper_half();
    }
    if options.non_secure {
        format = format.with_non_secure();
    }
    if options.dirty {
        format = format.with_updates(HardwareUpdates::Dirty);
    }
    options.limit(format, Stage1::<G>::with_sizes)
}

fn stage2<const G: u8>(options: &Options) -> Result<Stage2<G>, ConfigError> {
    refuse(&options.beside_arm())?;
    refuse(&[
        ("the upper half", options.upper_half),
        ("non-secure", options.non_secure),
    ])?;
    let (va_bits, oa_bits) = options.arm_widths();
    let mut format = if options.lpa {
        Stage2::new_lpa(va_bits, oa_bits)?
    } else {
        Stage2::new(va_bits, oa_bits)?
    };
    if options.s2fwb {
        format = format.with_forced_write_back();
    }
    if options.dirty {
        format = format.with_updates(HardwareUpdates::Dirty);
    }
    options.limit(format, Stage2::<G>::with_sizes)
}

fn lpae32(options: &Options) -> Result<Lpae32, ConfigError> {
    refuse(&options.beside_arm())?;
    refuse(&[
        ("the upper half", options.upper_half),
        ("LPA", options.lpa),
        ("forced write-back", options.s2fwb),
        ("dirty tracking", options.dirty),
    ])?;
    let mut format = Lpae32::new(options.va_bits.unwrap_or(32), options.oa_bits.unwrap_or(40))?;
    if options.non_secure {
        format = format.with_non_secure();
    }
    options.limit(format, Lpae32::with_sizes)
}

fn mali(options: &Options) -> Result<Mali, ConfigError> {
    refuse(&options.beside_arm())?;
    refuse(&options.of_arm())?;
    refuse(&[("dirty tracking", options.dirty)])?;
    let format = Mali::new(options.va_bits.unwrap_or(48), options.oa_bits.unwrap_or(40))?;
    options.limit(format, Mali::with_sizes)
}

fn second_stage(options: &Options) -> Result<SecondStage, ConfigError> {
    refuse(&options.of_arm())?;
    refuse(&options.of_riscv())?;
    refuse(&[
        ("sign extension", options.sign_extended),
        ("execute-disable", options.execute_disable),
    ])?;
    let va_bits = options.va_bits.unwrap_or(match options.levels {
        Some(3) => 39,
        Some(5) => 57,
        _ => 48,
    });
    let mut format = SecondStage::new(va_bits)?;
    if let Some(levels) = options.levels {
        format = format.with_levels(levels)?;
    }
    if let Some(oa_bits) = options.oa_bits {
        format = format.with_oa_bits(oa_bits)?;
    }
    if options.force_snoop {
        format = format.with_snoop();
    }
    if options.dirty {
        format = format.with_dirty();
    }
    options.limit(format, SecondStage::with_sizes)
}

type NewLongMode<W> = fn(u8) -> Result<LongModeTables<W>, ConfigError>;

fn long_mode<W: Walker>(
    lower: NewLongMode<W>,
    sign_extended: NewLongMode<W>,
    options: &Options,
) -> Result<LongModeTables<W>, ConfigError> {
    refuse(&options.of_arm())?;
    refuse(&options.of_riscv())?;
    refuse(&[("forced snooping", options.force_snoop)])?;
    let va_bits = options
        .va_bits
        .unwrap_or(if options.levels == Some(5) { 57 } else { 48 });
    let mut format = if options.sign_extended {
        sign_extended(va_bits)?
    } else {
        lower(va_bits)?
    };
    if let Some(levels) = options.levels {
        format = format.with_levels(levels)?;
    }
    if let Some(oa_bits) = options.oa_bits {
        format = format.with_oa_bits(oa_bits)?;
    }
    if options.execute_disable {
        format = format.with_execute_disable();
    }
    if options.dirty {
        format = format.with_dirty();
    }
    options.limit(format, LongModeTables::<W>::with_sizes)
}

fn amd_v1(options: &Options) -> Result<V1, ConfigError> {
    refuse(&options.of_arm())?;
    refuse(&options.of_riscv())?;
    refuse(&[
        ("sign extension", options.sign_extended),
        ("execute-disable", options.execute_disable),
    ])?;
    let bits_of = |levels: u8| 12_u8.saturating_add(levels.saturating_mul(9)).min(64);
    let mut format = match (options.levels, options.va_bits) {
        (None, None) => V1::new(),
        (Some(levels), va_bits) => V1::fixed(levels, va_bits.unwrap_or(bits_of(levels)))?,
        (None, Some(va_bits)) => {
            V1::fixed(va_bits.saturating_sub(12).div_ceil(9).clamp(1, 6), va_bits)?
        }
    };
    if let Some(oa_bits) = options.oa_bits {
        format = format.with_oa_bits(oa_bits)?;
    }
    if options.force_snoop {
        format = format.with_force_coherence();
    }
    if options.dirty {
        format = format.with_dirty();
    }
    options.limit(format, V1::with_sizes)
}

fn g_stage(base: Svx4, options: &Options) -> Result<Svx4, ConfigError> {
    refuse(&[("sign extension", options.sign_extended)])?;
    riscv(base, options)
}

fn riscv<S: Stage>(base: Paging<S>, options: &Options) -> Result<Paging<S>, ConfigError> {
    refuse(&options.of_arm())?;
    refuse(&[
        ("an input address width", options.va_bits.is_some()),
        ("a number of levels", options.levels.is_some()),
        ("forced snooping", options.force_snoop),
        ("execute-disable", options.execute_disable),
    ])?;
    let mut format = base;
    if let Some(oa_bits) = options.oa_bits {
        format = format.with_oa_bits(oa_bits)?;
    }
    if options.svnapot {
        format = format.with_svnapot();
    }
    if options.svpbmt {
        format = format.with_svpbmt();
    }
    if options.dirty {
        format = format.with_dirty();
    }
    options.limit(format, Paging::<S>::with_sizes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    struct Check;

    impl Visitor for Check {
        type Output = Result<(), conformance::Violation>;

        fn visit<F: Format>(self, format: F) -> Self::Output {
            conformance::check(format)
        }
    }

    #[test]
    fn every_name_parses_back_and_conforms_by_default() {
        for &name in FormatName::ALL {
            assert_eq!(name.as_str().parse(), Ok(name));
            assert_eq!(
                with_format(name, &Options::default(), Check),
                Ok(Ok(())),
                "{name}"
            );
        }
        assert_eq!("arm-s3-4k".parse::<FormatName>(), Err(UnknownFormat));
    }

    #[test]
    fn an_option_that_a_format_lacks_is_refused_by_name() {
        let upper = Options {
            upper_half: true,
            ..Options::default()
        };
        assert!(with_format(FormatName::ArmS1_4k, &upper, Check).is_ok());
        for name in [FormatName::ArmS2_4k, FormatName::VtdSs, FormatName::AmdV1] {
            assert_eq!(
                with_format(name, &upper, Check),
                Err(ConfigError::Option {
                    option: "the upper half",
                    rule: "this format has no such option"
                }),
                "{name}"
            );
        }
        let levels = Options {
            levels: Some(4),
            ..Options::default()
        };
        assert!(with_format(FormatName::ArmS1_4k, &levels, Check).is_err());
        assert!(with_format(FormatName::VtdSs, &levels, Check).is_ok());
    }
}
