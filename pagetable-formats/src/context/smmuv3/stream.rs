//! What an STE says, as a value that is always legal, and the STE for it (IHI 0070, section 5.2).

use super::{Ats, Attributes, CdTable, DefaultSubstream, SteRules, StreamConfig, StreamWorld};
use super::{Ste, SteError};
use crate::armv8::{AnyFormat, Rooted, TTB, TableWalk, Vtcr};
use crate::context::update::Rules as _;
use crate::{Bits, ConfigError, Oa, bit};

const VALID: u64 = bit(0);
const CONFIG: Bits<3, 1> = Bits;
const S1_DSS: Bits<1, 0> = Bits;
const S1_CIR: Bits<3, 2> = Bits;
const S1_COR: Bits<5, 4> = Bits;
const S1_CSH: Bits<7, 6> = Bits;
const MEV: u64 = bit(19);
const S1_STALLD: u64 = bit(27);
const EATS: Bits<29, 28> = Bits;
const STRW: Bits<31, 30> = Bits;
const S2_PTW: u64 = bit(54);
const S2_S: u64 = bit(57);
const S2_R: u64 = bit(58);

/// Stage 1 of a stream: where its CDs lie and how they are fetched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StreamStage1 {
    /// The CDs (`S1ContextPtr`, `S1Fmt`, `S1CDMax`).
    pub cds: CdTable,
    /// How CDs are fetched (`S1CIR`, `S1COR`, `S1CSH`).
    pub fetch: TableWalk,
    /// What happens to transactions without a substream (`S1DSS`).
    pub default_substream: DefaultSubstream,
    /// Whether CDs cannot make faults stall (`S1STALLD`).
    pub stalls_disabled: bool,
    /// Whether the stream belongs to EL2, not EL1 (`STRW`). Not possible beside stage 2.
    pub is_el2: bool,
}

/// Stage 2 of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StreamStage2 {
    vtcr: Vtcr,
    root: Oa,
    /// Whether stage 1 walks and fetches of CDs from device memory fault (`S2PTW`).
    pub protects_walks: bool,
    /// Whether faults stall (`S2S`).
    pub stalls: bool,
    /// Whether faults are recorded (`S2R`).
    pub records: bool,
}

impl StreamStage2 {
    /// Creates a stage 2 with the VMSAv8-64 tables at `root` that hardware walks according to
    /// `vtcr`. Faults are recorded and do not stall.
    ///
    /// # Errors
    ///
    /// The [`ConfigError`] of [`AnyFormat::stage2`] if widths, granule and starting level do not
    /// fit each other, and [`ConfigError::Option`] if `vtcr` is nothing that an STE can hold, or if
    /// `root` is not aligned or too wide.
    pub fn new(vtcr: Vtcr, root: Oa) -> Result<Self, ConfigError> {
        let format = AnyFormat::stage2(vtcr)?;
        let words = vtcr.ste(root);
        if Vtcr::from_ste(words) != Ok(vtcr) {
            return Err(NOT_ENCODABLE);
        }
        check_root(format, vtcr.oa_bits, root)?;
        Ok(Self {
            vtcr,
            root,
            protects_walks: false,
            stalls: false,
            records: true,
        })
    }

    /// Returns the control fields of the walk.
    pub const fn vtcr(&self) -> Vtcr {
        self.vtcr
    }

    /// Returns the address of the root.
    pub const fn root(&self) -> Oa {
        self.root
    }
}

/// Control fields that hardware would read back differently.
pub(super) const NOT_ENCODABLE: ConfigError = ConfigError::Option {
    option: "a set of control fields",
    rule: "each has a value that hardware knows and uses",
};

/// Checks that hardware takes `root` for the root of a table as it is.
pub(super) fn check_root(format: AnyFormat, oa_bits: u8, root: Oa) -> Result<(), ConfigError> {
    let rule = "it is aligned to its table, and no wider than output addresses";
    let is_aligned = Rooted::new(format, root).root.oa == root;
    if is_aligned && root.get() & !TTB.mask() == 0 && root.get() >> oa_bits == 0 {
        Ok(())
    } else {
        Err(ConfigError::Option {
            option: "this address of a root",
            rule,
        })
    }
}

