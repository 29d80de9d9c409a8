//! Omissions planted in sequences of hand-written commands over hand-written tables: each is caught, and
//! the whole sequence is not.

mod amd;
mod careful;
mod contexts;
mod machines;
mod queues;
mod rig;
mod riscv;
mod scenes;
mod smmuv3;
mod together;
mod vtd;
