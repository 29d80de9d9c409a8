//! Records of hardware's queues: all words decode, and what was decoded is all that is kept.

use std::fmt::Debug;

use iopt_formats::event::{
    amd as amd_queue, riscv as riscv_queue, smmuv3 as smmuv3_queue, vtd as vtd_queue,
};

use crate::fuzz::{joined, words};

/// A record of an SMMUv3's event queue, and of its PRI queue. All words are records; those of faults are accepted.
pub fn smmuv3(bytes: &[u8]) -> bool {
    use smmuv3_queue::{Event, PageRequest};
    let decode = |words| Some(Event::decode(words));
    same_record(words::<4>(bytes), decode, Event::encode);
    let decode = |words| Some(PageRequest::decode(words));
    same_record(words::<2>(bytes), decode, PageRequest::encode);
    matches!(Event::decode(words(bytes)), Event::Fault(_))
}

/// A record of a VT-d unit's page request queue, and a fault recording register.
pub fn vtd(bytes: &[u8]) -> bool {
    use vtd_queue::{Fault, PageRequest};
    let request = same_record(words::<4>(bytes), PageRequest::decode, PageRequest::encode);
    request | same_record(words::<2>(bytes), Fault::decode, Fault::encode)
}

/// An entry of an AMD IOMMU's event log, and of its page request log. All words are events; those of pages that were
/// not there, and page requests, are accepted.
pub fn amd(bytes: &[u8]) -> bool {
    use amd_queue::{Event, PageRequest};
    let decode = |words| Some(Event::decode(words));
    same_record(words::<2>(bytes), decode, Event::encode);
    let request = same_record(words::<2>(bytes), PageRequest::decode, PageRequest::encode);
    request || matches!(Event::decode(words(bytes)), Event::PageFault(_))
}

/// A record of a RISC-V IOMMU's fault queue, and of its page request queue. All words are records; those of faults that
/// say where a guest's access went are accepted.
pub fn riscv(bytes: &[u8]) -> bool {
    use riscv_queue::{Fault, PageRequest};
    let decode = |words| Some(Fault::decode(words));
    same_record(words::<4>(bytes), decode, Fault::encode);
    let decode = |words| Some(PageRequest::decode(words));
    same_record(words::<2>(bytes), decode, PageRequest::encode);
    let fault = Fault::decode(words(bytes));
    let is_guest = fault.guest_access().is_some();
    assert_eq!(is_guest, fault.cause.is_of_second_stage());
    is_guest
}

/// Checks that what words decode to is what its own words decode to, which have no bits beside. Returns whether
/// they are a record.
fn same_record<R: Copy + Debug + PartialEq, const N: usize>(
    words: [u64; N],
    decode: impl Fn([u64; N]) -> Option<R>,
    encode: impl Fn(&R) -> [u64; N],
) -> bool {
    let Some(record) = decode(words) else {
        return false;
    };
    let own = encode(&record);
    assert_eq!(decode(own), Some(record), "a record loses what it said");
    for (own, word) in own.iter().zip(words) {
        assert_eq!(own & !word, 0, "a record says more than its words did");
    }
    true
}

/// Records of an SMMUv3 with all that they may have; the stream of the second one has the number of a fault.
pub fn smmuv3_seeds() -> Vec<Vec<u8>> {
    let fault = [0x9_abcd_e813, 0x018e_8000_beef, 0x1234_5678, 0xabcd_e000];
    let request = [0xd80a_bcde_0000_0910, 0x1234_51ff];
    [joined(&[], &fault), joined(&[], &request)].to_vec()
}

/// Records of a VT-d unit with all that they may have.
pub fn vtd_seeds() -> Vec<Vec<u8>> {
    let request = [0x001a_bcde_1234_0301, 0x1234_5ffd, 1, 2];
    let plain = [0x0000_0000_1234_0001, 0x1234_5ffd, 0, 0];
    let fault = [0x1234_5000, 0xeabc_de71_c000_1234];
    let interrupt = [0xabcd_0000_0000_0000, 0x8000_0022_0000_1234];
    [
        joined(&[], &request),
        joined(&[], &plain),
        joined(&[], &fault),
        joined(&[], &interrupt),
    ]
    .to_vec()
}

/// Entries of an AMD IOMMU's logs.
pub fn amd_seeds() -> Vec<Vec<u8>> {
    [
        joined(&[], &[0x2177_bcde_000a_1234, 0x1234_5678]),
        joined(&[], &[0x2020_0005_0000_1234, 0x1234_5678]),
        joined(&[], &[0x1146_2bff_bcde_1234, 0x1234_5000]),
        joined(&[], &[0x1020_0005_0000_1234, 0x1234_5000]),
    ]
    .to_vec()
}

/// Records of a RISC-V IOMMU: faults of the second stage, the latter one's words a page request, too.
pub fn riscv_seeds() -> Vec<Vec<u8>> {
    let second = [9 << 40 | 8 << 34 | 0x15, 0, 0x1234_5678, 0x4003];
    let request = [9 << 40 | 7 << 32 | 0x5000 | 0x15, 0x1234_503f];
    [joined(&[], &second), joined(&[], &request)].to_vec()
}
