//! What does the shared side of a domain's lock cost, alone and with other threads?
//!
//! ```text
//! cargo bench -p iopt-benches --bench locks -- [--trials 300] [--writes 2000] [--gate]
//! ```
//!
//! Nanoseconds of one thread for a lock and its unlock, in the best trial and, in parentheses, the
//! first quartile. The promise is about two threads on the domain lock: 1.3 times the cost of one,
//! and 6 ns, at most; `--gate` exits with 1 if it is not kept. The last columns say how long a
//! writer waits while the other processors read all the time.

use std::env;
use std::io::{self, Write as _};
use std::process::ExitCode;

use iopt_benches::command::{self, Args};
use iopt_benches::cpu;
use iopt_benches::locks::{Cost, LockName, Locks, MAX_NS, MAX_RATIO};
use iopt_benches::scaling::MAX_THREADS;
use iopt_benches::verdict::Verdict;

fn main() -> ExitCode {
    command::main("locks", parse, run)
}

/// What the command line asks for.
struct Options {
    trial_count: usize,
    write_count: usize,
    is_gate: bool,
}

fn parse(args: &mut Args<env::Args>) -> Result<Options, String> {
    let mut options = Options {
        trial_count: 300,
        write_count: 2000,
        is_gate: false,
    };
    while let Some(option) = args.option() {
        match option.as_str() {
            "--bench" => {}
            "--trials" => options.trial_count = args.number::<usize>()?.max(1),
            "--writes" => options.write_count = args.number()?,
            "--gate" => options.is_gate = true,
            _ => return args.unknown(),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> io::Result<ExitCode> {
    let cpus = cpu::cores()?;
    let cpus = &cpus[..cpus.len().min(MAX_THREADS)];
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}, {} cores used, {} trials; nanoseconds of a thread",
        cpu::name(),
        cpus.len(),
        options.trial_count
    )?;
    let locks = Locks::default();
    let mut not_met_count = 0;
    for name in LockName::ALL {
        write!(out, "{:16}", name.as_str())?;
        let costs = locks.read_costs(name, cpus, options.trial_count);
        for cost in &costs {
            match cost.ns {
                Some(ns) => write!(
                    out,
                    "  {}: {:6.2} ({:6.2})",
                    cost.thread_count, ns.best, ns.p25
                )?,
                None => write!(out, "  {}: no trial counts", cost.thread_count)?,
            }
        }
        if name.is_ours() {
            let verdict = judge(&costs);
            not_met_count += usize::from(verdict == Verdict::NotMet);
            write!(out, "  {verdict} {MAX_RATIO} times and {MAX_NS} ns")?;
        }
        if let Some(times) = locks.write_times(name, cpus, options.write_count)? {
            let [p50, p99] = [0.5, 0.99].map(|part| times.quantile(part));
            write!(out, "  write: p50 {p50}, p99 {p99}, max {}", times.max())?;
        }
        writeln!(out)?;
    }
    Ok(command::exit_code(options.is_gate, not_met_count))
}

/// Compares two threads with one and with the clock.
fn judge(costs: &[Cost]) -> Verdict {
    let best_of = |thread_count| {
        let cost = costs.iter().find(|cost| cost.thread_count == thread_count);
        cost.and_then(|cost| cost.ns).map(|ns| ns.best)
    };
    match (best_of(1), best_of(2)) {
        (Some(one), Some(two)) => Verdict::at_most(two, MAX_NS.min(one * MAX_RATIO)),
        _ => Verdict::TooNoisy,
    }
}
