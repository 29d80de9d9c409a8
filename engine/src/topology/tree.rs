//! The PCI functions of a machine, and which bridge is above which.
//!
//! A tree is made once, from functions in any order, and never changes; who adds a device makes another.
//! Nothing here knows which driver has which function: a bridge that has none passes requests on as before.

#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use crate::topology::{BusRange, Function, FunctionKind, PciAddress, RequesterId};

/// A bus that no bridge leads to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RootBus {
    /// Its segment.
    pub segment: u16,
    /// Its number.
    pub bus: u8,
}

/// Why functions are no tree.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A function is there twice.
    #[error("{address} is there twice")]
    Duplicate {
        /// The function.
        address: PciAddress,
    },
    /// Something other than a bridge has buses below.
    #[error("{address} has buses below, but is no bridge")]
    NoBridge {
        /// The function.
        address: PciAddress,
    },
    /// The buses below a bridge end before they begin, or begin at its own bus or before.
    #[error("the bridge {address} cannot have the buses {secondary:02x}-{subordinate:02x} below")]
    Buses {
        /// The bridge.
        address: PciAddress,
        /// The first bus.
        secondary: u8,
        /// The last bus.
        subordinate: u8,
    },
    /// The buses below a bridge are not all below the bridge above it.
    #[error("buses below {address} are not below {parent}, which is above it")]
    Outside {
        /// The lower bridge.
        address: PciAddress,
        /// The upper bridge.
        parent: PciAddress,
    },
    /// Two bridges, neither above the other, share a bus.
    #[error("a bus is below both {first} and {second}")]
    Overlap {
        /// The bridge with the lower address.
        first: PciAddress,
        /// The other one.
        second: PciAddress,
    },
    /// A root bus is below a bridge.
    #[error("the root bus {bus:02x} is below {address}")]
    RootBelow {
        /// The bridge.
        address: PciAddress,
        /// The bus.
        bus: u8,
    },
    /// The bus of a function is neither a root bus nor right below a bridge.
    #[error("no bridge leads to the bus of {address}")]
    NoBus {
        /// The function.
        address: PciAddress,
    },
    /// The physical function of a virtual one is missing, or is a virtual one too.
    #[error(
        "{physical} of {address}'s segment, of which it is a virtual function, is no physical one"
    )]
    NoPhysical {
        /// The virtual function.
        address: PciAddress,
        /// The physical function that it names.
        physical: RequesterId,
    },
    /// A virtual function is a bridge.
    #[error("{address} is a bridge and a virtual function")]
    VirtualBridge {
        /// The function.
        address: PciAddress,
    },
    /// A virtual function is on a bus that the bridge above its physical function does not pass on to,
    /// or that another bridge leads to.
    #[error("the virtual function {address} is on a bus that its device cannot have")]
    VirtualBus {
        /// The virtual function.
        address: PciAddress,
    },
}

/// Where a function is, seen from a path.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Position {
    /// The path leads to it.
    At,
    /// The path leads to a bridge above it.
    Below,
    /// Neither, or the path leads nowhere.
    Elsewhere,
}

/// All PCI functions of a machine.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PciTree {
    /// Ascending by address: so a bridge stands before all below it.
    functions: Vec<Function>,
    /// The bridge above each function, by its index; none on a root bus.
    parents: Vec<Option<usize>>,
}

impl PciTree {
    /// Makes a tree of `functions`, in any order, on the buses `roots` and below. `n` functions take
    /// `n log n` steps.
    ///
    /// # Errors
    ///
    /// [`TreeError`]: which function does not fit. Of several the same one is reported for every order.
    pub fn new(
        roots: &[RootBus],
        functions: impl IntoIterator<Item = Function>,
    ) -> Result<Self, TreeError> {
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_unstable_by_key(|function| function.address);
        let twice = functions
            .windows(2)
            .find(|pair| pair[0].address == pair[1].address);
        if let Some([Function { address, .. }, ..]) = twice {
            return Err(TreeError::Duplicate { address: *address });
        }
        let mut roots = roots.to_vec();
        roots.sort_unstable();
        let mut parents = Vec::with_capacity(functions.len());
        for chunk in functions.chunk_by(|one, next| one.address.segment == next.address.segment) {
            Segment::new(chunk, &roots)?.find_parents(&mut parents)?;
        }
        Ok(Self { functions, parents })
    }

