//! Plans that are wrong.

use iopt::invalidation::Kind;
use iopt::invalidation::plan::{Phase, Planner as _};
use iopt_formats::command::smmuv3::{Command as SmmuCommand, Range, Target};
use iopt_formats::command::vtd::{Descriptor, IotlbScope};
use iopt_formats::command::{Narrow, Span, amd, riscv};
use iopt_formats::{Level, Prot};
use iopt_rig::{Amd, Behaviour, Riscv, Smmuv3, Vtd};
use iopt_sim::Law;

use super::{Broken, Change, a_table_is_detached, law, pages_are_removed};
use crate::machines::{Bench, MEMORY, blocks, page_len, pages};

const RANGES: Smmuv3<12> = Smmuv3 {
    has_ranges: true,
    has_contiguous_erratum: false,
};
pub(super) const SINGLES: Smmuv3<12> = Smmuv3 {
    has_ranges: false,
    has_contiguous_erratum: false,
};
const VTD: Vtd<2> = Vtd {
    has_caching_mode: false,
    max_order: Some(18),
};
const VTD_CACHING: Vtd<2> = Vtd {
    has_caching_mode: true,
    ..VTD
};
const AMD: Amd = Amd {
    has_absent_entries: false,
};
const AMD_ABSENT: Amd = Amd {
    has_absent_entries: true,
};
pub(super) const RISCV: Riscv = Riscv {
    has_non_leaf: false,
    has_ranges: false,
};
const RISCV_NON_LEAF: Riscv = Riscv {
    has_non_leaf: true,
    has_ranges: true,
};

/// Checks that `scene` breaks one of `laws` with a change, and none without.
pub(super) fn assert_breaks<B: Behaviour>(
    behaviour: &B,
    change: Change<B>,
    scene: fn(&Broken<B>) -> Option<Law>,
    laws: &[Law],
) {
    let name = format!("{behaviour:?}");
    let honest = Broken::new(behaviour.clone(), |_, _, commands| commands);
    assert_eq!(scene(&honest), None, "{name}");
    let broken = scene(&Broken::new(behaviour.clone(), change));
    assert!(
        broken.is_some_and(|law| laws.contains(&law)),
        "{name}: {broken:?}"
    );
}

/// Changes the target of SMMU commands by address.
fn retarget(command: SmmuCommand, change: impl Fn(Target) -> Target) -> SmmuCommand {
    match command {
        SmmuCommand::TlbiNhVa { vmid, asid, target } => SmmuCommand::TlbiNhVa {
            vmid,
            asid,
            target: change(target),
        },
        other => other,
    }
}

/// Changes the block of VT-d descriptors, and whether it says that leaves alone changed.
fn respan(descriptor: Descriptor, change: impl Fn(Span, bool) -> (Span, bool)) -> Descriptor {
    match descriptor {
        Descriptor::Iotlb {
            scope:
                IotlbScope::Pages {
                    domain_id,
                    span,
                    is_leaf_only,
                },
            drains_reads,
            drains_writes,
        } => {
            let (span, is_leaf_only) = change(span, is_leaf_only);
            Descriptor::Iotlb {
                scope: IotlbScope::Pages {
                    domain_id,
                    span,
                    is_leaf_only,
                },
                drains_reads,
                drains_writes,
            }
        }
        other => other,
    }
}

/// Changes AMD commands to the IOMMU's own caches.
fn reblock(
    command: amd::Command,
    change: impl Fn(u16, bool, Span) -> (u16, bool, Span),
) -> amd::Command {
    match command {
        amd::Command::InvalidatePages {
            domain_id,
            pasid,
            has_tables,
            span,
        } => {
            let (domain_id, has_tables, span) = change(domain_id, has_tables, span);
            amd::Command::InvalidatePages {
                domain_id,
                pasid,
                has_tables,
                span,
            }
        }
        other => other,
    }
}

#[test]
fn a_range_that_is_short_by_a_page_is_seen() {
    assert_breaks(
        &SINGLES,
        |_, _, mut commands| {
            commands.pop();
            commands
        },
        pages_are_removed,
        &[Law::Reach],
    );
    assert_breaks(
        &RANGES,
        |_, _, commands| {
            let shorter = |target: Target| {
                let range = target.range.map(|range| {
                    let num = Narrow::new(range.num().get() - 1).expect("a legal range");
                    Range::new(range.granule(), num, range.scale(), range.level())
                        .expect("a legal range")
                });
                Target { range, ..target }
            };
            let commands = commands.into_iter();
            commands.map(|command| retarget(command, shorter)).collect()
        },
        pages_are_removed,
        &[Law::Reach],
    );
    // Four pages and one.
    assert_breaks(
        &VTD,
        |_, _, mut commands| {
            commands.pop();
            commands
        },
        pages_are_removed,
        &[Law::Reach],
    );
    assert_breaks(
        &AMD,
        |_, _, commands| {
            let half =
                |span: Span| Span::new(span.start(), span.order() - 1).expect("no larger order");
            let commands = commands.into_iter();
            commands
                .map(|command| reblock(command, |id, tables, span| (id, tables, half(span))))
                .collect()
        },
        pages_are_removed,
        &[Law::Reach],
    );
    assert_breaks(
        &RISCV,
        |_, _, mut commands| {
            commands.pop();
            commands
        },
        pages_are_removed,
        &[Law::Reach],
    );
}

