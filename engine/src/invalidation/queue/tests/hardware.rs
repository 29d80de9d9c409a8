//! The queues of real architectures, in front of a fake register file: what they write where, and how they get
//! over each error that the hardware knows.

use iopt_formats::command::{amd as amd_command, riscv as riscv_command};
use iopt_formats::command::{smmuv3 as smmuv3_command, vtd as vtd_command};
use iopt_formats::{Iova, Oa};

use super::fake::{Fake, Meaning, Nature, OnTimeout};
use super::*;
use crate::invalidation::queue::{
    Device, Entry, Platform as _, ShapeError, amd, riscv, smmuv3, vtd,
};
use crate::invalidation::{Encode, SyncError};
use crate::sync::atomic::Ordering;

const RELAXED: Ordering = Ordering::Relaxed;

/// Where hardware finds the status word.
const STATUS_AT: Oa = Oa::new(0x7_6543_2108);
const ENTRIES: usize = 256;
/// Lists, of several entries each; several laps unless an interpreter runs them.
const LIST_COUNT: usize = if cfg!(miri) { 24 } else { ENTRIES };

/// The queue of one architecture over the register file.
trait Architecture: Device + Sized {
    fn new() -> Self {
        Self::with_entries(ENTRIES)
    }
    fn with_entries(entries: usize) -> Self;
    fn fake(&self) -> &Fake;
    /// Something that cannot fail.
    fn plain() -> Self::Entry;
    /// Something that a device has to answer.
    fn device() -> Self::Entry;
    fn illegal() -> Self::Entry;
    /// Whether the hardware tells that it cannot fetch an entry.
    const TELLS_FETCHES: bool = true;
}

/// Returns what a status write must look like that goes to the right place.
fn store(address: u64, data: u64) -> Meaning {
    assert_eq!(address, STATUS_AT.get());
    Meaning::Sync(Some(data))
}

fn pair(words: &[u64]) -> [u64; 2] {
    [words[0], words[1]]
}

impl Architecture for smmuv3::CommandQueue<Fake> {
    fn with_entries(entries: usize) -> Self {
        fn decode(words: &[u64]) -> Meaning {
            use smmuv3_command::Command;
            match Command::decode(pair(words)) {
                Ok(Command::Sync { .. }) => Meaning::Sync(None),
                Ok(Command::AtcInv { .. }) => Meaning::Device,
                Ok(_) => Meaning::Plain,
                Err(_) => Meaning::Illegal,
            }
        }
        let nature = Nature {
            words: 2,
            has_wrap_bit: true,
            on_timeout: OnTimeout::StopAtSync,
            decode,
        };
        Self::new(Fake::new(nature, entries))
    }

    fn fake(&self) -> &Fake {
        self.registers()
    }

    fn plain() -> [u64; 2] {
        smmuv3_command::Command::TlbiNsnhAll.entry()
    }

    fn device() -> [u64; 2] {
        let command = smmuv3_command::Command::AtcInv {
            stream: 3,
            substream: None,
            is_global: false,
            address: Iova::new(0),
            span: smmuv3_command::AtcSpan::ALL,
        };
        command.entry()
    }

    fn illegal() -> [u64; 2] {
        [0xff, 0]
    }
}

impl<const WORDS: usize> Architecture for vtd::InvalidationQueue<Fake, WORDS>
where
    [u64; WORDS]: Entry,
    vtd_command::Descriptor: Encode<[u64; WORDS]>,
{
    fn with_entries(entries: usize) -> Self {
        fn decode(words: &[u64]) -> Meaning {
            use vtd_command::Descriptor;
            let descriptor = match *words {
                [low, high] => Descriptor::decode([low, high]),
                [low, high, third, fourth] => Descriptor::decode_wide([low, high, third, fourth]),
                _ => unreachable!("descriptors have two or four words"),
            };
            match descriptor {
                Ok(Descriptor::Wait {
                    status: Some(status),
                    ..
                }) => store(status.address, status.data.into()),
                Ok(Descriptor::DeviceTlb { .. }) => Meaning::Device,
                Ok(_) => Meaning::Plain,
                Err(_) => Meaning::Illegal,
            }
        }
        let nature = Nature {
            words: WORDS,
            has_wrap_bit: false,
            on_timeout: OnTimeout::DropSync,
            decode,
        };
        Self::new(Fake::new(nature, entries), STATUS_AT)
    }

    fn fake(&self) -> &Fake {
        self.registers()
    }

    fn plain() -> [u64; WORDS] {
        let descriptor = vtd_command::Descriptor::ContextCache {
            scope: vtd_command::ContextScope::Global,
        };
        descriptor.entry()
    }

    fn device() -> [u64; WORDS] {
        let descriptor = vtd_command::Descriptor::DeviceTlb {
            device: vtd_command::Device {
                source_id: 3,
                physical_function: 0,
                queue_depth: vtd_command::QueueDepth::new(4),
            },
            span: iopt_formats::command::Span::ALL,
        };
        descriptor.entry()
    }

    fn illegal() -> [u64; WORDS] {
        [0xf; WORDS]
    }

    const TELLS_FETCHES: bool = false;
}

