//! Checks the laws of [`Format`] on any configuration.
//!
//! [`check`] looks only through the contract: it knows no bit of any format. Words worked out by
//! hand from the specification are what ties a format to its hardware; the laws make sure that the
//! parts of a format agree with each other for every level, size, address and right.

use core::fmt;

use crate::{Entry, Format, Leaf, Level, Oa, PageSize, Prot, Rights, TableEntry};

/// One law of [`Format`], in the numbering of its documentation.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Law {
    /// Zero is empty.
    F1 = 1,
    /// Leaves round-trip.
    F2,
    /// Tables round-trip.
    F3,
    /// Sizes fit their level, and the geometry makes sense.
    F4,
    /// Rights are kept or widened, never lost.
    F5,
    /// Marks of single and grouped items.
    F6,
    /// Dirty state changes alone.
    F7,
    /// Addresses are linear.
    F8,
    /// The pending bit is ignored.
    F9,
    /// Decoding is total, and its results keep to what walkers rely on.
    F10,
    /// Fields do not overlap.
    F11,
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "F{}", *self as u8)
    }
}

/// A law that a format breaks, and where.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("law {law} broken at level {level}, word {word:#018x}{}: {rule}", ForSize(*.size))]
pub struct Violation {
    /// The law.
    pub law: Law,
    /// Level of the table that `word` stands in.
    pub level: Level,
    /// Size of the leaf, where the law is about one.
    pub size: Option<PageSize>,
    /// The word that shows it; an address for F8, 0 where no word is involved.
    pub word: u64,
    /// What does not hold.
    pub rule: &'static str,
}

struct ForSize(Option<PageSize>);

impl fmt::Display for ForSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |size| write!(f, ", leaf of {size}"))
    }
}

/// Where a check stands, for reports.
#[derive(Clone, Copy)]
struct At {
    law: Law,
    level: Level,
    size: Option<PageSize>,
    word: u64,
}

impl At {
    const fn new(law: Law, level: Level, word: u64) -> Self {
        Self {
            law,
            level,
            size: None,
            word,
        }
    }

    const fn leaf(law: Law, level: Level, size: PageSize, word: u64) -> Self {
        Self {
            law,
            level,
            size: Some(size),
            word,
        }
    }

    /// Reports `rule` as broken.
    const fn broken(self, rule: &'static str) -> Violation {
        let Self {
            law,
            level,
            size,
            word,
        } = self;
        Violation {
            law,
            level,
            size,
            word,
            rule,
        }
    }

    /// Reports `rule` as broken unless `holds`.
    fn holds(self, holds: bool, rule: &'static str) -> Result<(), Violation> {
        if holds {
            Ok(())
        } else {
            Err(self.broken(rule))
        }
    }
}

/// Checks every law for this configuration of a format.
///
/// Tries all levels, sizes, rights and items, addresses from zero to the widest, and some thousand
/// words: single bits, single bits missing, neighbours of encoded words and pseudo-random ones. The
/// words are the same on every run.
///
/// # Errors
///
/// The first [`Violation`] found.
pub fn check<F: Format>(format: F) -> Result<(), Violation> {
    check_shape(&format)?;
    check_empty(&format)?;
    check_tables(&format)?;
    check_rights(&format)?;
    check_dirty_rule(&format)?;
    for size in format.sizes().iter() {
        check_leaves(&format, size)?;
    }
    check_linear(&format)?;
    for level in (0..=Level::MAX.0).map(Level) {
        for word in sample_words() {
            check_word(&format, word, level)?;
        }
    }
    Ok(())
}

