//! What a unit had on record when somebody left.

use iopt_formats::Iova;
use iopt_formats::context::vtd::Translation;
use iopt_formats::event::vtd::PageRequest as Record;

use super::rig::{ASKING_FEATURES, Domain, capable, first};
use super::*;
use crate::device::context::HardwareEndpoint;
use crate::device::fault::{PageResponse, Round};
use crate::device::process::ProcessTables;
use crate::device::testing_faults::Collector;
use crate::device::testing_rig::Subject;
use crate::device::testing_scenes;
use crate::device::vtd::architecture::Vtd;

type Arch = Vtd<Heap, Queue>;

impl Subject for Arch {
    type Command = Descriptor;

    fn unit(has_page_requests: bool) -> Arc<Self::Unit> {
        let features = Features {
            has_page_requests,
            ..ASKING_FEATURES
        };
        let instance = Queue::instance_of(PLANNER);
        let unit = Unit::new(features, TableMode::Scalable, Arc::new(Heap), instance);
        Arc::new(unit.expect("memory"))
    }

    fn domain() -> Domain {
        first()
    }

    fn ask(unit: &Self::Unit, id: u32, place: u32, group: u16, is_last: bool) {
        let record = Record {
            requester_id: id as u16,
            pasid: (place > 0).then(|| pasid(place)),
            group: Narrow::new(group.into()).expect("9 bits"),
            is_last,
            is_read: true,
            is_write: false,
            is_fetch: false,
            is_privileged: false,
            address: Iova::new(0x1234_5000),
            private_data: None,
        };
        unit.take_page_request(&record).expect("answered");
    }

    fn begin(unit: &Self::Unit) -> Round<'_> {
        unit.begin_page_requests()
    }

    fn answer(command: &Descriptor) -> Option<(u32, u32, u16, PageResponse)> {
        match *command {
            Descriptor::PageGroupResponse {
                requester_id,
                pasid,
                response,
                group,
                ..
            } => {
                let place = pasid.map_or(0, Pasid::get);
                let group = group.get() as u16;
                Some((requester_id.into(), place, group, response))
            }
            _ => None,
        }
    }

    fn is_of_context(command: &Descriptor) -> bool {
        matches!(
            command,
            Descriptor::ContextCache { .. } | Descriptor::PasidCache { .. }
        )
    }

    fn allows(unit: &Self::Unit, id: u32) -> bool {
        let entry = unit.context(id as u16);
        matches!(entry, Some(ContextEntry::Scalable(context)) if context.has_page_requests())
    }

    fn tables(root: Oa) -> ProcessTables {
        ProcessTables::X86 { levels: 4, root }
    }

    fn root(endpoint: &HardwareEndpoint<Self>, place: u32) -> Option<Oa> {
        match endpoint.pasid_entry(0, pasid(place))?.translation() {
            Translation::First(stage) => Some(stage.root().oa),
            _ => None,
        }
    }

    fn assert_unused(unit: &Self::Unit) {
        let ids = unit.domain_ids();
        assert_eq!((ids.used_count(), ids.quarantined_count()), (0, 0));
    }
}

#[test]
fn what_was_asked_before_a_place_was_left_reaches_none_that_comes_after() {
    testing_scenes::what_was_asked_before_reaches_none_that_comes_after::<Arch>();
}

#[test]
fn a_pasid_is_another_process_s_only_after_all_was_read_that_was_asked_for_with_it() {
    testing_scenes::a_pasid_is_used_again_only_after_a_round::<Arch>();
}

/// What came with data is answered on its own, each with its data.
#[test]
fn what_a_device_sent_along_before_a_place_was_left_comes_back_at_once() {
    let rig = rig::Rig::new();
    let (old, new) = (Collector::new(), Collector::new());
    rig.attach(2, 5, &capable(&old)).expect("it fits");
    rig.attach(2, 5, &capable(&new)).expect("it fits");
    rig.commands(0);
    let group = Narrow::new(3).expect("9 bits");
    let (requester_id, pasid, private_data) = (0x12, Some(pasid(5)), Some([1, 2]));
    let record = Record {
        requester_id,
        pasid,
        group,
        is_last: false,
        is_read: true,
        is_write: false,
        is_fetch: false,
        is_privileged: false,
        address: Iova::new(0x1234_5000),
        private_data,
    };
    let unit = &rig.units[0];
    unit.take_page_request(&record).expect("answered");
    let answer = Descriptor::PageGroupResponse {
        requester_id,
        pasid,
        response: PageResponse::Success,
        group,
        is_last: false,
        private_data,
    };
    assert_eq!(rig.commands(0), [answer]);
    // Draining puts all on record, and reads nothing.
    let round = unit.begin_page_requests();
    assert_eq!(unit.drain_page_requests(), Ok(true));
    unit.take_page_request(&record).expect("answered");
    assert!(old.take().is_empty() && new.take().is_empty());
    round.finish();
    unit.take_page_request(&record).expect("kept");
    assert_eq!((old.take().len(), new.take().len()), (0, 1));
}
