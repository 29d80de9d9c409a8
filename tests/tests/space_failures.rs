//! Every operation on an address space, with the first, the second, .. of the things it needs failing.
//!
//! Whatever fails, the operation leaves nothing, or a quarantine that the next attempt empties; then it
//! can be done, and at the end no pin and no table is left.

use iopt_formats::{Iova, IovaRange, Prot};
use iopt_tests::space::fault::FailPoint;
use iopt_tests::space::op::{Op, Report, Slice, To};
use iopt_tests::space::refused::Refused;
use iopt_tests::space::setting::Mix;
use iopt_tests::space::world::{Orders, Outcome, World};

const PAGE: u64 = 0x1000;

/// The most things of one kind that an operation of these tests needs.
const LIMIT: u64 = 400;

/// Sources of 4 KiB pages by their numbers: one run, runs of one page, runs of 512 pages.
const WHOLE: usize = 0;
const SCATTERED: usize = 1;
const RUNS: usize = 2;

/// An operation with what comes before.
struct Script {
    mix: Mix,
    before: Vec<Op>,
    op: Op,
}

fn script(mix: Mix, before: impl IntoIterator<Item = Op>, op: Op) -> Script {
    let before = before.into_iter().collect();
    Script { mix, before, op }
}

fn range(start: u64, page_count: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), page_count * PAGE).expect("the range does not wrap")
}

fn slice(source: usize, first_page: u64, page_count: u64, iova: u64) -> Slice {
    Slice {
        source,
        offset: first_page * PAGE,
        len: page_count * PAGE,
        prot: Prot::RW,
        to: To::Fixed(iova),
    }
}

fn map(source: usize, first_page: u64, page_count: u64, iova: u64) -> Op {
    let slice = slice(source, first_page, page_count, iova);
    Op::Map { space: 0, slice }
}

const fn attach(domain: usize) -> Op {
    Op::Attach { space: 0, domain }
}

const fn unmap(range: IovaRange, report: Report) -> Op {
    Op::Unmap {
        space: 0,
        range,
        tolerates_holes: false,
        report,
    }
}

/// What is to fail in one turn.
#[derive(Clone, Copy, Debug)]
enum Failing {
    Point(FailPoint),
    Tables,
    Budget,
}

impl Script {
    fn world(&self) -> World {
        let mut world = World::new(self.mix, 7);
        for op in &self.before {
            let outcome = world.step(op, &Orders::default());
            assert_eq!(outcome, Ok(Outcome::Done), "{op:x?}");
        }
        world
    }

    /// Runs the operation with everything that it needs failing once; returns how often it failed.
    fn sweep(&self) -> u64 {
        let points = FailPoint::ALL.map(Failing::Point).into_iter();
        let all = points.chain([Failing::Tables, Failing::Budget]);
        all.map(|failing| self.sweep_one(failing)).sum()
    }

    fn sweep_one(&self, failing: Failing) -> u64 {
        for count in 0..LIMIT {
            if !self.fails(failing, count) {
                return count;
            }
        }
        panic!("{:x?} fails for ever with {failing:?}", self.op);
    }

    /// Runs the operation with one failure, checks what is left, then runs it again. Returns whether
    /// there was one.
    fn fails(&self, failing: Failing, count: u64) -> bool {
        let at = format!("{:x?} with {failing:?} {count}", self.op);
        let mut world = self.world();
        let mut orders = Orders::default();
        let mut squeezed = 0;
        match failing {
            Failing::Point(point) => orders.points.push((point, count)),
            Failing::Tables => orders.table_pages = Some(count as usize),
            Failing::Budget => squeezed = world.squeeze(0, count * 37),
        }
        let outcome = world.step(&self.op, &orders);
        let outcome = outcome.unwrap_or_else(|error| panic!("{at}: {error}"));
        world.relax(0, squeezed);
        let has_failed = match outcome {
            Outcome::Done => {
                assert_eq!(world.fired_count(), 0, "{at}: nobody noticed");
                false
            }
            Outcome::Failed(_) => true,
            Outcome::Refused(reason) => {
                assert_eq!(reason, Refused::Limit, "{at}");
                true
            }
        };
        let ended = world.check_all().and_then(|()| world.retry_all());
        let ended = ended.and_then(|()| world.check_all());
        ended.unwrap_or_else(|error| panic!("{at}: {error}"));
        if has_failed {
            let again = world.step(&self.op, &Orders::default());
            let again = again.unwrap_or_else(|error| panic!("{at}, again: {error}"));
            // What was on its way out is gone by now.
            let is_gone = matches!(
                self.op,
                Op::Unmap { .. }
                    | Op::UnmapMany { .. }
                    | Op::Detach { .. }
                    | Op::Replace { .. }
                    | Op::Remap { .. }
                    | Op::Revoke { .. }
            );
            assert!(is_gone || again == Outcome::Done, "{at}, again: {again:?}");
        }
        world
            .finish()
            .unwrap_or_else(|error| panic!("{at}: {error}"));
        has_failed
    }
}

