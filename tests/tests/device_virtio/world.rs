//! A machine with one virtio-iommu and its devices.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use iopt::device::virtio::{VirtioDriver, VirtioEndpoint, VirtioHwpt, VirtioUnit};
use iopt::device::{
    AttachError, By, DefaultKind, DeviceAddress, DeviceRegion, DomainKind, Driver, Hwpt, Identity,
    InstanceFacts, Machine, MachineParts, Owner, Ownership, Registration, Registry, Report,
    Reports, Resolved, Stream,
};
use iopt::domain::virtio::{EndpointError, VirtioDomain, VirtioIommu};
use iopt::firmware::{InstanceIndex, NodeIndex};
use iopt::ioas::{Ioas, MapError, Mapping, Pages, Place};
use iopt::pin::{Firmness, Simulated, Source};
use iopt_formats::command::virtio::{Config, feature};
use iopt_formats::{Iova, IovaRange, Oa, PageSize, PageSizes, Prot};
use iopt_tests::virtio::{ATTACH, Device};

pub(crate) const PAGE: u64 = 0x1000;

/// Endpoints of the devices. The last two are one group.
pub(crate) const IDS: [&[u32]; 4] = [&[1], &[2, 3], &[4], &[5]];

pub(crate) const ALL: u64 = 1 << feature::DOMAIN_RANGE
    | 1 << feature::MAP_UNMAP
    | 1 << feature::PROBE
    | 1 << feature::MMIO
    | 1 << feature::BYPASS_CONFIG;

pub(crate) fn address(number: usize) -> DeviceAddress {
    DeviceAddress::Node(NodeIndex(number))
}

pub(crate) fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).unwrap()
}

/// What a registry had to say.
#[derive(Debug, Default)]
pub(crate) struct Log(Mutex<Vec<String>>);

impl Log {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Reports for Log {
    fn report(&self, report: Report) {
        self.0.lock().unwrap().push(format!("{report:?}"));
    }
}

/// How a world is.
pub(crate) struct Setting {
    pub(crate) features: u64,
    pub(crate) is_bypass: bool,
    pub(crate) kind: DefaultKind,
    pub(crate) regions: Vec<DeviceRegion>,
    pub(crate) properties: Vec<u8>,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            features: ALL,
            is_bypass: false,
            kind: DefaultKind::Paging,
            regions: Vec::new(),
            properties: Vec::new(),
        }
    }
}

pub(crate) struct World {
    pub(crate) device: Device,
    pub(crate) unit: Arc<VirtioUnit<Device>>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) log: Arc<Log>,
    driver: Arc<VirtioDriver<Device>>,
}

/// An address space with a domain of the virtio-iommu, and memory at `base`.
pub(crate) struct Space {
    pub(crate) domain: Arc<VirtioDomain<Device>>,
    pub(crate) hwpt: Arc<dyn Hwpt>,
    pub(crate) ioas: Ioas,
    pages: Arc<Pages>,
    pub(crate) base: u64,
}

impl Space {
    pub(crate) fn new(iommu: &Arc<VirtioIommu<Device>>, base: u64) -> Self {
        let domain = VirtioDomain::with_any_number(Arc::clone(iommu));
        let domain = Arc::new(domain.unwrap());
        let hwpt: Arc<dyn Hwpt> = Arc::new(VirtioHwpt::paging(Arc::clone(&domain)));
        let memory = Simulated::new(PageSize::KIB_4, 0x4000)
            .with_base(Oa::new(base))
            .with_firmness(Firmness::Fixed);
        let ioas = Ioas::new();
        ioas.attach(hwpt.domain().unwrap()).unwrap();
        Self {
            domain,
            hwpt,
            ioas,
            pages: Pages::new(Arc::new(memory) as Arc<dyn Source>, None),
            base,
        }
    }

    /// Maps `len` bytes at `iova` to the memory of the space at the same offset.
    pub(crate) fn map(&self, iova: u64, len: u64) -> Result<IovaRange, MapError> {
        self.ioas.map(Mapping {
            pages: &self.pages,
            offset: iova,
            len,
            prot: Prot::RW,
            place: Place::Fixed(Iova::new(iova)),
        })
    }
}

pub(crate) fn iommu(device: &Device, setting: &Setting) -> Arc<VirtioIommu<Device>> {
    let config = Config {
        page_sizes: PageSizes::EMPTY.with(PageSize::KIB_4),
        input_range: IovaRange::FULL,
        first_domain: 1,
        last_domain: 100,
        probe_size: 64,
        is_bypass: setting.is_bypass,
    };
    let mut state = device.state();
    state.takes_bypass = setting.features >> feature::BYPASS_CONFIG & 1 != 0;
    let is_legacy = setting.features >> feature::BYPASS & 1 != 0;
    state.is_bypass = setting.is_bypass || is_legacy;
    state.properties.clone_from(&setting.properties);
    drop(state);
    let iommu = VirtioIommu::new(device.clone(), config, setting.features);
    Arc::new(iommu.with_limit(Duration::from_millis(20)))
}

