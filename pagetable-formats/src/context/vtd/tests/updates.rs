//! Entries that change while hardware reads them word by word.

use super::*;
use crate::context::testing::{Seen, watch};

const RULES: [UpdateRules; 2] = [
    UpdateRules {
        has_caching_mode: false,
    },
    UpdateRules {
        has_caching_mode: true,
    },
];

fn second_stage_at(oa: u64) -> Stage<SecondStage> {
    Stage::second(SecondStage::new(48).unwrap(), Oa::new(oa)).unwrap()
}

fn first_stage_at(va_bits: u8, oa: u64) -> Stage<FirstStage> {
    let format = FirstStage::sign_extended(va_bits).unwrap();
    Stage::first(format, Oa::new(oa)).unwrap()
}

fn pasid_entries() -> [PasidEntry; 10] {
    let second = second_stage_at(0x1_0000);
    [
        PasidEntry::blocked(),
        PasidEntry::blocked().with_faults_disabled(),
        PasidEntry::pass_through(1, AddressWidth::Bits48).with_page_snoop(),
        PasidEntry::first(2, first_stage_at(48, 0x2_0000)).with_walk_snoop(),
        PasidEntry::first(2, first_stage_at(57, 0x3_0000)).with_supervisor_requests(),
        PasidEntry::second(3, second),
        PasidEntry::second(3, second_stage_at(0x4_0000)).with_faults_disabled(),
        PasidEntry::second(2, tracked()),
        PasidEntry::nested(5, first_stage_at(48, 0x6_0000), second),
        PasidEntry::nested(5, first_stage_at(57, 0x7_0000), tracked()).with_write_protect(),
    ]
}

fn tracked() -> Stage<SecondStage> {
    let format = SecondStage::new(57).unwrap().with_dirty();
    Stage::second(format, Oa::new(0x5_0000)).unwrap()
}

#[test]
fn readers_of_pasid_entries_meet_the_old_one_the_new_one_or_none() {
    let heed = |entry: PasidEntry| entry.with_faults_disabled();
    for rules in RULES {
        for old in pasid_entries() {
            for new in pasid_entries() {
                watch(&rules, old.encode(), new.encode(), |words| {
                    let read = PasidEntry::decode(words).map(heed);
                    assert!(
                        [old, new, PasidEntry::blocked()]
                            .map(heed)
                            .map(Ok)
                            .contains(&read),
                        "{read:?} on the way from {old:?} to {new:?}"
                    );
                });
            }
        }
    }
}

#[test]
fn readers_of_legacy_entries_meet_the_old_one_the_new_one_or_none() {
    let second = |did, oa| LegacyContext::second(did, second_stage_at(oa)).unwrap();
    let entries = [
        LegacyContext::blocked(),
        LegacyContext::pass_through(1, AddressWidth::Bits48),
        second(1, 0x1_0000),
        second(2, 0x1_0000).with_device_tlb().unwrap(),
        second(2, 0x2_0000).with_faults_disabled(),
    ];
    let heed = |entry: LegacyContext| entry.with_faults_disabled();
    for rules in RULES {
        for old in entries {
            for new in entries {
                watch(&rules, old.encode(), new.encode(), |words| {
                    let read = LegacyContext::decode(words).map(heed);
                    assert!(
                        [old, new, LegacyContext::blocked()]
                            .map(heed)
                            .map(Ok)
                            .contains(&read),
                        "{read:?} on the way from {old:?} to {new:?}"
                    );
                });
            }
        }
    }
}

#[test]
fn readers_of_scalable_context_entries_meet_the_old_one_the_new_one_or_none() {
    let directory = |oa, count| PasidDirectory::new(Oa::new(oa), count).unwrap();
    let context = |oa, pasid| ScalableContext::new(directory(oa, 1 << 20), pasid).unwrap();
    let entries = [
        ScalableContext::blocked(),
        context(0x1000, 0),
        context(0x1000, 0x8_0000).with_pasid(),
        context(0x2000, 7).with_device_tlb().with_page_requests(),
        ScalableContext::new(directory(0x2000, 1 << 13), 7)
            .unwrap()
            .with_privileged(),
    ];
    let heed = |entry: ScalableContext| entry.with_faults_disabled();
    for rules in RULES {
        for old in entries {
            for new in entries {
                watch(&rules, old.encode(), new.encode(), |words| {
                    let read = ScalableContext::decode(words).map(heed);
                    assert!(
                        [old, new, ScalableContext::blocked()]
                            .map(heed)
                            .map(Ok)
                            .contains(&read),
                        "{read:?} on the way from {old:?} to {new:?}"
                    );
                });
            }
        }
    }
}

#[test]
fn one_store_does_where_one_word_differs_in_what_is_read() {
    let [cached, kept] = RULES;
    let count =
        |rules, old: PasidEntry, new: PasidEntry| watch(&rules, old.encode(), new.encode(), |_| {});
    let seen = |syncs, is_breaking| Seen { syncs, is_breaking };
    let at = |oa| PasidEntry::second(3, second_stage_at(oa));
    let first = PasidEntry::first(3, first_stage_at(48, 0x2_0000));
    let blocked = PasidEntry::blocked();
    // Another root; another domain; another kind of tables, whose pointers are in different words.
    assert_eq!(count(cached, at(0x1000), at(0x2000)), seen(1, false));
    let other_domain = PasidEntry::second(4, second_stage_at(0x1000));
    assert_eq!(count(cached, at(0x1000), other_domain), seen(1, false));
    assert!(!count(cached, at(0x1000), first).is_breaking);
    // Domain and root: two words that are both read.
    let other = PasidEntry::second(4, second_stage_at(0x2000));
    assert!(count(cached, at(0x1000), other).is_breaking);
    // Hardware that keeps nothing of absent entries need not hear of one that appears.
    assert_eq!(count(cached, blocked, at(0x1000)), seen(0, false));
    assert_eq!(count(kept, blocked, at(0x1000)), seen(1, false));
    assert_eq!(count(cached, at(0x1000), blocked), seen(1, false));
}
