//! Entries made: words worked out by hand, and making again what was decoded.

use super::*;
use crate::context::testing::{Random, check_used};

const ROOT: Oa = Oa::new(0x000a_bcde_f012_3000);

fn host_tables(level: u8, tracking: Tracking) -> HostTables {
    let level = Level(level);
    HostTables::new(Root { oa: ROOT, level }, tracking).expect("the fields can hold it")
}

fn gcr3(oa: u64, levels: u8, paging_levels: u8) -> Gcr3Table {
    Gcr3Table::new(Oa::new(oa), levels, paging_levels).expect("the fields can hold it")
}

#[test]
fn each_translation_has_its_words() {
    let read_only = Rights::ALL.difference(Rights::WRITE);
    let write_only = Rights::ALL.difference(Rights::READ);
    let pointer = ROOT.get();
    for (entry, words) in [
        (Dte::blocked(), [0x1, 0, 0, 0]),
        (
            Dte::pass_through(Rights::ALL),
            [0x6000_0000_0000_0003, 0, 0, 0],
        ),
        (
            Dte::pass_through(read_only),
            [0x2000_0000_0000_0003, 0, 0, 0],
        ),
        (
            Dte::pass_through(write_only),
            [0x4000_0000_0000_0003, 0, 0, 0],
        ),
        (Dte::pass_through(Rights::NONE), [0x3, 0, 0, 0]),
        (
            Dte::host(host_tables(2, Tracking::None)),
            [0x6000_0000_0000_0603 | pointer, 0, 0, 0],
        ),
        (
            Dte::host(host_tables(0, Tracking::Accessed)),
            [0x6000_0000_0000_0283 | pointer, 0, 0, 0],
        ),
        (
            Dte::host(host_tables(5, Tracking::AccessedAndDirty).with_limit(read_only)),
            [0x2000_0000_0000_0d83 | pointer, 0, 0, 0],
        ),
        // The root of the guest CR3 table: 14:12 in 60:58, 30:15 and 51:31 in word 1.
        (
            Dte::guest(GuestTables::new(gcr3(0x7000, 1, 4))),
            [0x7c80_0000_0000_0003, 0, 0, 0],
        ),
        (
            Dte::guest(GuestTables::new(gcr3(0x7fff_8000, 2, 5))),
            [0x6180_0000_0000_0003, 0xffff_0000, 1 << 54, 0],
        ),
        (
            Dte::guest(GuestTables::new(gcr3(0x000f_ffff_8000_0000, 3, 4))),
            [0x6280_0000_0000_0003, 0xffff_f800_0000_0000, 0, 0],
        ),
        (
            Dte::guest(GuestTables::new(gcr3(0x1000, 1, 4)).with_requests_without_pasid()),
            [0x64c0_0000_0000_0003, 0, 0, 0],
        ),
        (
            Dte::guest(
                GuestTables::new(gcr3(0x1000, 1, 4)).with_host(host_tables(3, Tracking::None)),
            ),
            [0x6480_0000_0000_0803 | pointer, 0, 0, 0],
        ),
    ] {
        assert_eq!(entry.words(), words);
        let decoded = entry.translation().expect("the entry is legal");
        assert_eq!(Dte::of(decoded).translation(), Ok(decoded));
    }
}

