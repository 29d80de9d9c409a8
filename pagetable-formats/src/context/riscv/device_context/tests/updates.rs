//! Contexts that change while hardware reads them word by word.

use super::*;
use crate::context::riscv::{ProcessDirectory, ProcessOptions, UpdateRules};
use crate::context::testing::watch;
use crate::context::update::{Rules as _, plan};

fn sv48(oa: u64) -> FirstStageTables {
    FirstStageTables::Sv {
        format: Sv::sv48(),
        root: Root {
            oa: Oa::new(oa),
            level: Level(3),
        },
    }
}

fn sv39x4(oa: u64, gscid: u16) -> SecondStage {
    SecondStage::Svx4 {
        format: Svx4::sv39x4(),
        root: Root {
            oa: Oa::new(oa),
            level: Level(2),
        },
        gscid,
    }
}

/// Returns the words of contexts of every kind; the first is not valid.
fn contexts(features: Features) -> [[u64; 8]; 10] {
    let directory = |levels| {
        let directory = ProcessDirectory::new(Oa::new(0x8800_0000), levels, features);
        FirstStage::Directory(directory.expect("the directory is possible"))
    };
    let msi = (features.context_format() == ContextFormat::Extended).then_some(MsiTable {
        root: Oa::new(0x8900_0000),
        mask: 0xff,
        pattern: 0x2_8000,
    });
    let bare = FirstStage::Tables(FirstStageTables::Bare);
    let plain = DeviceOptions::default();
    let tagged = DeviceOptions { pscid: 5, ..plain };
    let guest = DeviceOptions {
        has_ats: true,
        has_guest_ats: true,
        suppresses_faults: true,
        msi,
        ..plain
    };
    let made = [
        (bare, SecondStage::Bare, plain),
        (FirstStage::Tables(sv48(0x1000)), SecondStage::Bare, plain),
        (FirstStage::Tables(sv48(0x2000)), SecondStage::Bare, plain),
        (FirstStage::Tables(sv48(0x2000)), SecondStage::Bare, tagged),
        (bare, sv39x4(0x4000, 1), plain),
        (bare, sv39x4(0x8000, 2), guest),
        (directory(2), SecondStage::Bare, plain),
        (directory(3), sv39x4(0x4000, 1), guest),
        (FirstStage::Tables(sv48(0x3000)), sv39x4(0xc000, 3), tagged),
    ];
    let mut words = [[0; 8]; 10];
    for (words, (first, second, options)) in words.iter_mut().skip(1).zip(made) {
        let context = DeviceContext::new(first, second, options, features);
        *words = context.expect("the context is configured well").encode();
    }
    words
}

/// Decodes a context; whether its faults are reported may change on the way.
fn decoded(
    mut words: [u64; 8],
    features: Features,
) -> Result<Option<DeviceContext>, Misconfigured> {
    if words[0] & VALID != 0 {
        words[0] |= DISABLE_FAULTS;
    }
    DeviceContext::decode(words, features)
}

#[test]
fn readers_of_extended_contexts_meet_the_old_one_the_new_one_or_none() {
    for old in contexts(FULL) {
        for new in contexts(FULL) {
            let allowed = [decoded(old, FULL), decoded(new, FULL), Ok(None)];
            watch(&UpdateRules, old, new, |words| {
                assert!(
                    allowed.contains(&decoded(words, FULL)),
                    "{words:x?} on the way from {old:x?} to {new:x?}"
                );
            });
        }
    }
}

#[test]
fn readers_of_base_contexts_meet_the_old_one_the_new_one_or_none() {
    let base = Features::new(EVERYTHING & !bit(22), 0);
    let half = |[tc, iohgatp, ta, fsc, ..]: [u64; 8]| [tc, iohgatp, ta, fsc];
    let whole = |[tc, iohgatp, ta, fsc]: [u64; 4]| [tc, iohgatp, ta, fsc, 0, 0, 0, 0];
    for old in contexts(base) {
        for new in contexts(base) {
            let allowed = [decoded(old, base), decoded(new, base), Ok(None)];
            watch(&UpdateRules, half(old), half(new), |words| {
                assert!(
                    allowed.contains(&decoded(whole(words), base)),
                    "{words:x?} on the way from {old:x?} to {new:x?}"
                );
            });
        }
    }
}

#[test]
fn readers_of_process_contexts_meet_the_old_one_the_new_one_or_none() {
    let directory = ProcessDirectory::new(Oa::new(0x1000), 3, FULL).expect("it is possible");
    let context = |tables, pscid, has_supervisor| {
        let options = ProcessOptions {
            pscid,
            has_supervisor,
            has_supervisor_user_memory: has_supervisor,
        };
        let context = directory.make_context(tables, options);
        context.expect("the context is configured well").encode()
    };
    let contexts = [
        [0; 2],
        context(FirstStageTables::Bare, 0, false),
        context(sv48(0x1000), 0, false),
        context(sv48(0x1000), 7, false),
        context(sv48(0x2000), 7, true),
    ];
    for old in contexts {
        for new in contexts {
            let allowed = [old, new, [0; 2]].map(|words| directory.decode_context(words));
            watch(&UpdateRules, old, new, |words| {
                let read = directory.decode_context(words);
                assert!(
                    allowed.contains(&read),
                    "{read:?} between {old:x?} and {new:x?}"
                );
            });
        }
    }
}

#[test]
fn a_valid_context_changes_by_one_store_or_is_not_valid_meanwhile() {
    let [none, bare, one, other, tagged, ..] = contexts(FULL);
    let update = |old, new| plan(&UpdateRules, &old, &new);
    for (old, new, is_hitless) in [
        (bare, one, true),
        (one, other, true),
        (one, tagged, false),
        (other, tagged, true),
        (none, one, false),
        (one, none, false),
    ] {
        assert_eq!(
            update(old, new).is_hitless(),
            is_hitless,
            "{old:x?} {new:x?}"
        );
    }
    assert!(UpdateRules.is_valid(&one) && !UpdateRules.is_valid(&none));
    assert!(update(one, tagged).is_breaking() && !update(none, one).is_breaking());
    // Contexts of the other lengths likewise.
    assert!(!plan(&UpdateRules, &[0; 4], &[1, 0, 0, 0]).is_hitless());
    assert!(!plan(&UpdateRules, &[0; 2], &[1, 0]).is_hitless());
    assert!(plan(&UpdateRules, &[1, 0, 0, 0], &[3, 0, 0, 0]).is_hitless());
    assert!(plan(&UpdateRules, &[1, 0], &[3, 0]).is_hitless());
}

#[test]
fn reserved_bits_of_a_valid_context_are_read() {
    let modes = 0xf000_0000_0000_0000;
    let not_pages = 0xffff_f000_0000_0000;
    let high = 0xfff0_0000_0000_0000;
    let bare = [1, 0, 0, 0, 0, 0, 0, 0];
    let read = DeviceContext::used(bare, ContextFormat::Extended);
    assert_eq!(read, [!0, modes, !0, not_pages, not_pages, high, high, !0]);
    let read = DeviceContext::used(bare, ContextFormat::Base);
    assert_eq!(read, [!0, modes, !0, not_pages, 0, 0, 0, 0]);
    let absent = DeviceContext::used([!1; 8], ContextFormat::Extended);
    assert_eq!(absent, [1, 0, 0, 0, 0, 0, 0, 0]);
}
