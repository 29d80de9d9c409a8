//! How close to the bare loop is a map of 12 TiB?
//!
//! ```text
//! cargo bench -p iopt-benches --bench large -- [--format vtd-ss] [--rounds 3] [--cpu 1] [--gate]
//! ```
//!
//! The memory of a large guest, mapped at once with 2 MiB and with 1 GiB leaves, beside the loop
//! that checks and stores as many items of as many pages (`iopt_benches::large`). The promise is
//! about the map of 2 MiB leaves, 1.3 times the loop at most; `--gate` exits with 1 if it is not
//! kept.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use iopt_benches::command::{self, Args};
use iopt_benches::large::{Leaves, MAX_RATIO, measure};
use iopt_benches::paired::Comparison;
use iopt_benches::verdict::Verdict;
use iopt_benches::{cpu, formats};
use iopt_formats::Format;
use iopt_formats::catalog::{FormatName, Visitor};

fn main() -> ExitCode {
    command::main("large", parse, run)
}

/// What the command line asks for.
struct Options {
    formats: Vec<FormatName>,
    round_count: usize,
    cpu: Option<usize>,
    is_gate: bool,
}

fn parse(args: &mut Args<env::Args>) -> Result<Options, String> {
    let mut options = Options {
        formats: formats::NAMES.to_vec(),
        round_count: 3,
        cpu: None,
        is_gate: false,
    };
    while let Some(option) = args.option() {
        match option.as_str() {
            "--bench" => {}
            "--format" => options.formats = args.formats()?,
            "--rounds" => options.round_count = args.number::<usize>()?.max(1),
            "--cpu" => options.cpu = Some(args.number()?),
            "--gate" => options.is_gate = true,
            _ => return args.unknown(),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> io::Result<ExitCode> {
    let cpu = cpu::pin(options.cpu)?;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}, cpu {cpu}, median of {} rounds; microseconds for 12 TiB",
        cpu::name(),
        options.round_count
    )?;
    writeln!(
        out,
        "{:10} {:6} {:6} {:>10} {:>10} {:>6} {:>6}",
        "table", "leaves", "", "measured", "the loop", "ratio", "of min"
    )?;
    let mut not_met_count = 0;
    for &name in &options.formats {
        let measure = MeasureFormat {
            name,
            round_count: options.round_count,
            out: &mut out,
        };
        not_met_count += formats::visit(name, measure).expect("only measured formats are taken")?;
    }
    Ok(command::exit_code(options.is_gate, not_met_count))
}

/// Measures one format and returns how many promises it does not keep.
struct MeasureFormat<'a> {
    name: FormatName,
    round_count: usize,
    out: &'a mut dyn Write,
}

impl Visitor for MeasureFormat<'_> {
    type Output = io::Result<usize>;

    fn visit<F: Format>(self, format: F) -> io::Result<usize> {
        let Self {
            name,
            round_count,
            out,
        } = self;
        let mut not_met_count = 0;
        for leaves in Leaves::ALL {
            let rounds: Vec<_> = (0..round_count).map(|_| measure(format, leaves)).collect();
            let maps: Vec<_> = rounds.iter().map(|round| round.map).collect();
            let unmaps: Vec<_> = rounds.iter().map(|round| round.unmap).collect();
            let map = Comparison::median(&maps);
            let verdict = (leaves == Leaves::Mib2).then(|| {
                if map.is_noisy {
                    Verdict::TooNoisy
                } else {
                    Verdict::at_most(map.ratio, MAX_RATIO)
                }
            });
            not_met_count += usize::from(verdict == Some(Verdict::NotMet));
            print(out, name, leaves, "map", map, verdict)?;
            print(
                out,
                name,
                leaves,
                "unmap",
                Comparison::median(&unmaps),
                None,
            )?;
        }
        Ok(not_met_count)
    }
}

fn print(
    out: &mut dyn Write,
    format: FormatName,
    leaves: Leaves,
    what: &str,
    comparison: Comparison,
    verdict: Option<Verdict>,
) -> io::Result<()> {
    writeln!(
        out,
        "{:10} {:6} {what:6} {:10.1} {:10.1} {:6.2} {:6.2} {}",
        format.as_str(),
        leaves.as_str(),
        comparison.subject_ns / 1000.0,
        comparison.yardstick_ns / 1000.0,
        comparison.ratio,
        comparison.min_ratio,
        verdict.map_or("", Verdict::as_str)
    )
}