impl Architecture for amd::CommandBuffer<Fake> {
    fn with_entries(entries: usize) -> Self {
        fn decode(words: &[u64]) -> Meaning {
            use amd_command::Command;
            match Command::decode(pair(words)) {
                Ok(Command::CompletionWait {
                    store: Some(word), ..
                }) => store(word.address, word.data),
                Ok(Command::InvalidateIotlbPages { .. }) => Meaning::Device,
                Ok(_) => Meaning::Plain,
                Err(_) => Meaning::Illegal,
            }
        }
        let nature = Nature {
            words: 2,
            has_wrap_bit: false,
            on_timeout: OnTimeout::Log,
            decode,
        };
        Self::new(Fake::new(nature, entries), STATUS_AT)
    }

    fn fake(&self) -> &Fake {
        self.registers()
    }

    fn plain() -> [u64; 2] {
        amd_command::Command::InvalidateAll.entry()
    }

    fn device() -> [u64; 2] {
        let command = amd_command::Command::InvalidateIotlbPages {
            device_id: 3,
            max_pending: 4,
            queue_id: 3,
            pasid: None,
            span: iopt_formats::command::Span::ALL,
        };
        command.entry()
    }

    fn illegal() -> [u64; 2] {
        [15 << 60, 0]
    }
}

impl Architecture for riscv::CommandQueue<Fake> {
    fn with_entries(entries: usize) -> Self {
        fn decode(words: &[u64]) -> Meaning {
            use riscv_command::Command;
            match Command::decode(pair(words)) {
                Ok(Command::IofenceC {
                    store,
                    has_read_order,
                    has_write_order,
                    ..
                }) => {
                    assert!(has_read_order && has_write_order && store.is_none());
                    Meaning::Sync(None)
                }
                Ok(Command::AtsInval { .. }) => Meaning::Device,
                Ok(_) => Meaning::Plain,
                Err(_) => Meaning::Illegal,
            }
        }
        let nature = Nature {
            words: 2,
            has_wrap_bit: false,
            on_timeout: OnTimeout::StopAtSync,
            decode,
        };
        Self::new(Fake::new(nature, entries))
    }

    fn fake(&self) -> &Fake {
        self.registers()
    }

    fn plain() -> [u64; 2] {
        riscv_command::Command::IodirInvalDdt { device: None }.entry()
    }

    fn device() -> [u64; 2] {
        let command = riscv_command::Command::AtsInval {
            function: riscv_command::Function {
                segment: None,
                requester: 3,
            },
            pasid: None,
            is_global: false,
            span: iopt_formats::command::Span::ALL,
        };
        command.entry()
    }

    fn illegal() -> [u64; 2] {
        [0x7f, 0]
    }
}

fn open<A: Architecture>() -> Queue<A> {
    Queue::new(A::new())
        .expect("the shape is sound")
        .with_limit(Duration::from_micros(5))
}

fn send<A: Architecture>(queue: &Queue<A>, list: &[A::Entry], sync: WithSync) -> Ticket {
    let _waiting = SYNC.waiting();
    queue.submit(list, sync).expect("there is room")
}

fn wait<A: Architecture>(queue: &Queue<A>, ticket: Ticket) -> Result<(), SyncError> {
    let _waiting = SYNC.waiting();
    queue.wait(ticket)
}

