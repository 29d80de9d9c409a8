//! Groups that are read and answered by cookie.

use super::*;

fn rig() -> (Arc<World>, Arc<DeviceFaults>, Arc<Mailbox>) {
    let world = World::new();
    let faults = world.faults();
    let mailbox = Arc::new(Mailbox::new());
    let handler = Arc::clone(&mailbox) as Arc<dyn FaultHandler>;
    let counted = faults.prepare(handler).expect("memory");
    faults.change(pasid(3), Some(counted));
    (world, faults, mailbox)
}

#[test]
fn groups_are_read_whole_and_answered_by_cookie() {
    let (world, faults, mailbox) = rig();
    assert_eq!(mailbox.read(1), Ok(None));
    faults.report(&member(pasid(3), 1, 1, false));
    assert!(!mailbox.has_unread());
    faults.report(&member(pasid(3), 1, 2, true));
    faults.report(&member(pasid(3), 2, 3, true));
    assert!(mailbox.has_unread());
    assert_eq!(
        mailbox.read(1),
        Err(MailboxError::TooSmall { needed: 2 }),
        "the second one has to wait for the first"
    );
    let first = mailbox.read(2).expect("room").expect("one");
    assert_eq!(first.device, world.address);
    assert_eq!(first.pasid, pasid(3));
    assert_eq!(first.requests, [request(1), request(2)]);
    let second = mailbox.read(1).expect("room").expect("one");
    assert_ne!(first.cookie, second.cookie);
    assert_eq!(mailbox.read(9), Ok(None));
    let respond = |cookie| mailbox.respond(cookie, PageResponse::Success);
    assert_eq!(respond(second.cookie), Ok(()));
    assert_eq!(respond(second.cookie), Err(MailboxError::Unknown));
    assert_eq!(respond(Cookie(99)), Err(MailboxError::Unknown));
    assert_eq!(world.answers()[0].origin, Origin::Group(2));
    // It could not be passed on, and is the next one again.
    assert_eq!(mailbox.unread(first.cookie), Ok(()));
    assert_eq!(respond(first.cookie), Err(MailboxError::Unknown));
    assert_eq!(mailbox.read(2), Ok(Some(first.clone())));
    assert_eq!(respond(first.cookie), Ok(()));
    assert_eq!(mailbox.unread(first.cookie), Err(MailboxError::Unknown));
}

#[test]
fn what_was_answered_meanwhile_is_not_read_and_its_answer_refused() {
    let (world, faults, mailbox) = rig();
    faults.report(&member(pasid(3), 1, 1, true));
    let read = mailbox.read(1).expect("room").expect("one");
    faults.report(&member(pasid(3), 2, 1, true));
    detach(&faults, pasid(3));
    assert_eq!(world.answers().len(), 2);
    assert!(!mailbox.has_unread());
    assert_eq!(mailbox.read(1), Ok(None));
    let refused = mailbox.respond(read.cookie, PageResponse::Success);
    assert_eq!(refused, Err(RespondError::Detached.into()));
    assert!(world.answers().is_empty());
}

/// Returns how many groups are kept that nobody read, and that somebody did.
fn kept(mailbox: &Mailbox) -> [usize; 2] {
    let text = alloc::format!("{mailbox:?}");
    let numbers = text.split(|it: char| !it.is_ascii_digit());
    let numbers: Vec<_> = numbers.filter_map(|it| it.parse().ok()).collect();
    numbers.try_into().expect("two numbers")
}

#[test]
fn a_mailbox_does_not_grow_whether_it_is_read_or_not() {
    for is_read in [false, true] {
        let (world, faults, mailbox) = rig();
        for round in 0..2000 {
            faults.report(&member(pasid(3), 1, round, true));
            if is_read {
                // And never answered.
                assert!(mailbox.read(1).expect("room").is_some());
            }
            world.pass(10);
            faults.expire();
        }
        assert_eq!(world.answers().len(), 2000);
        let kept = kept(&mailbox);
        assert!(kept.iter().all(|&count| count < 16), "{kept:?} are kept");
    }
}
