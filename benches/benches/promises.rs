//! Are the promises kept?
//!
//! ```text
//! cargo bench -p iopt-benches --bench promises -- [--rows P1,P3] [--format arm-s1-4k,vtd-ss]
//!     [--rounds 3] [--cpu 1] [--margin 1.25] [--json | --yardsticks]
//! ```
//!
//! Each row compares the engine with yardsticks in one process on one core (see
//! `iopt_benches::paired`). The first yardstick of a row decides whether the promise is kept; a `~`
//! marks those that only cross-check it. With `--margin` the exit status is 1 if a deciding ratio
//! passes its bar times the margin. `--yardsticks` shows the yardsticks alone.
//!
//! Ratios move with the place that the linker gives to a loop. Before a number is quoted, build
//! several times with another layout and take the worst:
//!
//! ```text
//! CARGO_PROFILE_BENCH_CODEGEN_UNITS=16 cargo bench -p iopt-benches --bench promises
//! RUSTFLAGS=-Cllvm-args=-align-all-functions=6 cargo bench -p iopt-benches --bench promises
//! ```

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use iopt_benches::command::{self, Args};
use iopt_benches::paired::{Comparison, quantile};
use iopt_benches::promises::{MAX_REGION_RATIO, Measured, ROWS, Row, measure, region_ratio};
use iopt_benches::verdict::Verdict;
use iopt_benches::workload::WorkloadName;
use iopt_benches::{cpu, formats, promises};
use iopt_formats::Format;
use iopt_formats::catalog::{FormatName, Visitor};

fn main() -> ExitCode {
    command::main("promises", Options::parse, run)
}

/// What the command line asks for.
struct Options {
    rows: Option<Vec<String>>,
    formats: Vec<FormatName>,
    round_count: usize,
    cpu: Option<usize>,
    margin: Option<f64>,
    output: Output,
}

enum Output {
    Table,
    Json,
    Yardsticks,
}

impl Options {
    fn parse(args: &mut Args<env::Args>) -> Result<Self, String> {
        let mut options = Self {
            rows: None,
            formats: formats::NAMES.to_vec(),
            round_count: 3,
            cpu: None,
            margin: None,
            output: Output::Table,
        };
        while let Some(option) = args.option() {
            match option.as_str() {
                "--bench" => {}
                "--rows" => options.rows = Some(known_rows(args.list()?)?),
                "--format" => options.formats = args.formats()?,
                "--rounds" => options.round_count = args.number::<usize>()?.max(1),
                "--cpu" => options.cpu = Some(args.number()?),
                "--margin" => options.margin = Some(args.number()?),
                "--json" => options.output = Output::Json,
                "--yardsticks" => options.output = Output::Yardsticks,
                _ => return args.unknown(),
            }
        }
        Ok(options)
    }

    fn wants(&self, row: &Row) -> bool {
        self.rows
            .as_ref()
            .is_none_or(|rows| rows.iter().any(|id| id == row.id))
    }
}

fn known_rows(ids: Vec<String>) -> Result<Vec<String>, String> {
    let is_known = |id: &String| ROWS.iter().any(|row| row.id == id);
    match ids.iter().find(|&id| !is_known(id)) {
        Some(id) => Err(format!("no row {id}")),
        None => Ok(ids),
    }
}

