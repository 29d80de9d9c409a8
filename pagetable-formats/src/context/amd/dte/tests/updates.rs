//! Entries that change while hardware reads them, 256 bits at a time.

use super::*;
use crate::context::testing::{Seen, watch};
use crate::context::update::{Unit, plan};

const UNITS: [Unit; 2] = [Unit::Bytes8, Unit::Bytes16];
/// Remapped interrupts, all kinds of others passing.
const INTERRUPTS: u64 = 0xe700_0000_8800_1073;

fn host_tables(oa: u64, level: u8) -> HostTables {
    let root = Root {
        oa: Oa::new(oa),
        level: Level(level),
    };
    HostTables::new(root, Tracking::AccessedAndDirty).expect("the fields can hold it")
}

fn guest_tables(oa: u64, paging_levels: u8) -> GuestTables {
    let gcr3 = Gcr3Table::new(Oa::new(oa), 2, paging_levels).expect("the fields can hold it");
    GuestTables::new(gcr3)
}

/// Entries of every kind, with domains and without, and two of the kinds that can differ in part.
fn entries() -> [Dte; 12] {
    let read_only = Rights::ALL.difference(Rights::WRITE);
    let host = host_tables(0x4000_1000, 2);
    [
        Dte::blocked(),
        Dte::blocked().with_domain_id(1),
        Dte::pass_through(Rights::ALL),
        Dte::pass_through(read_only).with_domain_id(1).with_ats(),
        Dte::host(host).with_domain_id(1),
        Dte::host(host_tables(0x4000_2000, 5).with_limit(read_only)).with_domain_id(2),
        Dte::guest(guest_tables(0x12_3456_f000, 4)).with_domain_id(1),
        Dte::guest(guest_tables(0x12_3456_f000, 5)).with_domain_id(1),
        Dte::guest(guest_tables(0x65_4321_8000, 5).with_requests_without_pasid())
            .with_domain_id(3)
            .with_ats()
            .with_page_requests(),
        Dte::guest(guest_tables(0x8000, 4).with_host(host)).with_domain_id(4),
        Dte::guest(guest_tables(0x9000, 5).with_host(host_tables(0x4000_3000, 3)))
            .with_domain_id(5)
            .with_all_faults_suppressed(),
        // As firmware leaves it: everything passes.
        Dte::new([0; 4]),
    ]
}

/// What an entry does to memory accesses.
type Effect = (Result<Translation, DteError>, Option<(u16, bool, bool)>);

/// Returns what the entry does, and as what it tags translations; without V it says no more.
fn effect(entry: Dte) -> Effect {
    let tags = (
        entry.domain_id(),
        entry.has_ats(),
        entry.has_page_requests(),
    );
    (entry.translation(), entry.is_valid().then_some(tags))
}

/// A3.14: all pairs, stored in units of 8 and of 16 bytes.
#[test]
fn readers_meet_the_old_entry_the_new_one_or_one_that_blocks() {
    for unit in UNITS {
        for old in entries() {
            for new in entries() {
                let mut current = old.words();
                current[2] |= INTERRUPTS;
                // What the new entry says of interrupts does not count.
                let target = new.with_interrupts(Interrupts::Forwarded).words();
                watch(&UpdateRules { unit }, current, target, |words| {
                    let read = Dte::new(words);
                    let is_blocking =
                        read.is_valid() && read.translation() == Ok(Translation::Blocked);
                    assert!(
                        is_blocking || [old, new].map(effect).contains(&effect(read)),
                        "{read:x?} on the way from {old:x?} to {new:x?}"
                    );
                    assert_eq!(words[2] & Dte::INTERRUPT_FIELDS, INTERRUPTS);
                });
            }
        }
    }
}

/// A3.14: interrupts.
#[test]
fn interrupts_of_a_blocking_entry_are_those_of_the_device() {
    let [_, _, _, _, old, .., new, _] = entries();
    let mut has_blocked = false;
    let current = old.with_interrupts_of(Dte::new([0, 0, INTERRUPTS, 0]));
    let unit = Unit::Bytes8;
    watch(
        &UpdateRules { unit },
        current.words(),
        new.words(),
        |words| {
            has_blocked |= words[0] == VALID;
            assert_eq!(Dte::new(words).interrupts(), current.interrupts());
        },
    );
    assert!(has_blocked);
}

#[test]
fn one_store_of_half_an_entry_decides_but_for_another_guest_paging_mode_and_root() {
    let count =
        |unit, old: Dte, new: Dte| watch(&UpdateRules { unit }, old.words(), new.words(), |_| {});
    let seen = |syncs, is_breaking| Seen { syncs, is_breaking };
    let is_guest = |entry: Dte| entry.words()[0] & GUEST_VALID != 0;
    let paging_mode = |entry: Dte| entry.words()[2] & GUEST_PAGING.mask();
    for old in entries() {
        for new in entries() {
            let changes_mode = is_guest(old)
                && is_guest(new)
                && paging_mode(old) != paging_mode(new)
                && old.words()[..2] != new.words()[..2];
            let expected = if changes_mode {
                seen(2, true)
            } else {
                seen(usize::from(old != new), false)
            };
            assert_eq!(
                count(Unit::Bytes16, old, new),
                expected,
                "{old:x?} {new:x?}"
            );
        }
    }
    // Stores of 8 bytes break where the domain changes too.
    let [_, blocked, _, _, host, other, ..] = entries();
    assert_eq!(count(Unit::Bytes8, blocked, host), seen(1, false));
    assert_eq!(count(Unit::Bytes8, host, other), seen(2, true));
}

#[test]
fn only_entries_that_block_interrupt_a_device() {
    let unit = Unit::Bytes16;
    let is_hitless =
        |old: Dte, new: Dte| plan(&UpdateRules { unit }, &old.words(), &new.words()).is_hitless();
    let [blocked, _, identity, _, host, other, .., untouched] = entries();
    assert!(is_hitless(host, other) && is_hitless(identity, host));
    // Without V requests pass, and go on passing until they are translated.
    assert!(is_hitless(untouched, host) && is_hitless(untouched, identity));
    assert!(!is_hitless(blocked, host) && !is_hitless(host, blocked));
}
