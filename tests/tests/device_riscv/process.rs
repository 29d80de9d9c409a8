//! A3.10: devices that walk the tables of a process, which changes them and ends.

use std::sync::{Arc, Mutex, Weak};

use iopt::device::fault::{FaultGroup, FaultHandler};
use iopt::device::process::{
    BindProcessError, Bond, Process, ProcessMemory, ProcessTables, Processes, Right,
};
use iopt::invalidation::NoHardware;
use iopt::radix::{Table, UnmapPolicy};
use iopt_formats::command::PageResponse;
use iopt_formats::event::riscv::PageRequest;
use iopt_formats::riscv::Sv;
use iopt_formats::{Iova, IovaRange, Oa, Prot};
use iopt_rig::Tables;
use iopt_sim::{Attachment, Rights, StaleAccess};

use crate::world::{DEVICE_COUNT, Kind, World, address};

type Checked = Result<(), Box<StaleAccess>>;

const PAGE: u64 = 0x1000;

/// The memory of a process, with tables that are not the engine's to change.
#[derive(Debug)]
struct Memory {
    number: u64,
    table: Mutex<Option<Table<Sv, Arc<Tables>>>>,
    tables: ProcessTables,
    listeners: Mutex<Vec<Weak<Process>>>,
    /// Who makes pages be there, if they are not from the start.
    pager: Option<Arc<Pager>>,
}

/// Keeps what it is asked for.
#[derive(Debug, Default)]
struct Pager(Mutex<Vec<FaultGroup>>);

impl FaultHandler for Pager {
    fn handle(&self, group: FaultGroup) {
        self.0.lock().unwrap().push(group);
    }
}

impl Memory {
    fn new(world: &World, number: u64) -> Arc<Self> {
        Self::with(world, number, None)
    }

    fn with(world: &World, number: u64, pager: Option<Arc<Pager>>) -> Arc<Self> {
        // Of three levels and of four.
        let is_small = number.is_multiple_of(2);
        let format = if is_small { Sv::sv39() } else { Sv::sv48() };
        let table = Table::new(format, Arc::new(world.rig.tables())).unwrap();
        let tables = ProcessTables::Riscv {
            levels: if is_small { 3 } else { 4 },
            root: table.root().oa,
        };
        Arc::new(Self {
            number,
            table: Mutex::new(Some(table)),
            tables,
            listeners: Mutex::default(),
            pager,
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

    fn fault_handler(&self) -> Option<Arc<dyn FaultHandler>> {
        let pager = self.pager.clone()?;
        Some(pager)
    }
}

fn bind(
    world: &World,
    device: usize,
    process: &Arc<Process>,
) -> Result<Arc<Bond>, BindProcessError> {
    let right = Right::Owner(world.ownership(device));
    let place = process.pasid().get();
    world.begin_attach(device, place, Attachment::Domain(process.identity()));
    let bond = process.bind(&world.registry, address(device), &right)?;
    world.end_attach(device, place);
    Ok(bond)
}

fn unbind(world: &World, bond: Arc<Bond>) {
    let place = bond.pasid().get();
    let device = (0..DEVICE_COUNT).find(|&device| address(device) == bond.device());
    let device = device.unwrap();
    world.begin_detach(device, place);
    drop(bond);
    world.end_detach(device, place);
}

/// A3.10: bound twice is bound once; after the end nothing is walked, and nothing is freed twice.
#[test]
fn devices_walk_the_tables_of_a_process_until_it_ends_and_none_afterwards() -> Checked {
    for seed in 0..6 {
        // Directories of all sizes, with PASIDs of 5 bits at least.
        let world = World::owned(Kind::new(seed * 5 % 12, seed % 2 == 0));
        let processes = Processes::new(32);
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
        assert_eq!(world.unit.pscids().used_count(), 0);
        assert_eq!(world.unit.pscids().quarantined_count(), 0);
    }
    Ok(())
}

/// Devices that use the process all the time it changes and ends.
#[test]
fn a_process_ends_beside_devices_that_use_it() {
    let world = &World::owned(Kind::new(4, true));
    let processes = Processes::new(32);
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
    assert_eq!(world.unit.pscids().quarantined_count(), 0);
}

/// A page that is not there is asked for, comes, and is reached; after the end nobody gets one.
#[test]
fn a_device_gets_the_pages_of_a_process_that_it_asks_for() -> Checked {
    for seed in 0..3 {
        let world = World::owned(Kind::new(seed * 5 % 12, true));
        let processes = Processes::new(32);
        let pager = Arc::new(Pager::default());
        let memory = Memory::with(&world, 1, Some(Arc::clone(&pager)));
        let shared = Arc::clone(&memory) as Arc<dyn ProcessMemory>;
        let process = processes.process(&shared).unwrap();
        let place = process.pasid().get();
        // Without ATS there is no way to ask.
        assert!(bind(&world, 2, &process).is_err());
        world.forget(2, place);
        let bonds = [0, 3].map(|device| bind(&world, device, &process).unwrap());
        let answers = || {
            let statistics = world.rig.iommu().statistics();
            statistics.commands.get("ATS.PRGR").copied().unwrap_or(0)
        };
        let ask = |device: usize, page: u64, group: u64| {
            let id = u64::from(world.ids[device][0]);
            let head = id << 40 | 1 << 32 | u64::from(place) << 12;
            // R, W, L.
            let record = PageRequest::decode([head, page | group << 3 | 7]);
            let round = world.unit.begin_page_requests();
            world.unit.take_page_request(&record).unwrap();
            round.finish();
        };
        let pages = [0x7000_0000, 0x7000_1000];
        for (number, device) in [0, 3].into_iter().enumerate() {
            let page = pages[number];
            assert_eq!(world.access(device, place, page)?, None);
            ask(device, page, 5);
            let groups = std::mem::take(&mut *pager.0.lock().unwrap());
            assert_eq!(groups.len(), 1);
            for group in groups {
                assert_eq!(group.requests()[0].address, Iova::new(page));
                memory.map(&world, page);
                group.respond(PageResponse::Success).unwrap();
            }
            assert_eq!(answers(), number as u64 + 1);
            assert_eq!(world.access(device, place, page)?, Some(memory.oa(page)));
        }
        ask(0, 0x7000_2000, 6);
        memory.end(&world, &pages);
        assert_eq!(world.access(0, place, pages[0])?, None);
        // The last one is answered when the device is unbound, at the latest.
        for bond in bonds {
            unbind(&world, bond);
        }
        assert_eq!(answers(), 3);
        let groups = std::mem::take(&mut *pager.0.lock().unwrap());
        for group in groups {
            assert!(group.respond(PageResponse::Success).is_err());
        }
        // Its PASID is another's once all was read that came until then.
        drop(process);
        assert_eq!(processes.pasids().used_count(), 1);
        world.unit.begin_page_requests().finish();
        assert_eq!(processes.pasids().used_count(), 0);
        world.rig.check_all()?;
    }
    Ok(())
}
