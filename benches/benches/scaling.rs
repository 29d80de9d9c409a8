//! Do several threads on one table do several times as much as one?
//!
//! ```text
//! cargo bench -p iopt-benches --bench scaling -- [--format vtd-ss,arm-s1-4k] [--trials 200]
//!     [--passes 5] [--placement apart,shared] [--design claim] [--gate]
//! ```
//!
//! Placements and works are those of `iopt_benches::scaling`, designs of `iopt_benches::designs`.
//! The promise, for a thread on each of two processors 1.9 times the work of one and 0.9 times the number of threads from there
//! on, is about the best of the trials; `--gate` exits with 1 if it is not kept. The designs without
//! a bar are there to compare with.
//!
//! Two processors of a cloud machine may be two of one core for seconds, or share it with strangers.
//! What misses its bar is measured again in a later pass, and the best pass counts.
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
    pass_count: usize,
    placements: Vec<Placement>,
    designs: Vec<Design>,
    is_gate: bool,
}

fn parse(args: &mut Args<env::Args>) -> Result<Options, String> {
    let mut options = Options {
        formats: vec![FormatName::VtdSs],
        trial_count: 200,
        pass_count: 5,
        placements: Placement::ALL.to_vec(),
        designs: Design::ALL.to_vec(),
        is_gate: false,
    };
    while let Some(option) = args.option() {
        match option.as_str() {
            "--bench" => {}
            "--format" => options.formats = args.formats()?,
            "--trials" => options.trial_count = args.number::<usize>()?.max(1),
            "--passes" => options.pass_count = args.number::<usize>()?.max(1),
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
        "{}, {} cores, at most {MAX_THREADS} used, {} trials, best of up to {} passes; 1 thread in nanoseconds a call or \
         pair of calls, more as times the work of one: best trial (first quartile)",
        cpu::name(),
        cpus.len(),
        options.trial_count,
        options.pass_count
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
        let mut groups = Vec::new();
        for &placement in &options.placements {
            groups.extend(Work::ALL.map(|work| Group::new(placement, work, &options.designs)));
        }
        for _ in 0..options.pass_count {
            for group in groups.iter_mut().filter(|group| !group.is_met()) {
                for (row, passes) in &mut group.rows {
                    passes.push(rig.measure(*row, options.trial_count));
                }
            }
        }
        let mut not_met_count = 0;
        for group in &groups {
            let bare = group.bare();
            for (row, passes) in &group.rows {
                not_met_count += print(out, name, *row, Measured::best_of(passes), bare)?;
            }
        }
        Ok(not_met_count)
    }
}

/// The designs at one placement and work, measured together, and what was measured in each pass.
struct Group {
    rows: Vec<(Row, Vec<Measured>)>,
}

impl Group {
    fn new(placement: Placement, work: Work, designs: &[Design]) -> Self {
        let row = |&design: &Design| Row {
            placement,
            work,
            design,
        };
        Self {
            rows: designs
                .iter()
                .map(|design| (row(design), Vec::new()))
                .collect(),
        }
    }

    /// Returns what plain memory gives.
    fn bare(&self) -> Option<&Measured> {
        let mut rows = self.rows.iter();
        let (_, passes) = rows.find(|(row, _)| row.design == Design::Bare)?;
        Some(Measured::best_of(passes))
    }

    /// Returns whether every promise is seen to be kept.
    fn is_met(&self) -> bool {
        self.rows.iter().all(|(row, passes)| {
            if passes.is_empty() {
                return false;
            }
            Measured::best_of(passes).outcomes.iter().all(|outcome| {
                let bar = row.design.bar(outcome.thread_count);
                bar.is_none_or(|bar| judge(outcome.speed_up, bar, None) == Verdict::Met)
            })
        })
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
