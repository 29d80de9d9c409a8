//! Records worked out by hand from the figures of the specification, and random ones.

extern crate std;

use std::string::ToString as _;
use std::vec::Vec;

use super::*;
use crate::context::riscv::{Directory, LocateError};

const fn pasid(number: u32) -> Pasid {
    Pasid::new(number).expect("it fits")
}

const fn device(number: u32) -> Narrow<24> {
    Narrow::new(number).expect("it fits")
}

const FAULT: Fault = Fault {
    cause: Cause(Narrow::from_field(21)),
    transaction: Transaction::TranslationRequest,
    device: device(0xab_cdef),
    process: Some(pasid(0x1_2345)),
    is_privileged: true,
    custom: 0xfeed_beef,
    value: 0xffff_1234_5678_9abc,
    value2: 0x00ab_cdef_0123_4567,
};

const REQUEST: PageRequest = PageRequest {
    device: device(0xab_cdef),
    process: Some(pasid(0x1_2345)),
    group: Narrow::MAX,
    is_last: true,
    is_read: true,
    is_write: false,
    is_fetch: true,
    is_privileged: false,
    address: Iova::new(0xffff_1234_5678_9000),
};

/// The bits of a fault record that have a meaning.
const FAULT_BITS: [u64; 4] = [u64::MAX, 0xffff_ffff, u64::MAX, u64::MAX];
/// Those of a page request.
const REQUEST_BITS: [u64; 2] = [0xffff_ff07_ffff_f000, u64::MAX];

#[test]
fn faults_stand_where_the_figure_of_the_fault_queue_says() {
    let words = [
        // DID, TTYP 8 in bits 39:34, PRIV and PV, PID above CAUSE 21.
        0xabcd_ef23_1234_5015,
        0xfeed_beef,
        0xffff_1234_5678_9abc,
        0x00ab_cdef_0123_4567,
    ];
    assert_eq!(FAULT.encode(), words);
    assert_eq!(Fault::decode(words), FAULT);
    let access = GuestAccess {
        address: Oa::new(0x00ab_cdef_0123_4564),
        is_implicit: true,
        is_implicit_write: true,
    };
    assert_eq!(FAULT.guest_access(), Some(access));
    // A queue that cannot be written, an MSI that nobody takes: no transaction's.
    let nobody = Fault {
        cause: Cause::new(273).expect("12 bits"),
        transaction: Transaction::None,
        device: Narrow::MIN,
        process: None,
        is_privileged: false,
        custom: 0,
        value: 0x1000,
        value2: 0,
    };
    let words = [0x111, 0, 0x1000, 0];
    assert_eq!(nobody.encode(), words);
    assert_eq!(Fault::decode(words), nobody);
    assert_eq!(nobody.guest_access(), None);
}

#[test]
fn page_requests_stand_where_the_figure_of_the_page_request_queue_says() {
    let words = [
        // DID, EXEC and PV, PID.
        0xabcd_ef05_1234_5000,
        // The group in bits 11:3, L and R.
        0xffff_1234_5678_9ffd,
    ];
    assert_eq!(REQUEST.encode(), words);
    assert_eq!(PageRequest::decode(words), REQUEST);
    let plain = PageRequest {
        device: device(0x12),
        process: None,
        group: Narrow::new(5).expect("9 bits"),
        is_last: false,
        is_read: false,
        is_write: true,
        is_fetch: false,
        is_privileged: false,
        address: Iova::new(0x7000),
    };
    let words = [0x0000_1200_0000_0000, 0x702a];
    assert_eq!(plain.encode(), words);
    assert_eq!(PageRequest::decode(words), plain);
}

/// What changes with each bit of a record, alone.
#[test]
fn each_bit_of_a_record_has_its_own_meaning_or_none() {
    let words = FAULT.encode();
    for bit in 0..256 {
        let mut flipped = words;
        flipped[bit / 64] ^= 1 << (bit % 64);
        let fault = Fault::decode(flipped);
        let is_known = FAULT_BITS[bit / 64] >> (bit % 64) & 1 != 0;
        assert_eq!(fault != FAULT, is_known, "{bit}");
        if bit == 32 {
            // Without PV nothing is said of PID and PRIV.
            assert_eq!((fault.process, fault.is_privileged), (None, false));
            assert_eq!(fault.encode()[0], 0xabcd_ef20_0000_0015);
        } else if is_known {
            assert_eq!(fault.encode(), flipped, "{bit}");
        }
    }
    let words = REQUEST.encode();
    for bit in 0..128 {
        let mut flipped = words;
        flipped[bit / 64] ^= 1 << (bit % 64);
        let request = PageRequest::decode(flipped);
        let is_known = REQUEST_BITS[bit / 64] >> (bit % 64) & 1 != 0;
        assert_eq!(request != REQUEST, is_known, "{bit}");
        if bit == 32 {
            assert_eq!((request.process, request.is_fetch), (None, false));
            assert_eq!(request.encode()[0], 0xabcd_ef00_0000_0000);
        } else if is_known {
            assert_eq!(request.encode(), flipped, "{bit}");
        }
    }
}

