//! Groups of PCI functions: those of machines as an operating system saw them, and those of random trees,
//! where packets that go wherever they may say who reaches whom.

mod facts;
mod fixtures;
mod machine;
mod packets;
mod random;
