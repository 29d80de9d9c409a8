//! What a CD says, as a value that is always legal, and the CD for it (IHI 0070, section 5.4).

use super::stream::{NOT_ENCODABLE, check_root, first_difference};
use super::{Cd, CdError, CdRules};
use crate::armv8::{AnyFormat, Half, HardwareUpdates, TTB, Tcr};
use crate::context::update::Rules as _;
use crate::{Bits, ConfigError, Oa, bit};

/// The fields of one half in word 0 less `EPD`, as if it were the lower one.
const WALK: Bits<13, 0> = Bits;
const EPD: u64 = bit(14);
const VALID: u64 = bit(31);
const WXN: u64 = bit(36);
const TBI0: u64 = bit(38);
const TBI1: u64 = bit(39);
const PAN: u64 = bit(40);
const AA64: u64 = bit(41);
const S: u64 = bit(44);
const R: u64 = bit(45);
const A: u64 = bit(46);
const ASET: u64 = bit(47);
const ASID: Bits<63, 48> = Bits;
/// `HAD` and the address of the table, words 1 and 2.
const TABLE: u64 = bit(1) | TTB.mask();
/// `E0PD0` and `E0PD1`, words 1 and 2.
const E0PD: u64 = bit(2);
/// `EPAN`, word 1.
const EPAN: u64 = bit(59);
/// `DS`, word 2.
const DS: u64 = bit(58);

/// A root with the control fields of its walk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Table {
    tcr: Tcr,
    root: Oa,
}

/// What happens to a transaction that faults in stage 1 (section 5.5).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FaultPolicy {
    /// Whether it waits for software (`S`). Not possible if the STE disables stalls.
    pub stalls: bool,
    /// Whether it is recorded (`R`).
    pub records: bool,
    /// Whether it aborts once terminated, rather than reading zero and ignoring writes (`A`).
    pub aborts: bool,
}

impl FaultPolicy {
    /// Recorded and aborted.
    pub const ABORT: Self = Self {
        stalls: false,
        records: true,
        aborts: true,
    };
}

/// Rules that hold for pages whatever their entries say.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the descriptor"
)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AccessRules {
    /// Writable pages allow no fetches (`WXN`).
    pub writable_never_executes: bool,
    /// Privileged requests to pages of unprivileged ones fault (`PAN`).
    pub privileged_access_never: bool,
    /// `PAN` holds for pages that unprivileged requests may only fetch from, too (`EPAN`).
    pub enhanced_pan: bool,
    /// Bits 63:56 of lower addresses are ignored (`TBI0`).
    pub ignores_lower_top_byte: bool,
    /// Bits 63:56 of upper addresses are ignored (`TBI1`).
    pub ignores_upper_top_byte: bool,
    /// Unprivileged requests to lower addresses fault (`E0PD0`).
    pub denies_lower_user: bool,
    /// Unprivileged requests to upper addresses fault (`E0PD1`).
    pub denies_upper_user: bool,
}

impl AccessRules {
    /// Entries alone decide.
    pub const NONE: Self = Self::from_words([0; 3]);

    const fn words(self) -> [u64; 3] {
        const fn set(bits: u64, is_set: bool) -> u64 {
            if is_set { bits } else { 0 }
        }
        [
            set(WXN, self.writable_never_executes)
                | set(PAN, self.privileged_access_never)
                | set(TBI0, self.ignores_lower_top_byte)
                | set(TBI1, self.ignores_upper_top_byte),
            set(E0PD, self.denies_lower_user) | set(EPAN, self.enhanced_pan),
            set(E0PD, self.denies_upper_user),
        ]
    }

    const fn from_words(words: [u64; 3]) -> Self {
        Self {
            writable_never_executes: words[0] & WXN != 0,
            privileged_access_never: words[0] & PAN != 0,
            enhanced_pan: words[1] & EPAN != 0,
            ignores_lower_top_byte: words[0] & TBI0 != 0,
            ignores_upper_top_byte: words[0] & TBI1 != 0,
            denies_lower_user: words[1] & E0PD != 0,
            denies_upper_user: words[2] & E0PD != 0,
        }
    }
}

/// What a valid CD makes of a substream: VMSAv8-64 stage 1 of EL1, or of EL2 with `E2H`.
///
/// Every value is legal (no `C_BAD_CD`) on hardware that has what it asks for, and holds nothing
/// that hardware would ignore.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Context {
    lower: Option<Table>,
    upper: Option<Table>,
    /// `IPS`, in bits: what the tables can reach at most.
    oa_bits: u8,
    /// `DS`.
    has_ds: bool,
    updates: HardwareUpdates,
    mair: u64,
    amair: u64,
    asid: u16,
    has_private_asid: bool,
    faults: FaultPolicy,
    access: AccessRules,
}

