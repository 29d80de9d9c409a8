//! A small device tree with all that is read of one: QEMU's are large, and most of them is never looked at.

/// A blob in the making.
struct Writer {
    structure: Vec<u8>,
    strings: Vec<u8>,
}

impl Writer {
    fn word(&mut self, word: u32) {
        self.structure.extend(word.to_be_bytes());
    }

    fn pad(&mut self) {
        let len = self.structure.len().next_multiple_of(4);
        self.structure.resize(len, 0);
    }

    fn node(&mut self, name: &str, inside: impl FnOnce(&mut Self)) {
        self.word(1);
        self.structure.extend(name.as_bytes());
        self.structure.push(0);
        self.pad();
        inside(self);
        self.word(2);
    }

    fn bytes(&mut self, name: &str, value: &[u8]) {
        let name_at = self.strings.len() as u32;
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        self.word(3);
        self.word(value.len() as u32);
        self.word(name_at);
        self.structure.extend(value);
        self.pad();
    }

    fn text(&mut self, name: &str, text: &str) {
        self.bytes(name, format!("{text}\0").as_bytes());
    }

    fn cells(&mut self, name: &str, cells: &[u32]) {
        let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.bytes(name, &bytes);
    }

    fn bus(&mut self, address_cells: u32, size_cells: u32) {
        self.cells("#address-cells", &[address_cells]);
        self.cells("#size-cells", &[size_cells]);
    }

    fn finish(mut self) -> Vec<u8> {
        self.word(9);
        let structure_at = 40 + 32;
        let strings_at = structure_at + self.structure.len();
        let total = strings_at + self.strings.len();
        let header = [0xd00d_feed, total, structure_at, strings_at, 40, 17, 16, 0];
        let lengths = [self.strings.len(), self.structure.len()];
        let words = header.into_iter().chain(lengths);
        let mut blob: Vec<u8> = words.flat_map(|word| (word as u32).to_be_bytes()).collect();
        for number in [0x8000_0000_u64, 0x1000, 0, 0] {
            blob.extend(number.to_be_bytes());
        }
        blob.extend(self.structure);
        blob.extend(self.strings);
        blob
    }
}

/// Returns a tree of two IOMMUs, one of them on PCI and one with two cells, a host bridge with maps, devices
/// with IDs and limits, reserved memory.
pub(super) fn small() -> Vec<u8> {
    let mut writer = Writer {
        structure: Vec::new(),
        strings: Vec::new(),
    };
    writer.node("", |root| {
        root.bus(2, 2);
        root.node("smmu@9050000", |node| {
            node.text("compatible", "arm,smmu-v3");
            node.cells("reg", &[0, 0x905_0000, 0, 0x2_0000]);
            node.cells("#iommu-cells", &[1]);
            node.cells("phandle", &[1]);
            node.bytes("dma-coherent", &[]);
        });
        root.node("iommu", |node| {
            node.text("compatible", "vendor,iommu");
            node.cells("#iommu-cells", &[2]);
            node.cells("phandle", &[2]);
            node.text("status", "okay");
        });
        root.node("pcie@10000000", |node| {
            node.text("compatible", "pci-host-ecam-generic");
            node.text("device_type", "pci");
            node.bus(3, 2);
            node.cells("reg", &[0x40, 0x1000_0000, 0, 0x1000_0000]);
            node.cells("bus-range", &[0, 0x0f]);
            node.cells("linux,pci-domain", &[0]);
            node.cells("iommu-map-mask", &[0xffff]);
            node.cells("iommu-map", &[0, 1, 0, 0x48, 0x49, 1, 0x49, 0xfb7]);
            node.cells("phandle", &[3]);
            let memory = [0x4300_0000, 0, 0, 0, 0, 0x80, 0];
            node.cells("dma-ranges", &memory);
            node.node("iommu@9", |node| {
                node.text("compatible", "virtio,pci-iommu");
                node.cells("reg", &[0x4800, 0, 0, 0, 0]);
                node.cells("#iommu-cells", &[1]);
                node.cells("phandle", &[4]);
            });
        });
        root.node("soc", |node| {
            node.text("compatible", "simple-bus");
            node.bus(1, 1);
            node.bytes("ranges", &[]);
            node.cells("dma-ranges", &[0, 0, 0, 0x4000_0000]);
            node.node("dma@1000", |node| {
                node.cells("reg", &[0x1000, 0x100]);
                node.cells("iommus", &[1, 7, 2, 8, 9]);
                node.cells("phandle", &[5]);
                node.cells("memory-region", &[6]);
                node.bytes("dma-noncoherent", &[]);
            });
        });
        root.node("reserved-memory", |node| {
            node.bus(2, 2);
            node.bytes("ranges", &[]);
            node.node("buffer@90000000", |node| {
                node.cells("reg", &[0, 0x9000_0000, 0, 0x1000]);
                node.cells("iommu-addresses", &[5, 0x9000_0000, 0x1000]);
                node.cells("phandle", &[6]);
            });
        });
    });
    writer.finish()
}