/// Runs what follows as one test for each architecture.
macro_rules! everywhere {
    ($($name:ident)+) => {$(
        mod $name {
            use super::*;

            #[test]
            fn smmuv3() {
                check_all::$name::<smmuv3::CommandQueue<Fake>>();
            }

            #[test]
            fn vtd_with_128_bits() {
                check_all::$name::<vtd::InvalidationQueue<Fake, 2>>();
            }

            #[test]
            fn vtd_with_256_bits() {
                check_all::$name::<vtd::InvalidationQueue<Fake, 4>>();
            }

            #[test]
            fn amd() {
                check_all::$name::<amd::CommandBuffer<Fake>>();
            }

            #[test]
            fn riscv() {
                check_all::$name::<riscv::CommandQueue<Fake>>();
            }
        }
    )+};
}

everywhere! {
    many_laps_arrive_and_complete
    a_refused_command_is_replaced_by_a_sync_and_fails_its_list_alone
    a_silent_device_fails_all_that_stood_before_the_sync
    a_fetch_that_fails_is_tried_again
    stuck_hardware_times_out
    hardware_that_is_gone_confirms_nothing
}

mod check_all {
    use super::*;

    pub(super) fn many_laps_arrive_and_complete<A: Architecture>() {
        let queue = open::<A>();
        for lap in 0..LIST_COUNT {
            let list = vec![A::plain(); 1 + lap % 7];
            let ticket = send(&queue, &list, WithSync::Now);
            wait(&queue, ticket).expect("hardware answers");
            let executed = queue.device().fake().take_executed();
            let (sync, list_executed) = executed.split_last().expect("a SYNC at least");
            assert_eq!(list_executed, vec![Meaning::Plain; list.len()]);
            assert!(matches!(sync, Meaning::Sync(_)));
        }
        let fake = queue.device().fake();
        assert_eq!(fake.acknowledged_count.load(RELAXED), 0);
    }

    pub(super) fn a_refused_command_is_replaced_by_a_sync_and_fails_its_list_alone<
        A: Architecture,
    >() {
        let queue = open::<A>();
        for _ in 0..3 * LIST_COUNT / 8 {
            let before = send(&queue, &[A::plain()], WithSync::Now);
            let bad = send(&queue, &[A::plain(), A::illegal()], WithSync::Now);
            let after = send(&queue, &[A::plain()], WithSync::Now);
            wait(&queue, after).expect("hardware answers");
            assert_eq!(wait(&queue, bad), Err(SyncError::Refused));
            wait(&queue, before).expect("hardware answers");
            let executed = queue.device().fake().take_executed();
            let is_sync = |meaning: &Meaning| matches!(meaning, Meaning::Sync(_));
            let syncs: Vec<_> = executed.iter().map(is_sync).collect();
            let replaced = [false, true, false, true, true, false, true];
            assert_eq!(syncs, replaced);
        }
        let fake = queue.device().fake();
        let acknowledged = fake.acknowledged_count.load(RELAXED) as usize;
        assert_eq!(acknowledged, 3 * LIST_COUNT / 8);
    }

    pub(super) fn a_silent_device_fails_all_that_stood_before_the_sync<A: Architecture>() {
        let queue = open::<A>();
        let fake = queue.device().fake();
        for _ in 0..3 {
            let before = send(&queue, &[A::device()], WithSync::Now);
            wait(&queue, before).expect("hardware answers");
            fake.are_devices_silent.store(true, RELAXED);
            let asked = send(&queue, &[A::plain(), A::device()], WithSync::Later);
            let joined = send(&queue, &[A::plain()], WithSync::Now);
            assert_eq!(wait(&queue, joined), Err(SyncError::DeviceTimedOut));
            assert_eq!(wait(&queue, asked), Err(SyncError::DeviceTimedOut));
            fake.are_devices_silent.store(false, RELAXED);
            let again = send(&queue, &[A::plain(), A::device()], WithSync::Now);
            wait(&queue, again).expect("hardware answers");
            wait(&queue, before).expect("hardware answers");
        }
    }

    pub(super) fn a_fetch_that_fails_is_tried_again<A: Architecture>() {
        let queue = open::<A>();
        queue.device().fake().failing_fetches.store(3, RELAXED);
        let ticket = send(&queue, &[A::plain()], WithSync::Now);
        if A::TELLS_FETCHES {
            wait(&queue, ticket).expect("hardware answers");
            let fake = queue.device().fake();
            assert_eq!(fake.acknowledged_count.load(RELAXED), 3);
        } else {
            // What cannot be told from a refused entry fails like one, and the queue lives on.
            assert_eq!(wait(&queue, ticket), Err(SyncError::Refused));
            let next = send(&queue, &[A::plain()], WithSync::Now);
            wait(&queue, next).expect("hardware answers");
        }
    }

