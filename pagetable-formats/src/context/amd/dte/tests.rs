//! Entries worked out by hand, and entries that Linux wrote.

mod encoding;
mod updates;

use super::*;
use crate::Format as _;

fn translation(words: [u64; 4]) -> Result<Translation, DteError> {
    Dte::new(words).translation()
}

fn host(words: [u64; 4]) -> HostTables {
    match translation(words) {
        Ok(Translation::Host(host)) => host,
        other => panic!("{words:#x?} is {other:?}"),
    }
}

fn guest(words: [u64; 4]) -> GuestTables {
    match translation(words) {
        Ok(Translation::Guest(guest)) => guest,
        other => panic!("{words:#x?} is {other:?}"),
    }
}

#[test]
fn an_entry_without_v_passes_everything() {
    let all = Translation::PassThrough {
        rights: Rights::ALL,
    };
    assert_eq!(translation([0, 0, 0, 0]), Ok(all));
    assert_eq!(translation([!VALID, u64::MAX, u64::MAX, u64::MAX]), Ok(all));
}

#[test]
fn blocked_devices_have_no_tables_or_no_rights() {
    // V without TV; then what Linux writes before a device is attached.
    assert_eq!(
        translation([0x6000_0000_0000_0001, 0, 0, 0]),
        Ok(Translation::Blocked)
    );
    assert_eq!(translation([0x3, 0, 0, 0]), Ok(Translation::Blocked));
}

#[test]
fn mode_0_passes_what_ir_and_iw_allow() {
    let rights = Rights::ALL.difference(Rights::WRITE);
    let read_only = Translation::PassThrough { rights };
    assert_eq!(translation([0x2000_0000_0000_0003, 0, 0, 0]), Ok(read_only));
}

#[test]
fn an_entry_of_linux_leads_to_three_levels_of_host_tables() {
    let words = [0x6000_0000_023f_5603, 0x1, 0, 0];
    let tables = host(words);
    assert_eq!(
        tables.root(),
        Root {
            oa: Oa::new(0x23f_5000),
            level: Level(2)
        }
    );
    assert_eq!(tables.format().geometry().va_bits, 39);
    assert_eq!(tables.format().dirty_rule(), None);
    assert_eq!(tables.limit(), Rights::ALL);
    assert_eq!(Dte::new(words).domain_id(), 1);
    assert_eq!(Dte::new(words).interrupts(), Ok(Interrupts::Forwarded));
}

#[test]
fn six_levels_take_64_bits_and_had_tracks_dirty_pages() {
    let tables = host([0x200f_ffff_ffff_fd83, 0, 0, 0]);
    assert_eq!(
        tables.root(),
        Root {
            oa: Oa::new(0x000f_ffff_ffff_f000),
            level: Level(5)
        }
    );
    assert_eq!(tables.format().geometry().va_bits, 64);
    assert!(tables.format().dirty_rule().is_some());
    assert_eq!(tables.limit(), Rights::ALL.difference(Rights::WRITE));
    assert_eq!(
        host([0x683, 0, 0, 0]).format().dirty_rule(),
        None,
        "HAD = 1 sets A only"
    );
}

#[test]
fn the_guest_cr3_address_is_put_together_from_three_fields() {
    // GCR3 = 0xaaaaa_aaaa_a000: bits 14:12 = 010, 30:15 = 0x5555, 51:31 = 0x15_5555.
    let low = 0x3 | bit(55) | 1 << 56 | 0b010 << 58;
    let high = 0x7 | 0x5555 << 16 | 0x15_5555 << 43;
    let tables = guest([low, high, 1 << 54, 0]);
    assert_eq!(tables.gcr3().root(), Oa::new(0x000a_aaaa_aaaa_a000));
    assert_eq!(
        (tables.gcr3().levels(), tables.gcr3().paging_levels()),
        (2, 5)
    );
    assert_eq!(tables.gcr3().pasid_bits(), 18);
    assert_eq!(tables.host(), None);
    assert!(!tables.serves_requests_without_pasid());
    assert_eq!(Dte::new([low, high, 0, 0]).domain_id(), 7);
}

