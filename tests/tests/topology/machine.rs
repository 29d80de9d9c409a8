//! Random machines of PCI functions. What is above what, and what is side by side, is noted while they are
//! made, so that nobody has to find it out from bus numbers again.

use iopt::topology::{
    Acs, AcsFlags, BusRange, Function, FunctionKind, PciAddress, RequesterId, RootBus,
};

/// The bits of the controls in the ACS registers, as the PCI Express Base Specification numbers them.
const CONTROLS: u16 = 0b1_1101;

/// Numbers that are the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }
}

/// What a function is connected to, upwards.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wire {
    /// The root complex.
    Root,
    /// A link to the port with this number.
    Link(usize),
    /// The inside of the switch whose upstream port has this number.
    Switch(usize),
    /// A bus that all on it share, below the bridge with this number.
    Shared(usize),
}

/// A function, and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) function: Function,
    pub(crate) wire: Wire,
    /// The device that it is a function of.
    pub(crate) device: usize,
}

/// A machine.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    pub(crate) roots: Vec<RootBus>,
    pub(crate) parts: Vec<Part>,
    devices: usize,
    /// The segment and the last bus with a number so far.
    segment: u16,
    bus: u8,
    /// Of how many functions without control there is one, in this machine.
    leaks: usize,
}

impl Machine {
    /// Makes a machine of up to about 60 functions.
    pub(crate) fn random(random: &mut Random) -> Self {
        let mut this = Self {
            leaks: [1, 2, 6, 30][random.below(4)],
            ..Self::default()
        };
        for segment in 0..=random.below(2) {
            this.segment = if segment == 0 { 0 } else { 0xfff0 };
            this.bus = 0;
            for _ in 0..=random.below(2) {
                this.root_bus(random);
            }
        }
        this.share_ids(random);
        this
    }

    fn root_bus(&mut self, random: &mut Random) {
        let bus = self.bus;
        self.roots.push(RootBus {
            segment: self.segment,
            bus,
        });
        let mut below = Vec::new();
        for slot in 0..=random.below(4) {
            let device = self.device();
            for function in 0..functions_of_a_device(random) {
                let kind = [
                    FunctionKind::RootPort,
                    FunctionKind::RootPort,
                    FunctionKind::RootPort,
                    FunctionKind::RootComplexEndpoint,
                    FunctionKind::EventCollector,
                    FunctionKind::Conventional,
                    FunctionKind::PciePciBridge,
                    FunctionKind::ConventionalBridge,
                ][random.below(8)];
                let place = (slot as u8 * 3) << 3 | function;
                below.push(self.part(random, bus, place, kind, Wire::Root, device));
            }
        }
        self.fill(random, &below, 0);
        // The next root bus comes after all that is below this one.
        self.bus += 1;
    }

    /// Gives the bridges among `parts` their buses and what is below, and the endpoints virtual functions.
    fn fill(&mut self, random: &mut Random, parts: &[usize], depth: usize) {
        for part in parts.iter().copied() {
            let kind = self.parts[part].function.kind;
            if matches!(
                kind,
                FunctionKind::Endpoint | FunctionKind::RootComplexEndpoint
            ) && random.one_in(4)
            {
                self.virtual_functions(random, part);
            }
        }
        for part in parts.iter().copied() {
            let kind = self.parts[part].function.kind;
            if !kind.is_bridge() || self.bus > 200 || random.one_in(12) {
                continue;
            }
            self.bus += 1;
            let secondary = self.bus;
            if depth < 6 && self.parts.len() < 60 {
                let below = match kind {
                    FunctionKind::RootPort
                    | FunctionKind::DownstreamPort
                    | FunctionKind::PciPcieBridge => self.link(random, part, secondary),
                    FunctionKind::UpstreamPort => self.switch(random, part, secondary),
                    _ => self.shared_bus(random, part, secondary),
                };
                self.fill(random, &below, depth + 1);
            }
            self.parts[part].function.buses = Some(BusRange {
                secondary,
                subordinate: self.bus,
            });
        }
    }

    /// Puts one device at the end of a link.
    fn link(&mut self, random: &mut Random, port: usize, bus: u8) -> Vec<usize> {
        let device = self.device();
        // With alternative routing IDs the functions of a device fill more than eight places.
        let stride = if random.one_in(4) { 7 } else { 1 };
        let count = functions_of_a_device(random);
        let functions = 0..count;
        functions
            .map(|function| {
                let kind = match random.below(6) {
                    0..3 if function == 0 => FunctionKind::UpstreamPort,
                    0 => FunctionKind::PciePciBridge,
                    1 => FunctionKind::Conventional,
                    _ => FunctionKind::Endpoint,
                };
                let wire = Wire::Link(port);
                self.part(random, bus, function * stride, kind, wire, device)
            })
            .collect()
    }

