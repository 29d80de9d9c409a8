//! Whom a sentence of firmware is about, among all devices of a machine.
//!
//! Each ID under which requests of a device may arrive is a question. A sentence covers neighbours of
//! some order: of the requester IDs of a segment under a mask, of the IDs of a bus, or of the devices, where it
//! names a bridge by its path. In each order, what is answered is passed over for good, so that many
//! sentences about all devices cost no more than one.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use crate::firmware::{NodeIndex, PciPath, Subject};
use crate::topology::{Function, FunctionKind, PciTree};

/// An ID of a device.
#[derive(Clone, Copy, Debug)]
struct Question {
    /// The device's number.
    device: usize,
    /// The requester ID, or the ID on a bus; 0 of a named device.
    id: u32,
}

/// A question that a sentence covers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Covered {
    /// Its number.
    pub(super) question: usize,
    /// Whose it is.
    pub(super) device: usize,
    /// What the sentence takes for the ID: the ID under the mask, less the lower bound.
    pub(super) input: u32,
}

/// What becomes of a question that a sentence covers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Then {
    /// Later sentences may cover it again.
    Open,
    /// It is passed over from now on.
    Closed,
}

/// Whose IDs are compared.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Space {
    Segment(u16),
    Bus(NodeIndex),
}

/// Questions in some order.
#[derive(Debug)]
struct Order {
    /// IDs under the mask, and whose question it is.
    sorted: Vec<(u32, usize)>,
    open: Open,
}

/// All questions about a machine. Devices have numbers: PCI functions by their places in the tree, then
/// named ones, then those on buses of named ones.
#[derive(Debug)]
pub(super) struct Questions<'a> {
    tree: &'a PciTree,
    /// Ascending by device.
    all: Vec<Question>,
    /// Where the questions of each device begin, and the end.
    starts: Vec<usize>,
    /// Ascending.
    inputs: &'a [(NodeIndex, u32)],
    first_input: usize,
    /// Of each function, the question of the ID that all its requests may arrive under, so that its other ones
    /// need no answer.
    last_taken: Vec<Option<usize>>,
    /// Of each function, whether it is a root port or below one.
    is_below_root_port: Vec<bool>,
    /// Physical functions and their virtual ones, by their places.
    virtuals: Vec<(usize, usize)>,
    orders: BTreeMap<(Space, u32), Order>,
    by_device: Open,
}