    /// Returns all functions, ascending by address.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Returns the function at `address`.
    pub fn get(&self, address: PciAddress) -> Option<&Function> {
        self.index(address).map(|index| &self.functions[index])
    }

    /// Returns the bridge above the function at `address`; `None` if it is on a root bus or is not there.
    /// Above a virtual function is what is above its physical function.
    pub fn parent(&self, address: PciAddress) -> Option<&Function> {
        let parent = self.parents[self.index(address)?]?;
        Some(&self.functions[parent])
    }

    /// Returns all requester IDs under which requests of the function at `address` may arrive at the root
    /// complex, each once: its own, those of its quirks, and those that bridges on the way up put in place of
    /// it. `None` if there is no such function.
    ///
    /// A bridge from PCI Express to PCI takes its secondary bus with device 0, function 0; a bridge from a
    /// conventional bus to a conventional bus, or to PCI Express below one, its own ID (PCI Express to
    /// PCI/PCI-X Bridge Specification 2.3; PCI Express Base Specification 2.2.6.2). PCI-X requests may
    /// pass such bridges unchanged, so the IDs from below count as well.
    pub fn requesters(&self, address: PciAddress) -> Option<Vec<RequesterId>> {
        let mut at = self.index(address)?;
        let mut requesters = Vec::with_capacity(1 + self.functions[at].aliases.len());
        let mut add = |requester| {
            if !requesters.contains(&requester) {
                requesters.push(requester);
            }
        };
        add(address.requester);
        self.functions[at]
            .aliases
            .iter()
            .copied()
            .for_each(&mut add);
        while let Some(parent) = self.parents[at] {
            if let Some(requester) = taken_id(&self.functions[parent]) {
                add(requester);
            }
            at = parent;
        }
        Some(requesters)
    }

    /// Returns `true` if `ancestor` is a bridge above the function at `address`.
    pub fn is_below(&self, address: PciAddress, ancestor: PciAddress) -> bool {
        let (Some(mut at), Some(ancestor)) = (self.index(address), self.index(ancestor)) else {
            return false;
        };
        while let Some(parent) = self.parents[at] {
            if parent == ancestor {
                return true;
            }
            at = parent;
        }
        false
    }

    /// Returns the function that a path of firmware leads to: `steps` are devices and functions, the first on
    /// bus `start` of `segment`, each other one on the bus that is right below the one before *now*, whatever
    /// number firmware gave it.
    ///
    /// `None` if there is no such function, or something on the way is no bridge with a bus below.
    pub fn at_path(
        &self,
        segment: u16,
        start: u8,
        steps: impl IntoIterator<Item = (u8, u8)>,
    ) -> Option<&Function> {
        let mut bus = Some(start);
        let mut found = None;
        for (device, function) in steps {
            let requester = RequesterId::from_parts(bus?, device, function)?;
            let function = self.get(PciAddress { segment, requester })?;
            bus = function.buses.map(|buses| buses.secondary);
            found = Some(function);
        }
        found
    }

    /// Returns where the function at `address` is, seen from a path as [`at_path`](Self::at_path) takes it.
    /// A virtual function is not where its physical function is; firmware's sentences mean it, too
    /// ([`firmware::Place`](crate::firmware::Place)).
    pub fn position(
        &self,
        address: PciAddress,
        segment: u16,
        start: u8,
        steps: impl IntoIterator<Item = (u8, u8)>,
    ) -> Position {
        match self.at_path(segment, start, steps) {
            Some(end) if end.address == address => Position::At,
            Some(end) if self.is_below(address, end.address) => Position::Below,
            _ => Position::Elsewhere,
        }
    }

