//! How long does a map take?
//!
//! ```text
//! cargo bench -p iopt-benches --bench map [-- FORMAT/CASE/STATE]
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

fn map(criterion: &mut Criterion) {
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
        let mut group = self.criterion.benchmark_group("map");
        group.sample_size(15);
        group.warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_millis(500));
        for case in CASES {
            for state in [State::Warm, State::Cold, State::New] {
                let id = format!("{}/{}/{}", self.name, case.name(), state.as_str());
                group.bench_function(id, |bencher| {
                    bencher.iter_custom(|count| case.elapsed(format, Operation::Map, state, count));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, map);
criterion_main!(benches);
