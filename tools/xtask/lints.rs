//! The project's own lints: what rustc and clippy cannot know.

use std::fmt;
use std::path::Path;

use crate::layers;
use crate::source::{Comment, Kind, Source};

/// A `.rs` file may not be longer, in lines.
const LENGTH_LIMIT: usize = 650;
/// A `.rs` file should not be longer, in lines.
const LENGTH_WARNING: usize = 600;
/// First folders of paths that exist on somebody's machine only.
const MACHINE_FOLDERS: &[&str] = &["home", "private", "root", "tmp", "Users", "work"];
/// Text that points outside the repository or at somebody's package registry; each is written in
/// two parts so that this file passes.
const FOREIGN: &[(&str, &str)] = &[
    ("../", "shared"),
    ("registry+", "http"),
    ("sparse+", "http"),
    ("index.", "crates.io"),
    ("static.", "crates.io"),
    ("[source", "."),
    ("replace-", "with"),
];
/// The default source of packages, as lock files name it.
const DEFAULT_SOURCE: &str = concat!("registry+", "https://github.com/rust-lang/crates.io-index");
/// Lines of code that may stand between an unsafe operation and its proof: a statement or a chain
/// of attributes broken over lines.
const PROOF_DISTANCE: usize = 4;

/// A rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Rule {
    /// Nothing names what lies above it.
    Layers,
    /// A file is one noun, seldom long.
    Length,
    /// The project speaks of itself alone.
    Foreign,
    /// A module opts in to unsafe code, with a reason.
    UnsafeModule,
    /// Every unsafe block and implementation has its proof.
    Safety,
    /// Text is ASCII.
    Ascii,
}

impl Rule {
    const fn name(self) -> &'static str {
        match self {
            Self::Layers => "layers",
            Self::Length => "length",
            Self::Foreign => "foreign",
            Self::UnsafeModule => "unsafe-module",
            Self::Safety => "safety",
            Self::Ascii => "ascii",
        }
    }
}

/// One place that breaks a rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    rule: Rule,
    text: String,
    is_warning: bool,
}

impl Finding {
    /// Creates a finding that fails the check.
    pub(crate) fn new(path: &str, line: usize, rule: Rule, text: String) -> Self {
        Self {
            path: path.to_owned(),
            line,
            rule,
            text,
            is_warning: false,
        }
    }

    /// Returns whether the check passes in spite of it.
    pub(crate) fn is_warning(&self) -> bool {
        self.is_warning
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let warning = if self.is_warning { "warning: " } else { "" };
        write!(
            f,
            "{}:{}: {}: {warning}{}",
            self.path,
            self.line,
            self.rule.name(),
            self.text
        )
    }
}

/// Checks one text file; `path` is relative to the workspace, with forward slashes.
pub(crate) fn check(path: &str, text: &str) -> Vec<Finding> {
    if path.ends_with("Cargo.lock") {
        return sources(path, text);
    }
    let mut findings = foreign(path, text);
    findings.extend(ascii(path, text));
    if path.ends_with("Cargo.toml") {
        findings.extend(layers::manifest(path, text));
    }
    if Path::new(path).extension().is_some_and(|end| end == "rs") {
        let source = Source::new(text);
        findings.extend(length(path, text));
        findings.extend(layers::engine(path, &source));
        findings.extend(unsafe_module(path, &source));
        findings.extend(safety(path, text, &source));
    }
    findings
}

/// Every package comes from the default source.
fn sources(path: &str, text: &str) -> Vec<Finding> {
    let is_foreign = |line: &str| line.starts_with("source = ") && !line.contains(DEFAULT_SOURCE);
    lines_where(
        path,
        text,
        is_foreign,
        Rule::Foreign,
        "package from another source than the default",
    )
}

fn ascii(path: &str, text: &str) -> Vec<Finding> {
    lines_where(
        path,
        text,
        |line| !line.is_ascii(),
        Rule::Ascii,
        "text is not ASCII",
    )
}

fn foreign(path: &str, text: &str) -> Vec<Finding> {
    let is_foreign = |line: &str| {
        names_machine_path(line)
            || FOREIGN
                .iter()
                .any(|(head, tail)| line.split(head).skip(1).any(|rest| rest.starts_with(tail)))
    };
    lines_where(
        path,
        text,
        is_foreign,
        Rule::Foreign,
        "names a path or host outside the project",
    )
}

