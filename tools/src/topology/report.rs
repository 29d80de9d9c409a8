//! What the command found, as programs read it.

use std::collections::BTreeMap;

use iopt::device::{DeviceAddress, Machine, Resolved, Untranslated};
use iopt::firmware::{Description, Location};
use iopt::topology::{Function, PciAddress};
use serde::Serialize;

use crate::output::Hex;
use crate::topology::pci::{Access, Comparison, Functions, Groups, kind_name};
use crate::topology::{TopologyArgs, names};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema: u32,
    command: &'static str,
    pub(super) source: SourceReport,
    pub(super) rule: &'static str,
    pub(super) acs: &'static str,
    pub(super) instances: Vec<InstanceReport>,
    pub(super) hosts: Vec<HostReport>,
    pub(super) id_maps: Vec<MapReport>,
    pub(super) regions: Vec<RegionReport>,
    pub(super) devices: Vec<DeviceReport>,
    /// Names of their members.
    pub(super) groups: Vec<Vec<String>>,
    pub(super) untranslated: Vec<UntranslatedReport>,
    pub(super) flaws: Vec<String>,
    /// How the groups compare with those of the file.
    pub(super) comparison: Option<ComparisonReport>,
}

#[derive(Debug, Serialize)]
pub(super) struct SourceReport {
    pub(super) kind: &'static str,
    pub(super) path: String,
    pub(super) pci: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct InstanceReport {
    pub(super) index: usize,
    pub(super) architecture: &'static str,
    pub(super) location: String,
    /// Bytes of its registers.
    pub(super) len: Option<Hex>,
    pub(super) name: String,
    pub(super) is_enabled: bool,
    pub(super) is_coherent: Option<bool>,
    /// How many devices are behind it.
    pub(super) device_count: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct HostReport {
    pub(super) name: String,
    pub(super) segment: u16,
    pub(super) buses: (u8, u8),
    pub(super) ecam: Option<Hex>,
}

#[derive(Debug, Serialize)]
pub(super) struct MapReport {
    pub(super) subject: String,
    pub(super) instance: Option<usize>,
    /// Under which IDs, if there is an instance.
    pub(super) ids: Option<String>,
}

#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(super) struct RegionReport {
    /// For whom; a device's own regions do not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<String>,
    pub(super) start: Hex,
    pub(super) last: Hex,
    pub(super) kind: String,
}

#[derive(Debug, Serialize)]
pub(super) struct DeviceReport {
    pub(super) address: String,
    #[serde(skip)]
    pub(super) key: DeviceAddress,
    pub(super) kind: &'static str,
    pub(super) streams: Vec<StreamReport>,
    /// Its place among the groups.
    pub(super) group: Option<usize>,
    /// Why it is behind no IOMMU.
    pub(super) untranslated: Option<String>,
    pub(super) regions: Vec<RegionReport>,
    /// How many bits of an address it has.
    pub(super) address_bits: Option<u8>,
}

#[derive(Debug, Serialize)]
pub(super) struct StreamReport {
    pub(super) instance: usize,
    pub(super) ids: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct UntranslatedReport {
    pub(super) address: String,
    pub(super) reason: String,
}

#[derive(Debug, Serialize)]
pub(super) struct ComparisonReport {
    pub(super) against: &'static str,
    pub(super) agrees: bool,
    pub(super) same_count: usize,
    pub(super) missing: Vec<Vec<String>>,
    pub(super) unexpected: Vec<Vec<String>>,
    pub(super) left_out: Vec<String>,
}

impl Report {
    pub(super) fn new(
        args: &TopologyArgs,
        description: &Description,
        functions: &Functions,
        machine: &Machine,
        untranslated: &[(DeviceAddress, Untranslated)],
    ) -> Self {
        let (kind, path) = args.source.name();
        let (groups, group_of) = groups(machine, untranslated);
        let of_functions: Vec<Vec<PciAddress>> = groups
            .iter()
            .map(|group| {
                let members = group.iter();
                members.copied().filter_map(as_function).collect()
            })
            .collect();
        // Groups of a machine with other access control say nothing about this one.
        let comparison = match args.acs {
            None => functions.compare(args.rule.into(), &of_functions),
            Some(_) => None,
        };
        let name = |address: &DeviceAddress| names::device(description, *address);
        let devices = machine.devices().map(|device| {
            let function = as_function(device.address).and_then(|at| functions.tree.get(at));
            let mut report = device_report(description, device, function);
            report.group = group_of.get(&device.address).copied();
            let why = untranslated.binary_search_by_key(&device.address, |one| one.0);
            let why = why.ok().map(|place| untranslated[place].1);
            report.untranslated = why.map(|why| names::reason(description, why));
            report
        });
        Self {
            schema: 1,
            command: "topology",
            source: SourceReport {
                kind,
                path: path.display().to_string(),
                pci: args.pci.as_ref().map(|path| path.display().to_string()),
            },
            rule: args.rule.name(),
            acs: args.acs.map_or("as in the file", Access::name),
            instances: instances(description, machine, &group_of),
            hosts: hosts(description),
            id_maps: id_maps(description),
            regions: regions(description),
            devices: devices.collect(),
            groups: groups
                .iter()
                .map(|group| group.iter().map(name).collect())
                .collect(),
            untranslated: untranslated
                .iter()
                .map(|(address, why)| UntranslatedReport {
                    address: name(address),
                    reason: names::reason(description, *why),
                })
                .collect(),
            flaws: description
                .flaws
                .iter()
                .map(|flaw| names::printable(&flaw.to_string()))
                .collect(),
            comparison: comparison.as_ref().map(ComparisonReport::new),
        }
    }

