//! `iopt explain`: one word, bit by bit.

use std::fmt::Write as _;

use clap::Args;
use iopt_formats::catalog::{self, FormatName, Options, Visitor};
use iopt_formats::{Entry, Field, Format, Level, PageSize, Reserved, Rights};
use serde::Serialize;

use crate::cli::{FormatOptions, Outcome, number};
use crate::failure::Failure;
use crate::output::{self, Align, Hex, Table};

/// Explain one word of a table: its bits by name and what it means
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    iopt explain --format arm-s1-4k --level 0 0x4458bf47\n  \
    iopt explain --format vtd-ss --level 1 0x123400083\n  \
    iopt explain --format riscv-sv39 --svnapot --level 0 0x8000000048d160d7 --json")]
pub(crate) struct ExplainArgs {
    /// The format; `iopt formats` lists them
    #[arg(long)]
    format: FormatName,
    /// Level of the table that holds the word; 0 holds the smallest pages
    #[arg(long)]
    level: u8,
    /// The word, decimal or with 0x
    #[arg(value_parser = number)]
    word: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: FormatOptions,
}

impl ExplainArgs {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<Outcome, Failure> {
        let options = self.options.options();
        let explanation = explain(self.format, &options, self.level, self.word)?;
        if self.json {
            output::print_json(&explanation)?;
        } else {
            output::print(&explanation.text())?;
        }
        Ok(Outcome::Fine)
    }
}

#[derive(Debug, Serialize)]
struct Explanation {
    schema: u32,
    command: &'static str,
    format: &'static str,
    level: u8,
    arch_level: i8,
    item_size: u64,
    word: Hex,
    fields: Vec<NamedBits>,
    /// Bits that are set and belong to no field.
    unnamed: Hex,
    meaning: String,
    is_reserved: bool,
}

/// A field of a word and its value there.
#[derive(Debug, Serialize)]
pub(crate) struct NamedBits {
    name: &'static str,
    hi: u8,
    lo: u8,
    value: Hex,
}

impl NamedBits {
    /// Returns every field of `word`, highest bits first, and the set bits that have no name.
    pub(crate) fn of(fields: &[Field], word: u64) -> (Vec<Self>, u64) {
        let named = fields.iter().fold(0, |mask, field| mask | field.mask());
        let mut bits: Vec<_> = fields
            .iter()
            .map(|field| Self {
                name: field.name,
                hi: field.hi,
                lo: field.lo,
                value: Hex(field.get(word)),
            })
            .collect();
        bits.sort_by_key(|bits| std::cmp::Reverse(bits.hi));
        (bits, word & !named)
    }

    /// Returns the positions the way manuals write them.
    pub(crate) fn position(&self) -> String {
        if self.hi == self.lo {
            self.hi.to_string()
        } else {
            format!("{}:{}", self.hi, self.lo)
        }
    }

    /// Returns whether no bit of the field is set.
    pub(crate) fn is_zero(&self) -> bool {
        self.value.0 == 0
    }

    /// Returns `name=value`.
    pub(crate) fn assignment(&self) -> String {
        format!("{}={:#x}", self.name, self.value.0)
    }
}

/// Says in words what an item means.
pub(crate) fn meaning(entry: &Result<Entry, Reserved>) -> String {
    match entry {
        Err(Reserved { reason, .. }) => format!("reserved: {reason}"),
        Ok(Entry::Empty) => "empty: translates nothing".into(),
        Ok(Entry::Table(table)) => {
            let mut text = format!("table of level {} at {}", table.level, table.oa);
            if table.limit != Rights::ALL {
                let _ = write!(text, ", which grants at most {}", table.limit);
            }
            text
        }
        Ok(Entry::Leaf(leaf)) => {
            let mut text = format!("leaf of {} to {}, {}", leaf.size, leaf.oa, leaf.prot);
            if leaf.span != leaf.size {
                let _ = write!(text, ", one of {}", leaf.size.bytes() / leaf.span.bytes());
            }
            text.push_str(if leaf.accessed {
                ", accessed"
            } else {
                ", not accessed"
            });
            text.push_str(if leaf.dirty { ", dirty" } else { "" });
            text
        }
    }
}

fn explain(
    name: FormatName,
    options: &Options,
    level: u8,
    word: u64,
) -> Result<Explanation, Failure> {
    catalog::with_format(name, options, Explain { name, level, word }).map_err(|error| {
        Failure::Config {
            format: name,
            error,
        }
    })?
}

struct Explain {
    name: FormatName,
    level: u8,
    word: u64,
}

impl Visitor for Explain {
    type Output = Result<Explanation, Failure>;

    fn visit<F: Format>(self, format: F) -> Self::Output {
        let max = format.geometry().max_top;
        if self.level > max.0 {
            return Err(Failure::Level {
                format: self.name,
                level: self.level,
                max: max.0,
            });
        }
        let level = Level(self.level);
        let entry = format.decode(self.word, level);
        let (fields, unnamed) = NamedBits::of(format.fields(self.word, level), self.word);
        Ok(Explanation {
            schema: 1,
            command: "explain",
            format: self.name.as_str(),
            level: self.level,
            arch_level: format.arch_level(level),
            item_size: PageSize::from_lg2(F::item_lg2(level)).bytes(),
            word: Hex(self.word),
            fields,
            unnamed: Hex(unnamed),
            meaning: meaning(&entry),
            is_reserved: entry.is_err(),
        })
    }
}

impl Explanation {
    fn text(&self) -> String {
        let item = PageSize::from_lg2(self.item_size.trailing_zeros() as u8);
        let mut text = format!(
            "{} level {} (level {} of the architecture), where an item spans {item}\n{:#018x}\n\n",
            self.format, self.level, self.arch_level, self.word.0,
        );
        let mut table = Table::new([
            ("bits", Align::Right),
            ("field", Align::Left),
            ("value", Align::Right),
        ]);
        for bits in &self.fields {
            table.row([
                bits.position(),
                bits.name.into(),
                format!("{:#x}", bits.value.0),
            ]);
        }
        let _ = write!(text, "{table}");
        if self.unnamed.0 != 0 {
            let _ = writeln!(text, "\nset without a name: {:#x}", self.unnamed.0);
        }
        let _ = writeln!(text, "\n{}", self.meaning);
        text
    }
}
