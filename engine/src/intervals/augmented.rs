//! A balanced search tree whose subtrees carry summaries.
//!
//! Nodes lie in one vector and name each other by slot; slots of removed nodes are used again and
//! never given back. So a node keeps its handle for as long as it is in the tree, removal neither
//! allocates nor frees, and room can be made before something is begun that must not fail midway.
//!
//! # Invariants
//!
//! - **N1** (order): in order, keys never decrease; equal ones stand as they were inserted.
//! - **N2** (balance): the heights of two siblings differ by one at most, so that a tree of `n`
//!   nodes is at most `1.45 * log2(n + 2)` high.
//! - **N3** (summary): each node holds the height and the summary of its subtree.
//! - **N4** (slots): a slot is in the tree or in the list of free ones; its value says which.

use alloc::vec::Vec;
use core::num::NonZeroU32;

#[cfg(test)]
mod tests;

/// The closed interval that a node is found by. By start, then by last.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Key {
    pub(super) start: u64,
    pub(super) last: u64,
}

/// What a node knows about the subtree that it is the top of.
pub(super) trait Summary: Copy + Eq {
    /// Returns the summary of a subtree: the left part's, the top's key, the right part's.
    fn new(left: Option<Self>, key: Key, right: Option<Self>) -> Self;
}

/// A node's place in memory, the same for as long as the node is in its tree. A later node may get
/// the place of one that was removed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Handle(NonZeroU32);

impl Handle {
    /// Returns the handle of a slot; there are less than 2^32.
    fn new(slot: usize) -> Option<Self> {
        let above = u32::try_from(slot.checked_add(1)?).ok()?;
        NonZeroU32::new(above).map(Self)
    }

