//! A change of a domain's translations beside the arrival of a device, in every interleaving with few
//! preemptions.
//!
//! ```text
//!   mapper                          attacher                        hardware
//!   changes a translation           joins the set                   forgets what it is told to
//!   invalidates what the set says   makes the context lead there    reads the context
//!   the old one is over                                             walks, if that leads to tables
//! ```
//!
//! Two stores, each before a load of what the other one stores: the mapper's change and its look at the set, the
//! attacher's place in the set and, by its context, the device's walk. One of both is seen, or what the device
//! caches outlives the invalidation.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::time::Duration;

use iopt_formats::command::Pasid;
use iopt_formats::context::update::{Fetch, Rules};
use iopt_formats::tiny::Tiny;
use iopt_formats::{Iova, IovaRange, Oa, PageSize, PageSizes};
use smallvec::smallvec;

use super::*;
use crate::device::ids::Ids;
use crate::device::{
    AttachFailure, DeviceAddress, Endpoint as _, Hwpt, NewDomainError, PlainDevices,
};
use crate::firmware::NodeIndex;
use crate::invalidation::plan::{Phase, Planner};
use crate::invalidation::queue::{Completion, Device, Fault, Head, Queue, Shape};
use crate::invalidation::{Changes, Encode, Gather, Instance, InvalidationSet, Kind, TableId};
use crate::radix::Table;
use crate::radix::models::memory::ModelMemory;
use crate::reclaim::Operation;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::models::thread;
use crate::sync::{Class, Mutex, bounded_model};

static HARDWARE: Class = Class::unranked("hardware of a model");

const OLD: u64 = 1;
const NEW: u64 = 2;
const VALID: u64 = 1;
/// Commands; a SYNC is all the others.
const FORGET: u64 = 0x10;

/// An IOMMU with one device, one translation, and room for one in its cache.
struct Hardware {
    ring: Box<[AtomicU64]>,
    tail: AtomicU32,
    state: Mutex<State>,
    memory: Arc<ModelMemory>,
    /// Where the device's context is.
    context: Oa,
    translation: AtomicU64,
}

#[derive(Default)]
struct State {
    index: u32,
    cached: Option<u64>,
}

impl Hardware {
    /// Does what a request of the device makes it do.
    fn walk(&self) {
        let mut state = self.state.lock();
        let context = self.memory.items(self.context)[0].load(Ordering::Acquire);
        if context & VALID != 0 {
            state.cached = Some(self.translation.load(Ordering::Relaxed));
        }
    }

    /// Consumes an entry; returns whether there was one.
    fn step(&self) -> bool {
        let mut state = self.state.lock();
        if self.tail.load(Ordering::Acquire) == state.index {
            return false;
        }
        let slot = 2 * (state.index as usize & 1);
        if self.ring[slot].load(Ordering::Relaxed) == FORGET {
            state.cached = None;
        }
        state.index = (state.index + 1) % 4;
        true
    }
}

/// Registers are relaxed: nothing but the queue's fences orders them.
impl Device for Hardware {
    type Entry = [u64; 2];

    fn shape(&self) -> Shape {
        Shape {
            lg2_entries: 1,
            least_lg2_entries: 1,
            has_wrap_bit: true,
            completion: Completion::Head,
        }
    }

    fn ring(&self) -> &[AtomicU64] {
        &self.ring
    }

    fn write_tail(&self, index: u32) {
        self.tail.store(index, Ordering::Relaxed);
    }

    fn head(&self) -> Head {
        while self.step() {}
        Head {
            index: self.state.lock().index,
            fault: None,
        }
    }

    fn sync_entry(&self, _: u32) -> [u64; 2] {
        [0; 2]
    }

    fn acknowledge(&self, _: Fault) {}

    /// Time stands still.
    fn now_ns(&self) -> u64 {
        0
    }

    fn pause(&self, _: u32) {
        thread::yield_now();
    }
}

/// Forgets all that it has, whatever changed.
#[derive(Debug)]
struct Forget;

#[derive(Clone, Copy)]
struct Command(u64);

impl Encode<[u64; 2]> for Command {
    fn entry(&self) -> [u64; 2] {
        [self.0, 0]
    }
}

impl Planner for Forget {
    type Command = Command;
    type Tag = u32;

    fn plan(&self, _: &u32, _: &Changes, mut emit: impl FnMut(Command)) {
        emit(Command(FORGET));
    }

    fn phase(_: &u32) -> Phase {
        Phase::Iotlb
    }

    fn can_repeat(_: &Command) -> bool {
        true
    }
}

/// Contexts of one word, an ID above the valid bit, which this hardware never caches.
struct OneWord;

impl Rules<1> for OneWord {
    fn used(&self, _: &[u64; 1]) -> [u64; 1] {
        [u64::MAX]
    }

    fn is_valid(&self, entry: &[u64; 1]) -> bool {
        entry[0] & VALID != 0
    }

    fn fetch(&self) -> Fetch {
        Fetch::Whole
    }

    fn keeps_invalid(&self) -> bool {
        false
    }
}

/// The least that an architecture can be.
struct Least;

#[derive(Debug)]
struct Unit {
    instance: Arc<Instance<Forget, Hardware>>,
    ids: Arc<Ids>,
}

impl Architecture for Least {
    type Planner = Forget;
    type Queue = Hardware;
    type Memory = ModelMemory;
    type Unit = Unit;
    type Stage = ();
    type Port = EntryTable<ModelMemory, 1>;

