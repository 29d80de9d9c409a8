//! How long does attaching a device take while other threads map?
//!
//! ```text
//! cargo bench -p iopt-benches --bench attach -- [--seconds 5] [--format vtd-ss] [--gate]
//! ```
//!
//! Three crowds, as `iopt_benches::attach` says: one that leaves the writer a processor, one that has
//! them all, and one of a thread more than that. The promise is about the first: no read section of
//! a thread that runs takes longer than 50 us, and the writer gets the lock within 1 ms in 999 of
//! 1000 times; where threads that time nothing at all are held up for longer than 50 us half as often, the
//! verdict is `as bare`. `--gate` exits with 1 if the promise is not kept. The writer runs where the
//! system puts it and all its waits count, whatever they are due to.

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

/// How many times as often as nothing at all read sections may be held up: from one few seconds to the
/// next, a machine of a cloud differs by as much.
const AS_BARE: u64 = 2;

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
        let (&filler_cpu, others) = cpus.split_last().expect("a machine has a processor");
        let mut crowds = Vec::new();
        if let Some((_, mapper_cpus)) = others.split_first() {
            crowds.push(("all but one processor", mapper_cpus, true));
            crowds.push(("every processor", others, false));
        }
        for (busy, mapper_cpus, is_promised) in crowds {
            let crowd = Crowd {
                mapper_cpus,
                filler_cpu: Some(filler_cpu),
                duration,
            };
            let bare = rig.measure_nothing(&crowd)?;
            let measured = rig.measure(&crowd)?;
            let seen = Seen {
                busy,
                crowd: &crowd,
                measured: &measured,
                bare: Some(&bare),
            };
            not_met_count += print(out, name, &seen, is_promised)?;
        }
        let crowd = Crowd {
            mapper_cpus: cpus,
            filler_cpu: None,
            duration,
        };
        let measured = rig.measure(&crowd)?;
        let seen = Seen {
            busy: "one thread more than processors",
            crowd: &crowd,
            measured: &measured,
            bare: None,
        };
        print(out, name, &seen, false)?;
        Ok(not_met_count)
    }
}

/// What one crowd did.
struct Seen<'a> {
    busy: &'static str,
    crowd: &'a Crowd<'a>,
    measured: &'a Measured,
    /// How long threads on the same processors took for nothing.
    bare: Option<&'a Histogram>,
}

/// Prints what was seen and returns how many promises were not kept.
fn print(
    out: &mut dyn Write,
    format: FormatName,
    seen: &Seen<'_>,
    is_promised: bool,
) -> io::Result<usize> {
    let Seen {
        busy,
        crowd,
        measured,
        bare,
    } = *seen;
    writeln!(
        out,
        "{format}, {busy} busy: 1 filler and {} mappers; 1 TiB filled or emptied {} times",
        crowd.mapper_cpus.len(),
        measured.filled_count
    )?;
    let micros = |ns: u64| Duration::from_nanos(ns).as_secs_f64() * 1e6;
    let mut line = |what: &str, times: &Histogram, verdict: Option<Verdict>| {
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|part| micros(times.quantile(part)));
        let long_count = times.count_above(MAX_SECTION.as_nanos() as u64);
        let (count, max) = (times.count(), micros(times.max()));
        let verdict = verdict.map_or("", Verdict::as_str);
        writeln!(
            out,
            "  {what:26} {count:>10}  p50 {p50:8.2}  p99 {p99:8.2}  p99.9 {p999:8.2}  \
             max {max:8.2}  above 50: {long_count:<6} {verdict}"
        )
    };
    let section = bare.filter(|_| is_promised).map(|bare| {
        let long_count = |times: &Histogram| times.count_above(MAX_SECTION.as_nanos() as u64);
        let max = Duration::from_nanos(measured.sections.max());
        match Verdict::at_most(max, MAX_SECTION) {
            Verdict::NotMet if long_count(&measured.sections) <= AS_BARE * long_count(bare) => {
                Verdict::AsBare
            }
            verdict => verdict,
        }
    });
    let wait = is_promised.then(|| {
        let wait = Duration::from_nanos(measured.waits.quantile(0.999));
        Verdict::at_most(wait, MAX_WAIT)
    });
    if let Some(bare) = bare {
        line("nothing", bare, None)?;
    }
    line("read sections", &measured.sections, section)?;
    line("interrupted read sections", &measured.interrupted, None)?;
    line("waits of the writer", &measured.waits, wait)?;
    let verdicts = [section, wait];
    Ok(verdicts
        .iter()
        .filter(|&&verdict| verdict == Some(Verdict::NotMet))
        .count())
}
