//! Firmware's words, for people.

use iopt::device::{DeviceAddress, Stream, Untranslated};
use iopt::firmware::{
    Architecture, Description, InstanceIndex, Location, NodeIndex, Output, PciPath, RegionKind,
    Subject,
};
use iopt::topology::{PciAddress, RequesterId};

pub(super) const fn architecture(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Smmu => "smmu",
        Architecture::Smmuv3 => "smmuv3",
        Architecture::Vtd => "vtd",
        Architecture::Amd => "amd",
        Architecture::Riscv => "riscv",
        Architecture::Virtio => "virtio",
        _ => "other",
    }
}

pub(super) fn location(location: Location) -> String {
    match location {
        Location::Memory { base, .. } => format!("{base:#x}"),
        Location::Pci(address) => address.to_string(),
        Location::Unstated => "unstated".into(),
    }
}

/// What is safe to print, whatever firmware calls its things.
pub(super) fn printable(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for letter in name.chars() {
        if letter.is_control() {
            text.extend(letter.escape_default());
        } else {
            text.push(letter);
        }
    }
    text
}

pub(super) fn node(description: &Description, NodeIndex(index): NodeIndex) -> String {
    let node = description.nodes.get(index);
    node.map_or_else(|| format!("node {index}"), |node| printable(&node.name))
}

pub(super) fn device(description: &Description, address: DeviceAddress) -> String {
    match address {
        DeviceAddress::Pci(address) => address.to_string(),
        DeviceAddress::Node(index) => node(description, index),
        DeviceAddress::Input { node: index, id } => format!("{} {id:#x}", node(description, index)),
    }
}

fn path(path: &PciPath) -> String {
    let PciPath {
        segment, start_bus, ..
    } = path;
    let steps = path.steps.iter();
    let steps: Vec<_> = steps
        .map(|step| format!("{:02x}.{}", step.device, step.function))
        .collect();
    format!("{segment:04x}:{start_bus:02x}:{}", steps.join("/"))
}

pub(super) fn subject(description: &Description, subject: Option<&Subject>) -> String {
    let Some(subject) = subject else {
        return "all".into();
    };
    match subject {
        Subject::Requesters {
            segment,
            mask,
            first,
            last,
        } => {
            let at = |requester: RequesterId| PciAddress {
                segment: *segment,
                requester,
            };
            let mask = match *mask {
                u16::MAX => String::new(),
                mask => format!(" under {mask:#06x}"),
            };
            if first == last {
                format!("{}{mask}", at(*first))
            } else {
                format!("{} to {last}{mask}", at(*first))
            }
        }
        Subject::Function(end) => format!("at {}", path(end)),
        Subject::Below(end) => format!("at and below {}", path(end)),
        Subject::BelowRootPorts { segment } => {
            format!("root ports of segment {segment:04x} and all below")
        }
        Subject::Rest { segment } => format!("the rest of segment {segment:04x}"),
        Subject::Node(index) => node(description, *index),
        Subject::Inputs {
            node: index,
            mask,
            first,
            last,
        } => {
            let mask = match *mask {
                u32::MAX => String::new(),
                mask => format!(" under {mask:#x}"),
            };
            format!(
                "{first:#x} to {last:#x}{mask} of {}",
                node(description, *index)
            )
        }
        Subject::Streams {
            instance,
            first,
            last,
        } => format!("IDs {first:#x} to {last:#x} of instance {}", instance.0),
        _ => "others".into(),
    }
}

/// The IDs that those get whom a rule is about.
pub(super) fn output(subject: &Subject, output: &Output) -> String {
    match output {
        Output::Fixed(id) => format!("{id:#x}"),
        Output::Cells(cells) => {
            let cells: Vec<_> = cells.iter().map(|cell| format!("{cell:#x}")).collect();
            format!("<{}>", cells.join(" "))
        }
        Output::Both { offset, alias } => {
            let own = self::output(subject, &Output::Offset(*offset));
            format!("{own}, and {alias:#x}")
        }
        Output::Offset(first) => {
            let span = match subject {
                Subject::Requesters { first, last, .. } => {
                    u32::from(last.get().saturating_sub(first.get()))
                }
                Subject::Inputs { first, last, .. } => last.saturating_sub(*first),
                Subject::Node(_) => 0,
                // By requester ID.
                _ if *first == 0 => return "their IDs".into(),
                _ => return format!("their IDs and {first:#x}"),
            };
            match (span, first.checked_add(span)) {
                (0, _) => format!("{first:#x}"),
                (_, Some(last)) => format!("{first:#x} to {last:#x}"),
                (_, None) => format!("{first:#x} on"),
            }
        }
        _ => "others".into(),
    }
}

/// The IDs under which an instance sees a device; behind a stroke, which bits of one do not count.
pub(super) fn ids(description: &Description, stream: &Stream) -> Vec<String> {
    let instance = description.instances.get(stream.instance.0);
    let is_smmu = instance.is_some_and(|instance| instance.architecture == Architecture::Smmu);
    let ids = stream.ids.iter();
    ids.map(|id| match (id >> 16, id & 0xffff) {
        (mask, id) if is_smmu && mask != 0 => format!("{id:#x}/{mask:#x}"),
        _ => format!("{id:#x}"),
    })
    .collect()
}

pub(super) fn region(kind: RegionKind) -> String {
    match kind {
        RegionKind::Direct {
            is_relaxable: true, ..
        } => "direct-relaxable".into(),
        RegionKind::Direct { .. } => "direct".into(),
        RegionKind::Mapped { oa, .. } => format!("mapped to {oa:#x}"),
        RegionKind::Reserved => "reserved".into(),
        RegionKind::Msi => "msi".into(),
        _ => "other".into(),
    }
}

pub(super) fn reason(description: &Description, why: Untranslated) -> String {
    match why {
        Untranslated::Itself(InstanceIndex(index)) => format!("it is instance {index} itself"),
        Untranslated::Unreadable(place) => {
            let flaw = description.flaws.get(place);
            let flaw = flaw.map_or_else(String::new, |flaw| printable(&flaw.to_string()));
            format!("what is said of it cannot be read: {flaw}")
        }
        Untranslated::Partly { id, why } => format!(
            "it is not all behind an IOMMU: as {id:#x}, {}",
            reason(description, why.into())
        ),
        Untranslated::Nothing(place) => {
            let rule = description.rules.get(place);
            let about = rule.map_or_else(String::new, |rule| {
                subject(description, Some(&rule.subject))
            });
            match rule.and_then(|rule| rule.instance) {
                Some(InstanceIndex(index)) => format!("instance {index} may not be used"),
                None => format!("firmware says so of {about}"),
            }
        }
        _ => "firmware says nothing of it".into(),
    }
}
