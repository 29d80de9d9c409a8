//! Transitions between STEs and between CDs that drivers make: how many syncs each takes, and what
//! hardware sees meanwhile.

extern crate std;

use super::*;
use crate::armv8::TableWalk;
use crate::context::update::testing::{check, observe};
use crate::context::update::{Rules, plan};

/// Tags what is cached of all these streams: another one is another bit that hardware reads.
const VMID: u16 = 9;

fn cds(base: u64) -> CdTable {
    CdTable::with_layout(Oa::new(base), CdTableFormat::Kib64Leaves, 20).unwrap()
}

fn stage1(base: u64, default_substream: DefaultSubstream) -> StreamStage1 {
    StreamStage1 {
        cds: cds(base),
        fetch: TableWalk::COHERENT,
        default_substream,
        stalls_disabled: false,
        is_el2: false,
    }
}

fn stage2() -> StreamStage2 {
    let vtcr = Stage2::<12>::new(44, 44).unwrap().vtcr(TableWalk::COHERENT);
    let mut stage2 = StreamStage2::new(vtcr, Oa::new(0x480d_f000)).unwrap();
    stage2.protects_walks = true;
    stage2
}

fn ste(stream: Stream) -> [u64; 8] {
    *Ste::encode(&stream).words()
}

fn s1(default_substream: DefaultSubstream, ats: Ats) -> [u64; 8] {
    let stage1 = stage1(0xf0_0000_0000, default_substream);
    let stream = Stream::stage1(stage1).with_vmid(VMID);
    ste(stream.with_ats(ats).unwrap())
}

fn s2(ats: Ats, stalls: bool) -> [u64; 8] {
    let mut stage2 = stage2();
    stage2.stalls = stalls;
    ste(Stream::stage2(stage2)
        .with_vmid(VMID)
        .with_ats(ats)
        .unwrap())
}

fn nested(default_substream: DefaultSubstream, ats: Ats) -> [u64; 8] {
    let stage1 = stage1(0xf0_0000_0000, default_substream);
    let stream = Stream::nested(stage1, stage2())
        .unwrap()
        .with_vmid(VMID)
        .with_merged_events();
    ste(stream.with_ats(ats).unwrap())
}

/// Checks an update, and that it takes `syncs` and is hitless or not.
fn expect<R: Rules<8>>(rules: &R, from: [u64; 8], to: [u64; 8], syncs: usize, is_hitless: bool) {
    let update = check(rules, &from, &to);
    assert_eq!(
        (update.sync_count(), update.is_hitless()),
        (syncs, is_hitless),
        "{from:x?} -> {to:x?}: {update:x?}"
    );
    // Every step of this hardware ends with a sync.
    assert_eq!(update.steps().len(), syncs);
}

#[test]
fn drivers_switch_streams_with_the_fewest_syncs() {
    use DefaultSubstream::{Bypass, Substream0};
    let (abort, bypass) = (ste(Stream::ABORT), ste(Stream::BYPASS));
    let s1_ats = s1(Substream0, Ats::Full);
    let s2_ats = s2(Ats::Full, false);
    let s1_bypass = s1(Bypass, Ats::Full);
    let (s1_stall, s2_stall) = (s1(Substream0, Ats::Refused), s2(Ats::Refused, true));
    let nested_bypass = nested(Bypass, Ats::Full);
    let moved = stage1(0x4_b4b4_0000, Bypass);
    let moved = Stream::stage1(moved).with_vmid(VMID);
    let moved = ste(moved.with_ats(Ats::Full).unwrap());

    let transitions = [
        (bypass, abort, 2, true),
        (abort, bypass, 2, true),
        (s1_ats, abort, 2, true),
        (abort, s1_ats, 2, true),
        (s1_ats, bypass, 3, true),
        (bypass, s1_ats, 3, true),
        (s1_ats, s1_bypass, 1, true),
        (s1_bypass, s1_ats, 1, true),
        (s1_bypass, bypass, 2, true),
        (bypass, s1_bypass, 2, true),
        (s2_ats, abort, 2, true),
        (abort, s2_ats, 2, true),
        (s2_ats, bypass, 2, true),
        (bypass, s2_ats, 2, true),
        (s1_ats, s2_ats, 3, true),
        (s2_ats, s1_ats, 3, true),
        // The address and S1DSS stand in two words.
        (s1_ats, moved, 3, false),
        (s1_stall, s2_stall, 3, true),
        (s2_stall, s1_stall, 3, true),
        // MEV differs.
        (nested_bypass, s2_ats, 3, true),
        (s2_ats, nested_bypass, 2, true),
    ];
    for (from, to, syncs, is_hitless) in transitions {
        expect(&SteRules, from, to, syncs, is_hitless);
    }
}

