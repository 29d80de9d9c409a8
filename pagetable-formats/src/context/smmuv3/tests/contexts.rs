//! Words of CDs worked out by hand.

use super::*;
use crate::armv8::{TableWalk, Tcr};

const NON_COHERENT: TableWalk = TableWalk::NON_COHERENT;

#[track_caller]
fn expect_cd(context: Context, low: [u64; 5]) {
    let [a, b, c, d, e] = low;
    let cd = Cd::new([a, b, c, d, e, 0, 0, 0]);
    assert_eq!(Cd::encode(&context), cd, "{:x?}", Cd::encode(&context));
    assert_eq!(cd.decode(), Ok(context));
}

#[test]
fn fields_of_a_context_have_their_bits() {
    // V, AA64, EPD0, EPD1, IPS 5, R, A, ASET.
    let plain = 1 << 31 | 1 << 41 | 1 << 14 | 1 << 30 | 5 << 32 | 0xe << 44;
    let empty = Context::empty(48).unwrap();
    expect_cd(empty, [plain, 0, 0, 0, 0]);
    for (oa_bits, ips) in [(32, 0), (36, 1), (40, 2), (42, 3), (44, 4), (52, 6)] {
        let context = Context::empty(oa_bits).unwrap();
        expect_cd(context, [plain & !(7 << 32) | ips << 32, 0, 0, 0, 0]);
    }
    assert!(matches!(
        Context::empty(47),
        Err(ConfigError::OaBits { bits: 47, .. })
    ));
    assert!(Context::empty(56).is_err());
    expect_cd(empty.with_asid(0xabcd), [plain | 0xabcd << 48, 0, 0, 0, 0]);
    let shared = plain & !(1 << 47);
    expect_cd(empty.with_shared_asid(3), [shared | 3 << 48, 0, 0, 0, 0]);
    expect_cd(
        empty.with_mair(0x0123_4567_89ab_cdef),
        [plain, 0, 0, 0x0123_4567_89ab_cdef, 0],
    );
    expect_cd(empty.with_amair(u64::MAX), [plain, 0, 0, 0, u64::MAX]);
    let faults = |stalls, records, aborts| {
        empty.with_faults(FaultPolicy {
            stalls,
            records,
            aborts,
        })
    };
    let quiet = plain & !(7 << 44);
    expect_cd(faults(true, false, false), [quiet | 1 << 44, 0, 0, 0, 0]);
    expect_cd(faults(false, true, false), [quiet | 1 << 45, 0, 0, 0, 0]);
    expect_cd(faults(false, false, true), [quiet | 1 << 46, 0, 0, 0, 0]);

    let access = |change: fn(&mut AccessRules), words: [u64; 3]| {
        let mut access = AccessRules::NONE;
        change(&mut access);
        let [word0, word1, word2] = words;
        expect_cd(
            empty.with_access(access),
            [plain | word0, word1, word2, 0, 0],
        );
    };
    access(|a| a.writable_never_executes = true, [1 << 36, 0, 0]);
    access(|a| a.ignores_lower_top_byte = true, [1 << 38, 0, 0]);
    access(|a| a.ignores_upper_top_byte = true, [1 << 39, 0, 0]);
    access(|a| a.privileged_access_never = true, [1 << 40, 0, 0]);
    access(|a| a.enhanced_pan = true, [0, 1 << 59, 0]);
    access(|a| a.denies_lower_user = true, [0, 1 << 2, 0]);
    access(|a| a.denies_upper_user = true, [0, 0, 1 << 2]);
}

