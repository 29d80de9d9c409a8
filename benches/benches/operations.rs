//! How long do a map, an unmap (gather and an empty sync included) and a lookup take, a lookup
//! through a reader, on its own, and inside a claim?
//!
//! ```text
//! cargo bench -p iopt-benches --bench operations [-- OPERATION/FORMAT/CASE/STATE]
//! ```
//!
//! Cases and states are those of `iopt_benches::cases`; only a map has use for a new table.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use iopt_benches::cases::{CASES, State};
use iopt_benches::formats;
use iopt_benches::instructions::Operation;
use iopt_formats::Format;
use iopt_formats::catalog::{FormatName, Visitor};

fn operations(criterion: &mut Criterion) {
    for operation in Operation::ALL {
        for name in formats::NAMES {
            let bench = Bench {
                criterion,
                operation,
                name,
            };
            formats::visit(name, bench);
        }
    }
}

struct Bench<'a> {
    criterion: &'a mut Criterion,
    operation: Operation,
    name: FormatName,
}

impl Visitor for Bench<'_> {
    type Output = ();

    fn visit<F: Format>(self, format: F) {
        let Self {
            criterion,
            operation,
            name,
        } = self;
        let states: &[State] = match operation {
            Operation::Map => &[State::Warm, State::Cold, State::New],
            Operation::Unmap
            | Operation::Lookup
            | Operation::LookupAlone
            | Operation::LookupOwn => &[State::Warm, State::Cold],
        };
        let mut group = criterion.benchmark_group(operation.as_str());
        group.sample_size(15);
        group.warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_millis(500));
        for case in CASES {
            for &state in states {
                let id = format!("{name}/{}/{}", case.name(), state.as_str());
                group.bench_function(id, |bencher| {
                    bencher.iter_custom(|count| case.elapsed(format, operation, state, count));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, operations);
criterion_main!(benches);
