//! How long does attaching a device take while other threads map?
//!
//! ```text
//! cargo bench -p iopt-benches --bench attach -- [--seconds 5] [--format vtd-ss] [--gate]
//! ```
//!
//! Two crowds, as `iopt_benches::attach` says: mappers on all processors but one, which the filling
//! thread has, and mappers on all processors. The promise is about the first: no read section of a
//! thread that runs takes longer than 50 us, and the writer gets the lock within 1 ms in 999 of 1000
//! times; `--gate` exits with 1 if it is not kept. The writer runs where the system puts it and all
//! its waits count, whatever they are due to.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use iopt_benches::attach::{CHUNK_LEN, Crowd, MAX_SECTION, MAX_WAIT, Measured, Rig};
use iopt_benches::command::{self, Args};
use iopt_benches::histogram::Histogram;
use iopt_benches::verdict::Verdict;
use iopt_benches::{cpu, formats};
use iopt_formats::Format;
use iopt_formats::catalog::{FormatName, Visitor};

fn main() -> ExitCode {
    command::main("attach", parse, run)
}

/// What the command line asks for.
struct Options {
    formats: Vec<FormatName>,
    duration: Duration,
    is_gate: bool,
}

fn parse(args: &mut Args<env::Args>) -> Result<Options, String> {
    let mut options = Options {
        formats: vec![FormatName::VtdSs],
        duration: Duration::from_secs(5),
        is_gate: false,
    };
    while let Some(option) = args.option() {
        match option.as_str() {
            "--bench" => {}
            "--format" => options.formats = args.formats()?,
            "--seconds" => options.duration = Duration::from_secs(args.number()?),
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
        "{}, {} cores, {} s each; 1 TiB in chunks of {} GiB; microseconds",
        cpu::name(),
        cpus.len(),
        options.duration.as_secs(),
        CHUNK_LEN >> 30
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
        let rig = Rig::new(format);
        let duration = options.duration;
        let mut not_met_count = 0;
        // A machine of one processor has no crowd with a processor to spare.
        if let Some((&filler_cpu, mapper_cpus)) = cpus.split_last().filter(|_| cpus.len() > 1) {
            let crowd = Crowd {
                mapper_cpus,
                filler_cpu: Some(filler_cpu),
                duration,
            };
            let measured = rig.measure(&crowd)?;
            not_met_count += print(out, name, mapper_cpus.len(), &measured, true)?;
        }
        let crowd = Crowd {
            mapper_cpus: cpus,
            filler_cpu: None,
            duration,
        };
        let measured = rig.measure(&crowd)?;
        print(out, name, cpus.len(), &measured, false)?;
        Ok(not_met_count)
    }
}

/// Prints what was seen and returns how many promises were not kept, if there are any.
fn print(
    out: &mut dyn Write,
    format: FormatName,
    mapper_count: usize,
    measured: &Measured,
    is_promised: bool,
) -> io::Result<usize> {
    writeln!(
        out,
        "{format}, {mapper_count} mappers; 1 TiB filled or emptied {} times",
        measured.filled_count
    )?;
    let micros = |ns: u64| Duration::from_nanos(ns).as_secs_f64() * 1e6;
    let mut line = |what: &str, times: &Histogram, verdict: Option<Verdict>| {
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|part| micros(times.quantile(part)));
        let (count, max) = (times.count(), micros(times.max()));
        let verdict = verdict.map_or("", Verdict::as_str);
        writeln!(
            out,
            "  {what:26} {count:>10}  p50 {p50:8.2}  p99 {p99:8.2}  p99.9 {p999:8.2}  \
             max {max:8.2}  {verdict}"
        )
    };
    let judge = |ns: u64, bar: Duration| {
        is_promised.then(|| Verdict::at_most(Duration::from_nanos(ns), bar))
    };
    let section = judge(measured.sections.max(), MAX_SECTION);
    let wait = judge(measured.waits.quantile(0.999), MAX_WAIT);
    line("read sections", &measured.sections, section)?;
    line("interrupted read sections", &measured.interrupted, None)?;
    line("waits of the writer", &measured.waits, wait)?;
    let verdicts = [section, wait];
    Ok(verdicts
        .iter()
        .filter(|&&verdict| verdict == Some(Verdict::NotMet))
        .count())
}
