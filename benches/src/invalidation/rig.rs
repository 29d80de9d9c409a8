//! A table behind an IOMMU, and what a driver does with it for an I/O.

use core::marker::PhantomData;
use std::sync::Arc;

use iopt::invalidation::deferred::{Deferred, Release, Window};
use iopt::invalidation::plan::{Planner, smmuv3 as plan_smmuv3, vtd as plan_vtd};
use iopt::invalidation::queue::{Device, Queue, smmuv3, vtd};
use iopt::invalidation::{Encode, Flushed, Instance, InvalidationSet};
use iopt::iova::{DeferredIova, IovaAllocation, IovaConfig, IovaRequest, IovaSpace, WithdrawnIova};
use iopt::mem::Heap;
use iopt::radix::{Table, UnmapPolicy};
use iopt_formats::armv8::{Granule, Stage1};
use iopt_formats::command::smmuv3::Features;
use iopt_formats::vtd::SecondStage;
use iopt_formats::{Format, Iova, IovaRange, Oa, Prot};

/// Bytes of a page.
pub const PAGE_LEN: u64 = 4096;

/// Pages of an I/O.
pub const PAGE_COUNT: u64 = 64;

const BUFFER_LEN: u64 = PAGE_COUNT * PAGE_LEN;

const PROT: Prot = Prot::RW.cached();

/// Where buffers lie in memory, and how far apart.
const FIRST_OA: u64 = 1 << 32;
const OA_STRIDE: u64 = 2 << 20;

/// An architecture with registers `Self::Registers`.
pub trait Hardware: 'static {
    /// Its name.
    const NAME: &'static str;
    /// Registers and memory of its queue.
    type Registers: Send + Sync;
    /// Its tables.
    type Format: Format;
    /// Its queue.
    type Device: Device + Send + Sync;
    /// Turns changes into its commands.
    type Planner: Planner<Command: Encode<<Self::Device as Device>::Entry>, Tag: Send + Sync>
        + Send
        + Sync;

    /// Returns the tables.
    fn format() -> Self::Format;
    /// Returns the planner.
    fn planner() -> Self::Planner;
    /// Returns where the table's translations are cached.
    fn tag() -> <Self::Planner as Planner>::Tag;
    /// Returns the device with `registers`.
    fn device(registers: Self::Registers) -> Self::Device;
    /// Returns its registers.
    fn registers(device: &Self::Device) -> &Self::Registers;
}

/// An SMMUv3 with range invalidation.
#[derive(Debug)]
pub struct Smmuv3<R>(PhantomData<R>);

impl<R: smmuv3::Registers + Send + Sync + 'static> Hardware for Smmuv3<R> {
    const NAME: &'static str = "smmuv3";
    type Registers = R;
    type Format = Stage1<12>;
    type Device = smmuv3::CommandQueue<R>;
    type Planner = plan_smmuv3::Smmuv3;

    fn format() -> Stage1<12> {
        Stage1::new(48, 48).expect("48 bits are what most have")
    }

    fn planner() -> plan_smmuv3::Smmuv3 {
        plan_smmuv3::Smmuv3 {
            features: Features {
                has_range_invalidation: true,
                ..Features::default()
            },
            ..plan_smmuv3::Smmuv3::default()
        }
    }

    fn tag() -> plan_smmuv3::Tag {
        plan_smmuv3::Tag::Stage1 {
            vmid: 0,
            asid: 1,
            granule: Granule::Kib4,
        }
    }

    fn device(registers: R) -> smmuv3::CommandQueue<R> {
        smmuv3::CommandQueue::new(registers)
    }

    fn registers(device: &smmuv3::CommandQueue<R>) -> &R {
        device.registers()
    }
}

/// A VT-d unit that drops blocks of up to 2^18 pages and need not be told of maps.
#[derive(Debug)]
pub struct Vtd<R>(PhantomData<R>);

impl<R: vtd::Registers + Send + Sync + 'static> Hardware for Vtd<R> {
    const NAME: &'static str = "vtd";
    type Registers = R;
    type Format = SecondStage;
    type Device = vtd::InvalidationQueue<R, 2>;
    type Planner = plan_vtd::Vtd;

    fn format() -> SecondStage {
        SecondStage::new(48).expect("48 bits are what most have")
    }

    fn planner() -> plan_vtd::Vtd {
        plan_vtd::Vtd {
            has_blocks: true,
            max_order: 18,
            has_caching_mode: false,
            has_write_buffer: false,
            has_read_drain: true,
            has_write_drain: true,
        }
    }

    fn tag() -> plan_vtd::Tag {
        plan_vtd::Tag::SecondStage { domain_id: 1 }
    }

    fn device(registers: R) -> vtd::InvalidationQueue<R, 2> {
        vtd::InvalidationQueue::new(registers, Oa::new(0x1000))
    }

    fn registers(device: &vtd::InvalidationQueue<R, 2>) -> &R {
        device.registers()
    }
}

/// When an I/O's memory may be used again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// When a flush for many has gone, of each thread its own.
    Deferred,
    /// When a flush for very many has gone, for all threads together.
    DeferredSingle,
    /// When its own invalidation has; lists have SYNCs of their own.
    Strict,
    /// The same; lists share SYNCs.
    StrictShared,
    /// When those of its pages have, each of which is unmapped and waited for by itself.
    PageByPage,
}

