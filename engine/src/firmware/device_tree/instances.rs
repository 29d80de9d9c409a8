//! IOMMU instances: nodes that are compatible with one, or that others refer to as one.

use crate::firmware::device_tree::{Reader, Sentence};
use crate::firmware::fdt::NodeId;
use crate::firmware::{Architecture, Instance, InstanceIndex, Itself, Location, Problem, Topic};
use crate::topology::PciAddress;

/// What makes a node an IOMMU that others can refer to: how many cells its IDs have.
pub(super) const CELLS: &str = "#iommu-cells";
/// How many that may be.
pub(super) const MAX_CELLS: usize = 16;

impl Reader<'_, '_> {
    pub(super) fn read_instances(&mut self) {
        for node in self.source.iter() {
            let Some(architecture) = self.architecture(node) else {
                continue;
            };
            let location = self.location(node);
            let match_mask = self.match_mask(node, architecture);
            let index = InstanceIndex(self.description.instances.len());
            self.instances.insert(node, index);
            self.description.instances.push(Instance {
                architecture,
                location,
                name: self.source.path(node),
                is_enabled: self.source.is_enabled(node),
                is_coherent: self.is_coherent(node, architecture),
                itself: None,
                match_mask,
            });
        }
    }

    /// Says of each instance which device it is, now that devices have their places.
    pub(super) fn find_instances_among_devices(&mut self) {
        for (node, InstanceIndex(index)) in &self.instances {
            if let Some(instance) = self.description.instances.get_mut(*index) {
                instance.itself = self.nodes.get(node).copied().map(Itself::Node);
            }
        }
    }

    /// Which bits of all IDs an SMMU passes over (`arm,smmu.yaml`, `stream-match-mask`).
    fn match_mask(&mut self, node: NodeId, architecture: Architecture) -> u16 {
        let name = "stream-match-mask";
        let property = self.source.property(node, name);
        let Some(property) = property.filter(|_| architecture == Architecture::Smmu) else {
            return 0;
        };
        let mask = self.source.number(node, name).unwrap_or(Ok(0));
        let mask = mask.and_then(|mask| {
            let value = mask.into();
            u16::try_from(mask).map_err(|_| Problem::Value { value })
        });
        mask.unwrap_or_else(|problem| {
            let sentence = Sentence::new(Topic::Instance, None, node, (name, property));
            self.flaw(sentence, problem);
            // Nothing that it says parts devices.
            u16::MAX
        })
    }

    fn architecture(&self, node: NodeId) -> Option<Architecture> {
        let mut compatible = self.source.compatible(node);
        let known = compatible.find_map(|name| match name {
            b"arm,smmu-v3" => Some(Architecture::Smmuv3),
            b"arm,smmu-v1" | b"arm,smmu-v2" | b"arm,mmu-400" | b"arm,mmu-401" | b"arm,mmu-500"
            | b"cavium,smmu-v2" | b"nvidia,smmu-500" | b"qcom,smmu-v2" | b"qcom,smmu-500"
            | b"qcom,adreno-smmu" => Some(Architecture::Smmu),
            b"riscv,iommu" | b"riscv,pci-iommu" | b"pci1efd,edf1" => Some(Architecture::Riscv),
            b"virtio,pci-iommu" | b"pci1af4,1057" => Some(Architecture::Virtio),
            _ => None,
        });
        if known.is_some() || !self.source.has(node, CELLS) {
            return known;
        }
        // Any virtio device can be behind this; only an IOMMU has cells for IDs (virtio's `mmio.yaml`).
        let is_virtio = self.source.is_compatible(node, &["virtio,mmio"]);
        Some(if is_virtio {
            Architecture::Virtio
        } else {
            Architecture::Other
        })
    }

    fn location(&mut self, node: NodeId) -> Location {
        let Some(property) = self.source.property(node, "reg") else {
            return Location::Unstated;
        };
        let found = if self.source.is_pci_function(node) {
            self.pci_location(node)
        } else {
            self.memory_location(node)
        };
        found.unwrap_or_else(|problem| {
            let sentence = Sentence::new(Topic::Instance, None, node, ("reg", property));
            self.flaw(sentence, problem);
            Location::Unstated
        })
    }

    fn pci_location(&self, node: NodeId) -> Result<Location, Problem> {
        let (host, requester) = self.function(node)?;
        let host = self.description.hosts.get(host);
        let segment = host.map_or(0, |host| host.segment);
        Ok(Location::Pci(PciAddress { segment, requester }))
    }

    fn memory_location(&self, node: NodeId) -> Result<Location, Problem> {
        let reg = self
            .source
            .reg(node)
            .unwrap_or(Err(Problem::Length { len: 0 }))?;
        let (address, len) = reg.first().ok_or(Problem::Length { len: 0 })?;
        Ok(Location::Memory {
            base: self.source.translate(node, *address)?,
            len: Some(*len),
        })
    }

    /// Whether walks snoop, where the tree says so. The bindings of Arm's take silence for a no.
    fn is_coherent(&self, node: NodeId, architecture: Architecture) -> Option<bool> {
        let stated = self.source.is_coherent(node);
        let is_arm = matches!(architecture, Architecture::Smmu | Architecture::Smmuv3);
        stated.or(is_arm.then_some(false))
    }
}
