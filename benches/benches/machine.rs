//! How long until a large machine's devices are grouped and probed?
//!
//! ```text
//! cargo bench -p iopt-benches --bench machine -- [--rounds 5] [--cpu 1] [--json] [--gate]
//! ```
//!
//! 100 000 functions in 64 segments, each with its instance, one thread (`iopt_benches::machine`). The
//! promise is a second for everything; `--gate` exits with 1 if it is not kept. In the best round, as
//! other programs only ever make it slower.

use std::env;
use std::io;
use std::process::ExitCode;

use iopt_benches::command::{self, Args};
use iopt_benches::report::Report;
use iopt_benches::{cpu, machine};

fn main() -> ExitCode {
    command::main("machine", parse, run)
}

/// What the command line asks for.
struct Options {
    round_count: usize,
    cpu: Option<usize>,
    is_json: bool,
    is_gate: bool,
}

fn parse(args: &mut Args<env::Args>) -> Result<Options, String> {
    let mut options = Options {
        round_count: 5,
        cpu: None,
        is_json: false,
        is_gate: false,
    };
    while let Some(option) = args.option() {
        match option.as_str() {
            "--bench" => {}
            "--rounds" => options.round_count = args.number::<usize>()?.max(1),
            "--cpu" => options.cpu = Some(args.number()?),
            "--json" => options.is_json = true,
            "--gate" => options.is_gate = true,
            _ => return args.unknown(),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> io::Result<ExitCode> {
    cpu::pin(options.cpu)?;
    let mut out = io::stdout().lock();
    let mut report = Report::new(&mut out, options.is_json)?;
    report.rows("machine", &machine::measure(options.round_count))?;
    let not_met_count = report.end()?;
    Ok(command::exit_code(options.is_gate, not_met_count))
}