fn run(options: &Options) -> io::Result<ExitCode> {
    let cpu = cpu::pin(options.cpu)?;
    let mut out = io::stdout().lock();
    if matches!(options.output, Output::Yardsticks) {
        writeln!(
            out,
            "{}, cpu {cpu}; nanoseconds, and of crates map, lookup, unmap",
            cpu::name()
        )?;
        for (name, times) in promises::yardsticks() {
            write!(out, "{name:22} {:8.3}", times.map)?;
            if name.is_peer() {
                write!(out, " {:8.3} {:8.3}", times.translate, times.unmap)?;
            }
            writeln!(out)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut report = Report::new(&mut out, options, cpu)?;
    for &format in &options.formats {
        formats::visit(
            format,
            MeasureFormat {
                format,
                options,
                report: &mut report,
            },
        )
        .expect("only measured formats are accepted")?;
    }
    report.end()
}

/// Measures all rows for one format.
struct MeasureFormat<'a, 'o> {
    format: FormatName,
    options: &'a Options,
    report: &'a mut Report<'o>,
}

impl Visitor for MeasureFormat<'_, '_> {
    type Output = io::Result<()>;

    fn visit<F: Format>(self, format: F) -> io::Result<()> {
        let Self {
            format: name,
            options,
            report,
        } = self;
        let mut left: &[Row] = ROWS;
        while let Some(first) = left.first() {
            // Rows of one workload are measured together.
            let count = left
                .iter()
                .take_while(|row| row.workload == first.workload)
                .count();
            let (same, rest) = left.split_at(count);
            left = rest;
            let wanted: Vec<Row> = same
                .iter()
                .copied()
                .filter(|row| options.wants(row))
                .collect();
            if wanted.is_empty() {
                continue;
            }
            let rounds: Vec<Vec<Measured>> = (0..options.round_count)
                .map(|_| measure(format, first.workload, &wanted))
                .collect();
            for (index, measured) in rounds[0].iter().enumerate() {
                let comparisons: Vec<Comparison> =
                    rounds.iter().map(|round| round[index].comparison).collect();
                report.bar(name, measured, Comparison::median(&comparisons))?;
            }
            if first.workload == WorkloadName::W2 {
                let ratios: Vec<f64> = (0..options.round_count)
                    .map(|_| region_ratio(format))
                    .collect();
                report.regions(name, quantile(&ratios, 0.5))?;
            }
        }
        Ok(())
    }
}

/// Prints results as they come.
struct Report<'o> {
    out: &'o mut dyn Write,
    is_json: bool,
    margin: Option<f64>,
    is_first: bool,
    passed_margin: bool,
}

impl<'o> Report<'o> {
    fn new(out: &'o mut dyn Write, options: &Options, cpu: usize) -> io::Result<Self> {
        let is_json = matches!(options.output, Output::Json);
        let (name, rounds) = (cpu::name(), options.round_count);
        if is_json {
            write!(
                out,
                "{{\"version\":1,\"cpu\":{name:?},\"rounds\":{rounds},\"results\":["
            )?;
        } else {
            writeln!(
                out,
                "{name}, cpu {cpu}, median of {rounds} rounds; times are nanoseconds an entry"
            )?;
            writeln!(
                out,
                "{:4} {:10} {:26} {:>9}   {:20} {:>9} {:>6} {:>6} {:>6}",
                "", "table", "", "measured", "yardstick", "measured", "bar", "ratio", "of min"
            )?;
        }
        Ok(Self {
            out,
            is_json,
            margin: options.margin,
            is_first: true,
            passed_margin: false,
        })
    }

    fn bar(
        &mut self,
        format: FormatName,
        measured: &Measured,
        median: Comparison,
    ) -> io::Result<()> {
        let Measured {
            row, bar, decides, ..
        } = *measured;
        let verdict = bar.at_most.map(|at_most| {
            self.judge(decides, median.ratio, at_most, median.is_noisy);
            if median.is_noisy {
                Verdict::TooNoisy
            } else {
                Verdict::at_most(median.ratio, at_most)
            }
        });
        let Comparison {
            ratio,
            min_ratio,
            subject_ns,
            yardstick_ns,
            ..
        } = median;
        if self.is_json {
            let mark = self.separator();
            let at_most = bar
                .at_most
                .map_or("null".to_owned(), |at_most| at_most.to_string());
            let verdict = verdict.map_or("null".to_owned(), |verdict| format!("\"{verdict}\""));
            return write!(
                self.out,
                "{mark}{{\"row\":\"{}\",\"what\":\"{}\",\"format\":\"{format}\",\
                 \"yardstick\":\"{}\",\"decides\":{decides},\"bar\":{at_most},\"ratio\":{ratio:.4},\
                 \"min_ratio\":{min_ratio:.4},\"ns\":{subject_ns:.4},\
                 \"yardstick_ns\":{yardstick_ns:.4},\"verdict\":{verdict}}}",
                row.id, row.what, bar.yardstick
            );
        }
        let mark = if decides { ' ' } else { '~' };
        let format = format.as_str();
        let at_most = bar
            .at_most
            .map_or("-".to_owned(), |at_most| format!("{at_most:.2}"));
        let verdict = verdict.map_or("", Verdict::as_str);
        writeln!(
            self.out,
            "{:4} {format:10} {:26} {subject_ns:9.3} {mark} {:20} {yardstick_ns:9.3} {at_most:>6} \
             {ratio:6.2} {min_ratio:6.2} {verdict}",
            row.id, row.what, bar.yardstick
        )
    }

    fn regions(&mut self, format: FormatName, ratio: f64) -> io::Result<()> {
        let verdict = Verdict::at_most(ratio, MAX_REGION_RATIO);
        self.judge(true, ratio, MAX_REGION_RATIO, false);
        let what = "slowest to fastest region";
        if self.is_json {
            let mark = self.separator();
            return write!(
                self.out,
                "{mark}{{\"row\":\"P2\",\"what\":\"{what}\",\"format\":\"{format}\",\
                 \"decides\":true,\"bar\":{MAX_REGION_RATIO},\"ratio\":{ratio:.4},\
                 \"verdict\":\"{verdict}\"}}",
            );
        }
        let format = format.as_str();
        let (none, bar) = ("", MAX_REGION_RATIO);
        writeln!(
            self.out,
            "P2   {format:10} {what:26} {none:9}   {none:20} {none:9} {bar:6.2} {ratio:6.2} \
             {none:6} {verdict}"
        )
    }

    fn separator(&mut self) -> &'static str {
        if std::mem::take(&mut self.is_first) {
            ""
        } else {
            ","
        }
    }

    fn judge(&mut self, decides: bool, ratio: f64, bar: f64, is_noisy: bool) {
        if let Some(margin) = self.margin {
            self.passed_margin |= decides && !is_noisy && ratio > bar * margin;
        }
    }

    fn end(self) -> io::Result<ExitCode> {
        if self.is_json {
            writeln!(self.out, "]}}")?;
        }
        Ok(if self.passed_margin {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}
