//! Damage to bytes, as it befalls files and as attackers do it.

use crate::space::random::Random;

/// Longest input that damage makes.
const MAX_LEN: usize = 1 << 14;

/// Numbers at which readers err.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    0x7f,
    0x80,
    0xff,
    0x7fff_ffff,
    0xffff_fffe,
    u64::MAX,
];

/// Damages bytes.
#[derive(Clone, Debug)]
pub struct Mutator(Random);

impl Mutator {
    /// Creates the one of these numbers.
    pub const fn new(random: Random) -> Self {
        Self(random)
    }

    /// Returns its numbers.
    pub const fn random(&mut self) -> &mut Random {
        &mut self.0
    }

    /// Does one to eight damages; `other` is a good input that parts are taken from.
    pub fn damage(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.0.below(8).min(self.0.below(8)) {
            self.damage_once(bytes, other);
        }
        bytes.truncate(MAX_LEN);
    }

    fn damage_once(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let place = self.place(bytes.len());
        match self.0.below(16) {
            _ if bytes.is_empty() => bytes.push(self.0.any() as u8),
            0..=3 => bytes[place] ^= 1 << self.0.below(8),
            4 | 5 => bytes[place] = self.0.any() as u8,
            6 | 7 => bytes[place] = *self.0.pick(&EDGES) as u8,
            8 => {
                let more = self.0.below(9) as u8;
                bytes[place] = bytes[place].wrapping_add(more).wrapping_sub(4);
            }
            9..=11 => self.write_number(bytes, place),
            12 => bytes.truncate(place),
            13 => {
                let len = self.len(bytes.len() - place);
                bytes.drain(place..place + len);
            }
            14 => {
                let from = self.place(bytes.len());
                let len = self.len(bytes.len() - from);
                let part = bytes[from..from + len].to_vec();
                self.put(bytes, place, &part);
            }
            _ if other.is_empty() => bytes.push(0),
            _ => {
                let from = self.place(other.len());
                let len = self.len(other.len() - from);
                self.put(bytes, place, &other[from..from + len]);
            }
        }
    }

    /// Writes a number of 2, 4 or 8 bytes of either order at a multiple of its size, most often: an edge, or
    /// what stands there and a little more or less.
    fn write_number(&mut self, bytes: &mut [u8], place: usize) {
        let len = *self.0.pick(&[2, 4, 4, 8]);
        let place = if self.0.is_one_in(4) {
            place
        } else {
            place / len * len
        };
        let Some(field) = bytes.get_mut(place..place + len) else {
            return;
        };
        let is_big_endian = self.0.is_one_in(2);
        let value = match self.0.below(3) {
            0 => *self.0.pick(&EDGES),
            1 => 1 << self.0.below(64),
            _ => {
                let digits = field
                    .iter()
                    .fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
                let swapped = digits.swap_bytes() >> (64 - 8 * len);
                let value = if is_big_endian { digits } else { swapped };
                value.wrapping_add(self.0.below(33)).wrapping_sub(16)
            }
        };
        let digits = value.to_le_bytes();
        field.copy_from_slice(&digits[..len]);
        if is_big_endian {
            field.reverse();
        }
    }

    /// Puts a part over what is at `place`, or in between.
    fn put(&mut self, bytes: &mut Vec<u8>, place: usize, part: &[u8]) {
        let end = if self.0.is_one_in(2) {
            place
        } else {
            bytes.len().min(place + part.len())
        };
        bytes.splice(place..end, part.iter().copied());
    }

    fn place(&mut self, len: usize) -> usize {
        self.0.below(len.max(1) as u64) as usize
    }

    /// Returns a length from 1 to `most`, most often a short one.
    fn len(&mut self, most: usize) -> usize {
        let most = if self.0.is_one_in(4) {
            most
        } else {
            most.min(24)
        };
        1 + self.place(most)
    }
}
