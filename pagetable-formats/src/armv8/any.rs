//! A table whose format was read from a configuration word.

use super::{Granule, Lpae32, Lpae32Stage2, Stage1, Stage2, Tcr, Vtcr};
use crate::catalog::Visitor;
use crate::walk::Root;
use crate::{ConfigError, Format as _, Oa};

/// A stage 1 or stage 2 format whose kind and granule are known only at run time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum AnyFormat {
    /// VMSAv8-64 stage 1, 4 KiB granule.
    Stage1Kib4(Stage1<12>),
    /// VMSAv8-64 stage 1, 16 KiB granule.
    Stage1Kib16(Stage1<14>),
    /// VMSAv8-64 stage 1, 64 KiB granule.
    Stage1Kib64(Stage1<16>),
    /// VMSAv8-64 stage 2, 4 KiB granule.
    Stage2Kib4(Stage2<12>),
    /// VMSAv8-64 stage 2, 16 KiB granule.
    Stage2Kib16(Stage2<14>),
    /// VMSAv8-64 stage 2, 64 KiB granule.
    Stage2Kib64(Stage2<16>),
    /// 32-bit LPAE stage 1.
    Lpae32(Lpae32),
    /// 32-bit LPAE stage 2.
    Lpae32Stage2(Lpae32Stage2),
}

/// Evaluates an expression with the format that an [`AnyFormat`] holds.
macro_rules! with_format {
    ($any:expr, $format:ident => $value:expr) => {
        match $any {
            AnyFormat::Stage1Kib4($format) => $value,
            AnyFormat::Stage1Kib16($format) => $value,
            AnyFormat::Stage1Kib64($format) => $value,
            AnyFormat::Stage2Kib4($format) => $value,
            AnyFormat::Stage2Kib16($format) => $value,
            AnyFormat::Stage2Kib64($format) => $value,
            AnyFormat::Lpae32($format) => $value,
            AnyFormat::Lpae32Stage2($format) => $value,
        }
    };
}

impl AnyFormat {
    /// Returns the format that hardware with the control fields `tcr` and the memory types `mair`
    /// takes tables for.
    ///
    /// # Errors
    ///
    /// - [`ConfigError::VaBits`] if the input width is outside of what the granule allows;
    /// - [`ConfigError::OaBits`] if the output width is, which [`Tcr::from_cd`] rules out.
    pub const fn stage1(tcr: Tcr, mair: u64) -> Result<Self, ConfigError> {
        Ok(match tcr.granule {
            Granule::Kib4 => match Stage1::from_tcr(tcr, mair) {
                Ok(format) => Self::Stage1Kib4(format),
                Err(error) => return Err(error),
            },
            Granule::Kib16 => match Stage1::from_tcr(tcr, mair) {
                Ok(format) => Self::Stage1Kib16(format),
                Err(error) => return Err(error),
            },
            Granule::Kib64 => match Stage1::from_tcr(tcr, mair) {
                Ok(format) => Self::Stage1Kib64(format),
                Err(error) => return Err(error),
            },
        })
    }

    /// Returns the format that hardware with the control fields `vtcr` takes tables for.
    ///
    /// # Errors
    ///
    /// - [`ConfigError::VaBits`] if the input width is outside of what the granule allows;
    /// - [`ConfigError::OaBits`] if the output width is, which [`Vtcr::from_ste`] rules out;
    /// - [`ConfigError::Levels`] if the starting level does not fit it.
    pub const fn stage2(vtcr: Vtcr) -> Result<Self, ConfigError> {
        Ok(match vtcr.granule {
            Granule::Kib4 => match Stage2::from_vtcr(vtcr) {
                Ok(format) => Self::Stage2Kib4(format),
                Err(error) => return Err(error),
            },
            Granule::Kib16 => match Stage2::from_vtcr(vtcr) {
                Ok(format) => Self::Stage2Kib16(format),
                Err(error) => return Err(error),
            },
            Granule::Kib64 => match Stage2::from_vtcr(vtcr) {
                Ok(format) => Self::Stage2Kib64(format),
                Err(error) => return Err(error),
            },
        })
    }

    /// Runs `visitor` with the format.
    pub fn visit<V: Visitor>(self, visitor: V) -> V::Output {
        with_format!(self, format => visitor.visit(format))
    }
}

/// A table that a configuration word points to: all that a walk needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rooted {
    /// What the table's items mean.
    pub format: AnyFormat,
    /// Where it starts.
    pub root: Root,
}

impl Rooted {
    /// Creates the table of `format` whose base register holds `base`; hardware takes the address
    /// bits below the alignment of the root for zero.
    pub fn new(format: AnyFormat, base: Oa) -> Self {
        let (level, align_lg2) = with_format!(format, format => {
            (format.geometry().top, format.root_align_lg2())
        });
        let oa = Oa::new(base.get() & (u64::MAX << align_lg2));
        Self {
            format,
            root: Root { oa, level },
        }
    }
}
