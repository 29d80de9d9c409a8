//! What this thread holds, and whether it may take more.

use std::cell::RefCell;
use std::panic::Location;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::sync::lockdep::graph::{self, Step};
use crate::sync::lockdep::{Class, Held, Kind, Request};
use crate::sync::thread::NotSend;

thread_local! {
    static STACK: RefCell<Stack> = const {
        RefCell::new(Stack {
            entries: Vec::new(),
            next_mark: 0,
        })
    };
}

/// The number by which the graph knows a class: zero until it is first used.
#[derive(Debug)]
pub(super) struct Number(AtomicUsize);

impl Number {
    pub(super) const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Returns the number plus one, or zero. The graph's lock orders everything else.
    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, number: usize) {
        self.0.store(number, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct ClassRef(&'static Class);

impl ClassRef {
    pub(super) const fn new(class: &'static Class) -> Self {
        Self(class)
    }

    #[track_caller]
    pub(super) fn acquire(self, request: Request) -> Held {
        acquire(self.0, request)
    }
}

struct Stack {
    /// In order of acquisition; what is released need not be the last.
    entries: Vec<Entry>,
    next_mark: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    class: &'static Class,
    request: Request,
    site: &'static Location<'static>,
    mark: u64,
}

/// Takes an entry off the stack. A thread that is about to end has no stack any more.
#[derive(Debug)]
pub(super) struct Mark(Option<u64>);

impl Drop for Mark {
    fn drop(&mut self) {
        let Some(mark) = self.0 else { return };
        // Nothing is left to be undone if the stack is gone.
        let _ = STACK.try_with(|stack| {
            let entries = &mut stack.borrow_mut().entries;
            if let Some(at) = entries.iter().rposition(|entry| entry.mark == mark) {
                entries.remove(at);
            }
        });
    }
}

#[track_caller]
pub(super) fn acquire(class: &'static Class, request: Request) -> Held {
    let site = Location::caller();
    let result = STACK.try_with(|stack| -> Result<u64, String> {
        let mut stack = stack.borrow_mut();
        if request.may_wait {
            check(&stack.entries, class, request, site)?;
        }
        let mark = stack.next_mark;
        stack.next_mark += 1;
        stack.entries.push(Entry {
            class,
            request,
            site,
            mark,
        });
        Ok(mark)
    });
    let mark = match result {
        Ok(Err(report)) => {
            // A second panic would end the program and hide the first.
            assert!(thread::panicking(), "lock order: {report}");
            None
        }
        Ok(Ok(mark)) => Some(mark),
        Err(_) => None,
    };
    Held {
        _mark: Mark(mark),
        _not_send: NotSend::NEW,
    }
}

/// Checks one acquisition that may wait. Returns what is wrong with it.
fn check(
    held: &[Entry],
    class: &'static Class,
    request: Request,
    site: &'static Location<'static>,
) -> Result<(), String> {
    let mut above: Option<&Class> = None;
    for entry in held {
        if core::ptr::eq(entry.class, class) {
            check_nesting(entry, request, site)?;
        } else if !above.is_some_and(|above| core::ptr::eq(above, entry.class)) {
            // Of neighbours of one class the first speaks for all.
            check_ranks(entry, class, site)?;
            let step = Step {
                held: entry.class,
                held_at: entry.site,
                taken: class,
                taken_at: site,
            };
            graph::observe(step)?;
        }
        above = Some(entry.class);
    }
    Ok(())
}

fn check_nesting(
    entry: &Entry,
    request: Request,
    site: &'static Location<'static>,
) -> Result<(), String> {
    let Entry {
        class, site: from, ..
    } = entry;
    if class.kind == Kind::Wait {
        return Err(if entry.request.may_wait {
            format!("{site} waits for {class} inside a wait for it, begun at {from}")
        } else {
            format!("{site} waits for the end of {class}, inside which it runs since {from}")
        });
    }
    if request.instance != 0 && entry.request.instance == request.instance {
        return Err(format!(
            "{site} takes the lock of {class} that this thread holds since {from}"
        ));
    }
    match (entry.request.index, request.index) {
        (Some(outer), Some(inner)) if class.kind == Kind::Lock => Err(format!(
            "{site} nests {class}, which has no order by index: {inner} in {outer}, held since {from}"
        )),
        (Some(outer), Some(inner)) if outer < inner => Ok(()),
        (Some(outer), Some(inner)) => Err(format!(
            "{site} takes number {inner} of {class} under number {outer}, held since {from}: \
             numbers have to rise"
        )),
        _ => Err(format!(
            "{site} takes a second lock of {class}, without numbers to tell their order; \
             the first is held since {from}"
        )),
    }
}

fn check_ranks(
    entry: &Entry,
    class: &Class,
    site: &'static Location<'static>,
) -> Result<(), String> {
    match (entry.class.rank, class.rank) {
        (Some(outer), Some(inner)) if outer >= inner => {
            let (outer, from) = (entry.class, entry.site);
            Err(format!(
                "{site} takes {class} under {outer}, held since {from}: ranks have to rise"
            ))
        }
        _ => Ok(()),
    }
}

#[track_caller]
pub(super) fn assert_held(class: &'static Class) {
    let is_held = STACK.try_with(|stack| {
        let entries = &stack.borrow().entries;
        entries
            .iter()
            .any(|entry| core::ptr::eq(entry.class, class))
    });
    assert!(is_held.unwrap_or(true), "{class} is not held");
}

#[track_caller]
pub(super) fn assert_none_held() {
    let found = STACK.try_with(|stack| {
        let entries = &stack.borrow().entries;
        let mut locks = entries.iter();
        locks
            .find(|entry| matches!(entry.class.kind, Kind::Lock | Kind::Indexed))
            .copied()
    });
    if let Ok(Some(Entry { class, site, .. })) = found {
        panic!("{class} is held since {site}, where no lock of the engine may be");
    }
}