/// The number that a domain's translations are found by is another's.
#[test]
fn another_address_space_is_seen() {
    assert_breaks(
        &RANGES,
        |_, _, commands| {
            let other = |command| match command {
                SmmuCommand::TlbiNhVa { vmid, asid, target } => {
                    let asid = asid + 1;
                    SmmuCommand::TlbiNhVa { vmid, asid, target }
                }
                other => other,
            };
            commands.into_iter().map(other).collect()
        },
        pages_are_removed,
        &[Law::Reach],
    );
    assert_breaks(
        &VTD,
        |_, _, commands| {
            let other = |_| Descriptor::Iotlb {
                scope: IotlbScope::Domain { domain_id: 77 },
                drains_reads: true,
                drains_writes: true,
            };
            commands.into_iter().map(other).collect()
        },
        pages_are_removed,
        &[Law::Reach],
    );
    assert_breaks(
        &AMD,
        |_, _, commands| {
            let other = |id, tables, span| (id + 1, tables, span);
            let commands = commands.into_iter();
            commands.map(|command| reblock(command, other)).collect()
        },
        pages_are_removed,
        &[Law::Reach],
    );
    assert_breaks(
        &RISCV,
        |_, _, commands| {
            let other = |command| match command {
                riscv::Command::IotinvalVma { gscid, target, .. } => riscv::Command::IotinvalVma {
                    gscid,
                    pscid: Narrow::new(77),
                    target,
                },
                other => other,
            };
            commands.into_iter().map(other).collect()
        },
        pages_are_removed,
        &[Law::Reach],
    );
}

/// A block is used and removed.
fn a_block_is_removed<B: Behaviour>(behaviour: &B) -> Option<Law> {
    let bench = Bench::new(behaviour);
    let block = blocks::<B>(9, 1);
    bench.map(&block, MEMORY);
    bench.assert_reached(&block, MEMORY);
    bench.unmap(&block);
    law(&bench)
}

#[test]
fn a_large_entry_that_is_told_as_pages_is_seen() {
    // Every page of it, but never the entry.
    assert_breaks(
        &AMD,
        |_, _, commands| {
            let page = |id, tables, span: Span| {
                (
                    id,
                    tables,
                    Span::new(span.start(), 0).expect("no larger order"),
                )
            };
            let commands = commands.into_iter();
            commands.map(|command| reblock(command, page)).collect()
        },
        a_block_is_removed,
        &[Law::Reach],
    );
}

/// Blocks and the pages behind them are used, and removed together.
fn blocks_and_pages_are_removed<B: Behaviour>(behaviour: &B) -> Option<Law> {
    let bench = Bench::new(behaviour);
    let (block, pages) = (blocks::<B>(9, 1), blocks::<B>(10, 1));
    bench.map(&block, MEMORY);
    let elsewhere = 2 * MEMORY + page_len::<B>();
    bench.map(&pages, elsewhere);
    bench.assert_reached(&block, MEMORY);
    bench.assert_reached(&pages, elsewhere);
    bench
        .domain
        .unmap(*block.start()..=*pages.end())
        .expect("the hardware answers");
    law(&bench)
}

#[test]
fn a_level_hint_for_leaves_of_two_levels_is_seen() {
    assert_breaks(
        &RANGES,
        |_, _, commands| {
            let hinted = |target: Target| {
                let range = target.range.map(|range| {
                    let level = Some(Level(0));
                    Range::new(range.granule(), range.num(), range.scale(), level)
                        .expect("a legal range")
                });
                Target { range, ..target }
            };
            let commands = commands.into_iter();
            commands.map(|command| retarget(command, hinted)).collect()
        },
        blocks_and_pages_are_removed,
        &[Law::Reach],
    );
}

