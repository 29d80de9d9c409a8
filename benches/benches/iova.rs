//! What does it cost to get an IOVA and to give it back, and what after a long time?
//!
//! ```text
//! cargo bench -p iopt-benches --bench iova -- [--trials 300] [--gate]
//! IOPT_IOVA_OPERATIONS=1000000000 cargo bench -p iopt-benches --bench iova -- --trials 0
//! ```
//!
//! First, nanoseconds of one thread for an allocation with its free, in the best trial and, in
//! parentheses, the first quartile, beside an epoch pin and magazines as Linux has them: of one page at a
//! time, and of one of 256 that live. The promise is at most 3.5 times a pin for one thread, and for two
//! threads 1.8 times the work of one; `--gate` exits with 1 if it is not kept.
//!
//! Then the aging: operations of mixed sizes on two threads, half of them freed by the other one, whose
//! mixture changes from phase to phase. How long calls take, with what the clock takes, which is printed
//! beside it; and how many leaf tables the live ranges touch at the end of each phase, by the fewest that
//! could hold them as they are aligned, and by the fewest that have as many bytes. The promise is 1 us for
//! 99.9 % of the calls, and 1.25 times the fewest tables, summed over all phases. An idle space takes one
//! table a thread, where one would do: threads do not share them before they have to.

use std::env;
use std::io::{self, Write as _};
use std::process::ExitCode;

use iopt_benches::command::{self, Args};
use iopt_benches::cpu;
use iopt_benches::histogram::Histogram;
use iopt_benches::iova::{
    self, Aged, MAX_LATE_NS, MAX_PINS, MAX_TABLES, MIN_SPEED_UP, Name, Pattern, Ratio,
};
use iopt_benches::verdict::Verdict;

fn main() -> ExitCode {
    command::main("iova", parse, run)
}

/// What the command line asks for.
struct Options {
    trial_count: usize,
    is_gate: bool,
}

fn parse(args: &mut Args<env::Args>) -> Result<Options, String> {
    let mut options = Options {
        trial_count: 300,
        is_gate: false,
    };
    while let Some(option) = args.option() {
        match option.as_str() {
            "--bench" => {}
            "--trials" => options.trial_count = args.number()?,
            "--gate" => options.is_gate = true,
            _ => return args.unknown(),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> io::Result<ExitCode> {
    let cpus = cpu::cores()?;
    let cpus = &cpus[..cpus.len().min(2)];
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}, {} cores used, {} trials; nanoseconds of a thread",
        cpu::name(),
        cpus.len(),
        options.trial_count
    )?;
    let mut not_met_count = 0;
    for pattern in Pattern::ALL.into_iter().filter(|_| options.trial_count > 0) {
        let costs = iova::costs(pattern, cpus, options.trial_count);
        let cost = |name, thread_count| costs.best(name, thread_count);
        for name in Name::ALL {
            write!(out, "{:8} {:10}", pattern.as_str(), name.as_str())?;
            for thread_count in 1..=cpus.len() {
                match costs.get(name, thread_count) {
                    Some(ns) => write!(out, "  {thread_count}: {:6.2} ({:6.2})", ns.best, ns.p25)?,
                    None => write!(out, "  {thread_count}: no trial counts")?,
                }
            }
            if let (Some(one), Some(two)) = (cost(name, 1), cost(name, 2)) {
                write!(out, "  speed-up {:.2}", 2.0 * one / two)?;
            }
            if let (Some(one), Some(pin)) = (cost(name, 1), cost(Name::Pin, 1)) {
                write!(out, "  pins {:.2}", one / pin)?;
            }
            if name == Name::Ours {
                let verdicts = [
                    cost(name, 1)
                        .zip(cost(Name::Pin, 1))
                        .map(|(one, pin)| Verdict::at_most(one / pin, MAX_PINS)),
                    cost(name, 1)
                        .zip(cost(name, 2))
                        .map(|(one, two)| Verdict::at_least(2.0 * one / two, MIN_SPEED_UP)),
                ];
                for verdict in verdicts {
                    let verdict = verdict.unwrap_or(Verdict::TooNoisy);
                    not_met_count += usize::from(verdict == Verdict::NotMet);
                    write!(out, "  {verdict}")?;
                }
            }
            writeln!(out)?;
        }
    }
    let operation_count = env::var("IOPT_IOVA_OPERATIONS").ok();
    let operation_count = operation_count.and_then(|count| count.parse().ok());
    let operation_count = operation_count.unwrap_or(2_000_000);
    let clock = iova::clock_times();
    writeln!(
        out,
        "aging    {operation_count} operations; the clock takes p50 {}, p99.9 {} ns of every time",
        clock.quantile(0.5),
        clock.quantile(0.999)
    )?;
    for name in [Name::Ours, Name::Magazines] {
        let (by_mixture, all) = iova::age(name, operation_count, cpus);
        let parts = iova::MIXTURE_NAMES.into_iter().zip(&by_mixture);
        for (mixture, aged) in parts.chain([("all", &all)]) {
            write_aged(&mut out, name, mixture, aged)?;
        }
        if name == Name::Ours {
            let verdicts = [
                Verdict::at_most(all.late_ns(), MAX_LATE_NS),
                Verdict::at_most(all.tables.overall(), MAX_TABLES),
            ];
            for verdict in verdicts {
                not_met_count += usize::from(verdict == Verdict::NotMet);
                write!(out, "  {verdict}")?;
            }
            writeln!(out)?;
        }
    }
    Ok(command::exit_code(options.is_gate, not_met_count))
}

fn write_aged(out: &mut impl io::Write, name: Name, mixture: &str, aged: &Aged) -> io::Result<()> {
    let times = aged.times();
    let late = |times: &Histogram| times.quantile(0.999);
    let ratio = |ratio: &Ratio| {
        format!(
            "{:.2} (mean {:.2}, worst {:.2})",
            ratio.overall(),
            ratio.mean(),
            ratio.max
        )
    };
    writeln!(
        out,
        "aging    {:10} {mixture:10} p50 {}, p99.9 {} (alloc {}, free {}), max {} ns; tables / fewest {}, by bytes \
         {}; open chunks / fewest {}; refused {}",
        name.as_str(),
        times.quantile(0.5),
        late(&times),
        late(&aged.takes),
        late(&aged.puts),
        times.max(),
        ratio(&aged.tables),
        ratio(&aged.tables_by_bytes),
        ratio(&aged.chunks),
        aged.refused_count
    )
}
