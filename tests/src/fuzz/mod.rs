//! Searches for bytes that break a reader: of firmware's tables, of PCI trees, of words in queues and
//! tables, of saved address spaces.
//!
//! A [`Target`] takes any bytes, reads them and checks laws of what was read; it panics if one is broken and
//! returns whether the bytes were accepted. The same targets run under libFuzzer (`tests/fuzz`), which
//! follows coverage, and under [`search`](Target::search), which needs nothing, starts from good inputs and
//! keeps what is accepted, so that damage adds up.
//!
//! Of [`search_all`], `IOPT_FUZZ_RUNS` says how many inputs each target gets, `IOPT_FUZZ_SECONDS` ends each
//! search early, `IOPT_FUZZ_SEED` draws others, `IOPT_FUZZ_ONLY` picks targets by a part of their names, and
//! `IOPT_FUZZ_CORPUS` is a folder for the inputs that searches start from.

pub mod commands;
pub mod contexts;
pub mod events;
pub mod firmware;
pub mod mutate;
pub mod resolve;
pub mod saved;
pub mod topology;

mod tree_blob;

use std::env;
use std::fs;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::fuzz::mutate::Mutator;
use crate::space::random::Random;

/// A reader under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: also of the libFuzzer target and of the folder of its corpus.
    pub name: &'static str,
    /// Reads bytes and checks what came out. Returns whether they were accepted.
    pub run: fn(&[u8]) -> bool,
    /// Good inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// The readers of the formats and of the engine.
pub const TARGETS: &[Target] = &[
    target("device_tree", firmware::device_tree, firmware::tree_seeds),
    target("iort", firmware::iort, firmware::iort_seeds),
    target("viot", firmware::viot, firmware::viot_seeds),
    target("dmar", firmware::dmar, firmware::dmar_seeds),
    target("ivrs", firmware::ivrs, firmware::ivrs_seeds),
    target("mcfg", firmware::mcfg, firmware::mcfg_seeds),
    target("acpi", firmware::acpi, firmware::acpi_seeds),
    target("resolve", resolve::resolve, resolve::seeds),
    target("groups", topology::groups, topology::seeds),
    target("command_smmuv3", commands::smmuv3, commands::smmuv3_seeds),
    target("command_vtd", commands::vtd, commands::vtd_seeds),
    target("command_amd", commands::amd, commands::amd_seeds),
    target("command_riscv", commands::riscv, commands::riscv_seeds),
    target("command_virtio", commands::virtio, commands::virtio_seeds),
    target("context_smmuv3", contexts::smmuv3, contexts::smmuv3_seeds),
    target("context_vtd", contexts::vtd, contexts::vtd_seeds),
    target("context_amd", contexts::amd, contexts::amd_seeds),
    target("context_riscv", contexts::riscv, contexts::riscv_seeds),
    target("event_smmuv3", events::smmuv3, events::smmuv3_seeds),
    target("event_amd", events::amd, events::amd_seeds),
    target("event_riscv", events::riscv, events::riscv_seeds),
    target("event_vtd", events::vtd, events::vtd_seeds),
    target("saved", saved::saved, saved::seeds),
];

const fn target(name: &'static str, run: fn(&[u8]) -> bool, seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target { name, run, seeds }
}

/// Inputs of each target, unless said otherwise.
const RUNS: u64 = 5000;

/// Searches with each target, as the environment says.
///
/// # Panics
///
/// As [`Target::search`]; also if a search looked at little, because nearly all inputs were refused or hardly
/// any.
pub fn search_all(targets: &[Target]) {
    let run_count = setting("IOPT_FUZZ_RUNS").unwrap_or(RUNS);
    let seconds = setting("IOPT_FUZZ_SECONDS").map(Duration::from_secs);
    let seed = setting("IOPT_FUZZ_SEED").unwrap_or(1);
    let part = env::var("IOPT_FUZZ_ONLY").unwrap_or_default();
    for target in targets.iter().filter(|target| target.name.contains(&part)) {
        if let Some(corpus) = env::var_os("IOPT_FUZZ_CORPUS") {
            let written = target.write_seeds(Path::new(&corpus));
            written.expect("the folder of IOPT_FUZZ_CORPUS can be written");
        }
        let start = Instant::now();
        let figures = target.search(run_count, seed, seconds.map(|seconds| start + seconds));
        let Figures {
            run_count: run,
            accepted_count: accepted,
        } = figures;
        let seconds = start.elapsed().as_secs_f64();
        let name = target.name;
        eprintln!("{name:16} {run:>9} runs, {accepted:>9} accepted, {seconds:.1} s");
        let few = run / 100;
        assert!(
            accepted >= few && accepted <= run - few,
            "{name}: {figures:?}"
        );
    }
}