#[test]
fn everything_else_has_its_bits() {
    let blocked = Dte::blocked();
    let table = InterruptTable::new(Oa::new(0x000f_ffff_ffff_ffc0), 11).expect("it is possible");
    for (entry, words) in [
        (blocked.with_domain_id(0xfedc), [0x1, 0xfedc, 0, 0]),
        (
            blocked.with_domain_id(0xfedc).with_domain_id(1),
            [0x1, 1, 0, 0],
        ),
        (blocked.with_page_requests(), [1 << 52 | 0x1, 0, 0, 0]),
        (blocked.with_page_response_pasid(), [1 << 53 | 0x1, 0, 0, 0]),
        (blocked.with_ats(), [0x1, 1 << 32, 0, 0]),
        (
            blocked.with_repeated_faults_suppressed(),
            [0x1, 1 << 33, 0, 0],
        ),
        (blocked.with_all_faults_suppressed(), [0x1, 1 << 34, 0, 0]),
        (
            blocked
                .with_port_io(PortIo::Translated)
                .with_port_io(PortIo::Forwarded),
            [0x1, 1 << 35, 0, 0],
        ),
        (
            blocked.with_port_io(PortIo::Translated),
            [0x1, 2 << 35, 0, 0],
        ),
        (blocked.with_port_io(PortIo::Aborted), [0x1, 0, 0, 0]),
        (blocked.with_cache_hint(), [0x1, 1 << 37, 0, 0]),
        (blocked.with_snoop_disabled(), [0x1, 1 << 38, 0, 0]),
        (blocked.with_exclusion(), [0x1, 1 << 39, 0, 0]),
        (
            blocked.with_system_management(SystemManagement::Translated),
            [0x1, 3 << 40, 0, 0],
        ),
        (
            blocked.with_system_management(SystemManagement::InterruptsForwarded),
            [0x1, 2 << 40, 0, 0],
        ),
        (
            blocked.with_system_management(SystemManagement::Forwarded),
            [0x1, 1 << 40, 0, 0],
        ),
        (
            blocked.with_interrupts(Interrupts::Aborted),
            [0x1, 0, 0x1, 0],
        ),
        (
            blocked.with_interrupts(Interrupts::Forwarded),
            [0x1, 0, 1 << 60 | 0x1, 0],
        ),
        (
            blocked.with_interrupts(Interrupts::Remapped(table)),
            [0x1, 0, 0x200f_ffff_ffff_ffd7, 0],
        ),
    ] {
        assert_eq!(entry.words(), words);
    }
    assert!(blocked.with_all_faults_suppressed().suppresses_all_faults());
    let repeated = blocked.with_repeated_faults_suppressed();
    assert!(repeated.suppresses_faults() && !repeated.suppresses_all_faults());
}

#[test]
fn interrupt_fields_of_another_entry_replace_all_and_nothing_else() {
    // GuestPagingMode 1 here, 2 there; everything set there.
    let entry = Dte::new([0x1, 2, 1 << 54 | 0x1f, 3]);
    let other = Dte::new([!0, !0, !0 ^ 1 << 54 ^ 0x6, !0]);
    let merged = [0x1, 2, 0xff4f_ffff_ffff_fff9, 3];
    assert_eq!(entry.with_interrupts_of(other).words(), merged);
}

#[test]
fn what_has_no_encoding_is_not_made() {
    for n in (0..64).filter(|n| !(12..52).contains(n)) {
        let oa = Oa::new(ROOT.get() ^ bit(n));
        let root = Root {
            oa,
            level: Level(2),
        };
        let alignment = 0x1000;
        let error = DteError::Pointer { oa, alignment };
        assert_eq!(HostTables::new(root, Tracking::None), Err(error));
    }
    for n in (0..64).filter(|n| !(6..52).contains(n)) {
        let oa = Oa::new(bit(n));
        let alignment = 64;
        let error = DteError::Pointer { oa, alignment };
        assert_eq!(InterruptTable::new(oa, 9), Err(error));
    }
    for level in [6, 7, 255].map(Level) {
        let error = DteError::HostRootLevel { level };
        let root = Root { oa: ROOT, level };
        assert_eq!(HostTables::new(root, Tracking::None), Err(error));
    }
    for count_lg2 in [12, 255] {
        let error = DteError::InterruptTableLength { count_lg2 };
        assert_eq!(InterruptTable::new(Oa::new(0), count_lg2), Err(error));
    }
}

#[test]
fn one_limit_holds_for_both_stages() {
    let read_only = Rights::ALL.difference(Rights::WRITE);
    let host = host_tables(3, Tracking::None);
    let tables = GuestTables::new(gcr3(0x1000, 1, 4));
    for tables in [
        tables.with_host(host.with_limit(read_only)),
        tables.with_limit(read_only).with_host(host),
        tables.with_host(host).with_limit(Rights::READ),
    ] {
        assert_eq!(tables.limit(), read_only);
        assert_eq!(tables.host().map(HostTables::limit), Some(read_only));
        assert_eq!(
            Dte::guest(tables).translation(),
            Ok(Translation::Guest(tables))
        );
    }
}

