//! Words of running systems, words made from the specification's tables, and broken ones.

mod encoding;
mod updates;

use super::*;
use crate::{Field, Level};

fn second(va_bits: u8, oa: u64) -> Translation {
    let level = Level((va_bits - 12) / 9 - 1);
    let format = SecondStage::new(va_bits).unwrap();
    Translation::Second(Stage {
        format,
        root: Root {
            oa: Oa::new(oa),
            level,
        },
    })
}

fn first(va_bits: u8, oa: u64) -> Stage<FirstStage> {
    let level = Level((va_bits - 12) / 9 - 1);
    let format = FirstStage::sign_extended(va_bits).unwrap();
    Stage {
        format,
        root: Root {
            oa: Oa::new(oa),
            level,
        },
    }
}

/// The PASID entry of word 0, 1 and 2.
fn pasid_words(control: u64, memory: u64, first: u64) -> [u64; 8] {
    [control, memory, first, 0, 0, 0, 0, 0]
}

#[test]
fn the_root_register_gives_mode_and_address() {
    // As a Linux guest programmed it, without and with scalable mode.
    let legacy = RootTable::new(TableMode::Legacy, Oa::new(0x264_0000)).unwrap();
    assert_eq!(RootTable::decode(0x264_0000), Ok(Some(legacy)));
    let scalable = RootTable::new(TableMode::Scalable, Oa::new(0x264_8000)).unwrap();
    assert_eq!(RootTable::decode(0x264_8400), Ok(Some(scalable)));
    assert_eq!(RootTable::decode(0x264_8c00), Ok(None), "abort-DMA mode");

    assert_eq!(
        RootTable::decode(0x264_8800),
        Err(ContextError::TableMode { value: 2 })
    );
    let entry = "root table address";
    for bits in [1, 0x200, 1 << 52, 1 << 63] {
        assert_eq!(
            RootTable::decode(0x264_0000 | bits),
            Err(ContextError::Reserved {
                entry,
                word: 0,
                bits
            })
        );
    }
    assert_eq!(legacy.entry(0), Oa::new(0x264_0000));
    assert_eq!(legacy.entry(0xff), Oa::new(0x264_0ff0));
}

#[test]
fn a_legacy_root_entry_leads_to_256_context_entries() {
    let root = RootEntry::decode([0x264_a001, 0], TableMode::Legacy).unwrap();
    assert_eq!(root.context(0), Some(Oa::new(0x264_a000)));
    assert_eq!(root.context(1 << 3), Some(Oa::new(0x264_a080)));
    // 00:1f.3
    assert_eq!(root.context(0x1f << 3 | 3), Some(Oa::new(0x264_afb0)));

    // Without P the rest is ignored.
    let root = RootEntry::decode([0x264_affe, u64::MAX], TableMode::Legacy).unwrap();
    assert_eq!((root.context(0), root.context(255)), (None, None));

    let entry = "root entry";
    assert_eq!(
        RootEntry::decode([0x264_a003, 0], TableMode::Legacy),
        Err(ContextError::Reserved {
            entry,
            word: 0,
            bits: 2
        })
    );
    assert_eq!(
        RootEntry::decode([0x264_a001, 0x10], TableMode::Legacy),
        Err(ContextError::Reserved {
            entry,
            word: 1,
            bits: 0x10
        })
    );
}

#[test]
fn a_scalable_root_entry_has_two_tables() {
    let root = RootEntry::decode([0x264_b001, 0x265_4001], TableMode::Scalable).unwrap();
    assert_eq!(root.context(1 << 3), Some(Oa::new(0x264_b100)));
    assert_eq!(root.context(127), Some(Oa::new(0x264_bfe0)));
    assert_eq!(root.context(128), Some(Oa::new(0x265_4000)));
    assert_eq!(root.context(0x1f << 3 | 3), Some(Oa::new(0x265_4f60)));

    let root = RootEntry::decode([0x264_b000, 0x265_4001], TableMode::Scalable).unwrap();
    assert_eq!(
        (root.context(0), root.context(128)),
        (None, Some(Oa::new(0x265_4000)))
    );
    let broken = RootEntry::decode([0x264_b001, 0x265_4801], TableMode::Scalable);
    let bits = 0x800;
    assert_eq!(
        broken,
        Err(ContextError::Reserved {
            entry: "root entry",
            word: 1,
            bits
        })
    );
}

#[test]
fn legacy_context_entries_of_a_running_system_decode() {
    for (words, did, oa) in [
        ([0x264_9001, 0x202], 2, 0x264_9000),
        ([0x2c7_a001, 0xb02], 11, 0x2c7_a000),
        ([0x3fe_d001, 0x302], 3, 0x3fe_d000),
    ] {
        let context = LegacyContext::decode(words).unwrap();
        assert_eq!(context.translation(), second(48, oa));
        assert_eq!(context.domain_id(), did);
        assert!(!context.is_fault_disabled() && !context.has_device_tlb());
    }
}

