//! Bits of a raw word, numbered as the manuals number them.

/// Returns bit `n` of `word`.
pub(crate) const fn bit(word: u64, n: u32) -> bool {
    word >> n & 1 == 1
}

/// Returns bits `high..=low` of `word`, moved down to bit 0.
pub(crate) const fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & u64::MAX >> (63 - (high - low))
}

/// Returns bits `high..=low` of `word` where they are; nothing if `low` is above `high`.
pub(crate) const fn in_place(word: u64, high: u32, low: u32) -> u64 {
    if low > high {
        0
    } else {
        bits(word, high, low) << low
    }
}

/// Returns whether `value` needs more than `width` bits.
pub(crate) const fn exceeds(value: u64, width: u32) -> bool {
    width < 64 && value >> width != 0
}

#[cfg(test)]
mod tests {
    use super::{bit, bits, exceeds, in_place};

    #[test]
    fn fields_are_cut_at_both_ends() {
        assert!(bit(1 << 63, 63) && !bit(!(1 << 63), 63));
        assert_eq!(bits(0xabcd, 11, 4), 0xbc);
        assert_eq!(bits(u64::MAX, 63, 0), u64::MAX);
        assert_eq!(in_place(0xabcd, 11, 4), 0xbc0);
        assert_eq!(in_place(u64::MAX, 47, 48), 0);
    }

    #[test]
    fn a_width_of_64_bits_holds_everything() {
        assert!(!exceeds(u64::MAX, 64));
        assert!(exceeds(1 << 63, 63));
        assert!(exceeds(0x100, 8) && !exceeds(0xff, 8));
    }
}
