//! How long does an unmap take, gather and an empty sync included?
//!
//! ```text
//! cargo bench -p iopt-benches --bench unmap [-- FORMAT/CASE/STATE]
//! ```
//!
//! Cases and states are those of `iopt_benches::cases`.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use iopt_benches::cases::{CASES, State};
use iopt_benches::formats;
use iopt_benches::instructions::Operation;
use iopt_formats::Format;
use iopt_formats::catalog::{FormatName, Visitor};

fn unmap(criterion: &mut Criterion) {
    for name in formats::NAMES {
        formats::visit(name, Bench { criterion, name });
    }
}

struct Bench<'a> {
    criterion: &'a mut Criterion,
    name: FormatName,
}

impl Visitor for Bench<'_> {
    type Output = ();

    fn visit<F: Format>(self, format: F) {
        let mut group = self.criterion.benchmark_group("unmap");
        group.sample_size(15);
        group.warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_millis(500));
        for case in CASES {
            for state in [State::Warm, State::Cold] {
                let id = format!("{}/{}/{}", self.name, case.name(), state.as_str());
                group.bench_function(id, |bencher| {
                    bencher
                        .iter_custom(|count| case.elapsed(format, Operation::Unmap, state, count));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, unmap);
criterion_main!(benches);
