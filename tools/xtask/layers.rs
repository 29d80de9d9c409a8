//! Which part may name which: the directions of the architecture.
//!
//! Between packages: `tools, benches, tests -> engine -> pagetable-formats`, read from the
//! manifests. Inside the engine: `ioas, device -> domain -> {radix, invalidation, iova} ->
//! {claim, reclaim, mem} -> sync`, read from paths in the code.

use crate::lints::{Finding, Rule};
use crate::source::{Kind, Source};

/// Folder of the engine's sources.
pub(crate) const ENGINE: &str = "engine/src/";

/// The project's packages and the ones of the project that each may depend on.
const PACKAGES: &[(&str, &[&str])] = &[
    ("iopt-formats", &[]),
    ("iopt-reference", &[]),
    ("iopt", &["iopt-formats"]),
    ("iopt-sim", &["iopt-reference"]),
    (
        "iopt-rig",
        &["iopt-formats", "iopt", "iopt-reference", "iopt-sim"],
    ),
    (
        "iopt-tests",
        &[
            "iopt-formats",
            "iopt",
            "iopt-reference",
            "iopt-sim",
            "iopt-rig",
        ],
    ),
    (
        "iopt-benches",
        &[
            "iopt-formats",
            "iopt",
            "iopt-reference",
            "iopt-sim",
            "iopt-rig",
            "iopt-tests",
        ],
    ),
    (
        "iopt-tools",
        &[
            "iopt-formats",
            "iopt",
            "iopt-reference",
            "iopt-sim",
            "iopt-rig",
            "iopt-tests",
        ],
    ),
    (
        "iopt-fuzz",
        &["iopt-formats", "iopt", "iopt-tests", "iopt-tools"],
    ),
];

/// Packages whose code depends on nothing at all, the project's or foreign; their tests may read
/// files with foreign help.
const ALONE: &[&str] = &["iopt-reference"];

/// The engine's modules by layer; a module may name its own layer and those below.
const LAYERS: &[&[&str]] = &[
    &["sync"],
    &["intervals", "topology"],
    &["firmware", "stripes"],
    &["claim", "mem", "pin", "reclaim"],
    &["invalidation", "iova", "radix"],
    &["domain"],
    &["device", "ioas"],
];

/// Crates that one of the engine's modules names, and no other; by its path, or by the name that several
/// have at the end of theirs.
const HOMES: &[(&str, &[&str])] = &[
    ("crossbeam_epoch", &["sync"]),
    ("crossbeam_utils", &["sync"]),
    ("loom", &["sync"]),
    ("parking_lot", &["sync"]),
    ("rayon", &["parallel"]),
    ("spin", &["sync"]),
];

/// Crates whose module `sync` only the engine's `sync` names.
const STANDARD_CRATES: &[&str] = &["core", "std"];

/// Modules of this name hold the models of the code beside them, and start threads of
/// [`MODEL_CRATE`].
const MODELS: &str = "models";

/// What models are made of.
const MODEL_CRATE: &str = "loom";

/// Checks the dependencies of one `Cargo.toml`.
pub(crate) fn manifest(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut section = "";
    let mut package = "";
    for (line, content) in numbered(text) {
        if let Some(header) = content.strip_prefix('[') {
            section = header.trim_end_matches(']');
        }
        let Some((key, value)) = content.split_once('=') else {
            continue;
        };
        if section == "package" && key.trim() == "name" {
            package = value.trim().trim_matches('"');
        }
        if !section.ends_with("dependencies") || section.starts_with("workspace") {
            continue;
        }
        let dependency = key.trim().split('.').next().unwrap_or_default();
        let Some((_, allowed)) = PACKAGES.iter().find(|(name, _)| *name == package) else {
            findings.push(Finding::new(
                path,
                line,
                Rule::Layers,
                format!("package `{package}` has no layer"),
            ));
            continue;
        };
        let is_ours = PACKAGES.iter().any(|(name, _)| *name == dependency);
        let is_alone = ALONE.contains(&package) && section != "dev-dependencies";
        if is_alone || is_ours && !allowed.contains(&dependency) {
            let text = format!("`{package}` may not depend on `{dependency}`");
            findings.push(Finding::new(path, line, Rule::Layers, text));
        }
    }
    findings
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim()))
}