#[test]
fn transactions_are_told_by_their_type() {
    use Transaction as T;
    let known = [
        (0, T::None),
        (1, T::Fetch),
        (2, T::Read),
        (3, T::Write),
        (5, T::TranslatedFetch),
        (6, T::TranslatedRead),
        (7, T::TranslatedWrite),
        (8, T::TranslationRequest),
        (9, T::Message),
    ];
    for code in 0..64_u8 {
        let fault = Fault::decode([u64::from(code) << 34, 0, 0, 0]);
        let expected = known.iter().find(|(known, _)| *known == code);
        let expected = expected.map_or(T::Reserved(code), |(_, known)| *known);
        assert_eq!(fault.transaction, expected);
        assert_eq!(fault.encode()[0], u64::from(code) << 34);
    }
}

/// The table of causes: which there are, and which are reported in any case.
#[test]
fn causes_have_the_names_and_the_rules_of_the_table() {
    let known = [1, 4, 5, 6, 7, 12, 13, 15, 20, 21, 23].into_iter();
    let known: Vec<u16> = known.chain(256..=274).collect();
    let always = [256, 257, 258, 259, 268, 272, 273];
    for code in 0..=0x1000_u16 {
        let Some(cause) = Cause::new(code) else {
            assert_eq!(code, 0x1000);
            continue;
        };
        assert_eq!(cause.code(), code);
        assert_eq!(cause.description().is_some(), known.contains(&code));
        assert_eq!(cause.is_reported_always(), always.contains(&code), "{code}");
        assert_eq!(cause.is_of_first_stage(), [12, 13, 15].contains(&code));
        assert_eq!(cause.is_of_second_stage(), [20, 21, 23].contains(&code));
        let fault = Fault::decode([u64::from(code), 0, 0, 0]);
        assert_eq!(fault.cause, cause);
    }
    // Those of a search for a context are among them.
    let absent = LocateError::NotValid {
        address: Oa::new(0),
    };
    for (directory, name) in [
        (Directory::Device, "DDT entry not valid"),
        (Directory::Process, "PDT entry not valid"),
    ] {
        let cause = Cause::new(absent.cause(directory)).expect("12 bits");
        assert_eq!(cause.description(), Some(name));
    }
    let other = Cause::new(2048).expect("12 bits");
    assert_eq!(other.to_string(), "cause 2048");
}

#[test]
fn a_stop_marker_asks_for_nothing() {
    let marker = PageRequest {
        is_read: false,
        is_write: false,
        ..REQUEST
    };
    assert!(marker.is_stop_marker());
    let requests = [
        PageRequest {
            is_last: false,
            ..marker
        },
        PageRequest {
            is_read: true,
            ..marker
        },
        PageRequest {
            is_write: true,
            ..marker
        },
    ];
    assert!(!requests.iter().any(PageRequest::is_stop_marker));
}

#[test]
fn random_words_decode_to_what_encodes_to_the_bits_that_are_known() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..10_000 {
        let words = [random(), random()];
        let request = PageRequest::decode(words);
        let again = request.encode();
        assert_eq!(PageRequest::decode(again), request);
        let known = if words[0] & PV == 0 {
            DID.mask()
        } else {
            REQUEST_BITS[0]
        };
        assert_eq!(again, [words[0] & known, words[1]]);
        let words = [random(), random(), random(), random()];
        let fault = Fault::decode(words);
        let again = fault.encode();
        assert_eq!(Fault::decode(again), fault);
        let without = !(PV | PRIV | PID.mask());
        let known = if words[0] & PV == 0 {
            without
        } else {
            u64::MAX
        };
        let expected = [
            words[0] & known,
            words[1] & FAULT_BITS[1],
            words[2],
            words[3],
        ];
        assert_eq!(again, expected);
    }
}