    fn instance(unit: &Unit) -> &Arc<Instance<Forget, Hardware>> {
        &unit.instance
    }

    fn has_ats(_: &Unit) -> bool {
        false
    }

    fn pasid_bits(_: &Unit) -> u8 {
        0
    }

    fn fits(_: &Unit, (): &()) -> bool {
        true
    }

    fn refusal(_: &Unit, _: Option<Pasid>, _: Target<&()>) -> Option<&'static str> {
        None
    }

    fn conflict(
        _: &Unit,
        _: (Option<Pasid>, Target<&()>),
        _: (Option<Pasid>, Target<&()>),
    ) -> Option<&'static str> {
        None
    }

    fn ids<'u>(unit: &'u Unit, (): &()) -> &'u Arc<Ids> {
        &unit.ids
    }

    fn translate(
        _: &Arc<ModelMemory>,
        _: &[&HardwareEndpoint<Self>],
    ) -> Result<HardwareDomain<Self>, NewDomainError> {
        Err(NewDomainError::Unsupported)
    }

    fn port(_: &Unit, _: &Arrival<'_>) -> Result<Self::Port, LinkError> {
        Err(LinkError::Absent { index: 0 })
    }

    fn sharing(_: &Self::Port) -> Sharing {
        Sharing::ALONE
    }

    fn tags(_: &Self::Port, _: Option<Pasid>, (): &(), id: u32, _: bool) -> Tags<Forget> {
        smallvec![id]
    }

    fn device_tags(_: &Self::Port, _: Option<Pasid>) -> impl Iterator<Item = u32> {
        core::iter::empty()
    }

    fn make(
        _: &Unit,
        _: &mut Self::Port,
        _: Option<Pasid>,
        _: Target<&()>,
    ) -> Result<(), AttachFailure> {
        Ok(())
    }

    fn write(
        _: &Unit,
        port: &mut Self::Port,
        place: Option<Pasid>,
        attached: &Attached<'_, Self>,
    ) -> Outcome {
        let word = match attached.at(place) {
            Target::Stage(((), id)) => u64::from(id) << 1 | VALID,
            _ => 0,
        };
        port.write(&OneWord, 0, &[word], || Ok(())).into()
    }
}

struct World {
    instance: Arc<Instance<Forget, Hardware>>,
    set: Arc<Set<Least>>,
    device: HardwareEndpoint<Least>,
    domain: Arc<dyn Hwpt>,
}

impl World {
    fn new() -> Arc<Self> {
        let memory = Arc::new(ModelMemory::new(2, 4));
        let port = EntryTable::new(&memory, 1, &[0]).expect("there are two pages");
        let hardware = Hardware {
            ring: (0..4).map(|_| AtomicU64::new(0)).collect(),
            tail: AtomicU32::new(0),
            state: Mutex::new(&HARDWARE, State::default()),
            memory: Arc::clone(&memory),
            context: port.oa(),
            translation: AtomicU64::new(OLD),
        };
        let queue = Queue::new(hardware).expect("the shape is sound");
        let queue = queue.with_limit(Duration::MAX);
        let instance = Arc::new(Instance::new(Forget, queue));
        let unit = Arc::new(Unit {
            instance: Arc::clone(&instance),
            ids: Ids::of_width(1),
        });
        let address = DeviceAddress::Node(NodeIndex(0));
        let at = alloc::vec![(unit, port)];
        let device = HardwareEndpoint::new(address, at, Arc::new(PlainDevices), (false, 0));
        let set = Arc::new(InvalidationSet::new().expect("memory"));
        let table = Table::new(Tiny::new(2).expect("it is legal"), memory).expect("a page is left");
        let domain = HardwareDomain::<Least>::paging(table, Arc::clone(&set), ());
        Arc::new(Self {
            instance,
            set,
            device,
            domain: Arc::new(domain),
        })
    }

    fn hardware(&self) -> &Hardware {
        self.instance.queue().device()
    }

    fn change(&self) {
        let translation = &self.hardware().translation;
        translation.store(NEW, Ordering::Relaxed);
        let range = IovaRange::with_len(Iova::new(0), 0x1000).expect("a page");
        let sizes = PageSizes::from_bits(PageSize::KIB_4.bytes());
        let changes = Changes::leaves(range, sizes, Kind::Removed);
        let gather = Gather::new(changes, TableId::next(), Operation::NONE);
        let flushed = gather.sync(&*self.set);
        flushed.expect("time stands still");
    }

    /// Lets hardware consume what it knows of, and then walk.
    fn walk(&self) {
        while self.hardware().step() {}
        self.hardware().walk();
    }

    fn attach(&self) {
        let prepared = self.device.prepare(None, &self.domain);
        prepared.expect("it fits").commit();
    }
}

/// A3.4.
#[test]
fn a_device_that_comes_beside_an_invalidation_never_keeps_what_that_ended() {
    bounded_model(3, || {
        let world = World::new();
        let acts = [World::change, World::attach, World::walk];
        let threads = acts.map(|act| {
            let world = Arc::clone(&world);
            thread::spawn(move || act(&world))
        });
        for thread in threads {
            thread.join().expect("it ends");
        }
        let cached = world.hardware().state.lock().cached;
        assert_ne!(cached, Some(OLD), "its invalidation has returned");
    });
}
