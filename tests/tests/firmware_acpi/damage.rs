//! Tables with damage: cut off, with flipped bits, with other bytes, and bytes that are none.

use iopt::firmware::Description;
use iopt::firmware::acpi::{AcpiError, Fault, Signature, dmar, iort, ivrs, mcfg, parse, viot};

use crate::{MACHINES, tables};

/// Writes the length and the checksum, so that damage reaches what is behind them.
fn seal(table: &mut [u8]) {
    let len = u32::try_from(table.len()).expect("it is short");
    if let Some(bytes) = table.get_mut(4..8) {
        bytes.copy_from_slice(&len.to_le_bytes());
    }
    reckon(table);
}

/// Writes the checksum of as much as the length says.
fn reckon(table: &mut [u8]) {
    let len = table.get(4..8).map(|bytes| {
        let bytes = bytes.try_into().expect("they are four");
        u32::from_le_bytes(bytes) as usize
    });
    let Some(table) = len
        .and_then(|len| table.get_mut(..len))
        .filter(|table| table.len() > 9)
    else {
        return;
    };
    table[9] = 0;
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = sum.wrapping_neg();
}

/// Parses a damaged table as the only one; what it says must be in proportion to its size. Returns
/// whether it still is one.
fn parse_damaged(table: &[u8]) -> bool {
    let parsed = parse(&[table]);
    if let Err(error) = &parsed {
        assert!(!error.to_string().is_empty());
    }
    let Ok(description) = parsed else {
        return false;
    };
    // Segments of a VIOT and reserved memory of an IORT have limits of their own.
    let limit = table.len() + 4096;
    let all = [
        description.instances.len(),
        description.nodes.len(),
        description.hosts.len(),
        description.rules.len(),
        description.regions.len(),
        description.reaches.len(),
        description.coherence.len(),
        description.ats.len(),
    ];
    assert!(all.iter().all(|count| *count <= limit), "{all:?}");
    true
}

/// Numbers of a fixed seed (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) as usize % end
    }
}

/// All tables that differ.
fn all_tables() -> Vec<Vec<u8>> {
    let mut all: Vec<_> = MACHINES.into_iter().flat_map(tables).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn a_table_that_was_cut_off_is_refused_or_read_at_any_length() {
    for table in all_tables() {
        for len in 0..table.len() {
            assert!(!parse_damaged(&table[..len]) || len == table.len());
            // With the length and the checksum of what is left.
            let mut cut = table[..len].to_vec();
            seal(&mut cut);
            parse_damaged(&cut);
        }
        let mut longer = table.clone();
        longer.push(0);
        assert!(
            parse_damaged(&longer),
            "what is behind a table is not part of it"
        );
    }
}

#[test]
fn no_flipped_bit_goes_unnoticed_by_the_checksum() {
    for table in all_tables() {
        let signature = Signature::of(&table).expect("it has one");
        for place in 0..table.len() * 8 {
            let mut damaged = table.clone();
            damaged[place / 8] ^= 1 << (place % 8);
            let parsed = parse(&[&damaged]);
            match place / 8 {
                // Another signature: another table.
                0..4 => assert_eq!(parsed, Ok(Description::default())),
                4..8 => assert!(parsed.is_err()),
                _ => {
                    let error = parsed.expect_err("the checksum does not fit");
                    let sum = 1_u8 << (place % 8);
                    let is_set = damaged[place / 8] & sum != 0;
                    let sum = if is_set { sum } else { sum.wrapping_neg() };
                    let expected = AcpiError {
                        table: signature,
                        offset: 0,
                        what: "the bytes",
                        fault: Fault::Checksum { sum },
                    };
                    assert_eq!(error, expected);
                }
            }
        }
    }
}

#[test]
fn damage_behind_a_right_checksum_does_no_harm() {
    let mut random = Random(0x5eed_ac91);
    let (mut good, mut bad) = (0, 0);
    for table in all_tables() {
        for place in 4..table.len() {
            let flipped = (0..8).map(|bit| table[place] ^ 1 << bit);
            for value in flipped.chain([0, 1, 3, 0x7f, 0x80, 0xfe, 0xff]) {
                let mut damaged = table.clone();
                damaged[place] = value;
                reckon(&mut damaged);
                if parse_damaged(&damaged) {
                    good += 1;
                } else {
                    bad += 1;
                }
            }
        }
        for _ in 0..2000 {
            let mut damaged = table.clone();
            for _ in 0..=random.below(8) {
                let place = 36 + random.below(table.len() - 36);
                damaged[place] = [0, 1, 0x7f, 0xff, random.below(256) as u8][random.below(5)];
            }
            reckon(&mut damaged);
            parse_damaged(&damaged);
        }
    }
    assert!(good > 1000 && bad > 1000, "{good} read, {bad} refused");
}

#[test]
fn bytes_that_are_no_table_do_no_harm() {
    let mut random = Random(0x00ac_0091);
    let signatures = [
        iort::SIGNATURE,
        viot::SIGNATURE,
        dmar::SIGNATURE,
        ivrs::SIGNATURE,
        mcfg::SIGNATURE,
    ];
    for round in 0..20_000 {
        let len = 36 + random.below(300);
        let small = round % 2 == 0;
        let mut bytes: Vec<u8> = (0..len)
            .map(|_| match random.below(if small { 4 } else { 1 }) {
                0 => random.below(256) as u8,
                _ => random.below(6) as u8 * 8,
            })
            .collect();
        bytes[..4].copy_from_slice(&signatures[round % 5].0);
        seal(&mut bytes);
        parse_damaged(&bytes);
    }
}
