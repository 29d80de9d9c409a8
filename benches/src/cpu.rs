//! The processors that are measured on.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;
use std::{fs, io, thread};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Pins the calling thread to `cpu`, or to the last processor that it may run on, and returns it.
///
/// # Errors
///
/// Fails if the thread must not run there.
pub fn pin(cpu: Option<usize>) -> io::Result<usize> {
    let last = || Ok::<_, io::Error>(allowed()?.pop());
    let cpu = match cpu {
        Some(cpu) => cpu,
        None => last()?.ok_or(io::ErrorKind::NotFound)?,
    };
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only)?;
    Ok(cpu)
}

/// Runs `measure` on a thread of its own, which is [pinned](pin).
///
/// # Errors
///
/// As [`pin`].
pub fn pinned<T: Send>(cpu: Option<usize>, measure: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            pin(cpu)?;
            Ok(measure())
        });
        let joined = thread.join();
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Returns the processors that the calling thread may run on, in rising order.
fn allowed() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| allowed.is_set(cpu))
        .collect())
}

/// Returns one processor of each core that the calling thread may run on: what shares a core
/// shares its speed, and says nothing about locks.
///
/// # Errors
///
/// Fails if the system does not tell where the thread may run.
pub fn cores() -> io::Result<Vec<usize>> {
    let siblings = |cpu: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        // Without topology each processor counts as a core.
        fs::read_to_string(path).unwrap_or_else(|_| cpu.to_string())
    };
    Ok(first_of_each(
        allowed()?.into_iter().map(|cpu| (cpu, siblings(cpu))),
    ))
}

/// Returns the first processor of each core.
fn first_of_each(cpus: impl Iterator<Item = (usize, String)>) -> Vec<usize> {
    let mut cores = BTreeMap::new();
    for (cpu, core) in cpus {
        cores.entry(core).or_insert(cpu);
    }
    let mut firsts: Vec<usize> = cores.into_values().collect();
    firsts.sort_unstable();
    firsts
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
    Waits::of_this_thread().total()
}

/// How long a thread was ready to run but did not.
#[derive(Debug)]
pub struct Waits(Option<File>);

impl Waits {
    /// Creates the counter of the calling thread; it stays that thread's, wherever it is used.
    pub fn of_this_thread() -> Self {
        Self(File::open("/proc/thread-self/schedstat").ok())
    }

    /// Returns the time since the thread started; zero where the system does not tell.
    pub fn total(&self) -> Duration {
        // Nanoseconds on the processor, nanoseconds waiting for it, number of slices.
        let mut stat = [0; 96];
        let read = self.0.as_ref().map(|file| file.read_at(&mut stat, 0));
        let len = read.and_then(Result::ok).unwrap_or(0);
        let stat = str::from_utf8(&stat[..len]).unwrap_or_default();
        let nanos = stat.split_whitespace().nth(1);
        Duration::from_nanos(nanos.and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_core_the_first_processor_counts() {
        let cpus = [(0, "0,8"), (1, "1,9"), (8, "0,8"), (9, "1,9"), (10, "2,10")];
        let cpus = cpus.into_iter().map(|(cpu, core)| (cpu, core.to_owned()));
        assert_eq!(first_of_each(cpus), [0, 1, 10]);
    }
}
