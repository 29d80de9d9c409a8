//! Who holds an ID, and what its entry says.

use super::*;
use crate::invalidation::SyncError;

/// Returns what an entry is made to say.
fn lead(share: &Share<char>, id: u32, wanted: Option<char>) -> Option<char> {
    lead_or_yield(share, id, wanted, wanted.is_none())
}

fn lead_or_yield(
    share: &Share<char>,
    id: u32,
    wanted: Option<char>,
    gives_way: bool,
) -> Option<char> {
    let mut said = None;
    let written = share.lead(id, wanted, gives_way, |entry| {
        said = entry;
        Ok(())
    });
    assert_eq!(written, Ok(()));
    said
}

#[test]
fn all_who_have_an_id_know_how_it_stands() {
    let shares = Shares::new();
    let one = shares.enter(&[1, 7], true).expect("memory");
    let other = shares.enter(&[2, 7], true).expect("memory");
    let stranger = shares.enter(&[3], true).expect("memory");
    let (blocked, unknown) = (
        Unwritten::Blocked(SyncError::TimedOut),
        Unwritten::Quarantined(SyncError::TimedOut),
    );
    let standings = || [&one, &other, &stranger].map(|share| share.sharing().standing);
    for (error, standing) in [(blocked, Outcome::Blocked), (unknown, Outcome::Unknown)] {
        assert_eq!(one.lead(7, Some('a'), false, |_| Err(error)), Err(error));
        assert_eq!(standings(), [standing, standing, Outcome::Known]);
        // Whoever comes there hears of it, and whoever writes it changes it for all.
        let newcomer = shares.enter(&[7], true).expect("memory");
        assert_eq!(newcomer.sharing().standing, standing);
        lead(&other, 7, Some('b'));
        assert_eq!(standings(), [Outcome::Known; 3]);
    }
    // Blocked is what was wanted.
    lead(&other, 7, None);
    assert_eq!(one.lead(7, None, true, |_| Err(blocked)), Err(blocked));
    assert_eq!(standings(), [Outcome::Known; 3]);
}

#[test]
fn an_id_is_led_as_long_as_anybody_is_attached_under_it() {
    let shares = Shares::new();
    let one = shares.enter(&[1, 7], true).expect("memory");
    let other = shares.enter(&[2, 7], true).expect("memory");
    assert!(!one.is_shared([1, 7]));
    assert_eq!(lead(&one, 7, Some('a')), Some('a'));
    assert!(other.is_shared([2, 7]) && !other.is_shared([1, 2]) && !one.is_shared([1, 7]));
    // The holder stays, whatever others want.
    assert_eq!(lead(&other, 7, Some('b')), Some('a'));
    assert_eq!(lead(&one, 7, Some('c')), Some('c'));
    assert_eq!(lead(&one, 7, None), Some('b'));
    assert_eq!(lead(&one, 7, Some('d')), Some('b'));
    assert_eq!(lead(&other, 7, None), Some('d'));
    assert_eq!(lead(&one, 7, None), None);
    // What is one's own is nobody else's matter.
    assert_eq!(lead(&one, 1, Some('e')), Some('e'));
    assert_eq!(lead(&other, 2, None), None);
}

#[test]
fn who_gives_way_keeps_what_nobody_else_wants() {
    let shares = Shares::new();
    let one = shares.enter(&[7], true).expect("memory");
    let other = shares.enter(&[7], true).expect("memory");
    assert_eq!(lead_or_yield(&one, 7, Some('a'), true), Some('a'));
    assert_eq!(lead(&other, 7, Some('b')), Some('a'));
    assert_eq!(lead_or_yield(&one, 7, Some('c'), true), Some('b'));
    assert_eq!(lead(&one, 7, Some('c')), Some('b'));
}

#[test]
fn who_is_gone_holds_nothing() {
    let shares = Shares::new();
    let one = shares.enter(&[7], true).expect("memory");
    let other = shares.enter(&[7], true).expect("memory");
    assert_eq!(lead(&one, 7, Some('a')), Some('a'));
    drop(one);
    assert!(!other.is_shared([7]));
    assert_eq!(lead(&other, 7, Some('b')), Some('b'));
    assert_eq!(lead(&other, 7, None), None);
}

#[test]
fn who_else_has_an_id_is_known_before_they_want_anything() {
    let shares = Shares::<char>::new();
    let one = shares.enter(&[1, 7], true).expect("memory");
    assert_eq!(one.sharing(), Sharing::ALONE);
    let stranger = shares.enter(&[2], false).expect("memory");
    assert_eq!(one.sharing(), Sharing::ALONE);
    let alike = shares.enter(&[2, 7], true).expect("memory");
    let shared = Sharing {
        has_others: true,
        ..Sharing::ALONE
    };
    assert_eq!(one.sharing(), shared);
    let without = Sharing {
        lacks_pasids: true,
        ..shared
    };
    assert_eq!((alike.sharing(), stranger.sharing()), (without, shared));
    drop((alike, stranger));
    assert_eq!(one.sharing(), Sharing::ALONE);
}