/// F4, and the bounds that the other checks compute with.
fn check_shape<F: Format>(format: &F) -> Result<(), Violation> {
    let geometry = format.geometry();
    let at = At::new(Law::F4, geometry.max_top, 0);
    at.holds((1..=64).contains(&geometry.va_bits), "va_bits is 1 to 64")?;
    at.holds(
        geometry.top <= geometry.max_top,
        "the root does not start above its highest level",
    )?;
    at.holds(
        geometry.max_top <= Level::MAX,
        "no level is above `Level::MAX`",
    )?;
    at.holds(
        F::item_lg2(geometry.max_top) < 64,
        "an item of the root is less than the space",
    )?;
    at.holds(F::GRANULE.lg2() > 3, "a table holds more than one item")?;
    at.holds((1..=64).contains(&format.oa_bits()), "oa_bits is 1 to 64")?;
    at.holds(!format.sizes().is_empty(), "a leaf has at least one size")?;
    for size in format.sizes().iter() {
        let level = F::level_of(size);
        let at = At::leaf(Law::F4, level, size, 0);
        at.holds(level <= geometry.max_top, "the size's level exists")?;
        at.holds(
            size.lg2() >= F::item_lg2(level),
            "a leaf is at least an item of its level",
        )?;
        let table_lg2 = F::item_lg2(level) + F::item_count_lg2();
        at.holds(size.lg2() < table_lg2, "a leaf is less than a whole table")?;
    }
    Ok(())
}

/// F1.
fn check_empty<F: Format>(format: &F) -> Result<(), Violation> {
    At::new(Law::F1, Level::LEAF, F::PRESENT)
        .holds(F::PRESENT != 0, "an item has a present bit")?;
    for level in (0..=Level::MAX.0).map(Level) {
        for word in sample_words().map(|word| word & !F::PRESENT).chain([0]) {
            At::new(Law::F1, level, word).holds(
                format.decode(word, level) == Ok(Entry::Empty),
                "a word without a present bit is empty",
            )?;
        }
    }
    Ok(())
}

/// F3 and F9 for tables of our own encoder.
fn check_tables<F: Format>(format: &F) -> Result<(), Violation> {
    At::new(Law::F9, Level::LEAF, F::PENDING).holds(
        F::PENDING.count_ones() <= 1,
        "the pending bit is one bit or none",
    )?;
    for level in (1..=format.geometry().max_top.0).map(Level) {
        At::new(Law::F3, level, 0).holds(
            format.child(0, level).is_none(),
            "`child` of an empty item is `None`",
        )?;
        At::new(Law::F9, level, 0).holds(
            format.exact_child(0, level).is_none(),
            "`exact_child` of an empty item is `None`",
        )?;
        for oa in addresses(F::GRANULE, format.oa_bits()) {
            let word = format.encode_table(oa, level);
            let at = At::new(Law::F3, level, word);
            at.holds(word & F::PRESENT != 0, "a table has a present bit")?;
            let below = level.below().expect("the loop starts at level 1");
            let table = Entry::Table(TableEntry {
                oa,
                level: below,
                limit: Rights::ALL,
            });
            at.holds(
                format.decode(word, level) == Ok(table),
                "a table decodes to its address and the level below, without a limit",
            )?;
            at.holds(
                format.child(word, level) == Some(oa),
                "`child` agrees with `decode`",
            )?;

            let pending = word | F::PENDING;
            let at = At::new(Law::F9, level, pending);
            at.holds(
                format
                    .exact_child(word, level)
                    .is_none_or(|exact| exact == oa),
                "`exact_child` agrees with `child` or is `None`",
            )?;
            at.holds(
                F::PENDING == 0 || format.exact_child(pending, level).is_none(),
                "`exact_child` of a pending table is `None`",
            )?;
            at.holds(
                word & F::PENDING == 0,
                "`encode_table` leaves the pending bit clear",
            )?;
            at.holds(
                format.decode(pending, level) == Ok(table),
                "the pending bit changes nothing that `decode` says",
            )?;
            at.holds(
                format.child(pending, level) == Some(oa),
                "the pending bit changes nothing that `child` says",
            )?;
            check_neighbours(format, word, level)?;
        }
    }
    Ok(())
}

