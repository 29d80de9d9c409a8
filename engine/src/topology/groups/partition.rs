//! A partition of devices into groups, and what becomes of it when devices come and go.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::fmt;

use crate::topology::groups::union::Sets;
use crate::topology::groups::{linux, reachability};
use crate::topology::{Member, Node, PciAddress, PciTree, Rule, Translation};

/// A group, as long as it has members. A later one has another number.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct GroupId(u64);

impl GroupId {
    /// Returns its number: 0 is the first one.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}", self.0)
    }
}

/// What became of the groups when a device came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Added {
    /// The group of the device; `None` if it is behind no IOMMU.
    pub group: Option<GroupId>,
    /// Groups that are one now.
    pub merges: Vec<Merge>,
}

/// A group that is no more, and has left its members to another one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Merge {
    /// The group that was.
    pub from: GroupId,
    /// The group that its members are in.
    pub into: GroupId,
}

/// Why a device gets no group. Nothing has changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// It would make two groups one that are both in use.
    #[error("{node} would join {first} and {second}, which are both in use")]
    Joins {
        /// The device.
        node: Node,
        /// The group with the lower number.
        first: GroupId,
        /// The other one.
        second: GroupId,
    },
    /// It is in a group already.
    #[error("{node} is in {group} already")]
    Present {
        /// The device.
        node: Node,
        /// Its group.
        group: GroupId,
    },
    /// It is not in the tree.
    #[error("there is no function {address} in the tree")]
    NoFunction {
        /// The function.
        address: PciAddress,
    },
}

/// Devices in groups.
///
/// Two partitions are equal if the same devices are together, whatever the numbers of their groups.
#[derive(Clone, Debug)]
pub struct Partition {
    rule: Rule,
    /// The members of each group, ascending, never none.
    groups: BTreeMap<GroupId, Vec<Node>>,
    places: BTreeMap<Node, (GroupId, Translation)>,
    /// Members behind each instance that cannot tell them apart.
    alike: BTreeMap<usize, BTreeSet<Node>>,
    /// Larger than all numbers used so far.
    next: u64,
}

impl PartialEq for Partition {
    fn eq(&self, other: &Self) -> bool {
        self.rule == other.rule && self.by_first_node() == other.by_first_node()
    }
}

impl Eq for Partition {}

impl Partition {
    /// Makes the partition of members that are all known, sorted, and behind an IOMMU.
    pub(super) fn of(tree: &PciTree, members: &[Member], rule: Rule) -> Self {
        let mut this = Self {
            rule,
            groups: BTreeMap::new(),
            places: BTreeMap::new(),
            alike: BTreeMap::new(),
            next: 0,
        };
        match rule {
            Rule::Reachability => {
                let mut groups = BTreeMap::new();
                for (member, class) in members.iter().zip(classes(tree, members)) {
                    let group = *groups.entry(class).or_insert_with(|| this.new_group());
                    this.put(*member, group);
                }
            }
            Rule::Linux => {
                for member in members {
                    let group = this.linux_group(tree, *member);
                    let group = group.unwrap_or_else(|| this.new_group());
                    this.put(*member, group);
                }
            }
        }
        this
    }

    /// Returns the rule by which devices are put into groups.
    pub const fn rule(&self) -> Rule {
        self.rule
    }

