//! Files that list the PCI functions of a machine, and perhaps its groups.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::ValueEnum;
use iopt::topology::{
    Acs, AcsFlags, BusRange, Function, FunctionKind, PciAddress, PciTree, RequesterId, RootBus,
    Rule,
};
use serde::Deserialize;

use crate::failure::Failure;
use crate::topology::TopologyError;
use crate::topology::source::read;

/// Most bytes of such a file: some 100 000 functions.
const MAX_LEN: u64 = 64 << 20;

/// What access control is taken to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(super) enum Access {
    /// What isolates (SV, RR, CR and UF) is on in every function that has it, as Linux does
    On,
    /// All of it is off
    Off,
}

impl Access {
    /// Returns how the command line has it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// Groups, each ascending.
pub(super) type Groups = BTreeSet<Vec<PciAddress>>;

/// The functions of a machine, and what is known of its groups.
#[derive(Debug, Default)]
pub(super) struct Functions {
    pub(super) tree: PciTree,
    /// Which groups Linux made.
    expected: Option<Groups>,
    /// Which groups are made of what reaches what, where that differs.
    reachable: Option<Groups>,
    /// Who had no group.
    ungrouped: BTreeSet<PciAddress>,
}

/// How groups compare with those of the file.
#[derive(Debug)]
pub(super) struct Comparison {
    /// The key of the file.
    pub(super) against: &'static str,
    /// How many groups are the same.
    pub(super) same_count: usize,
    /// Groups of the file that are not found.
    pub(super) missing: Groups,
    /// Groups that are found and not in the file.
    pub(super) unexpected: Groups,
    /// Who has a group here and had none when the file was made, so that it is passed over.
    pub(super) left_out: BTreeSet<PciAddress>,
}

/// The file.
#[derive(Deserialize)]
struct File {
    root_buses: Vec<Bus>,
    devices: Vec<Device>,
    expected_groups: Option<Vec<Vec<Address>>>,
    reachability_groups: Option<Vec<Vec<Address>>>,
    #[serde(default)]
    ungrouped: Vec<Ungrouped>,
}

#[derive(Deserialize)]
struct Device {
    bdf: Address,
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(default)]
    multifunction: bool,
    secondary_bus: Option<(u8, u8)>,
    #[serde(default)]
    acs_capable: Vec<Flag>,
    #[serde(default)]
    acs_enabled: Vec<Flag>,
    physical: Option<Address>,
    #[serde(default)]
    aliases: Vec<Address>,
    #[serde(default)]
    isolated: bool,
}

#[derive(Deserialize)]
struct Ungrouped {
    bdf: Address,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    RootPort,
    UpstreamPort,
    DownstreamPort,
    PciePciBridge,
    PciPcieBridge,
    PciBridge,
    Endpoint,
    RcEndpoint,
    EventCollector,
    Conventional,
}

/// A bus of segment 0, or of another one with its name.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Bus {
    Number(u8),
    Named(BusName),
}

#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct BusName(RootBus);

#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Address(PciAddress);

#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Flag(AcsFlags);

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|error: iopt::topology::AddressError| error.to_string())
    }
}

impl TryFrom<String> for BusName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let function = format!("{text}:00.0").parse::<PciAddress>();
        let address = function.map_err(|_| format!("{text:?} is not of the form SEGMENT:BUS"))?;
        Ok(Self(RootBus {
            segment: address.segment,
            bus: address.requester.bus(),
        }))
    }
}

impl TryFrom<String> for Flag {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let flag = AcsFlags::from_name(&text);
        flag.map(Self)
            .ok_or_else(|| format!("access control has no {text:?}"))
    }
}

impl Kind {
    const fn function(self) -> FunctionKind {
        match self {
            Self::RootPort => FunctionKind::RootPort,
            Self::UpstreamPort => FunctionKind::UpstreamPort,
            Self::DownstreamPort => FunctionKind::DownstreamPort,
            Self::PciePciBridge => FunctionKind::PciePciBridge,
            Self::PciPcieBridge => FunctionKind::PciPcieBridge,
            Self::PciBridge => FunctionKind::ConventionalBridge,
            Self::Endpoint => FunctionKind::Endpoint,
            Self::RcEndpoint => FunctionKind::RootComplexEndpoint,
            Self::EventCollector => FunctionKind::EventCollector,
            Self::Conventional => FunctionKind::Conventional,
        }
    }
}

