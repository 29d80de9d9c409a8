//! One thing left out or done wrong, and what the simulation says to it.

mod caller;
mod groups;
mod hardware;
mod nested;
mod plans;

use std::fmt;

use iopt::invalidation::Changes;
use iopt::invalidation::plan::{Phase, Planner};
use iopt::radix::TablePolicy;
use iopt_formats::Oa;
use iopt_formats::walk::Root;
use iopt_rig::{Behaviour, EntryOf, MachineConfig, Registers, TagOf};
use iopt_sim::{Architecture, Attachment, Context, DomainId, Latencies, Law, StaleAccess};

use crate::machines::{Bench, MEMORY, blocks, page_len, pages};

type CommandOf<B> = <<B as Behaviour>::Planner as Planner>::Command;

/// What becomes of the commands of a plan.
type Change<B> = fn(&TagOf<B>, &Changes, Vec<CommandOf<B>>) -> Vec<CommandOf<B>>;

/// A behaviour whose plans are changed before they reach the queue. If it `IS_HASTY`, device TLBs are told with
/// the IOTLB, and not when that is done.
#[derive(Clone)]
struct Broken<B: Behaviour, const IS_HASTY: bool = false> {
    inside: B,
    change: Change<B>,
}

impl<B: Behaviour> Broken<B> {
    const fn new(inside: B, change: Change<B>) -> Self {
        Self { inside, change }
    }
}

impl<B: Behaviour, const IS_HASTY: bool> fmt::Debug for Broken<B, IS_HASTY> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broken {:?}", self.inside)
    }
}

/// The planner of a [`Broken`] behaviour.
struct BrokenPlanner<B: Behaviour, const IS_HASTY: bool> {
    inside: B::Planner,
    change: Change<B>,
}

impl<B: Behaviour, const IS_HASTY: bool> Clone for BrokenPlanner<B, IS_HASTY> {
    fn clone(&self) -> Self {
        Self {
            inside: self.inside.clone(),
            change: self.change,
        }
    }
}

impl<B: Behaviour, const IS_HASTY: bool> Planner for BrokenPlanner<B, IS_HASTY> {
    type Command = CommandOf<B>;
    type Tag = TagOf<B>;

    fn plan(&self, tag: &TagOf<B>, changes: &Changes, emit: impl FnMut(CommandOf<B>)) {
        let mut commands = Vec::new();
        self.inside
            .plan(tag, changes, |command| commands.push(command));
        (self.change)(tag, changes, commands)
            .into_iter()
            .for_each(emit);
    }

    fn phase(tag: &TagOf<B>) -> Phase {
        if IS_HASTY {
            Phase::Iotlb
        } else {
            B::Planner::phase(tag)
        }
    }

    fn can_repeat(command: &CommandOf<B>) -> bool {
        B::Planner::can_repeat(command)
    }
}

impl<B: Behaviour, const IS_HASTY: bool> Behaviour for Broken<B, IS_HASTY> {
    type Format = B::Format;
    type Planner = BrokenPlanner<B, IS_HASTY>;
    type Device = B::Device;

    fn architecture(&self) -> Architecture {
        self.inside.architecture()
    }

    fn planner(&self) -> Self::Planner {
        BrokenPlanner {
            inside: self.inside.planner(),
            change: self.change,
        }
    }

    fn device(&self, registers: Registers, status: Oa) -> B::Device {
        self.inside.device(registers, status)
    }

    fn base(&self, device: &B::Device, ring: Oa) -> u64 {
        self.inside.base(device, ring)
    }

    fn format(&self) -> B::Format {
        self.inside.format()
    }

    fn is_told_of_maps(&self) -> bool {
        self.inside.is_told_of_maps()
    }

    fn tags(&self, id: u16, device: u16, has_ats: bool) -> Vec<TagOf<B>> {
        self.inside.tags(id, device, has_ats)
    }

    fn attachment(&self, domain: DomainId) -> Attachment {
        self.inside.attachment(domain)
    }

    fn context(&self, id: u16, root: Root, has_ats: bool) -> Context {
        self.inside.context(id, root, has_ats)
    }

    fn forget_context(&self, device: u16) -> EntryOf<B> {
        self.inside.forget_context(device)
    }
}

/// A machine whose syncs take so long that nothing is complete before somebody waits for it.
fn slow<B: Behaviour>(behaviour: &B) -> Bench<B> {
    let latencies = Latencies {
        sync: 1_000_000,
        ..Latencies::default()
    };
    let config = MachineConfig {
        latencies,
        step_ns: 100_000,
        ..MachineConfig::default()
    };
    Bench::with_config(behaviour, config)
}

/// Returns which law is broken by what is cached.
fn law<B: Behaviour>(bench: &Bench<B>) -> Option<Law> {
    let checked = bench.machine.check_all();
    checked.err().map(|stale: Box<StaleAccess>| stale.law)
}

/// Five pages from a multiple of eight on are used, and removed.
fn pages_are_removed<B: Behaviour>(behaviour: &B) -> Option<Law> {
    let bench = Bench::new(behaviour);
    let all = pages::<B>(0x108, 5);
    let memory = MEMORY + page_len::<B>();
    bench.map(&all, memory);
    for page in 0x108..0x10d {
        let page = pages::<B>(page, 1);
        let offset = page.start() - all.start();
        bench.assert_reached(&page, memory + offset);
    }
    bench.unmap(&all);
    law(&bench)
}

/// A leaf table is used, and detached with its pages.
fn a_table_is_detached<B: Behaviour>(behaviour: &B) -> Option<Law> {
    let bench = Bench::new(behaviour);
    let all = blocks::<B>(8, 2);
    let memory = MEMORY + page_len::<B>();
    bench.map(&all, memory);
    bench.assert_reached(&all, memory);
    let set = bench.domain.set();
    bench
        .domain
        .unmap_by(all, TablePolicy::Detach, set)
        .expect("the hardware answers");
    bench.free_what_is_proven();
    law(&bench)
}