#[test]
fn guest_tables_may_lie_on_host_tables() {
    let tables = guest([0x60c0_0000_0040_0803, 0, 0, 0]);
    let below = tables.host().expect("Mode is 4");
    assert_eq!(
        below.root(),
        Root {
            oa: Oa::new(0x40_0000),
            level: Level(3)
        }
    );
    assert_eq!(
        (tables.gcr3().levels(), tables.gcr3().paging_levels()),
        (1, 4)
    );
    assert!(tables.serves_requests_without_pasid());
    assert_eq!(tables.limit(), Rights::ALL);
}

#[test]
fn reserved_values_are_refused() {
    let error = |words| translation(words).expect_err("the entry is illegal");
    let guest_low = 0x3 | bit(55);
    assert_eq!(error([0xe03, 0, 0, 0]), DteError::Mode);
    assert_eq!(error([0x703, 0, 0, 0]), DteError::Tracking);
    assert_eq!(error([guest_low | 3 << 56, 0, 0, 0]), DteError::Gcr3Levels);
    for mode in [2, 3] {
        assert_eq!(
            error([guest_low, 0, mode << 54, 0]),
            DteError::GuestPagingMode
        );
    }
    for bits in [bit(2), bit(6), bit(63)] {
        assert_eq!(
            error([0x3 | bits, 0, 0, 0]),
            DteError::Reserved { word: 0, bits }
        );
    }
    assert_eq!(
        error([1, bit(42), 0, 0]),
        DteError::Reserved {
            word: 1,
            bits: bit(42)
        }
    );
    let bits = bit(52);
    assert_eq!(
        error([guest_low, 0, bits, 0]),
        DteError::Reserved { word: 2, bits }
    );
}

#[test]
fn interrupts_are_remapped_only_by_a_table() {
    let interrupts = |word| Dte::new([0, 0, word, 0]).interrupts();
    assert_eq!(interrupts(!INTERRUPTS_VALID), Ok(Interrupts::Forwarded));
    assert_eq!(interrupts(0x1), Ok(Interrupts::Aborted));
    assert_eq!(interrupts(1 << 60 | 0x1), Ok(Interrupts::Forwarded));
    let table = InterruptTable::new(Oa::new(0x8800_1040), 9).expect("both fields can hold it");
    let remapped = 2 << 60 | 0x8800_1040 | 9 << 1 | 0x1;
    assert_eq!(interrupts(remapped), Ok(Interrupts::Remapped(table)));
    assert_eq!(interrupts(3 << 60 | 0x1), Err(DteError::InterruptControl));
    let error = DteError::InterruptTableLength { count_lg2: 12 };
    assert_eq!(interrupts(2 << 60 | 12 << 1 | 0x1), Err(error));
    for bits in [bit(53), bit(59)] {
        assert_eq!(
            interrupts(bits | 0x1),
            Err(DteError::Reserved { word: 2, bits })
        );
    }
}

#[test]
fn single_bits_have_their_place() {
    let dte = |low, high| Dte::new([low, high, 0, 0]);
    assert!(dte(0, bit(32)).has_ats());
    assert!(dte(bit(52), 0).has_page_requests());
    assert!(dte(0, bit(33)).suppresses_faults() && dte(0, bit(34)).suppresses_faults());
    assert!(dte(0, bit(39)).has_exclusion());
    assert!(!dte(0, !bit(32)).has_ats() && !dte(!bit(52), 0).has_page_requests());
    assert!(!dte(0, !(bit(33) | bit(34))).suppresses_faults());
    assert!(!dte(0, !bit(39)).has_exclusion());
    let port_io = [PortIo::Aborted, PortIo::Forwarded, PortIo::Translated];
    for (value, meaning) in (0..).zip(port_io) {
        assert_eq!(dte(0, value << 35).port_io(), Ok(meaning));
    }
    assert_eq!(dte(0, 3 << 35).port_io(), Err(DteError::PortIo));
    let system_management = [
        SystemManagement::Aborted,
        SystemManagement::Forwarded,
        SystemManagement::InterruptsForwarded,
        SystemManagement::Translated,
    ];
    for (value, meaning) in (0..).zip(system_management) {
        assert_eq!(dte(0, value << 40).system_management(), meaning);
    }
}

#[test]
fn fields_and_reserved_bits_make_up_each_word() {
    for (fields, reserved) in Dte::FIELDS.into_iter().zip(RESERVED) {
        let mut seen = reserved;
        for field in fields {
            assert_eq!(seen & field.mask(), 0, "{field:?}");
            seen |= field.mask();
        }
        assert_eq!(seen, u64::MAX);
    }
}
