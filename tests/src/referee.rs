//! Walkers that share no code with the formats, set up for a format's tables.

use iopt_formats::walk::Root;
use iopt_formats::{Format, Level, Oa, PageSize, Prot, Window, amd, armv8, riscv, vtd, x86_64};
use iopt_reference as reference;

/// A format that the reference can walk.
pub trait Judged: Format {
    /// Returns the reference's view of the tables below `root`.
    fn judge(&self, root: Root) -> reference::Table;
}

/// Returns whether entries of `format` can forbid instruction fetches.
pub fn controls_execution<F: Format>(format: &F) -> bool {
    format
        .effective(Prot::RW.executable())
        .is_some_and(Prot::can_execute)
}

impl Judged for vtd::SecondStage {
    fn judge(&self, root: Root) -> reference::Table {
        let large_pages = u8::from(self.sizes().contains(PageSize::MIB_2))
            | u8::from(self.sizes().contains(PageSize::GIB_1)) << 1;
        reference::Table::VtdSecond(reference::vtd::Config {
            oa_bits: self.oa_bits(),
            large_pages,
            ..reference::vtd::Config::new(root.oa.get(), root.level.0 + 1)
        })
    }
}

impl<W: x86_64::Walker> Judged for x86_64::LongModeTables<W> {
    fn judge(&self, root: Root) -> reference::Table {
        use reference::x86::ExecuteDisable;
        let execute_disable = if controls_execution(self) {
            ExecuteDisable::Enabled
        } else {
            ExecuteDisable::Reserved
        };
        reference::Table::LongMode(reference::x86::Config {
            sign_extended: self.geometry().window == Window::SignExtended,
            oa_bits: self.oa_bits(),
            execute_disable,
            ..reference::x86::Config::new(root.oa.get(), root.level.0 + 1)
        })
    }
}

impl Judged for amd::V1 {
    fn judge(&self, root: Root) -> reference::Table {
        reference::Table::AmdV1(reference::amd::Config {
            oa_bits: self.oa_bits(),
            ..reference::amd::Config::new(root.oa.get(), root.level.0 + 1)
        })
    }
}

impl<S: riscv::Stage> Judged for riscv::Paging<S> {
    fn judge(&self, root: Root) -> reference::Table {
        let stage = match self.geometry().window {
            Window::SignExtended => reference::riscv::Stage::First,
            Window::Lower | Window::Upper => reference::riscv::Stage::G,
        };
        let device = self.effective(Prot::RW.device());
        reference::Table::Riscv(reference::riscv::Config {
            svnapot: self.sizes().contains(PageSize::KIB_64),
            svpbmt: device.map(Prot::memory) == Some(Prot::RW.device().memory()),
            hardware_ad: self.dirty_rule().is_some(),
            oa_bits: self.oa_bits(),
            ..reference::riscv::Config::new(stage, root.oa.get(), root.level.0 + 1)
        })
    }
}

/// Returns the part of the space that tables of an ARM format cover.
fn half<F: Format>(format: &F, root: Oa) -> reference::arm::Half {
    let granule = match F::GRANULE {
        PageSize::KIB_64 => reference::arm::Granule::K64,
        PageSize::KIB_16 => reference::arm::Granule::K16,
        _ => reference::arm::Granule::K4,
    };
    reference::arm::Half::new(root.get(), format.geometry().va_bits, granule)
}

/// Adds what stage 1 and stage 2 have in common. Descriptors of 52 bits are taken for granted
/// where addresses are that wide.
fn finished<F: Format>(format: &F, config: reference::arm::Config) -> reference::Table {
    let config = if format.oa_bits() == 52 {
        config.with_52_bits()
    } else {
        config
    };
    let has_dirty = format.dirty_rule().is_some();
    reference::Table::Arm(if has_dirty {
        config.with_hardware_update()
    } else {
        config
    })
}

impl<const G: u8> Judged for armv8::Stage1<G> {
    fn judge(&self, root: Root) -> reference::Table {
        use reference::arm::Config;
        let half = half(self, root.oa);
        let config = match self.geometry().window {
            Window::Upper => Config::stage1_upper(half, self.oa_bits()),
            Window::Lower | Window::SignExtended => Config::stage1(half, self.oa_bits()),
        };
        finished(self, config)
    }
}

/// Returns the manual's number of `level`: 3 are the pages.
fn start_level(level: Level) -> i8 {
    3 - level.0.cast_signed()
}

impl<const G: u8> Judged for armv8::Stage2<G> {
    fn judge(&self, root: Root) -> reference::Table {
        let half = half(self, root.oa);
        let start = start_level(root.level);
        finished(
            self,
            reference::arm::Config::stage2(half, start, self.oa_bits()),
        )
    }
}

impl Judged for armv8::Lpae32 {
    fn judge(&self, root: Root) -> reference::Table {
        let va_bits = self.geometry().va_bits;
        let config = reference::arm::Config::lpae32(root.oa.get(), va_bits);
        reference::Table::Arm(reference::arm::Config {
            oa_bits: self.oa_bits(),
            ..config
        })
    }
}

impl Judged for armv8::Lpae32Stage2 {
    fn judge(&self, root: Root) -> reference::Table {
        let half = half(self, root.oa);
        let start = start_level(root.level);
        let config = reference::arm::Config::stage2(half, start, self.oa_bits());
        reference::Table::Arm(reference::arm::Config {
            aarch32: true,
            ..config
        })
    }
}

impl Judged for armv8::Mali {
    fn judge(&self, root: Root) -> reference::Table {
        let va_bits = self.geometry().va_bits;
        reference::Table::Arm(reference::arm::Config::mali(
            root.oa.get(),
            va_bits,
            self.oa_bits(),
        ))
    }
}