#[test]
fn tables_of_a_context_have_their_bits() {
    let common = 1 << 31 | 1 << 41 | 0xe << 44;
    let root = Oa::new(0x4805_6000);
    // T0SZ 12, TG0 2, IR0 0, OR0 1, SH0 2, EPD1; IPS 6, HD, HA; HAD0; DS.
    let format = Stage1::<14>::new_lpa(52, 52)
        .unwrap()
        .with_updates(HardwareUpdates::Dirty)
        .without_table_limits();
    let lower = format.tcr(TableWalk::OUTER_WRITE_BACK);
    let context = Context::new(lower, root).unwrap();
    let word0 = common | 6 << 32 | 3 << 42;
    let half = 0xc | 2 << 6 | 1 << 10 | 2 << 12;
    expect_cd(
        context,
        [word0 | half | 1 << 30, 0x4805_6002, 1 << 58, 0, 0],
    );
    assert_eq!(context.table(Half::Lower), Some((lower, root)));
    assert_eq!(context.table(Half::Upper), None);
    // And T1SZ 22, TG1 3 (64 KiB), IR1 1, OR1 1, SH1 3.
    let format = Stage1::<16>::new(42, 52).unwrap().in_upper_half();
    let upper = format
        .with_updates(HardwareUpdates::Dirty)
        .tcr(TableWalk::COHERENT);
    let both = context.with_table(upper, Oa::new(0x8800_0000)).unwrap();
    let half1 = 0x16 | 3 << 6 | 1 << 8 | 1 << 10 | 3 << 12;
    expect_cd(
        both,
        [
            word0 | half | half1 << 16,
            0x4805_6002,
            0x8800_0000 | 1 << 58,
            0,
            0,
        ],
    );
    // Without the lower one, what was common stays.
    expect_cd(
        both.without_table(Half::Lower),
        [
            word0 | 1 << 14 | half1 << 16,
            0,
            0x8800_0000 | 1 << 58,
            0,
            0,
        ],
    );
    let updates = |updates, bits: u64| {
        let tcr = Stage1::<12>::new(48, 48)
            .unwrap()
            .with_updates(updates)
            .tcr(NON_COHERENT);
        let context = Context::new(tcr, root).unwrap();
        let half = 16 | 2 << 12 | 1 << 30;
        expect_cd(
            context,
            [common | half | 5 << 32 | bits, 0x4805_6000, 0, 0, 0],
        );
    };
    updates(HardwareUpdates::None, 0);
    updates(HardwareUpdates::Ignored, 1 << 35);
    updates(HardwareUpdates::Accessed, 1 << 43);
    updates(HardwareUpdates::Dirty, 3 << 42);
}

#[test]
fn halves_that_do_not_fit_each_other_are_refused() {
    let root = Oa::new(0x4805_6000);
    let lower = Stage1::<12>::new(48, 48).unwrap().tcr(TableWalk::COHERENT);
    let context = Context::new(lower, root).unwrap();
    let upper = |tcr: Tcr| {
        context.with_table(
            Tcr {
                half: Half::Upper,
                ..tcr
            },
            root,
        )
    };
    assert!(upper(lower).is_ok());
    let is_refused = |result| matches!(result, Err(ConfigError::Option { .. }));
    let updates = HardwareUpdates::Accessed;
    assert!(is_refused(upper(Tcr { updates, ..lower })));
    assert!(is_refused(upper(Tcr {
        oa_bits: 44,
        ..lower
    })));
    assert!(is_refused(upper(Tcr { ds: true, ..lower })));
    // DS means nothing to 64 KiB granules: the other half alone may need it.
    let kib64 = Stage1::<16>::new(42, 52).unwrap().tcr(NON_COHERENT);
    let wide = Stage1::<12>::new_lpa(52, 52).unwrap().in_upper_half();
    let both = Context::new(kib64, Oa::new(0x8800_0000))
        .and_then(|context| context.with_table(wide.tcr(NON_COHERENT), root))
        .unwrap();
    assert!(Cd::encode(&both).has_ds());
    assert_eq!(Cd::encode(&both).decode(), Ok(both));
    // The only half may change in what the two would share.
    assert!(context.with_table(Tcr { updates, ..lower }, root).is_ok());
    for bad in [0x4805_6010, 1 << 48, 1 << 52] {
        assert!(is_refused(context.with_table(lower, Oa::new(bad))));
    }
    assert!(context.with_table(Tcr { tsz: 60, ..lower }, root).is_err());
}