    /// Returns whether the groups are those of the file, if it has any to compare with.
    pub(super) fn agrees(&self) -> bool {
        self.comparison.as_ref().is_none_or(|found| found.agrees)
    }
}

fn as_function(address: DeviceAddress) -> Option<PciAddress> {
    match address {
        DeviceAddress::Pci(address) => Some(address),
        DeviceAddress::Node(_) | DeviceAddress::Input { .. } => None,
    }
}

/// Returns the groups of who is behind an IOMMU, by their first members, and the place of each one's.
fn groups(
    machine: &Machine,
    untranslated: &[(DeviceAddress, Untranslated)],
) -> (Vec<Vec<DeviceAddress>>, BTreeMap<DeviceAddress, usize>) {
    let is_translated = |address: &DeviceAddress| {
        untranslated
            .binary_search_by_key(address, |one| one.0)
            .is_err()
    };
    let mut groups = Vec::new();
    let mut group_of = BTreeMap::new();
    for device in machine.devices() {
        let address = device.address;
        if group_of.contains_key(&address) || !is_translated(&address) {
            continue;
        }
        let members = machine.group(address).into_iter().flatten();
        let members: Vec<_> = members.filter(is_translated).collect();
        group_of.extend(members.iter().map(|member| (*member, groups.len())));
        groups.push(members);
    }
    (groups, group_of)
}

fn instances(
    description: &Description,
    machine: &Machine,
    group_of: &BTreeMap<DeviceAddress, usize>,
) -> Vec<InstanceReport> {
    let mut counts = vec![0; description.instances.len()];
    let translated = machine.devices();
    for device in translated.filter(|device| group_of.contains_key(&device.address)) {
        for stream in &device.streams {
            counts[stream.instance.0] += 1;
        }
    }
    let instances = description.instances.iter().zip(counts).enumerate();
    instances
        .map(|(index, (instance, device_count))| InstanceReport {
            index,
            architecture: names::architecture(instance.architecture),
            location: names::location(instance.location),
            len: match instance.location {
                Location::Memory { len, .. } => len.map(Hex),
                Location::Pci(_) | Location::Unstated => None,
            },
            name: names::printable(&instance.name),
            is_enabled: instance.is_enabled,
            is_coherent: instance.is_coherent,
            device_count,
        })
        .collect()
}

fn hosts(description: &Description) -> Vec<HostReport> {
    let hosts = description.hosts.iter();
    hosts
        .map(|host| HostReport {
            name: names::printable(&host.name),
            segment: host.segment,
            buses: host.buses,
            ecam: host.ecam.map(Hex),
        })
        .collect()
}

fn id_maps(description: &Description) -> Vec<MapReport> {
    let rules = description.rules.iter();
    rules
        .map(|rule| MapReport {
            subject: names::subject(description, Some(&rule.subject)),
            instance: rule.instance.map(|instance| instance.0),
            ids: rule
                .instance
                .map(|_| names::output(&rule.subject, &rule.output)),
        })
        .collect()
}

fn regions(description: &Description) -> Vec<RegionReport> {
    let regions = description.regions.iter();
    regions
        .map(|region| RegionReport {
            subject: Some(names::subject(description, region.subject.as_ref())),
            start: Hex(region.range.start().get()),
            last: Hex(region.range.last().get()),
            kind: names::region(region.kind),
        })
        .collect()
}

fn device_report(
    description: &Description,
    device: &Resolved,
    function: Option<&Function>,
) -> DeviceReport {
    let streams = device.streams.iter().map(|stream| StreamReport {
        instance: stream.instance.0,
        ids: names::ids(description, stream),
    });
    let regions = device.regions.iter().map(|region| RegionReport {
        subject: None,
        start: Hex(region.range.start().get()),
        last: Hex(region.range.last().get()),
        kind: names::region(region.kind),
    });
    DeviceReport {
        address: names::device(description, device.address),
        key: device.address,
        kind: function.map_or("named", |function| kind_name(function.kind)),
        streams: streams.collect(),
        group: None,
        untranslated: None,
        regions: regions.collect(),
        address_bits: device.reach.address_bits,
    }
}

impl DeviceReport {
    /// Writes where its requests arrive: `INSTANCE: ID, ID; INSTANCE: ID`.
    pub(super) fn arrivals(&self) -> String {
        let streams = self
            .streams
            .iter()
            .map(|stream| format!("{}: {}", stream.instance, stream.ids.join(", ")));
        streams.collect::<Vec<_>>().join("; ")
    }
}

impl ComparisonReport {
    fn new(comparison: &Comparison) -> Self {
        let names = |groups: &Groups| {
            let groups = groups.iter();
            groups
                .map(|group| group.iter().map(PciAddress::to_string).collect())
                .collect()
        };
        Self {
            against: comparison.against,
            agrees: comparison.agrees(),
            same_count: comparison.same_count,
            missing: names(&comparison.missing),
            unexpected: names(&comparison.unexpected),
            left_out: comparison
                .left_out
                .iter()
                .map(PciAddress::to_string)
                .collect(),
        }
    }
}
