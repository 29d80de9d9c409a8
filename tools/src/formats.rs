//! `iopt formats`: what can be named after `--format`.

use clap::Args;
use iopt_formats::catalog::{self, FormatName, Options, Visitor};
use iopt_formats::{Format, PageSize, PageSizes, Window};
use serde::Serialize;

use crate::cli::Outcome;
use crate::failure::Failure;
use crate::output::{self, Align, Table};

/// List the formats with their default geometry and page sizes
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    iopt formats \n  \
    iopt formats --json")]
pub(crate) struct FormatsArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Listing {
    schema: u32,
    command: &'static str,
    formats: Vec<Description>,
}

#[derive(Debug, Serialize)]
struct Description {
    name: &'static str,
    va_bits: u8,
    window: &'static str,
    oa_bits: u8,
    levels: u8,
    max_levels: u8,
    page_sizes: Vec<u64>,
    #[serde(skip)]
    sizes_text: String,
}

impl FormatsArgs {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<Outcome, Failure> {
        let formats = FormatName::ALL.iter().map(|&name| describe(name));
        let formats = formats.collect::<Result<_, _>>()?;
        let listing = Listing {
            schema: 1,
            command: "formats",
            formats,
        };
        if self.json {
            output::print_json(&listing)?;
        } else {
            output::print(&listing.text())?;
        }
        Ok(Outcome::Fine)
    }
}

fn describe(name: FormatName) -> Result<Description, Failure> {
    catalog::with_format(name, &Options::default(), Describe { name }).map_err(|error| {
        Failure::Config {
            format: name,
            error,
        }
    })
}

struct Describe {
    name: FormatName,
}

impl Visitor for Describe {
    type Output = Description;

    fn visit<F: Format>(self, format: F) -> Description {
        let geometry = format.geometry();
        Description {
            name: self.name.as_str(),
            va_bits: geometry.va_bits,
            window: match geometry.window {
                Window::Lower => "lower",
                Window::Upper => "upper",
                Window::SignExtended => "sign-extended",
            },
            oa_bits: format.oa_bits(),
            levels: geometry.top.0 + 1,
            max_levels: geometry.max_top.0 + 1,
            page_sizes: format.sizes().iter().map(PageSize::bytes).collect(),
            sizes_text: in_ranges(format.sizes()),
        }
    }
}

/// Writes sizes, three or more that double each time as the first and the last of them.
fn in_ranges(sizes: PageSizes) -> String {
    let mut texts = Vec::new();
    let mut rest: Vec<_> = sizes.iter().collect();
    rest.reverse();
    while let Some(first) = rest.pop() {
        let mut last = first;
        let mut count = 1;
        while let Some(next) = rest.pop_if(|next| next.lg2() == last.lg2() + 1) {
            last = next;
            count += 1;
        }
        texts.push(match count {
            1 => first.to_string(),
            2 => format!("{first}, {last}"),
            _ => format!("{first} to {last}"),
        });
    }
    texts.join(", ")
}

impl Listing {
    fn text(&self) -> String {
        let mut table = Table::new([
            ("format", Align::Left),
            ("IOVA bits", Align::Right),
            ("window", Align::Left),
            ("OA bits", Align::Right),
            ("levels", Align::Right),
            ("page sizes", Align::Left),
        ]);
        for format in &self.formats {
            let levels = match (format.levels, format.max_levels) {
                (levels, max) if levels == max => levels.to_string(),
                (levels, max) => format!("{levels} to {max}"),
            };
            table.row([
                format.name.into(),
                format.va_bits.to_string(),
                format.window.into(),
                format.oa_bits.to_string(),
                levels,
                format.sizes_text.clone(),
            ]);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubling_sizes_are_written_as_a_range() {
        assert_eq!(
            in_ranges(PageSizes::from_bits(0x4020_1000)),
            "4 KiB, 2 MiB, 1 GiB"
        );
        assert_eq!(in_ranges(PageSizes::from_bits(0x7000)), "4 KiB to 16 KiB");
        assert_eq!(in_ranges(PageSizes::from_bits(0x3000)), "4 KiB, 8 KiB");
        assert_eq!(in_ranges(PageSizes::EMPTY), "");
    }
}
