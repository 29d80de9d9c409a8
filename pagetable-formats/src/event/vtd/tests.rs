//! Records worked out by hand from the figures of the specification, each of their bits, and random ones.

extern crate std;

use std::vec;
use std::vec::Vec;

use super::*;

const fn pasid(number: u32) -> Pasid {
    Pasid::new(number).expect("it fits")
}

const REQUEST: PageRequest = PageRequest {
    requester_id: 0x1234,
    pasid: Some(pasid(0xa_bcde)),
    group: Narrow::MAX,
    is_last: true,
    is_read: true,
    is_write: false,
    is_fetch: true,
    is_privileged: false,
    address: Iova::new(0xffff_1234_5678_9000),
    private_data: Some([0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00]),
};

const FAULT_RECORD: Fault = Fault {
    source_id: 0x1234,
    reason: 0x71,
    refused: Refused::Memory {
        access: Access::Read,
        address_type: AddressType::Translated,
        pasid: Some(pasid(0xa_bcde)),
        is_fetch: true,
        is_privileged: false,
        address: Iova::new(0xffff_1234_5678_9000),
    },
};

#[test]
fn page_requests_stand_where_the_figure_says() {
    let words = [
        // EXR (52), the PASID, the RID, PDP and PP (9 and 8), type 1.
        0x001a_bcde_1234_0301,
        // The page, PRGI (11:3), LPIG (2), RR (0).
        0xffff_1234_5678_9ffd,
        0x1122_3344_5566_7788,
        0x99aa_bbcc_ddee_ff00,
    ];
    assert_eq!(REQUEST.encode(), words);
    assert_eq!(PageRequest::decode(words), Some(REQUEST));
    let other = PageRequest {
        pasid: None,
        group: Narrow::new(1).expect("it fits"),
        is_last: false,
        is_read: false,
        is_write: true,
        is_fetch: false,
        is_privileged: true,
        private_data: None,
        ..REQUEST
    };
    let words = [0x0020_0000_1234_0001, 0xffff_1234_5678_900a, 0, 0];
    assert_eq!(other.encode(), words);
    assert_eq!(PageRequest::decode(words), Some(other));
    // Without PP and PDP there is no PASID and no data, and the rest is reserved.
    let noise = [words[0] | 0xffca_bcde_0000_fc00, words[1], u64::MAX, 9];
    assert_eq!(PageRequest::decode(noise), Some(other));
}

#[test]
fn only_type_1_is_a_page_request() {
    for number in 0..=255_u64 {
        let mut words = REQUEST.encode();
        words[0] = words[0] & !0xff | number;
        assert_eq!(PageRequest::decode(words).is_some(), number == 1);
    }
}