/// Returns the name of a kind, for people.
pub(super) const fn kind_name(kind: FunctionKind) -> &'static str {
    match kind {
        FunctionKind::RootPort => "root port",
        FunctionKind::UpstreamPort => "upstream port",
        FunctionKind::DownstreamPort => "downstream port",
        FunctionKind::PciePciBridge => "PCIe-PCI bridge",
        FunctionKind::PciPcieBridge => "PCI-PCIe bridge",
        FunctionKind::ConventionalBridge => "PCI bridge",
        FunctionKind::Endpoint => "endpoint",
        FunctionKind::RootComplexEndpoint => "root endpoint",
        FunctionKind::EventCollector => "event collector",
        FunctionKind::Conventional => "conventional",
        _ => "function",
    }
}

impl Device {
    fn function(&self, access: Option<Access>) -> Result<Function, String> {
        let address = self.bdf.0;
        let mut function = Function::new(address, self.kind.function());
        function.is_multifunction = self.multifunction;
        function.buses = self.secondary_bus.map(|(secondary, subordinate)| BusRange {
            secondary,
            subordinate,
        });
        let same_segment = |other: &Address| {
            let is_same = other.0.segment == address.segment;
            let wrong = || format!("{} is not of the segment of {address}", other.0);
            is_same.then_some(other.0.requester).ok_or_else(wrong)
        };
        function.physical = self.physical.as_ref().map(same_segment).transpose()?;
        let aliases: Result<Vec<RequesterId>, _> = self.aliases.iter().map(same_segment).collect();
        function.aliases = aliases?;
        function.is_isolated = self.isolated;
        let all = |flags: &[Flag]| {
            let flags = flags.iter().map(|flag| flag.0);
            flags.fold(AcsFlags::NONE, |all, flag| all | flag)
        };
        let capable = all(&self.acs_capable);
        let enabled = match access {
            None => all(&self.acs_enabled),
            Some(Access::On) => all(&self.acs_enabled) | capable.and(AcsFlags::ISOLATION),
            Some(Access::Off) => AcsFlags::NONE,
        };
        // A capability that is capable of nothing has no bits that a file could list.
        let has_capability = capable != AcsFlags::NONE || enabled != AcsFlags::NONE;
        function.acs = has_capability.then_some(Acs { capable, enabled });
        Ok(function)
    }
}

impl Functions {
    /// Reads a file, and takes access control to be `access`, or as the file says.
    pub(super) fn open(path: &Path, access: Option<Access>) -> Result<Self, Failure> {
        let bytes = read(path, MAX_LEN)?;
        let wrong = |reason: String| TopologyError::Pci {
            path: path.into(),
            reason,
        };
        Ok(Self::parse(&bytes, access).map_err(wrong)?)
    }

    fn parse(bytes: &[u8], access: Option<Access>) -> Result<Self, String> {
        let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let functions = file.devices.iter().map(|device| device.function(access));
        let functions = functions.collect::<Result<Vec<_>, _>>()?;
        let roots: Vec<_> = file
            .root_buses
            .iter()
            .map(|bus| match bus {
                Bus::Number(bus) => RootBus {
                    segment: 0,
                    bus: *bus,
                },
                Bus::Named(BusName(root)) => *root,
            })
            .collect();
        let tree = PciTree::new(&roots, functions).map_err(|error| error.to_string())?;
        let groups = |key: &str, groups: Option<Vec<Vec<Address>>>| {
            let groups = groups.map(|groups| partition(&tree, key, &groups));
            groups.transpose()
        };
        let expected = groups("expected_groups", file.expected_groups)?;
        let reachable = groups("reachability_groups", file.reachability_groups)?;
        Ok(Self {
            tree,
            expected,
            reachable,
            ungrouped: file.ungrouped.iter().map(|device| device.bdf.0).collect(),
        })
    }

