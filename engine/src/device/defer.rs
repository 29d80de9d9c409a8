//! How long is waited for instances that do not come, and what else a registry is told once.

use alloc::sync::Arc;
use core::fmt;
use core::time::Duration;

use crate::device::{DefaultKind, Report, Reports};
use crate::sync::now_ns;

/// Time, for waits that take seconds.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Returns the time since some moment; it never falls.
    fn now(&self) -> Duration;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(now_ns())
    }
}

/// How a registry behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// What groups' default domains are, whatever drivers would choose.
    pub default_kind: Option<DefaultKind>,
    /// How long after the end of initialisation, and after each registration, devices may wait for
    /// their instances: zero where no driver can come later.
    pub patience: Duration,
    /// What the time is.
    pub clock: Arc<dyn Clock>,
    /// Who is told what nobody asked about; nobody if there is none.
    pub reports: Option<Arc<dyn Reports>>,
}

impl Default for Config {
    /// Ten seconds by the system's clock.
    fn default() -> Self {
        Self {
            default_kind: None,
            patience: Duration::from_secs(10),
            clock: Arc::new(SystemClock),
            reports: None,
        }
    }
}

impl Config {
    pub(super) fn tell(&self, report: Report) {
        if let Some(reports) = &self.reports {
            reports.report(report);
        }
    }
}