#[test]
fn legacy_context_entries_name_type_and_width() {
    // TT 1, AW 1, DID 0xffff, the four bits for software set.
    let context = LegacyContext::decode([0x1_2345_6005, 0x00ff_ff79]).unwrap();
    assert_eq!(context.translation(), second(39, 0x1_2345_6000));
    assert!(context.has_device_tlb());
    assert_eq!(context.domain_id(), 0xffff);
    // AW 3 gives five levels; FPD is set.
    let context = LegacyContext::decode([0x1_2345_6003, 0x0103]).unwrap();
    assert_eq!(context.translation(), second(57, 0x1_2345_6000));
    assert!(context.is_fault_disabled());
    // TT 2 passes through whatever AW and pointer are.
    let context = LegacyContext::decode([0x9, 0x0107]).unwrap();
    assert_eq!(context.translation(), Translation::PassThrough);
    assert_eq!(context.domain_id(), 1);
    // Without P only FPD counts.
    let context = LegacyContext::decode([!1, u64::MAX]).unwrap();
    assert_eq!(
        (context.translation(), context.domain_id()),
        (Translation::Blocked, 0)
    );
    assert!(context.is_fault_disabled() && !context.has_device_tlb());
}

#[test]
fn broken_legacy_context_entries_are_refused() {
    let entry = "context entry";
    let decode = |low, high| LegacyContext::decode([low, high]).unwrap_err();
    assert_eq!(
        decode(0x100d, 2),
        ContextError::TranslationType { entry, value: 3 }
    );
    for value in [0, 4, 5, 6, 7] {
        let error = ContextError::AddressWidth { entry, value };
        assert_eq!(decode(0x1001, u64::from(value)), error);
    }
    for bits in [0x10, 0x800, 1 << 52, 1 << 63] {
        assert_eq!(
            decode(0x1001 | bits, 2),
            ContextError::Reserved {
                entry,
                word: 0,
                bits
            }
        );
    }
    for bits in [0x80, 1 << 24, 1 << 63] {
        assert_eq!(
            decode(0x1001, 2 | bits),
            ContextError::Reserved {
                entry,
                word: 1,
                bits
            }
        );
    }
}

#[test]
fn a_scalable_context_entry_leads_to_pasid_entries() {
    // As a Linux guest wrote it: PDTS 2, so 512 directory entries of 64 PASIDs.
    let context = ScalableContext::decode([0x264_a401, 0, 0, 0]).unwrap();
    let directory = context.directory().unwrap();
    assert_eq!(
        directory,
        PasidDirectory::new(Oa::new(0x264_a000), 1 << 15).unwrap()
    );
    assert_eq!(context.rid_pasid(), 0);
    assert!(!context.has_device_tlb() && !context.has_pasid() && !context.has_page_requests());
    assert_eq!(directory.entry(0), Some(Oa::new(0x264_a000)));
    assert_eq!(directory.entry(63), Some(Oa::new(0x264_a000)));
    assert_eq!(directory.entry(64), Some(Oa::new(0x264_a008)));
    assert_eq!(directory.entry(0x7fff), Some(Oa::new(0x264_aff8)));
    assert_eq!(directory.entry(0x8000), None);

    let table = PasidDirectoryEntry::decode(0x264_d001).unwrap();
    assert_eq!(table.entry(0), Some(Oa::new(0x264_d000)));
    assert_eq!(table.entry(65), Some(Oa::new(0x264_d040)));
    assert_eq!(table.entry(0x000f_ffff), Some(Oa::new(0x264_dfc0)));
    let absent = PasidDirectoryEntry::decode(0x264_d002).unwrap();
    assert!(absent.is_fault_disabled() && absent.entry(0).is_none());
    let bits = 0x804;
    let error = ContextError::Reserved {
        entry: "PASID directory entry",
        word: 0,
        bits,
    };
    assert_eq!(PasidDirectoryEntry::decode(0x264_d801 | bits), Err(error));
}

