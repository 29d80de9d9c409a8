//! Entries made and encoded: words worked out by hand, and decoding what was encoded.

use super::*;
use crate::context::testing::{Random, check_used};

const TABLE: Oa = Oa::new(0x000a_bcde_f012_3000);

fn second_stage_at(va_bits: u8, oa: Oa) -> Stage<SecondStage> {
    Stage::second(SecondStage::new(va_bits).unwrap(), oa).unwrap()
}

fn tracked_at(va_bits: u8, oa: Oa) -> Stage<SecondStage> {
    let format = SecondStage::new(va_bits).unwrap().with_dirty();
    Stage::second(format, oa).unwrap()
}

fn first_stage_at(va_bits: u8, oa: Oa) -> Stage<FirstStage> {
    Stage::first(FirstStage::sign_extended(va_bits).unwrap(), oa).unwrap()
}

#[test]
fn registers_and_root_entries_have_the_words_of_the_specification() {
    let register = |mode| RootTable::new(mode, TABLE).unwrap().encode();
    assert_eq!(register(TableMode::Legacy), 0x000a_bcde_f012_3000);
    assert_eq!(register(TableMode::Scalable), 0x000a_bcde_f012_3400);
    assert_eq!(RootTable::ABORT_DMA, 0xc00);
    assert_eq!(RootTable::decode(RootTable::ABORT_DMA), Ok(None));
    for mode in [TableMode::Legacy, TableMode::Scalable] {
        let table = RootTable::new(mode, TABLE).unwrap();
        assert_eq!(RootTable::decode(table.encode()), Ok(Some(table)));
    }

    let (low, high) = (Oa::new(0x1000), TABLE);
    for (entry, words) in [
        (RootEntry::legacy(None), [0, 0]),
        (RootEntry::legacy(Some(TABLE)), [0x000a_bcde_f012_3001, 0]),
        (RootEntry::scalable(Some(low), None), [0x1001, 0]),
        (
            RootEntry::scalable(None, Some(high)),
            [0, 0x000a_bcde_f012_3001],
        ),
        (
            RootEntry::scalable(Some(low), Some(high)),
            [0x1001, 0x000a_bcde_f012_3001],
        ),
    ] {
        let entry = entry.unwrap();
        assert_eq!(entry.encode(), words);
        assert_eq!(RootEntry::decode(words, entry.mode()), Ok(entry));
    }
}

#[test]
fn legacy_context_entries_have_the_words_of_the_specification() {
    let second = |va_bits| LegacyContext::second(0x1234, second_stage_at(va_bits, TABLE)).unwrap();
    for (context, words) in [
        (LegacyContext::blocked(), [0, 0]),
        (LegacyContext::blocked().with_faults_disabled(), [2, 0]),
        (second(39), [0x000a_bcde_f012_3001, 0x0012_3401]),
        (second(48), [0x000a_bcde_f012_3001, 0x0012_3402]),
        (second(57), [0x000a_bcde_f012_3001, 0x0012_3403]),
        (
            second(48).with_device_tlb().unwrap(),
            [0x000a_bcde_f012_3005, 0x0012_3402],
        ),
        (
            second(48).with_faults_disabled(),
            [0x000a_bcde_f012_3003, 0x0012_3402],
        ),
        (
            LegacyContext::pass_through(0xffff, AddressWidth::Bits39),
            [0x9, 0x00ff_ff01],
        ),
        (
            LegacyContext::pass_through(1, AddressWidth::Bits57),
            [0x9, 0x103],
        ),
    ] {
        assert_eq!(context.encode(), words);
        assert_eq!(LegacyContext::decode(words), Ok(context));
    }
}

#[test]
fn scalable_context_entries_have_the_words_of_the_specification() {
    let directory = |count| PasidDirectory::new(TABLE, count).unwrap();
    let context = |count| ScalableContext::new(directory(count), 0).unwrap();
    let low = 0x000a_bcde_f012_3001;
    for (context, words) in [
        (ScalableContext::blocked(), [0; 4]),
        (
            ScalableContext::blocked().with_faults_disabled(),
            [2, 0, 0, 0],
        ),
        (context(1 << 13), [low, 0, 0, 0]),
        (context(1 << 14), [low | 0x200, 0, 0, 0]),
        (context(1 << 17), [low | 0x800, 0, 0, 0]),
        (context(1 << 20), [low | 0xe00, 0, 0, 0]),
        (context(1 << 13).with_faults_disabled(), [low | 2, 0, 0, 0]),
        (context(1 << 13).with_device_tlb(), [low | 4, 0, 0, 0]),
        (context(1 << 13).with_pasid(), [low | 8, 0, 0, 0]),
        (context(1 << 13).with_page_requests(), [low | 0x10, 0, 0, 0]),
        (context(1 << 13).with_privileged(), [low, 0x0010_0000, 0, 0]),
        (
            ScalableContext::new(directory(1 << 20), 0xf_edcb).unwrap(),
            [low | 0xe00, 0xf_edcb, 0, 0],
        ),
    ] {
        assert_eq!(context.encode(), words);
        assert_eq!(ScalableContext::decode(words), Ok(context));
    }
    let flags = |entry: ScalableContext| {
        entry
            .with_device_tlb()
            .with_pasid()
            .with_page_requests()
            .with_privileged()
    };
    let blocked = ScalableContext::blocked();
    assert_eq!(flags(blocked), blocked, "an absent entry says nothing");

    let table = PasidDirectoryEntry::new(TABLE).unwrap();
    for (entry, word) in [
        (PasidDirectoryEntry::blocked(), 0),
        (PasidDirectoryEntry::blocked().with_faults_disabled(), 2),
        (table, low),
        (table.with_faults_disabled(), low | 2),
    ] {
        assert_eq!(entry.encode(), word);
        assert_eq!(PasidDirectoryEntry::decode(word), Ok(entry));
    }
}