/// Everything that the getters say of an entry.
type Meaning = (Translation, [bool; 10], u16, PortIo, SystemManagement);

fn meaning(entry: Dte) -> Result<Meaning, DteError> {
    let flags = [
        entry.is_valid(),
        entry.has_ats(),
        entry.has_page_requests(),
        entry.has_page_response_pasid(),
        entry.suppresses_faults() && !entry.suppresses_all_faults(),
        entry.suppresses_all_faults(),
        entry.words()[1] & SUPPRESS_REPEATED != 0,
        entry.has_cache_hint(),
        entry.has_snoop_disabled(),
        entry.has_exclusion(),
    ];
    Ok((
        entry.translation()?,
        flags,
        entry.domain_id(),
        entry.port_io()?,
        entry.system_management(),
    ))
}

/// Sets a flag.
type Setter = fn(Dte) -> Dte;

/// Makes the entry again from what the getters say.
fn made_again(entry: Dte) -> Result<Dte, DteError> {
    let mut again = Dte::of(entry.translation()?)
        .with_domain_id(entry.domain_id())
        .with_port_io(entry.port_io()?)
        .with_system_management(entry.system_management())
        .with_interrupts_of(entry);
    let flags: [(bool, Setter); 7] = [
        (entry.has_ats(), Dte::with_ats),
        (entry.has_page_requests(), Dte::with_page_requests),
        (
            entry.has_page_response_pasid(),
            Dte::with_page_response_pasid,
        ),
        (
            entry.suppresses_all_faults(),
            Dte::with_all_faults_suppressed,
        ),
        (entry.has_cache_hint(), Dte::with_cache_hint),
        (entry.has_snoop_disabled(), Dte::with_snoop_disabled),
        (entry.has_exclusion(), Dte::with_exclusion),
    ];
    for (is_set, set) in flags {
        if is_set {
            again = set(again);
        }
    }
    if entry.words()[1] & SUPPRESS_REPEATED != 0 {
        again = again.with_repeated_faults_suppressed();
    }
    Ok(again)
}

#[test]
fn entries_made_again_are_the_same_in_what_hardware_reads() {
    let mut random = Random::new(0x0123_4567_89ab_cdef);
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut words = [(); 4].map(|()| random.next());
        for (word, reserved) in words.iter_mut().zip(RESERVED) {
            *word &= !reserved;
        }
        // Word 3 has nothing that getters say; an entry without V is never made.
        words[3] = 0;
        words[0] |= VALID;
        if random.below(4) != 0 {
            words[0] |= TRANSLATION_VALID;
            words[2] &= !bit(55);
        }
        let entry = Dte::new(words);
        let Ok(again) = made_again(entry) else {
            continue;
        };
        accepted += 1;
        // What blocks by lack of rights is made again as what blocks without TV.
        let is_blocked = entry.translation() == Ok(Translation::Blocked);
        let mut read = Dte::used(words);
        if is_blocked {
            read = Dte::used(Dte::blocked().words());
            read[0] ^= TRANSLATION_VALID;
        }
        read[2] |= Dte::INTERRUPT_FIELDS;
        for word in 0..4 {
            let expected = words[word] & read[word];
            assert_eq!(again.words()[word], expected, "word {word} of {words:#x?}");
        }
        assert_eq!(again.translation(), entry.translation());
        assert_eq!(meaning(again), meaning(entry));
        if accepted % 64 == 0 && !is_blocked {
            // Nothing here says what word 3 and interrupt fields mean.
            let read = [read[0], read[1], Dte::used(words)[2], 0];
            check_used(words, read, |words| meaning(Dte::new(words)));
        }
    }
    assert!(accepted > 5_000, "{accepted} of 20000 are accepted");
}
