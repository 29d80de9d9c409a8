//! The engine in front of simulated IOMMUs that cache whatever they may: nothing that was removed is ever
//! reached, and the omissions that drivers make would be seen, within what `iopt_sim` simulates.
//!
//! [`omissions`] plants such omissions, one at a time, in front of the engine's own queue. [`random`] has
//! threads that map, unmap, attach and detach at random, with devices between them. `IOPT_SIMULATED_SEED`
//! names its first seed, `IOPT_SIMULATED_COUNT` how many there are, `IOPT_SIMULATED_STEPS` the operations of
//! each thread. A million operations, in all:
//!
//! ```text
//! IOPT_SIMULATED_COUNT=6 IOPT_SIMULATED_STEPS=2600 CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true \
//!     cargo test --release -p iopt-tests --test simulated random
//! ```

#[macro_use]
mod machines;

mod life;
mod omissions;
mod random;
