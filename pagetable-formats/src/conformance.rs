//! Checks the laws of [`Format`](crate::Format) on any configuration.