#[test]
fn leaves_alone_where_a_table_went_is_seen() {
    assert_breaks(
        &RANGES,
        |_, _, commands| {
            let leaf = |target| Target {
                is_leaf: true,
                ..target
            };
            let commands = commands.into_iter();
            commands.map(|command| retarget(command, leaf)).collect()
        },
        a_table_is_detached,
        &[Law::FreedTable, Law::Reach],
    );
    assert_breaks(
        &VTD,
        |_, _, commands| {
            let commands = commands.into_iter();
            commands
                .map(|command| respan(command, |span, _| (span, true)))
                .collect()
        },
        a_table_is_detached,
        &[Law::FreedTable, Law::Reach],
    );
    assert_breaks(
        &AMD,
        |_, _, commands| {
            let commands = commands.into_iter();
            commands
                .map(|command| reblock(command, |id, _, span| (id, false, span)))
                .collect()
        },
        a_table_is_detached,
        &[Law::FreedTable, Law::Reach],
    );
    assert_breaks(
        &RISCV_NON_LEAF,
        |_, _, commands| {
            let leaf = |command| match command {
                riscv::Command::IotinvalVma {
                    gscid,
                    pscid,
                    target,
                } => riscv::Command::IotinvalVma {
                    gscid,
                    pscid,
                    target: target.map(|target| riscv::Target {
                        is_leaf: true,
                        ..target
                    }),
                },
                other => other,
            };
            commands.into_iter().map(leaf).collect()
        },
        a_table_is_detached,
        &[Law::FreedTable, Law::Reach],
    );
}

/// Pages are asked for before they come, and after.
fn pages_come_late<B: Behaviour>(behaviour: &B) -> Option<Law> {
    let bench = Bench::new(behaviour);
    let page = pages::<B>(0x55, 1);
    bench.assert_refused(&page);
    bench.map(&page, MEMORY);
    bench.look(&page).err().map(|stale| stale.law)
}

#[test]
fn silent_maps_of_hardware_that_caches_what_is_absent_are_seen() {
    assert_breaks(
        &VTD_CACHING,
        |_, changes, commands| match changes.kind() {
            Kind::Added => Vec::new(),
            _ => commands,
        },
        pages_come_late,
        &[Law::Missed],
    );
    assert_breaks(
        &AMD_ABSENT,
        |_, changes, commands| match changes.kind() {
            Kind::Added => Vec::new(),
            _ => commands,
        },
        pages_come_late,
        &[Law::Missed],
    );
}

/// A block takes the place of a table whose pages were used and are gone.
fn a_table_is_replaced<B: Behaviour>(behaviour: &B) -> Option<Law> {
    let bench = Bench::new(behaviour);
    let (block, memory) = (blocks::<B>(9, 1), MEMORY + page_len::<B>());
    bench.map(&block, memory);
    bench.assert_reached(&block, memory);
    bench.unmap(&block);
    bench.map(&block, MEMORY);
    bench.free_what_is_proven();
    law(&bench)
}

#[test]
fn a_block_over_an_empty_table_that_nobody_is_told_of_is_seen() {
    fn check<B: Behaviour>(behaviour: &B) {
        assert_breaks(
            behaviour,
            |_, changes, commands| match changes.kind() {
                Kind::Replaced => Vec::new(),
                _ => commands,
            },
            a_table_is_replaced,
            // Where what is absent is cached, the block is missed first.
            &[Law::FreedTable, Law::Missed],
        );
    }
    check(&VTD);
    check(&VTD_CACHING);
    check(&AMD);
    check(&AMD_ABSENT);
    check(&RISCV);
    check(&RISCV_NON_LEAF);
}

on_each_behaviour! {
    a_forgotten_device_tlb_is_seen
    a_device_tlb_that_is_told_too_early_is_seen
    a_forgotten_iotlb_is_seen
    rights_that_are_still_cached_are_seen
}

/// Pages are used, and not to be written any more.
fn pages_are_protected<B: Behaviour>(behaviour: &B) -> Option<Law> {
    let bench = Bench::new(behaviour);
    let all = pages::<B>(0x108, 5);
    let memory = MEMORY + page_len::<B>();
    bench.map(&all, memory);
    bench.assert_reached(&all, memory);
    bench
        .domain
        .protect(all, memory, Prot::R)
        .expect("the hardware answers");
    law(&bench)
}

fn rights_that_are_still_cached_are_seen<B: Behaviour>(behaviour: &B) {
    assert_breaks(
        behaviour,
        |_, _, _| Vec::new(),
        pages_are_protected,
        &[Law::Reach],
    );
}

fn a_forgotten_device_tlb_is_seen<B: Behaviour>(behaviour: &B) {
    assert_breaks(
        behaviour,
        |tag, _, commands| match B::Planner::phase(tag) {
            Phase::DeviceTlb => Vec::new(),
            _ => commands,
        },
        pages_are_removed,
        &[Law::Reach],
    );
}

fn a_forgotten_iotlb_is_seen<B: Behaviour>(behaviour: &B) {
    assert_breaks(
        behaviour,
        |tag, _, commands| match B::Planner::phase(tag) {
            Phase::Iotlb => Vec::new(),
            _ => commands,
        },
        pages_are_removed,
        &[Law::Reach],
    );
}

/// It asks again at once, and the IOTLB still knows.
fn a_device_tlb_that_is_told_too_early_is_seen<B: Behaviour>(behaviour: &B) {
    let hasty = Broken::<B, true> {
        inside: behaviour.clone(),
        change: |_, _, commands| commands,
    };
    assert_eq!(pages_are_removed(&hasty), Some(Law::Reach));
}
