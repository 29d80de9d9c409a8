//! Does a driver lose anything by flushing before memory is used again?
//!
//! ```text
//! cargo bench -p iopt-benches --bench invalidation -- [--questions io,cost,queue,plan]
//!     [--turns 21] [--trials 60] [--passes 5] [--cpu 1] [--json] [--gate]
//!     [--sync-ns 1000] [--read-ns 0] [--write-ns 0]
//! cargo bench -p iopt-benches --bench invalidation -- --count 2000 [--who strict] [--layout scattered]
//! cargo bench -p iopt-benches --bench invalidation -- --count 2000 --batch 1 [--sender mutex] [--with-sync]
//! ```
//!
//! The questions are those of `iopt_benches::invalidation`. `--turns` are measurements of `io`, `--trials`
//! and `--passes` those of several threads in `queue`; latencies are those of the hardware that `io`
//! simulates. A verdict stands where something is promised, and `--gate` exits with 1 if a promise is not
//! kept.
//!
//! `--count` lets so many I/Os of one kind go by and measures nothing, or, with `--batch`, submits so
//! many lists, so that a profiler can:
//!
//! ```text
//! valgrind --tool=callgrind --toggle-collect='*invalidation*cost*Flow*work*' target/release/deps/invalidation-* --bench --count 2000
//! ```

use std::env;
use std::io;
use std::process::ExitCode;

use iopt_benches::command::{self, Args};
use iopt_benches::cpu;
use iopt_benches::invalidation::cost::Who;
use iopt_benches::invalidation::rig::Layout;
use iopt_benches::invalidation::unit::Latencies;
use iopt_benches::invalidation::{cost, io as ios, plan, queue};
use iopt_benches::report::Report;
use iopt_benches::row::Row;

fn main() -> ExitCode {
    command::main("invalidation", parse, run)
}

/// A question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Question {
    Io,
    Cost,
    Queue,
    Plan,
}

impl Question {
    const ALL: [Self; 4] = [Self::Io, Self::Cost, Self::Queue, Self::Plan];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Cost => "cost",
            Self::Queue => "queue",
            Self::Plan => "plan",
        }
    }
}

/// Who sends lists where they are only counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sender {
    Engine,
    Mutex,
}

impl Sender {
    const ALL: [Self; 2] = [Self::Engine, Self::Mutex];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Mutex => "mutex",
        }
    }
}

/// What the command line asks for.
struct Options {
    questions: Vec<Question>,
    ios: ios::Options,
    trial_count: usize,
    pass_count: usize,
    cpu: Option<usize>,
    is_json: bool,
    is_gate: bool,
    /// I/Os or lists to let go by without measuring anything.
    count: Option<u64>,
    who: Who,
    layout: Layout,
    /// Commands of a list.
    batch: Option<usize>,
    sender: Sender,
    has_sync: bool,
}

fn parse(args: &mut Args<env::Args>) -> Result<Options, String> {
    let mut options = Options {
        questions: Question::ALL.to_vec(),
        ios: ios::Options {
            turn_count: 21,
            latencies: Latencies {
                sync_ns: 1000,
                read_ns: 0,
                write_ns: 0,
            },
        },
        trial_count: 60,
        pass_count: 5,
        cpu: None,
        is_json: false,
        is_gate: false,
        count: None,
        who: Who::ALL[0],
        layout: Layout::Scattered,
        batch: None,
        sender: Sender::Engine,
        has_sync: false,
    };
    let latencies = &mut options.ios.latencies;
    while let Some(option) = args.option() {
        match option.as_str() {
            "--bench" => {}
            "--questions" => options.questions = args.names(&Question::ALL, Question::as_str)?,
            "--turns" => options.ios.turn_count = args.number::<usize>()?.max(1),
            "--trials" => options.trial_count = args.number::<usize>()?.max(1),
            "--passes" => options.pass_count = args.number::<usize>()?.max(1),
            "--cpu" => options.cpu = Some(args.number()?),
            "--json" => options.is_json = true,
            "--gate" => options.is_gate = true,
            "--sync-ns" => latencies.sync_ns = args.number()?,
            "--read-ns" => latencies.read_ns = args.number()?,
            "--write-ns" => latencies.write_ns = args.number()?,
            "--count" => options.count = Some(args.number()?),
            "--who" => options.who = args.name(&Who::ALL, Who::as_str)?,
            "--layout" => options.layout = args.name(&Layout::ALL, Layout::as_str)?,
            "--batch" => options.batch = Some(args.number()?),
            "--sender" => options.sender = args.name(&Sender::ALL, Sender::as_str)?,
            "--with-sync" => options.has_sync = true,
            _ => return args.unknown(),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> io::Result<ExitCode> {
    if let Some(count) = options.count {
        go_by(options, count);
        return Ok(ExitCode::SUCCESS);
    }
    // Before this thread is pinned: afterwards there is only one.
    let cpus = cpu::cores()?;
    let mut out = io::stdout().lock();
    let mut report = Report::new(&mut out, options.is_json)?;
    for &question in &options.questions {
        report.rows(question.as_str(), &answer(question, options, &cpus)?)?;
    }
    let not_met_count = report.end()?;
    Ok(command::exit_code(options.is_gate, not_met_count))
}

fn go_by(options: &Options, count: u64) {
    let &Options {
        who,
        layout,
        batch,
        sender,
        has_sync,
        ..
    } = options;
    match (batch, sender) {
        (None, _) => cost::count(who, layout, count),
        (Some(batch), Sender::Engine) => {
            queue::count(&queue::Engine::new(), batch, has_sync, count);
        }
        (Some(batch), Sender::Mutex) => {
            queue::count(&queue::Baseline::default(), batch, has_sync, count);
        }
    }
}

/// Answers a question; what one thread does, on a thread of its own, which may be pinned.
fn answer(question: Question, options: &Options, cpus: &[usize]) -> io::Result<Vec<Row>> {
    let cpu = options.cpu;
    let pinned = |measure: fn() -> Vec<Row>| cpu::pinned(cpu, measure);
    match question {
        Question::Io => Ok(ios::measure(cpus, &options.ios)),
        Question::Cost => pinned(cost::measure),
        Question::Queue => {
            let mut rows = pinned(queue::measure_one)?;
            rows.extend(queue::measure_all(
                cpus,
                options.trial_count,
                options.pass_count,
            ));
            Ok(rows)
        }
        Question::Plan => pinned(plan::measure),
    }
}
