//! Do several threads on one table do several times as much as one?
//!
//! ```text
//! cargo bench -p iopt-benches --bench scaling -- [--format vtd-ss,arm-s1-4k] [--trials 200]
//!     [--placement apart,shared] [--design claim] [--gate]
//! ```
//!
//! Placements and works are those of `iopt_benches::scaling`, designs of `iopt_benches::designs`. The promise, for a thread on
//! each of two processors 1.9 times the work of one and 0.9 times the number of threads from there
//! on, is about the best of the trials; `--gate` exits with 1 if it is not kept. The designs without
//! a bar are there to compare with.
//!
//! Processors prefetch lines beyond those that a program asks for, and where another thread writes
//! these, both get slower: plain stores to two halves of a page need not scale by two. A row that
//! misses its bar but scales as well as plain memory that lies the same way (`bare`) says so and
//! counts as kept.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use iopt_benches::command::{self, Args};
use iopt_benches::designs::Design;
use iopt_benches::scaling::{MAX_THREADS, Measured, Outcome, Placement, Rig, Row, SpeedUp, Work};
use iopt_benches::verdict::Verdict;
use iopt_benches::{cpu, formats};
use iopt_formats::Format;
use iopt_formats::catalog::{FormatName, Visitor};

fn main() -> ExitCode {
    command::main("scaling", parse, run)
}

/// What the command line asks for.
struct Options {
    formats: Vec<FormatName>,
    trial_count: usize,
    placements: Vec<Placement>,
    designs: Vec<Design>,
    is_gate: bool,
}

fn parse(args: &mut Args<env::Args>) -> Result<Options, String> {
    let mut options = Options {
        formats: vec![FormatName::VtdSs],
        trial_count: 200,
        placements: Placement::ALL.to_vec(),
        designs: Design::ALL.to_vec(),
        is_gate: false,
    };
    while let Some(option) = args.option() {
        match option.as_str() {
            "--bench" => {}
            "--format" => options.formats = args.formats()?,
            "--trials" => options.trial_count = args.number::<usize>()?.max(1),
            "--placement" => options.placements = args.names(&Placement::ALL, Placement::as_str)?,
            "--design" => options.designs = args.names(&Design::ALL, Design::as_str)?,
            "--gate" => options.is_gate = true,
            _ => return args.unknown(),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> io::Result<ExitCode> {
    let cpus = cpu::cores()?;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}, {} cores, at most {MAX_THREADS} used, {} trials; 1 thread in nanoseconds a call or \
         pair of calls, more as times the work of one: best trial (first quartile)",
        cpu::name(),
        cpus.len(),
        options.trial_count
    )?;
    let mut not_met_count = 0;
    for &name in &options.formats {
        let measure = MeasureFormat {
            name,
            options,
            cpus: &cpus,
            out: &mut out,
        };
        not_met_count += formats::visit(name, measure).expect("only measured formats are taken")?;
    }
    Ok(command::exit_code(options.is_gate, not_met_count))
}

/// Measures one format and returns how many promises it does not keep.
struct MeasureFormat<'a> {
    name: FormatName,
    options: &'a Options,
    cpus: &'a [usize],
    out: &'a mut dyn Write,
}

impl Visitor for MeasureFormat<'_> {
    type Output = io::Result<usize>;

    fn visit<F: Format>(self, format: F) -> io::Result<usize> {
        let Self {
            name,
            options,
            cpus,
            out,
        } = self;
        let rig = Rig::new(format, cpus);
        let mut not_met_count = 0;
        for &placement in &options.placements {
            for work in Work::ALL {
                let mut bare = None;
                for &design in &options.designs {
                    let row = Row {
                        placement,
                        work,
                        design,
                    };
                    let measured = rig.measure(row, options.trial_count);
                    not_met_count += print(out, name, row, &measured, bare.as_ref())?;
                    if design == Design::Bare {
                        bare = Some(measured);
                    }
                }
            }
        }
        Ok(not_met_count)
    }
}

/// Prints a row and returns how many promises it does not keep.
fn print(
    out: &mut dyn Write,
    format: FormatName,
    row: Row,
    measured: &Measured,
    bare: Option<&Measured>,
) -> io::Result<usize> {
    let Row {
        placement,
        work,
        design,
    } = row;
    let alone: Vec<String> = measured
        .alone_ns
        .iter()
        .map(|ns| format!("{ns:.1}"))
        .collect();
    write!(
        out,
        "{:10} {:12} {:19} {:11}  1: {:>12}",
        format.as_str(),
        placement.as_str(),
        work.as_str(),
        design.as_str(),
        alone.join("/")
    )?;
    let mut not_met_count = 0;
    for outcome in &measured.outcomes {
        let &Outcome {
            thread_count,
            speed_up,
            discarded_count,
        } = outcome;
        let bar = design.bar(thread_count);
        let bare = bare.and_then(|bare| bare.best(thread_count));
        let verdict = bar.map(|bar| judge(speed_up, bar, bare));
        not_met_count += usize::from(verdict == Some(Verdict::NotMet));
        write!(out, "  {thread_count}: ")?;
        match speed_up {
            Some(speed_up) => write!(out, "{:5.2} ({:5.2})", speed_up.best, speed_up.p25)?,
            None => write!(out, "no trial counts")?,
        }
        if let Some((verdict, bar)) = verdict.zip(bar) {
            write!(out, " {verdict} {bar:.1}")?;
        }
        if discarded_count > 0 {
            write!(out, " [{discarded_count} discarded]")?;
        }
    }
    writeln!(out)?;
    out.flush()?;
    Ok(not_met_count)
}

/// Part of what plain memory gives that counts as the same.
const AS_BARE: f64 = 0.95;

/// Compares with what is promised and, where plain memory does not scale so well, with that.
fn judge(speed_up: Option<SpeedUp>, bar: f64, bare: Option<f64>) -> Verdict {
    match (speed_up, bare) {
        (None, _) => Verdict::TooNoisy,
        (Some(SpeedUp { best, .. }), _) if best >= bar => Verdict::Met,
        (Some(SpeedUp { best, .. }), Some(bare)) if best >= AS_BARE * bare => Verdict::AsBare,
        (Some(_), _) => Verdict::NotMet,
    }
}
