//! Changes that nobody thought of, told by every kind of SMMU.

use super::*;
use crate::invalidation::plan::testing::Numbers;

/// The bytes that commands drop, sorted; the last byte is inclusive.
fn dropped(targets: &[Target], granule: Granule, step: u64) -> Vec<(u64, u64)> {
    let mut spans: Vec<_> = targets
        .iter()
        .map(|target| {
            let start = target.address.get();
            let len = match target.range {
                Some(range) => {
                    assert_eq!(range.granule(), granule);
                    (u64::from(range.num().get()) + 1) << range.scale() << granule.lg2()
                }
                // What contains the address: at least what the steps are apart.
                None => step,
            };
            (start, start.saturating_add(len - 1))
        })
        .collect();
    spans.sort_unstable();
    spans
}

#[test]
#[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
fn random_changes_are_told_exactly_and_in_few_commands() {
    let mut numbers = Numbers::new(7);
    let mut random = |below| numbers.below(below);
    for _ in 0..20_000 {
        let granule = [KIB4, KIB16, KIB64][random(3) as usize];
        let g = granule.lg2();
        let leaf_level = random(3) as u8;
        let leaf_lg2 = g + (g - 3) * leaf_level;
        let smmu = Smmuv3 {
            features: Features {
                has_range_invalidation: random(4) > 0,
                has_wide_descriptors: random(2) > 0,
            },
            cover: [Cover::Overlapping, Cover::WholeGroups, Cover::Disjoint][random(3) as usize],
        };
        let most = 1 << random(20);
        let count = random(most) + 1;
        let space = 1_u64 << (63 - leaf_lg2);
        let Some(first) = space
            .checked_sub(count)
            .map(|most| random(most.min(1 << 30) + 1))
        else {
            continue;
        };
        // In the upper half half of the time.
        let start = (first << leaf_lg2) | random(2) << 63;
        let mut changes = removed(start, count << leaf_lg2, &[leaf_lg2]);
        let has_table = random(2) > 0;
        if has_table {
            changes = with_table(changes, leaf_level + 1);
        }
        let commands = plan(smmu, stage1(granule), &changes);
        let whole = [Command::TlbiNhAsid { vmid: 1, asid: 2 }];
        if commands == whole {
            if smmu.features.has_range_invalidation {
                assert!(
                    count << (leaf_lg2 - g) > smmu.cover.max_count(),
                    "{changes:?}"
                );
            } else {
                assert!(count >= 1 << (g - 3), "{changes:?}");
            }
            continue;
        }
        let targets: Vec<_> = commands.iter().filter_map(Command::target).collect();
        assert_eq!(targets.len(), commands.len());
        let most = match (smmu.features.has_range_invalidation, smmu.cover) {
            (false, _) => count,
            (true, Cover::Overlapping | Cover::WholeGroups) => 2,
            (true, Cover::Disjoint) => 8,
        };
        assert!(targets.len() as u64 <= most, "{smmu:?} {changes:?}");

        let last = changes.range().expect("something changed").last().get();
        let spans = dropped(&targets, granule, 1 << leaf_lg2);
        let mut reached = start;
        let mut furthest = start;
        for &(from, to) in &spans {
            assert!(from <= reached, "{smmu:?} {changes:?} {targets:?}");
            furthest = furthest.max(to);
            reached = reached.max(to.saturating_add(1));
        }
        let slack = if smmu.cover == Cover::Disjoint && has_table {
            1 << g
        } else {
            0
        };
        assert!(furthest >= last, "{smmu:?} {changes:?} {targets:?}");
        assert!(
            spans[0].0 >= start - slack,
            "{smmu:?} {changes:?} {targets:?}"
        );
        assert!(
            furthest <= last.saturating_add(slack),
            "{smmu:?} {changes:?} {targets:?}"
        );

        for target in &targets {
            assert_eq!(target.is_leaf, !has_table);
            let Some(range) = target.range else { continue };
            assert!(range.scale() <= 31);
            if let Some(level) = range.level() {
                assert_eq!(level.0, leaf_level);
                assert!(!has_table);
                assert!(target.address.get().is_multiple_of(1 << leaf_lg2));
            } else {
                assert!(has_table || (granule == KIB16 && leaf_level == 2));
            }
        }
    }
}
