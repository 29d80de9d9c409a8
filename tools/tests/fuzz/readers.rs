//! What is searched: readers of traces, of flushes, of dumped tables. What was read is written and read again.

use std::fmt::Write as _;
use std::io::{self, BufRead as _};
use std::path::Path;

use iopt_formats::Prot;
use iopt_tests::fuzz::Target;
use iopt_tools::fixture::Fixture;
use iopt_tools::flush::{self, Scope};
use iopt_tools::input::{self, MAX_TEXT_LEN};
use iopt_tools::trace::{Action, DomainEnd, Operation, Trace};

/// The readers.
pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "trace",
        run: trace,
        seeds: trace_seeds,
    },
    Target {
        name: "flush",
        run: flushes,
        seeds: flush_seeds,
    },
    Target {
        name: "fixture",
        run: fixture,
        seeds: fixture_seeds,
    },
];

fn trace(bytes: &[u8]) -> bool {
    match Trace::read(bytes) {
        Ok(trace) => {
            let text = written(&trace);
            let mut again = Trace::read(text.as_bytes()).expect("it was written down");
            // The header is written otherwise, so lines move.
            for (operation, old) in again.operations.iter_mut().zip(&trace.operations) {
                operation.line = old.line;
            }
            assert_eq!(again, trace);
            assert!(trace.figures.live_pages <= trace.figures.peak_live_pages);
            true
        }
        Err(error) => {
            let line_count = bytes.split(|byte| *byte == b'\n').count() as u64;
            assert!((1..=line_count + 1).contains(&error.line), "{error}");
            false
        }
    }
}

fn written(trace: &Trace) -> String {
    let header = &trace.header;
    let end = match header.domain_end {
        DomainEnd::LastDetach => "end with its last detach",
        DomainEnd::Never => "outlives its last detach",
    };
    let mut text = format!(
        "# iopt-trace 1\n# page-size: {}\n# platform: {}\n# domain-end: {end}\n",
        header.page_size.bytes(),
        header.platform
    );
    for operation in &trace.operations {
        write_operation(&mut text, operation).expect("a string takes all");
    }
    text
}

fn write_operation(text: &mut String, operation: &Operation) -> std::fmt::Result {
    let (time, domain) = (operation.time_ns, operation.domain);
    match &operation.action {
        Action::Map { range, oa, prot } => {
            let (iova, oa, prot) = (range.start().get(), oa.get(), letters(*prot));
            let len = range.len().expect("a length of 64 bits was read");
            writeln!(
                text,
                "map {time} {domain} {iova:#x} {oa:#x} {len:#x} {prot}"
            )
        }
        Action::Unmap { range } => {
            let len = range.len().expect("a length of 64 bits was read");
            let iova = range.start().get();
            writeln!(text, "unmap {time} {domain} {iova:#x} {len:#x}")
        }
        Action::Attach { device } => writeln!(text, "attach {time} {domain} {device}"),
        Action::Detach { device } => writeln!(text, "detach {time} {domain} {device}"),
    }
}

fn letters(prot: Prot) -> String {
    let flags = [
        (prot.can_read(), 'r'),
        (prot.can_write(), 'w'),
        (prot == prot.device(), 'm'),
        (prot == prot.cached(), 'c'),
    ];
    let set = flags.iter().filter(|(is_set, _)| *is_set);
    set.map(|(_, letter)| letter).collect()
}

fn flushes(bytes: &[u8]) -> bool {
    let Ok(found) = flush::read(bytes) else {
        return false;
    };
    assert!(found.is_sorted_by_key(|flush| flush.after));
    let mut text = String::from("# iopt-flush 1\n");
    for flush in &found {
        let scope = match flush.scope {
            Scope::All => "all",
            Scope::Sync => "sync",
        };
        let (domain, after) = (flush.domain, flush.after);
        writeln!(text, "flush 0 {domain} {scope} {after}").expect("a string takes all");
    }
    let again = flush::read(text.as_bytes()).expect("it was written down");
    assert_eq!(again, found);
    true
}

/// The length of the sidecar in two bytes, the sidecar, the pages.
fn fixture(bytes: &[u8]) -> bool {
    let Some((len, rest)) = bytes.split_first_chunk() else {
        return false;
    };
    let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
    let (sidecar, pages) = rest.split_at(len);
    let path = Path::new("folder/name.json");
    let open = |path: &Path| {
        assert_eq!(
            path.parent(),
            Some(Path::new("folder")),
            "another folder is read"
        );
        io::Result::Ok(pages)
    };
    match Fixture::read(path, sidecar, open) {
        Ok(fixture) => {
            assert_eq!(fixture.pages.len(), pages.len() as u64 / 4104 * 4096);
            assert!(fixture.streams.is_sorted_by_key(|stream| stream.sid));
            let leaves = fixture.domains.iter().map(|domain| domain.leaves.len());
            assert_eq!(fixture.leaf_count(), leaves.sum::<usize>());
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// From the folder of the package.
const TRACES: &str = "../tests/fixtures/traces";

/// The first lines of a file of the fixtures.
fn beginning(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(TRACES)
        .join(name);
    let reader = input::open(&path, MAX_TEXT_LEN).expect("the fixtures are there");
    let lines = reader.lines().take(40);
    let lines = lines.map(|line| line.expect("a line of text") + "\n");
    lines.collect::<String>().into_bytes()
}

fn trace_seeds() -> Vec<Vec<u8>> {
    let whole = "# iopt-trace 1\n# page-size: 4096\n# platform: q35\n\
        # domain-end: a domain and its mappings end with its last detach\n\
        attach 0 1 nvme\nmap 1 1 0x1000 0x80000000 0x2000 rwc\nmap 2 1 0x5000 0xfee00000 0x1000 wm\n\
        unmap 3 1 0x1000 0x1000\ndetach 4 1 nvme\nattach 5 2 net\n";
    let names = [
        "mixed-smmu16k-lazy",
        "net-vtd-lazy",
        "vfio-smmu",
        "bringup-arm",
    ];
    let files = names
        .iter()
        .map(|name| beginning(&format!("{name}.trace.gz")));
    files.chain([whole.into()]).collect()
}

fn flush_seeds() -> Vec<Vec<u8>> {
    let names = ["mixed-smmu16k-lazy", "net-vtd-lazy", "vfio-smmu"];
    let files = names
        .iter()
        .map(|name| beginning(&format!("{name}.flush.gz")));
    files.collect()
}

fn fixture_seeds() -> Vec<Vec<u8>> {
    let sidecar = |pages: usize| {
        let text = format!(
            r#"{{"format": "smmuv3", "registers": {{"CR0": "0xd"}}, "ram": [{{"base": "0x40000000", "size": 4096}}],
"streams": [{{"sid": 8, "ste": ["0xd", "0x0"]}}, {{"sid": 1, "cd": ["0x1"]}}],
"domains": [{{"kind": "s1", "ttb0": "0x1000", "sids": [8], "leaves": [["0x0", "0x1000", 4096, "0x403"]]}}],
"pages_file": "name.pages", "pages": {pages}}}"#
        );
        let len = u16::try_from(text.len()).expect("it is short");
        [len.to_le_bytes().to_vec(), text.into_bytes()].concat()
    };
    let page = |address: u64| [address.to_le_bytes().to_vec(), vec![0x5a; 4096]].concat();
    vec![
        sidecar(0),
        [sidecar(2), page(0x1000), page(0x3000)].concat(),
    ]
}