/// What a valid STE makes of a stream.
///
/// Every value is legal (no `C_BAD_STE`) on hardware that has what it asks for, and holds nothing
/// that hardware would ignore: what a setter sets without meaning for the configuration is dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stream {
    /// `None` aborts.
    action: Option<Action>,
}

/// All of a stream that does not abort.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Action {
    stage1: Option<StreamStage1>,
    stage2: Option<StreamStage2>,
    attributes: Attributes,
    vmid: u16,
    ats: Ats,
    merges_events: bool,
}

impl Action {
    /// Whether any stage translates.
    const fn translates(&self) -> bool {
        self.stage1.is_some() || self.stage2.is_some()
    }

    /// Whether incoming types reach the output of a transaction, or stage 2.
    const fn keeps_types(&self) -> bool {
        match &self.stage1 {
            Some(stage1) => {
                self.stage2.is_some()
                    || matches!(stage1.default_substream, DefaultSubstream::Bypass)
            }
            None => true,
        }
    }
}

impl Stream {
    /// A stream whose transactions abort, without an event.
    pub const ABORT: Self = Self { action: None };

    /// A stream whose transactions pass untranslated, with their attributes.
    pub const BYPASS: Self = Self::translated(None, None);

    /// A stream that stage 1 translates.
    #[must_use]
    pub const fn stage1(stage1: StreamStage1) -> Self {
        Self::translated(Some(stage1), None)
    }

    /// A stream that stage 2 translates.
    #[must_use]
    pub const fn stage2(stage2: StreamStage2) -> Self {
        Self::translated(None, Some(stage2))
    }

    /// A stream that both stages translate.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Option`] if stage 1 belongs to EL2.
    pub const fn nested(stage1: StreamStage1, stage2: StreamStage2) -> Result<Self, ConfigError> {
        if stage1.is_el2 {
            return Err(ConfigError::Option {
                option: "EL2",
                rule: "it has no stage 2",
            });
        }
        Ok(Self::translated(Some(stage1), Some(stage2)))
    }

    const fn translated(stage1: Option<StreamStage1>, stage2: Option<StreamStage2>) -> Self {
        let stream = Self {
            action: Some(Action {
                stage1,
                stage2,
                attributes: Attributes::INCOMING,
                vmid: 0,
                ats: Ats::Refused,
                merges_events: false,
            }),
        };
        stream.with_attributes(Attributes::INCOMING)
    }

    /// Replaces attributes of incoming transactions; nothing is replaced otherwise. The type and
    /// shareability have no meaning where stage 1 alone decides about both.
    #[must_use]
    pub const fn with_attributes(mut self, attributes: Attributes) -> Self {
        if let Some(action) = &mut self.action {
            action.attributes = if action.keeps_types() {
                attributes
            } else {
                attributes.without_types()
            };
        }
        self
    }

    /// Tags cached translations with `vmid` (`S2VMID`); 0 otherwise.
    #[must_use]
    pub const fn with_vmid(mut self, vmid: u16) -> Self {
        if let Some(action) = &mut self.action
            && action.translates()
        {
            action.vmid = vmid;
        }
        self
    }

    /// Permits to merge similar events (`MEV`).
    #[must_use]
    pub const fn with_merged_events(mut self) -> Self {
        if let Some(action) = &mut self.action
            && action.translates()
        {
            action.merges_events = true;
        }
        self
    }

