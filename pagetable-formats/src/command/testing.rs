//! Checks that the commands of all architectures pass.

extern crate std;

use core::fmt::Debug;

use super::{CommandError, Pasid, Span};

/// Numbers that look random, the same in every run (splitmix64).
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `count`.
    pub(super) const fn below(&mut self, count: u64) -> u64 {
        self.next() % count
    }

    pub(super) const fn chance(&mut self) -> bool {
        self.next() & 1 != 0
    }

    pub(super) const fn pasid(&mut self) -> Pasid {
        Pasid::from_field(self.next())
    }

    pub(super) fn span(&mut self) -> Span {
        let order = self.below(53) as u8;
        Span::new(self.next(), order).expect("a valid order")
    }
}

/// Returns an endless row of such numbers.
pub(super) fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let mut numbers = Numbers::new(seed);
    core::iter::repeat_with(move || numbers.next())
}

/// Checks `vectors`, each a command, its words, and the bits that the command has besides those of
/// `opcode_mask`: the words are those of the command; every other bit is refused by name; and random fields
/// that decode encode again to themselves.
pub(super) fn check_codec<C: Copy + Debug + PartialEq>(
    vectors: &[(C, [u64; 2], [u64; 2])],
    opcode_mask: u64,
    encode: impl Fn(&C) -> [u64; 2],
    decode: impl Fn([u64; 2]) -> Result<C, CommandError>,
) {
    let round_trip = |words| {
        let decoded = decode(words);
        if let Ok(command) = decoded {
            assert_eq!(encode(&command), words, "{command:x?}");
        }
        decoded.is_ok()
    };
    for &(command, words, legal) in vectors {
        assert_eq!(encode(&command), words, "{command:x?} against {words:#x?}");
        assert_eq!(decode(words), Ok(command), "{words:#x?}");

        for position in 0..128 {
            let word = position / 64;
            let bit = 1 << (position % 64);
            let mut flipped = words;
            flipped[word] ^= bit;
            round_trip(flipped);
            let is_opcode = word == 0 && opcode_mask & bit != 0;
            if !is_opcode && legal[word] & bit == 0 {
                let expected = Err(CommandError::ReservedBits {
                    word: word as u8,
                    bits: bit,
                });
                assert_eq!(decode(flipped), expected, "bit {position} of {command:x?}");
            }
        }

        let draws = numbers(words[0]).zip(numbers(!words[0]));
        let opcode = words[0] & opcode_mask;
        let decoded = draws
            .take(300)
            .filter(|&(first, second)| round_trip([first & legal[0] | opcode, second & legal[1]]))
            .count();
        assert!(decoded > 0, "no random fields make a {command:x?}");
    }
    for (first, second) in numbers(3).zip(numbers(4)).take(10_000) {
        round_trip([first, second]);
    }
}

/// Checks that words which decode are encoded as they were: `words` and all that differ from them in one
/// or two bits. Returns how many of these decode.
pub(super) fn check_words<const N: usize, C: Debug>(
    words: [u64; N],
    decode: impl Fn([u64; N]) -> Result<C, CommandError>,
    encode: impl Fn(&C) -> [u64; N],
) -> usize {
    let mut decoded = 0;
    let bits = 64 * N;
    for first in 0..bits {
        for second in first..bits {
            let mut words = words;
            words[first / 64] ^= 1 << (first % 64);
            if second != first {
                words[second / 64] ^= 1 << (second % 64);
            }
            if let Ok(command) = decode(words) {
                assert_eq!(encode(&command), words, "{command:x?}");
                decoded += 1;
            }
        }
    }
    let command = decode(words).expect("the words are those of a command");
    assert_eq!(encode(&command), words, "{command:x?}");
    decoded
}
