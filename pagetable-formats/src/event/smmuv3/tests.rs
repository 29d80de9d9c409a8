//! Records worked out by hand from the figures of IHI 0070, and random ones.

use super::*;
use crate::command::Narrow;

const fn pasid(number: u32) -> Pasid {
    Pasid::new(number).expect("it fits")
}

const FAULT: Fault = Fault {
    kind: FaultKind::Permission,
    stream: 0x1234_5678,
    substream: Some(pasid(0xa_bcde)),
    stall: Some(0xbeef),
    is_read: true,
    is_fetch: true,
    is_privileged: true,
    is_stage2: true,
    class: FaultClass::Table,
    address: Iova::new(0xffff_1234_5678_9abc),
    ipa: Oa::new(0x00ab_cdef_0123_4000),
};

const REQUEST: PageRequest = PageRequest {
    stream: 0x1234_5678,
    substream: Some(pasid(0xa_bcde)),
    group: Narrow::MAX,
    is_last: true,
    is_read: true,
    is_write: false,
    is_fetch: true,
    is_privileged: false,
    address: Iova::new(0xffff_1234_5678_9000),
};

#[test]
fn faults_stand_where_the_figure_of_f_translation_says() {
    let words = [
        // StreamID, SubstreamID, SSV, 0x13.
        0x1234_5678_abcd_e813,
        // CLASS 1 (bits 105:104), S2 (103), RnW, InD, PnU (99 to 97), Stall (95), STAG.
        0x0000_018e_8000_beef,
        0xffff_1234_5678_9abc,
        0x00ab_cdef_0123_4000,
    ];
    assert_eq!(FAULT.encode(), words);
    assert_eq!(Event::decode(words), Event::Fault(FAULT));
    let plain = Fault {
        kind: FaultKind::Translation,
        substream: None,
        stall: None,
        is_read: false,
        is_fetch: false,
        is_privileged: false,
        is_stage2: false,
        class: FaultClass::Input,
        ipa: Oa::new(0),
        ..FAULT
    };
    let words = [0x1234_5678_0000_0010, 0x0000_0200_0000_0000, words[2], 0];
    assert_eq!(plain.encode(), words);
    assert_eq!(Event::decode(words), Event::Fault(plain));
}

#[test]
fn each_bit_of_a_fault_has_its_own_place() {
    let none = Fault {
        stall: None,
        is_read: false,
        is_fetch: false,
        is_privileged: false,
        is_stage2: false,
        class: FaultClass::Descriptor,
        ..FAULT
    };
    let word = |fault: Fault| fault.encode()[1];
    assert_eq!(word(none), 0);
    let read = Fault {
        is_read: true,
        ..none
    };
    let fetch = Fault {
        is_fetch: true,
        ..none
    };
    let privileged = Fault {
        is_privileged: true,
        ..none
    };
    assert_eq!(word(read), 1 << 35);
    assert_eq!(word(fetch), 1 << 34);
    assert_eq!(word(privileged), 1 << 33);
    for fault in [read, fetch, privileged] {
        assert_eq!(Event::decode(fault.encode()), Event::Fault(fault));
    }
}

#[test]
fn what_a_later_revision_adds_to_a_record_is_dropped() {
    let mut words = FAULT.encode();
    // A tag without Stall, the implementation's bits, low bits of the IPA.
    words[1] |= 0x0fff_fc70_7fff_0000;
    words[3] |= 0xff00_0000_0000_0fff;
    assert_eq!(Event::decode(words), Event::Fault(FAULT));
    words[1] &= !(1 << 31);
    let ended = Fault {
        stall: None,
        ..FAULT
    };
    assert_eq!(Event::decode(words), Event::Fault(ended));
    words[0] &= !(1 << 11);
    let Event::Fault(fault) = Event::decode(words) else {
        panic!("it is one");
    };
    assert_eq!(fault.substream, None);
}

#[test]
fn other_events_are_told_by_their_number() {
    for number in 0..=255_u8 {
        let words = [
            u64::from(number) | 1 << 11 | 0x5 << 12 | 0x9 << 32,
            u64::MAX,
            u64::MAX,
            u64::MAX,
        ];
        let decoded = Event::decode(words);
        let other = Event::Other {
            number,
            stream: 9,
            substream: Some(pasid(5)),
        };
        let is_fault = (0x10..=0x13).contains(&number);
        assert_eq!(matches!(decoded, Event::Fault(_)), is_fault);
        if !is_fault {
            assert_eq!(decoded, other);
            assert_eq!(decoded.encode(), [words[0], 0, 0, 0]);
        }
    }
}

#[test]
fn page_requests_stand_where_the_figure_of_chapter_8_says() {
    let words = [
        // SSV, Last, R, X above the SubstreamID, above the StreamID.
        0xd80a_bcde_1234_5678,
        0xffff_1234_5678_91ff,
    ];
    assert_eq!(REQUEST.encode(), words);
    assert_eq!(PageRequest::decode(words), REQUEST);
    let other = PageRequest {
        substream: None,
        group: Narrow::MIN,
        is_last: false,
        is_read: false,
        is_write: true,
        is_fetch: false,
        is_privileged: true,
        ..REQUEST
    };
    let words = [0x2400_0000_1234_5678, 0xffff_1234_5678_9000];
    assert_eq!(other.encode(), words);
    assert_eq!(PageRequest::decode(words), other);
    // The SubstreamID is unknown without SSV, and bits 11:9 of the second word are reserved.
    let noise = [words[0] | 0x000a_bcde << 32, words[1] | 0xe00];
    assert_eq!(PageRequest::decode(noise), other);
}

#[test]
fn a_stop_marker_has_a_pasid_and_asks_for_nothing() {
    let marker = PageRequest {
        is_read: false,
        is_write: false,
        ..REQUEST
    };
    assert!(marker.is_stop_marker());
    let requests = [
        PageRequest {
            substream: None,
            ..marker
        },
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
        assert_eq!(again[1], words[1] & !0xe00);
        let mut words = [random(), random(), random(), random()];
        words[0] = words[0] & !0xff | 0x10 | random() & 3;
        let event = Event::decode(words);
        let again = event.encode();
        assert_eq!(Event::decode(again), event);
        assert_eq!((again[0] ^ words[0]) & 0xffff_ffff_0000_08ff, 0);
        assert_eq!(again[2], words[2]);
    }
}
