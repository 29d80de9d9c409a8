//! IDs of which some bits do not count: those of Arm SMMUs before version 3, as their stream match registers
//! have them. Devices share a stream if one ID fits both.

use alloc::vec::Vec;

use crate::device::Resolved;
use crate::device::machine::Sets;
use crate::firmware::InstanceIndex;

/// How many IDs are written out one by one at most, of one instance: real SMMUs have 128 registers.
const STEPS: usize = 1 << 22;
const NOBODY: usize = usize::MAX;

/// There are too many IDs to find out which of them overlap.
pub(super) struct TooMany;

/// Returns the IDs under which an instance sees devices, and the numbers of those.
pub(super) fn ids_of(devices: &[Resolved], instance: InstanceIndex) -> Vec<(u32, usize)> {
    let mut ids = Vec::new();
    for (device, number) in devices.iter().zip(0..) {
        let streams = device.streams.iter();
        for stream in streams.filter(|stream| stream.instance == instance) {
            ids.extend(stream.ids.iter().map(|id| (*id, number)));
        }
    }
    ids
}

/// Joins devices that one ID fits.
pub(super) fn join_shared(mut ids: Vec<(u32, usize)>, sets: &mut Sets) -> Result<(), TooMany> {
    if ids.iter().all(|(id, _)| id >> 16 == 0) {
        // Equal IDs are joined by whoever makes the machine.
        return Ok(());
    }
    ids.sort_unstable();
    sets.join_equal(&ids);
    ids.dedup_by_key(|(id, _)| *id);
    let mut first_of = Vec::new();
    first_of.resize(1 << 16, NOBODY);
    let mut left = STEPS;
    for (id, device) in ids {
        let [id, mask] = [id & 0xffff, id >> 16];
        left = left.checked_sub(1 << mask.count_ones()).ok_or(TooMany)?;
        // All subsets of the mask, from the largest to none.
        let mut more = mask;
        loop {
            let first = &mut first_of[((id & !mask) | more) as usize];
            if *first == NOBODY {
                *first = device;
            } else {
                sets.join_equal(&[((), *first), ((), device)]);
            }
            if more == 0 {
                break;
            }
            more = (more - 1) & mask;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intervals::random::{Random, rounds};

    #[test]
    fn devices_are_joined_if_and_only_if_an_id_fits_both() {
        let mut random = Random::new(0x5a3e);
        for _ in 0..rounds(200) {
            // Few bits, at both ends of an ID.
            let mut bits = || (random.below(8) as u32) << 13 | random.below(8) as u32;
            let mut ids = Vec::new();
            for device in 0..6 {
                let [id, mask] = [bits(), bits() & bits()];
                ids.push((mask << 16 | id & !mask, device));
            }
            let mut sets = Sets::new(6);
            assert!(join_shared(ids.clone(), &mut sets).is_ok());
            let groups = sets.numbered();
            let mut expected: Vec<usize> = (0..6).collect();
            for (one, first) in &ids {
                for (other, second) in &ids {
                    let passed = one >> 16 | other >> 16;
                    if (one ^ other) & 0xffff & !passed == 0 {
                        let (from, to) = (expected[*second], expected[*first]);
                        let all = expected.iter_mut();
                        all.filter(|group| **group == from)
                            .for_each(|group| *group = to);
                    }
                }
            }
            for one in 0..6 {
                for other in 0..6 {
                    let are_one = expected[one] == expected[other];
                    assert_eq!(groups[one] == groups[other], are_one, "{ids:x?}");
                }
            }
        }
    }

    #[test]
    fn too_many_ids_are_no_endless_work() {
        let with = |bits: u32| {
            let masks = (0..1 << 16_u32).filter(|mask: &u32| mask.count_ones() == bits);
            masks.map(|mask| (mask << 16, 0)).collect()
        };
        // 16 choose 3 times 2 to the 3, and 16 choose 13 times 2 to the 13.
        assert!(join_shared(with(3), &mut Sets::new(1)).is_ok());
        assert!(join_shared(with(13), &mut Sets::new(1)).is_err());
    }
}