    pub(super) fn stuck_hardware_times_out<A: Architecture>() {
        let queue = open::<A>().with_limit(Duration::from_nanos(200));
        let fake = queue.device().fake();
        fake.is_stuck.store(true, RELAXED);
        let ticket = send(&queue, &[A::plain()], WithSync::Now);
        assert_eq!(fake.tail(), 2);
        assert_eq!(wait(&queue, ticket), Err(SyncError::TimedOut));
        assert!(fake.now_ns() >= 200);
        fake.is_stuck.store(false, RELAXED);
        wait(&queue, ticket).expect("hardware answers");
    }

    pub(super) fn hardware_that_is_gone_confirms_nothing<A: Architecture>() {
        let queue = open::<A>().with_limit(Duration::from_nanos(200));
        let fake = queue.device().fake();
        fake.is_gone.store(true, RELAXED);
        fake.is_stuck.store(true, RELAXED);
        let ticket = send(&queue, &[A::plain()], WithSync::Now);
        assert_eq!(wait(&queue, ticket), Err(SyncError::TimedOut));
        assert_eq!(fake.acknowledged_count.load(RELAXED), 0);
    }
}

/// `CERROR` stays in `CMDQ_CONS` when it is acknowledged.
#[test]
fn an_smmu_without_an_error_is_asked_for_one_register() {
    let queue = open::<smmuv3::CommandQueue<Fake>>();
    let fake = queue.device().registers();
    fake.read_count.store(0, RELAXED);
    assert_eq!(queue.device().head().fault, None);
    assert_eq!(fake.read_count.load(RELAXED), 1);
}

#[test]
fn an_smmu_error_counts_only_while_gerror_says_so() {
    type Smmu = smmuv3::CommandQueue<Fake>;
    let queue = open::<Smmu>();
    let bad = send(&queue, &[Smmu::illegal()], WithSync::Now);
    assert_eq!(wait(&queue, bad), Err(SyncError::Refused));
    let cons = smmuv3::Registers::cmdq_cons(queue.device().fake());
    assert_eq!(cons, 1 << 24);
    let head = queue.device().head();
    assert_eq!((head.index, head.fault), (0, None));
}

#[test]
fn an_answer_that_nobody_asked_for_is_acknowledged_and_fails_nothing() {
    type Vtd = vtd::InvalidationQueue<Fake, 2>;
    let queue = open::<Vtd>();
    let fake = queue.device().fake();
    fake.has_stray_answer.store(true, RELAXED);
    let ticket = send(&queue, &[Vtd::plain()], WithSync::Now);
    wait(&queue, ticket).unwrap();
    assert!(!fake.has_stray_answer.load(RELAXED));
    assert_eq!(fake.acknowledged_count.load(RELAXED), 1);
}

/// Its completion waits complete all the same.
#[test]
fn an_amd_wait_counts_only_when_no_time_out_is_logged() {
    let device = <amd::CommandBuffer<Fake> as Architecture>::new();
    assert_eq!(device.status(), 5);
    device.fake().log(amd::Event::IllegalCommand);
    device.fake().log(amd::Event::InvalidationTimeout);
    device.fake().store_status(9);
    for fault in [
        super::super::Fault::Illegal,
        super::super::Fault::Unanswered,
    ] {
        assert_eq!(device.status(), 5);
        assert_eq!(device.head().fault, Some(fault));
        device.acknowledge(fault);
    }
    assert_eq!(device.status(), 9);
    assert_eq!(device.head().fault, None);
}

#[test]
fn a_time_out_that_an_amd_buffer_logs_while_another_error_is_dealt_with_stays() {
    let device = <amd::CommandBuffer<Fake> as Architecture>::new();
    device.fake().stop_unlogged();
    let stopped = super::super::Fault::Illegal;
    assert_eq!(device.head().fault, Some(stopped));
    device.fake().log(amd::Event::InvalidationTimeout);
    device.acknowledge(stopped);
    let logged = super::super::Fault::Unanswered;
    assert_eq!(device.head().fault, Some(logged));
    device.acknowledge(logged);
    assert_eq!(device.head().fault, None);
}