#[test]
fn scalable_context_entries_name_every_control() {
    let context = ScalableContext::decode([0x1_2345_6e1f, 0x001f_fffe, 0, 0]).unwrap();
    assert!(context.is_fault_disabled() && context.has_device_tlb() && context.has_pasid());
    assert!(context.has_page_requests() && context.is_privileged());
    assert_eq!(context.rid_pasid(), 0x000f_fffe);
    let directory = PasidDirectory::new(Oa::new(0x1_2345_6000), 1 << 20).unwrap();
    assert_eq!(context.directory(), Some(directory));

    // Without P only FPD counts.
    let context = ScalableContext::decode([!1, u64::MAX, u64::MAX, u64::MAX]).unwrap();
    assert!(context.is_fault_disabled() && !context.has_device_tlb() && !context.has_pasid());
    assert_eq!((context.rid_pasid(), context.directory()), (0, None));

    let entry = "scalable context entry";
    for (word, bits) in [
        (0, 0x20),
        (0, 0x100),
        (0, 1 << 52),
        (1, 1 << 21),
        (2, 1),
        (3, 1 << 63),
    ] {
        let mut words = [0x264_a401, 0, 0, 0];
        words[word] |= bits;
        let error = ContextError::Reserved { entry, word, bits };
        assert_eq!(ScalableContext::decode(words), Err(error));
    }
}

#[test]
fn first_stage_pasid_entries_of_a_running_system_decode() {
    for (words, did, oa) in [
        ([0x49, 0x2, 0x266_3000], 2, 0x266_3000),
        ([0x49, 0xb, 0x2c9_0000], 11, 0x2c9_0000),
    ] {
        let entry = PasidEntry::decode(pasid_words(words[0], words[1], words[2])).unwrap();
        assert_eq!(entry.translation(), Translation::First(first(48, oa)));
        assert_eq!(entry.domain_id(), did);
        assert!(!entry.has_walk_snoop() && !entry.has_page_snoop() && !entry.is_fault_disabled());
    }
}

#[test]
fn pasid_entries_name_type_width_and_mode() {
    // PGTT 2, AW 3, SSADE.
    let entry = PasidEntry::decode(pasid_words(0x1_2345_628d, 7, 0)).unwrap();
    let Translation::Second(stage) = entry.translation() else {
        panic!("{entry:?}")
    };
    assert_eq!(stage.format(), SecondStage::new(57).unwrap().with_dirty());
    assert_eq!(
        stage.root(),
        Root {
            oa: Oa::new(0x1_2345_6000),
            level: Level(4)
        }
    );

    // PGTT 3, AW 1, FSPM 1, SRE, WPE, EAFE, and the bits that used to be NXE and SMEP.
    let entry = PasidEntry::decode(pasid_words(0x1_2345_60c5, 0x0180_ffff, 0x8800_10f5)).unwrap();
    let Translation::Nested {
        first: stage,
        second: Stage { format, root },
    } = entry.translation()
    else {
        panic!("{entry:?}")
    };
    assert_eq!(stage, first(57, 0x8800_1000));
    assert_eq!(stage.format().geometry().window, Window::SignExtended);
    assert_eq!(
        Translation::Second(Stage { format, root }),
        second(39, 0x1_2345_6000)
    );
    assert_eq!(entry.domain_id(), 0xffff);
    assert!(entry.has_walk_snoop() && entry.has_page_snoop());
    assert!(
        entry.has_supervisor_requests()
            && entry.has_write_protect()
            && entry.has_extended_accessed()
    );

    // PGTT 4 ignores widths and pointers.
    let entry = PasidEntry::decode(pasid_words(0x1_2345_611d, 7, 0x8800_100c)).unwrap();
    assert_eq!(
        (entry.translation(), entry.domain_id()),
        (Translation::PassThrough, 7)
    );

    let entry = PasidEntry::decode([!1; 8]).unwrap();
    assert_eq!(
        (entry.translation(), entry.domain_id()),
        (Translation::Blocked, 0)
    );
    assert!(
        entry.is_fault_disabled() && !entry.has_walk_snoop() && !entry.has_supervisor_requests()
    );
}

#[test]
fn each_control_has_its_own_bit() {
    let pasid = [
        (1, 23, [true, false, false, false, false]),
        (1, 24, [false, true, false, false, false]),
        (2, 0, [false, false, true, false, false]),
        (2, 4, [false, false, false, true, false]),
        (2, 7, [false, false, false, false, true]),
    ];
    for (word, bit, controls) in pasid {
        let mut words = pasid_words(0x101, 0, 0);
        words[word] |= 1 << bit;
        let entry = PasidEntry::decode(words).unwrap();
        let decoded = [
            entry.has_walk_snoop(),
            entry.has_page_snoop(),
            entry.has_supervisor_requests(),
            entry.has_write_protect(),
            entry.has_extended_accessed(),
        ];
        assert_eq!(decoded, controls, "bit {bit} of word {word}");
    }
    let context = [
        (0, 2, [true, false, false, false]),
        (0, 3, [false, true, false, false]),
        (0, 4, [false, false, true, false]),
        (1, 20, [false, false, false, true]),
    ];
    for (word, bit, controls) in context {
        let mut words = [1, 0, 0, 0];
        words[word] |= 1 << bit;
        let entry = ScalableContext::decode(words).unwrap();
        let decoded = [
            entry.has_device_tlb(),
            entry.has_pasid(),
            entry.has_page_requests(),
            entry.is_privileged(),
        ];
        assert_eq!(decoded, controls, "word {word}");
    }
}