    fn switch(&mut self, random: &mut Random, upstream: usize, bus: u8) -> Vec<usize> {
        let mut below = Vec::new();
        for slot in 0..=random.below(3) {
            let device = self.device();
            let kind = if random.one_in(10) {
                FunctionKind::Endpoint
            } else {
                FunctionKind::DownstreamPort
            };
            let wire = Wire::Switch(upstream);
            below.push(self.part(random, bus, (slot as u8) << 3, kind, wire, device));
        }
        below
    }

    fn shared_bus(&mut self, random: &mut Random, bridge: usize, bus: u8) -> Vec<usize> {
        let mut below = Vec::new();
        for slot in 0..random.below(4) {
            let device = self.device();
            let kind = [
                FunctionKind::Conventional,
                FunctionKind::Conventional,
                FunctionKind::ConventionalBridge,
                FunctionKind::PciPcieBridge,
            ][random.below(4)];
            let wire = Wire::Shared(bridge);
            below.push(self.part(random, bus, (slot as u8 + 2) << 3, kind, wire, device));
        }
        below
    }

    fn virtual_functions(&mut self, random: &mut Random, physical: usize) {
        let of = self.parts[physical].clone();
        let own = of.function.address.requester;
        // Further buses lie between the one below the bridge and the last that it passes on.
        let bus = if random.one_in(2) && self.bus < 200 {
            self.bus += 1;
            self.bus
        } else {
            own.bus()
        };
        for place in 0..=random.below(2) as u8 {
            let place = if bus == own.bus() {
                (own.get() as u8 & 7) * 4 + 0xc0 + place
            } else {
                place
            };
            let number = u16::from(bus) << 8 | u16::from(place);
            let taken = |part: &Part| {
                let address = part.function.address;
                address.segment == self.segment && address.requester.get() == number
            };
            if self.parts.iter().any(taken) {
                continue;
            }
            let index = self.part(random, bus, place, of.function.kind, of.wire, of.device);
            let function = &mut self.parts[index].function;
            function.physical = Some(own);
            function.is_multifunction = false;
        }
    }

    fn device(&mut self) -> usize {
        self.devices += 1;
        self.devices
    }

    fn part(
        &mut self,
        random: &mut Random,
        bus: u8,
        place: u8,
        kind: FunctionKind,
        wire: Wire,
        device: usize,
    ) -> usize {
        let address = PciAddress {
            segment: self.segment,
            requester: RequesterId::new(u16::from(bus) << 8 | u16::from(place)),
        };
        let mut function = Function::new(address, kind);
        function.acs = self.acs(random);
        function.is_isolated = random.one_in(20);
        function.is_multifunction = random.one_in(2);
        self.parts.push(Part {
            function,
            wire,
            device,
        });
        self.parts.len() - 1
    }

    fn acs(&self, random: &mut Random) -> Option<Acs> {
        let any = random.below(0x80) as u16;
        let (capable, enabled) = match random.below(self.leaks + 1) {
            1.. => (0x5f, CONTROLS),
            0 => match random.below(5) {
                0 => return None,
                1 => (0x5f, 0),
                2 => (any, any & random.below(0x80) as u16),
                3 => (0x7f, CONTROLS | 1 << 5),
                _ => (0x7f, CONTROLS & !(1 << random.below(5))),
            },
        };
        Some(Acs {
            capable: AcsFlags::from_bits(capable),
            enabled: AcsFlags::from_bits(enabled),
        })
    }

    /// Lets some functions use IDs of others, or of nobody's.
    fn share_ids(&mut self, random: &mut Random) {
        for _ in 0..random.below(4) {
            let one = random.below(self.parts.len());
            let other = self.parts[random.below(self.parts.len())].function.address;
            let id = match random.below(4) {
                0 => RequesterId::new(0xff00 + random.below(2) as u16),
                // Perhaps what a bridge takes for all below it.
                1 => RequesterId::new(u16::from(other.requester.bus()) << 8),
                _ => other.requester,
            };
            self.parts[one].function.aliases.push(id);
        }
    }
}

fn functions_of_a_device(random: &mut Random) -> u8 {
    [1, 1, 2, 3][random.below(4)]
}
