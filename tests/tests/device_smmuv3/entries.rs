//! Entries written live: every moment that hardware could see, and the words of real tables again.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use flate2::read::GzDecoder;
use iopt::device::context::EntryTable;
use iopt::device::smmuv3::Features;
use iopt_formats::Oa;
use iopt_formats::armv8::{Half, Stage1, Stage2, TableWalk};
use iopt_formats::context::smmuv3::{
    Ats, Cd, CdRules, CdTable, CdTableFormat, Context, DefaultSubstream, FaultPolicy, Ste,
    SteRules, Stream, StreamStage1, StreamStage2, StreamTable,
};
use iopt_formats::context::update::{Rules, plan};
use iopt_rig::{Machine, MachineConfig, Smmuv3};
use serde_json::Value;

type Words = [u64; 8];

fn stage1(base: u64, default_substream: DefaultSubstream) -> StreamStage1 {
    StreamStage1 {
        cds: CdTable::with_layout(Oa::new(base), CdTableFormat::Kib64Leaves, 20).unwrap(),
        fetch: TableWalk::COHERENT,
        default_substream,
        stalls_disabled: false,
        is_el2: false,
    }
}

fn stage2(stalls: bool) -> StreamStage2 {
    let vtcr = Stage2::<12>::new(44, 44).unwrap().vtcr(TableWalk::COHERENT);
    let mut stage2 = StreamStage2::new(vtcr, Oa::new(0x480d_f000)).unwrap();
    stage2.protects_walks = true;
    stage2.stalls = stalls;
    stage2
}

fn ste(stream: Stream, ats: Ats) -> Words {
    *Ste::encode(&stream.with_vmid(9).with_ats(ats).unwrap()).words()
}

/// From, to, and syncs.
fn streams() -> Vec<(Words, Words, usize)> {
    use DefaultSubstream::{Bypass, Substream0};
    const FIRST: u64 = 0xf0_0000_0000;
    let (abort, bypass) = (
        ste(Stream::ABORT, Ats::Refused),
        ste(Stream::BYPASS, Ats::Refused),
    );
    let s1 = |base, default, ats| ste(Stream::stage1(stage1(base, default)), ats);
    let s2 = |ats, stalls| ste(Stream::stage2(stage2(stalls)), ats);
    let nested = Stream::nested(stage1(FIRST, Bypass), stage2(false)).unwrap();
    let nested = ste(nested.with_merged_events(), Ats::Full);
    let (s1_ats, s1_bypass) = (
        s1(FIRST, Substream0, Ats::Full),
        s1(FIRST, Bypass, Ats::Full),
    );
    let (s2_ats, s2_stall) = (s2(Ats::Full, false), s2(Ats::Refused, true));
    let s1_stall = s1(FIRST, Substream0, Ats::Refused);
    let moved = s1(0x4_b4b4_0000, Bypass, Ats::Full);
    vec![
        (bypass, abort, 2),
        (abort, bypass, 2),
        (s1_ats, abort, 2),
        (abort, s1_ats, 2),
        (s1_ats, bypass, 3),
        (bypass, s1_ats, 3),
        (s1_ats, s1_bypass, 1),
        (s1_bypass, s1_ats, 1),
        (s1_bypass, bypass, 2),
        (bypass, s1_bypass, 2),
        (s2_ats, abort, 2),
        (abort, s2_ats, 2),
        (s2_ats, bypass, 2),
        (bypass, s2_ats, 2),
        (s1_ats, s2_ats, 3),
        (s2_ats, s1_ats, 3),
        (s1_ats, moved, 3),
        (s1_stall, s2_stall, 3),
        (s2_stall, s1_stall, 3),
        (nested, s2_ats, 3),
        (s2_ats, nested, 2),
    ]
}

fn substreams() -> Vec<(Words, Words, usize)> {
    let context = |asid| {
        let tcr = Stage1::<12>::new(48, 48).unwrap().tcr(TableWalk::COHERENT);
        let context = Context::new(tcr, Oa::new(0x4805_6000)).unwrap();
        context.with_mair(0xf404_ff44).with_asid(asid)
    };
    let stalling = FaultPolicy {
        stalls: true,
        ..FaultPolicy::ABORT
    };
    let silent = FaultPolicy {
        records: false,
        ..FaultPolicy::ABORT
    };
    let shared = context(27).with_shared_asid(27).with_faults(stalling);
    let released = shared.without_table(Half::Lower).with_faults(silent);
    let words = |context: &Context| *Cd::encode(context).words();
    let (first, second) = (words(&context(1)), words(&context(2)));
    let (shared, released) = (words(&shared), words(&released));
    vec![
        ([0; 8], first, 2),
        (first, [0; 8], 2),
        (first, second, 1),
        (shared, released, 2),
        (released, shared, 2),
        ([0; 8], shared, 2),
    ]
}