#[test]
fn broken_pasid_entries_are_refused() {
    let entry = "PASID entry";
    let decode = |control, first| PasidEntry::decode(pasid_words(control, 0, first)).unwrap_err();
    for value in [0, 5, 6, 7] {
        let error = ContextError::TranslationType { entry, value };
        assert_eq!(decode(0x1009 | u64::from(value) << 6, 0), error);
    }
    for value in [0, 4, 5, 6, 7] {
        let error = ContextError::AddressWidth { entry, value };
        assert_eq!(decode(0x1081 | u64::from(value) << 2, 0), error);
        assert_eq!(decode(0x10c1 | u64::from(value) << 2, 0), error);
    }
    for value in [2, 3] {
        let error = ContextError::PagingMode { entry, value };
        assert_eq!(decode(0x49, 0x1000 | u64::from(value) << 2), error);
    }
    for (word, bits) in [
        (0, 0x20),
        (0, 0x400),
        (0, 1 << 52),
        (1, 1 << 16),
        (1, 1 << 31),
        (2, 2),
        (2, 0x800),
        (2, 1 << 63),
        (3, 1),
        (7, 1 << 63),
    ] {
        let mut words = pasid_words(0x49, 2, 0x266_3000);
        words[word] |= bits;
        assert_eq!(
            PasidEntry::decode(words),
            Err(ContextError::Reserved { entry, word, bits })
        );
    }
}

#[test]
fn fields_do_not_overlap_and_are_never_refused() {
    let check = |fields: &[Field], accepts: &dyn Fn(u64) -> bool| {
        let mut seen = 0;
        for field in fields {
            assert_eq!(seen & field.mask(), 0, "{field:?}");
            seen |= field.mask();
            // Pointers have a part that is too wide for any host.
            assert!(
                accepts(field.mask() & !POINTER_TOO_WIDE.mask()),
                "{field:?}"
            );
        }
    };
    let is_reserved = |error| matches!(error, Some(ContextError::Reserved { .. }));
    check(RootTable::FIELDS, &|word| {
        !is_reserved(RootTable::decode(word).err())
    });
    check(PasidDirectoryEntry::FIELDS, &|word| {
        PasidDirectoryEntry::decode(word | 1).is_ok()
    });
    for (word, fields) in LegacyContext::FIELDS.into_iter().enumerate() {
        check(fields, &|bits| {
            let mut words = [1, 2];
            words[word] |= bits;
            !is_reserved(LegacyContext::decode(words).err())
        });
    }
    for (word, fields) in ScalableContext::FIELDS.into_iter().enumerate() {
        check(fields, &|bits| {
            let mut words = [1, 0, 0, 0];
            words[word] |= bits;
            ScalableContext::decode(words).is_ok()
        });
    }
    for (word, fields) in PasidEntry::FIELDS.into_iter().enumerate() {
        check(fields, &|bits| {
            let mut words = pasid_words(0x49, 0, 0);
            words[word] |= bits;
            !is_reserved(PasidEntry::decode(words).err())
        });
    }
    for mode in [TableMode::Legacy, TableMode::Scalable] {
        for (word, fields) in RootEntry::fields(mode).into_iter().enumerate() {
            check(fields, &|bits| {
                let mut words = [0; 2];
                words[word] = bits | 1;
                RootEntry::decode(words, mode).is_ok()
            });
        }
    }
}

#[test]
fn no_word_makes_a_decoder_panic() {
    let patterns = (0..64)
        .flat_map(|bit| [1 << bit, !(1 << bit)])
        .chain([0, u64::MAX]);
    for word in patterns {
        let outcomes = [
            RootTable::decode(word).is_ok(),
            RootEntry::decode([word; 2], TableMode::Legacy).is_ok(),
            RootEntry::decode([word; 2], TableMode::Scalable).is_ok(),
            LegacyContext::decode([word; 2]).is_ok(),
            ScalableContext::decode([word; 4]).is_ok(),
            PasidDirectoryEntry::decode(word).is_ok(),
            PasidEntry::decode([word; 8]).is_ok(),
        ];
        // Every structure of only zeros is fine: an entry that is not present, legacy mode.
        assert!(word != 0 || outcomes.iter().all(|ok| *ok));
    }
}