#[test]
fn pasid_entries_have_the_words_of_the_specification() {
    let other = Oa::new(0x5_4321_0000);
    let first = |va_bits| PasidEntry::first(7, first_stage_at(va_bits, TABLE));
    let pointer = TABLE.get();
    for (entry, words) in [
        (PasidEntry::blocked(), [0, 0, 0]),
        (PasidEntry::blocked().with_faults_disabled(), [2, 0, 0]),
        (first(48), [0x41, 7, pointer]),
        (first(57), [0x41, 7, pointer | 4]),
        (
            first(48).with_address_width(AddressWidth::Bits48),
            [0x49, 7, pointer],
        ),
        (first(48).with_faults_disabled(), [0x43, 7, pointer]),
        (first(48).with_supervisor_requests(), [0x41, 7, pointer | 1]),
        (first(48).with_write_protect(), [0x41, 7, pointer | 0x10]),
        (
            first(48).with_extended_accessed(),
            [0x41, 7, pointer | 0x80],
        ),
        (first(48).with_execute_disable(), [0x41, 7, pointer | 0x20]),
        (first(48).with_walk_snoop(), [0x41, 0x80_0007, pointer]),
        (first(48).with_page_snoop(), [0x41, 0x100_0007, pointer]),
        (
            first(48).with_memory_types(MemoryTypes {
                is_cache_disabled: true,
                ..MemoryTypes::default()
            }),
            [0x41, 0x200_0007, pointer],
        ),
        (
            first(48).with_memory_types(MemoryTypes {
                has_extended: true,
                ..MemoryTypes::default()
            }),
            [0x41, 0x400_0007, pointer],
        ),
        (
            first(48).with_memory_types(MemoryTypes {
                pat: 0x0007_0406,
                ..MemoryTypes::default()
            }),
            [0x41, 0x0007_0406_0000_0007, pointer],
        ),
        (
            PasidEntry::second(0xfedc, second_stage_at(39, TABLE)),
            [pointer | 0x85, 0xfedc, 0],
        ),
        (
            PasidEntry::second(0xfedc, second_stage_at(48, TABLE)),
            [pointer | 0x89, 0xfedc, 0],
        ),
        (
            PasidEntry::second(0xfedc, tracked_at(57, TABLE)),
            [pointer | 0x28d, 0xfedc, 0],
        ),
        (
            PasidEntry::nested(0xfedc, first_stage_at(57, other), tracked_at(48, TABLE)),
            [pointer | 0x2c9, 0xfedc, 0x5_4321_0004],
        ),
        (
            PasidEntry::pass_through(1, AddressWidth::Bits39),
            [0x105, 1, 0],
        ),
        (
            PasidEntry::pass_through(1, AddressWidth::Bits57).with_page_snoop(),
            [0x10d, 0x100_0001, 0],
        ),
    ] {
        let words = pasid_words(words[0], words[1], words[2]);
        assert_eq!(entry.encode(), words);
        assert_eq!(PasidEntry::decode(words), Ok(entry));
    }
    let blocked = PasidEntry::blocked();
    let flags = blocked
        .with_walk_snoop()
        .with_page_snoop()
        .with_supervisor_requests()
        .with_write_protect()
        .with_extended_accessed()
        .with_memory_types(MemoryTypes {
            pat: 1,
            ..MemoryTypes::default()
        })
        .with_address_width(AddressWidth::Bits57);
    assert_eq!(flags, blocked, "an absent entry says nothing");
    let second = PasidEntry::second(1, second_stage_at(48, TABLE));
    assert_eq!(second.with_address_width(AddressWidth::Bits57), second);
}

