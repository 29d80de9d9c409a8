//! A3.10: devices behind a unit in scalable mode that walk the tables of a process, which changes them and ends.

use std::sync::{Arc, Mutex, Weak};

use iopt::device::process::{
    BindProcessError, Bond, Process, ProcessMemory, ProcessTables, Processes, Right,
};
use iopt::invalidation::NoHardware;
use iopt::radix::{Table, UnmapPolicy};
use iopt_formats::context::vtd::TableMode;
use iopt_formats::x86_64::LongMode;
use iopt_formats::{Iova, IovaRange, Oa, Prot};
use iopt_rig::Tables;
use iopt_sim::{Attachment, Rights, StaleAccess};

use crate::world::{Kind, SOURCES, World, address};

type Checked = Result<(), Box<StaleAccess>>;

const PAGE: u64 = 0x1000;

/// All of these have PASIDs.
const fn kind(seed: u64) -> Kind {
    Kind {
        mode: TableMode::Scalable,
        has_caching_mode: seed & 1 != 0,
        has_ats: seed & 2 != 0,
        ..Kind::of(4)
    }
}

/// The memory of a process, with tables that are not the engine's to change.
#[derive(Debug)]
struct Memory {
    number: u64,
    table: Mutex<Option<Table<LongMode, Arc<Tables>>>>,
    tables: ProcessTables,
    listeners: Mutex<Vec<Weak<Process>>>,
}

impl Memory {
    fn new(world: &World, number: u64) -> Arc<Self> {
        // As the CPU has them: canonical addresses, and pages that are not to be executed.
        let format = LongMode::sign_extended(48).unwrap();
        let format = format.with_oa_bits(46).unwrap().with_execute_disable();
        let table = Table::new(format, Arc::new(world.rig.tables())).unwrap();
        let tables = ProcessTables::X86 {
            levels: 4,
            root: table.root().oa,
        };
        Arc::new(Self {
            number,
            table: Mutex::new(Some(table)),
            tables,
            listeners: Mutex::default(),
        })
    }

    fn processes(&self) -> Vec<Arc<Process>> {
        let listeners = self.listeners.lock().unwrap();
        listeners.iter().filter_map(Weak::upgrade).collect()
    }

    fn oa(&self, iova: u64) -> u64 {
        0x10_0000_0000 * self.number + iova
    }

    fn map(&self, world: &World, iova: u64) {
        let range = IovaRange::with_len(Iova::new(iova), PAGE).unwrap();
        let ledger = world.ledger();
        ledger.map(
            self.number,
            iova..=iova + PAGE - 1,
            self.oa(iova),
            Rights::ALL,
        );
        let table = self.table.lock().unwrap();
        let table = table.as_ref().unwrap();
        let mut claim = table.claim(range).unwrap();
        let mut mapper = table.mapper(&mut claim).unwrap();
        let mapped = mapper.map(range, Oa::new(self.oa(iova)), Prot::RW).unwrap();
        mapped.sync(&NoHardware).unwrap();
        ledger.map_done(self.number, iova..=iova + PAGE - 1);
    }

    fn unmap(&self, world: &World, iova: u64) {
        let range = IovaRange::with_len(Iova::new(iova), PAGE).unwrap();
        world.ledger().unmap(self.number, iova..=iova + PAGE - 1);
        let table = self.table.lock().unwrap();
        let table = table.as_ref().unwrap();
        let mut claim = table.claim(range).unwrap();
        let mut mapper = table.mapper(&mut claim).unwrap();
        let unmapped = mapper.unmap(range, UnmapPolicy::Exact).unwrap();
        // As whoever watches the process would, before what was there is used otherwise.
        for process in self.processes() {
            process.changed(range).unwrap();
        }
        let flushed = unmapped.gather.sync(&NoHardware).unwrap();
        table.reclaim(&flushed);
        world
            .ledger()
            .forgotten(self.number, iova..=iova + PAGE - 1);
    }

    /// Ends the process; its tables are used otherwise at once.
    fn end(&self, world: &World, mapped: &[u64]) {
        for &iova in mapped {
            world.ledger().unmap(self.number, iova..=iova + PAGE - 1);
        }
        for process in self.processes() {
            process.exit().unwrap();
        }
        for &iova in mapped {
            world
                .ledger()
                .forgotten(self.number, iova..=iova + PAGE - 1);
        }
        *self.table.lock().unwrap() = None;
    }
}

impl ProcessMemory for Memory {
    fn identity(&self) -> u64 {
        self.number
    }

    fn tables(&self) -> ProcessTables {
        self.tables
    }

    fn subscribe(&self, listener: Weak<Process>) {
        self.listeners.lock().unwrap().push(listener);
    }

    fn unsubscribe(&self, listener: &Weak<Process>) {
        let mut listeners = self.listeners.lock().unwrap();
        listeners.retain(|other| !other.ptr_eq(listener));
    }
}

