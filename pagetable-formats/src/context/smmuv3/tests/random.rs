//! Random streams and substreams: they survive their words, and updates between them are never
//! torn.

use super::*;
use crate::armv8::{Granule, TableWalk, Tcr, Vtcr};
use crate::context::update::Rules as _;
use crate::context::update::testing::{check, check_closed};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    fn walk(&mut self) -> TableWalk {
        const REGIONS: [Cacheability; 4] = [
            Cacheability::NonCacheable,
            Cacheability::WriteBack,
            Cacheability::WriteThrough,
            Cacheability::WriteBackNoAllocate,
        ];
        TableWalk {
            inner: self.pick(&REGIONS),
            outer: self.pick(&REGIONS),
            shareability: self.shareability(),
        }
    }

    fn shareability(&mut self) -> Shareability {
        self.pick(&[Shareability::None, Shareability::Outer, Shareability::Inner])
    }

    fn updates(&mut self) -> HardwareUpdates {
        self.pick(&[
            HardwareUpdates::None,
            HardwareUpdates::Ignored,
            HardwareUpdates::Accessed,
            HardwareUpdates::Dirty,
        ])
    }

    /// An address that is aligned for any root here, and fits narrow fields.
    fn root(&mut self, oa_bits: u8) -> u64 {
        let bits = oa_bits.min(48);
        self.next() & !0x1f_ffff & !(u64::MAX << bits)
    }

    fn cds(&mut self) -> CdTable {
        let format = self.pick(&[
            CdTableFormat::Linear,
            CdTableFormat::Kib4Leaves,
            CdTableFormat::Kib64Leaves,
        ]);
        let count_lg2 = self.below(21) as u8;
        let base = self.next() & 0x00ff_ffff_fc00_0000;
        CdTable::with_layout(Oa::new(base), format, count_lg2).unwrap()
    }

    fn stage1(&mut self) -> StreamStage1 {
        StreamStage1 {
            cds: self.cds(),
            fetch: self.walk(),
            default_substream: self.pick(&[
                DefaultSubstream::Terminate,
                DefaultSubstream::Bypass,
                DefaultSubstream::Substream0,
            ]),
            stalls_disabled: self.flag(),
            is_el2: self.below(4) == 0,
        }
    }

    fn stage2(&mut self) -> StreamStage2 {
        loop {
            let vtcr = Vtcr {
                t0sz: self.below(64) as u8,
                granule: self.pick(&[Granule::Kib4, Granule::Kib16, Granule::Kib64]),
                start: Level(self.below(5) as u8),
                walk: self.walk(),
                oa_bits: self.pick(&[32, 36, 40, 42, 44, 48, 52]),
                ds: self.flag(),
                updates: self.updates(),
                forced_write_back: self.flag(),
            };
            let root = Oa::new(self.root(vtcr.oa_bits));
            if let Ok(mut stage2) = StreamStage2::new(vtcr, root) {
                stage2.protects_walks = self.flag();
                stage2.stalls = self.below(4) == 0;
                stage2.records = self.flag();
                return stage2;
            }
        }
    }

    fn attributes(&mut self) -> Attributes {
        const OVERRIDES: [Override; 3] = [Override::Incoming, Override::Clear, Override::Set];
        Attributes {
            memory: MemoryType::new(self.below(24) as u8),
            allocation: self.flag().then(|| AllocationHints {
                read: self.flag(),
                write: self.flag(),
                transient: self.flag(),
            }),
            shareability: self.flag().then(|| self.shareability()),
            privilege: self.pick(&OVERRIDES),
            instruction: self.pick(&OVERRIDES),
        }
    }

    fn stream(&mut self) -> Stream {
        let stream = match self.below(6) {
            0 => Stream::ABORT,
            1 => Stream::BYPASS,
            2 => Stream::stage1(self.stage1()),
            3 => Stream::stage2(self.stage2()),
            _ => {
                let stage1 = StreamStage1 {
                    is_el2: false,
                    ..self.stage1()
                };
                Stream::nested(stage1, self.stage2()).unwrap()
            }
        };
        // Usual attributes often, so that more updates differ in few words.
        let stream = if self.flag() {
            stream
        } else {
            stream.with_attributes(self.attributes())
        };
        let stream = stream.with_vmid(self.below(3) as u16 * 0x7fff);
        let stream = if self.flag() {
            stream.with_merged_events()
        } else {
            stream
        };
        let ats = self.pick(&[Ats::Refused, Ats::Full, Ats::SplitStage, Ats::Checked]);
        stream.with_ats(ats).unwrap_or(stream)
    }

    fn tcr(&mut self, half: Half, shared: &Tcr) -> Tcr {
        Tcr {
            half,
            tsz: self.below(64) as u8,
            granule: self.pick(&[Granule::Kib4, Granule::Kib16, Granule::Kib64]),
            walk: self.walk(),
            table_limits: self.flag(),
            ..*shared
        }
    }

    fn context(&mut self) -> Context {
        let oa_bits = self.pick(&[32, 36, 40, 42, 44, 48, 52]);
        let shared = Tcr {
            half: Half::Lower,
            tsz: 16,
            granule: Granule::Kib4,
            walk: TableWalk::COHERENT,
            oa_bits,
            ds: self.flag(),
            updates: self.updates(),
            table_limits: true,
        };
        let mut context = Context::empty(oa_bits).unwrap();
        for half in [Half::Lower, Half::Upper] {
            // Many widths do not exist.
            for _ in 0..8 {
                let root = self.root(oa_bits);
                if let Ok(with_table) = context.with_table(self.tcr(half, &shared), Oa::new(root)) {
                    context = with_table;
                    break;
                }
            }
        }
        if self.below(3) == 0 {
            context = context.without_table(self.pick(&[Half::Lower, Half::Upper]));
        }
        let asid = self.next() as u16;
        let context = if self.flag() {
            context.with_asid(asid)
        } else {
            context.with_shared_asid(asid)
        };
        context
            .with_mair(self.next())
            .with_amair(self.next())
            .with_faults(FaultPolicy {
                stalls: self.flag(),
                records: self.flag(),
                aborts: self.flag(),
            })
            .with_access(AccessRules {
                writable_never_executes: self.flag(),
                privileged_access_never: self.flag(),
                enhanced_pan: self.flag(),
                ignores_lower_top_byte: self.flag(),
                ignores_upper_top_byte: self.flag(),
                denies_lower_user: self.flag(),
                denies_upper_user: self.flag(),
            })
    }

    /// Words that differ from `words` in few bits.
    fn disturbed(&mut self, words: &[u64; 8]) -> [u64; 8] {
        let mut words = *words;
        for _ in 0..self.below(4) {
            words[self.below(8) as usize] ^= 1 << self.below(64);
        }
        words
    }

    fn noise(&mut self) -> [u64; 8] {
        [0; 8].map(|_: u64| self.next())
    }
}

