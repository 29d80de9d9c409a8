//! What does a call of a whole IO address space cost?
//!
//! ```text
//! cargo bench -p iopt-benches --bench ioas -- [--questions pairs,threads,index,large,many,dirty,attach]
//!     [--trials 200] [--passes 5] [--cpu 1] [--json] [--gate]
//! cargo bench -p iopt-benches --bench ioas -- --count 2000 [--choice fixed-rising] [--memory own]
//! ```
//!
//! The questions are those of `iopt_benches::ioas`. What one thread does is measured on one
//! processor in turns with what it is compared with; what two threads do, in trials; a verdict
//! stands where something is promised, and `--gate` exits with 1 if a promise is not kept.
//!
//! `--count` maps and unmaps so many pages among 10^5 areas and measures nothing, so that a profiler
//! can:
//!
//! ```text
//! valgrind --tool=callgrind --toggle-collect='*ioas*pairs*pairs*' target/release/deps/ioas-* --bench --count 2000
//! ```

use std::env;
use std::io;
use std::process::ExitCode;

use iopt_benches::command::{self, Args};
use iopt_benches::cpu;
use iopt_benches::ioas::pairs::Choice;
use iopt_benches::ioas::space::Memory;
use iopt_benches::ioas::{attach, bulk, dirty, index, pairs, threads};
use iopt_benches::report::Report;
use iopt_benches::row::Row;

fn main() -> ExitCode {
    command::main("ioas", parse, run)
}

/// A question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Question {
    Pairs,
    Threads,
    Index,
    Large,
    Many,
    Dirty,
    Attach,
}

impl Question {
    const ALL: [Self; 7] = [
        Self::Pairs,
        Self::Threads,
        Self::Index,
        Self::Large,
        Self::Many,
        Self::Dirty,
        Self::Attach,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Pairs => "pairs",
            Self::Threads => "threads",
            Self::Index => "index",
            Self::Large => "large",
            Self::Many => "many",
            Self::Dirty => "dirty",
            Self::Attach => "attach",
        }
    }
}

/// What the command line asks for.
struct Options {
    questions: Vec<Question>,
    trial_count: usize,
    pass_count: usize,
    cpu: Option<usize>,
    is_json: bool,
    is_gate: bool,
    /// Pairs to do without measuring anything.
    count: Option<usize>,
    choice: Choice,
    memory: Memory,
}

fn parse(args: &mut Args<env::Args>) -> Result<Options, String> {
    let mut options = Options {
        questions: Question::ALL.to_vec(),
        trial_count: 200,
        pass_count: 5,
        cpu: None,
        is_json: false,
        is_gate: false,
        count: None,
        choice: Choice::ALL[0],
        memory: Memory::Own,
    };
    while let Some(option) = args.option() {
        match option.as_str() {
            "--bench" => {}
            "--questions" => options.questions = args.names(&Question::ALL, Question::as_str)?,
            "--trials" => options.trial_count = args.number::<usize>()?.max(1),
            "--passes" => options.pass_count = args.number::<usize>()?.max(1),
            "--cpu" => options.cpu = Some(args.number()?),
            "--json" => options.is_json = true,
            "--gate" => options.is_gate = true,
            "--count" => options.count = Some(args.number()?),
            "--choice" => options.choice = args.name(&Choice::ALL, Choice::as_str)?,
            "--memory" => options.memory = args.name(&Memory::ALL, Memory::as_str)?,
            _ => return args.unknown(),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> io::Result<ExitCode> {
    if let Some(count) = options.count {
        pairs::count(options.choice, options.memory, count);
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

/// Answers a question, on a thread of its own, which may be pinned.
fn answer(question: Question, options: &Options, cpus: &[usize]) -> io::Result<Vec<Row>> {
    let &Options {
        trial_count,
        pass_count,
        cpu,
        ..
    } = options;
    let pinned = |measure: fn() -> Vec<Row>| cpu::pinned(cpu, measure);
    match question {
        Question::Pairs => pinned(pairs::measure),
        Question::Threads => Ok(threads::measure(cpus, trial_count, pass_count)),
        Question::Index => {
            let mut rows = pinned(index::measure_one)?;
            rows.extend(index::measure_two(cpus, trial_count));
            Ok(rows)
        }
        Question::Large => pinned(bulk::measure_large),
        Question::Many => pinned(bulk::measure_many),
        Question::Dirty => pinned(dirty::measure),
        Question::Attach => attach::measure(cpus),
    }
}
