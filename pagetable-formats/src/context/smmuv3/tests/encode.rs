//! Words of STEs worked out by hand, and entries that cannot be decoded.

use super::*;
use crate::armv8::{TableWalk, Vtcr};

const NON_COHERENT: TableWalk = TableWalk::NON_COHERENT;

fn stage1() -> StreamStage1 {
    StreamStage1 {
        cds: CdTable::with_layout(Oa::new(0x4805_5000), CdTableFormat::Linear, 0).unwrap(),
        // All zero but S1CSH.
        fetch: NON_COHERENT,
        default_substream: DefaultSubstream::Terminate,
        stalls_disabled: false,
        is_el2: false,
    }
}

/// `S2T0SZ` 20, `S2SL0` 2, `S2SH0` 2, `S2PS` 4, `S2AA64`.
const VTCR: u64 = (0x14 | 2 << 6 | 2 << 12 | 4 << 16) << 32 | 1 << 51;

fn stage2() -> StreamStage2 {
    let vtcr = Stage2::<12>::new(44, 44).unwrap().vtcr(NON_COHERENT);
    let mut stage2 = StreamStage2::new(vtcr, Oa::new(0x480d_f000)).unwrap();
    stage2.records = false;
    stage2
}

#[track_caller]
fn expect_ste(stream: Stream, low: [u64; 4]) {
    let [a, b, c, d] = low;
    let ste = Ste::new([a, b, c, d, 0, 0, 0, 0]);
    assert_eq!(Ste::encode(&stream), ste, "{:x?}", Ste::encode(&stream));
    assert_eq!(ste.decode(), Ok(stream));
}

#[test]
fn configurations_have_their_codes() {
    expect_ste(Stream::ABORT, [1, 0, 0, 0]);
    // SHCFG 1: incoming.
    let incoming = 1 << 44;
    expect_ste(Stream::BYPASS, [1 | 4 << 1, incoming, 0, 0]);
    let bypass = Stream::BYPASS.with_attributes(Attributes::UNSUPPORTED);
    expect_ste(bypass, [9, 0, 0, 0]);
    expect_ste(Stream::stage1(stage1()), [0x4805_500b, 2 << 6, 0, 0]);
    expect_ste(Stream::stage2(stage2()), [0xd, incoming, VTCR, 0x480d_f000]);
    expect_ste(
        Stream::nested(stage1(), stage2()).unwrap(),
        [0x4805_500f, incoming | 2 << 6, VTCR, 0x480d_f000],
    );
    assert_eq!(Ste::INVALID.decode(), Err(SteError::Invalid));
    assert_eq!(Cd::INVALID.decode(), Err(CdError::Invalid));
}

#[test]
fn the_entries_of_linux_are_encoded_as_linux_does() {
    let linux = LINUX_S1.decode().unwrap();
    assert_eq!(
        linux,
        Stream::stage1(StreamStage1 {
            fetch: TableWalk::COHERENT,
            default_substream: DefaultSubstream::Substream0,
            ..stage1()
        })
    );
    assert_eq!(Ste::encode(&linux), LINUX_S1);

    let vtcr = Stage2::<12>::new(44, 44).unwrap().vtcr(TableWalk::COHERENT);
    let mut stage2 = StreamStage2::new(vtcr, Oa::new(0x480d_f000)).unwrap();
    stage2.protects_walks = true;
    let stream = Stream::stage2(stage2)
        .with_vmid(1)
        .with_attributes(Attributes::UNSUPPORTED);
    assert_eq!(Ste::encode(&stream), LINUX_S2);
    assert_eq!(LINUX_S2.decode(), Ok(stream));

    let tcr = Stage1::<12>::new(48, 44).unwrap().tcr(TableWalk::COHERENT);
    let context = Context::new(tcr, Oa::new(0x4805_6000))
        .unwrap()
        .with_mair(0xffff_ffff_f404_ff44)
        .with_asid(1);
    assert_eq!(Cd::encode(&context), LINUX_CD);
    assert_eq!(LINUX_CD.decode(), Ok(context));
}

