//! The picture that `iopt topology --svg` draws.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;

use serde_json::{Value, json as value};
use tempfile::TempDir;

use crate::common::{fixture, iopt};

/// Returns the start tags and the texts of an XML document, or what is wrong with it.
fn elements(document: &str) -> Result<(Vec<&str>, Vec<String>), String> {
    let (mut tags, mut texts, mut open) = (Vec::new(), Vec::new(), Vec::new());
    let mut rest = document
        .strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n")
        .ok_or("no declaration")?;
    while let Some((before, after)) = rest.split_once('<') {
        let text = unescaped(before)?;
        if !text.trim().is_empty() {
            texts.push(text);
        }
        let (tag, after) = after.split_once('>').ok_or("a tag has no end")?;
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Err(format!("{name} ends too early"));
            }
        } else {
            let (tag, is_empty) = match tag.strip_suffix('/') {
                Some(tag) => (tag, true),
                None => (tag, false),
            };
            if tag.contains('<') || tag.matches('"').count() % 2 != 0 {
                return Err(format!("{tag:?} is no tag"));
            }
            tags.push(tag);
            if !is_empty {
                open.push(tag.split(' ').next().unwrap_or_default());
            }
        }
        rest = after;
    }
    if open.is_empty() && rest.trim().is_empty() {
        Ok((tags, texts))
    } else {
        Err(format!("{open:?} and {rest:?} are left"))
    }
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut parts = text.split('&');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once(';').ok_or("an & stands alone")?;
        plain.push(match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            _ => return Err(format!("&{name};")),
        });
        plain.push_str(rest);
    }
    let wrong = plain
        .chars()
        .find(|letter| letter.is_control() && *letter != '\n');
    wrong.map_or(Ok(plain), |letter| Err(format!("{letter:?}")))
}

fn number(tag: &str, name: &str) -> usize {
    let (_, rest) = tag.split_once(&format!(" {name}=\"")).expect("it has one");
    let (number, _) = rest.split_once('"').expect("it ends");
    number.parse().expect("it is a number")
}

/// Draws a machine with the tables of `vtd-a` and these functions.
fn draw(pci: &Value) -> String {
    let folder = TempDir::new().expect("a temporary folder can be made");
    // A name that XML cannot have as it is.
    let tables = folder.path().join("<&>\u{1}");
    fs::create_dir(&tables).expect("the folder can be written");
    for name in ["DMAR.aml", "MCFG.aml"] {
        let from = fixture("firmware/vtd-a").join(name);
        fs::copy(from, tables.join(name)).expect("the folder can be written");
    }
    let path = folder.path().join("pci.json");
    fs::write(&path, pci.to_string()).expect("the folder can be written");
    let svg = folder.path().join("picture.svg");
    let arguments: [OsString; 7] = [
        "topology".into(),
        "--acpi".into(),
        tables.into(),
        "--pci".into(),
        path.into(),
        "--svg".into(),
        svg.clone().into(),
    ];
    let output = iopt(arguments);
    assert_eq!((output.status, output.stderr.as_str()), (0, ""));
    fs::read_to_string(svg).expect("the picture was written")
}

/// Asserts that a picture is well-formed, that boxes are in it and do not overlap, and returns its texts and
/// boxes.
fn checked(picture: &str) -> (Vec<String>, Vec<[usize; 4]>, Vec<String>) {
    let (tags, texts) = elements(picture).expect("it is XML");
    let svg = tags[0];
    assert!(
        svg.contains("xmlns=\"http://www.w3.org/2000/svg\""),
        "{svg}"
    );
    let (width, height) = (number(svg, "width"), number(svg, "height"));
    assert_eq!(width, 1000);
    assert!(!picture.contains("href") && !picture.contains("url("));
    let rects = tags.iter().filter(|tag| tag.starts_with("rect x="));
    let paint = |tag: &&&str| {
        let (_, paint) = tag.split_once("rx=\"3\" ").expect("boxes are round");
        paint.to_owned()
    };
    let paints: Vec<_> = rects.clone().map(|tag| paint(&tag)).collect();
    let boxes: Vec<_> = rects
        .map(|tag| ["x", "y", "width", "height"].map(|name| number(tag, name)))
        .collect();
    for (place, [x, y, w, h]) in boxes.iter().enumerate() {
        assert!(
            x + w <= width && y + h <= height,
            "box {place} is not in the picture"
        );
        for [ox, oy, ow, oh] in &boxes[..place] {
            let is_apart = x + w <= *ox || ox + ow <= *x || y + h <= *oy || oy + oh <= *y;
            assert!(is_apart, "box {place} is on another one");
        }
    }
    (texts, boxes, paints)
}

#[test]
fn every_function_is_in_the_picture_and_groups_have_one_colour() {
    let pci = fs::read(fixture("firmware/vtd-a/pci.json")).expect("the fixture is there");
    let pci: Value = serde_json::from_slice(&pci).expect("it is JSON");
    let picture = draw(&pci);
    let (texts, boxes, paints) = checked(&picture);
    let devices = pci["devices"].as_array().expect("it is a list");
    assert_eq!(boxes.len(), devices.len());
    let names: Vec<_> = texts
        .iter()
        .filter(|text| text.starts_with("0000:"))
        .collect();
    assert_eq!(names.len(), devices.len());
    let paint = |address: &str| {
        let place = names.iter().position(|name| name.starts_with(address));
        &paints[place.expect("it is there")]
    };
    for device in devices {
        paint(device["bdf"].as_str().expect("it is a text"));
    }
    assert_eq!(paint("0000:00:04.0"), paint("0000:04:03.0"));
    assert_ne!(paint("0000:00:03.0"), paint("0000:00:04.0"));
    assert!(
        texts
            .iter()
            .any(|text| text.starts_with("instance 0: vtd, registers at 0xfed90000"))
    );
}

#[test]
fn a_long_tree_is_wrapped_and_strange_names_are_escaped() {
    let mut devices = Vec::new();
    for port in 0..32 {
        for function in 0..8 {
            let bus = port * 7 + function;
            let is_port = (1..=200).contains(&bus) && function < 7;
            devices.push(value!({
                "bdf": format!("0000:00:{port:02x}.{function}"),
                "type": if is_port { "root-port" } else { "rc-endpoint" },
                "secondary_bus": if is_port { value!([bus, bus]) } else { Value::Null },
            }));
            if is_port {
                devices.push(value!({ "bdf": format!("0000:{bus:02x}:00.0"), "type": "endpoint" }));
            }
        }
    }
    let picture = draw(&value!({ "root_buses": [0], "devices": devices }));
    let (texts, boxes, _) = checked(&picture);
    assert_eq!(boxes.len(), devices.len());
    let columns: BTreeSet<_> = boxes.iter().map(|one| one[0] / 245).collect();
    assert_eq!(columns.len(), 4);
    let title = format!("/<&>: {} devices", devices.len());
    assert!(
        texts.iter().any(|text| text.contains(&title)),
        "{:?}",
        texts[0]
    );
}

#[test]
fn what_is_no_xml_is_found() {
    let fine = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<a b=\"c\"><d/>&lt;</a>\n";
    assert!(elements(fine).is_ok());
    for (part, other) in [
        ("</a>", ""),
        ("&lt;", "&"),
        ("&lt;", "\u{7}"),
        ("<d/>", "<d>"),
        ("c\"", "c"),
    ] {
        assert!(elements(&fine.replace(part, other)).is_err(), "{part}");
    }
}
