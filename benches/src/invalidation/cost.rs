//! What an I/O takes of the processor: of one thread, with hardware that is done as soon as it is told.
//!
//! The same calls as in [`io`](super::io), without a clock and without a wait: each I/O is mapped, unmapped
//! [`DEPTH`] I/Os later and, if it is strict, collected some I/Os later still. What an I/O takes whose
//! hardware nobody tells is the yardstick, so that the difference is the price of telling it.

use std::collections::VecDeque;
use std::hint::black_box;

use iopt::invalidation::NoHardware;
use iopt::invalidation::deferred::Deferred;
use iopt::iova::{IovaAllocation, PendingIova};

use crate::clock;
use crate::invalidation::io::DEPTH;
use crate::invalidation::prompt::Prompt;
use crate::invalidation::rig::{Hardware, Layout, Memory, Mode, Rig, Set, Smmuv3, Vtd, Waiting};
use crate::paired::{Side, Turns};
use crate::row::Row;
use crate::workload::{Phase, Times};

/// I/Os between two looks at the machine's clock: as many as a queue of deferred ones holds, so that each
/// round has a flush.
const IO_COUNT: u64 = 256;

/// Strict I/Os that wait for the hardware.
const PENDING_COUNT: usize = 4;

/// What runs: an I/O of a mode, or one that no hardware is told of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Who {
    /// Of a mode.
    Mode(Mode),
    /// Nobody tells the hardware.
    Untold,
}

impl Who {
    /// Everything that is measured here.
    pub const ALL: [Self; 5] = [
        Self::Untold,
        Self::Mode(Mode::Deferred),
        Self::Mode(Mode::Strict),
        Self::Mode(Mode::StrictShared),
        Self::Mode(Mode::PageByPage),
    ];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mode(mode) => mode.as_str(),
            Self::Untold => "untold",
        }
    }

    const fn is_of(self, layout: Layout) -> bool {
        match (self, layout) {
            // What is contiguous may be mapped with larger entries, which are not unmapped page by page.
            (Self::Mode(Mode::PageByPage), Layout::Contiguous) => false,
            _ => true,
        }
    }

    fn rig<H: Hardware<Registers = Prompt>>(self) -> Rig<H> {
        let mode = match self {
            Self::Mode(mode) => mode,
            Self::Untold => Mode::Strict,
        };
        Rig::new(Prompt::default(), mode)
    }
}

/// The I/Os of one thread.
struct Flow<'r, H: Hardware> {
    rig: &'r Rig<H>,
    who: Who,
    layout: Layout,
    waiting: Option<Waiting<'r, H>>,
    in_device: VecDeque<IovaAllocation<'r>>,
    pending: VecDeque<PendingIova<'r, 'r, Set<H>>>,
    started_count: u64,
}

impl<'r, H: Hardware> Flow<'r, H> {
    fn new(rig: &'r Rig<H>, who: Who, layout: Layout) -> Self {
        let window = match who {
            Who::Mode(mode) => mode.window(),
            Who::Untold => None,
        };
        Self {
            rig,
            who,
            layout,
            waiting: window.map(|window| Deferred::new(rig.set(), window)),
            in_device: VecDeque::with_capacity(DEPTH as usize),
            pending: VecDeque::with_capacity(PENDING_COUNT + 1),
            started_count: 0,
        }
    }

    #[inline(never)]
    fn work(&mut self, io_count: u64) {
        for _ in 0..io_count {
            if self.in_device.len() as u64 == DEPTH
                && let Some(buffer) = self.in_device.pop_front()
            {
                self.end(buffer);
            }
            let buffer = self.rig.start(self.layout, self.started_count);
            self.started_count += 1;
            self.in_device.push_back(buffer);
        }
    }

    fn end(&mut self, buffer: IovaAllocation<'r>) {
        let rig = self.rig;
        match self.who {
            Who::Mode(Mode::PageByPage) => {
                black_box(rig.unmap_page_by_page(buffer));
            }
            Who::Untold => {
                let flushed = rig.unmap(buffer).sync(&NoHardware);
                black_box(flushed.expect("nothing can fail"));
            }
            Who::Mode(_) => {
                let withdrawn = rig.unmap(buffer);
                if let Some(waiting) = &self.waiting {
                    let deferred = withdrawn.defer(waiting, Memory);
                    deferred.expect("the hardware answers");
                    return;
                }
                self.pending.push_back(withdrawn.submit(rig.set()));
                if self.pending.len() > PENDING_COUNT {
                    while self.pending.front_mut().is_some_and(PendingIova::is_done)
                        && let Some(pending) = self.pending.pop_front()
                    {
                        black_box(pending.wait().expect("the hardware answers"));
                    }
                }
            }
        }
    }
}

/// Lets I/Os go by without looking at the clock: for a profiler.
pub fn count(who: Who, layout: Layout, io_count: u64) {
    let rig: Rig<Smmuv3<Prompt>> = who.rig();
    Flow::new(&rig, who, layout).work(io_count);
}

/// Measures both architectures.
pub fn measure() -> Vec<Row> {
    let mut rows = Vec::new();
    for layout in Layout::ALL {
        rows.extend(compare::<Smmuv3<Prompt>>(layout));
        rows.extend(compare::<Vtd<Prompt>>(layout));
    }
    rows
}

fn compare<H: Hardware<Registers = Prompt>>(layout: Layout) -> Vec<Row> {
    let all: Vec<Who> = Who::ALL
        .into_iter()
        .filter(|who| who.is_of(layout))
        .collect();
    let rigs: Vec<Rig<H>> = all.iter().map(|who| who.rig()).collect();
    let side = |(&who, rig)| {
        let mut flow = Flow::new(rig, who, layout);
        Side::new(who, move || Times {
            map: clock::time(|| flow.work(IO_COUNT)) / IO_COUNT as f64,
            ..Times::default()
        })
    };
    let mut sides: Vec<Side<'_, Who>> = all.iter().zip(&rigs).map(side).collect();
    let yardstick = (Who::Untold, Phase::Map);
    let turns = Turns::measure(&mut sides, &[yardstick]);
    let what = format!("{}, {}", H::NAME, layout.as_str());
    let row = |&who: &Who| {
        let compared = turns.compare((who, Phase::Map), yardstick);
        Row::new(&what, who.as_str(), compared.subject_ns, "ns an I/O")
            .beside("times untold", compared.ratio)
            .beside("more ns", compared.subject_ns - compared.yardstick_ns)
    };
    all.iter().map(row).collect()
}