fn bind(
    world: &World,
    device: usize,
    process: &Arc<Process>,
) -> Result<Arc<Bond>, BindProcessError> {
    let right = Right::Owner(Arc::clone(&world.ownerships[device]));
    let attachment = Attachment::Domain(process.identity());
    let pasid = Some(process.pasid().get());
    for &source in SOURCES[device] {
        world.ledger().attach(source, pasid, attachment);
    }
    let bond = process.bind(&world.registry, address(device), &right)?;
    for &source in SOURCES[device] {
        world.ledger().attach_done(source, pasid);
    }
    Ok(bond)
}

fn unbind(world: &World, bond: Arc<Bond>) {
    let pasid = Some(bond.pasid().get());
    let device = (0..SOURCES.len()).find(|&device| address(device) == bond.device());
    let sources = SOURCES[device.unwrap()];
    for &source in sources {
        world.ledger().detach(source, pasid);
    }
    drop(bond);
    for &source in sources {
        world.ledger().detach_done(source, pasid);
    }
}

/// A3.10: bound twice is bound once; after the end nothing is walked, and nothing is freed twice.
#[test]
fn devices_walk_the_tables_of_a_process_until_it_ends_and_none_afterwards() -> Checked {
    for seed in 0..4 {
        let world = World::new(seed, kind(seed));
        let processes = Processes::new(256);
        let memories = [1, 2].map(|number| Memory::new(&world, number));
        let bound: Vec<_> = memories
            .iter()
            .map(|memory| {
                let memory = Arc::clone(memory) as Arc<dyn ProcessMemory>;
                processes.process(&memory).unwrap()
            })
            .collect();
        let place = |number: usize| bound[number].pasid().get();
        let devices = [0, 1, 3];
        let mut bonds = Vec::new();
        for device in devices {
            for process in &bound {
                let bond = bind(&world, device, process).unwrap();
                assert!(Arc::ptr_eq(&bond, &bind(&world, device, process).unwrap()));
                bonds.push(bond);
            }
        }
        for memory in &memories {
            for page in 0..4 {
                memory.map(&world, 0x7000_0000 + page * PAGE);
            }
        }
        let at = 0x7000_0123;
        for device in devices {
            for (number, memory) in memories.iter().enumerate() {
                let reached = world.access(device, place(number), at)?;
                assert_eq!(reached, Some(memory.oa(at)));
                let other = world.access(device, place(number), at + 3 * PAGE)?;
                assert_eq!(other, Some(memory.oa(at + 3 * PAGE)));
            }
        }
        // A change reaches all devices before it returns.
        memories[0].unmap(&world, 0x7000_0000);
        for device in devices {
            assert_eq!(world.access(device, place(0), at)?, None);
            let kept = world.access(device, place(1), at)?;
            assert_eq!(kept, Some(memories[1].oa(at)));
        }
        // The end, between binding and unbinding. The tables' memory is another's from then on.
        let left: Vec<_> = (1..4).map(|page| 0x7000_0000 + page * PAGE).collect();
        memories[0].end(&world, &left);
        for device in devices {
            for page in 0..4 {
                assert_eq!(world.access(device, place(0), at + page * PAGE)?, None);
            }
            let kept = world.access(device, place(1), at)?;
            assert_eq!(kept, Some(memories[1].oa(at)));
        }
        world.rig.check_all()?;
        for bond in bonds {
            unbind(&world, bond);
        }
        for device in devices {
            assert_eq!(world.access(device, place(0), at)?, None);
            assert_eq!(world.access(device, place(1), at)?, None);
        }
        world.rig.check_all()?;
        drop(bound);
        assert_eq!(processes.pasids().used_count(), 0);
        assert_eq!(world.unit.domain_ids().used_count(), 0);
        assert_eq!(world.unit.domain_ids().quarantined_count(), 0);
    }
    Ok(())
}

/// Devices that use the process all the time it changes and ends.
#[test]
fn a_process_ends_beside_devices_that_use_it() {
    let world = &World::new(3, kind(3));
    let processes = Processes::new(256);
    for round in 1..12 {
        let memory = Memory::new(world, round);
        let shared = Arc::clone(&memory) as Arc<dyn ProcessMemory>;
        let process = processes.process(&shared).unwrap();
        let place = process.pasid().get();
        let bonds: Vec<_> = (0..3)
            .map(|device| bind(world, device, &process).unwrap())
            .collect();
        let pages: Vec<_> = (0..4).map(|page| 0x100_0000 + page * PAGE).collect();
        for &page in &pages {
            memory.map(world, page);
        }
        std::thread::scope(|threads| {
            for device in 0..3 {
                let pages = &pages;
                threads.spawn(move || {
                    for turn in 0..60 {
                        if let Err(stale) = world.access(device, place, pages[turn % 4]) {
                            panic!("{stale}");
                        }
                    }
                });
            }
            memory.unmap(world, pages[0]);
            memory.end(world, &pages[1..]);
        });
        for bond in bonds {
            unbind(world, bond);
        }
        if let Err(stale) = world.rig.check_all() {
            panic!("{stale}");
        }
    }
    assert_eq!(processes.pasids().used_count(), 0);
    assert_eq!(world.unit.domain_ids().quarantined_count(), 0);
}
