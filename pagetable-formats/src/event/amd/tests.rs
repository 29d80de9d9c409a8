//! Entries worked out by hand from the figures of the specification, and random ones.

use super::*;

const fn pasid(number: u32) -> Pasid {
    Pasid::new(number).expect("it fits")
}

const FAULT: PageFault = PageFault {
    device_id: 0x1234,
    space: Space::Process(pasid(0xa_bcde)),
    no_execute: true,
    is_user: true,
    is_interrupt: false,
    is_present: true,
    is_write: true,
    lacks_permission: true,
    is_malformed: false,
    is_translation: true,
    address: Iova::new(0xffff_1234_5678_9abc),
};

const REQUEST: PageRequest = PageRequest {
    device_id: 0x1234,
    pasid: Some(pasid(0xa_bcde)),
    group: Narrow::MAX,
    is_last: true,
    is_read: true,
    is_write: false,
    is_fetch: true,
    is_privileged: false,
    is_malformed: false,
    address: Iova::new(0xffff_1234_5678_9000),
};

/// The bits of a page fault that have a meaning, with a PASID.
const FAULT_BITS: [u64; 2] = [0xf1ff_ffff_000f_ffff, u64::MAX];
/// Those of a page request.
const REQUEST_BITS: [u64; 2] = [0xf1e6_3fff_ffff_ffff, !0xfff];

#[test]
fn page_faults_stand_where_the_figure_of_io_page_fault_says() {
    let words = [
        // Code 2, TR, PE, RW, PR, US, NX, GN above PASID[15:0]; PASID[19:16] above the device.
        0x2177_bcde_000a_1234,
        0xffff_1234_5678_9abc,
    ];
    assert_eq!(FAULT.encode(), words);
    assert_eq!(Event::decode(words), Event::PageFault(FAULT));
    let plain = PageFault {
        space: Space::Domain(0xbeef),
        no_execute: false,
        is_user: false,
        is_interrupt: true,
        is_present: false,
        is_write: false,
        lacks_permission: false,
        is_malformed: true,
        is_translation: false,
        ..FAULT
    };
    let words = [0x2088_beef_0000_1234, words[1]];
    assert_eq!(plain.encode(), words);
    assert_eq!(Event::decode(words), Event::PageFault(plain));
    // Of a domain there are 16 bits.
    let noise = [words[0] | 0x000f_0000, words[1]];
    assert_eq!(Event::decode(noise), Event::PageFault(plain));
}

#[test]
fn page_requests_stand_where_the_figure_of_page_service_request_says() {
    let words = [
        // Code 1, GN, US, read, execute; PASID[19:16], the last one of group 0x1ff; PASID[15:0], the device.
        0x1146_2bff_bcde_1234,
        0xffff_1234_5678_9000,
    ];
    assert_eq!(REQUEST.encode(), words);
    assert_eq!(PageRequest::decode(words), Some(REQUEST));
    let plain = PageRequest {
        pasid: None,
        group: Narrow::new(5).expect("9 bits"),
        is_last: false,
        is_read: false,
        is_write: true,
        is_fetch: false,
        is_malformed: true,
        ..REQUEST
    };
    let words = [0x10a0_0005_0000_1234, 0xffff_1234_5678_9000];
    assert_eq!(plain.encode(), words);
    assert_eq!(PageRequest::decode(words), Some(plain));
    // Nothing is said of PASID and US without GN.
    let noise = [words[0] | 0x0040_2800_bcde_0000, words[1] | 0xfff];
    assert_eq!(PageRequest::decode(noise), Some(plain));
}

/// What changes with each bit of an entry, alone.
#[test]
fn each_bit_of_an_entry_has_its_own_meaning_or_none() {
    let words = FAULT.encode();
    let other_words = REQUEST.encode();
    for bit in 0..128 {
        let flip = |mut words: [u64; 2]| {
            words[bit / 64] ^= 1 << (bit % 64);
            words
        };
        let flipped = flip(words);
        let event = Event::decode(flipped);
        let is_known = FAULT_BITS[bit / 64] >> (bit % 64) & 1 != 0;
        assert_eq!(event != Event::PageFault(FAULT), is_known, "{bit}");
        let is_fault = matches!(event, Event::PageFault(_));
        assert_eq!(is_fault, !(60..64).contains(&bit));
        if bit == 48 {
            // Without GN it is a domain.
            let Event::PageFault(fault) = event else {
                panic!("it is one")
            };
            assert_eq!(fault.space, Space::Domain(0xbcde));
        } else if is_known {
            assert_eq!(event.encode(), flipped, "{bit}");
        }
        let flipped = flip(other_words);
        let request = PageRequest::decode(flipped);
        let is_known = REQUEST_BITS[bit / 64] >> (bit % 64) & 1 != 0;
        assert_eq!(request != Some(REQUEST), is_known, "{bit}");
        match request {
            None => assert!((60..64).contains(&bit)),
            Some(request) if bit == 56 => {
                assert_eq!((request.pasid, request.is_privileged), (None, false));
                assert_eq!(request.encode()[0], 0x1006_03ff_0000_1234);
            }
            Some(request) if is_known => assert_eq!(request.encode(), flipped, "{bit}"),
            Some(_) => {}
        }
    }
}

#[test]
fn other_events_are_told_by_their_code() {
    let about_devices = [1, 3, 4, 7, 8, 9];
    for code in 0..16_u8 {
        let words = [u64::from(code) << 60 | 0x1234, 0x5678];
        let event = Event::decode(words);
        assert_eq!(event.encode(), words);
        let Event::Other(other) = event else {
            assert_eq!(code, 2);
            continue;
        };
        assert_eq!((other.code(), other.words()), (code, words));
        assert_eq!(other.name().is_some(), (1..15).contains(&code));
        let device = about_devices.contains(&code).then_some(0x1234);
        assert_eq!(other.device_id(), device);
        assert_eq!(PageRequest::decode(words).is_some(), code == 1);
    }
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
            pasid: None,
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
        let code = |word: u64, code: u64| word & !CODE.mask() | CODE.put(code);
        let words = [code(random(), 1), random()];
        let request = PageRequest::decode(words).expect("it is one");
        let again = request.encode();
        assert_eq!(PageRequest::decode(again), Some(request));
        let unsaid = if words[0] & REQUEST_GUEST == 0 {
            REQUEST_USER | REQUEST_PASID_19_16.mask() | REQUEST_PASID_15_0.mask()
        } else {
            0
        };
        let known = [REQUEST_BITS[0] & !unsaid, REQUEST_BITS[1]];
        assert_eq!(again, [words[0] & known[0], words[1] & known[1]]);
        let words = [code(random(), 2), random()];
        let event = Event::decode(words);
        let again = event.encode();
        assert_eq!(Event::decode(again), event);
        let unsaid = if words[0] & GUEST == 0 { 0xf_0000 } else { 0 };
        assert_eq!(again, [words[0] & FAULT_BITS[0] & !unsaid, words[1]]);
        let words = [random(), random()];
        assert_eq!(
            Event::decode(Event::decode(words).encode()),
            Event::decode(words)
        );
    }
}