fn lines_where(
    path: &str,
    text: &str,
    breaks: impl Fn(&str) -> bool,
    rule: Rule,
    message: &str,
) -> Vec<Finding> {
    let numbered = text.lines().enumerate();
    numbered
        .filter(|(_, line)| breaks(line))
        .map(|(index, _)| Finding::new(path, index + 1, rule, message.to_owned()))
        .collect()
}

/// Returns whether `line` has an absolute path below one of [`MACHINE_FOLDERS`].
fn names_machine_path(line: &str) -> bool {
    let continues = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    line.match_indices('/').any(|(at, _)| {
        let is_absolute = !line[..at]
            .ends_with(|c: char| continues(c) || matches!(c, '/' | '}' | ')' | '>' | '*'));
        let folder = line[at + 1..]
            .split(|c: char| !continues(c))
            .next()
            .unwrap_or_default();
        is_absolute && MACHINE_FOLDERS.contains(&folder)
    })
}

fn length(path: &str, text: &str) -> Option<Finding> {
    let count = text.lines().count();
    let finding = Finding::new(
        path,
        count,
        Rule::Length,
        format!("{count} lines; divide it by nouns"),
    );
    (count > LENGTH_WARNING).then_some(Finding {
        is_warning: count <= LENGTH_LIMIT,
        ..finding
    })
}

/// Returns the tokens that begin unsafe code, by line, and whether a proof must stand above: for
/// blocks and implementations, but not for declarations, which state a contract.
fn unsafe_sites(source: &Source<'_>) -> Vec<(usize, bool)> {
    let sites = source
        .tokens
        .iter()
        .enumerate()
        .filter_map(|(index, token)| {
            let needs_proof =
                source.marks(index + 1, "{") || source.word(index + 1) == Some("impl");
            // A pointer type to an unsafe function contains no unsafe code.
            let is_type = source.word(index + 1) == Some("fn") && source.marks(index + 2, "(")
                || source.word(index + 1) == Some("extern") && source.word(index + 2) == Some("fn");
            let is_site =
                token.kind == Kind::Word("unsafe") && !is_type && !source.marks(index + 1, "(");
            is_site.then_some((token.line, needs_proof))
        });
    sites.collect()
}

fn unsafe_module(path: &str, source: &Source<'_>) -> Option<Finding> {
    let &(line, _) = unsafe_sites(source).first()?;
    let opts_in = (0..source.tokens.len()).any(|index| {
        source.word(index) == Some("unsafe_code")
            && matches!(source.word(index.wrapping_sub(2)), Some("expect" | "allow"))
            && source.marks(index + 1, ",")
            && source.word(index + 2) == Some("reason")
    });
    let text = "unsafe code without `expect(unsafe_code, reason = \"..\")` in its file";
    (!opts_in).then(|| Finding::new(path, line, Rule::UnsafeModule, text.to_owned()))
}

fn safety(path: &str, text: &str, source: &Source<'_>) -> Vec<Finding> {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let sites = unsafe_sites(source)
        .into_iter()
        .filter(|&(_, needs_proof)| needs_proof);
    sites
        .filter(|&(line, _)| !has_proof(line, &lines, &source.comments))
        .map(|(line, _)| {
            Finding::new(
                path,
                line,
                Rule::Safety,
                "no SAFETY comment above".to_owned(),
            )
        })
        .collect()
}

