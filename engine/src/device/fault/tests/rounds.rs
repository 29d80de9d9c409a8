//! What was in hardware's queue when somebody left.

use super::*;
use crate::device::fault::rounds::Kept;

/// A device whose records come in a queue with rounds.
struct Scene {
    world: Arc<World>,
    faults: Arc<DeviceFaults>,
    listeners: Listeners,
    old: Arc<Collector>,
    new: Arc<Collector>,
}

const PLACE: Option<Pasid> = pasid(1);

impl Scene {
    fn new() -> Self {
        let listeners = Listeners::new();
        let world = World::new();
        let faults = world.faults();
        for has_stalls in [false, true] {
            let watched = listeners.watch(0, &faults, has_stalls);
            watched.expect("memory");
        }
        listeners.enter(&[PORT.id], 0, &faults).expect("memory");
        let [old, new] = [(); 2].map(|()| Collector::new());
        attach(&faults, PLACE, &old);
        Self {
            world,
            faults,
            listeners,
            old,
            new,
        }
    }

    /// The old domain leaves the place, for the new one or for nobody.
    fn leave(&self, is_replaced: bool, kept: Option<&Kept>) {
        self.faults.reserve(2).expect("memory");
        self.faults.leave(PLACE, is_replaced, kept);
        if is_replaced {
            attach(&self.faults, PLACE, &self.new);
        } else {
            detach(&self.faults, PLACE);
        }
    }

    /// Takes a record in. Returns the answer, if it was given at once.
    fn take(&self, origin: Origin) -> Option<PageResponse> {
        let (faults, requester) = self.listeners.find(PORT.id).expect("it is there");
        faults.report(&Reported {
            requester,
            origin,
            ..member(PLACE, 0, 7, true)
        });
        let answers = self.world.answers();
        answers.first().map(|answer| answer.response)
    }

    fn round(&self, has_stalls: bool) {
        self.listeners.begin(has_stalls).finish();
    }
}

const GROUP: Origin = Origin::Group(3);
const STALL: Origin = Origin::Stall(4);

#[test]
fn what_was_in_the_queue_when_a_domain_left_is_asked_of_nobody_who_comes_after() {
    let scene = Scene::new();
    scene.round(false);
    let before = scene.listeners.begin(false);
    scene.leave(false, None);
    assert_eq!(
        scene.take(GROUP),
        Some(PageResponse::Invalid),
        "nobody is there"
    );
    attach(&scene.faults, PLACE, &scene.new);
    // Groups are asked for again; a transaction would go on where it must not.
    assert_eq!(scene.take(GROUP), Some(PageResponse::Success));
    assert_eq!(scene.take(STALL), Some(PageResponse::Invalid));
    // This one may have looked at the end of the queue before.
    before.finish();
    assert_eq!(scene.take(GROUP), Some(PageResponse::Success));
    let after = scene.listeners.begin(false);
    assert_eq!(scene.take(GROUP), Some(PageResponse::Success));
    after.finish();
    assert!(scene.new.take().is_empty() && scene.old.take().is_empty());
    assert_eq!(scene.take(GROUP), None);
    assert_eq!(scene.new.take().len(), 1);
    // The other queue has its own reader.
    assert_eq!(scene.take(STALL), Some(PageResponse::Invalid));
    assert_eq!(scene.faults.unread_count(), 1);
    scene.round(true);
    assert_eq!(scene.take(STALL), None);
    assert_eq!(scene.faults.unread_count(), 0);
}

#[test]
fn what_waits_while_a_domain_replaces_another_goes_on_in_that() {
    let scene = Scene::new();
    scene.leave(true, None);
    for origin in [GROUP, STALL] {
        assert_eq!(scene.take(origin), Some(PageResponse::Success));
    }
    // The place was empty in between.
    scene.leave(false, None);
    attach(&scene.faults, PLACE, &scene.new);
    assert_eq!(scene.take(STALL), Some(PageResponse::Invalid));
    assert_eq!(scene.take(GROUP), Some(PageResponse::Success));
    assert!(scene.new.take().is_empty());
}

