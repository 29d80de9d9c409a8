//! What the command found, for people.

use std::fmt::Write as _;

use crate::output::{Align, Table};
use crate::topology::report::{ComparisonReport, Report};

const LEFT: Align = Align::Left;
const RIGHT: Align = Align::Right;

impl Report {
    /// Returns all of it, one table a question.
    pub(super) fn text(&self) -> String {
        let mut parts = vec![
            self.head(),
            self.instances_text(),
            self.maps_text(),
            self.regions_text(),
            self.groups_text(),
            self.untranslated_text(),
        ];
        if !self.flaws.is_empty() {
            let lines: Vec<_> = self
                .flaws
                .iter()
                .map(|flaw| format!("  {flaw}\n"))
                .collect();
            parts.push(format!("Cannot be read\n{}", lines.concat()));
        }
        if let Some(comparison) = &self.comparison {
            parts.push(comparison.text());
        }
        parts.retain(|part| !part.is_empty());
        parts.join("\n")
    }

    fn head(&self) -> String {
        let source = &self.source;
        let mut text = format!("{} {}\n", source.kind, source.path);
        let _ = match &source.pci {
            Some(pci) => writeln!(
                text,
                "functions of {pci}, access control {}\ngroups by {}",
                self.acs, self.rule
            ),
            None => writeln!(
                text,
                "no functions are given: groups by {} are of named devices only",
                self.rule
            ),
        };
        text
    }

    fn instances_text(&self) -> String {
        let mut table = Table::new([
            ("instance", RIGHT),
            ("architecture", LEFT),
            ("registers", LEFT),
            ("devices", RIGHT),
            ("name", LEFT),
        ]);
        for instance in &self.instances {
            let name = if instance.is_enabled {
                instance.name.clone()
            } else {
                format!("{}, not to be used", instance.name)
            };
            table.row([
                instance.index.to_string(),
                instance.architecture.into(),
                instance.location.clone(),
                instance.device_count.to_string(),
                name,
            ]);
        }
        titled("IOMMU instances", self.instances.len(), &table)
    }

    fn maps_text(&self) -> String {
        let mut table = Table::new([("who", LEFT), ("instance", RIGHT), ("IDs", LEFT)]);
        for map in &self.id_maps {
            let none = || "none".to_owned();
            table.row([
                map.subject.clone(),
                map.instance.map_or_else(none, |index| index.to_string()),
                map.ids.clone().unwrap_or_default(),
            ]);
        }
        titled("ID maps", self.id_maps.len(), &table)
    }

    fn regions_text(&self) -> String {
        let mut table = Table::new([
            ("who", LEFT),
            ("first", RIGHT),
            ("last", RIGHT),
            ("kind", LEFT),
        ]);
        for region in &self.regions {
            table.row([
                region.subject.clone().unwrap_or_default(),
                format!("{:#x}", region.start.0),
                format!("{:#x}", region.last.0),
                region.kind.clone(),
            ]);
        }
        titled("Reserved regions", self.regions.len(), &table)
    }

    fn groups_text(&self) -> String {
        let mut table = Table::new([
            ("group", RIGHT),
            ("device", LEFT),
            ("kind", LEFT),
            ("instance: IDs", LEFT),
        ]);
        let mut devices: Vec<_> = self
            .devices
            .iter()
            .filter_map(|device| Some((device.group?, device)))
            .collect();
        devices.sort_by_key(|(group, device)| (*group, device.key));
        let mut last = None;
        for (group, device) in devices {
            let is_first = last.replace(group) != Some(group);
            table.row([
                if is_first {
                    group.to_string()
                } else {
                    String::new()
                },
                device.address.clone(),
                device.kind.into(),
                device.arrivals(),
            ]);
        }
        titled("Groups", self.groups.len(), &table)
    }

    fn untranslated_text(&self) -> String {
        let mut table = Table::new([("device", LEFT), ("reason", LEFT)]);
        for device in &self.untranslated {
            table.row([device.address.clone(), device.reason.clone()]);
        }
        titled("Behind no IOMMU", self.untranslated.len(), &table)
    }
}

fn titled<const N: usize>(title: &str, count: usize, table: &Table<N>) -> String {
    if count == 0 {
        return format!("{title}: none\n");
    }
    let mut text = format!("{title}: {count}\n");
    for line in table.to_string().lines() {
        let _ = writeln!(text, "  {line}");
    }
    text
}

impl ComparisonReport {
    fn text(&self) -> String {
        let against = self.against;
        let mut text = if self.agrees {
            format!("all {} groups are those of {against}\n", self.same_count)
        } else {
            format!(
                "mismatch: {} groups are those of {against}\n",
                self.same_count
            )
        };
        for (what, groups) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            for group in groups {
                let _ = writeln!(text, "mismatch: {what} group {}", group.join(" "));
            }
        }
        if !self.left_out.is_empty() {
            let left_out = self.left_out.join(" ");
            let _ = writeln!(
                text,
                "not compared, because the file has them in no group: {left_out}"
            );
        }
        text
    }
}
