//! The command line.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use iopt_formats::catalog::Options;

use crate::explain::ExplainArgs;
use crate::formats::FormatsArgs;
use crate::replay::ReplayArgs;
use crate::topology::TopologyArgs;
use crate::walk::WalkArgs;

const EXIT_STATUS: &str = "Exit status: 0 fine; 1 a check found a mismatch or a loop; \
                           2 bad input or usage, with one line on standard error.";

/// Replays DMA traces, walks and explains IO page tables, shows who is behind which IOMMU.
#[derive(Debug, Parser)]
#[command(name = "iopt", version, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Replay(ReplayArgs),
    Walk(WalkArgs),
    Explain(ExplainArgs),
    Formats(FormatsArgs),
    Topology(TopologyArgs),
}

/// What a command that ran to its end found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// Everything is as it should be.
    Fine,
    /// A check found something wrong.
    Mismatch,
}

impl Outcome {
    /// Returns the outcome of a check that counts what is wrong.
    pub(crate) fn of_mismatches(count: u64) -> Self {
        if count == 0 {
            Self::Fine
        } else {
            Self::Mismatch
        }
    }
}

/// Options that complete the name of a format; each has a sensible default.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own on the command line"
)]
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Format options")]
pub(crate) struct FormatOptions {
    /// Input address bits (IAS, T0SZ, AGAW)
    #[arg(long, value_name = "BITS")]
    va_bits: Option<u8>,
    /// Output address bits (OAS, IPS, PS)
    #[arg(long, value_name = "BITS")]
    oa_bits: Option<u8>,
    /// Levels of the table: VT-d, x86-64, AMD
    #[arg(long, value_name = "COUNT")]
    levels: Option<u8>,
    /// ARM stage 1: the upper half of the address space (TTBR1)
    #[arg(long)]
    upper: bool,
    /// x86-64, VT-d first stage: both halves of a sign-extended address space
    #[arg(long)]
    sign_extended: bool,
    /// ARM: 52-bit descriptors, LPA with 64 KiB pages, else LPA2
    #[arg(long)]
    lpa: bool,
    /// Hardware records dirty pages
    #[arg(long)]
    dirty: bool,
    /// ARM stage 1: non-secure tables and pages
    #[arg(long)]
    ns: bool,
    /// ARM stage 2: forced write-back attributes
    #[arg(long)]
    s2fwb: bool,
    /// VT-d SNP, AMD FC: force coherent accesses
    #[arg(long)]
    snoop: bool,
    /// x86-64, VT-d first stage: execution is controlled (XD, NX)
    #[arg(long)]
    execute_disable: bool,
    /// RISC-V Svnapot: 64 KiB entries
    #[arg(long)]
    svnapot: bool,
    /// RISC-V Svpbmt: memory types
    #[arg(long)]
    svpbmt: bool,
}

impl FormatOptions {
    /// Returns the options as the catalog takes them.
    pub(crate) fn options(&self) -> Options {
        Options {
            va_bits: self.va_bits,
            oa_bits: self.oa_bits,
            levels: self.levels,
            upper_half: self.upper,
            sign_extended: self.sign_extended,
            lpa: self.lpa,
            dirty: self.dirty,
            non_secure: self.ns,
            s2fwb: self.s2fwb,
            force_snoop: self.snoop,
            execute_disable: self.execute_disable,
            svnapot: self.svnapot,
            svpbmt: self.svpbmt,
            sizes: None,
        }
    }
}

/// Parses a 64-bit number, decimal or with `0x`; digits may be grouped with `_`.
pub(crate) fn number(text: &str) -> Result<u64, String> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let digits = digits.replace('_', "");
    // `from_str_radix` would accept a sign.
    if digits.starts_with('+') {
        return Err("not a number".into());
    }
    u64::from_str_radix(&digits, radix).map_err(|error| error.to_string())
}

/// Runs the command line of this process.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match &cli.command {
        Command::Replay(args) => args.run(),
        Command::Walk(args) => args.run(),
        Command::Explain(args) => args.run(),
        Command::Formats(args) => args.run(),
        Command::Topology(args) => args.run(),
    };
    match result {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Mismatch) => ExitCode::from(1),
        Err(failure) => {
            complain(&failure.to_string());
            ExitCode::from(2)
        }
    }
}

/// Prints help to standard output, or what is wrong with the arguments as one line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        // A closed pipe only means that nobody reads the rest.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let rendered = error.render().to_string();
    let mut words = Vec::new();
    for line in rendered.lines().take_while(|line| !line.is_empty()) {
        words.extend(line.split_whitespace());
    }
    let message = words.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        complain("a command is missing; `iopt --help` lists them");
    } else {
        complain(&format!("{message}; see `iopt {}--help`", subcommand()));
    }
    ExitCode::from(2)
}

/// Returns the subcommand that was typed, followed by a space, or nothing.
fn subcommand() -> String {
    let known = ["replay", "walk", "explain", "formats", "topology"];
    let typed = std::env::args_os()
        .nth(1)
        .and_then(|argument: OsString| argument.into_string().ok());
    typed
        .filter(|name| known.contains(&name.as_str()))
        .map_or(String::new(), |name| name + " ")
}

/// Writes one line to standard error, where nothing is left to do if that fails.
fn complain(message: &str) {
    let line = message.replace('\n', " ");
    let _ = writeln!(io::stderr(), "iopt: {line}");
}

/// Returns whether progress may be shown: standard error is a terminal.
pub(crate) fn shows_progress() -> bool {
    io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_has_an_example() {
        for command in Cli::command().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "{}", command.get_name());
            assert!(
                help.contains(&format!("iopt {} ", command.get_name())),
                "{}",
                command.get_name()
            );
        }
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("10"), Ok(10));
        assert_eq!(number("0x10"), Ok(16));
        assert_eq!(number("0xffff_ffff_ffff_ffff"), Ok(u64::MAX));
        for text in [
            "",
            "0x",
            "-1",
            "+1",
            "0x+1",
            "12ab",
            "0x1ffffffffffffffff",
            " 1",
        ] {
            assert!(number(text).is_err(), "{text:?}");
        }
    }
}
