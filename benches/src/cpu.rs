//! The processor that is measured on.

use std::time::Duration;
use std::{fs, io};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Pins the calling thread to `cpu`, or to the last processor that it may run on, and returns it.
///
/// # Errors
///
/// Fails if the thread must not run there.
pub fn pin(cpu: Option<usize>) -> io::Result<usize> {
    let allowed = sched_getaffinity(None)?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|&cpu| allowed.is_set(cpu));
    let cpu = cpu.or(last).ok_or(io::ErrorKind::NotFound)?;
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only)?;
    Ok(cpu)
}

/// Returns what the processor calls itself.
pub fn name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = ["model name", "CPU part", "uarch"]
        .into_iter()
        .find_map(|key| info.lines().find(|line| line.starts_with(key)));
    line.and_then(|line| line.split_once(':')).map_or_else(
        || "unknown processor".to_owned(),
        |(_, name)| name.trim().to_owned(),
    )
}

/// Returns how long the calling thread was ready to run but did not, since it started; zero where
/// the system does not tell.
pub fn waited() -> Duration {
    // Nanoseconds on the processor, nanoseconds waiting for it, number of slices.
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat
        .split_whitespace()
        .nth(1)
        .and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
