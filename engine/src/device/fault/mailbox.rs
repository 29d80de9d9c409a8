//! A handler for who reads groups and writes answers, as through a file.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;

use iopt_formats::command::{PageResponse, Pasid};

use crate::device::DeviceAddress;
use crate::device::fault::group::{FaultGroup, FaultHandler, RespondError};
use crate::device::fault::request::PageRequest;
use crate::sync::{MAILBOX, Mutex};

/// Names a group that was read, until it is answered.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Cookie(pub u64);

/// Groups that wait for a reader, and groups that were read and wait for their answer.
///
/// It keeps no more groups than devices may have open, and a few that are closed already.
pub struct Mailbox {
    inner: Mutex<Inner>,
}

struct Inner {
    unread: VecDeque<(Cookie, FaultGroup)>,
    read: Vec<(Cookie, FaultGroup)>,
    next: u64,
}

/// A group as it is read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Delivery {
    /// What the answer has to name.
    pub cookie: Cookie,
    /// Which device asks.
    pub device: DeviceAddress,
    /// The PASID of the requests, if they had one.
    pub pasid: Option<Pasid>,
    /// What is asked for.
    pub requests: Vec<PageRequest>,
}

/// Why nothing was read, or answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MailboxError {
    /// The reader has less room than the next group needs; that is not divided.
    #[error("the next group has {needed} requests")]
    TooSmall {
        /// How many requests it has.
        needed: usize,
    },
    /// No group that was read and not answered has this cookie.
    #[error("no group has this cookie")]
    Unknown,
    /// No memory.
    #[error("no memory to read a group of page requests")]
    Memory,
    /// The answer was refused. The cookie is gone.
    #[error(transparent)]
    Refused(#[from] RespondError),
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Mailbox {
    /// Creates an empty one.
    pub fn new() -> Self {
        let inner = Inner {
            unread: VecDeque::new(),
            read: Vec::new(),
            next: 0,
        };
        Self {
            inner: Mutex::new(&MAILBOX, inner),
        }
    }

    /// Returns whether there is something to read.
    pub fn has_unread(&self) -> bool {
        let inner = self.inner.lock();
        inner.unread.iter().any(|(_, group)| group.is_open())
    }

    /// Reads the oldest group that is open, if it has at most `request_limit` requests; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`MailboxError::TooSmall`] and [`MailboxError::Memory`]; the group stays unread.
    pub fn read(&self, request_limit: usize) -> Result<Option<Delivery>, MailboxError> {
        let mut closed = Vec::new();
        let mut inner = self.inner.lock();
        let read = loop {
            let Some((cookie, group)) = inner.unread.pop_front() else {
                break Ok(None);
            };
            if !group.is_open() {
                closed.push(group);
                continue;
            }
            // Who reads need not answer, and what was not answered in time is closed.
            if inner.read.len() == inner.read.capacity() {
                inner.take_closed(&mut closed);
            }
            match inner.deliver(cookie, &group, request_limit) {
                Ok(delivery) => {
                    inner.read.push((cookie, group));
                    break Ok(Some(delivery));
                }
                Err(error) => {
                    inner.unread.push_front((cookie, group));
                    break Err(error);
                }
            }
        };
        drop(inner);
        drop(closed);
        read
    }

    /// Takes a group back that could not be passed on: it is the first to be read again, under the same cookie.
    ///
    /// # Errors
    ///
    /// [`MailboxError::Unknown`] if no group has the cookie; [`MailboxError::Memory`], and then the group is answered with
    /// [`PageResponse::Invalid`].
    pub fn unread(&self, cookie: Cookie) -> Result<(), MailboxError> {
        let mut inner = self.inner.lock();
        let group = inner.take(cookie).ok_or(MailboxError::Unknown)?;
        if inner.unread.try_reserve(1).is_ok() {
            inner.unread.push_front((cookie, group));
            return Ok(());
        }
        drop(inner);
        drop(group);
        Err(MailboxError::Memory)
    }

    /// Answers a group that was read.
    ///
    /// # Errors
    ///
    /// [`MailboxError`].
    pub fn respond(&self, cookie: Cookie, response: PageResponse) -> Result<(), MailboxError> {
        let group = self.inner.lock().take(cookie);
        let group = group.ok_or(MailboxError::Unknown)?;
        Ok(group.respond(response)?)
    }
}

impl FaultHandler for Mailbox {
    fn handle(&self, group: FaultGroup) {
        let mut closed = Vec::new();
        let refused = {
            let mut inner = self.inner.lock();
            if inner.unread.len() == inner.unread.capacity() {
                inner.take_closed(&mut closed);
            }
            if inner.unread.try_reserve(1).is_ok() {
                let cookie = Cookie(inner.next);
                inner.next += 1;
                inner.unread.push_back((cookie, group));
                None
            } else {
                Some(group)
            }
        };
        // Their end takes locks of devices.
        drop((closed, refused));
    }
}

impl Inner {
    fn deliver(
        &mut self,
        cookie: Cookie,
        group: &FaultGroup,
        request_limit: usize,
    ) -> Result<Delivery, MailboxError> {
        let requests = group.requests();
        if requests.len() > request_limit {
            return Err(MailboxError::TooSmall {
                needed: requests.len(),
            });
        }
        let mut copy = Vec::new();
        let reserved = copy.try_reserve_exact(requests.len());
        reserved
            .and_then(|()| self.read.try_reserve(1))
            .map_err(|_| MailboxError::Memory)?;
        copy.extend_from_slice(requests);
        Ok(Delivery {
            cookie,
            device: group.device(),
            pasid: group.pasid(),
            requests: copy,
        })
    }

    fn take(&mut self, cookie: Cookie) -> Option<FaultGroup> {
        let at = self.read.iter().position(|(other, _)| *other == cookie)?;
        Some(self.read.swap_remove(at).1)
    }

    /// Takes out what nobody needs to answer any more, as far as there is memory to.
    fn take_closed(&mut self, closed: &mut Vec<FaultGroup>) {
        let count = self.unread.len() + self.read.len();
        if closed.try_reserve(count).is_err() {
            return;
        }
        for _ in 0..self.unread.len() {
            match self.unread.pop_front() {
                Some((cookie, group)) if group.is_open() => self.unread.push_back((cookie, group)),
                Some((_, group)) => closed.push(group),
                None => break,
            }
        }
        let mut at = 0;
        while let Some((_, group)) = self.read.get(at) {
            if group.is_open() {
                at += 1;
            } else {
                closed.push(self.read.swap_remove(at).1);
            }
        }
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.lock();
        f.debug_struct("Mailbox")
            .field("unread", &inner.unread.len())
            .field("read", &inner.read.len())
            .finish_non_exhaustive()
    }
}