/// F5.
fn check_rights<F: Format>(format: &F) -> Result<(), Violation> {
    let at = At::new(Law::F5, Level::LEAF, 0);
    let controls_execution = Prot::all()
        .filter_map(|prot| format.effective(prot))
        .any(Prot::can_execute);
    for prot in Prot::all() {
        let effective = format.effective(prot);
        for size in format.sizes().iter() {
            let attributes = format.leaf_attributes(prot, size);
            At::leaf(Law::F5, F::level_of(size), size, attributes).holds(
                (attributes == 0) == effective.is_none(),
                "`effective` is `None` exactly where `leaf_attributes` is 0",
            )?;
        }
        let Some(effective) = effective else { continue };
        at.holds(
            prot.rights().difference(Rights::USER) != Rights::NONE,
            "no entry is made for no rights at all",
        )?;
        let kept = prot.rights().difference(Rights::EXECUTE);
        at.holds(
            effective.rights().contains(kept),
            "`effective` contains the read, write and user rights",
        )?;
        at.holds(
            effective.can_execute() || !prot.can_execute() || !controls_execution,
            "a format that controls execution keeps that right",
        )?;
        at.holds(
            format.effective(effective) == Some(effective),
            "`effective` is its own `effective`",
        )?;
    }
    Ok(())
}

/// F2, F6, F7, and F8 as far as single leaves go.
fn check_leaves<F: Format>(format: &F, size: PageSize) -> Result<(), Violation> {
    let level = F::level_of(size);
    for prot in Prot::all() {
        let Some(effective) = format.effective(prot) else {
            continue;
        };
        let attributes = format.leaf_attributes(prot, size);
        for (pattern, oa) in addresses(size, format.oa_bits()).enumerate() {
            At::leaf(Law::F8, level, size, oa.get()).holds(
                format.encode_oa(oa) & attributes == 0,
                "address and attributes share no bit",
            )?;
            for i in 0..F::item_count(size) {
                let word = format.leaf_item(oa, size, prot, i);
                let leaf = check_leaf_item(format, word, size, effective, oa, i)?;
                check_marks(format, word, size, oa)?;
                check_dirty(format, word, size, leaf)?;
                if pattern == 0 && i == 0 {
                    check_neighbours(format, word, level)?;
                }
            }
        }
    }
    Ok(())
}

/// F2, and F3 for what is no table.
fn check_leaf_item<F: Format>(
    format: &F,
    word: u64,
    size: PageSize,
    effective: Prot,
    oa: Oa,
    i: usize,
) -> Result<Leaf, Violation> {
    let level = F::level_of(size);
    if level > Level::LEAF {
        At::leaf(Law::F3, level, size, word).holds(
            format.child(word, level).is_none(),
            "`child` of a leaf is `None`",
        )?;
    }
    let at = At::leaf(Law::F2, level, size, word);
    let Ok(Entry::Leaf(leaf)) = format.decode(word, level) else {
        return Err(at.broken("an item of a leaf decodes to a leaf"));
    };
    let item = PageSize::from_lg2(F::item_lg2(level));
    at.holds(leaf.size == size, "an item decodes to the size of its leaf")?;
    at.holds(
        leaf.span == item || leaf.span == size,
        "the span is one item or the whole leaf",
    )?;
    let offset = (i as u64 * item.bytes()) & !leaf.span.offset_mask();
    at.holds(
        leaf.oa.get() == oa.get() | offset,
        "an item decodes to the address of its span",
    )?;
    at.holds(
        leaf.prot == effective,
        "an item decodes to the effective rights and memory type",
    )?;
    at.holds(
        leaf.accessed || !format.faults_unaccessed(),
        "no new leaf faults as unaccessed",
    )?;
    Ok(leaf)
}