fn setting(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// What a search did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Figures {
    /// Inputs that were run.
    pub run_count: u64,
    /// Those of them that were accepted.
    pub accepted_count: u64,
}

/// Accepted inputs that a search keeps besides the seeds.
const KEPT: usize = 256;

/// Runs between two looks at the clock.
const CLOCK_STRIDE: u64 = 1024;

impl Target {
    /// Runs all seeds, then `run_count` damaged inputs, which `seed` decides, or fewer if `end` comes first.
    ///
    /// # Panics
    ///
    /// If a law is broken: the input is written to standard error, as hexadecimal digits.
    pub fn search(&self, run_count: u64, seed: u64, end: Option<Instant>) -> Figures {
        let seeds = (self.seeds)();
        let mut mutator = Mutator::new(Random::new(seed));
        let mut kept: Vec<Vec<u8>> = Vec::new();
        let mut figures = Figures::default();
        for bytes in &seeds {
            figures.accepted_count += u64::from(self.run_one(bytes));
        }
        assert_eq!(
            figures.accepted_count,
            seeds.len() as u64,
            "{}: seeds are good inputs",
            self.name
        );
        figures.accepted_count = 0;
        let mut bytes = Vec::new();
        while figures.run_count < run_count {
            let is_over = || end.is_some_and(|end| Instant::now() >= end);
            if figures.run_count.is_multiple_of(CLOCK_STRIDE) && is_over() {
                break;
            }
            let random = mutator.random();
            let from = match kept.as_slice() {
                [] => random.pick(&seeds),
                _ if random.is_one_in(2) => random.pick(&seeds),
                kept => random.pick(kept),
            };
            bytes.clone_from(from);
            let other = mutator.random().below(seeds.len() as u64) as usize;
            mutator.damage(&mut bytes, &seeds[other]);
            figures.run_count += 1;
            if self.run_one(&bytes) {
                figures.accepted_count += 1;
                let random = mutator.random();
                if kept.len() < KEPT {
                    kept.push(bytes.clone());
                } else if random.is_one_in(16) {
                    kept[random.below(KEPT as u64) as usize].clone_from(&bytes);
                }
            }
        }
        figures
    }

    fn run_one(&self, bytes: &[u8]) -> bool {
        let told = Told(self.name, bytes);
        let is_accepted = (self.run)(bytes);
        mem::forget(told);
        is_accepted
    }

    /// Writes the seeds into a folder of the target's name, for other fuzzers.
    fn write_seeds(&self, corpus: &Path) -> io::Result<()> {
        let folder = corpus.join(self.name);
        fs::create_dir_all(&folder)?;
        for (number, bytes) in (self.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), bytes)?;
        }
        Ok(())
    }
}

/// Says which input it was if the target panics.
struct Told<'a>(&'static str, &'a [u8]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        let Self(name, bytes) = self;
        eprint!("{name}: this input broke it: ");
        bytes.iter().for_each(|byte| eprint!("{byte:02x}"));
        eprintln!();
    }
}

/// Returns the files of the machines of the fixtures whose names end so, and which folder each is in.
fn fixtures(extension: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/firmware");
    let read = |folder: &Path| {
        let entries = fs::read_dir(folder).expect("the fixtures are there");
        let paths = entries.map(|entry| entry.expect("the folder can be read").path());
        let mut paths: Vec<_> = paths.collect();
        paths.sort();
        paths
    };
    let mut files = Vec::new();
    for folder in read(&root) {
        for path in read(&folder) {
            if path.extension().is_some_and(|found| found == extension) {
                let bytes = fs::read(&path).expect("a fixture can be read");
                files.push((folder.clone(), bytes));
            }
        }
    }
    files
}

/// Returns the bytes without repetitions.
fn each_once(all: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort();
    all.dedup();
    all
}

/// Returns the first `N` words of the bytes, little-endian; what is missing is zero.
fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_le_bytes(whole);
    }
    words
}

/// Returns the bytes of words, behind others.
fn joined(head: &[u8], words: &[u64]) -> Vec<u8> {
    let words = words.iter().flat_map(|word| word.to_le_bytes());
    head.iter().copied().chain(words).collect()
}