fn context(root: u64, asid: u16) -> Context {
    let tcr = Stage1::<12>::new(48, 48).unwrap().tcr(TableWalk::COHERENT);
    Context::new(tcr, Oa::new(root))
        .unwrap()
        .with_mair(0xf404_ff44)
        .with_asid(asid)
}

fn sva() -> Context {
    context(0x1_2345_6000, 27)
        .with_shared_asid(27)
        .with_faults(FaultPolicy {
            stalls: true,
            ..FaultPolicy::ABORT
        })
}

/// An address space that is gone while the device still uses it: faults are neither recorded nor
/// stall.
fn released() -> Context {
    let faults = FaultPolicy {
        stalls: false,
        records: false,
        aborts: true,
    };
    sva().without_table(Half::Lower).with_faults(faults)
}

fn cd(context: Context) -> [u64; 8] {
    *Cd::encode(&context).words()
}

#[test]
fn drivers_switch_substreams_with_the_fewest_syncs() {
    let invalid = *Cd::INVALID.words();
    let (first, second) = (cd(context(0x4805_6000, 1)), cd(context(0x4805_6000, 2)));
    let transitions = [
        (invalid, first, 2, false),
        (first, invalid, 2, false),
        (first, second, 1, true),
        (cd(sva()), cd(released()), 2, true),
        (cd(released()), cd(sva()), 2, true),
        (invalid, cd(sva()), 2, false),
    ];
    for (from, to, syncs, is_hitless) in transitions {
        expect(&CdRules, from, to, syncs, is_hitless);
    }
    // Another root and another ASID at once cannot be hitless.
    let other = cd(context(0x4806_0000, 2));
    expect(&CdRules, first, other, 3, false);
}

#[test]
fn an_invalid_stream_becomes_valid_with_its_first_word() {
    let s2 = s2(Ats::Refused, false);
    let update = check(&SteRules, &[0; 8], &s2);
    let stored: [&[usize]; 2] = [&[1, 2, 3], &[0]];
    for (step, stored) in update.steps().iter().zip(stored) {
        assert!(
            step.stores()
                .map(|store| store.first)
                .eq(stored.iter().copied())
        );
    }
    let update = check(&SteRules, &s2, &[0; 8]);
    let stored: [&[usize]; 2] = [&[0], &[1, 2, 3]];
    for (step, stored) in update.steps().iter().zip(stored) {
        assert!(
            step.stores()
                .map(|store| store.first)
                .eq(stored.iter().copied())
        );
    }
    assert_eq!(update.steps().len(), 2);
}

/// The rules with a bit less.
struct Without {
    /// Whether no bit is safe.
    is_strict: bool,
    /// Bits that count as not read.
    hidden: [u64; 8],
}

impl Rules<8> for Without {
    fn used(&self, ste: &[u64; 8]) -> [u64; 8] {
        let used = SteRules.used(ste);
        core::array::from_fn(|word| used[word] & !self.hidden[word])
    }

    fn is_valid(&self, ste: &[u64; 8]) -> bool {
        SteRules.is_valid(ste)
    }

    fn safe(&self, current: &[u64; 8], target: &[u64; 8]) -> [u64; 8] {
        if self.is_strict {
            [0; 8]
        } else {
            SteRules.safe(current, target)
        }
    }
}