/// F6.
fn check_marks<F: Format>(format: &F, word: u64, size: PageSize, oa: Oa) -> Result<(), Violation> {
    let level = F::level_of(size);
    let at = At::leaf(Law::F6, level, size, word);
    at.holds(word & F::PRESENT != 0, "a leaf has a present bit")?;
    At::leaf(Law::F9, level, size, word).holds(
        level == Level::LEAF || format.exact_child(word, level).is_none(),
        "`exact_child` of a leaf is `None`",
    )?;
    if F::item_count(size) > 1 {
        return at.holds(
            word & F::GROUPED != 0,
            "each item of a group has a grouped bit",
        );
    }
    at.holds(
        word & F::GROUPED == 0,
        "a leaf of one item has no grouped bit",
    )?;
    if level > Level::LEAF {
        return Ok(());
    }
    At::leaf(Law::F8, level, size, word).holds(
        format.decode_oa(word) == oa,
        "`decode_oa` inverts `encode_oa`",
    )
}

/// F7 for the rule itself.
fn check_dirty_rule<F: Format>(format: &F) -> Result<(), Violation> {
    let Some(rule) = format.dirty_rule() else {
        return Ok(());
    };
    let at = At::new(Law::F7, Level::LEAF, rule.mask);
    at.holds(rule.mask != 0, "some bit records that a page is dirty")?;
    at.holds(
        rule.dirty == rule.mask || rule.dirty == 0,
        "dirty is all bits of the mask or none",
    )?;
    at.holds(
        rule.tracked & rule.mask == 0,
        "what records the state does not say if it is recorded",
    )
}

/// F7 for one item.
fn check_dirty<F: Format>(
    format: &F,
    word: u64,
    size: PageSize,
    leaf: Leaf,
) -> Result<(), Violation> {
    let Some(rule) = format.dirty_rule() else {
        return Ok(());
    };
    let level = F::level_of(size);
    let (clean, soiled) = (rule.clean(word), rule.soil(word));
    let at = At::leaf(Law::F7, level, size, word);
    at.holds(
        leaf.dirty == rule.is_dirty(word),
        "the rule and `decode` agree",
    )?;
    at.holds(
        leaf.dirty == leaf.prot.can_write(),
        "a new leaf is dirty exactly if it is writable",
    )?;
    for (word, dirty) in [(clean, false), (soiled, leaf.prot.can_write())] {
        let at = At::leaf(Law::F7, level, size, word);
        at.holds(
            rule.is_dirty(word) == dirty,
            "`clean` and `soil` do what they say",
        )?;
        at.holds(
            format.decode(word, level) == Ok(Entry::Leaf(Leaf { dirty, ..leaf })),
            "a changed dirty state changes nothing else",
        )?;
        if level == Level::LEAF && F::item_count(size) == 1 {
            at.holds(
                format.decode_oa(word) == leaf.oa,
                "a changed dirty state does not change the address",
            )?;
        }
    }
    Ok(())
}

/// F8.
fn check_linear<F: Format>(format: &F) -> Result<(), Violation> {
    let oa_bits = format.oa_bits();
    let window = oa_mask(oa_bits.min(F::OA_LINEAR_LG2));
    let page = !F::GRANULE.offset_mask();
    let mut random = Words::new();
    for base in sample_words() {
        let base = base & oa_mask(oa_bits) & page;
        let room = window & page & !base;
        // Bits of `room` never carry; the other distances do, up to the end of the window.
        let up_to_end = (window - (base & window)) & page;
        let distances = [
            room,
            F::GRANULE.bytes(),
            random.next_word(),
            random.next_word(),
        ];
        for distance in distances
            .into_iter()
            .map(|distance| distance & window & page)
        {
            let distance = distance.min(up_to_end);
            let sum = format
                .encode_oa(Oa::new(base))
                .wrapping_add(format.encode_oa(Oa::new(distance)));
            At::new(Law::F8, Level::LEAF, base).holds(
                format.encode_oa(Oa::new(base + distance)) == sum,
                "addresses are linear inside a window",
            )?;
        }
    }
    Ok(())
}