/// Sweeps scripts; each must have failed `at_least` times.
fn sweep(scripts: &[Script], at_least: u64) {
    for script in scripts {
        let count = script.sweep();
        let op = &script.op;
        assert!(count >= at_least, "{op:x?} failed {count} times only");
    }
}

#[test]
fn a_map_into_two_domains_leaves_nothing() {
    let both = || [attach(0), attach(1)];
    let scripts = [
        script(Mix::Small, both(), map(RUNS, 0, 1100, 0x40_0000)),
        script(Mix::Small, both(), map(SCATTERED, 3, 20, 0x40_0000)),
        script(Mix::Small, both(), map(WHOLE, 0, 512, 0x4000_0000)),
        script(Mix::Strict, both(), map(RUNS, 0, 1100, 0x40_0000)),
    ];
    sweep(&scripts, 6);
}

#[test]
fn a_map_beside_pages_that_are_pinned_leaves_them() {
    let before = || [attach(0), attach(4), map(SCATTERED, 8, 4, 0x10_0000)];
    let op = map(SCATTERED, 4, 16, 0x40_0000);
    sweep(&[script(Mix::Small, before(), op)], 20);
}

#[test]
fn several_maps_leave_nothing_together() {
    let slices = vec![
        slice(WHOLE, 0, 4, 0x40_0000),
        slice(SCATTERED, 0, 6, 0x50_0000),
        slice(WHOLE, 2, 6, 0x8000_0000),
    ];
    let op = Op::MapMany { space: 0, slices };
    sweep(&[script(Mix::Small, [attach(2), attach(3)], op)], 20);
}

#[test]
fn a_copy_leaves_nothing() {
    let before = || {
        [
            map(SCATTERED, 0, 5, 0x40_0000),
            map(WHOLE, 0, 5, 0x40_5000),
            attach(0),
            attach(1),
            Op::Attach {
                space: 1,
                domain: 2,
            },
        ]
    };
    let copy = |into| Op::Copy {
        into,
        from: 0,
        range: range(0x40_2000, 6),
        to: To::Fixed(0x8000_0000),
        prot: Prot::R,
    };
    let scripts = [
        script(Mix::Small, before(), copy(0)),
        script(Mix::Small, before(), copy(1)),
    ];
    sweep(&scripts, 4);
}

#[test]
fn a_domain_that_cannot_be_attached_leaves_nothing() {
    let maps = || {
        [
            map(SCATTERED, 0, 8, 0x40_0000),
            map(WHOLE, 0, 64, 0x100_0000),
            map(WHOLE, 32, 64, 0x200_0000),
            map(RUNS, 500, 40, 0x8000_0000),
        ]
    };
    let with_another = maps().into_iter().chain([attach(1)]);
    let scripts = [
        script(Mix::Small, maps(), attach(0)),
        script(Mix::Small, with_another, attach(4)),
        script(Mix::Strict, maps(), attach(0)),
    ];
    sweep(&scripts, 12);
}

#[test]
fn a_domain_that_cannot_be_replaced_stays() {
    let before = [
        attach(1),
        map(SCATTERED, 0, 8, 0x40_0000),
        map(WHOLE, 0, 64, 0x100_0000),
    ];
    let op = Op::Replace {
        space: 0,
        old: 1,
        new: 2,
    };
    sweep(&[script(Mix::Small, before, op)], 12);
}

#[test]
fn a_domain_that_leaves_is_gone_or_in_quarantine() {
    let before = || [attach(0), attach(1), map(SCATTERED, 0, 8, 0x40_0000)];
    let detach = |domain| Op::Detach { space: 0, domain };
    let last = before().into_iter().chain([detach(0)]);
    let scripts = [
        script(Mix::Small, before(), detach(0)),
        script(Mix::Small, last, detach(1)),
    ];
    sweep(&scripts, 3);
}