impl Context {
    /// A substream that the tables at `root` translate, walked according to `tcr`; the other half
    /// is disabled. Faults are recorded and abort, the ASID is 0 and private.
    ///
    /// # Errors
    ///
    /// Those of [`with_table`](Self::with_table).
    pub fn new(tcr: Tcr, root: Oa) -> Result<Self, ConfigError> {
        Self::empty(tcr.oa_bits)?.with_table(tcr, root)
    }

    /// A substream whose transactions all fault, because neither half has a table. Faults are
    /// recorded and abort, the ASID is 0 and private, `IPS` is `oa_bits`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OaBits`] if `IPS` has no such width.
    pub const fn empty(oa_bits: u8) -> Result<Self, ConfigError> {
        if Tcr::ips_bits(Tcr::ips_code(oa_bits)) != oa_bits {
            return Err(ConfigError::OaBits {
                bits: oa_bits,
                rule: "32, 36, 40, 42, 44, 48 or 52",
            });
        }
        Ok(Self {
            lower: None,
            upper: None,
            oa_bits,
            has_ds: false,
            updates: HardwareUpdates::None,
            mair: 0,
            amair: 0,
            asid: 0,
            has_private_asid: true,
            faults: FaultPolicy::ABORT,
            access: AccessRules::NONE,
        })
    }
    /// Translates the half that `tcr` names by the tables at `root`, in place of what did.
    ///
    /// # Errors
    ///
    /// - the [`ConfigError`] of [`AnyFormat::stage1`] if width and granule do not fit each other;
    /// - [`ConfigError::Option`] if `tcr` is nothing that a CD can hold, or differs from the other
    ///   half in what both share (`IPS`, `DS`, `HA`, `HD`, `AFFD`), or if `root` is not aligned or
    ///   too wide.
    pub fn with_table(mut self, tcr: Tcr, root: Oa) -> Result<Self, ConfigError> {
        *self.half_mut(tcr.half) = None;
        if self.lower.is_none() && self.upper.is_none() {
            self.has_ds = tcr.ds;
            self.updates = tcr.updates;
        }
        self.has_ds |= tcr.ds;
        self.insert(tcr, root)
    }

    /// Adds a table under what both halves share.
    fn insert(mut self, tcr: Tcr, root: Oa) -> Result<Self, ConfigError> {
        let format = AnyFormat::stage1(tcr, self.mair)?;
        check_root(format, tcr.oa_bits, root)?;
        *self.half_mut(tcr.half) = Some(Table { tcr, root });
        let [word0, word1, word2, ..] = *Cd::encode(&self).words();
        let reads_back = |table: &Option<Table>| {
            table.is_none_or(|table| {
                Tcr::from_cd([word0, word1, word2], table.tcr.half) == Ok(table.tcr)
            })
        };
        if reads_back(&self.lower) && reads_back(&self.upper) {
            Ok(self)
        } else {
            Err(NOT_ENCODABLE)
        }
    }

    const fn half_mut(&mut self, half: Half) -> &mut Option<Table> {
        match half {
            Half::Lower => &mut self.lower,
            Half::Upper => &mut self.upper,
        }
    }

    /// Disables a half (`EPD`): transactions to it fault, without a walk. What the halves share
    /// stays, so that hardware can be switched there and back in one store.
    #[must_use]
    pub const fn without_table(mut self, half: Half) -> Self {
        *self.half_mut(half) = None;
        self
    }

    /// Gives pages the attribute bytes `mair`.
    #[must_use]
    pub const fn with_mair(mut self, mair: u64) -> Self {
        self.mair = mair;
        self
    }

    /// Gives pages the implementation-defined attributes `amair`.
    #[must_use]
    pub const fn with_amair(mut self, amair: u64) -> Self {
        self.amair = amair;
        self
    }

    /// Tags cached translations with `asid`, which CPUs do not use (`ASET` set).
    #[must_use]
    pub const fn with_asid(mut self, asid: u16) -> Self {
        self.asid = asid;
        self.has_private_asid = true;
        self
    }

    /// Tags cached translations with `asid` of the CPUs, whose broadcast invalidations reach them
    /// (`ASET` clear).
    #[must_use]
    pub const fn with_shared_asid(mut self, asid: u16) -> Self {
        self.asid = asid;
        self.has_private_asid = false;
        self
    }

    /// Treats faults so.
    #[must_use]
    pub const fn with_faults(mut self, faults: FaultPolicy) -> Self {
        self.faults = faults;
        self
    }

    /// Limits access so.
    #[must_use]
    pub const fn with_access(mut self, access: AccessRules) -> Self {
        self.access = access;
        self
    }

    /// Returns the control fields and the root of one half, or `None` if it is disabled.
    pub const fn table(&self, half: Half) -> Option<(Tcr, Oa)> {
        let table = match half {
            Half::Lower => &self.lower,
            Half::Upper => &self.upper,
        };
        match table {
            Some(table) => Some((table.tcr, table.root)),
            None => None,
        }
    }

