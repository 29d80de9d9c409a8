//! Plans that are wrong about groups of pages.

use iopt_formats::command::smmuv3::{Command as SmmuCommand, Range, Target};
use iopt_formats::command::{Narrow, riscv};
use iopt_formats::{Iova, Level};
use iopt_rig::{Behaviour, Smmuv3};
use iopt_sim::Law;

use super::law;
use super::plans::{RISCV, SINGLES, assert_breaks};
use crate::machines::{Bench, MEMORY, page_len, pages};

/// Groups of pages are used and removed with single ones on both sides of them.
fn groups_and_pages_are_removed<B: Behaviour>(behaviour: &B) -> Option<Law> {
    let bench = Bench::new(behaviour);
    let groups = pages::<B>(0x1fe0, 0x60);
    bench.map(&groups, MEMORY);
    bench.assert_reached(&groups, MEMORY);
    bench.assert_reached(&pages::<B>(0x2000, 1), MEMORY + 0x20 * page_len::<B>());
    let before = pages::<B>(0x1fdf, 1);
    bench.map(&before, 3 * MEMORY);
    bench.unmap(&(*before.start()..=*groups.end()));
    law(&bench)
}

/// By hardware that drops a group only with a command that covers all of it.
#[test]
fn a_group_that_is_divided_between_commands_is_seen() {
    let smmu = Smmuv3::<12> {
        has_ranges: true,
        has_contiguous_erratum: true,
    };
    assert_breaks(
        &smmu,
        |_, _, commands| {
            let mut parts = Vec::new();
            for command in commands {
                let SmmuCommand::TlbiNhVa { vmid, asid, target } = command else {
                    parts.push(command);
                    continue;
                };
                let Some(range) = target.range else {
                    parts.push(command);
                    continue;
                };
                for granule in 0..range.len() / (1 << range.granule().lg2()) {
                    let address = target.address.get() + granule * (1 << range.granule().lg2());
                    let address = Iova::new(address);
                    let one = Range::new(range.granule(), Narrow::MIN, 0, Some(Level(0)));
                    let target = Target {
                        address,
                        range: Some(one.expect("a legal range")),
                        ..target
                    };
                    parts.push(SmmuCommand::TlbiNhVa { vmid, asid, target });
                }
            }
            parts
        },
        groups_and_pages_are_removed,
        &[Law::Reach],
    );
}

/// Two groups of 16 pages are used at both ends, and removed.
fn groups_are_removed<B: Behaviour>(behaviour: &B) -> Option<Law> {
    let bench = Bench::new(behaviour);
    let groups = pages::<B>(0x220, 32);
    bench.map(&groups, MEMORY);
    let leaf = bench.domain.table().lookup(Iova::new(*groups.start()));
    let len = leaf.expect("it is mapped").size().bytes();
    assert_eq!(len, 16 * page_len::<B>());
    bench.assert_reached(&groups, MEMORY);
    bench.unmap(&groups);
    law(&bench)
}

/// By hardware that caches groups by their items, too.
#[test]
fn a_group_that_is_told_by_its_first_page_is_seen() {
    assert_breaks(
        &SINGLES,
        |_, _, mut commands| {
            commands.retain(|command| match command {
                SmmuCommand::TlbiNhVa { target, .. } => {
                    target.address.get().is_multiple_of(0x1_0000)
                }
                _ => true,
            });
            commands
        },
        groups_are_removed,
        &[Law::Reach],
    );
    assert_breaks(
        &RISCV,
        |_, _, mut commands| {
            commands.retain(|command| match command {
                riscv::Command::IotinvalVma { target, .. } => {
                    target.is_none_or(|target| target.span.start().is_multiple_of(0x1_0000))
                }
                _ => true,
            });
            commands
        },
        groups_are_removed,
        &[Law::Reach],
    );
}
