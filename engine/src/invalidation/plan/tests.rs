//! What holds for the plans of all architectures.

use alloc::vec::Vec;
use core::fmt::Debug;

use iopt_formats::armv8::Granule;
use iopt_formats::command::{Narrow, Pasid, riscv as riscv_command, vtd as vtd_command};
use iopt_formats::{Level, PageSizes};

use super::testing::range;
use super::*;
use crate::invalidation::Kind;

const PASID: Option<Pasid> = Pasid::new(9);

fn plan<P: Planner>(planner: &P, tag: P::Tag, changes: &Changes) -> Vec<P::Command> {
    let mut commands = Vec::new();
    planner.plan(&tag, changes, |command| commands.push(command));
    commands
}

/// Checks that what was altered is told like what was removed, and that it is told at all.
fn check<P: Planner<Command: Debug + PartialEq>>(planner: &P, tags: &[P::Tag]) {
    for sizes in [0x1000, 0x20_0000, 0x20_1000] {
        let leaves = |kind| {
            let sizes = PageSizes::from_bits(sizes);
            Changes::leaves(range(0x40_0000, 0x7f_ffff), sizes, kind)
        };
        let with_tables = |kind| {
            let mut changes = leaves(kind);
            changes.add_table(range(0x40_0000, 0x5f_ffff), Level(1));
            changes
        };
        for &tag in tags {
            for changes in [&leaves as &dyn Fn(Kind) -> Changes, &with_tables] {
                let altered = plan(planner, tag, &changes(Kind::Altered));
                assert!(!altered.is_empty(), "{tag:?}");
                assert_eq!(
                    altered,
                    plan(planner, tag, &changes(Kind::Removed)),
                    "{tag:?}"
                );
            }
        }
    }
}

#[test]
fn what_was_altered_is_told_like_what_was_removed() {
    let device = amd::Device {
        device_id: 1,
        queue_id: 1,
        max_pending: 1,
    };
    let pasid = None;
    let domain_id = 3;
    check(
        &amd::Amd {
            has_absent_entries: false,
        },
        &[
            amd::Tag::Iotlb { domain_id, pasid },
            amd::Tag::GuestCr3 { device_id: 1 },
            amd::Tag::Combined { domain_id },
            amd::Tag::Ats { device, pasid },
            amd::Tag::AtsFull { device, pasid },
        ],
    );

    let device = vtd_command::Device {
        source_id: 1,
        physical_function: 0,
        queue_depth: vtd_command::QueueDepth::new(4),
    };
    let first_stage = PASID.map(|pasid| vtd::Tag::FirstStage { domain_id, pasid });
    let mut tags = Vec::from_iter(first_stage);
    tags.extend([
        vtd::Tag::SecondStage { domain_id },
        vtd::Tag::Combined { domain_id },
        vtd::Tag::Ats { device, pasid },
        vtd::Tag::AtsFull { device, pasid },
    ]);
    // All features, the order of blocks among them.
    check(&vtd::Vtd::from_capabilities(u64::MAX), &tags);

    let (vmid, granule) = (4, Granule::Kib4);
    let asid = 6;
    let tags = [
        smmuv3::Tag::Stage1 {
            vmid,
            asid,
            granule,
        },
        smmuv3::Tag::El2 {
            asid: None,
            granule,
        },
        smmuv3::Tag::Stage2 { vmid, granule },
        smmuv3::Tag::Ats {
            stream: 1,
            substream: None,
        },
        smmuv3::Tag::AtsFull { stream: 1 },
    ];
    let mut smmu = smmuv3::Smmuv3::default();
    check(&smmu, &tags);
    smmu.features.has_range_invalidation = true;
    check(&smmu, &tags);
    check(&smmu, &[smmuv3::Tag::Combined { vmid, granule }]);

    let function = riscv_command::Function {
        segment: None,
        requester: 1,
    };
    let (gscid, device) = (5, Narrow::MAX);
    check(
        &riscv::Riscv::default(),
        &[
            riscv::Tag::FirstStage {
                gscid: None,
                pscid: Narrow::MAX,
            },
            riscv::Tag::SecondStage { gscid },
            riscv::Tag::Directory { device },
            riscv::Tag::Combined { gscid },
            riscv::Tag::Ats { function, pasid },
            riscv::Tag::AtsFull { function, pasid },
        ],
    );
}
