//! A PASID that is used again, and what was asked for with it before.

use iopt_formats::command::Narrow;
use iopt_formats::command::smmuv3::PageResponse as PriResponse;
use iopt_formats::event::smmuv3::PageRequest as Record;

use super::*;

fn asking(processes: &Arc<Processes>, identity: u64) -> Arc<Process> {
    known(processes, &Toy::with(identity, 48, true))
}

fn record(place: u32, group: u16) -> Record {
    Record {
        stream: 0x12,
        substream: Some(pasid(place)),
        group: Narrow::new(group.into()).expect("it has 9 bits"),
        is_last: true,
        is_read: true,
        is_write: false,
        is_fetch: false,
        is_privileged: false,
        address: Iova::new(0x1234_5000),
    }
}

fn responses(rig: &Rig) -> Vec<PriResponse> {
    let commands = rig.commands(0).into_iter();
    let responses = commands.filter_map(|command| match command {
        Command::PriResp { response, .. } => Some(response),
        _ => None,
    });
    responses.collect()
}

#[test]
fn a_pasid_is_another_process_s_only_after_all_was_read_that_was_asked_for_with_it() {
    let (rig, processes, ..) = scene();
    let smmu = &rig.smmus[0];
    let count = processes.pasids().used_count();
    let first = asking(&processes, 1);
    let bond = bound(&rig, &first, 2);
    let number = bond.pasid();
    let round = smmu.begin_page_requests();
    drop((bond, first));
    assert_eq!(processes.pasids().used_count(), count + 1);
    let second = asking(&processes, 2);
    assert_ne!(second.pasid(), number);
    // What was asked for with the old one is of nobody.
    let _bond = bound(&rig, &second, 2);
    rig.commands(0);
    smmu.take_page_request(&record(number.get(), 1))
        .expect("answered");
    assert_eq!(responses(&rig), [PriResponse::Invalid]);
    round.finish();
    assert_ne!(asking(&processes, 3).pasid(), number);
    smmu.begin_page_requests().finish();
    assert_eq!(asking(&processes, 4).pasid(), number);
    assert_eq!(processes.pasids().quarantined_count(), 0);
}

#[test]
fn who_is_bound_where_another_domain_was_is_not_asked_for_what_came_before() {
    let (rig, processes, ..) = scene();
    let smmu = &rig.smmus[0];
    let second = asking(&processes, 2);
    let place = second.pasid().get();
    let collector = Collector::new();
    let domain = Arc::new(stage1().with_faults(Arc::clone(&collector) as Arc<dyn FaultHandler>));
    rig.attach(2, place, &domain).expect("it fits");
    rig.detach(2, place);
    rig.attach(2, place, &domain).expect("it fits");
    rig.commands(0);
    smmu.take_page_request(&record(place, 1)).expect("answered");
    assert_eq!(responses(&rig), [PriResponse::Success], "to be asked again");
    smmu.begin_page_requests().finish();
    smmu.take_page_request(&record(place, 1)).expect("answered");
    assert_eq!(collector.take().len(), 1);
}