/// Writes an entry and looks, whenever hardware is told, at what it would fetch.
fn check<R: Rules<8>>(rules: &R, from: Words, to: Words, syncs: usize) {
    let machine = Machine::new(Smmuv3::<12>::default(), MachineConfig::default()).unwrap();
    let mut table: EntryTable<_, 8> =
        EntryTable::new(&Arc::new(machine.tables()), 4, &from).unwrap();
    let at = Oa::new(table.oa().get() + 64);
    let found = || -> Words {
        let words = machine.memory().words(at, 8).unwrap();
        core::array::from_fn(|word| {
            u64::from_le(words[word].load(std::sync::atomic::Ordering::SeqCst))
        })
    };
    let update = plan(rules, &from, &to);
    let mut steps = update.steps().iter();
    let mut expected = from;
    let mut sync_count = 0;
    let safe = rules.safe(&from, &to);
    let written = table.write(rules, 1, &to, || {
        // As planned, word by word, up to the next step that is told.
        for step in steps.by_ref() {
            for store in step.stores() {
                expected[store.first..][..store.words.len()].copy_from_slice(store.words);
            }
            if step.needs_sync() {
                break;
            }
        }
        let now = found();
        assert_eq!(now, expected);
        // The oracle: blocked, or the old one or the new one in all that hardware reads of it.
        let used = rules.used(&now);
        let is = |entry: &Words| {
            (0..8).all(|word| (now[word] ^ entry[word]) & used[word] & !safe[word] == 0)
        };
        assert!(now[0] == 0 || is(&from) || is(&to), "{now:x?}");
        assert!(now[0] != 0 || !update.is_hitless());
        sync_count += 1;
        Ok(())
    });
    assert_eq!(
        (written, sync_count),
        (Ok(syncs), syncs),
        "{from:x?} -> {to:x?}"
    );
    assert_eq!(found(), to);
}

/// A3.1: all 27 transitions, in memory that hardware reads.
#[test]
fn live_entries_pass_through_what_was_planned() {
    let (streams, substreams) = (streams(), substreams());
    assert_eq!(streams.len() + substreams.len(), 27);
    for (from, to, syncs) in streams {
        check(&SteRules, from, to, syncs);
    }
    for (from, to, syncs) in substreams {
        check(&CdRules, from, to, syncs);
    }
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().unwrap();
    u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap()
}

fn words(value: &Value) -> Words {
    let words: Vec<u64> = value.as_array().unwrap().iter().map(number).collect();
    words.try_into().unwrap()
}

fn open(name: &str) -> Value {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let path = root.join(format!("fixtures/tables/{name}.json.gz"));
    let mut text = Vec::new();
    let file = File::open(path).unwrap();
    GzDecoder::new(file).read_to_end(&mut text).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The streams of Linux, described, and written by the engine into a stream table of its own: each STE has
/// the same words. Level 2 tables stand elsewhere, so that descriptors and the base differ in addresses alone.
#[test]
fn the_streams_of_linux_are_written_in_the_same_words() {
    for name in ["smmu-a", "smmu-s2"] {
        let sidecar = open(name);
        let register = |name: &str| number(&sidecar["registers"][name]);
        let cfg = register("STRTAB_BASE_CFG") as u32;
        let theirs = StreamTable::new(register("STRTAB_BASE"), cfg);
        let machine = Machine::new(Smmuv3::<12>::default(), MachineConfig::default()).unwrap();
        let features = Features {
            stream_bits: theirs.count_lg2(),
            has_two_level_streams: theirs.split().is_some(),
            ..Features::from_registers(3 | 1 << 4, 0, 0, 5 | 7 << 4)
        };
        let memory = Arc::new(machine.tables());
        let instance = Arc::clone(machine.instance());
        let smmu = iopt::device::smmuv3::Smmu::new(features, memory, instance).unwrap();
        let ours = smmu.stream_table();
        assert_eq!(ours.cfg_register(), cfg);
        let mut written = 0;
        for stream in sidecar["streams"].as_array().unwrap() {
            let sid = u32::try_from(stream["sid"].as_u64().unwrap()).unwrap();
            let theirs = Ste::new(words(&stream["ste"]));
            smmu.link(sid).unwrap();
            smmu.write(sid, &theirs.decode().unwrap()).unwrap();
            assert_eq!(smmu.ste(sid), Some(theirs), "{name} {sid:#x}");
            written += 1;
        }
        // Streams beside them abort, as those of Linux that no device has.
        assert!(written > 10);
        assert_eq!(smmu.ste(1).map(|ste| ste.words()[0]), Some(1));
    }
}
