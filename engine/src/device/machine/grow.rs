//! More of a machine becomes known, and what was known stays as it is.

use alloc::vec::Vec;

use crate::device::GrowError;
use crate::device::machine::{Machine, MachineParts};

impl Machine {
    /// Numbers what `known` knows as that does, and what is new behind it.
    ///
    /// # Errors
    ///
    /// [`GrowError`] if this is another machine, or one in which something changed.
    pub(in crate::device) fn grown_from(self, known: &Self) -> Result<Self, GrowError> {
        if self.anonymous_count != known.anonymous_count
            || !self.instances.starts_with(&known.instances)
        {
            return Err(GrowError::Instances);
        }
        for device in &known.devices {
            let address = device.address;
            let now = self.device(address).ok_or(GrowError::Gone { address })?;
            let is_same = now.streams == device.streams
                && now.regions == device.regions
                && now.reach == device.reach
                && now.is_untrusted == device.is_untrusted
                && now.pasid_bits == device.pasid_bits
                && now.device_tlb == device.device_tlb
                && now.is_coherent == device.is_coherent
                && now.refusal == device.refusal;
            if !is_same {
                return Err(GrowError::Changed { address });
            }
        }
        let Self {
            devices,
            instances,
            anonymous_count,
            suppliers,
            ..
        } = self;
        let (mut old, new): (Vec<_>, Vec<_>) = devices
            .into_iter()
            .partition(|device| known.number_of(device.address).is_some());
        old.sort_by_key(|device| known.number_of(device.address));
        old.extend(new);
        let grown = Self::assemble(MachineParts {
            devices: old,
            instances,
            anonymous_count,
            suppliers,
        });
        // Groups are numbered by their first members, and those are the old ones.
        for (number, &group) in known.group_of.iter().enumerate() {
            let now = grown.group_of[number];
            if now != group {
                let of_known = |number: &&usize| **number < known.devices.len();
                let mut members = grown.members_of(now).iter().filter(of_known);
                let other = members.find(|&&other| known.group_of[other] != group);
                let address = known.address(number);
                return Err(match other {
                    Some(&other) => GrowError::Joined {
                        address,
                        other: known.address(other),
                    },
                    None => GrowError::Parted { address },
                });
            }
        }
        Ok(grown)
    }
}
