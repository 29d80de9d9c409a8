//! What the structures say, as rules.
//!
//! Affinities and properties have no place in a description; they stay in the typed form.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;

use iopt_formats::{Iova, IovaRange, Prot};

use crate::firmware::acpi::dmar::{SIGNATURE, Scope, ScopeKind, StructureKind, Table, Unit};
use crate::firmware::acpi::error::{AcpiError, Fault};
use crate::firmware::{
    Architecture, Ats, Bus, Description, Instance, InstanceIndex, Location, Node, NodeIndex,
    Output, PciPath, Region, RegionKind, Rule, Subject,
};
use crate::topology::RequesterId;

impl Table {
    /// Adds what the table says.
    pub(in crate::firmware::acpi) fn describe(
        &self,
        description: &mut Description,
    ) -> Result<(), AcpiError> {
        let names = self.names(description)?;
        let mut bases = BTreeSet::new();
        let mut segments = BTreeSet::new();
        let mut rest = Vec::new();
        for structure in &self.structures {
            let StructureKind::Unit(unit) = &structure.kind else {
                continue;
            };
            if !bases.insert(unit.base) {
                return Err(error(structure.offset, 8, "a unit", Fault::Duplicate));
            }
            let instance = InstanceIndex(description.instances.len());
            description.instances.push(Instance {
                architecture: Architecture::Vtd,
                location: Location::Memory {
                    base: unit.base,
                    len: Some(unit.len),
                },
                name: format!("DMAR unit at {:#x}", structure.offset),
                is_enabled: true,
                is_coherent: None,
                itself: None,
                match_mask: 0,
            });
            unit.describe(instance, &names, description)?;
            if unit.is_rest {
                if !segments.insert(unit.segment) {
                    let what = "a unit for the rest of a segment";
                    return Err(error(structure.offset, 4, what, Fault::Duplicate));
                }
                let segment = unit.segment;
                rest.push(rule(Subject::Rest { segment }, instance, Output::Offset(0)));
            }
        }
        description.rules.append(&mut rest);
        for structure in &self.structures {
            match &structure.kind {
                StructureKind::ReservedMemory {
                    segment,
                    base,
                    limit,
                    scopes,
                } => {
                    let range = IovaRange::new(Iova::new(*base), Iova::new(*limit));
                    let range = range.ok_or_else(|| {
                        let (first, last) = (*base, *limit);
                        let fault = Fault::Reversed { first, last };
                        error(structure.offset, 8, "a reserved memory region", fault)
                    })?;
                    let kind = RegionKind::Direct {
                        prot: Prot::RW,
                        is_relaxable: false,
                    };
                    for scope in scopes {
                        let subject = scope.subject(*segment, &names)?;
                        description.regions.extend(subject.map(|subject| Region {
                            subject: Some(subject),
                            range,
                            kind,
                        }));
                    }
                }
                StructureKind::RootPorts {
                    segment,
                    is_all: true,
                    ..
                } => description.ats.push(Ats {
                    subject: Subject::BelowRootPorts { segment: *segment },
                    is_required: false,
                }),
                StructureKind::RootPorts {
                    segment, scopes, ..
                } => ats(*segment, scopes, false, &names, description)?,
                StructureKind::DeviceTlbs {
                    segment,
                    is_required,
                    scopes,
                } => ats(*segment, scopes, *is_required, &names, description)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds the devices of the namespace; returns where each is, by its number.
    fn names(&self, description: &mut Description) -> Result<BTreeMap<u8, NodeIndex>, AcpiError> {
        let mut names = BTreeMap::new();
        for structure in &self.structures {
            if let StructureKind::NamespaceDevice { number, name } = &structure.kind {
                let index = NodeIndex(description.nodes.len());
                if names.insert(*number, index).is_some() {
                    let what = "the number of a device";
                    return Err(error(structure.offset, 7, what, Fault::Duplicate));
                }
                description.nodes.push(Node {
                    name: name.clone(),
                    bus: Bus::Platform,
                });
            }
        }
        Ok(names)
    }
}

impl Unit {
    /// Adds the rules of the unit's scopes. It sees a PCI function's own requester ID; a device of the
    /// namespace uses the ID that its scope's path gives.
    fn describe(
        &self,
        instance: InstanceIndex,
        names: &BTreeMap<u8, NodeIndex>,
        description: &mut Description,
    ) -> Result<(), AcpiError> {
        for scope in &self.scopes {
            let subject = scope.subject(self.segment, names)?;
            let output = if scope.kind == ScopeKind::Namespace {
                let [step] = scope.path[..] else {
                    let len = scope.path.len() * 2 + 6;
                    let what = "the scope of a namespace device";
                    return Err(error(scope.offset, 1, what, Fault::Length { len }));
                };
                let id = RequesterId::from_parts(scope.start_bus, step.device, step.function);
                Output::Fixed(id.unwrap_or_default().get().into())
            } else {
                Output::Offset(0)
            };
            if let Some(subject) = subject {
                description.rules.push(rule(subject, instance, output));
            }
        }
        Ok(())
    }
}

impl Scope {
    /// Returns whose requests the scope is about; `None` for interrupts only.
    fn subject(
        &self,
        segment: u16,
        names: &BTreeMap<u8, NodeIndex>,
    ) -> Result<Option<Subject>, AcpiError> {
        let path = || PciPath {
            segment,
            start_bus: self.start_bus,
            steps: self.path.clone(),
        };
        Ok(match self.kind {
            ScopeKind::Endpoint => Some(Subject::Function(path())),
            ScopeKind::SubHierarchy => Some(Subject::Below(path())),
            ScopeKind::Namespace => {
                let node = names.get(&self.enumeration).ok_or_else(|| {
                    let to = self.enumeration.into();
                    let fault = Fault::Reference { to };
                    error(self.offset, 4, "the enumeration ID", fault)
                })?;
                Some(Subject::Node(*node))
            }
            _ => None,
        })
    }
}

fn ats(
    segment: u16,
    scopes: &[Scope],
    is_required: bool,
    names: &BTreeMap<u8, NodeIndex>,
    description: &mut Description,
) -> Result<(), AcpiError> {
    for scope in scopes {
        let subject = scope.subject(segment, names)?;
        description.ats.extend(subject.map(|subject| Ats {
            subject,
            is_required,
        }));
    }
    Ok(())
}

const fn rule(subject: Subject, instance: InstanceIndex, output: Output) -> Rule {
    Rule {
        subject,
        instance: Some(instance),
        output,
        amd_settings: 0,
    }
}

const fn error(structure: usize, at: usize, what: &'static str, fault: Fault) -> AcpiError {
    AcpiError {
        table: SIGNATURE,
        offset: structure.saturating_add(at),
        what,
        fault,
    }
}