#[test]
fn fields_of_stage_1_have_their_bits() {
    let ste = |change: fn(&mut StreamStage1), word0: u64, word1: u64| {
        let mut changed = stage1();
        change(&mut changed);
        expect_ste(Stream::stage1(changed), [word0, word1, 0, 0]);
    };
    let (word0, sh) = (0x4805_500b, 2 << 6);
    ste(
        |s| s.default_substream = DefaultSubstream::Substream0,
        word0,
        sh | 2,
    );
    // A bypass brings SHCFG into use.
    ste(
        |s| s.default_substream = DefaultSubstream::Bypass,
        word0,
        sh | 1 | 1 << 44,
    );
    ste(
        |s| s.fetch.inner = Cacheability::WriteBackNoAllocate,
        word0,
        sh | 3 << 2,
    );
    ste(
        |s| s.fetch.outer = Cacheability::WriteThrough,
        word0,
        sh | 2 << 4,
    );
    ste(
        |s| s.fetch.shareability = Shareability::Inner,
        word0,
        3 << 6,
    );
    ste(|s| s.stalls_disabled = true, word0, sh | 1 << 27);
    ste(|s| s.is_el2 = true, word0, sh | 2 << 30);
    let cds = |format, count_lg2| {
        let cds = CdTable::with_layout(Oa::new(0x00ab_cdef_0123_0000), format, count_lg2).unwrap();
        Stream::stage1(StreamStage1 { cds, ..stage1() })
    };
    let base = 0x00ab_cdef_0123_0000 | 0xb;
    expect_ste(cds(CdTableFormat::Linear, 5), [5 << 59 | base, sh, 0, 0]);
    expect_ste(
        cds(CdTableFormat::Kib4Leaves, 16),
        [16 << 59 | 1 << 4 | base, sh, 0, 0],
    );
    expect_ste(
        cds(CdTableFormat::Kib64Leaves, 20),
        [20 << 59 | 2 << 4 | base, sh, 0, 0],
    );
    // One CD has no layout.
    expect_ste(cds(CdTableFormat::Kib64Leaves, 0), [base, sh, 0, 0]);
}

#[test]
fn fields_of_stage_2_have_their_bits() {
    let ste = |change: fn(&mut StreamStage2), word2: u64| {
        let mut changed = stage2();
        change(&mut changed);
        let stream = Stream::stage2(changed).with_attributes(Attributes::UNSUPPORTED);
        expect_ste(stream, [0xd, 0, VTCR | word2, 0x480d_f000]);
    };
    ste(|s| s.protects_walks = true, 1 << 54);
    ste(|s| s.stalls = true, 1 << 57);
    ste(|s| s.records = true, 1 << 58);

    let ste = |vtcr: Vtcr, word1: u64, word2: u64, word3: u64| {
        let mut stage2 = StreamStage2::new(vtcr, Oa::new(0x4800_0000)).unwrap();
        stage2.records = false;
        let stream = Stream::stage2(stage2).with_attributes(Attributes::UNSUPPORTED);
        expect_ste(stream, [0xd, word1, word2 | 1 << 51, 0x4800_0000 | word3]);
    };
    let plain = stage2().vtcr();
    let forced = Vtcr {
        forced_write_back: true,
        ..plain
    };
    ste(forced, 1 << 25, VTCR, 0);
    let updates = |updates| Vtcr { updates, ..plain };
    ste(updates(HardwareUpdates::Ignored), 0, VTCR | 1 << 53, 0);
    ste(updates(HardwareUpdates::Accessed), 0, VTCR | 1 << 56, 0);
    ste(
        updates(HardwareUpdates::Dirty),
        0,
        VTCR | 1 << 56 | 1 << 55,
        0,
    );
    // 52 bits with 4 KiB: S2T0SZ 12, S2PS 6, S2DS, and S2SL0_2 for the fifth level.
    let format = Stage2::<12>::new_lpa(52, 52).unwrap();
    let wide = format
        .with_start_level(Level(4))
        .unwrap()
        .vtcr(TableWalk::COHERENT);
    ste(wide, 0, (0xc | 0x35 << 8 | 6 << 16) << 32, 1 << 2 | 1 << 3);
    // 64 KiB: S2T0SZ 22, S2SL0 1, S2TG 1, S2PS 5. 16 KiB: S2T0SZ 17, S2SL0 2, S2TG 2, S2PS 2.
    let format = Stage2::<16>::new(42, 48).unwrap();
    ste(
        format.vtcr(NON_COHERENT),
        0,
        (0x16 | 1 << 6 | 2 << 12 | 1 << 14 | 5 << 16) << 32,
        0,
    );
    let format = Stage2::<14>::new(47, 40).unwrap();
    ste(
        format.vtcr(NON_COHERENT),
        0,
        (0x11 | 2 << 6 | 2 << 12 | 2 << 14 | 2 << 16) << 32,
        0,
    );
}

