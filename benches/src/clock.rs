//! Time, less what it costs to look at it.

use std::sync::OnceLock;
use std::time::Instant;

/// Runs `work` and returns the nanoseconds it took.
#[inline(always)]
pub fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    let elapsed = start.elapsed().as_nanos() as f64;
    (elapsed - overhead()).max(0.0)
}

/// Returns what [`time`] of nothing would show, in nanoseconds.
pub fn overhead() -> f64 {
    static OVERHEAD: OnceLock<f64> = OnceLock::new();
    *OVERHEAD.get_or_init(|| {
        let empty = || Instant::now().elapsed().as_nanos() as f64;
        let mut samples: Vec<f64> = (0..2001).map(|_| empty()).collect();
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    })
}
