//! Rings, registers, completions and errors.

use iopt_reference::Memory as _;
use iopt_sim::{Architecture, Injection, Law, Stop};

use crate::machines::{
    AMD, Machine, RISCV, SMMU, VTD, VTD_WIDE, amd_context, riscv_context, smmu_context, vtd_context,
};
use crate::rig::{DEVICE, QUEUE, Rig, Words};
use crate::scenes::{FOUR_PAGES, four_pages_in_device};

/// Where completions are stored: nowhere near tables and queue.
const STATUS: u64 = 0x20_0000;

fn rigs() -> [Rig; 4] {
    [
        Rig::new(&SMMU, smmu_context()),
        Rig::new(&VTD, vtd_context()),
        Rig::new(&AMD, amd_context()),
        Rig::new(&RISCV, riscv_context()),
    ]
}

#[test]
fn rings_are_passed_many_times() {
    for mut rig in rigs() {
        let sync = rig.machine.sync;
        for _ in 0..300 {
            rig.send(&[sync; 3]);
            rig.wait();
        }
        let statistics = rig.iommu.statistics();
        assert_eq!((statistics.command_count(), statistics.syncs), (900, 900));
    }
}

#[test]
fn a_sync_takes_its_time() {
    for mut rig in rigs() {
        rig.send(&[rig.machine.sync]);
        for _ in 0..9 {
            rig.clock.poll();
            assert_eq!(rig.iommu.read_head(), 0);
        }
        rig.clock.poll();
        assert_eq!(rig.iommu.read_head(), 1 << rig.machine.shift);
        assert_eq!(rig.clock.now(), 1000);
    }
}

#[test]
fn a_sync_that_is_stuck_completes_when_it_is_released() {
    for mut rig in rigs() {
        rig.iommu.inject(Injection::StuckSync(1));
        rig.send(&[rig.machine.sync; 3]);
        for _ in 0..100 {
            rig.clock.poll();
        }
        assert_eq!(rig.iommu.read_head(), 1 << rig.machine.shift);
        rig.iommu.release_sync();
        rig.wait();
        assert_eq!(rig.iommu.statistics().syncs, 3);
    }
}

/// Words that are no command, of each architecture: an opcode or type that there is none of, and known ones
/// with a reserved bit or value.
const ILLEGAL: [(&Machine, &[Words]); 4] = [
    (
        &SMMU,
        &[
            [0, 0],
            [0x7f, 0],
            // EL3, and another security state.
            [0x18, 0],
            [0x12 | 1 << 10, 0x1000],
            // TG or SCALE without range invalidation.
            [0x12, 0x1000 | 1 << 10],
            [0x12 | 1 << 20, 0x1000],
            [0x10 | 1 << 63, 0],
            [0x40, 53],
            [0x46 | 3 << 12, 0],
        ],
    ),
    (
        &VTD,
        &[
            [0, 0],
            [10, 0],
            [2, 0],
            [2 | 3 << 4 | 1 << 63, 0],
            // AM above MAMV.
            [2 | 3 << 4, 19],
            [7 | 2 << 4, 0],
        ],
    ),
    (
        &AMD,
        &[
            [0, 0],
            [9 << 60, 0],
            [2 << 60 | 1 << 16, 0],
            [3 << 60, 8],
            // A PASID without GN.
            [3 << 60 | 5, 1],
        ],
    ),
    (
        &RISCV,
        &[
            [0, 0],
            [5, 0],
            // GVMA with PSCV, NL without the capability, the address in the wrong place.
            [1 | 1 << 7 | 1 << 32, 0],
            [1 | 1 << 34, 0],
            [1 | 1 << 10, 1 << 62],
            [3 | 1 << 7, 0],
            [2 | 3 << 7, 0],
        ],
    ),
];