impl Mode {
    /// Every mode, the yardstick first.
    pub const ALL: [Self; 5] = [
        Self::Deferred,
        Self::DeferredSingle,
        Self::Strict,
        Self::StrictShared,
        Self::PageByPage,
    ];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deferred => "deferred",
            Self::DeferredSingle => "deferred-single",
            Self::Strict => "strict",
            Self::StrictShared => "strict-shared",
            Self::PageByPage => "page-by-page",
        }
    }

    /// Returns how much is deferred, if anything is.
    pub const fn window(self) -> Option<Window> {
        match self {
            Self::Deferred => Some(Window::PER_THREAD),
            Self::DeferredSingle => Some(Window::SINGLE),
            Self::Strict | Self::StrictShared | Self::PageByPage => None,
        }
    }
}

/// How the pages of a buffer lie in memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layout {
    /// Anywhere, so that each is mapped by itself.
    Scattered,
    /// One after the other.
    Contiguous,
}

impl Layout {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Scattered, Self::Contiguous];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scattered => "scattered",
            Self::Contiguous => "contiguous",
        }
    }
}

/// The hardware of a [`Rig`].
pub type Set<H> = InvalidationSet<<H as Hardware>::Planner, <H as Hardware>::Device>;

/// Removals of a [`Rig`] that wait.
pub type Waiting<'r, H> = Deferred<&'r Set<H>, DeferredIova<'r, Memory>>;

/// A table with its IOVA, behind one IOMMU.
pub struct Rig<H: Hardware> {
    table: Table<H::Format, Heap>,
    space: IovaSpace,
    instance: Arc<Instance<H::Planner, H::Device>>,
    set: Set<H>,
}

impl<H: Hardware> Rig<H> {
    /// Creates a rig whose IOMMU has `registers`.
    ///
    /// # Panics
    ///
    /// Panics if the system has no memory.
    pub fn new(registers: H::Registers, mode: Mode) -> Self {
        let table = Table::new(H::format(), Heap).expect("there is memory for a root");
        let aperture = IovaRange::new(Iova::new(0x1000), Iova::new((1 << 47) - 1));
        let aperture = aperture.expect("it starts before it ends");
        let space = IovaSpace::new(&table, IovaConfig::new(aperture));
        let space = space.expect("nobody else has claimed the table");
        let queue = Queue::new(H::device(registers)).expect("the device has a sound shape");
        let instance = Instance::new(H::planner(), queue);
        let instance = Arc::new(match mode {
            Mode::StrictShared => instance.with_shared_syncs(),
            _ => instance,
        });
        let set = InvalidationSet::new().expect("there is memory for a list");
        set.attach(&instance, &[H::tag()])
            .expect("there is room for one");
        Self {
            table,
            space,
            instance,
            set,
        }
    }

    /// Returns the hardware that removals are synced with.
    pub const fn set(&self) -> &Set<H> {
        &self.set
    }

    /// Returns the registers.
    pub fn registers(&self) -> &H::Registers {
        H::registers(self.instance.queue().device())
    }

    /// Maps the buffer of an I/O, the `index`th in memory.
    ///
    /// # Panics
    ///
    /// Panics if no memory or no IOVA is left.
    #[inline]
    pub fn start(&self, layout: Layout, index: u64) -> IovaAllocation<'_> {
        let fresh = self.space.alloc(&IovaRequest::new(BUFFER_LEN));
        let mut buffer = fresh.expect("2^47 bytes are enough").into_allocation();
        let range = buffer.range();
        let mut mapper = buffer
            .mapper(&self.table)
            .expect("it is the table of the space");
        let oa = FIRST_OA + index % 64 * OA_STRIDE;
        let mut map = |range, oa| {
            let mapped = mapper.map(range, Oa::new(oa), PROT);
            let sync = mapped.expect("nothing is mapped there, and there is memory");
            sync.sync(&self.set).expect("the hardware answers");
        };
        match layout {
            Layout::Contiguous => map(range, oa),
            Layout::Scattered => {
                for number in 0..PAGE_COUNT {
                    map(page(range, number), oa + number * 2 * PAGE_LEN);
                }
            }
        }
        buffer
    }

    /// Unmaps the buffer of an I/O.
    ///
    /// # Panics
    ///
    /// Panics if the system has no memory.
    #[inline]
    pub fn unmap<'r>(&self, buffer: IovaAllocation<'r>) -> WithdrawnIova<'r> {
        let withdrawn = buffer.withdraw(&self.table);
        withdrawn.expect("it is the table of the space")
    }

    /// Unmaps a scattered buffer of an I/O page by page and waits after each; then all of it once more, which
    /// frees its IOVA.
    ///
    /// # Panics
    ///
    /// As [`unmap`](Self::unmap), and if an entry holds several pages.
    #[inline]
    pub fn unmap_page_by_page(&self, mut buffer: IovaAllocation<'_>) -> Flushed {
        let range = buffer.range();
        let mut mapper = buffer
            .mapper(&self.table)
            .expect("it is the table of the space");
        for number in 0..PAGE_COUNT {
            let unmapped = mapper.unmap(page(range, number), UnmapPolicy::Exact);
            let gather = unmapped.expect("each page was mapped by itself").gather;
            gather.sync(&self.set).expect("the hardware answers");
        }
        self.unmap(buffer)
            .sync(&self.set)
            .expect("the hardware answers")
    }
}

fn page(range: IovaRange, number: u64) -> IovaRange {
    let start = Iova::new(range.start().get() + number * PAGE_LEN);
    IovaRange::with_len(start, PAGE_LEN).expect("it lies in the buffer")
}

/// The memory of an I/O.
#[derive(Debug)]
pub struct Memory;

impl Release for Memory {
    fn release(self, flushed: Flushed) {
        std::hint::black_box(flushed);
    }
}

impl<H: Hardware> core::fmt::Debug for Rig<H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Rig")
            .field("space", &self.space)
            .finish_non_exhaustive()
    }
}