/// Returns whether the nearest comment at or above `line`, a few lines of code away at most,
/// holds a proof.
fn has_proof(line: usize, lines: &[&str], comments: &[Comment<'_>]) -> bool {
    let is_proof = |comment: &Comment<'_>| comment.text.contains("SAFETY:");
    if comments
        .iter()
        .any(|comment| comment.line == line && is_proof(comment))
    {
        return true;
    }
    let is_comment = |line: usize| {
        lines
            .get(line - 1)
            .is_some_and(|text| text.starts_with("//"))
    };
    let nearest = line.saturating_sub(PROOF_DISTANCE).max(1);
    let Some(last) = (nearest..line).rev().find(|&above| is_comment(above)) else {
        return false;
    };
    let block = (1..=last).rev().take_while(|&above| is_comment(above));
    block
        .into_iter()
        .any(|above| lines[above - 1].contains("SAFETY:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<(usize, Rule)> {
        check(path, text)
            .iter()
            .map(|finding| (finding.line, finding.rule))
            .collect()
    }

    #[test]
    fn machine_paths_are_found() {
        for folder in MACHINE_FOLDERS {
            for line in [
                format!("see /{folder}/x"),
                format!("\"/{folder}\""),
                format!("(/{folder}/a.b)"),
            ] {
                assert_eq!(rules("a.md", &line), [(1, Rule::Foreign)], "{line}");
            }
            for line in [
                format!("a/{folder}/x"),
                format!("/{folder}s"),
                format!("https://{folder}.org"),
            ] {
                assert_eq!(rules("a.md", &line), [], "{line}");
            }
        }
    }

    #[test]
    fn foreign_hosts_and_folders_are_found() {
        for (head, tail) in FOREIGN {
            assert_eq!(
                rules("a.toml", &format!("x\n{head}{tail}")),
                [(2, Rule::Foreign)],
                "{head}{tail}"
            );
        }
        assert_eq!(rules("a.toml", "https://github.com/rust-lang"), []);
    }

    #[test]
    fn packages_come_from_the_default_source() {
        let usual = format!("[[package]]\nsource = \"{DEFAULT_SOURCE}\"\n");
        assert_eq!(rules("Cargo.lock", &usual), []);
        assert_eq!(
            rules("Cargo.lock", "source = \"git+https://a.b/c\"\n"),
            [(1, Rule::Foreign)]
        );
    }

    #[test]
    fn text_is_ascii() {
        assert_eq!(rules("a.rs", "// a\n// \u{e9}\n"), [(2, Rule::Ascii)]);
    }

    #[test]
    fn long_files_warn_and_longer_ones_fail() {
        let lines = |count: usize| "//\n".repeat(count);
        assert_eq!(check("a.rs", &lines(LENGTH_WARNING)), []);
        assert!(
            check("a.rs", &lines(LENGTH_WARNING + 1))
                .iter()
                .all(Finding::is_warning)
        );
        assert_eq!(rules("a.rs", &lines(LENGTH_LIMIT)).len(), 1);
        assert!(!check("a.rs", &lines(LENGTH_LIMIT + 1))[0].is_warning());
        assert_eq!(check("a.md", &lines(LENGTH_LIMIT + 1)), []);
    }

    #[test]
    fn unsafe_code_opts_in_with_a_reason() {
        let code = "// SAFETY: none needed.\nunsafe impl Send for A {}\n";
        assert_eq!(rules("a.rs", code), [(2, Rule::UnsafeModule)]);
        let silent = format!("#![expect(unsafe_code)]\n{code}");
        assert_eq!(rules("a.rs", &silent), [(3, Rule::UnsafeModule)]);
        let spoken = format!("#![expect(unsafe_code, reason = \"a\")]\n{code}");
        assert_eq!(rules("a.rs", &spoken), []);
        // Spelt apart, so that a search for blocks in this repository does not find the sample.
        let open = ["un", "safe {"].concat();
        let quoted = format!("// {open}\nconst A: &str = \"{open}\";");
        assert_eq!(rules("a.rs", &quoted), []);
        assert_eq!(rules("a.rs", "struct A(unsafe fn(u8));"), []);
    }

    #[test]
    fn every_unsafe_block_has_its_proof() {
        let head = "#![expect(unsafe_code, reason = \"a\")]\n";
        let (block, function) = (
            ["un", "safe { g() }"].concat(),
            ["un", "safe fn f() {}"].concat(),
        );
        let missing = format!("{head}fn f() {{\n    {block}\n}}\n");
        assert_eq!(rules("a.rs", &missing), [(3, Rule::Safety)]);
        let other = format!("{head}// Not a proof.\nlet a = {block};\n");
        assert_eq!(rules("a.rs", &other), [(3, Rule::Safety)]);
        let proven = format!("{head}// SAFETY: long\n// proof.\nlet a =\n    {block};\n");
        assert_eq!(rules("a.rs", &proven), []);
        let declared = format!("{head}{function}\n");
        assert_eq!(rules("a.rs", &declared), []);
    }

    #[test]
    fn a_finding_is_one_line_with_its_place() {
        let finding = Finding::new("a/b.rs", 7, Rule::Ascii, "text".to_owned());
        assert_eq!(finding.to_string(), "a/b.rs:7: ascii: text");
    }
}