#[test]
fn areas_that_are_unmapped_are_gone_or_in_quarantine() {
    let before = || {
        [
            attach(0),
            attach(1),
            map(SCATTERED, 0, 8, 0x40_0000),
            map(WHOLE, 0, 8, 0x40_8000),
            map(WHOLE, 4, 8, 0x50_0000),
        ]
    };
    let many = Op::UnmapMany {
        space: 0,
        ranges: vec![range(0x50_0000, 8), range(0x40_0000, 8)],
        tolerates_holes: false,
    };
    let scripts = [
        script(
            Mix::Small,
            before(),
            unmap(range(0x40_0000, 16), Report::None),
        ),
        script(
            Mix::Dirty,
            before(),
            unmap(range(0x40_0000, 16), Report::Dirty),
        ),
        script(Mix::Small, before(), many),
    ];
    sweep(&scripts, 7);
}

#[test]
fn an_access_that_cannot_pin_leaves_nothing() {
    let before = || {
        [
            map(SCATTERED, 0, 8, 0x40_0000),
            map(WHOLE, 0, 8, 0x40_8000),
            Op::Create { space: 0 },
        ]
    };
    let pin = || Op::Pin {
        access: 0,
        range: range(0x40_2000, 10),
        is_write: true,
    };
    let first = Op::Pin {
        access: 0,
        range: range(0x40_4000, 1),
        is_write: false,
    };
    let beside = before().into_iter().chain([first]);
    let scripts = [
        script(Mix::Small, before(), pin()),
        script(Mix::Small, beside, pin()),
    ];
    sweep(&scripts, 3);
    // With a domain there is nothing left to pin.
    let with_domain = script(Mix::Small, before().into_iter().chain([attach(0)]), pin());
    assert_eq!(with_domain.sweep(), 0);
}

#[test]
fn a_split_that_fails_leaves_one_area() {
    let before = [attach(0), attach(3), map(WHOLE, 0, 512, 0x4000_0000)];
    let op = Op::Split {
        space: 0,
        iova: 0x4000_3000,
    };
    sweep(&[script(Mix::Small, before, op)], 2);
}

#[test]
fn rights_that_cannot_be_changed_stay() {
    let before = [
        attach(0),
        attach(1),
        attach(2),
        map(SCATTERED, 0, 8, 0x40_0000),
        map(WHOLE, 0, 8, 0x40_8000),
    ];
    let op = Op::Protect {
        space: 0,
        range: range(0x40_0000, 16),
        prot: Prot::R,
    };
    sweep(&[script(Mix::Small, before, op)], 12);
}

#[test]
fn areas_that_cannot_be_moved_stay() {
    let before = [
        attach(0),
        attach(1),
        map(SCATTERED, 0, 8, 0x40_0000),
        map(WHOLE, 0, 8, 0x40_8000),
    ];
    let op = Op::Remap {
        space: 0,
        range: range(0x40_0000, 16),
        to: To::Fixed(0x8000_0000),
    };
    sweep(&[script(Mix::Small, before, op)], 20);
}

#[test]
fn tracking_that_cannot_begin_has_not_begun() {
    let before = [
        attach(2),
        map(SCATTERED, 0, 8, 0x40_0000),
        map(WHOLE, 0, 8, 0x40_8000),
    ];
    let op = Op::Track {
        space: 0,
        domain: 2,
        is_on: true,
    };
    sweep(&[script(Mix::Dirty, before, op)], 1);
}

#[test]
fn a_doorbell_that_cannot_be_mapped_is_not() {
    let window = || Op::MsiWindow {
        space: 0,
        window: Some(range(0x800_0000, 16)),
    };
    let op = || Op::MapMsi {
        space: 0,
        domain: 0,
        oa: 0xfee0_0040,
    };
    let scripts = [
        script(Mix::Small, [attach(0), window()], op()),
        script(Mix::Strict, [attach(0), window()], op()),
    ];
    sweep(&scripts, 3);
}

#[test]
fn memory_that_is_taken_back_and_returned_leaves_nothing() {
    let before = || {
        [
            attach(0),
            attach(1),
            map(SCATTERED, 0, 8, 0x40_0000),
            map(WHOLE, 0, 8, 0x40_8000),
        ]
    };
    let revoke = || Op::Revoke { source: SCATTERED };
    let two = before()
        .into_iter()
        .chain([map(SCATTERED, 4, 8, 0x50_0000), revoke()]);
    let restore = Op::Restore { source: SCATTERED };
    let scripts = [
        script(Mix::Small, before(), revoke()),
        script(Mix::Small, two, restore),
    ];
    sweep(&scripts, 3);
}