#[test]
fn safe_bits_make_the_difference_where_they_are() {
    use DefaultSubstream::{Bypass, Substream0};
    let strict = Without {
        is_strict: true,
        hidden: [0; 8],
    };
    let s2_ats = s2(Ats::Full, false);
    // MEV, and EATS[0] of a device that gives up ATS on the way.
    for (from, to) in [
        (nested(Bypass, Ats::Full), s2_ats),
        (s1(Substream0, Ats::Full), s2(Ats::Refused, false)),
        (s2(Ats::Refused, false), s1(Substream0, Ats::Full)),
    ] {
        assert!(check(&SteRules, &from, &to).is_hitless());
        assert!(check(&strict, &from, &to).is_breaking());
    }
    // EATS[0] is not safe beside stalls and beside split-stage ATS.
    for (from, to) in [
        (s1(Substream0, Ats::Full), s2(Ats::Refused, true)),
        (s2(Ats::Refused, true), s1(Substream0, Ats::Full)),
        (nested(Substream0, Ats::SplitStage), s2_ats),
        (s2_ats, nested(Substream0, Ats::SplitStage)),
        (nested(Substream0, Ats::Checked), s2(Ats::Refused, false)),
        (nested(Substream0, Ats::SplitStage), s2(Ats::Checked, false)),
    ] {
        assert!(check(&SteRules, &from, &to).is_breaking());
    }
}

/// Bits that hardware does not read, by hand.
#[test]
fn what_is_read_depends_on_the_configuration() {
    let free = |ste: [u64; 8]| SteRules.used(&ste).map(|used| !used);
    let low = |words: [u64; 4]| {
        let [a, b, c, d] = words;
        [a, b, c, d, 0, 0, 0, 0]
    };
    // Not valid; an abort, whatever Config[1:0] says.
    let nothing =
        |first: u64| core::array::from_fn(|word| if word == 0 { !first } else { u64::MAX });
    assert_eq!(free([0xfffe, 1, 2, 3, 4, 5, 6, 7]), nothing(1));
    assert_eq!(free([0xfff7, 1, 2, 3, 4, 5, 6, 7]), nothing(9));
    // Bypass: no stage 1 (S1Fmt to S1CDMax; S1DSS to S1CSH, S1STALLD, STRW), no stage 2 (S2FWB;
    // word 2 but 31:16 and 63:59; word 3 from S2SL0_2 to S2TTB), no MEV, EATS; SW_RESERVED.
    let pointers = 0xf8ff_ffff_ffff_fff0;
    let (stage1, stage2, both) = (0xc800_00ff, 1 << 25, 0x3008_0000);
    let (memory, hints, software) = (0xf << 32, 7 << 37, 0xf << 20);
    let (word2, word3) = (0x07ff_ffff_0000_ffff, 0x000f_ffff_ffff_fffc);
    let word1 = stage1 | stage2 | both | memory | hints | software;
    assert_eq!(
        free(ste(Stream::BYPASS)),
        low([pointers, word1, word2, word3])
    );
    // MemAttr is read with MTCFG, the hints with ALLOCCFG[3].
    let replacing = low([9, bit(36) | bit(40), 0, 0]);
    let word1 = word1 & !(memory | hints);
    assert_eq!(free(replacing), low([pointers, word1, word2, word3]));
    // Stage 1: S2VMID is read, types are not; S1Fmt with substreams only.
    let s1_ats = s1(DefaultSubstream::Substream0, Ats::Full);
    let types = memory | 1 << 36 | 3 << 44;
    let word1 = stage2 | hints | software;
    let s1_free = low([0, word1 | types, word2 & !0xffff, word3]);
    assert_eq!(free(s1_ats), s1_free);
    let mut single = s1_ats;
    single[0] &= !(0x1f << 59);
    let mut single_free = s1_free;
    single_free[0] = 3 << 4;
    assert_eq!(free(single), single_free);
    let s1_bypass = s1(DefaultSubstream::Bypass, Ats::Full);
    assert_eq!(
        free(s1_bypass),
        low([0, word1 | memory, word2 & !0xffff, word3])
    );
    // Stage 2: all of words 2 and 3, but S2AFFD with S2HA.
    let s2 = s2(Ats::Full, false);
    let word1 = stage1 | memory | hints | software;
    assert_eq!(free(s2), low([pointers, word1, 0, 0]));
    let mut updating = s2;
    updating[2] |= bit(56);
    assert_eq!(free(updating), low([pointers, word1, bit(53), 0]));
    let nested = nested(DefaultSubstream::Substream0, Ats::Full);
    assert_eq!(free(nested), low([0, memory | hints | software, 0, 0]));

    let free = |cd: [u64; 8]| CdRules.used(&cd).map(|used| !used);
    assert_eq!(free([!bit(31); 8]), nothing(bit(31)));
    // UWXN; the walks that EPD0 and EPD1 disable; AFFD with HA.
    let (valid, uwxn) = (bit(31) | bit(41), bit(37));
    let table = 0x000f_ffff_ffff_fff2;
    assert_eq!(free(low([valid, 0, 0, 0])), low([uwxn, 0, 0, 0]));
    assert_eq!(
        free(low([valid | bit(14), 0, 0, 0])),
        low([uwxn | 0x3fff, table, 0, 0])
    );
    let upper = low([uwxn | 0x3fff_0000, 0, table, 0]);
    assert_eq!(free(low([valid | bit(30), 0, 0, 0])), upper);
    assert_eq!(
        free(low([valid | bit(43), 0, 0, 0])),
        low([uwxn | bit(35), 0, 0, 0])
    );
    assert_eq!(free(low([bit(31) | bit(43), 0, 0, 0])), [0; 8]);
}