/// Checks `word` and each word that differs from it in one bit.
fn check_neighbours<F: Format>(format: &F, word: u64, level: Level) -> Result<(), Violation> {
    check_word(format, word, level)?;
    (0..u64::BITS).try_for_each(|bit| check_word(format, word ^ 1 << bit, level))
}

/// F1, F9, F10 and F11 for a word that anybody may have written.
fn check_word<F: Format>(format: &F, word: u64, level: Level) -> Result<(), Violation> {
    check_fields(format, word, level)?;
    let decoded = format.decode(word, level);
    if word & F::PRESENT == 0 {
        return At::new(Law::F1, level, word).holds(
            decoded == Ok(Entry::Empty),
            "a word without a present bit is empty",
        );
    }
    let at = At::new(Law::F10, level, word);
    match decoded {
        Ok(Entry::Empty) => Ok(()),
        Ok(Entry::Table(table)) => {
            at.holds(table.level < level, "the level falls")?;
            at.holds(
                F::GRANULE.divides(table.oa.get()),
                "a table is aligned to its size",
            )?;
            At::new(Law::F9, level, word).holds(
                format.decode(word ^ F::PENDING, level) == decoded,
                "the pending bit changes nothing that `decode` says",
            )
        }
        Ok(Entry::Leaf(leaf)) => {
            let at = At {
                size: Some(leaf.size),
                ..at
            };
            at.holds(
                leaf.span.lg2() >= F::item_lg2(level),
                "a leaf is at least an item",
            )?;
            at.holds(leaf.span <= leaf.size, "a span is at most the whole leaf")?;
            at.holds(
                leaf.span.divides(leaf.oa.get()),
                "the address is aligned to its span",
            )
        }
        Err(reserved) => at.holds(
            reserved.word == word && reserved.level == level,
            "an error names the item that was decoded",
        ),
    }
}

/// F11.
fn check_fields<F: Format>(format: &F, word: u64, level: Level) -> Result<(), Violation> {
    let at = At::new(Law::F11, level, word);
    let mut seen = 0;
    for field in format.fields(word, level) {
        at.holds(!field.name.is_empty(), "a field has a name")?;
        at.holds(seen & field.mask() == 0, "fields do not overlap")?;
        seen |= field.mask();
    }
    Ok(())
}

/// Returns the addresses below `2^oa_bits` aligned to `size` that leaves and tables are tried
/// with: alternating bits both ways, the highest and zero.
fn addresses(size: PageSize, oa_bits: u8) -> impl Iterator<Item = Oa> {
    let mask = oa_mask(oa_bits) & !size.offset_mask();
    [0xaaaa_aaaa_aaaa_aaaa, 0x5555_5555_5555_5555, u64::MAX, 0]
        .into_iter()
        .map(move |pattern| Oa::new(pattern & mask))
}

/// Returns the mask of the lowest `bits`, 1 to 64.
const fn oa_mask(bits: u8) -> u64 {
    u64::MAX >> (64 - bits)
}

/// Returns single bits, single bits missing, and pseudo-random words, some sparse, some dense.
fn sample_words() -> impl Iterator<Item = u64> {
    let single = (0..u64::BITS).flat_map(|bit| [1 << bit, !(1 << bit)]);
    let mut words = Words::new();
    let random = (0..256).map(move |i| match i % 4 {
        0 => words.next_word() & words.next_word(),
        1 => words.next_word() | words.next_word(),
        _ => words.next_word(),
    });
    single.chain([u64::MAX]).chain(random)
}

/// A sequence of pseudo-random words, the same every time (`SplitMix64`).
struct Words(u64);

impl Words {
    const fn new() -> Self {
        Self(0)
    }

    const fn next_word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }
}

#[cfg(test)]
mod tests;
