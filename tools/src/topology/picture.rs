//! The PCI tree as a picture: one box a function, coloured by group, in columns that a page can hold.

use std::fmt::{self, Write as _};

use iopt::device::DeviceAddress;
use iopt::topology::{PciAddress, PciTree};

use crate::topology::report::{DeviceReport, InstanceReport, Report};

const WIDTH: usize = 1000;
const MARGIN: usize = 20;
const COLUMNS: usize = 4;
/// From one column to the next.
const PITCH: usize = (WIDTH - MARGIN) / COLUMNS;
const GAP: usize = 16;
/// From one row to the next.
const ROW: usize = 38;
const BOX_HEIGHT: usize = 32;
const INDENT: usize = 12;
/// Deeper ones are drawn at this depth.
const MAX_DEPTH: usize = 5;
/// Least rows of a column, before a second one is begun.
const MIN_ROWS: usize = 12;
/// Most rows of a column; what is more stands below all columns.
const MAX_ROWS: usize = 40;
const LINE: usize = 16;

/// What stands in a row.
enum Row<'a> {
    /// A bus that no bridge leads to, or who follows.
    Title(String),
    /// A device, so many bridges below its root bus.
    Device(usize, &'a DeviceReport),
}

/// Returns the picture of a machine, an SVG document.
pub(super) fn draw(tree: &PciTree, report: &Report) -> String {
    let rows = rows(tree, report);
    let per_column = rows.len().div_ceil(COLUMNS).clamp(MIN_ROWS, MAX_ROWS);
    let bands = rows.len().div_ceil(per_column * COLUMNS);
    let legend_height = LINE * (report.instances.len() + 2);
    let top = MARGIN + legend_height;
    let band_height = per_column.min(rows.len().max(1)) * ROW + GAP;
    let height = top + bands * band_height + MARGIN;

    let mut body = String::new();
    legend(&mut body, report);
    // The row in which the last device of each depth stands: a line leads from there.
    let mut above: Vec<Option<usize>> = vec![None; MAX_DEPTH + 1];
    for (place, row) in rows.iter().enumerate() {
        let (column, line) = (place / per_column, place % per_column);
        let x = MARGIN + column % COLUMNS * PITCH;
        let y = top + column / COLUMNS * band_height + line * ROW;
        match row {
            Row::Title(title) => {
                above.fill(None);
                text(&mut body, x, y + 22, "title", title);
            }
            Row::Device(depth, device) => {
                let depth = (*depth).min(MAX_DEPTH);
                above[depth] = Some(place);
                if let Some(parent) = depth.checked_sub(1).and_then(|depth| above[depth]) {
                    // From the parent or, if that is in another column, from the top of this one.
                    let is_near = parent / per_column == column;
                    let start = if is_near {
                        y - (place - parent) * ROW + BOX_HEIGHT
                    } else {
                        y - line * ROW
                    };
                    let stem = x + (depth - 1) * INDENT + INDENT / 2;
                    let _ = writeln!(
                        body,
                        r#"<path class="line" d="M{stem} {start}V{}h{}"/>"#,
                        y + BOX_HEIGHT / 2,
                        INDENT / 2
                    );
                }
                boxed(&mut body, x + depth * INDENT, x + PITCH - GAP, y, device);
            }
        }
    }
    format!(
        r##"<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">
<title>{title}</title>
<style>
text {{ font: 11px monospace; fill: #111 }}
.title {{ font-weight: bold; font-size: 13px }}
.line {{ fill: none; stroke: #888 }}
.alone {{ fill: #fff; stroke: #888; stroke-dasharray: 4 3 }}
</style>
<rect width="{WIDTH}" height="{height}" fill="#fff"/>
{body}</svg>
"##,
        title = Escaped(&title(report)),
    )
}

fn title(report: &Report) -> String {
    let groups = report.groups.len();
    format!(
        "{}: {} devices, {groups} groups by {}",
        report.source.path,
        report.devices.len(),
        report.rule
    )
}

fn legend(body: &mut String, report: &Report) {
    text(body, MARGIN, MARGIN, "title", &cut(&title(report), 120));
    for (line, instance) in (1..).zip(&report.instances) {
        let InstanceReport {
            index,
            architecture,
            location,
            name,
            ..
        } = instance;
        let line_text =
            format!("instance {index}: {architecture}, registers at {location}, {name}");
        text(
            body,
            MARGIN,
            MARGIN + line * LINE,
            "name",
            &cut(&line_text, 140),
        );
    }
}

/// The tree in order, each bus under the bridge that leads to it, then named devices.
fn rows<'a>(tree: &PciTree, report: &'a Report) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    let mut named = Vec::new();
    let mut functions = Vec::new();
    for device in &report.devices {
        match device.key {
            DeviceAddress::Pci(address) => {
                functions.push((path(tree, address), device));
            }
            DeviceAddress::Node(_) | DeviceAddress::Input { .. } => {
                named.push(Row::Device(0, device));
            }
        }
    }
    functions.sort_by(|one, other| one.0.cmp(&other.0));
    let mut root = None;
    for (path, device) in functions {
        let first = path[0];
        let bus = (first.segment, first.requester.bus());
        if root.replace(bus) != Some(bus) {
            rows.push(Row::Title(format!("bus {:04x}:{:02x}", bus.0, bus.1)));
        }
        rows.push(Row::Device(path.len() - 1, device));
    }
    if !named.is_empty() {
        rows.push(Row::Title("named by firmware".into()));
        rows.append(&mut named);
    }
    rows
}

/// The bridges above a function, from the root bus on, and itself.
fn path(tree: &PciTree, address: PciAddress) -> Vec<PciAddress> {
    let mut path = vec![address];
    let mut at = address;
    while let Some(parent) = tree.parent(at) {
        at = parent.address;
        path.push(at);
    }
    path.reverse();
    path
}

fn boxed(body: &mut String, x: usize, end: usize, y: usize, device: &DeviceReport) {
    let width = end - x;
    // A letter takes less than 7 units.
    let letters = (width - 10) / 7;
    let paint = match device.group {
        // Hues far from those of neighbours, for any number of groups.
        Some(group) => {
            let hue = group * 137 % 360;
            format!(r#"fill="hsl({hue},75%,85%)" stroke="hsl({hue},60%,40%)""#)
        }
        None => r#"class="alone""#.into(),
    };
    let _ = writeln!(
        body,
        r#"<rect x="{x}" y="{y}" width="{width}" height="{BOX_HEIGHT}" rx="3" {paint}/>"#
    );
    let name = format!("{} {}", device.address, device.kind);
    let below = match device.group {
        Some(group) => format!("group {group}, {}", device.arrivals()),
        None => device.untranslated.clone().unwrap_or_default(),
    };
    text(body, x + 5, y + 13, "name", &cut(&name, letters));
    text(body, x + 5, y + 27, "ids", &cut(&below, letters));
}

fn cut(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.into();
    }
    let kept = text.chars().take(letters.saturating_sub(2));
    kept.chain("..".chars()).collect()
}

fn text(body: &mut String, x: usize, y: usize, class: &str, content: &str) {
    let _ = writeln!(
        body,
        r#"<text x="{x}" y="{y}" class="{class}">{}</text>"#,
        Escaped(content)
    );
}

/// Text as XML has it; letters that it cannot have are left out.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\u{fffe}' | '\u{ffff}' => {}
                letter if letter.is_control() => {}
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}
