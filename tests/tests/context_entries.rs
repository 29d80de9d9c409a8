//! The stream table entries and context descriptors that Linux wrote for real devices, decoded whole
//! and encoded again: the same words.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that is not as described fails the test"
)]

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use flate2::read::GzDecoder;
use iopt_formats::Oa;
use iopt_formats::armv8::Half;
use iopt_formats::context::smmuv3::{
    Attributes, Cd, CdRules, Ste, SteAddress, SteRules, Stream, StreamConfig, StreamTable,
};
use iopt_formats::context::update::{Rules as _, plan};
use serde_json::Value;

fn open(name: &str) -> Value {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let path = root.join(format!("fixtures/tables/{name}.json.gz"));
    let mut text = Vec::new();
    GzDecoder::new(File::open(path).unwrap())
        .read_to_end(&mut text)
        .unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().unwrap();
    u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap()
}

fn words(value: &Value) -> [u64; 8] {
    let words: Vec<u64> = value.as_array().unwrap().iter().map(number).collect();
    words.try_into().unwrap()
}

/// Returns what `name`'s streams say, by stream number.
///
/// No entry here has a word that hardware does not read and Linux did not leave zero, so that there
/// is nothing that may differ.
fn check(name: &str) -> Vec<(u32, Stream)> {
    let sidecar = open(name);
    let register = |name: &str| number(&sidecar["registers"][name]);
    let (base, cfg) = (register("STRTAB_BASE"), register("STRTAB_BASE_CFG") as u32);
    let table = StreamTable::new(base, cfg);
    assert_eq!((table.base_register(), table.cfg_register()), (base, cfg));

    let mut streams = Vec::new();
    for stream in sidecar["streams"].as_array().unwrap() {
        let sid = u32::try_from(stream["sid"].as_u64().unwrap()).unwrap();
        assert!(matches!(table.address(sid), Some(SteAddress::L1(_))));
        let ste = Ste::new(words(&stream["ste"]));
        let decoded = ste.decode().unwrap();
        assert_eq!(Ste::encode(&decoded), ste, "{sid:#x}");
        assert_eq!(SteRules.used(ste.words())[0] & 1, 1);
        if let Some(stage1) = decoded.get_stage1() {
            assert_eq!(stage1.cds.base(), Oa::new(number(&stream["cd_pa"])));
            let cd = Cd::new(words(&stream["cd"]));
            let context = cd.decode().unwrap();
            assert_eq!(Cd::encode(&context), cd, "{sid:#x}");
            assert_eq!(CdRules.used(cd.words())[3], u64::MAX);
            assert_eq!(u64::from(context.asid()), stream["asid"].as_u64().unwrap());
            let (tcr, root) = context.table(Half::Lower).unwrap();
            assert_eq!(root, Oa::new(number(&stream["ttb0"])));
            assert_eq!(u64::from(tcr.tsz), stream["tsz"].as_u64().unwrap());
        }
        if let Some(stage2) = decoded.get_stage2() {
            assert_eq!(stage2.root(), Oa::new(number(&stream["s2ttb"])));
            assert_eq!(
                u64::from(stage2.vtcr().t0sz),
                stream["tsz"].as_u64().unwrap()
            );
            assert_eq!(u64::from(decoded.vmid()), stream["vmid"].as_u64().unwrap());
        }
        streams.push((sid, decoded));
    }
    streams
}

fn count(streams: &[(u32, Stream)], config: StreamConfig) -> usize {
    let of_config = streams
        .iter()
        .filter(|(_, stream)| stream.config() == config);
    of_config.count()
}

#[test]
fn stage_1_entries_of_linux_are_encoded_as_they_were() {
    let streams = check("smmu-a");
    let translated = count(&streams, StreamConfig::Stage1);
    assert_eq!(translated, 10);
    assert_eq!(
        count(&streams, StreamConfig::Abort),
        streams.len() - translated
    );
}

#[test]
fn stage_2_entries_of_linux_are_encoded_as_they_were() {
    let streams = check("smmu-s2");
    let translated = count(&streams, StreamConfig::Stage2);
    assert_eq!(translated, 10);
    assert_eq!(
        count(&streams, StreamConfig::Abort),
        streams.len() - translated
    );
}

#[test]
fn the_streams_of_linux_can_be_blocked_and_passed_through_at_once() {
    for name in ["smmu-a", "smmu-s2"] {
        for (sid, stream) in check(name) {
            let from = *Ste::encode(&stream).words();
            // This hardware replaces no types (ATTR_TYPES_OVR is clear), so that SHCFG is 0.
            let bypass = Stream::BYPASS.with_attributes(Attributes::UNSUPPORTED);
            for target in [Stream::ABORT, bypass] {
                let to = *Ste::encode(&target).words();
                assert!(plan(&SteRules, &from, &to).is_hitless(), "{sid:#x}");
                assert!(plan(&SteRules, &to, &from).is_hitless(), "{sid:#x}");
            }
        }
    }
}
