//! Every configuration of a format that the tests run on, in one table.

use iopt_formats::armv8::{HardwareUpdates, Stage1, Stage2};
use iopt_formats::{ConfigError, PageSize, PageSizes};

/// 4 KiB only: hardware without large second-stage pages.
pub const SMALL_PAGES: PageSizes = PageSizes::EMPTY.with(PageSize::KIB_4);

/// 4 KiB and 1 GiB, nothing between.
pub const MIXED_PAGES: PageSizes = SMALL_PAGES.with(PageSize::GIB_1);

/// 2 MiB and 1 GiB, no small page at all.
pub const LARGE_PAGES: PageSizes = PageSizes::EMPTY.with(PageSize::MIB_2).with(PageSize::GIB_1);

/// Returns the format of a configuration that is legal.
///
/// # Panics
///
/// Panics if it is not.
pub fn legal<F>(configured: Result<F, ConfigError>) -> F {
    configured.expect("the configurations of the tests are legal")
}

/// Turns on hardware dirty state.
pub fn dirty_stage1<const G: u8>(format: Stage1<G>) -> Stage1<G> {
    format.with_updates(HardwareUpdates::Dirty)
}

/// Turns on hardware dirty state.
pub fn dirty_stage2<const G: u8>(format: Stage2<G>) -> Stage2<G> {
    format.with_updates(HardwareUpdates::Dirty)
}

/// Expands `$callback!` with every configuration: `name: constructor;`, where the constructor is a
/// `Result<impl Format, ConfigError>` in which the types of `iopt_formats` are in scope.
#[macro_export]
macro_rules! for_each_configuration {
    ($callback:ident) => {
        $callback! {
            arm_s1_4k: armv8::Stage1::<12>::new(48, 48);
            arm_s1_4k_39: armv8::Stage1::<12>::new(39, 40).map(armv8::Stage1::with_non_secure);
            arm_s1_4k_dirty: armv8::Stage1::<12>::new(48, 44).map(dirty_stage1);
            arm_s1_4k_upper: armv8::Stage1::<12>::new(48, 48).map(armv8::Stage1::in_upper_half);
            arm_s1_4k_upper_42: armv8::Stage1::<12>::new(42, 42).map(armv8::Stage1::in_upper_half);
            arm_s1_4k_lpa2: armv8::Stage1::<12>::new_lpa(52, 52);
            arm_s1_16k: armv8::Stage1::<14>::new(48, 48);
            arm_s1_16k_36: armv8::Stage1::<14>::new(36, 36);
            arm_s1_16k_dirty: armv8::Stage1::<14>::new(47, 48).map(dirty_stage1);
            arm_s1_16k_upper: armv8::Stage1::<14>::new(48, 48).map(armv8::Stage1::in_upper_half);
            arm_s1_16k_lpa2: armv8::Stage1::<14>::new_lpa(52, 52);
            arm_s1_64k: armv8::Stage1::<16>::new(48, 48);
            arm_s1_64k_dirty: armv8::Stage1::<16>::new(42, 48).map(dirty_stage1);
            arm_s1_64k_upper: armv8::Stage1::<16>::new(48, 48).map(armv8::Stage1::in_upper_half);
            arm_s1_64k_lpa: armv8::Stage1::<16>::new_lpa(52, 52);
            arm_s2_4k: armv8::Stage2::<12>::new(48, 48);
            arm_s2_4k_32: armv8::Stage2::<12>::new(32, 32);
            arm_s2_4k_40: armv8::Stage2::<12>::new(40, 40);
            arm_s2_4k_42: armv8::Stage2::<12>::new(42, 42).map(armv8::Stage2::with_forced_write_back);
            arm_s2_4k_dirty: armv8::Stage2::<12>::new(44, 44).map(dirty_stage2);
            arm_s2_4k_lpa2: armv8::Stage2::<12>::new_lpa(52, 52);
            arm_s2_16k: armv8::Stage2::<14>::new(48, 48);
            arm_s2_16k_40: armv8::Stage2::<14>::new(40, 40);
            arm_s2_16k_lpa2_dirty: armv8::Stage2::<14>::new_lpa(52, 52).map(dirty_stage2);
            arm_s2_64k: armv8::Stage2::<16>::new(48, 48);
            arm_s2_64k_44: armv8::Stage2::<16>::new(44, 44);
            arm_s2_64k_lpa_dirty: armv8::Stage2::<16>::new_lpa(52, 52).map(dirty_stage2);
            arm_lpae32: armv8::Lpae32::new(32, 40);
            arm_lpae32_s2: armv8::Lpae32Stage2::new(40, 40);
            arm_mali: armv8::Mali::new(48, 40);
            vtd_ss_39: vtd::SecondStage::new(39);
            vtd_ss_48_dirty: vtd::SecondStage::new(48).map(vtd::SecondStage::with_dirty);
            vtd_ss_57_snoop: vtd::SecondStage::new(57).map(vtd::SecondStage::with_snoop);
            vtd_ss_46_bits: vtd::SecondStage::new(46).and_then(|format| format.with_oa_bits(39));
            vtd_ss_small_pages: vtd::SecondStage::new(48).and_then(|format| format.with_sizes(SMALL_PAGES));
            vtd_ss_mixed_pages: vtd::SecondStage::new(48).and_then(|format| format.with_sizes(MIXED_PAGES));
            vtd_ss_large_pages: vtd::SecondStage::new(48).and_then(|format| format.with_sizes(LARGE_PAGES));
            vtd_fs_48: vtd::FirstStage::sign_extended(48);
            vtd_fs_57_dirty: vtd::FirstStage::sign_extended(57).map(vtd::FirstStage::with_dirty);
            x86_64_47: x86_64::LongMode::new(47);
            x86_64_48_dirty: x86_64::LongMode::sign_extended(48).map(x86_64::LongMode::with_dirty);
            x86_64_56: x86_64::LongMode::new(56).map(x86_64::LongMode::with_execute_disable);
            x86_64_57: x86_64::LongMode::sign_extended(57);
            amd_v1: Ok(amd::V1::new());
            amd_v1_dirty: Ok(amd::V1::new().with_dirty());
            amd_v1_growing_4: amd::V1::growing(4).map(amd::V1::with_force_coherence);
            amd_v1_32: amd::V1::fixed(3, 32);
            amd_v1_6_levels: amd::V1::fixed(6, 64);
            amd_v2_47: x86_64::AmdV2::new(47);
            amd_v2_56_dirty: x86_64::AmdV2::new(56).map(x86_64::AmdV2::with_dirty);
            amd_v2_57: x86_64::AmdV2::sign_extended(57);
            riscv_sv39: Ok(riscv::Sv::sv39());
            riscv_sv39_napot_dirty: Ok(riscv::Sv::sv39().with_svnapot().with_dirty());
            riscv_sv48: Ok(riscv::Sv::sv48().with_svpbmt());
            riscv_sv57_napot: Ok(riscv::Sv::sv57().with_svnapot().with_svpbmt());
            riscv_sv39x4: Ok(riscv::Svx4::sv39x4());
            riscv_sv48x4_napot: Ok(riscv::Svx4::sv48x4().with_svnapot());
            riscv_sv57x4_dirty: Ok(riscv::Svx4::sv57x4().with_svpbmt().with_dirty());
        }
    };
}