#[test]
fn the_queue_stops_at_an_illegal_command() {
    for (machine, commands) in ILLEGAL {
        for &words in commands {
            let context = smmu_context();
            let mut rig = Rig::new(machine, context);
            let quiet = rig.iommu.read_errors();
            rig.send(&[machine.sync, words, machine.sync]);
            for _ in 0..100 {
                rig.clock.poll();
            }
            let head = rig.iommu.read_head() & 0xff_ffff;
            assert_eq!(head, 1 << machine.shift, "{words:#x?}");
            assert_ne!(rig.iommu.read_errors(), quiet, "{words:#x?}");
            // A sync in its place lets the queue go on.
            rig.put(QUEUE + 16, machine.sync[0]);
            rig.put(QUEUE + 24, machine.sync[1]);
            rig.iommu.acknowledge(machine.acknowledgement);
            for _ in 0..100 {
                rig.clock.poll();
            }
            let head = rig.iommu.read_head() & 0xff_ffff;
            assert_eq!(head, 3 << machine.shift, "{words:#x?}");
        }
    }
}

#[test]
fn errors_are_told_as_each_architecture_tells_them() {
    // GERROR.CMDQ_ERR with CONS.ERR = 1; FSTS.IQE; CmdBufRun clear after an event; cqcsr.cmd_ill.
    let errors = [1, 1 << 4, 1 << 1, 1 | 1 << 10 | 1 << 16];
    for (mut rig, errors) in rigs().into_iter().zip(errors) {
        rig.iommu.inject(Injection::Illegal(0));
        rig.send(&[rig.machine.sync]);
        assert_eq!(rig.iommu.read_errors(), errors);
    }
    let mut rig = Rig::new(&SMMU, smmu_context());
    rig.send(&[[0x7f, 0]]);
    assert_eq!(rig.iommu.read_head(), 1 << 24);
}

#[test]
fn a_queue_without_memory_is_an_error() {
    let rig = Rig::new(&SMMU, smmu_context());
    rig.iommu.write_base(0x7000_0000 | 6);
    rig.iommu.write_tail(1);
    assert_eq!(rig.iommu.read_head(), 2 << 24);
}

#[test]
fn completions_are_stored_when_the_sync_is_complete() {
    // MSI of SYNC; status write of the wait descriptor; COMPLETION_WAIT with a store; IOFENCE.C with AV,
    // whose address stands without its two lowest bits.
    let syncs: [(Words, u64); 4] = [
        (
            [0x46 | 1 << 12 | 7 << 32, STATUS + 4],
            u64::from(u32::MAX) | 7 << 32,
        ),
        (
            [5 | 1 << 5 | 7 << 32, STATUS + 4],
            u64::from(u32::MAX) | 7 << 32,
        ),
        (
            [1 << 60 | 1 | STATUS, 0x1234_5678_9abc_def0],
            0x1234_5678_9abc_def0,
        ),
        (
            [2 | 1 << 10 | 7 << 32, (STATUS + 4) >> 2],
            u64::from(u32::MAX) | 7 << 32,
        ),
    ];
    for (mut rig, (words, stored)) in rigs().into_iter().zip(syncs) {
        rig.put(STATUS, u64::MAX);
        rig.send(&[words]);
        assert_eq!(rig.ram.read64(STATUS), Some(u64::MAX));
        for _ in 0..10 {
            rig.clock.poll();
        }
        assert_eq!(rig.ram.read64(STATUS), Some(stored));
    }
}

#[test]
fn wide_descriptors_have_four_words() {
    let rig = Rig::new(&VTD_WIDE, vtd_context());
    for (index, word) in [2 | 1 << 4, 0, 0, 0, 5 | 1 << 5 | 2 << 32, STATUS, 0, 0]
        .into_iter()
        .enumerate()
    {
        rig.put(QUEUE + 8 * index as u64, word);
    }
    rig.put(STATUS, 0);
    rig.iommu.write_tail(2 << 5);
    for _ in 0..10 {
        rig.clock.poll();
    }
    assert_eq!(rig.iommu.read_head(), 2 << 5);
    assert_eq!(rig.ram.read64(STATUS), Some(2));
    // A word more than the descriptor has.
    rig.put(QUEUE + 2 * 32 + 16, 1);
    rig.put(QUEUE + 2 * 32, 2 | 1 << 4);
    rig.iommu.write_tail(3 << 5);
    assert_eq!(rig.iommu.read_errors(), 1 << 4);
}