    /// Answers ATS requests (`EATS`); they are refused otherwise.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Option`] if no stage translates, if stage 2 stalls, or if `ats` is
    /// [`Ats::SplitStage`] and not both stages translate. Refusal is always possible.
    pub const fn with_ats(mut self, ats: Ats) -> Result<Self, ConfigError> {
        let has_refusal = matches!(ats, Ats::Refused);
        let Some(action) = &mut self.action else {
            return if has_refusal {
                Ok(self)
            } else {
                Err(ATS_UNTRANSLATED)
            };
        };
        if !has_refusal {
            if !action.translates() {
                return Err(ATS_UNTRANSLATED);
            }
            if let Some(stage2) = &action.stage2
                && stage2.stalls
            {
                return Err(ats_error("stage 2 does not stall"));
            }
            let is_nested = action.stage1.is_some() && action.stage2.is_some();
            if matches!(ats, Ats::SplitStage) && !is_nested {
                return Err(ats_error("both stages translate if ATS is split"));
            }
        }
        action.ats = ats;
        Ok(self)
    }

    /// Returns what the stream does (`Config`).
    pub const fn config(&self) -> StreamConfig {
        match &self.action {
            None => StreamConfig::Abort,
            Some(action) => match (&action.stage1, &action.stage2) {
                (None, None) => StreamConfig::Bypass,
                (Some(_), None) => StreamConfig::Stage1,
                (None, Some(_)) => StreamConfig::Stage2,
                (Some(_), Some(_)) => StreamConfig::Nested,
            },
        }
    }

    /// Returns stage 1, or `None` if it does not translate.
    pub const fn get_stage1(&self) -> Option<StreamStage1> {
        match &self.action {
            Some(action) => action.stage1,
            None => None,
        }
    }

    /// Returns stage 2, or `None` if it does not translate.
    pub const fn get_stage2(&self) -> Option<StreamStage2> {
        match &self.action {
            Some(action) => action.stage2,
            None => None,
        }
    }

    /// Returns what replaces attributes, or `None` if the stream aborts.
    pub const fn attributes(&self) -> Option<Attributes> {
        match &self.action {
            Some(action) => Some(action.attributes),
            None => None,
        }
    }

    /// Returns the VMID, 0 if no stage translates.
    pub const fn vmid(&self) -> u16 {
        match &self.action {
            Some(action) => action.vmid,
            None => 0,
        }
    }

    /// Returns how ATS requests are answered.
    pub const fn ats(&self) -> Ats {
        match &self.action {
            Some(action) => action.ats,
            None => Ats::Refused,
        }
    }

    /// Returns whether similar events may be merged.
    pub const fn merges_events(&self) -> bool {
        match &self.action {
            Some(action) => action.merges_events,
            None => false,
        }
    }
}

/// ATS where addresses are not translated.
const ATS_UNTRANSLATED: ConfigError = ats_error("a stage of the stream translates");

const fn ats_error(rule: &'static str) -> ConfigError {
    ConfigError::Option {
        option: "ATS",
        rule,
    }
}

impl Ste {
    /// The entry that is not valid: transactions abort with `C_BAD_STE`.
    pub const INVALID: Self = Self::new([0; 8]);

    /// Encodes a valid entry. All bits that hardware does not read are zero.
    pub fn encode(stream: &Stream) -> Self {
        let config = match stream.config() {
            StreamConfig::Abort => 0,
            StreamConfig::Bypass => 4,
            StreamConfig::Stage1 => 5,
            StreamConfig::Stage2 => 6,
            StreamConfig::Nested => 7,
        };
        let mut words = [VALID | CONFIG.put(config), 0, 0, 0, 0, 0, 0, 0];
        let Some(action) = &stream.action else {
            return Self::new(words);
        };
        words[1] = action.attributes.word1()
            | EATS.put(action.ats.bits())
            | if action.merges_events { MEV } else { 0 };
        words[2] = u64::from(action.vmid);
        if let Some(stage1) = &action.stage1 {
            words[0] |= stage1.cds.ste_bits();
            words[1] |= S1_DSS.put(stage1.default_substream.bits())
                | S1_CIR.put(stage1.fetch.inner as u64)
                | S1_COR.put(stage1.fetch.outer as u64)
                | S1_CSH.put(stage1.fetch.shareability as u64)
                | if stage1.stalls_disabled { S1_STALLD } else { 0 }
                | if stage1.is_el2 { STRW.put(2) } else { 0 };
        }
        if let Some(stage2) = &action.stage2 {
            let [word1, word2, word3] = stage2.vtcr.ste(stage2.root);
            words[1] |= word1;
            words[2] |= word2
                | if stage2.protects_walks { S2_PTW } else { 0 }
                | if stage2.stalls { S2_S } else { 0 }
                | if stage2.records { S2_R } else { 0 };
            words[3] |= word3;
        }
        Self::new(words)
    }