impl<'a> Questions<'a> {
    /// Asks for all functions, named devices and `inputs`, which are ascending.
    pub(super) fn new(
        tree: &'a PciTree,
        node_count: usize,
        inputs: &'a [(NodeIndex, u32)],
    ) -> Self {
        let functions = tree.functions();
        let mut all = Vec::with_capacity(functions.len() + node_count + inputs.len());
        let mut starts = Vec::with_capacity(all.capacity() + 1);
        let mut virtuals = Vec::new();
        let mut is_below_root_port: Vec<bool> = Vec::with_capacity(functions.len());
        let mut last_taken = Vec::with_capacity(functions.len());
        for (device, function) in functions.iter().enumerate() {
            let start = all.len();
            starts.push(start);
            // A bridge stands before all below it.
            let parent = tree.parent_index(device);
            let is_below = parent.is_some_and(|parent| is_below_root_port[parent]);
            is_below_root_port.push(is_below || function.kind == FunctionKind::RootPort);
            let requesters = tree.requesters(function.address).unwrap_or_default();
            let taken = tree.last_taken_id(device);
            let taken = requesters.iter().position(|id| Some(*id) == taken);
            last_taken.push(taken.map(|place| start + place));
            let ids = requesters.into_iter().map(|id| u32::from(id.get()));
            all.extend(ids.map(|id| Question { device, id }));
            if let Some(requester) = function.physical {
                let mut address = function.address;
                address.requester = requester;
                virtuals.extend(tree.index(address).map(|physical| (physical, device)));
            }
        }
        let others = core::iter::repeat_n(0, node_count).chain(inputs.iter().map(|(_, id)| *id));
        for (device, id) in (functions.len()..).zip(others) {
            starts.push(all.len());
            all.push(Question { device, id });
        }
        starts.push(all.len());
        virtuals.sort_unstable();
        let by_device = Open::new(all.len());
        Self {
            tree,
            all,
            starts,
            inputs,
            first_input: functions.len() + node_count,
            last_taken,
            is_below_root_port,
            virtuals,
            orders: BTreeMap::new(),
            by_device,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn device(&self, question: usize) -> usize {
        self.all[question].device
    }

    /// Returns the questions of a device.
    pub(super) fn of(&self, device: usize) -> Range<usize> {
        self.starts[device]..self.starts[device + 1]
    }

    /// Returns the ID that a question is about.
    pub(super) fn id(&self, question: usize) -> u32 {
        self.all[question].id
    }

    /// Returns whether a device is behind an IOMMU only if this question of it has an answer. Below a bridge
    /// that takes requests for its own, requests under other IDs are not met with but for PCI-X, so that
    /// most tables say nothing of them.
    pub(super) fn is_decisive(&self, question: usize) -> bool {
        let last = self.last_taken.get(self.all[question].device);
        last.copied().flatten().is_none_or(|last| last == question)
    }

    /// Returns the number of a named device, if there is one.
    pub(super) fn node(&self, node: NodeIndex) -> Option<usize> {
        let number = node.0.checked_add(self.tree.functions().len())?;
        (number < self.first_input).then_some(number)
    }

    /// Calls `visit` with each open question that a sentence covers; always with that of a named device.
    /// [`Subject::Streams`] covers none.
    pub(super) fn visit(&mut self, subject: &Subject, mut visit: impl FnMut(Covered) -> Then) {
        match subject {
            Subject::Requesters {
                segment,
                mask,
                first,
                last,
            } => {
                let bounds = (u32::from(first.get()), u32::from(last.get()));
                let space = Space::Segment(*segment);
                self.visit_ids(space, u32::from(*mask), bounds, visit);
            }
            Subject::Inputs {
                node,
                mask,
                first,
                last,
            } => self.visit_ids(Space::Bus(*node), *mask, (*first, *last), visit),
            Subject::Function(path) => {
                if let Some(end) = self.end_of(path) {
                    self.visit_function(end, &mut visit);
                }
            }
            Subject::Below(path) => {
                if let Some(end) = self.end_of(path) {
                    self.visit_function(end, &mut visit);
                    let below = self.below(end);
                    self.visit_devices(below, &mut visit);
                }
            }
            Subject::BelowRootPorts { segment } => {
                for device in self.buses((*segment, 0), (*segment, u8::MAX)) {
                    if self.is_below_root_port[device] {
                        self.visit_devices(device..device + 1, &mut visit);
                    }
                }
            }
            Subject::Rest { segment } => {
                let devices = self.buses((*segment, 0), (*segment, u8::MAX));
                self.visit_devices(devices, &mut visit);
            }
            Subject::Node(node) => {
                if let Some(device) = self.node(*node) {
                    visit(Covered {
                        question: self.starts[device],
                        device,
                        input: 0,
                    });
                }
            }
            Subject::Streams { .. } => {}
        }
    }

    /// Opens all questions again.
    pub(super) fn reopen(&mut self) {
        let orders = self.orders.values_mut().map(|order| &mut order.open);
        for open in orders.chain([&mut self.by_device]) {
            open.reopen();
        }
    }

    fn visit_ids(
        &mut self,
        space: Space,
        mask: u32,
        (first, last): (u32, u32),
        mut visit: impl FnMut(Covered) -> Then,
    ) {
        if !self.orders.contains_key(&(space, mask)) {
            let order = self.order(space, mask);
            self.orders.insert((space, mask), order);
        }
        let Some(order) = self.orders.get_mut(&(space, mask)) else {
            return;
        };
        let (all, sorted) = (&self.all, &order.sorted);
        let start = sorted.partition_point(|(id, _)| *id < first);
        let end = sorted.partition_point(|(id, _)| *id <= last);
        order.open.visit(start..end, |place| {
            let (id, question) = sorted[place];
            visit(Covered {
                question,
                device: all[question].device,
                input: id - first,
            })
        });
    }

    fn order(&self, space: Space, mask: u32) -> Order {
        let devices = match space {
            Space::Segment(segment) => self.buses((segment, 0), (segment, u8::MAX)),
            Space::Bus(node) => {
                let start = self.inputs.partition_point(|input| input.0 < node);
                let end = self.inputs.partition_point(|input| input.0 <= node);
                self.first_input + start..self.first_input + end
            }
        };
        let questions = self.starts[devices.start]..self.starts[devices.end];
        let mut sorted: Vec<_> = questions
            .map(|question| (self.all[question].id & mask, question))
            .collect();
        sorted.sort_unstable();
        let open = Open::new(sorted.len());
        Order { sorted, open }
    }

    fn visit_function(&mut self, place: usize, visit: &mut impl FnMut(Covered) -> Then) {
        self.visit_devices(place..place + 1, visit);
        let start = self
            .virtuals
            .partition_point(|(physical, _)| *physical < place);
        let end = self
            .virtuals
            .partition_point(|(physical, _)| *physical <= place);
        for at in start..end {
            let device = self.virtuals[at].1;
            self.visit_devices(device..device + 1, visit);
        }
    }

    fn visit_devices(&mut self, devices: Range<usize>, visit: &mut impl FnMut(Covered) -> Then) {
        let all = &self.all;
        let range = self.starts[devices.start]..self.starts[devices.end];
        self.by_device.visit(range, |question| {
            let Question { device, id } = all[question];
            visit(Covered {
                question,
                device,
                input: id,
            })
        });
    }

    fn end_of(&self, path: &PciPath) -> Option<usize> {
        let steps = path.steps.iter().map(|step| (step.device, step.function));
        let end = self.tree.at_path(path.segment, path.start_bus, steps)?;
        self.tree.index(end.address)
    }

    /// Returns the functions below one, virtual ones too: they are neighbours.
    pub(super) fn below(&self, place: usize) -> Range<usize> {
        let function = &self.tree.functions()[place];
        let segment = function.address.segment;
        function.buses.map_or(place..place, |buses| {
            self.buses((segment, buses.secondary), (segment, buses.subordinate))
        })
    }

    /// Returns the functions from one bus of a segment to another, which counts too.
    fn buses(&self, first: (u16, u8), last: (u16, u8)) -> Range<usize> {
        let functions = self.tree.functions();
        let bus =
            |function: &Function| (function.address.segment, function.address.requester.bus());
        let start = functions.partition_point(|function| bus(function) < first);
        start..functions.partition_point(|function| bus(function) <= last)
    }
}

/// Which places of an order are open.
#[derive(Debug)]
struct Open {
    /// For each place, itself if it is open, or one after it and not after the next one that is.
    next: Vec<usize>,
}

impl Open {
    fn new(len: usize) -> Self {
        Self {
            next: (0..=len).collect(),
        }
    }

    fn reopen(&mut self) {
        for (place, next) in self.next.iter_mut().enumerate() {
            *next = place;
        }
    }

    /// The first open place that is not before this one, or the end.
    fn first(&mut self, mut place: usize) -> usize {
        while self.next[place] != place {
            let after = self.next[self.next[place]];
            self.next[place] = after;
            place = after;
        }
        place
    }

    fn visit(&mut self, range: Range<usize>, mut visit: impl FnMut(usize) -> Then) {
        let mut place = self.first(range.start);
        while place < range.end {
            if visit(place) == Then::Closed {
                self.next[place] = place + 1;
            }
            place = self.first(place + 1);
        }
    }
}