    /// Compares groups with those that the file has for the rule, if it has any.
    pub(super) fn compare(&self, rule: Rule, groups: &[Vec<PciAddress>]) -> Option<Comparison> {
        let (against, expected) = match rule {
            Rule::Linux => ("expected_groups", self.expected.as_ref()?),
            Rule::Reachability => ("reachability_groups", self.reachable.as_ref()?),
            _ => return None,
        };
        let listed: BTreeSet<_> = expected.iter().flatten().copied().collect();
        let is_passed_over =
            |address: &PciAddress| self.ungrouped.contains(address) && !listed.contains(address);
        let mut found = Groups::new();
        let mut left_out = BTreeSet::new();
        for group in groups {
            let (passed_over, rest): (Vec<_>, Vec<_>) =
                group.iter().partition(|a| is_passed_over(a));
            left_out.extend(passed_over);
            if !rest.is_empty() {
                found.insert(rest);
            }
        }
        Some(Comparison {
            against,
            same_count: expected.intersection(&found).count(),
            missing: expected.difference(&found).cloned().collect(),
            unexpected: found.difference(expected).cloned().collect(),
            left_out,
        })
    }
}

impl Comparison {
    pub(super) fn agrees(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty()
    }
}

/// Checks that groups are a partition of some functions of the tree.
fn partition(tree: &PciTree, key: &str, groups: &[Vec<Address>]) -> Result<Groups, String> {
    let mut group_of = BTreeMap::new();
    let mut partition = Groups::new();
    for (number, group) in groups.iter().enumerate() {
        let mut members = Vec::new();
        for Address(address) in group {
            if tree.get(*address).is_none() {
                return Err(format!("{key}: there is no function {address}"));
            }
            if group_of.insert(*address, number).is_some() {
                return Err(format!("{key}: {address} is there twice"));
            }
            members.push(*address);
        }
        members.sort_unstable();
        partition.insert(members);
    }
    Ok(partition)
}

#[cfg(test)]
mod tests {
    use iopt_tests::fuzz::{Target, search_all};

    use super::*;

    /// Reads a file, and compares its groups with each other.
    fn parse(bytes: &[u8]) -> bool {
        let read = |access| Functions::parse(bytes, access);
        let Ok(functions) = read(None) else {
            assert!(read(Some(Access::On)).is_err());
            return false;
        };
        let turned_off = read(Some(Access::Off)).expect("access control changes values alone");
        assert_eq!(
            turned_off.tree.functions().len(),
            functions.tree.functions().len()
        );
        for (rule, groups) in [
            (Rule::Linux, &functions.expected),
            (Rule::Reachability, &functions.reachable),
        ] {
            let found: Vec<_> = groups.iter().flatten().cloned().collect();
            let comparison = functions.compare(rule, &found);
            assert_eq!(comparison.is_some(), groups.is_some());
            assert!(comparison.is_none_or(|comparison| comparison.left_out.is_empty()));
        }
        true
    }

    /// A small machine with all that a file can have.
    fn seeds() -> Vec<Vec<u8>> {
        let text = r#"{"root_buses": [0, "0001:00"], "devices": [
{"bdf": "0000:00:01.0", "type": "root-port", "secondary_bus": [1, 1], "acs_capable": ["SV", "RR"], "acs_enabled": ["SV"]},
{"bdf": "0000:01:00.0", "type": "endpoint", "multifunction": true, "aliases": ["0000:01:00.1"]},
{"bdf": "0000:01:00.2", "type": "endpoint", "physical": "0000:01:00.0", "isolated": true},
{"bdf": "0001:00:02.0", "type": "conventional"}],
"expected_groups": [["0000:00:01.0", "0000:01:00.0"], ["0001:00:02.0"]],
"reachability_groups": [["0000:01:00.2"]], "ungrouped": [{"bdf": "0000:01:00.2"}]}"#;
        [text.into()].to_vec()
    }

    #[test]
    fn no_damage_to_a_list_of_functions_breaks_its_reader() {
        search_all(&[Target {
            name: "pci",
            run: parse,
            seeds,
        }]);
    }
}
