//! A3.8: who answers, who detaches and who lets time pass, in every interleaving.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;
use core::time::Duration;

use iopt_formats::Iova;
use loom::thread;

use super::*;
use crate::device::{Clock, DeviceAddress, DeviceControl};
use crate::firmware::NodeIndex;
use crate::invalidation::SyncError;
use crate::sync::model;

/// Hardware, clock and handler of one device. Its own locks are the model's, too.
#[derive(Debug, Default)]
struct World(loom::sync::Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    now: u64,
    answers: Vec<PageResponse>,
    switches: Vec<bool>,
    groups: Vec<FaultGroup>,
}

impl World {
    fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut self.0.lock().expect("no model panics and goes on"))
    }

    fn answer_count(&self) -> usize {
        self.with(|inner| inner.answers.len())
    }

    fn group(&self) -> Option<FaultGroup> {
        self.with(|inner| inner.groups.pop())
    }
}

impl Clock for World {
    fn now(&self) -> Duration {
        Duration::from_secs(self.with(|inner| inner.now))
    }
}

impl DeviceControl for World {
    fn set_page_requests(&self, _: DeviceAddress, are_enabled: bool) {
        self.with(|inner| inner.switches.push(are_enabled));
    }
}

impl PageResponder for World {
    fn respond(&self, _: DeviceAddress, answer: &Answer) -> Result<(), SyncError> {
        self.with(|inner| inner.answers.push(answer.response));
        Ok(())
    }
}

impl FaultHandler for World {
    fn handle(&self, group: FaultGroup) {
        self.with(|inner| inner.groups.push(group));
    }
}

const REPORTED: Reported = Reported {
    requester: Requester { port: 0, id: 1 },
    pasid: None,
    origin: Origin::Group(1),
    is_last: true,
    request: PageRequest {
        address: Iova::new(0),
        is_read: true,
        is_write: false,
        is_fetch: false,
        is_privileged: false,
    },
};

fn rig() -> (Arc<World>, Arc<DeviceFaults>) {
    let world = Arc::new(World::default());
    let settings = FaultSettings {
        clock: Arc::clone(&world) as Arc<dyn Clock>,
        patience: Duration::from_secs(1),
        ..FaultSettings::default()
    };
    let control = Arc::clone(&world) as Arc<dyn DeviceControl>;
    let responder = Arc::clone(&world) as Arc<dyn PageResponder>;
    let address = DeviceAddress::Node(NodeIndex(0));
    let faults = DeviceFaults::new(address, control, responder, settings);
    let handler = Arc::clone(&world) as Arc<dyn FaultHandler>;
    faults.change(None, Some(faults.prepare(handler).expect("memory")));
    (world, faults)
}

/// Detaches, and returns how many answers there were when that was done.
fn detach(world: &World, faults: &DeviceFaults) -> usize {
    faults.begin_change(None, false);
    faults.change(None, None);
    world.answer_count()
}

#[test]
fn an_answer_beside_a_detachment_beside_a_time_out_is_sent_once() {
    model(|| {
        let (world, faults) = rig();
        faults.report(&REPORTED);
        let group = world.group().expect("it is complete");
        let waiting = {
            let (world, faults) = (Arc::clone(&world), Arc::clone(&faults));
            thread::spawn(move || {
                world.with(|inner| inner.now += 1);
                faults.expire();
            })
        };
        let detaching = {
            let (world, faults) = (Arc::clone(&world), Arc::clone(&faults));
            thread::spawn(move || detach(&world, &faults))
        };
        let responded = group.respond(PageResponse::Success);
        let count = detaching.join().expect("no thread panics");
        assert_eq!(count, 1, "F3: nothing is sent after a detachment");
        waiting.join().expect("no thread panics");
        let answers = world.with(|inner| mem::take(&mut inner.answers));
        let expected = match responded {
            Ok(()) => PageResponse::Success,
            Err(_) => PageResponse::Invalid,
        };
        assert_eq!(answers, [expected], "F2: once, as it was said");
        assert_eq!((faults.count(), faults.open_count()), (0, 0));
        world.with(|inner| assert_eq!(inner.switches, [true, false]));
    });
}

#[test]
fn a_report_beside_a_detachment_is_handed_over_or_answered_and_never_both_unanswered() {
    model(|| {
        let (world, faults) = rig();
        let reporting = {
            let faults = Arc::clone(&faults);
            thread::spawn(move || faults.report(&REPORTED))
        };
        detach(&world, &faults);
        reporting.join().expect("no thread panics");
        if let Some(group) = world.group() {
            let late = group.respond(PageResponse::Success);
            assert_eq!(late, Err(RespondError::Detached));
        }
        world.with(|inner| assert_eq!(inner.answers, [PageResponse::Invalid]));
    });
}

#[test]
fn a_device_asks_while_a_fault_capable_domain_is_attached_or_prepared_beside_another() {
    model(|| {
        let (world, faults) = rig();
        let preparing = {
            let (world, faults) = (Arc::clone(&world), Arc::clone(&faults));
            thread::spawn(move || {
                let handler = Arc::clone(&world) as Arc<dyn FaultHandler>;
                drop(faults.prepare(handler).expect("memory"));
            })
        };
        detach(&world, &faults);
        preparing.join().expect("no thread panics");
        assert_eq!((faults.count(), faults.has_queue()), (0, false));
        world.with(|inner| assert_eq!(inner.switches, [true, false]));
    });
}

/// A queue of records, as hardware fills it and a reader empties it.
#[derive(Default)]
struct Records(loom::sync::Mutex<Vec<u64>>);

impl Records {
    fn push(&self, page: u64) {
        self.0
            .lock()
            .expect("no model panics and goes on")
            .push(page);
    }

    /// Takes all in that is there when the round begins.
    fn read(&self, listeners: &Listeners, read_count: &mut usize) {
        let round = listeners.begin(false);
        let records = self.0.lock().expect("no model panics and goes on").clone();
        for page in &records[*read_count..] {
            let (faults, requester) = listeners.find(1).expect("it is there");
            let request = PageRequest {
                address: Iova::new(*page),
                ..REPORTED.request
            };
            faults.report(&Reported {
                requester,
                request,
                ..REPORTED
            });
        }
        *read_count = records.len();
        round.finish();
    }
}

#[test]
fn who_comes_after_is_asked_for_nothing_that_was_in_the_queue_before() {
    model(|| {
        let (_old, faults) = rig();
        let listeners = Arc::new(Listeners::new());
        listeners.watch(0, &faults, false).expect("memory");
        listeners.enter(&[1], 0, &faults).expect("memory");
        let records = Arc::new(Records::default());
        let reading = {
            let (listeners, records) = (Arc::clone(&listeners), Arc::clone(&records));
            thread::spawn(move || {
                let mut read_count = 0;
                records.read(&listeners, &mut read_count);
                records.read(&listeners, &mut read_count);
                read_count
            })
        };
        records.push(0x1000);
        faults.reserve(1).expect("memory");
        faults.begin_change(None, false);
        faults.leave(None, false, None);
        faults.change(None, None);
        let new = Arc::new(World::default());
        let handler = Arc::clone(&new) as Arc<dyn FaultHandler>;
        faults.change(None, Some(faults.prepare(handler).expect("memory")));
        let mut read_count = reading.join().expect("no thread panics");
        records.read(&listeners, &mut read_count);
        assert!(new.group().is_none(), "F5");
        // And nothing is in doubt for ever.
        records.push(0x2000);
        records.read(&listeners, &mut read_count);
        let group = new.group().expect("it is asked");
        assert_eq!(group.requests()[0].address, Iova::new(0x2000));
    });
}