    /// Returns the place of a function in [`functions`](Self::functions).
    pub(crate) fn index(&self, address: PciAddress) -> Option<usize> {
        self.functions
            .binary_search_by_key(&address, |function| function.address)
            .ok()
    }

    /// Returns the place of the bridge above the function at a place, which is before it.
    pub(crate) fn parent_index(&self, index: usize) -> Option<usize> {
        self.parents[index]
    }

    /// Returns the ID that the last bridge that takes requests for its own puts into those of the function at
    /// a place; `None` if there is no such bridge above.
    #[cfg(feature = "std")] // the devices ask
    pub(crate) fn last_taken_id(&self, index: usize) -> Option<RequesterId> {
        let above = core::iter::successors(self.parents[index], |parent| self.parents[*parent]);
        above
            .filter_map(|bridge| taken_id(&self.functions[bridge]))
            .last()
    }

    /// Returns the functions whose requester IDs have the bus of the function at a place.
    pub(crate) fn bus_of(&self, index: usize) -> core::ops::Range<usize> {
        let bus =
            |function: &Function| (function.address.segment, function.address.requester.bus());
        let wanted = bus(&self.functions[index]);
        let start = self
            .functions
            .partition_point(|function| bus(function) < wanted);
        let end = self
            .functions
            .partition_point(|function| bus(function) <= wanted);
        start..end
    }
}

/// Returns the ID that a bridge may put into requests from below.
pub(crate) fn taken_id(bridge: &Function) -> Option<RequesterId> {
    match bridge.kind {
        FunctionKind::PciePciBridge => bridge
            .buses
            .and_then(|buses| RequesterId::from_parts(buses.secondary, 0, 0)),
        FunctionKind::ConventionalBridge | FunctionKind::PciPcieBridge => {
            Some(bridge.address.requester)
        }
        _ => None,
    }
}

/// The functions of one segment, while their parents are looked for.
struct Segment<'a> {
    functions: &'a [Function],
    is_root: [bool; 256],
    /// The bridge whose secondary bus each bus is.
    above: [Option<usize>; 256],
}

impl<'a> Segment<'a> {
    /// Looks at each bridge alone. All root buses of the machine are given, sorted.
    fn new(functions: &'a [Function], roots: &[RootBus]) -> Result<Self, TreeError> {
        let segment = functions.first().map(|function| function.address.segment);
        let start = roots.partition_point(|root| Some(root.segment) < segment);
        let roots = roots[start..].iter();
        let mut is_root = [false; 256];
        for root in roots.take_while(|root| Some(root.segment) == segment) {
            is_root[usize::from(root.bus)] = true;
        }
        let mut this = Self {
            functions,
            is_root,
            above: [None; 256],
        };
        for (index, function) in functions.iter().enumerate() {
            this.check(function)?;
            let Some(BusRange { secondary, .. }) = function.buses else {
                continue;
            };
            if let Some(other) = this.above[usize::from(secondary)].replace(index) {
                return Err(overlap(&functions[other], function));
            }
        }
        Ok(this)
    }

    fn check(&self, function: &Function) -> Result<(), TreeError> {
        let address = function.address;
        if function.physical.is_some() && function.kind.is_bridge() {
            return Err(TreeError::VirtualBridge { address });
        }
        let Some(BusRange {
            secondary,
            subordinate,
        }) = function.buses
        else {
            return Ok(());
        };
        if !function.kind.is_bridge() {
            return Err(TreeError::NoBridge { address });
        }
        if secondary > subordinate || secondary <= address.requester.bus() {
            return Err(TreeError::Buses {
                address,
                secondary,
                subordinate,
            });
        }
        match (secondary..=subordinate).find(|bus| self.is_root[usize::from(*bus)]) {
            Some(bus) => Err(TreeError::RootBelow { address, bus }),
            None => Ok(()),
        }
    }