/// Checks one file of the engine: modules named upwards, and locks named outside `sync`.
pub(crate) fn engine(path: &str, source: &Source<'_>) -> Vec<Finding> {
    let Some(inside) = path.strip_prefix(ENGINE) else {
        return Vec::new();
    };
    let file = module_path(inside);
    let Some(&module) = file.first() else {
        return Vec::new();
    };
    let Some(own) = layer(module) else {
        let text = format!("module `{module}` has no layer");
        return vec![Finding::new(path, 1, Rule::Layers, text)];
    };
    let mut findings = Vec::new();
    for (line, named) in modules_named(&file, source) {
        if layer(named).is_some_and(|other| other > own) {
            let text = format!("`{module}` may not name `{named}`, which lies above it");
            findings.push(Finding::new(path, line, Rule::Layers, text));
        }
    }
    for (line, named, home) in homed_names(source) {
        let is_model = named == MODEL_CRATE && file.contains(&MODELS);
        if !file.starts_with(home) && !file.ends_with(home) && !is_model {
            let text = format!("only `{}` names `{named}`", home.join("::"));
            findings.push(Finding::new(path, line, Rule::Layers, text));
        }
    }
    findings
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// Returns the path of the module that a file of the engine holds; empty for the crate itself.
fn module_path(inside: &str) -> Vec<&str> {
    let mut path: Vec<_> = inside.trim_end_matches(".rs").split('/').collect();
    if matches!(path.last(), Some(&("mod" | "lib"))) {
        path.pop();
    }
    path
}

/// Returns the top-level modules that paths from `crate` or through `super` name, with lines.
fn modules_named<'a>(file: &[&'a str], source: &Source<'a>) -> Vec<(usize, &'a str)> {
    let mut named = Vec::new();
    // Modules written inside the file, with the depth of braces that each begins at.
    let mut inner: Vec<(usize, &str)> = Vec::new();
    let mut depth = 0_usize;
    let mut index = 0;
    while let Some(token) = source.tokens.get(index) {
        match token.kind {
            Kind::Mark('{') => depth += 1,
            Kind::Mark('}') => {
                depth = depth.saturating_sub(1);
                inner.retain(|&(start, _)| start < depth);
            }
            Kind::Word("mod") if source.marks(index + 2, "{") => {
                inner.extend(source.word(index + 1).map(|name| (depth, name)));
            }
            Kind::Word("crate") if source.marks(index + 1, "::") => {
                named.extend(first_segments(source, index + 3));
            }
            Kind::Word("super") => {
                let mut ups = 1;
                while source.marks(index + 1, "::") && source.word(index + 3) == Some("super") {
                    index += 3;
                    ups += 1;
                }
                if ups == file.len() + inner.len() && source.marks(index + 1, "::") {
                    named.extend(first_segments(source, index + 3));
                }
            }
            Kind::Word(_) | Kind::Mark(_) | Kind::Literal => {}
        }
        index += 1;
    }
    named
}

