//! Hardware that takes answers to page requests and writes them down, and a handler that keeps groups.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::time::Duration;

use iopt_formats::command::Pasid;

use crate::device::fault::{
    Answer, DeviceFaults, FaultGroup, FaultHandler, FaultSettings, PageResponder,
};
use crate::device::{Clock, DeviceAddress, DeviceControl};
use crate::firmware::NodeIndex;
use crate::invalidation::SyncError;
use crate::sync::{Class, Mutex};

/// Of the tests' own locks: held for a moment, and around nothing.
static LOG: Class = Class::unranked("log of a test");

pub(super) const fn pasid(number: u32) -> Option<Pasid> {
    Pasid::new(number)
}

/// A device with its clock.
pub(super) struct World {
    pub(super) address: DeviceAddress,
    inner: Mutex<Inner>,
}

#[derive(Default)]
pub(super) struct Inner {
    now: Duration,
    answers: Vec<Answer>,
    switches: Vec<bool>,
    /// Nothing is taken.
    pub(super) is_silent: bool,
    /// Answers that were sent while nothing was taken.
    pub(super) refused_count: usize,
    pub(super) needs_no_pasids: bool,
    faults: Weak<DeviceFaults>,
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            address: DeviceAddress::Node(NodeIndex(1)),
            inner: Mutex::new(&LOG, Inner::default()),
        })
    }

    pub(super) fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut self.inner.lock())
    }

    /// Returns the device's requests, the same as long as somebody has them.
    pub(super) fn faults(self: &Arc<Self>) -> Arc<DeviceFaults> {
        self.faults_with(|_| {})
    }

    pub(super) fn faults_with(
        self: &Arc<Self>,
        configure: impl FnOnce(&mut FaultSettings),
    ) -> Arc<DeviceFaults> {
        if let Some(faults) = self.with(|inner| inner.faults.upgrade()) {
            return faults;
        }
        let mut settings = FaultSettings {
            clock: Arc::clone(self) as Arc<dyn Clock>,
            ..FaultSettings::default()
        };
        configure(&mut settings);
        let control = Arc::clone(self) as Arc<dyn DeviceControl>;
        let responder = Arc::clone(self) as Arc<dyn PageResponder>;
        let faults = DeviceFaults::new(self.address, control, responder, settings);
        self.with(|inner| inner.faults = Arc::downgrade(&faults));
        faults
    }

    /// Lets seconds pass.
    pub(super) fn pass(&self, seconds: u64) {
        self.with(|inner| inner.now += Duration::from_secs(seconds));
    }

    /// Returns what was answered since the last call.
    pub(super) fn answers(&self) -> Vec<Answer> {
        self.with(|inner| mem::take(&mut inner.answers))
    }

    /// Returns how page requests were enabled and disabled.
    pub(super) fn switches(&self) -> Vec<bool> {
        self.with(|inner| inner.switches.clone())
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

impl Clock for World {
    fn now(&self) -> Duration {
        self.with(|inner| inner.now)
    }
}

impl DeviceControl for World {
    fn set_page_requests(&self, device: DeviceAddress, are_enabled: bool) {
        assert_eq!(device, self.address);
        self.with(|inner| inner.switches.push(are_enabled));
    }

    fn needs_pasids_in_responses(&self, _: DeviceAddress) -> bool {
        self.with(|inner| !inner.needs_no_pasids)
    }
}

impl PageResponder for World {
    fn respond(&self, device: DeviceAddress, answer: &Answer) -> Result<(), SyncError> {
        assert_eq!(device, self.address);
        self.with(|inner| {
            if inner.is_silent {
                inner.refused_count += 1;
                return Err(SyncError::TimedOut);
            }
            inner.answers.push(*answer);
            Ok(())
        })
    }
}

/// A handler that keeps what it gets.
pub(super) struct Collector(Mutex<Vec<FaultGroup>>);

impl Collector {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(&LOG, Vec::new())))
    }

    pub(super) fn take(&self) -> Vec<FaultGroup> {
        mem::take(&mut *self.0.lock())
    }
}

impl FaultHandler for Collector {
    fn handle(&self, group: FaultGroup) {
        self.0.lock().push(group);
    }
}
