//! Every class of locks, outermost first.

use crate::sync::Class;

/// The claims of a registry, by stripe.
pub static CLAIMS: Class = Class::ranked("claims", 100);
/// Unlinked tables that wait to be freed.
pub static QUARANTINE: Class = Class::ranked("quarantine", 140);
/// A thread's table pages.
pub static MAGAZINE: Class = Class::ranked("magazine", 160);