/// What changes where one bit does: exactly the field that the figure has there, or nothing.
#[test]
fn each_bit_of_a_page_request_belongs_to_one_field() {
    let fields = |it: &PageRequest| {
        [
            it.requester_id.into(),
            it.pasid.map_or(u64::MAX, |pasid| pasid.get().into()),
            it.group.get().into(),
            it.is_last.into(),
            it.is_read.into(),
            it.is_write.into(),
            it.is_fetch.into(),
            it.is_privileged.into(),
            it.address.get(),
            it.private_data.map_or(0, |data| data[0] ^ 1),
            it.private_data.map_or(0, |data| data[1] ^ 1),
        ]
    };
    let whose = |bit: u32| match bit {
        9 => vec![9, 10],
        16..=31 => vec![0],
        8 | 32..=51 => vec![1],
        52 => vec![6],
        53 => vec![7],
        64 => vec![4],
        65 => vec![5],
        66 => vec![3],
        67..=75 => vec![2],
        76..=127 => vec![8],
        128..=191 => vec![9],
        192..=255 => vec![10],
        _ => vec![],
    };
    let words = REQUEST.encode();
    for bit in 0..256_u32 {
        let mut flipped = words;
        flipped[bit as usize / 64] ^= 1 << (bit % 64);
        let decoded = PageRequest::decode(flipped);
        if bit < 8 {
            assert_eq!(decoded, None, "bit {bit}");
            continue;
        }
        let decoded = decoded.expect("type 1");
        let (old, new) = (fields(&REQUEST), fields(&decoded));
        let changed: Vec<_> = (0..old.len()).filter(|&at| old[at] != new[at]).collect();
        assert_eq!(changed, whose(bit), "bit {bit}");
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
fn faults_stand_where_the_figure_of_the_register_says() {
    let words = [
        0xffff_1234_5678_9000,
        // F, T1, AT 2, the PASID; the reason; PP and EXE (31 and 30), the SID.
        0xeabc_de71_c000_1234,
    ];
    assert_eq!(FAULT_RECORD.encode(), words);
    assert_eq!(Fault::decode(words), Some(FAULT_RECORD));
    let refused = Refused::Memory {
        access: Access::PageRequest,
        address_type: AddressType::TranslationRequest,
        pasid: None,
        is_fetch: false,
        is_privileged: true,
        address: Iova::new(0xffff_1234_5678_9000),
    };
    let other = Fault {
        refused,
        ..FAULT_RECORD
    };
    let words = [0xffff_1234_5678_9000, 0x9000_0071_3000_1234];
    assert_eq!(other.encode(), words);
    // The PASID is unknown without PP, and the rest is reserved.
    let noise = [words[0] | 0xfff, words[1] | 0x00ab_cd00_0fff_0000];
    assert_eq!(Fault::decode(noise), Some(other));
    // What the oldest units say: writes and reads of addresses alone.
    let refused = |access| Refused::Memory {
        access,
        address_type: AddressType::Untranslated,
        pasid: None,
        is_fetch: false,
        is_privileged: false,
        address: Iova::new(0x5000),
    };
    for (access, high) in [
        (Access::Write, 0x8000_0005_0000_0010),
        (Access::Read, 0xc000_0005_0000_0010),
    ] {
        let fault = Fault {
            source_id: 0x10,
            reason: 5,
            refused: refused(access),
        };
        assert_eq!(Fault::decode([0x5000, high]), Some(fault));
    }
}

#[test]
fn faults_of_interrupts_name_an_entry() {
    let fault = |reason| Fault {
        source_id: 0x1234,
        reason,
        refused: Refused::Interrupt { index: 0xabcd },
    };
    let words = [0xabcd_0000_0000_0000, 0x8000_0022_0000_1234];
    assert_eq!(fault(0x22).encode(), words);
    assert_eq!(Fault::decode(words), Some(fault(0x22)));
    for reason in 0..=255_u8 {
        let words = fault(reason).encode();
        let decoded = Fault::decode(words).expect("F is set");
        let is_interrupt = matches!(decoded.refused, Refused::Interrupt { .. });
        assert_eq!(is_interrupt, (0x20..=0x2f).contains(&reason), "{reason:#x}");
    }
}

#[test]
fn a_register_that_recorded_nothing_says_nothing() {
    let [low, high] = FAULT_RECORD.encode();
    assert_eq!(Fault::decode([low, high & !Fault::CLEAR]), None);
    assert_eq!(Fault::decode([u64::MAX, u64::MAX >> 1]), None);
    assert_eq!(Fault::CLEAR, 1 << 63);
}

#[test]
fn each_bit_of_a_fault_belongs_to_one_field() {
    let fields = |it: &Fault| {
        let Refused::Memory {
            access,
            address_type,
            pasid,
            is_fetch,
            is_privileged,
            address,
        } = it.refused
        else {
            return [u64::MAX; 8];
        };
        [
            it.source_id.into(),
            it.reason.into(),
            access as u64,
            address_type as u64,
            pasid.map_or(u64::MAX, |pasid| pasid.get().into()),
            is_fetch.into(),
            is_privileged.into(),
            address.get(),
        ]
    };
    let whose = |bit: u32| match bit {
        12..=63 => Some(7),
        64..=79 => Some(0),
        92 | 126 => Some(2),
        93 => Some(6),
        94 => Some(5),
        95 | 104..=123 => Some(4),
        96..=103 => Some(1),
        124 | 125 => Some(3),
        _ => None,
    };
    // No bit away from the reasons of interrupts.
    let fault = Fault {
        reason: 0x90,
        ..FAULT_RECORD
    };
    let words = fault.encode();
    for bit in 0..127_u32 {
        let mut flipped = words;
        flipped[bit as usize / 64] ^= 1 << (bit % 64);
        let decoded = Fault::decode(flipped).expect("F is set");
        let (old, new) = (fields(&fault), fields(&decoded));
        let changed: Vec<_> = (0..old.len()).filter(|&at| old[at] != new[at]).collect();
        assert_eq!(changed, Vec::from_iter(whose(bit)), "bit {bit}");
    }
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
        let words = [random() & !0xff | 1, random(), random(), random()];
        let request = PageRequest::decode(words).expect("type 1");
        let again = request.encode();
        assert_eq!(PageRequest::decode(again), Some(request));
        assert_eq!((again[0] ^ words[0]) & 0x0030_0000_ffff_03ff, 0);
        assert_eq!(again[1], words[1]);
        let words = [random(), random() | 1 << 63];
        let fault = Fault::decode(words).expect("F is set");
        let again = fault.encode();
        assert_eq!(Fault::decode(again), Some(fault));
        assert_eq!((again[1] ^ words[1]) & 0x8000_00ff_0000_ffff, 0);
    }
}