    /// Decodes a valid entry whole.
    ///
    /// Bits that hardware does not read in this configuration ([`SteRules`]) may have any value and
    /// are dropped: [`encode`](Self::encode) gives the same words in all other bits.
    ///
    /// # Errors
    ///
    /// - [`SteError::Invalid`] if `V` is clear;
    /// - [`SteError::BigEndian`] if the tables of stage 2 are;
    /// - [`SteError::Stage2`] if widths, granule, starting level and root of stage 2 do not fit
    ///   each other;
    /// - [`SteError::Illegal`] if the stages and `EATS` do not;
    /// - [`SteError::Undecodable`] for values that are reserved, or redundant, or mean what this
    ///   crate does not encode: a secure stream, 32-bit LPAE, MPAM, permission indirection, `CONT`,
    ///   `DRE`, `DCP`, `PPAR`, `S2HWU`.
    pub fn decode(&self) -> Result<Stream, SteError> {
        if !self.is_valid() {
            return Err(SteError::Invalid);
        }
        let words = self.words();
        let stage1 = self.cd_table()?.map(|cds| StreamStage1 {
            cds,
            fetch: TableWalk {
                inner: self.cd_inner(),
                outer: self.cd_outer(),
                shareability: self.cd_shareability(),
            },
            default_substream: self.default_substream(),
            stalls_disabled: self.stage1_stalls_disabled(),
            is_el2: matches!(self.stream_world(), StreamWorld::El2),
        });
        let stage2 = if self.config().has_stage2() {
            Some(self.decode_stage2()?)
        } else {
            None
        };
        let stream = match (self.config(), stage1, stage2) {
            (_, Some(stage1), Some(stage2)) => {
                Stream::nested(stage1, stage2).map_err(SteError::Illegal)?
            }
            (_, Some(stage1), None) => Stream::stage1(stage1),
            (_, None, Some(stage2)) => Stream::stage2(stage2),
            (StreamConfig::Bypass, None, None) => Stream::BYPASS,
            (_, None, None) => Stream::ABORT,
        };
        let stream = stream
            .with_attributes(Attributes::from_word1(words[1]))
            .with_vmid(self.vmid());
        let stream = if self.merges_events() {
            stream.with_merged_events()
        } else {
            stream
        };
        let stream = if self.config().has_stage1() || self.config().has_stage2() {
            stream.with_ats(self.ats()).map_err(SteError::Illegal)?
        } else {
            stream
        };
        // Whatever hardware reads and the value does not hold shows here.
        let used = SteRules.used(words);
        let encoded = Self::encode(&stream);
        match first_difference(&used, words, encoded.words()) {
            None => Ok(stream),
            Some((word, bits)) => Err(SteError::Undecodable { word, bits }),
        }
    }

    fn decode_stage2(&self) -> Result<StreamStage2, SteError> {
        if self.is_stage2_big_endian() {
            return Err(SteError::BigEndian);
        }
        let words = self.words();
        let vtcr = Vtcr::from_ste([words[1], words[2], words[3]])?;
        let stage2 = StreamStage2::new(vtcr, Oa::new(words[3] & TTB.mask()))?;
        Ok(StreamStage2 {
            protects_walks: self.protects_table_walks(),
            stalls: self.stage2_stalls(),
            records: self.stage2_records(),
            ..stage2
        })
    }
}

/// Returns the first word in which `a` and `b` differ in bits of `mask`, and these bits.
pub(super) fn first_difference(
    mask: &[u64; 8],
    a: &[u64; 8],
    b: &[u64; 8],
) -> Option<(usize, u64)> {
    (0..8)
        .map(|word| (word, (a[word] ^ b[word]) & mask[word]))
        .find(|(_, bits)| *bits != 0)
}