/// Returns the crates and modules of [`HOMES`] and [`STANDARD_CRATES`] that the code names, with
/// lines and the only module that may name them.
fn homed_names<'a>(source: &Source<'a>) -> Vec<(usize, &'a str, &'static [&'static str])> {
    let mut named = Vec::new();
    for (index, token) in source.tokens.iter().enumerate() {
        let Some(word) = source.word(index).filter(|_| source.marks(index + 1, "::")) else {
            continue;
        };
        if let Some((_, home)) = HOMES.iter().find(|(name, _)| *name == word) {
            named.push((token.line, word, *home));
        } else if STANDARD_CRATES.contains(&word) {
            let segments = first_segments(source, index + 3).into_iter();
            let sync = segments.filter(|(_, segment)| *segment == "sync");
            named.extend(sync.map(|(line, segment)| (line, segment, &["sync"][..])));
        }
    }
    named
}

/// Returns the first name, or those of a group in braces, that a path goes on with at `index`.
fn first_segments<'a>(source: &Source<'a>, index: usize) -> Vec<(usize, &'a str)> {
    let named = |index: usize| {
        source
            .word(index)
            .map(|word| (source.tokens[index].line, word))
    };
    if !source.marks(index, "{") {
        return named(index).into_iter().collect();
    }
    let mut segments = Vec::new();
    let mut depth = 0_usize;
    for (at, token) in source.tokens.iter().enumerate().skip(index) {
        match token.kind {
            Kind::Mark('{') => {
                depth += 1;
                if depth == 1 {
                    segments.extend(named(at + 1));
                }
            }
            Kind::Mark('}') => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            Kind::Mark(',') if depth == 1 => segments.extend(named(at + 1)),
            Kind::Word(_) | Kind::Mark(_) | Kind::Literal => {}
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }

    fn in_engine(file: &str, code: &str) -> Vec<String> {
        texts(&engine(&format!("{ENGINE}{file}"), &Source::new(code)))
    }

    #[test]
    fn a_module_may_not_name_a_higher_layer() {
        assert_eq!(
            in_engine(
                "mem/arena.rs",
                "use crate::sync::Lock;\nuse crate::radix::Table;"
            ),
            ["engine/src/mem/arena.rs:2: layers: `mem` may not name `radix`, which lies above it"]
        );
        assert_eq!(
            in_engine(
                "radix/map.rs",
                "use crate::{mem::Arena, claim::{Claim, Registry}};"
            ),
            [""; 0]
        );
        assert_eq!(
            in_engine(
                "claim.rs",
                "use crate::{\n    mem::Arena,\n    ioas::{Area},\n};"
            )
            .len(),
            1
        );
        assert_eq!(
            in_engine("sync/lock.rs", "fn f() { crate::mem::page() }").len(),
            1
        );
    }

    #[test]
    fn paths_through_super_are_resolved() {
        assert_eq!(
            in_engine("mem/arena.rs", "use super::super::radix::Table;").len(),
            1
        );
        assert_eq!(
            in_engine("mem/arena.rs", "use super::radix::Table;"),
            [""; 0]
        );
        assert_eq!(
            in_engine(
                "mem/mod.rs",
                "mod tests { use super::super::radix::Table; }"
            )
            .len(),
            1
        );
        assert_eq!(
            in_engine(
                "mem/mod.rs",
                "mod tests { fn f() {} } use super::radix::Table;"
            )
            .len(),
            1
        );
    }

    #[test]
    fn words_in_comments_and_text_name_nothing() {
        assert_eq!(
            in_engine(
                "mem/arena.rs",
                "// crate::radix\nconst A: &str = \"crate::radix\";"
            ),
            [""; 0]
        );
    }

    #[test]
    fn only_sync_names_locks_and_atomics() {
        for code in [
            "use std::sync::Mutex;",
            "use core::{fmt, sync::atomic};",
            "fn f() { spin::Mutex::new(0) }",
            "use crossbeam_epoch::{self as epoch, Guard};",
            "use crossbeam_utils::CachePadded;",
            "static A: parking_lot::Mutex<u8> = parking_lot::Mutex::new(0);",
            "use loom::thread;",
        ] {
            assert_ne!(in_engine("radix/map.rs", code), [""; 0], "{code}");
            assert_eq!(in_engine("sync/facade.rs", code), [""; 0], "{code}");
        }
        assert_eq!(
            in_engine("radix/map.rs", "use crate::sync::Mutex;"),
            [""; 0]
        );
    }

    #[test]
    fn models_name_what_they_are_made_of_and_no_locks() {
        for file in [
            "claim/models.rs",
            "mem/pool/models.rs",
            "mem/models/pool.rs",
        ] {
            assert_eq!(in_engine(file, "use loom::thread;"), [""; 0], "{file}");
            assert_eq!(in_engine(file, "use std::sync::Mutex;").len(), 1, "{file}");
        }
    }

    #[test]
    fn a_crate_with_one_user_is_named_there_alone() {
        let code = "use rayon::prelude::*;";
        assert_eq!(in_engine("radix/parallel.rs", code), [""; 0]);
        assert_eq!(in_engine("pin/parallel.rs", code), [""; 0]);
        assert_eq!(
            in_engine("radix/map.rs", code),
            ["engine/src/radix/map.rs:1: layers: only `parallel` names `rayon`"]
        );
        assert_eq!(in_engine("sync/thread.rs", code).len(), 1);
    }

    #[test]
    fn a_new_module_needs_a_layer() {
        assert_eq!(in_engine("cellar/mod.rs", "").len(), 1);
        assert_eq!(in_engine("lib.rs", "pub mod radix;"), [""; 0]);
    }

    #[test]
    fn packages_depend_downwards_only() {
        let engine = "[package]\nname = \"iopt\"\n[dependencies]\niopt-formats.workspace = true\nspin = \"1\"\n";
        assert_eq!(texts(&manifest("a", engine)), [""; 0]);
        let upward =
            "[package]\nname = \"iopt\"\n[dev-dependencies]\niopt-tests.workspace = true\n";
        assert_eq!(
            texts(&manifest("a", upward)),
            ["a:4: layers: `iopt` may not depend on `iopt-tests`"]
        );
        let alone = "[package]\nname = \"iopt-reference\"\n[dependencies]\nspin = \"1\"\n";
        assert_eq!(manifest("a", alone).len(), 1);
        let tested = alone.replace("[dep", "[dev-dep");
        assert_eq!(texts(&manifest("a", &tested)), [""; 0]);
        let simulated =
            "[package]\nname = \"iopt-sim\"\n[dependencies]\niopt-formats.workspace = true\n";
        assert_eq!(manifest("a", simulated).len(), 1);
        let unknown = "[package]\nname = \"iopt-cellar\"\n[dependencies]\nspin = \"1\"\n";
        assert_eq!(manifest("a", unknown).len(), 1);
    }

    #[test]
    fn shared_dependencies_of_the_workspace_are_no_dependencies() {
        assert_eq!(
            texts(&manifest(
                "a",
                "[workspace.dependencies]\niopt = { path = \"engine\" }\n"
            )),
            [""; 0]
        );
    }
}
