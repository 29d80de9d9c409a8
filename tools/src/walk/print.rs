//! One walk, level by level, for people and for programs.

use std::fmt::Write as _;

use iopt_formats::catalog::FormatName;
use iopt_formats::walk::{self, Fault, Root, Step};
use iopt_formats::{Format, Iova, Oa, PageSize};
use serde::Serialize;

use crate::explain::{NamedBits, meaning};
use crate::output::Hex;
use crate::walk::subject::Words;

/// One item on the way.
#[derive(Debug, Serialize)]
struct StepReport {
    level: u8,
    arch_level: i8,
    table: Hex,
    index: usize,
    word: Hex,
    fields: Vec<NamedBits>,
    unnamed: Hex,
    meaning: String,
}

/// Where a walk led to.
#[derive(Debug, Serialize)]
struct Arrival {
    oa: Hex,
    page_size: u64,
    rights: String,
    memory: String,
}

/// A whole walk.
#[derive(Debug, Serialize)]
pub(crate) struct WalkReport {
    format: &'static str,
    root: Hex,
    root_level: u8,
    iova: Hex,
    steps: Vec<StepReport>,
    translation: Option<Arrival>,
    fault: Option<String>,
    /// What the reference walker says instead, if it disagrees.
    disagreement: Option<String>,
    /// Where the walk wanted to read and no memory was.
    #[serde(skip)]
    missing: Option<Oa>,
}

impl StepReport {
    fn new<F: Format>(format: &F, step: &Step) -> Self {
        let (fields, unnamed) = NamedBits::of(format.fields(step.word, step.level), step.word);
        Self {
            level: step.level.0,
            arch_level: format.arch_level(step.level),
            table: Hex(step.table.get()),
            index: step.index,
            word: Hex(step.word),
            fields,
            unnamed: Hex(unnamed),
            meaning: meaning(&step.entry),
        }
    }
}

impl WalkReport {
    /// Walks one address.
    pub(crate) fn new<F: Format>(
        name: FormatName,
        format: &F,
        root: Root,
        iova: Iova,
        words: Words<'_>,
    ) -> Self {
        let mut steps = Vec::new();
        let result = walk::walk(format, root, iova, words, |step| {
            steps.push(StepReport::new(format, step));
        });
        let missing = match result {
            Err(Fault::Unreadable { address }) => Some(address),
            _ => None,
        };
        Self {
            format: name.as_str(),
            root: Hex(root.oa.get()),
            root_level: root.level.0,
            iova: Hex(iova.get()),
            steps,
            translation: result.ok().map(|walked| Arrival {
                oa: Hex(walked.oa.get()),
                page_size: walked.leaf.size.bytes(),
                rights: walked.prot.rights().to_string(),
                memory: format!("{:?}", walked.prot.memory()),
            }),
            fault: result.err().map(|fault| fault.to_string()),
            disagreement: None,
            missing,
        }
    }

    /// Notes what the reference walker says if it says something else.
    pub(crate) fn judge(&mut self, judge: &iopt_reference::Table, words: Words<'_>) {
        let memory = |address| words(Oa::new(address));
        self.disagreement = match (&self.translation, judge.walk(&memory, self.iova.0)) {
            (Some(arrival), Ok(found)) if arrival.oa.0 == found.oa => None,
            (None, Err(_)) => None,
            (_, Ok(found)) => Some(format!("translates to {:#x}", found.oa)),
            (Some(_), Err(fault)) => Some(fault.to_string()),
        };
    }

    /// Returns where the walk wanted to read and no memory was.
    pub(crate) fn missing(&self) -> Option<Oa> {
        self.missing
    }

    /// Returns whether the reference walker says the same.
    pub(crate) fn is_agreed(&self) -> bool {
        self.disagreement.is_none()
    }

    /// Returns the walk as text.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "iova {:#x} in the {} table at {:#x}\n\n",
            self.iova.0, self.format, self.root.0
        );
        for step in &self.steps {
            let _ = writeln!(
                text,
                "level {} ({})  table {:#x}  item {}  {:#018x}\n  {}",
                step.level, step.arch_level, step.table.0, step.index, step.word.0, step.meaning,
            );
            let mut bits: Vec<_> = step.fields.iter().map(NamedBits::assignment).collect();
            if step.unnamed.0 != 0 {
                bits.push(format!("unnamed={:#x}", step.unnamed.0));
            }
            text.push_str(&wrapped(&bits));
        }
        let _ = match (&self.translation, &self.fault) {
            (
                Some(Arrival {
                    oa,
                    page_size,
                    rights,
                    memory,
                }),
                _,
            ) => {
                let lg2 = page_size.trailing_zeros() as u8;
                let size = PageSize::from_lg2(lg2);
                writeln!(
                    text,
                    "\n{:#x}  {rights}  {memory}  in a page of {size}",
                    oa.0
                )
            }
            (None, Some(fault)) => writeln!(text, "\nfault: {fault}"),
            (None, None) => Ok(()),
        };
        if let Some(disagreement) = &self.disagreement {
            let _ = writeln!(text, "mismatch: the reference walker says: {disagreement}");
        }
        text
    }
}

/// Joins words into indented lines that fit a terminal.
fn wrapped(words: &[String]) -> String {
    const WIDTH: usize = 96;
    let mut text = String::new();
    let mut line = String::from(" ");
    for word in words {
        if line.len() + word.len() >= WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = String::from(" ");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
    text
}
