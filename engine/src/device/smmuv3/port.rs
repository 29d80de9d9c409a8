//! The streams of one device at one SMMU, and where its requests are led there.

use alloc::vec::Vec;
use core::fmt;

use iopt_formats::command::Pasid;
use iopt_formats::context::smmuv3::{Ats, Cd, DefaultSubstream, Stream};

use crate::device::AttachFailure;
use crate::device::context::{Attached, HardwareEndpoint, Outcome, Share, Target, Unwritten};
use crate::device::smmuv3::tables::CdTables;
use crate::device::smmuv3::{CommandDevice, Smmu, Smmuv3, Stage, Stalls};
use crate::mem::TableMemory;

/// The substream of requests without one, where `S1DSS` says so.
const NO_PASID: Pasid = Pasid::new(0).expect("0 has few bits");

/// A device that a [`Smmuv3Driver`](crate::device::smmuv3::Smmuv3Driver) took in.
pub type Smmuv3Endpoint<M, D> = HardwareEndpoint<Smmuv3<M, D>>;

/// The streams of a device at one SMMU, and its CDs once stage 1 was needed.
pub struct Port<M: TableMemory> {
    pub(super) streams: Vec<u32>,
    pub(super) share: Share<Stream>,
    pub(super) pasid_bits: u8,
    pub(super) cds: Option<CdTables<M>>,
}

impl<M: TableMemory + 'static> Port<M> {
    /// Sees to it that there is a CD of that place, and tables for it.
    pub(super) fn make_cd<D: CommandDevice>(
        &mut self,
        smmu: &Smmu<M, D>,
        place: Option<Pasid>,
    ) -> Result<(), AttachFailure> {
        let cds = match &mut self.cds {
            Some(cds) => cds,
            none => {
                let made = CdTables::new(smmu, self.pasid_bits);
                none.insert(made.map_err(|_| AttachFailure::Exhausted)?)
            }
        };
        Ok(cds.link(smmu, &self.streams, place.unwrap_or(NO_PASID))?)
    }

    /// Returns what the STEs have to say, unless the device is blocked.
    fn stream<D: CommandDevice>(
        &self,
        smmu: &Smmu<M, D>,
        attached: &Attached<'_, Smmuv3<M, D>>,
    ) -> Option<Stream> {
        let with_cds = |default| {
            let cds = self.cds.as_ref()?;
            let stage1 = cds.stage1(smmu, default, attached.can_stall());
            Some(smmu.attributed(Stream::stage1(stage1)))
        };
        let has_pasids = attached.has_pasids();
        let translated = match attached.at(None) {
            Target::Stage((stage, id)) if stage.has_second() => {
                let stream = stage.stream(smmu.features());
                stream.map(|stream| smmu.attributed(stream.with_vmid(id as u16)))
            }
            Target::Stage(_) => with_cds(DefaultSubstream::Substream0),
            Target::Identity if !has_pasids => return Some(smmu.bypass()),
            Target::Identity => with_cds(DefaultSubstream::Bypass),
            Target::Blocked if !has_pasids => None,
            Target::Blocked => with_cds(DefaultSubstream::Terminate),
        };
        let stream = translated?;
        let ats = if attached.has_ats() {
            Ats::Full
        } else {
            Ats::Refused
        };
        Some(stream.with_ats(ats).unwrap_or(stream))
    }

    /// Makes an STE say what the device wants of it, or what another one does that has the stream, too.
    pub(super) fn write_stream<D: CommandDevice>(
        &self,
        smmu: &Smmu<M, D>,
        id: u32,
        wanted: Option<Stream>,
        gives_way: bool,
    ) -> Result<(), Unwritten> {
        self.share.lead(id, wanted, gives_way, |stream| {
            smmu.write(id, &stream.unwrap_or(Stream::ABORT))
        })
    }

    fn write_streams<D: CommandDevice>(
        &self,
        smmu: &Smmu<M, D>,
        attached: &Attached<'_, Smmuv3<M, D>>,
        gives_way: bool,
    ) -> Outcome {
        let stream = self.stream(smmu, attached);
        let ids = self.streams.iter();
        let written = ids.map(|&id| self.write_stream(smmu, id, stream, gives_way).into());
        written.fold(Outcome::Known, Outcome::and)
    }

    fn write_cd<D: CommandDevice>(
        &mut self,
        smmu: &Smmu<M, D>,
        place: Option<Pasid>,
        cd: &Cd,
    ) -> Outcome {
        let pasid = place.unwrap_or(NO_PASID);
        match &mut self.cds {
            Some(cds) if cds.get(pasid).is_some() => {
                cds.write(smmu, &self.streams, pasid, cd).into()
            }
            // A piece that never came holds no valid CD.
            _ => Outcome::Known,
        }
    }

    /// Writes the CD of a place, and the STEs.
    pub(super) fn write<D: CommandDevice>(
        &mut self,
        smmu: &Smmu<M, D>,
        place: Option<Pasid>,
        attached: &Attached<'_, Smmuv3<M, D>>,
    ) -> Outcome {
        let cd = match (attached.at(place), attached.ended_at(place)) {
            (Target::Stage((stage @ Stage::First { .. }, id)), _) => {
                stage.cd(id as u16, attached.stalls(place) || must_stall(smmu))
            }
            (_, Some((stage, id))) => stage.ended_cd(id as u16, must_stall(smmu)),
            _ => Cd::INVALID,
        };
        let gives_way = !cd.is_valid() && attached.at(place) == Target::Blocked;
        let is_shared = || self.share.is_shared(self.streams.iter().copied());
        // A CD before the STE that leads to it. Where an STE leads elsewhere it does so before its CD goes: that of
        // requests without PASID, and any if devices that stay attached would be led there.
        if cd.is_valid() || place.is_some() && !(gives_way && is_shared()) {
            let written = self.write_cd(smmu, place, &cd);
            written.and(self.write_streams(smmu, attached, gives_way))
        } else {
            let written = self.write_streams(smmu, attached, gives_way);
            written.and(self.write_cd(smmu, place, &cd))
        }
    }
}

/// Returns whether nothing but stalls is legal.
fn must_stall<M: TableMemory + 'static, D: CommandDevice>(smmu: &Smmu<M, D>) -> bool {
    smmu.features().stalls == Stalls::Forced
}

impl<M: TableMemory + 'static, D: CommandDevice> HardwareEndpoint<Smmuv3<M, D>> {
    /// Returns the CD of a PASID at an SMMU of the device, of 0 for requests without one, as it was written
    /// last.
    pub fn cd(&self, port: usize, pasid: Pasid) -> Option<Cd> {
        self.with_port(port, |port| port.cds.as_ref()?.get(pasid))?
    }
}

impl<M: TableMemory> fmt::Debug for Port<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}
