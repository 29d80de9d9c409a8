//! Tables together: order, duplicates, what every device of an architecture must keep away from.

use alloc::vec::Vec;

use super::*;
use crate::firmware::acpi::testing::{Writer, fault};
use crate::firmware::{Host, InstanceIndex};

fn mcfg(segment: u16) -> Vec<u8> {
    let writer = Writer::table(*b"MCFG", 1).zeroes(8);
    writer
        .u64(0xe000_0000)
        .u16(segment)
        .u8(0)
        .u8(0x7f)
        .u32(0)
        .finish()
}

/// An ITS group, and a root complex that goes straight to it.
fn iort() -> Vec<u8> {
    let writer = Writer::table(*b"IORT", 6).u32(2).u32(48).u32(0);
    let writer = writer.u8(0).u16(24).u8(1).zeroes(12).u32(1).u32(0);
    let writer = writer.u8(2).u16(56).u8(3).u32(0).u32(1).u32(36);
    let writer = writer
        .zeroes(16)
        .u32(0x40)
        .u32(0)
        .u32(0xffff)
        .u32(0)
        .u32(48)
        .u32(0);
    writer.finish()
}

/// A virtio-iommu in memory, and a range of functions.
fn viot() -> Vec<u8> {
    let writer = Writer::table(*b"VIOT", 0).u16(2).u16(48).zeroes(8);
    let writer = writer.u8(4).u8(0).u16(16).u32(0).u64(0x1000);
    let writer = writer.u8(1).u8(0).u16(24).u32(0).u32(0).u16(0).u16(0xff);
    writer.u16(48).zeroes(6).finish()
}

fn dmar() -> Vec<u8> {
    let writer = Writer::table(*b"DMAR", 1).u8(38).zeroes(11);
    writer.u16(0).u16(16).u32(1).u64(0xfed9_0000).finish()
}

fn ivrs() -> Vec<u8> {
    let writer = Writer::table(*b"IVRS", 2).zeroes(12);
    let writer = writer.u8(0x10).u8(0).u16(24).u16(2).u16(0x40);
    writer.u64(0xfeb8_0000).zeroes(8).finish()
}

#[test]
fn the_order_of_tables_does_not_matter_and_other_tables_neither() {
    let other = Writer::table(*b"FACP", 6).finish();
    let tables = [iort(), viot(), dmar(), ivrs(), mcfg(0), other];
    let mut tables: Vec<&[u8]> = tables.iter().map(Vec::as_slice).collect();
    let description = parse(&tables).expect("they are right");
    assert_eq!(description.instances.len(), 3);
    for _ in 0..tables.len() {
        tables.rotate_left(1);
        assert_eq!(parse(&tables).as_ref(), Ok(&description));
    }
    tables.reverse();
    assert_eq!(parse(&tables), Ok(description));
    assert_eq!(parse(&[]), Ok(Description::default()));
}

#[test]
fn a_table_may_be_there_once() {
    for (signature, bytes) in [
        (*b"IORT", iort()),
        (*b"VIOT", viot()),
        (*b"DMAR", dmar()),
        (*b"IVRS", ivrs()),
        (*b"MCFG", mcfg(0)),
    ] {
        assert!(parse(&[&bytes]).is_ok());
        assert_eq!(
            parse(&[&bytes, &bytes]),
            fault(signature, 0, "the table", Fault::Duplicate)
        );
    }
    let short = Fault::Truncated {
        needed: 4,
        available: 3,
    };
    assert_eq!(parse(&[b"IOR"]), fault([0; 4], 0, "the signature", short));
}

#[test]
fn who_is_behind_none_for_interrupts_is_behind_a_virtio_iommu_all_the_same() {
    let description = parse(&[&iort(), &viot()]).expect("they are right");
    let instances: Vec<_> = description.rules.iter().map(|rule| rule.instance).collect();
    assert_eq!(instances, [Some(InstanceIndex(0)), None]);
}

#[test]
fn x86_takes_addresses_from_everyone() {
    let region = |start, last, kind| Region {
        subject: None,
        range: IovaRange::new(Iova::new(start), Iova::new(last)).expect("it is one"),
        kind,
    };
    let msi = region(0xfee0_0000, 0xfeef_ffff, RegionKind::Msi);
    let tunnel = region(0xfd_0000_0000, 0xff_ffff_ffff, RegionKind::Reserved);
    let regions = |tables: &[&[u8]]| parse(tables).expect("they are right").regions;
    assert_eq!(regions(&[&dmar()]), core::slice::from_ref(&msi));
    assert_eq!(regions(&[&ivrs()]), [msi, tunnel]);
    assert_eq!(regions(&[&iort(), &viot()]), []);
}

#[test]
fn a_root_complex_is_the_host_of_its_segment() {
    let hosts = |segment| {
        parse(&[&mcfg(segment), &iort()])
            .expect("they are right")
            .hosts
    };
    let root = |buses, ecam| Host {
        name: "IORT root complex at 0x48".into(),
        segment: 0,
        buses,
        ecam,
    };
    assert_eq!(hosts(0), [root((0, 0x7f), Some(0xe000_0000))]);
    let other = Host {
        name: "MCFG allocation at 0x2c".into(),
        segment: 1,
        buses: (0, 0x7f),
        ecam: Some(0xe000_0000),
    };
    assert_eq!(hosts(1), [root((0, 0xff), None), other]);
}