#[test]
fn a_buffer_that_stopped_with_nothing_to_do_fails_no_list() {
    type Amd = amd::CommandBuffer<Fake>;
    let queue = open::<Amd>();
    queue.device().fake().stop_unlogged();
    queue.poll();
    assert_eq!(queue.device().head().fault, None);
    let ticket = send(&queue, &[Amd::plain()], WithSync::Now);
    wait(&queue, ticket).expect("hardware answers");
}

/// The buffer goes on meanwhile, so that the head says nothing of how far it came.
#[test]
fn an_amd_time_out_fails_all_that_was_told_wherever_the_head_seems_to_be() {
    type Amd = amd::CommandBuffer<Fake>;
    let queue = open::<Amd>();
    let fake = queue.device().fake();
    fake.are_devices_silent.store(true, RELAXED);
    let silent = send(&queue, &[Amd::device()], WithSync::Now);
    let behind = send(&queue, &[Amd::plain()], WithSync::Now);
    for turn in 0..4 {
        fake.pause(turn);
    }
    fake.late_head.store(0, RELAXED);
    for ticket in [behind, silent] {
        assert_eq!(wait(&queue, ticket), Err(SyncError::DeviceTimedOut));
    }
    fake.late_head.store(u32::MAX, RELAXED);
    let next = send(&queue, &[Amd::plain()], WithSync::Now);
    wait(&queue, next).expect("hardware answers");
}

/// Hardware would read on behind a smaller one.
#[test]
fn rings_are_at_least_as_large_as_base_registers_can_say() {
    fn check<A: Architecture>(least: usize) {
        assert!(Queue::new(A::with_entries(least)).is_ok());
        let error = Queue::new(A::with_entries(least / 2)).map(|_| ());
        assert!(matches!(error, Err(ShapeError::Entries { .. })));
    }
    check::<smmuv3::CommandQueue<Fake>>(2);
    check::<vtd::InvalidationQueue<Fake, 2>>(256);
    check::<vtd::InvalidationQueue<Fake, 4>>(128);
    check::<amd::CommandBuffer<Fake>>(256);
    check::<riscv::CommandQueue<Fake>>(4);
}

#[test]
fn base_registers_hold_address_and_size() {
    let at = Oa::new(0x0012_3456_7000);
    let smmu = <smmuv3::CommandQueue<Fake> as Architecture>::new();
    assert_eq!(smmu.base(at), 0x12_3456_7008);
    // 256 descriptors are one page of 128 bits each, or two.
    let vtd = <vtd::InvalidationQueue<Fake, 2> as Architecture>::new();
    assert_eq!(vtd.base(at), 0x12_3456_7000);
    let wide = <vtd::InvalidationQueue<Fake, 4> as Architecture>::new();
    assert_eq!(wide.base(at), 0x12_3456_7801);
    let amd = <amd::CommandBuffer<Fake> as Architecture>::new();
    assert_eq!(amd.base(at), 0x0800_0012_3456_7000);
    let riscv = <riscv::CommandQueue<Fake> as Architecture>::new();
    assert_eq!(riscv.base(at), 0x0123_4567 << 10 | 7);
}

/// What the SYNC entries are, bit by bit.
#[test]
fn sync_entries_are_as_the_manuals_say() {
    let smmu = <smmuv3::CommandQueue<Fake> as Architecture>::new();
    assert_eq!(smmu.sync_entry(7), [0x46, 0]);
    let vtd = <vtd::InvalidationQueue<Fake, 2> as Architecture>::new();
    let wait = [0x0000_0007_0000_0025, 0x7_6543_2108];
    assert_eq!(vtd.sync_entry(7), wait);
    let wide = <vtd::InvalidationQueue<Fake, 4> as Architecture>::new();
    assert_eq!(wide.sync_entry(7), [wait[0], wait[1], 0, 0]);
    let amd = <amd::CommandBuffer<Fake> as Architecture>::new();
    assert_eq!(amd.sync_entry(7), [0x1000_0007_6543_2109, 7]);
    let riscv = <riscv::CommandQueue<Fake> as Architecture>::new();
    assert_eq!(riscv.sync_entry(7), [0x3002, 0]);
}