fn masked(words: &[u64; 8], mask: &[u64; 8]) -> [u64; 8] {
    core::array::from_fn(|word| words[word] & mask[word])
}

#[test]
fn streams_survive_their_entries() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..4000 {
        let stream = random.stream();
        let ste = Ste::encode(&stream);
        assert_eq!(ste.decode(), Ok(stream), "{ste:x?}");
        // Nothing but what hardware reads.
        let used = SteRules.used(ste.words());
        let noise = random.noise();
        check_closed(&SteRules, ste.words(), &noise);
        assert_eq!(masked(ste.words(), &used), *ste.words(), "{ste:x?}");
        // What hardware does not read makes no difference.
        let noisy = core::array::from_fn(|word| ste.words()[word] | noise[word] & !used[word]);
        assert_eq!(Ste::new(noisy).decode(), Ok(stream), "{noisy:x?}");
    }
}

#[test]
fn entries_that_decode_are_encoded_again_bit_by_bit() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut accepted = 0;
    for _ in 0..20_000 {
        let stream = random.stream();
        let ste = Ste::new(random.disturbed(Ste::encode(&stream).words()));
        if let Ok(decoded) = ste.decode() {
            accepted += 1;
            let used = SteRules.used(ste.words());
            let again = Ste::encode(&decoded);
            assert_eq!(*again.words(), masked(ste.words(), &used), "{ste:x?}");
        }
        let context = random.context();
        let cd = Cd::new(random.disturbed(Cd::encode(&context).words()));
        if let Ok(decoded) = cd.decode() {
            accepted += 1;
            let used = CdRules.used(cd.words());
            let again = Cd::encode(&decoded);
            assert_eq!(*again.words(), masked(cd.words(), &used), "{cd:x?}");
        }
        let _ = Ste::new(random.noise()).decode();
        let _ = Cd::new(random.noise()).decode();
    }
    assert!(accepted > 10_000, "{accepted}");
}

#[test]
fn substreams_survive_their_descriptors() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut tables = 0;
    for _ in 0..4000 {
        let context = random.context();
        tables += [Half::Lower, Half::Upper]
            .iter()
            .filter(|half| context.table(**half).is_some())
            .count();
        let cd = Cd::encode(&context);
        assert_eq!(cd.decode(), Ok(context), "{cd:x?}");
        let used = CdRules.used(cd.words());
        let noise = random.noise();
        check_closed(&CdRules, cd.words(), &noise);
        assert_eq!(masked(cd.words(), &used), *cd.words(), "{cd:x?}");
        let noisy = core::array::from_fn(|word| cd.words()[word] | noise[word] & !used[word]);
        assert_eq!(Cd::new(noisy).decode(), Ok(context), "{noisy:x?}");
    }
    assert!(tables > 2000, "{tables}");
}

#[test]
fn updates_between_any_entries_are_never_torn() {
    let mut random = Random(0xdead_beef_cafe_f00d);
    let mut hitless = 0;
    let mut breaking = 0;
    for round in 0..3000 {
        let from = *Ste::encode(&random.stream()).words();
        let to = match round % 4 {
            // Neighbours, strangers, nothing, and words of nobody.
            0 => random.disturbed(&from),
            1 => *Ste::encode(&random.stream()).words(),
            2 => *Ste::INVALID.words(),
            _ => random.noise(),
        };
        for (from, to) in [(from, to), (to, from)] {
            let update = check(&SteRules, &from, &to);
            hitless += usize::from(update.is_hitless());
            breaking += usize::from(update.is_breaking());
        }
        let from = *Cd::encode(&random.context()).words();
        let to = match round % 4 {
            0 => random.disturbed(&from),
            1 => *Cd::encode(&random.context()).words(),
            2 => *Cd::INVALID.words(),
            _ => random.noise(),
        };
        for (from, to) in [(from, to), (to, from)] {
            let update = check(&CdRules, &from, &to);
            hitless += usize::from(update.is_hitless());
            breaking += usize::from(update.is_breaking());
        }
    }
    assert!(hitless > 500 && breaking > 500, "{hitless} {breaking}");
}