    /// Returns the groups, ascending by number, each with its members, ascending.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, &[Node])> {
        self.groups
            .iter()
            .map(|(group, nodes)| (*group, &nodes[..]))
    }

    /// Returns the number of groups.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Returns `true` if there is no group.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Returns the members of a group, ascending; none if there is no such group any more.
    pub fn members(&self, group: GroupId) -> &[Node] {
        self.groups.get(&group).map_or(&[], Vec::as_slice)
    }

    /// Returns the group of a device.
    pub fn group_of(&self, node: Node) -> Option<GroupId> {
        self.places.get(&node).map(|(group, _)| *group)
    }

    /// Takes in a device that came; `tree` is the one that has it, and all the others. `is_in_use` says
    /// whether somebody relies on a group's translation.
    ///
    /// The device joins the group that it belongs to, or gets a new one. By [`Rule::Reachability`] it may
    /// connect groups; they become one if at most one of them is in use, and that one, or else the one
    /// with the lowest number, takes in the members of the others. Nothing ever parts a group. A device
    /// behind no IOMMU gets no group, yet can connect some.
    ///
    /// This computes all groups again, so its time grows with the tree.
    ///
    /// # Errors
    ///
    /// [`AddError`]: the device would connect groups that are in use, is there already, or is not in the tree.
    pub fn add(
        &mut self,
        tree: &PciTree,
        member: Member,
        is_in_use: impl FnMut(GroupId) -> bool,
    ) -> Result<Added, AddError> {
        let node = member.node;
        match node {
            Node::Pci(address) if tree.get(address).is_none() => {
                return Err(AddError::NoFunction { address });
            }
            _ => {}
        }
        if let Some(group) = self.group_of(node) {
            return Err(AddError::Present { node, group });
        }
        let is_translated = member.translation != Translation::Untranslated;
        let (joined, merges) = match self.rule {
            Rule::Reachability => self.joins(tree, member, is_in_use)?,
            Rule::Linux if is_translated => (self.linux_group(tree, member), Vec::new()),
            Rule::Linux => (None, Vec::new()),
        };
        for Merge { from, into } in &merges {
            for node in self.groups.remove(from).unwrap_or_default() {
                if let Some((_, translation)) = self.places.get(&node) {
                    let translation = *translation;
                    self.put(Member { node, translation }, *into);
                }
            }
        }
        let group = is_translated.then(|| {
            let group = joined.unwrap_or_else(|| self.new_group());
            self.put(member, group);
            group
        });
        Ok(Added { group, merges })
    }

    /// Lets a device go, and returns the group that it was in. The others stay together, even if it was all
    /// that connected them: so it comes back to them, if it comes back. A group without members is gone.
    pub fn remove(&mut self, node: Node) -> Option<GroupId> {
        let (group, translation) = self.places.remove(&node)?;
        if let Translation::Alike { instance } = translation
            && let Some(alike) = self.alike.get_mut(&instance)
        {
            alike.remove(&node);
        }
        if let Some(nodes) = self.groups.get_mut(&group) {
            if let Ok(place) = nodes.binary_search(&node) {
                nodes.remove(place);
            }
            if nodes.is_empty() {
                self.groups.remove(&group);
            }
        }
        Some(group)
    }

    fn new_group(&mut self) -> GroupId {
        let group = GroupId(self.next);
        self.next += 1;
        group
    }

    fn put(&mut self, member: Member, group: GroupId) {
        let Member { node, translation } = member;
        self.places.insert(node, (group, translation));
        if let Translation::Alike { instance } = translation {
            self.alike.entry(instance).or_default().insert(node);
        }
        let nodes = self.groups.entry(group).or_default();
        // Members mostly come in ascending order, which then moves nothing.
        let place = nodes.partition_point(|other| *other < node);
        nodes.insert(place, node);
    }

    fn by_first_node(&self) -> BTreeMap<Node, &[Node]> {
        let groups = self.groups.values();
        groups.map(|nodes| (nodes[0], &nodes[..])).collect()
    }

    fn linux_group(&self, tree: &PciTree, member: Member) -> Option<GroupId> {
        match (member.translation, member.node) {
            (Translation::Alike { instance }, _) => {
                let first = self.alike.get(&instance)?.first();
                self.group_of(*first?)
            }
            (_, Node::Pci(address)) => {
                let functions = tree.functions();
                let group_of = |index: usize| self.group_of(Node::Pci(functions[index].address));
                linux::group(tree, tree.index(address)?, &group_of)
            }
            (_, Node::Other(_)) => None,
        }
    }

    /// Returns the group that a device would join, and the groups that would become one.
    fn joins(
        &self,
        tree: &PciTree,
        member: Member,
        mut is_in_use: impl FnMut(GroupId) -> bool,
    ) -> Result<(Option<GroupId>, Vec<Merge>), AddError> {
        let mut members = Vec::with_capacity(self.places.len() + 1);
        members.push(member);
        members.extend(self.places.iter().map(|(node, (_, translation))| Member {
            node: *node,
            translation: *translation,
        }));
        // Numbers for the sets: the device, then the groups as they are.
        let ids: Vec<_> = self.groups.keys().copied().collect();
        let number = |node| {
            let group = self.group_of(node);
            group.map_or(0, |group| 1 + ids.partition_point(|id| *id < group))
        };
        let mut sets = Sets::new(1 + ids.len());
        let mut first_of = BTreeMap::new();
        let classes = classes(tree, &members);
        let is_translated = member.translation != Translation::Untranslated;
        for (member, class) in members
            .iter()
            .zip(classes)
            .skip(usize::from(!is_translated))
        {
            let number = number(member.node);
            sets.join(number, *first_of.entry(class).or_insert(number));
        }

        let mut unions = BTreeMap::<_, Vec<GroupId>>::new();
        for (index, id) in ids.iter().enumerate() {
            unions.entry(sets.find(1 + index)).or_default().push(*id);
        }
        let mut joined = None;
        let mut merges = Vec::new();
        for (set, ids) in &unions {
            let mut into = ids[0];
            if ids.len() > 1 {
                let mut used = ids.iter().copied().filter(|id| is_in_use(*id));
                into = used.next().unwrap_or(into);
                if let Some(second) = used.next() {
                    let (node, first) = (member.node, into);
                    return Err(AddError::Joins {
                        node,
                        first,
                        second,
                    });
                }
            }
            let others = ids.iter().copied().filter(|id| *id != into);
            merges.extend(others.map(|from| Merge { from, into }));
            if *set == 0 {
                joined = Some(into);
            }
        }
        Ok((joined, merges))
    }
}

/// Returns a number for each member, the same one for those that reachability makes one group. All are
/// in the tree.
fn classes(tree: &PciTree, members: &[Member]) -> Vec<usize> {
    let functions = tree.functions().len();
    let mut sets = reachability::closure(tree, functions + members.len());
    let element = |place: usize, member: &Member| match member.node {
        // A function that left the tree while its device stays a member is alone.
        Node::Pci(address) => tree.index(address).unwrap_or(functions + place),
        Node::Other(_) => functions + place,
    };
    let mut first_of = BTreeMap::new();
    for (place, member) in members.iter().enumerate() {
        if let Translation::Alike { instance } = member.translation {
            let element = element(place, member);
            sets.join(element, *first_of.entry(instance).or_insert(element));
        }
    }
    let elements = members.iter().enumerate();
    elements
        .map(|(place, member)| sets.find(element(place, member)))
        .collect()
}
