//! Where a function of a PCI tree is, for sentences that name functions by paths.

use crate::firmware::{PathStep, PciPath, Position};
use crate::topology::{self, FunctionKind, PciAddress, PciTree};

/// A function of a tree. A virtual function is also where its physical one is: firmware knows of no others.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    tree: &'a PciTree,
    address: PciAddress,
}

impl<'a> Place<'a> {
    /// Creates one; a function that is not in the tree is nowhere.
    pub const fn new(tree: &'a PciTree, address: PciAddress) -> Self {
        Self { tree, address }
    }

    /// Returns where the function is, and where its physical function is, seen from a path.
    fn positions(&self, path: &PciPath) -> impl Iterator<Item = topology::Position> {
        let Self { tree, address } = *self;
        let physical = tree.get(address).and_then(|function| function.physical);
        let requesters = [Some(address.requester), physical].into_iter().flatten();
        requesters.map(move |requester| {
            let address = PciAddress {
                requester,
                ..address
            };
            let step = |step: &PathStep| (step.device, step.function);
            let steps = path.steps.iter().map(step);
            tree.position(address, path.segment, path.start_bus, steps)
        })
    }
}

impl Position for Place<'_> {
    fn is_at(&self, path: &PciPath) -> bool {
        let mut positions = self.positions(path);
        positions.any(|position| position == topology::Position::At)
    }

    fn is_below(&self, path: &PciPath) -> bool {
        let mut positions = self.positions(path);
        positions.any(|position| position != topology::Position::Elsewhere)
    }

    fn is_below_root_port(&self) -> bool {
        let own = self.tree.get(self.address);
        let up = |function: &&'_ _| {
            let function: &topology::Function = function;
            self.tree.parent(function.address)
        };
        let mut functions = core::iter::successors(own, up);
        functions.any(|function| function.kind == FunctionKind::RootPort)
    }
}