#[test]
fn fields_of_every_stream_have_their_bits() {
    let bypass = Stream::BYPASS;
    let attributes = |attributes: Attributes, word1: u64| {
        expect_ste(bypass.with_attributes(attributes), [9, word1, 0, 0]);
    };
    let incoming = Attributes::INCOMING;
    for (shareability, bits) in [
        (Shareability::None, 0),
        (Shareability::Outer, 2),
        (Shareability::Inner, 3),
    ] {
        let shareability = Some(shareability);
        attributes(
            Attributes {
                shareability,
                ..incoming
            },
            bits << 44,
        );
    }
    let memory = MemoryType::new(0xd);
    attributes(
        Attributes { memory, ..incoming },
        1 << 44 | 1 << 36 | 0xd << 32,
    );
    for (position, hint) in [
        (39, [true, false, false]),
        (38, [false, true, false]),
        (37, [false, false, true]),
    ] {
        let [read, write, transient] = hint;
        let allocation = Some(AllocationHints {
            read,
            write,
            transient,
        });
        attributes(
            Attributes {
                allocation,
                ..incoming
            },
            1 << 44 | 1 << 40 | 1 << position,
        );
    }
    for (value, bits) in [(Override::Clear, 2), (Override::Set, 3)] {
        let privilege = Attributes {
            privilege: value,
            ..incoming
        };
        attributes(privilege, 1 << 44 | bits << 48);
        let instruction = Attributes {
            instruction: value,
            ..incoming
        };
        attributes(instruction, 1 << 44 | bits << 50);
    }

    let nested = Stream::nested(stage1(), stage2()).unwrap();
    let word1 = 1 << 44 | 2 << 6;
    let words = |word1, vmid| [0x4805_500f, word1, VTCR | vmid, 0x480d_f000];
    expect_ste(nested.with_vmid(0xabcd), words(word1, 0xabcd));
    expect_ste(nested.with_merged_events(), words(word1 | 1 << 19, 0));
    for (ats, bits) in [(Ats::Full, 1), (Ats::SplitStage, 2), (Ats::Checked, 3)] {
        expect_ste(nested.with_ats(ats).unwrap(), words(word1 | bits << 28, 0));
    }
}

#[test]
fn what_means_nothing_is_dropped() {
    let all = Attributes {
        memory: MemoryType::new(5),
        shareability: Some(Shareability::Inner),
        privilege: Override::Set,
        ..Attributes::INCOMING
    };
    let quiet = |stream: Stream| stream.with_vmid(5).with_merged_events();
    assert_eq!(quiet(Stream::ABORT).with_attributes(all), Stream::ABORT);
    assert_eq!(Stream::ABORT.attributes(), None);
    assert_eq!(quiet(Stream::BYPASS), Stream::BYPASS);
    // Stage 1 decides about types, not about who asks.
    let stream = Stream::stage1(stage1()).with_attributes(all);
    expect_ste(stream, [0x4805_500b, 2 << 6 | 3 << 48, 0, 0]);
    let mut bypassing = stage1();
    bypassing.default_substream = DefaultSubstream::Bypass;
    let stream = Stream::stage1(bypassing).with_attributes(all);
    let word1 = 3 << 48 | 3 << 44 | 1 << 36 | 5 << 32 | 2 << 6 | 1;
    expect_ste(stream, [0x4805_500b, word1, 0, 0]);
    assert_eq!((MemoryType::new(4), MemoryType::new(16)), (None, None));
}

#[test]
fn illegal_streams_cannot_be_made() {
    let is_refused = |result| matches!(result, Err(ConfigError::Option { .. }));
    let el2 = StreamStage1 {
        is_el2: true,
        ..stage1()
    };
    assert!(is_refused(Stream::nested(el2, stage2())));
    let mut stalling = stage2();
    stalling.stalls = true;
    for ats in [Ats::Full, Ats::SplitStage, Ats::Checked] {
        assert!(is_refused(Stream::ABORT.with_ats(ats)));
        assert!(is_refused(Stream::BYPASS.with_ats(ats)));
        assert!(is_refused(Stream::stage2(stalling).with_ats(ats)));
        let nested = Stream::nested(stage1(), stalling).unwrap();
        assert!(is_refused(nested.with_ats(ats)));
    }
    for stream in [Stream::stage1(stage1()), Stream::stage2(stage2())] {
        assert!(is_refused(stream.with_ats(Ats::SplitStage)));
        assert!(stream.with_ats(Ats::Checked).is_ok());
    }
    for stream in [Stream::ABORT, Stream::BYPASS, Stream::stage2(stalling)] {
        assert_eq!(stream.with_ats(Ats::Refused), Ok(stream));
    }

    let vtcr = stage2().vtcr();
    assert!(is_refused(
        StreamStage2::new(vtcr, Oa::new(0x480d_f040)).map(Stream::stage2)
    ));
    assert!(is_refused(
        StreamStage2::new(vtcr, Oa::new(1 << 44)).map(Stream::stage2)
    ));
    assert!(is_refused(
        StreamStage2::new(vtcr, Oa::new(1 << 52)).map(Stream::stage2)
    ));
    let unknown = Vtcr {
        oa_bits: 41,
        ..vtcr
    };
    assert!(StreamStage2::new(unknown, Oa::new(0x480d_f000)).is_err());
    let twisted = Vtcr {
        start: Level(1),
        ..vtcr
    };
    assert!(StreamStage2::new(twisted, Oa::new(0x480d_f000)).is_err());
}

