//! IO page tables for VMMs and user-space drivers.