    /// Appends the parents of all functions to `all`, by their places there.
    fn find_parents(&self, all: &mut Vec<Option<usize>>) -> Result<(), TreeError> {
        let offset = all.len();
        // The innermost bridge above each bus. An inner bridge comes after an outer one, because its own bus
        // is below that one's.
        let mut innermost = [None; 256];
        let mut siblings = Vec::new();
        for (index, function) in self.functions.iter().enumerate() {
            let parent = match function.physical {
                Some(_) => continue,
                None => self.parent_on(function)?,
            };
            if let Some(buses) = function.buses {
                self.check_inside(function, buses, parent)?;
                siblings.push((parent, buses.secondary, index));
                for bus in buses.secondary..=buses.subordinate {
                    innermost[usize::from(bus)] = Some(index);
                }
            }
        }
        self.check_siblings(&mut siblings)?;
        for function in self.functions {
            let parent = match function.physical {
                Some(physical) => self.parent_of_virtual(function, physical, &innermost)?,
                None => self.parent_on(function)?,
            };
            all.push(parent.map(|index| offset + index));
        }
        Ok(())
    }

    /// Returns the bridge right above the bus of a function.
    fn parent_on(&self, function: &Function) -> Result<Option<usize>, TreeError> {
        let bus = usize::from(function.address.requester.bus());
        match self.above[bus] {
            None if !self.is_root[bus] => Err(TreeError::NoBus {
                address: function.address,
            }),
            above => Ok(above),
        }
    }

    fn check_inside(
        &self,
        function: &Function,
        buses: BusRange,
        parent: Option<usize>,
    ) -> Result<(), TreeError> {
        let Some(parent) = parent.map(|index| &self.functions[index]) else {
            return Ok(());
        };
        let last = parent.buses.map_or(0, |buses| buses.subordinate);
        if buses.subordinate > last {
            return Err(TreeError::Outside {
                address: function.address,
                parent: parent.address,
            });
        }
        Ok(())
    }

    /// Checks that no two bridges share a bus that are below the same one, or on root buses.
    fn check_siblings(&self, siblings: &mut [(Option<usize>, u8, usize)]) -> Result<(), TreeError> {
        siblings.sort_unstable();
        let pairs = siblings.windows(2).filter(|pair| pair[0].0 == pair[1].0);
        for pair in pairs {
            let [one, next] = [pair[0].2, pair[1].2].map(|index| &self.functions[index]);
            let last = one.buses.map_or(0, |buses| buses.subordinate);
            if pair[1].1 <= last {
                return Err(overlap(one, next));
            }
        }
        Ok(())
    }

    /// Returns what is above a virtual function: what is above its physical one, which passes requests on to
    /// the further buses of its device.
    fn parent_of_virtual(
        &self,
        function: &Function,
        physical: RequesterId,
        innermost: &[Option<usize>; 256],
    ) -> Result<Option<usize>, TreeError> {
        let address = function.address;
        let found = self
            .functions
            .binary_search_by_key(&physical, |function| function.address.requester)
            .ok()
            .map(|index| &self.functions[index])
            .filter(|function| function.physical.is_none());
        let Some(found) = found else {
            return Err(TreeError::NoPhysical { address, physical });
        };
        let parent = self.parent_on(found)?;
        let bus = address.requester.bus();
        let is_other_root = self.is_root[usize::from(bus)] && bus != physical.bus();
        if innermost[usize::from(bus)] != parent || is_other_root {
            return Err(TreeError::VirtualBus { address });
        }
        Ok(parent)
    }
}

fn overlap(one: &Function, other: &Function) -> TreeError {
    TreeError::Overlap {
        first: one.address.min(other.address),
        second: one.address.max(other.address),
    }
}