pub(crate) fn registry(parts: MachineParts, kind: DefaultKind, log: &Arc<Log>) -> Arc<Registry> {
    let config = iopt::device::Config {
        default_kind: Some(kind),
        reports: Some(Arc::clone(log) as Arc<dyn Reports>),
        ..Default::default()
    };
    Arc::new(Registry::new(
        Arc::new(Machine::new(parts).unwrap()),
        config,
    ))
}

impl World {
    /// Creates one whose devices are there, half of them before the virtio-iommu.
    pub(crate) fn new(setting: &Setting) -> Self {
        let world = Self::empty(setting);
        let early = IDS.len() / 2;
        (0..early).for_each(|number| world.add(number));
        world.register();
        (early..IDS.len()).for_each(|number| world.add(number));
        world
    }

    /// Creates one into which nothing has come yet.
    pub(crate) fn empty(setting: &Setting) -> Self {
        let device = Device::new(64);
        let endpoints = IDS.into_iter().flatten();
        device.state().endpoints = endpoints.map(|&id| (id, None)).collect();
        let unit = VirtioUnit::new(iommu(&device, setting)).unwrap();
        let log = Arc::new(Log::default());
        let devices = IDS.iter().enumerate().map(|(number, ids)| Resolved {
            streams: vec![Stream {
                instance: InstanceIndex(0),
                ids: ids.to_vec(),
            }],
            regions: setting.regions.clone(),
            ..Resolved::new(address(number), number.min(2))
        });
        let parts = MachineParts {
            devices: devices.collect(),
            instances: vec![InstanceFacts::default()],
            ..MachineParts::default()
        };
        let registry = registry(parts, setting.kind, &log);
        Self {
            device,
            unit,
            registry,
            log,
            driver: VirtioDriver::new(),
        }
    }

    pub(crate) fn add(&self, number: usize) {
        self.registry.add_device(address(number)).unwrap();
    }

    pub(crate) fn register(&self) {
        let registration = Registration {
            identity: Identity::Described(InstanceIndex(0)),
            driver: Arc::clone(&self.driver) as Arc<dyn Driver>,
            instance: Arc::<VirtioUnit<Device>>::clone(&self.unit),
        };
        self.registry.register(registration).unwrap();
    }

    pub(crate) fn own(&self, number: usize) -> Ownership {
        let owner = Owner::new("the test");
        self.registry.claim_owner(address(number), &owner).unwrap()
    }

    pub(crate) fn space(&self, base: u64) -> Space {
        Space::new(self.unit.device(), base)
    }

    pub(crate) fn attach(
        &self,
        number: usize,
        owner: &Ownership,
        hwpt: &Arc<dyn Hwpt>,
    ) -> Result<(), AttachError> {
        self.registry
            .attach(address(number), By::Owner(owner), hwpt)
    }

    /// Runs `look` on a device as the driver knows it.
    pub(crate) fn with_endpoint<R>(
        &self,
        number: usize,
        look: impl FnOnce(&VirtioEndpoint<Device>) -> R,
    ) -> R {
        let endpoint = self.registry.endpoint(address(number)).unwrap();
        let any: &dyn std::any::Any = &*endpoint;
        look(any.downcast_ref().unwrap())
    }

    pub(crate) fn is_quarantined(&self, number: usize) -> bool {
        self.with_endpoint(number, VirtioEndpoint::is_quarantined)
    }

    pub(crate) fn take_failure(&self, number: usize) -> Option<EndpointError> {
        self.with_endpoint(number, VirtioEndpoint::take_failure)
    }

    /// Returns what a device is in, by default and now.
    pub(crate) fn kinds(&self, number: usize) -> (Option<DomainKind>, DomainKind) {
        let snapshot = self.registry.snapshot();
        let group = snapshot.group_of(address(number)).unwrap();
        (group.default, group.current)
    }

    /// Returns what all endpoints of a device reach at an address, which must be the same.
    pub(crate) fn reach(&self, number: usize, iova: u64) -> Option<u64> {
        let mut reached = IDS[number].iter().map(|&id| {
            let found = self.device.translate(id, iova);
            found.map(|(address, _)| address)
        });
        let first = reached.next().unwrap();
        assert!(reached.all(|other| other == first), "all or none");
        first
    }

    /// Returns how often each endpoint of a device was attached.
    pub(crate) fn attach_counts(&self, number: usize) -> Vec<usize> {
        let state = self.device.state();
        let ids = IDS[number].iter();
        ids.map(|&id| state.count_for(ATTACH, id)).collect()
    }
}
