//! Domains whose translations a virtio-iommu device keeps, on a device that goes by the specification.

mod endpoints;
mod faults;
mod random;
mod requests;
mod threads;

use std::sync::Arc;
use std::time::Duration;

use iopt::domain::Domain;
use iopt::domain::virtio::{VirtioDomain, VirtioIommu};
use iopt::ioas::{Ioas, MapError, Mapping, Pages, Place};
use iopt::pin::{Simulated, Source};
use iopt::radix::FaultWindow;
use iopt_formats::command::virtio::{Config, feature};
use iopt_formats::{Iova, IovaRange, PageSize, PageSizes, Prot};

use iopt_tests::virtio::Device;

const PAGE: u64 = 0x1000;
/// The domain in the device.
const NUMBER: u32 = 7;

const FEATURES: u64 = 1 << feature::INPUT_RANGE
    | 1 << feature::DOMAIN_RANGE
    | 1 << feature::MAP_UNMAP
    | 1 << feature::PROBE
    | 1 << feature::MMIO;

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("the range does not wrap")
}

fn config() -> Config {
    Config {
        page_sizes: PageSizes::EMPTY.with(PageSize::KIB_4).with(PageSize::MIB_2),
        input_range: IovaRange::new(Iova::new(0), Iova::new((1 << 39) - 1)).expect("it rises"),
        first_domain: 1,
        last_domain: 100,
        probe_size: 64,
        is_bypass: false,
    }
}

/// The time that a device has if the test does not say otherwise.
const LIMIT: Duration = Duration::from_millis(20);

fn iommu(device: &Device, limit: Duration) -> Arc<VirtioIommu<Device>> {
    device.state().input_range = (0, (1 << 39) - 1);
    let iommu = VirtioIommu::new(device.clone(), config(), FEATURES);
    Arc::new(iommu.with_limit(limit))
}

/// An address space with a domain of a device, and memory of which no two pages lie side by side.
struct World {
    ioas: Ioas,
    device: Device,
    iommu: Arc<VirtioIommu<Device>>,
    domain: Arc<VirtioDomain<Device>>,
    dynamic: Arc<dyn Domain>,
    source: Arc<Simulated>,
    pages: Arc<Pages>,
}

impl World {
    /// Creates one with endpoint 1 in the domain, whose mappings can be replaced.
    fn new(capacity: usize) -> Self {
        Self::patient(capacity, LIMIT)
    }

    /// As [`new`](Self::new), with so much time for the device.
    fn patient(capacity: usize, limit: Duration) -> Self {
        let world = Self::with(capacity, FaultWindow::Allow, limit);
        world.domain.attach(1).expect("there is such an endpoint");
        world
    }

    fn with(capacity: usize, fault_window: FaultWindow, limit: Duration) -> Self {
        let device = Device::new(capacity);
        let iommu = iommu(&device, limit);
        let domain = VirtioDomain::new(Arc::clone(&iommu), NUMBER).expect("it is free");
        let domain = Arc::new(domain.with_fault_window(fault_window).without_pins());
        let dynamic = Arc::clone(&domain) as Arc<dyn Domain>;
        let ioas = Ioas::new();
        ioas.attach(Arc::clone(&dynamic)).expect("it fits");
        let source = Arc::new(Simulated::new(PageSize::KIB_4, 1024).scattered(3, 1));
        let pages = Pages::new(Arc::clone(&source) as Arc<dyn Source>, None);
        Self {
            ioas,
            device,
            iommu,
            domain,
            dynamic,
            source,
            pages,
        }
    }

    /// Maps pages of the source from `first` on.
    fn map(
        &self,
        iova: u64,
        first: u64,
        page_count: u64,
        prot: Prot,
    ) -> Result<IovaRange, MapError> {
        self.ioas.map(Mapping {
            pages: &self.pages,
            offset: first * PAGE,
            len: page_count * PAGE,
            prot,
            place: Place::Fixed(Iova::new(iova)),
        })
    }

    /// Checks that endpoint `endpoint` reaches the pages of the source from `first` on.
    fn assert_reaches(&self, endpoint: u32, iova: u64, first: u64, page_count: u64, flags: u32) {
        for page in 0..page_count {
            let oa = self.source.oa_of(first + page).expect("it is pinned");
            let found = self.device.translate(endpoint, iova + page * PAGE + 5);
            assert_eq!(found, Some((oa.get() + 5, flags)), "page {page}");
        }
    }

    /// Checks that the device has nothing, and that no page is pinned.
    fn assert_empty(&self) {
        assert_eq!(self.device.mapping_count(NUMBER), 0);
        assert_eq!((self.ioas.area_count(), self.source.pinned_pages()), (0, 0));
    }
}