    /// Returns `IPS`, in bits.
    pub const fn oa_bits(&self) -> u8 {
        self.oa_bits
    }

    /// Returns `MAIR`.
    pub const fn mair(&self) -> u64 {
        self.mair
    }

    /// Returns `AMAIR`.
    pub const fn amair(&self) -> u64 {
        self.amair
    }

    /// Returns the ASID.
    pub const fn asid(&self) -> u16 {
        self.asid
    }

    /// Returns `ASET`: whether CPUs do not use the ASID.
    pub const fn has_private_asid(&self) -> bool {
        self.has_private_asid
    }

    /// Returns what happens to faults.
    pub const fn faults(&self) -> FaultPolicy {
        self.faults
    }

    /// Returns what limits access.
    pub const fn access(&self) -> AccessRules {
        self.access
    }
}

impl Cd {
    /// The descriptor that is not valid: transactions abort with `C_BAD_CD`.
    pub const INVALID: Self = Self::new([0; 8]);

    /// Encodes a valid descriptor. All bits that hardware does not read are zero.
    pub fn encode(context: &Context) -> Self {
        let [access0, access1, access2] = context.access.words();
        let faults = context.faults;
        let flags = [
            (faults.stalls, S),
            (faults.records, R),
            (faults.aborts, A),
            (context.has_private_asid, ASET),
        ];
        let mut word0 = VALID
            | AA64
            | Tcr::ips_code(context.oa_bits)
            | Tcr::update_bits(context.updates)
            | ASID.put(u64::from(context.asid))
            | access0;
        for (is_set, bits) in flags {
            word0 |= if is_set { bits } else { 0 };
        }
        let mut words = [
            word0,
            access1,
            access2,
            context.mair,
            context.amair,
            0,
            0,
            0,
        ];
        words[2] |= if context.has_ds { DS } else { 0 };
        for (half, table, word, shift) in [
            (Half::Lower, context.lower, 1, 0),
            (Half::Upper, context.upper, 2, 16),
        ] {
            debug_assert!(table.is_none_or(|table| table.tcr.half == half));
            if let Some(Table { tcr, root }) = table {
                let cd = tcr.cd(root);
                words[0] |= cd[0] & WALK.mask() << shift;
                words[word] |= cd[word] & TABLE;
            } else {
                words[0] |= EPD << shift;
            }
        }
        Self::new(words)
    }

    /// Decodes a valid descriptor of VMSAv8-64 tables whole.
    ///
    /// Bits that hardware does not read in this configuration ([`CdRules`]) may have any value and
    /// are dropped: [`encode`](Self::encode) gives the same words in all other bits.
    ///
    /// # Errors
    ///
    /// - [`CdError::Invalid`] if `V` is clear;
    /// - [`CdError::BigEndian`] if the tables are;
    /// - [`CdError::Stage1`] if width, granule and root of a half do not fit each other;
    /// - [`CdError::Undecodable`] for values that are reserved, or redundant, or mean what this
    ///   crate does not encode: a secure stream, 32-bit LPAE, MPAM, permission indirection, `HAFT`,
    ///   `PnCH`, `HWU`.
    pub fn decode(&self) -> Result<Context, CdError> {
        if !self.is_valid() {
            return Err(CdError::Invalid);
        }
        if self.is_big_endian() {
            return Err(CdError::BigEndian);
        }
        if !self.is_aarch64() {
            return Err(CdError::Undecodable {
                word: 0,
                bits: AA64,
            });
        }
        let words = *self.words();
        let control = [words[0], words[1], words[2]];
        let mut context = Context {
            lower: None,
            upper: None,
            oa_bits: Tcr::ips_bits(words[0]),
            has_ds: self.has_ds(),
            updates: HardwareUpdates::from_bits(
                self.ha(),
                self.hd(),
                self.access_faults_disabled(),
            ),
            mair: self.mair(),
            amair: self.amair(),
            asid: self.asid(),
            has_private_asid: self.has_private_asid(),
            faults: FaultPolicy {
                stalls: self.stalls(),
                records: self.records(),
                aborts: self.aborts(),
            },
            access: AccessRules::from_words(control),
        };
        for (half, base) in [(Half::Lower, words[1]), (Half::Upper, words[2])] {
            if !Tcr::is_disabled(words[0], half) {
                let tcr = Tcr::from_cd(control, half)?;
                context = context.insert(tcr, Oa::new(base & TTB.mask()))?;
            }
        }
        // Whatever hardware reads and the value does not hold shows here.
        let used = CdRules.used(&words);
        match first_difference(&used, &words, Self::encode(&context).words()) {
            None => Ok(context),
            Some((word, bits)) => Err(CdError::Undecodable { word, bits }),
        }
    }
}
