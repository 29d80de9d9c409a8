//! Random operations, clustered where bugs live.

use iopt_formats::Prot;
use iopt_tests::op::Op;
use iopt_tests::place::{Len, Output, Part, Spot, Target};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// Returns up to `limit` operations.
pub(crate) fn ops(limit: usize) -> impl Strategy<Value = Vec<Op>> {
    vec(op(), 1..limit)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (edge(), output(), prot())
            .prop_map(|(target, output, prot)| Op::Map { target, output, prot }),
        // Behind, before and over what is mapped.
        4 => (entries(), output(), prot())
            .prop_map(|(target, output, prot)| Op::Map { target, output, prot }),
        2 => (edge(), vec((output(), len()), 1..4), prot())
            .prop_map(|(target, runs, prot)| Op::MapRuns { target, runs, prot }),
        5 => (target(), any::<bool>())
            .prop_map(|(target, detach)| Op::Unmap { target, detach }),
        3 => (prop_oneof![2 => target(), 1 => half()], any::<bool>())
            .prop_map(|(target, detach)| Op::Clear { target, detach }),
        3 => target().prop_map(|target| Op::UnmapEntries { target }),
        3 => (target(), prot()).prop_map(|(target, prot)| Op::Protect { target, prot }),
        5 => (prop_oneof![3 => large(), 1 => target()], cut_size(), rule())
            .prop_map(|(target, size, rule)| Op::Cut { target, size, rule }),
        3 => (prop_oneof![2 => half(), 1 => target()], rule())
            .prop_map(|(target, rule)| Op::Merge { target, rule }),
        3 => (any::<u16>(), any::<u16>()).prop_map(|(entry, item)| Op::Soil { entry, item }),
        3 => target().prop_map(|target| Op::TakeDirty { target }),
        1 => target().prop_map(|target| Op::Reserve { target }),
        2 => prop_oneof![edge(), half()].prop_map(|target| Op::Compact { target }),
    ]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![3 => edge(), 8 => entries(), 2 => large(), 1 => half()]
}

fn edge() -> impl Strategy<Value = Target> {
    (spot(), len()).prop_map(|(at, len)| Target::Edge { at, len })
}

fn entries() -> impl Strategy<Value = Target> {
    let grow = || prop_oneof![6 => Just(0), 1 => -2..=2_i8];
    (any::<u16>(), 1..6_u8, (grow(), grow())).prop_map(|(first, count, grow)| Target::Entries {
        first,
        count,
        grow,
    })
}

fn large() -> impl Strategy<Value = Target> {
    let part = prop_oneof![2 => Just(Part::Whole), 1 => Just(Part::First), 1 => Just(Part::Last)];
    (any::<u16>(), part).prop_map(|(number, part)| Target::Large { number, part })
}

fn half() -> impl Strategy<Value = Target> {
    any::<u8>().prop_map(|number| Target::Half { number })
}

fn spot() -> impl Strategy<Value = Spot> {
    let bytes = prop_oneof![30 => Just(0), 1 => select(vec![1, 0x800, 0xfff])];
    let pages = prop_oneof![2 => Just(0), 3 => -3..=3_i8];
    (0..48_u8, pages, bytes).prop_map(|(edge, pages, bytes)| Spot { edge, pages, bytes })
}

fn len() -> impl Strategy<Value = Len> {
    let pages = prop_oneof![3 => Just(0), 1 => -2..=2_i8];
    let size = prop_oneof![2 => Just(0), 3 => 0..16_u8];
    (size, 1..4_u8, pages).prop_map(|(size, count, pages)| Len { size, count, pages })
}

fn output() -> impl Strategy<Value = Output> {
    let pages = prop_oneof![8 => Just(0), 1 => -2..=2_i8];
    (0..16_u8, 0..=Output::LAST_BLOCK, pages).prop_map(|(like, block, pages)| Output {
        like,
        block,
        pages,
    })
}

fn prot() -> impl Strategy<Value = Prot> {
    prop_oneof![
        4 => select(vec![Prot::RW, Prot::RW.cached()]),
        2 => select(vec![Prot::R, Prot::W, Prot::R.cached()]),
        1 => select(Prot::all().collect::<Vec<_>>()),
    ]
}

/// Mostly small pages.
fn cut_size() -> impl Strategy<Value = u8> {
    prop_oneof![3 => 0..4_u8, 1 => any::<u8>()]
}

/// Mostly the rule that every format accepts.
fn rule() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(0), 2 => 0..4_u8]
}