#[test]
fn entries_that_say_more_are_refused() {
    let refused = |stream: Stream, word: usize, bits: u64| {
        let ste = Ste::encode(&stream);
        let changed = with_ste_word(&ste, word, ste.words()[word] ^ bits);
        assert_eq!(changed.decode(), Err(SteError::Undecodable { word, bits }));
    };
    let bypass = Stream::BYPASS;
    // CONT, DRE, DCP, PPAR, S1MPAM, NSCFG, reserved PRIVCFG; MPAM, the secure stage 2.
    for position in [13, 12, 17, 18, 26, 46, 48, 52] {
        refused(bypass, 1, bit(position));
    }
    for word in 4..8 {
        refused(bypass, word, bit(16));
    }
    // S1CSH 1, S1DSS 3, STRW 1, S1CDMax 21, misaligned CDs.
    let stream = Stream::stage1(stage1());
    let wide = Ste::encode(&stream).words()[0] | 21 << 59;
    assert!(
        with_ste_word(&Ste::encode(&stream), 0, wide)
            .decode()
            .is_err()
    );
    refused(stream, 1, 3);
    refused(stream, 1, bit(30));
    let csh = Ste::new([0x4805_500b, 1 << 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        csh.decode(),
        Err(SteError::Undecodable {
            word: 1,
            bits: 1 << 6
        })
    );
    let misaligned = Ste::new([6 << 59 | 0x4805_5040 | 0xb, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        misaligned.decode(),
        Err(SteError::Undecodable {
            word: 0,
            bits: 0x40
        })
    );
    // S2HD alone, S2TTB below the alignment, STRW beside stage 2, S2NSW.
    let stream = Stream::stage2(stage2());
    refused(stream, 2, bit(55));
    refused(stream, 3, 1);
    let nested = Stream::nested(stage1(), stage2()).unwrap();
    let el2 = with_ste_word(
        &Ste::encode(&nested),
        1,
        Ste::encode(&nested).words()[1] | 2 << 30,
    );
    assert!(matches!(el2.decode(), Err(SteError::Illegal(_))));
    let stalling = with_ste_word(&Ste::encode(&stream), 2, VTCR | bit(57));
    let with_ats = with_ste_word(&stalling, 1, 1 << 28 | 1 << 44);
    assert!(matches!(with_ats.decode(), Err(SteError::Illegal(_))));
    let lpae32 = Ste::new([0xd, 0, (8 | 1 << 6) << 32, 0x480d_f000, 0, 0, 0, 0]);
    assert!(lpae32.decode().is_err());
    let big = with_ste_word(&LINUX_S2, 2, LINUX_S2.words()[2] | bit(52));
    assert_eq!(big.decode(), Err(SteError::BigEndian));
    // Software may use SW_RESERVED, and anything in a stream that aborts.
    let marked = with_ste_word(&LINUX_S1, 1, LINUX_S1.words()[1] | 0xf << 20);
    assert_eq!(marked.decode(), LINUX_S1.decode());
    let aborting = Ste::new([7, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(aborting.decode(), Ok(Stream::ABORT));

    let refused = |word: usize, bits: u64| {
        let changed = with_cd_word(&LINUX_CD, word, LINUX_CD.words()[word] ^ bits);
        assert_eq!(changed.decode(), Err(CdError::Undecodable { word, bits }));
    };
    // HD alone, AA64; NSCFG0, HAFT, PnCH; AIE, PIE; MPAM.
    refused(0, bit(42));
    refused(0, bit(41));
    for (word, positions) in [(1, [0, 3, 58]), (2, [0, 3, 59]), (5, [0, 31, 63])] {
        for position in positions {
            refused(word, bit(position));
        }
    }
    // IPS 7 acts as 6.
    let reserved = with_cd_word(&LINUX_CD, 0, LINUX_CD.words()[0] | 7 << 32);
    assert_eq!(
        reserved.decode(),
        Err(CdError::Undecodable {
            word: 0,
            bits: 1 << 32
        })
    );
    let big = with_cd_word(&LINUX_CD, 0, LINUX_CD.words()[0] | bit(15));
    assert_eq!(big.decode(), Err(CdError::BigEndian));
    let misaligned = with_cd_word(&LINUX_CD, 1, 0x4805_6010);
    assert!(matches!(misaligned.decode(), Err(CdError::Stage1(_))));
    // Of a half that is not walked nothing counts, nor does UWXN.
    let noisy = with_cd_word(&LINUX_CD, 0, LINUX_CD.words()[0] | 0x3fff << 16 | bit(37));
    let noisy = with_cd_word(&noisy, 2, 0x1234_5672);
    assert_eq!(noisy.decode(), LINUX_CD.decode());
}