#[test]
fn a_device_that_does_not_answer_is_told_of_at_the_sync() {
    let device = u64::from(DEVICE);
    // Everything, for each architecture; then the errors, and the head at, or for VT-d and AMD behind, the sync.
    let cases: [(&'static Machine, _, [Words; 2], u64, u64); 4] = [
        (
            &SMMU,
            smmu_context(),
            [[0x30, 0], [0x40 | device << 32, 52]],
            1,
            3 | 3 << 24,
        ),
        (
            &VTD,
            vtd_context(),
            [[2 | 1 << 4, 0], [3 | device << 32, 0x7fff_ffff_ffff_f001]],
            1 << 6,
            4,
        ),
        (
            &AMD,
            amd_context(),
            [[8 << 60, 0], [4 << 60 | device, 0x7fff_ffff_ffff_f001]],
            // It runs on.
            1 << 4 | 1 << 1,
            4,
        ),
        (
            &RISCV,
            riscv_context(),
            [[1, 0], [4 | device << 40, 0x7fff_ffff_ffff_f800]],
            1 | 1 << 9 | 1 << 16,
            3,
        ),
    ];
    for (machine, context, [iotlb, device_tlb], errors, head) in cases {
        let mut rig = four_pages_in_device(machine, context);
        rig.iommu.inject(Injection::DeviceTimeout(0));
        rig.send(&[iotlb, machine.sync, device_tlb, machine.sync]);
        for _ in 0..100 {
            rig.clock.poll();
        }
        assert_eq!(rig.iommu.read_errors(), errors);
        assert_eq!(rig.iommu.read_head(), head << machine.shift);
        let has_log = matches!(machine.architecture, Architecture::Amd(_));
        let event = has_log.then_some(Stop::DeviceTimeout);
        assert_eq!(rig.iommu.event(), event);
        assert_eq!(rig.iommu.take_event(), event);
        assert_eq!(rig.iommu.event(), None);
        rig.iommu.acknowledge(machine.acknowledgement);
        // What the device remembers is not forgotten.
        assert_eq!(rig.law_after(&[], FOUR_PAGES), Some(Law::Reach));
        assert_eq!(rig.law_after(&[device_tlb, machine.sync], FOUR_PAGES), None);
    }
}

/// The store of a completion wait is no proof of what devices have forgotten: the event in front of it tells.
#[test]
fn an_amd_wait_completes_although_a_device_is_silent() {
    let mut rig = four_pages_in_device(&AMD, amd_context());
    rig.put(STATUS, 0);
    rig.iommu.inject(Injection::DeviceTimeout(0));
    rig.send(&[
        [8 << 60, 0],
        AMD.sync,
        [4 << 60 | u64::from(DEVICE), 0x7fff_ffff_ffff_f001],
        [1 << 60 | 1 | STATUS, 7],
    ]);
    rig.wait();
    assert_eq!(rig.ram.read64(STATUS), Some(7));
    assert_eq!(rig.iommu.event(), Some(Stop::DeviceTimeout));
    assert_eq!(rig.law_after(&[], FOUR_PAGES), Some(Law::Reach));
}

#[test]
fn commands_are_counted_by_name() {
    let mut rig = four_pages_in_device(&SMMU, smmu_context());
    rig.send(&[
        [0x12 | 5 << 48, 0x1000],
        [0x12 | 5 << 48, 0x2001],
        [0x30, 0],
        [0x46, 0],
    ]);
    rig.wait();
    let statistics = rig.iommu.statistics();
    let names: Vec<_> = statistics.commands.into_iter().collect();
    assert_eq!(
        names,
        [("SYNC", 1), ("TLBI_NH_VA", 2), ("TLBI_NSNH_ALL", 1)]
    );
    assert_eq!((statistics.syncs, statistics.table_invalidations), (1, 2));
    // Four pages, each asked for once; none was there before.
    assert_eq!((statistics.walks, statistics.iotlb_hits), (4, 0));
}