#[test]
fn each_bit_that_is_read_stays_until_the_switch() {
    // All fields of the configurations are set in one of these.
    let mut full = [
        s1(DefaultSubstream::Bypass, Ats::Checked),
        nested(DefaultSubstream::Bypass, Ats::Checked),
        s2(Ats::Refused, true),
    ];
    for ste in &mut full {
        ste[1] |= bit(3) | bit(5) | bit(27) | 0xf << 32 | bit(36) | 0xf << 37 | 0xf << 48;
        ste[1] |= bit(25);
        ste[2] |= 0xffff | 0x7_ffff << 32 | bit(55) | bit(56);
        ste[3] |= 0xc;
    }
    let mut hidden_count = 0;
    for from in full {
        let to = ste(Stream::ABORT);
        let safe = SteRules.safe(&from, &to);
        let used = SteRules.used(&from);
        for word in 1..4 {
            for position in 0..64 {
                let mut hidden = [0; 8];
                hidden[word] = from[word] & used[word] & !safe[word] & bit(position);
                if hidden[word] == 0 {
                    continue;
                }
                let careless = Without {
                    is_strict: false,
                    hidden,
                };
                let update = plan(&careless, &from, &to);
                let seen = observe(&SteRules, &from, &to, update.steps());
                assert!(seen.torn.is_some(), "bit {position} of word {word}");
                hidden_count += 1;
            }
        }
    }
    assert!(hidden_count > 100, "{hidden_count}");
}

#[test]
fn a_switch_without_each_of_its_syncs_is_seen_to_tear() {
    let from = s1(DefaultSubstream::Substream0, Ats::Full);
    for (to, torn_without) in [
        (s2(Ats::Full, false), [true, true, false]),
        (ste(Stream::BYPASS), [true, true, false]),
    ] {
        let update = plan(&SteRules, &from, &to);
        for (dropped, is_torn) in torn_without.into_iter().enumerate() {
            let steps: std::vec::Vec<_> = update
                .steps()
                .iter()
                .enumerate()
                .map(|(index, step)| {
                    if index == dropped {
                        step.without_sync()
                    } else {
                        *step
                    }
                })
                .collect();
            let seen = observe(&SteRules, &from, &to, &steps);
            assert_eq!(seen.torn.is_some(), is_torn, "{dropped} of {update:x?}");
        }
    }
}
