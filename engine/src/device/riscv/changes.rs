//! What hardware must be told when contexts change.
//!
//! Source: *RISC-V IOMMU Architecture Specification*, section "Guidelines for invalidations". What is told of
//! translations depends on the old context, as do the tags that they are cached under.
//!
//! | changed | told |
//! |---|---|
//! | entry above the last level of the device directory | `IODIR.INVAL_DDT` of everything |
//! | device context | `IODIR.INVAL_DDT` of the device; with a second stage `IOTINVAL.VMA` and `.GVMA` of its GSCID; without, `IOTINVAL.VMA` of its PSCID, or of the host if it has a process directory |
//! | entry above the last level of a process directory | `IODIR.INVAL_DDT` of the device |
//! | process context | `IODIR.INVAL_PDT` of device and process, `IOTINVAL.VMA` of its PSCID |

use iopt_formats::command::riscv::Command;
use iopt_formats::command::{Narrow, Pasid};
use iopt_formats::context::riscv::{
    DeviceContext, FirstStage, FirstStageTables, ProcessContext, SecondStage,
};

/// A device ID, as commands have it. Directories have no entry for wider ones.
pub(super) fn narrow<const BITS: u32>(id: u32) -> Narrow<BITS> {
    Narrow::new(id).unwrap_or(Narrow::MAX)
}

/// What is cached of an old context's translations, as far as commands can name it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Old {
    /// None: the context was not valid, or led to no tables.
    Nothing,
    /// Under a PSCID of the host.
    Process(u32),
    /// Under any PSCID of the host.
    Host,
    /// Under a GSCID.
    Guest(u16),
    /// Nobody knows: hardware may hold any context that was there since it last answered.
    Unknown,
}

impl Old {
    /// Returns what the translations of a device context are cached under.
    pub(super) fn of_device(context: Option<DeviceContext>) -> Self {
        let Some(context) = context else {
            return Self::Nothing;
        };
        match (context.second_stage(), context.first_stage()) {
            (SecondStage::Svx4 { gscid, .. } | SecondStage::Sv32x4 { gscid, .. }, _) => {
                Self::Guest(gscid)
            }
            (SecondStage::Bare, FirstStage::Directory(_)) => Self::Host,
            (SecondStage::Bare, FirstStage::Tables(FirstStageTables::Bare)) => Self::Nothing,
            (SecondStage::Bare, FirstStage::Tables(_)) => Self::Process(context.pscid()),
        }
    }

    /// Returns what the translations of a process context below no second stage are cached under.
    pub(super) fn of_process(context: Option<ProcessContext>) -> Self {
        context.map_or(Self::Nothing, |context| Self::Process(context.pscid()))
    }

    /// Returns what makes hardware forget them.
    fn commands(self) -> impl Iterator<Item = Command> + Clone {
        let host = |pscid| Command::IotinvalVma {
            gscid: None,
            pscid,
            target: None,
        };
        let of_guest = |gscid| Command::IotinvalGvma {
            gscid,
            target: None,
        };
        let (first, second) = match self {
            Self::Nothing => (None, None),
            Self::Process(pscid) => (Some(host(Some(narrow(pscid)))), None),
            Self::Host => (Some(host(None)), None),
            Self::Guest(gscid) => {
                let combined = Command::IotinvalVma {
                    gscid: Some(gscid),
                    pscid: None,
                    target: None,
                };
                (Some(combined), Some(of_guest(Some(gscid))))
            }
            Self::Unknown => (Some(host(None)), Some(of_guest(None))),
        };
        first.into_iter().chain(second)
    }
}

/// After an entry above the last level of the device directory.
pub(super) const fn device_directory() -> [Command; 1] {
    [Command::IodirInvalDdt { device: None }]
}

/// After an entry above the last level of the process directory of `devices`.
pub(super) fn process_directory(devices: &[u32]) -> impl Iterator<Item = Command> + Clone {
    devices.iter().map(|&device| Command::IodirInvalDdt {
        device: Some(narrow(device)),
    })
}

/// After the context of a device.
pub(super) fn device_context(device: u32, old: Old) -> impl Iterator<Item = Command> + Clone {
    let device = Some(narrow(device));
    core::iter::once(Command::IodirInvalDdt { device }).chain(old.commands())
}

/// After the context of a process that `devices` share.
pub(super) fn process_context(
    devices: &[u32],
    process: Pasid,
    old: Old,
) -> impl Iterator<Item = Command> + Clone {
    let devices = devices.iter().map(move |&device| Command::IodirInvalPdt {
        device: narrow(device),
        process,
    });
    devices.chain(old.commands())
}