    const fn slot(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// There is no memory for more intervals. Nothing has changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no memory for {count} more intervals")]
pub(crate) struct OutOfNodes {
    /// For how many room was asked.
    pub(crate) count: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Side {
    Left,
    Right,
}

impl Side {
    const fn opposite(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

#[derive(Debug)]
struct Node<V, S> {
    key: Key,
    summary: S,
    /// `None` if the slot is free.
    value: Option<V>,
    /// The next free slot if this one is free.
    parent: Option<Handle>,
    children: [Option<Handle>; 2],
    height: u8,
}

/// The tree. Handles given to it are those of nodes that are in it.
#[derive(Debug)]
pub(super) struct Tree<V, S> {
    nodes: Vec<Node<V, S>>,
    root: Option<Handle>,
    free: Option<Handle>,
    len: usize,
}

impl<V, S> Tree<V, S> {
    pub(super) const fn new() -> Self {
        Self {
            nodes: Vec::new(),
            root: None,
            free: None,
            len: 0,
        }
    }

    #[cfg(test)]
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn root(&self) -> Option<Handle> {
        self.root
    }

    #[inline]
    pub(super) fn key(&self, at: Handle) -> Key {
        self.node(at).key
    }

    #[inline]
    pub(super) fn parent(&self, at: Handle) -> Option<Handle> {
        self.node(at).parent
    }

    #[inline]
    pub(super) fn child(&self, at: Handle, side: Side) -> Option<Handle> {
        self.node(at).children[side as usize]
    }

    pub(super) fn value(&self, at: Handle) -> &V {
        let value = self.node(at).value.as_ref();
        value.expect("a handle is used until its node is removed, not later")
    }

    pub(super) fn value_mut(&mut self, at: Handle) -> &mut V {
        let value = self.node_mut(at).value.as_mut();
        value.expect("a handle is used until its node is removed, not later")
    }

    /// Returns the lowest node.
    pub(super) fn first(&self) -> Option<Handle> {
        Some(self.outermost(self.root?, Side::Left))
    }

    /// Returns the highest node.
    pub(super) fn last(&self) -> Option<Handle> {
        Some(self.outermost(self.root?, Side::Right))
    }

    /// Returns the node that follows in order.
    pub(super) fn next(&self, at: Handle) -> Option<Handle> {
        match self.child(at, Side::Right) {
            Some(right) => Some(self.outermost(right, Side::Left)),
            None => self.ancestor_above(at),
        }
    }

    /// Returns the nearest node on the way to the root that follows `at` in order: the next after
    /// all of the subtree of `at`.
    pub(super) fn ancestor_above(&self, mut at: Handle) -> Option<Handle> {
        loop {
            let parent = self.parent(at)?;
            if self.side_of(parent, at) == Side::Left {
                return Some(parent);
            }
            at = parent;
        }
    }

    /// Returns the lowest (left) or highest (right) node of a subtree.
    pub(super) fn outermost(&self, mut at: Handle, side: Side) -> Handle {
        while let Some(child) = self.child(at, side) {
            at = child;
        }
        at
    }

    /// Returns the lowest node that `is_before` does not hold for. It holds for all below some key,
    /// and for none from there on.
    pub(super) fn partition_point(&self, is_before: impl Fn(Key) -> bool) -> Option<Handle> {
        let mut found = None;
        let mut at = self.root;
        while let Some(node) = at {
            let side = if is_before(self.key(node)) {
                Side::Right
            } else {
                found = at;
                Side::Left
            };
            at = self.child(node, side);
        }
        found
    }

    /// Makes room: until the tree has `count` nodes more than now, no insertion allocates. Calls do
    /// not add up.
    pub(super) fn try_reserve(&mut self, count: usize) -> Result<(), OutOfNodes> {
        let refused = OutOfNodes { count };
        let free_count = self.nodes.len() - self.len;
        let additional = count.saturating_sub(free_count);
        let total = self.nodes.len().checked_add(additional).ok_or(refused)?;
        if total > u32::MAX as usize {
            return Err(refused);
        }
        self.nodes.try_reserve(additional).map_err(|_| refused)
    }

    #[inline]
    fn node(&self, at: Handle) -> &Node<V, S> {
        &self.nodes[at.slot()]
    }

    #[inline]
    fn node_mut(&mut self, at: Handle) -> &mut Node<V, S> {
        &mut self.nodes[at.slot()]
    }

    fn side_of(&self, parent: Handle, child: Handle) -> Side {
        if self.child(parent, Side::Left) == Some(child) {
            Side::Left
        } else {
            Side::Right
        }
    }

    fn link(&mut self, parent: Handle, side: Side, child: Option<Handle>) {
        self.node_mut(parent).children[side as usize] = child;
        if let Some(child) = child {
            self.node_mut(child).parent = Some(parent);
        }
    }

    /// Puts `new` where `old` hangs.
    fn replace(&mut self, old: Handle, new: Option<Handle>) {
        if let Some(parent) = self.parent(old) {
            self.link(parent, self.side_of(parent, old), new);
            return;
        }
        self.root = new;
        if let Some(new) = new {
            self.node_mut(new).parent = None;
        }
    }
}

impl<V, S: Summary> Tree<V, S> {
    #[inline]
    pub(super) fn summary(&self, at: Handle) -> S {
        self.node(at).summary
    }

    /// Puts a value in, behind those with the same key. Needs memory unless room was made before.
    pub(super) fn insert(&mut self, key: Key, value: V) -> Handle {
        let mut place = None;
        let mut below = self.root;
        while let Some(node) = below {
            let side = if key < self.key(node) {
                Side::Left
            } else {
                Side::Right
            };
            place = Some((node, side));
            below = self.child(node, side);
        }
        let new = self.store(Node {
            key,
            summary: S::new(None, key, None),
            value: Some(value),
            parent: None,
            children: [None; 2],
            height: 1,
        });
        let Some((parent, side)) = place else {
            self.root = Some(new);
            return new;
        };
        self.link(parent, side, Some(new));
        self.repair(Some(parent), None);
        new
    }

    /// Takes a node out. Allocates nothing; all other handles stay good.
    pub(super) fn remove(&mut self, at: Handle) -> V {
        let value = self.node_mut(at).value.take();
        let value = value.expect("a handle is good for one removal");
        let [left, right] = self.node(at).children;
        let (heir, from, stale) = match (left, right) {
            (Some(_), Some(right)) => {
                let heir = self.outermost(right, Side::Left);
                let from = self.move_up(heir, at);
                (Some(heir), Some(from), Some(heir))
            }
            (only, None) | (None, only) => (only, self.parent(at), None),
        };
        self.replace(at, heir);
        self.repair(from, stale);
        self.node_mut(at).parent = self.free.replace(at);
        self.len -= 1;
        value
    }

    /// Hands the children of `at` to the next node in order, which lies below it. Returns the
    /// lowest node whose subtree changed.
    fn move_up(&mut self, heir: Handle, at: Handle) -> Handle {
        let mut from = heir;
        if let Some(parent) = self.parent(heir)
            && parent != at
        {
            self.replace(heir, self.child(heir, Side::Right));
            self.link(heir, Side::Right, self.child(at, Side::Right));
            from = parent;
        }
        self.link(heir, Side::Left, self.child(at, Side::Left));
        // What the place held before, for the repair to compare with.
        let (height, summary) = self.height_and_summary(at);
        let heir = self.node_mut(heir);
        heir.height = height;
        heir.summary = summary;
        from
    }

    /// Restores N2 and N3 from a node up, until a subtree is as its parent knows it. The node
    /// `stale` is not as it says and is visited in any case.
    fn repair(&mut self, mut from: Option<Handle>, mut stale: Option<Handle>) {
        while let Some(at) = from {
            let before = self.height_and_summary(at);
            let top = self.balance(at);
            stale = stale.filter(|&stale| stale != at);
            if stale.is_none() && self.height_and_summary(top) == before {
                return;
            }
            from = self.parent(top);
        }
    }

    /// Refreshes a node, or rotates where its children's heights differ by two. Returns what stands
    /// in its place.
    fn balance(&mut self, at: Handle) -> Handle {
        let [left, right] = self.node(at).children;
        let (high, side) = if self.height(left) > self.height(right) + 1 {
            (left, Side::Left)
        } else if self.height(right) > self.height(left) + 1 {
            (right, Side::Right)
        } else {
            (None, Side::Left)
        };
        let Some(high) = high else {
            self.refresh(at);
            return at;
        };
        let outer = self.child(high, side);
        let inner = self.child(high, side.opposite());
        if self.height(inner) > self.height(outer) {
            self.rotate(high, side);
        }
        self.rotate(at, side.opposite())
    }

    /// Moves a node down to `side`, and its other child into its place. Returns that.
    fn rotate(&mut self, at: Handle, side: Side) -> Handle {
        let Some(lifted) = self.child(at, side.opposite()) else {
            return at;
        };
        self.replace(at, Some(lifted));
        self.link(at, side.opposite(), self.child(lifted, side));
        self.link(lifted, side, Some(at));
        self.refresh(at);
        self.refresh(lifted);
        lifted
    }

    /// Restores N3 for a node whose children have it.
    fn refresh(&mut self, at: Handle) {
        let [left, right] = self.node(at).children;
        let height = 1 + self.height(left).max(self.height(right));
        let [below, above] = [left, right].map(|child| child.map(|child| self.summary(child)));
        let summary = S::new(below, self.key(at), above);
        let node = self.node_mut(at);
        node.height = height;
        node.summary = summary;
    }

    fn height(&self, at: Option<Handle>) -> u8 {
        at.map_or(0, |at| self.node(at).height)
    }

    fn height_and_summary(&self, at: Handle) -> (u8, S) {
        let node = self.node(at);
        (node.height, node.summary)
    }

    /// Puts a node into a free slot, or a new one if none is free.
    fn store(&mut self, node: Node<V, S>) -> Handle {
        self.len += 1;
        if let Some(slot) = self.free {
            self.free = self.parent(slot);
            *self.node_mut(slot) = node;
            return slot;
        }
        let slot = Handle::new(self.nodes.len()).expect("2^32 nodes are more than memory holds");
        self.nodes.push(node);
        slot
    }
}
