//! What the blocks say, as rules.
//!
//! Interrupt controllers and timers do no DMA and have the ID of another device, mostly: they stay in the typed
//! form, with what is to be programmed for their interrupts.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use iopt_formats::{Iova, IovaRange, Prot, Rights};

use crate::firmware::acpi::error::{AcpiError, Fault};
use crate::firmware::acpi::ivrs::{Entry, Hardware, Memory, SIGNATURE, Settings, Table, Uid};
use crate::firmware::acpi::taken::Taken;
use crate::firmware::{
    Architecture, Ats, Bus, Description, Instance, InstanceIndex, Itself, Location, Node,
    NodeIndex, Output, Region, RegionKind, Rule, Subject,
};
use crate::topology::{PciAddress, RequesterId};

impl Table {
    /// Adds what the table says.
    ///
    /// Several blocks may describe the same IOMMU, for software that knows the newer types and for such
    /// that does not. The one with the largest type counts.
    pub(in crate::firmware::acpi) fn describe(
        &self,
        description: &mut Description,
    ) -> Result<(), AcpiError> {
        let mut largest: BTreeMap<PciAddress, u8> = BTreeMap::new();
        for block in &self.hardware {
            let kind = largest.entry(block.address).or_default();
            *kind = block.kind.max(*kind);
        }
        let mut described = BTreeSet::new();
        for block in &self.hardware {
            if largest.get(&block.address) != Some(&block.kind) {
                continue;
            }
            if !described.insert(block.address) {
                let what = "the block of an IOMMU";
                return Err(error(block.offset, 4, what, Fault::Duplicate));
            }
            block.describe(description);
        }
        for block in &self.memory {
            block.describe(description)?;
        }
        Ok(())
    }
}

/// Functions whose requests an IOMMU sees in the same way.
struct Piece<'a> {
    first: u16,
    last: u16,
    alias: Option<RequesterId>,
    settings: &'a Settings,
}

impl Hardware {
    fn describe(&self, description: &mut Description) {
        let instance = InstanceIndex(description.instances.len());
        description.instances.push(Instance {
            architecture: Architecture::Amd,
            location: Location::Memory {
                base: self.base,
                len: None,
            },
            name: format!("IVRS IOMMU {} at {:#x}", self.address, self.offset),
            is_enabled: true,
            is_coherent: None,
            itself: Some(Itself::Function(self.address)),
            match_mask: 0,
        });
        let mut add = |subject: Subject, output, settings: Settings| {
            if self.has_device_tlbs() && !settings.is_ats_disabled() {
                description.ats.push(Ats {
                    subject: subject.clone(),
                    is_required: false,
                });
            }
            description.rules.push(Rule {
                subject,
                instance: Some(instance),
                output,
                amd_settings: settings.data,
            });
        };
        for piece in self.pieces() {
            add(
                Subject::Requesters {
                    segment: self.address.segment,
                    mask: u16::MAX,
                    first: RequesterId::new(piece.first),
                    last: RequesterId::new(piece.last),
                },
                match piece.alias {
                    Some(alias) => Output::Both {
                        offset: piece.first.into(),
                        alias: alias.get().into(),
                    },
                    None => Output::Offset(piece.first.into()),
                },
                *piece.settings,
            );
        }
        for entry in &self.entries {
            let Entry::Named {
                hid,
                uid,
                source,
                settings,
                ..
            } = entry
            else {
                continue;
            };
            let index = NodeIndex(description.nodes.len());
            description.nodes.push(Node {
                name: name(hid, uid.as_ref()),
                bus: Bus::Platform,
            });
            let output = Output::Fixed(source.get().into());
            add(Subject::Node(index), output, *settings);
        }
    }

    /// Returns whose requests the IOMMU sees, each function once, ascending.
    ///
    /// A function with an alias may be seen under both IDs: a bridge to PCI-X passes some requests on as they
    /// are, and an entry of the device table that was never written lets them through.
    /// Of two entries with the same function the later one counts. The function that others are aliases
    /// of is one too, although no entry may say so. The IOMMU's own function is not behind it, although
    /// an entry may say so.
    fn pieces(&self) -> Vec<Piece<'_>> {
        let mut taken = Taken::default();
        taken.take_one(self.address.requester.get().into());
        let mut pieces = Vec::new();
        let mut take = |first: RequesterId, last: RequesterId, alias, settings| {
            taken.take(first.get().into(), last.get().into(), |first, last| {
                pieces.push(Piece {
                    first: first as u16,
                    last: last as u16,
                    alias,
                    settings,
                });
            });
        };
        for entry in self.entries.iter().rev() {
            if let Entry::Functions {
                first,
                last,
                alias,
                settings,
            } = entry
            {
                take(*first, *last, *alias, settings);
            }
        }
        for entry in self.entries.iter().rev() {
            if let Entry::Functions {
                alias: Some(alias),
                settings,
                ..
            } = entry
            {
                take(*alias, *alias, None, settings);
            }
        }
        pieces.sort_unstable_by_key(|piece| piece.first);
        pieces
    }
}

/// A device of the namespace: its hardware ID, and its unique ID behind a colon.
fn name(hid: &str, uid: Option<&Uid>) -> String {
    match uid {
        None => hid.into(),
        Some(Uid::Number(number)) => format!("{hid}:{number}"),
        Some(Uid::Text(text)) => format!("{hid}:{text}"),
    }
}

impl Memory {
    /// An exclusion range needs no translation; a mapping to itself with all rights does the same, for as
    /// many ranges as there are.
    fn describe(&self, description: &mut Description) -> Result<(), AcpiError> {
        let rights = Rights::USER
            .with_if(Rights::READ, self.flags & 2 != 0)
            .with_if(Rights::WRITE, self.flags & 4 != 0);
        let prot = match (self.flags & 8 != 0, self.flags & 1 != 0) {
            (true, _) => Prot::RW,
            (false, true) => Prot::RW.with_rights(rights),
            (false, false) => {
                let value = self.flags.into();
                let what = "the flags of a memory block";
                return Err(error(self.offset, 1, what, Fault::Value { value }));
            }
        };
        let kind = if prot.can_read() || prot.can_write() {
            RegionKind::Direct {
                prot,
                is_relaxable: false,
            }
        } else {
            RegionKind::Reserved
        };
        let what = "the length of a memory block";
        if self.len == 0 {
            return Err(error(self.offset, 24, what, Fault::Value { value: 0 }));
        }
        let range = IovaRange::with_len(Iova::new(self.start), self.len)
            .ok_or_else(|| error(self.offset, 24, what, Fault::Overflow))?;
        let (first, last) = self.requesters;
        description.regions.push(Region {
            subject: Some(Subject::Requesters {
                segment: self.segment,
                mask: u16::MAX,
                first,
                last,
            }),
            range,
            kind,
        });
        Ok(())
    }
}

const fn error(block: usize, at: usize, what: &'static str, fault: Fault) -> AcpiError {
    AcpiError {
        table: SIGNATURE,
        offset: block.saturating_add(at),
        what,
        fault,
    }
}
