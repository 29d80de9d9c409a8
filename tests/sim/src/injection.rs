//! Faults on demand.

/// A fault that happens once. Counts begin with 0 when the fault is injected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Injection {
    /// The n-th command is illegal to the hardware, whatever it holds.
    Illegal(u64),
    /// The n-th sync does not complete until it is released.
    StuckSync(u64),
    /// The n-th invalidation of a device TLB is not answered: nothing is dropped, and the next sync says so, or
    /// on AMD the event log does.
    DeviceTimeout(u64),
}

/// What is to come.
#[derive(Debug, Default)]
pub(crate) struct Injections {
    waiting: Vec<Injection>,
}

/// What just happens, as [`Injection`] counts it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    Command,
    Sync,
    DeviceInvalidation,
}

impl Injections {
    pub(crate) fn add(&mut self, injection: Injection) {
        self.waiting.push(injection);
    }

    /// Counts an event, and returns whether one of the faults strikes it.
    pub(crate) fn strikes(&mut self, event: Event) -> bool {
        let mut is_struck = false;
        self.waiting.retain_mut(|injection| {
            let ((Injection::Illegal(left), Event::Command)
            | (Injection::StuckSync(left), Event::Sync)
            | (Injection::DeviceTimeout(left), Event::DeviceInvalidation)) = (injection, event)
            else {
                return true;
            };
            if *left == 0 {
                is_struck = true;
                return false;
            }
            *left -= 1;
            true
        });
        is_struck
    }
}
