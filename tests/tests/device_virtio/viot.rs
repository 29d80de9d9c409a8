//! A1.3: the machine of a VIOT, with endpoints that are added before their virtio-iommu.

use std::sync::Arc;

use iopt::device::virtio::{VirtioDriver, VirtioUnit};
use iopt::device::{
    Besides, DefaultKind, DeviceAddress, DomainKind, Identity, NoIommu, Registration, Resolution,
    Standing,
};
use iopt::firmware::{InstanceIndex, acpi};
use iopt::topology::{PciAddress, Rule};
use iopt_tests::virtio::{ATTACH, Device, PROBE};
use serde_json::Value;

use crate::facts::tree;
use crate::world::{Log, Setting, iommu, registry};

const MCFG: &[u8] = include_bytes!("../../fixtures/firmware/x86-viot/MCFG.aml");
const VIOT: &[u8] = include_bytes!("../../fixtures/firmware/x86-viot/VIOT.aml");
const FACTS: &str = include_str!("../../fixtures/firmware/x86-viot/pci.json");

/// The virtio-iommu itself.
const ITSELF: u32 = 0x48;
/// A function whose requests all arrive as those of its bridge, and the bridge's alias.
const BEHIND: u32 = 0x418;
const ALIAS: u32 = 0x400;

fn resolve() -> Resolution {
    let description = acpi::parse(&[MCFG, VIOT]).unwrap();
    let facts: Value = serde_json::from_str(FACTS).unwrap();
    Resolution::new(
        &description,
        &tree(&facts),
        &Besides::default(),
        Rule::Reachability,
    )
    .unwrap()
}

fn pci(id: u32) -> DeviceAddress {
    let text = format!("0000:{:02x}:{:02x}.{}", id >> 8, id >> 3 & 31, id & 7);
    let address: PciAddress = text.parse().unwrap();
    DeviceAddress::Pci(address)
}

#[test]
fn endpoints_that_come_before_their_virtio_iommu_are_each_attached_once() {
    for is_early in [true, false] {
        let resolution = resolve();
        let streams = resolution.parts.devices.iter().flat_map(|it| &it.streams);
        let mut ids: Vec<u32> = streams.flat_map(|stream| stream.ids.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert!(ids.contains(&BEHIND) && ids.contains(&ALIAS) && !ids.contains(&ITSELF));
        ids.retain(|&id| id != BEHIND);
        let device = Device::new(64);
        device.state().endpoints = ids.iter().map(|&id| (id, None)).collect();
        let setting = Setting::default();
        let unit = VirtioUnit::new(iommu(&device, &setting)).unwrap();
        let log = Arc::new(Log::default());
        let untranslated = resolution.untranslated.len();
        let registry = registry(resolution.parts, DefaultKind::Paging, &log);
        let machine = registry.machine();
        let devices: Vec<_> = machine.devices().map(|device| device.address).collect();
        assert_eq!((devices.len(), untranslated), (14, 1));
        let register = || {
            let registration = Registration {
                identity: Identity::Described(InstanceIndex(0)),
                driver: VirtioDriver::<Device>::new(),
                instance: Arc::<VirtioUnit<Device>>::clone(&unit),
            };
            registry.register(registration).unwrap();
        };
        if !is_early {
            register();
        }
        for &address in &devices {
            registry.add_device(address).unwrap();
        }
        if is_early {
            assert_eq!(registry.snapshot().groups.len(), 0);
            assert!(device.state().kinds.is_empty());
            register();
        }
        let snapshot = registry.snapshot();
        assert_eq!(snapshot.groups.len(), 10);
        for group in &snapshot.groups {
            assert_eq!(group.default, Some(DomainKind::Paging));
            assert_eq!(group.current, DomainKind::Paging);
        }
        let itself = snapshot.device(pci(ITSELF)).unwrap();
        let is_itself = matches!(
            itself.standing,
            Standing::NoIommu(NoIommu::SelfTranslation | NoIommu::NotBehind)
        );
        assert!(is_itself, "{itself:?}");
        let behind = snapshot.group_of(pci(BEHIND)).unwrap();
        assert_eq!(behind.members, [pci(0x20), pci(BEHIND)]);
        {
            let state = device.state();
            for &id in &ids {
                assert_eq!(state.count_for(ATTACH, id), 1, "{id:#x}");
                assert!(state.endpoints[&id].is_some(), "{id:#x}");
            }
            assert_eq!(state.count(ATTACH), ids.len());
            assert_eq!(state.count_for(PROBE, BEHIND), 1);
            // Those of one group are in one domain, others are not.
            assert_eq!(state.endpoints[&0x20], state.endpoints[&ALIAS]);
            assert_eq!(state.domains.len(), snapshot.groups.len());
        }
        assert!(log.lines().is_empty(), "{:?}", log.lines());
    }
}