#[test]
fn other_places_are_in_no_doubt() {
    let scene = Scene::new();
    attach(&scene.faults, None, &scene.new);
    scene.leave(false, None);
    scene.faults.report(&member(None, 9, 1, true));
    assert_eq!(scene.new.take().len(), 1);
}

#[test]
fn rounds_that_overlap_or_are_dropped_do_not_count() {
    let scene = Scene::new();
    scene.leave(false, None);
    attach(&scene.faults, PLACE, &scene.new);
    drop(scene.listeners.begin(false));
    assert_eq!(scene.take(GROUP), Some(PageResponse::Success));
    let [first, second] = [(); 2].map(|()| scene.listeners.begin(false));
    first.finish();
    second.finish();
    assert_eq!(scene.take(GROUP), Some(PageResponse::Success));
    scene.round(false);
    assert_eq!(scene.take(GROUP), None);
}

#[test]
fn what_is_kept_is_let_go_when_both_queues_are_read() {
    let scene = Scene::new();
    let kept = Arc::new(());
    scene.leave(false, Some(&(Arc::clone(&kept) as Kept)));
    scene.round(false);
    assert_eq!(Arc::strong_count(&kept), 2);
    scene.round(true);
    assert_eq!(Arc::strong_count(&kept), 1);
    // Left during a round: that one and the next.
    attach(&scene.faults, PLACE, &scene.old);
    scene.round(true);
    let during = scene.listeners.begin(false);
    scene.leave(false, Some(&(Arc::clone(&kept) as Kept)));
    during.finish();
    scene.round(true);
    assert_eq!(Arc::strong_count(&kept), 2);
    scene.round(false);
    assert_eq!(Arc::strong_count(&kept), 1);
}

#[test]
fn a_device_that_never_asked_leaves_nothing_behind() {
    let world = World::new();
    let faults = world.faults();
    let listeners = Listeners::new();
    listeners.watch(0, &faults, false).expect("memory");
    faults.reserve(1).expect("memory");
    faults.leave(PLACE, false, None);
    assert_eq!(faults.unread_count(), 0);
}

#[test]
fn a_device_with_the_id_of_one_that_left_is_not_taken_for_it() {
    let scene = Scene::new();
    scene.listeners.strike_out(&scene.faults);
    let Scene { listeners, new, .. } = scene;
    let come = || {
        let world = World::new();
        let faults = world.faults();
        listeners.watch(0, &faults, false).expect("memory");
        listeners.enter(&[PORT.id], 0, &faults).expect("memory");
        attach(&faults, PLACE, &new);
        faults.report(&member(PLACE, 1, 7, true));
        listeners.strike_out(&faults);
    };
    come();
    assert!(new.take().is_empty());
    listeners.begin(false).finish();
    come();
    assert_eq!(new.take().len(), 1);
}

/// Whatever the reason for which requests were not kept.
#[test]
fn a_group_of_which_something_was_not_kept_is_refused_whole() {
    let world = World::new();
    let faults = world.faults_with(|settings| {
        settings.group_limit = 1;
        settings.request_limit = 2;
    });
    let collector = Collector::new();
    attach(&faults, None, &collector);
    let is_refused = |group| {
        faults.report(&member(None, group, 9, true));
        let is_refused = !world.answers().is_empty();
        assert_eq!(collector.take().is_empty(), is_refused);
        // What was handed over is answered, too.
        world.answers();
        is_refused
    };
    // No room for the group.
    faults.report(&member(None, 1, 1, false));
    faults.report(&member(None, 2, 1, false));
    assert!(is_refused(2));
    // No room for a request.
    faults.report(&member(None, 1, 2, false));
    faults.report(&member(None, 1, 3, false));
    assert!(is_refused(1));
    // No time.
    faults.report(&member(None, 1, 1, false));
    world.pass(11);
    assert_eq!(faults.expire(), None);
    assert!(is_refused(1));
    // Once only.
    for group in [1, 2] {
        assert!(!is_refused(group));
    }
}