#[test]
fn what_has_no_encoding_is_not_made() {
    for n in (0..64).filter(|n| !(12..52).contains(n)) {
        let oa = Oa::new(TABLE.get() ^ bit(n));
        let refused = |entry| ContextError::Pointer { entry, oa };
        let register = RootTable::new(TableMode::Legacy, oa);
        assert_eq!(register, Err(refused("root table address")));
        for entry in [
            RootEntry::legacy(Some(oa)),
            RootEntry::scalable(Some(oa), None),
            RootEntry::scalable(None, Some(oa)),
        ] {
            assert_eq!(entry, Err(refused("root entry")));
        }
        let directory = PasidDirectory::new(oa, 1 << 13);
        assert_eq!(directory, Err(refused("PASID directory")));
        let entry = PasidDirectoryEntry::new(oa);
        assert_eq!(entry, Err(refused("PASID directory entry")));
        let first = Stage::first(FirstStage::sign_extended(48).unwrap(), oa);
        assert_eq!(first, Err(refused("first stage")));
        let second = Stage::second(SecondStage::new(48).unwrap(), oa);
        assert_eq!(second, Err(refused("second stage")));
    }
    for count in [0, 1, 1 << 12, (1 << 13) + 1, 3 << 13, 1 << 21] {
        let error = ContextError::PasidCount { count };
        assert_eq!(PasidDirectory::new(TABLE, count), Err(error));
    }
    let directory = PasidDirectory::new(TABLE, 1 << 13).unwrap();
    let pasid = 1 << 13;
    let error = ContextError::Pasid { pasid };
    assert_eq!(ScalableContext::new(directory, pasid), Err(error));

    let entry = "context entry";
    let tracked = LegacyContext::second(1, tracked_at(48, TABLE));
    assert_eq!(tracked, Err(ContextError::DirtyTracking { entry }));
    for context in [
        LegacyContext::blocked(),
        LegacyContext::pass_through(1, AddressWidth::Bits48),
    ] {
        let error = ContextError::DeviceTlb { entry };
        assert_eq!(context.with_device_tlb(), Err(error));
    }
}

#[test]
fn a_stage_keeps_of_its_format_what_entries_say() {
    let format = SecondStage::new(40).unwrap().with_snoop();
    let format = format.with_oa_bits(39).unwrap();
    assert_eq!(Stage::second(format, TABLE), Ok(second_stage_at(48, TABLE)));
    // The positive half of what hardware decodes.
    for (va_bits, canonical_bits) in [(47, 48), (40, 48), (56, 57)] {
        let lower = FirstStage::new(va_bits).unwrap().with_execute_disable();
        let stage = Stage::first(lower, TABLE).unwrap();
        assert_eq!(stage, first_stage_at(canonical_bits, TABLE));
    }
    for (va_bits, levels) in [(48, 4), (57, 5)] {
        let lower = FirstStage::new(va_bits).unwrap();
        let error = ContextError::NotCanonical { levels };
        assert_eq!(Stage::first(lower, TABLE), Err(error));
    }
}

/// Returns words that decoding accepts now and then: random ones without reserved bits, with bit 0.
fn random_words<const N: usize>(random: &mut Random, fields: [&[Field]; N]) -> [u64; N] {
    fields.map(|fields| {
        let mask = fields.iter().fold(0, |mask, field| mask | field.mask());
        random.next() & mask & !POINTER_TOO_WIDE.mask() | mask & 1
    })
}

/// Decodes random words and encodes them again: the same but for what hardware ignores, and hardware
/// reads nothing else.
fn check_round_trips<const N: usize, T: PartialEq + core::fmt::Debug>(
    fields: [&[Field]; N],
    decode: impl Fn([u64; N]) -> Result<T, ContextError>,
    encode: impl Fn(&T) -> [u64; N],
    used: impl Fn([u64; N]) -> [u64; N],
) {
    let mut random = Random::new(0x1234_5678_9abc_def1);
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut words = random_words(&mut random, fields);
        if random.below(8) == 0 {
            words[0] &= !PRESENT;
        }
        let Ok(value) = decode(words) else { continue };
        accepted += 1;
        let encoded = encode(&value);
        assert_eq!(decode(encoded).as_ref(), Ok(&value), "{words:#x?}");
        let read = used(words);
        assert_eq!(used(encoded), read, "what is read depends on what is read");
        for word in 0..N {
            assert_eq!(encoded[word], words[word] & read[word], "{words:#x?}");
        }
        if accepted % 64 == 0 {
            check_used(words, read, &decode);
        }
    }
    assert!(accepted > 2_000, "{accepted} of 20000 are accepted");
}

#[test]
fn decoded_entries_encode_to_the_bits_that_hardware_reads() {
    check_round_trips(
        LegacyContext::FIELDS,
        LegacyContext::decode,
        |entry| entry.encode(),
        LegacyContext::used,
    );
    check_round_trips(
        ScalableContext::FIELDS,
        ScalableContext::decode,
        |entry| entry.encode(),
        ScalableContext::used,
    );
    check_round_trips(
        PasidEntry::FIELDS,
        PasidEntry::decode,
        |entry| entry.encode(),
        PasidEntry::used,
    );
    for mode in [TableMode::Legacy, TableMode::Scalable] {
        check_round_trips(
            RootEntry::fields(mode),
            |words| RootEntry::decode(words, mode),
            |entry| entry.encode(),
            |words| {
                let half = |word: u64| if word & 1 == 0 { 1 } else { u64::MAX };
                match mode {
                    TableMode::Legacy => [half(words[0]), 0],
                    TableMode::Scalable => words.map(half),
                }
            },
        );
    }
    check_round_trips(
        [PasidDirectoryEntry::FIELDS],
        |[word]| PasidDirectoryEntry::decode(word),
        |entry| [entry.encode()],
        |[word]| [if word & 1 == 0 { 3 } else { u64::MAX }],
    );
}
