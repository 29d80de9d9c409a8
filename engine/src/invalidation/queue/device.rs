//! What a [`Queue`](super::Queue) needs of the hardware behind it.

use core::fmt::Debug;

use crate::sync::atomic::AtomicU64;

/// One entry of a command queue as the words that hardware reads: two, or four where VT-d uses 256-bit
/// descriptors. Words are values; the queue stores them little-endian.
pub trait Entry: Copy + Debug {
    /// Words of an entry.
    const WORDS: usize;

    /// Returns all of its words, in the order of their addresses.
    fn words(&self) -> &[u64];
}

impl Entry for [u64; 2] {
    const WORDS: usize = 2;

    fn words(&self) -> &[u64] {
        self
    }
}

impl Entry for [u64; 4] {
    const WORDS: usize = 4;

    fn words(&self) -> &[u64] {
        self
    }
}

/// The queue of one hardware instance: its registers, its memory, its entries, and time.
///
/// Accesses to registers need order nothing among the processors: the queue puts a fence before each write and
/// behind each read. What the bus needs beyond that (a barrier of the outer shareable domain on ARM, say) is
/// the implementation's to add. No method may panic or call the queue, nor wait, but for
/// [`pause`](Self::pause).
pub trait Device {
    /// An entry.
    type Entry: Entry;

    /// Returns what the queue looks like; always the same.
    fn shape(&self) -> Shape;

    /// Returns the memory that hardware reads entries from, in its order; always the same, for as long as
    /// the device lives.
    fn ring(&self) -> &[AtomicU64];

    /// Writes the tail register: hardware may consume what stands before `index`, which counts as
    /// [`Head::index`] does.
    fn write_tail(&self, index: u32);

    /// Reads where hardware stands, and whether an error keeps it there.
    ///
    /// Where these are two registers, the error is read first: hardware that stands still is still there
    /// when the head is read, but one that moves may stop behind a head that was read before.
    fn head(&self) -> Head;

    /// Reads the status word: the number that the last SYNC entry wrote there. Only asked for where
    /// [`Shape::completion`] says so.
    fn status(&self) -> u32 {
        0
    }

    /// Returns the entry that completes when all before it are complete, and then, where
    /// [`Shape::completion`] says so, writes `number` to the status word.
    ///
    /// It does more than to end a list: it also takes the place of a refused entry, whose number it gets.
    fn sync_entry(&self, number: u32) -> Self::Entry;

    /// Acknowledges an error, whereupon hardware goes on from where it stands.
    ///
    /// Called by one thread at a time, with the lock of the queue's errors held.
    fn acknowledge(&self, fault: Fault);

    /// Returns the time since any fixed moment, in ns. Never runs backwards on one thread, nor noticeably
    /// between two.
    fn now_ns(&self) -> u64;

    /// Lets time pass before one looks for the `turn`th time, counted from 0.
    fn pause(&self, turn: u32);
}

/// The form of a queue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
    /// Logarithm of the number of entries, from 1 to 24; 1 only with a wrap bit: without it, a command and its SYNC
    /// do not fit.
    pub lg2_entries: u8,
    /// The least logarithm that the base register can say. A smaller ring is refused: hardware would read on
    /// behind it.
    pub least_lg2_entries: u8,
    /// Whether indices in registers have one bit more than entries need (Arm IHI 0070, 3.5.1), which lets
    /// the queue be full to the last entry. Otherwise one entry stays free, because equal indices mean
    /// an empty queue (Intel VT-d specification, 6.5.2; AMD 48882, 2.4; RISC-V IOMMU specification,
    /// command queue).
    pub has_wrap_bit: bool,
    /// How a SYNC shows that it is complete.
    pub completion: Completion,
}

/// How a SYNC shows that it is complete.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Completion {
    /// The head moves past it: SMMUv3 `CMD_SYNC`, RISC-V `IOFENCE.C`.
    Head,
    /// It writes its number to a status word: VT-d wait descriptor with status write, AMD `COMPLETION_WAIT`
    /// with store. The head says only which entries were fetched. All entries of the queue write to one
    /// word.
    Status,
}

/// Where hardware stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Head {
    /// The next entry to fetch, with its wrap bit above if there is one. Anything else, as read from
    /// hardware that is gone, counts as no progress.
    pub index: u32,
    /// What keeps hardware there until it is acknowledged, [`Fault::Unanswered`] apart.
    pub fault: Option<Fault>,
}

/// Why hardware stands still at its head, unless said otherwise.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Fault {
    /// The entry at the head is refused. It is replaced by a SYNC, and the list that it belongs to fails.
    ///
    /// SMMUv3 `CERROR_ILL`, VT-d `IQE`, RISC-V `cmd_ill`, AMD `ILLEGAL_COMMAND_ERROR`.
    Illegal,
    /// The entry at the head could not be fetched; hardware tries again.
    ///
    /// SMMUv3 `CERROR_ABT`, RISC-V `cqmf`, AMD `COMMAND_HARDWARE_ERROR`.
    Fetch,
    /// The SYNC at the head gave up on invalidations before it, which a device did not answer. It fails, and
    /// hardware runs it again.
    ///
    /// SMMUv3 `CERROR_ATC_INV_SYNC`, RISC-V `cmd_to`.
    Timeout,
    /// A device did not answer, and whatever was fetched and is not complete is dropped: its SYNCs never
    /// write their numbers.
    ///
    /// VT-d `ITE`.
    Dropped,
    /// A device did not answer, and hardware does not stand still: SYNCs behind complete as if it had. All that
    /// hardware was told of and that is not known to be complete fails. Until it is acknowledged,
    /// [`Device::status`] does not move.
    ///
    /// AMD `IOTLB_INV_TIMEOUT`.
    Unanswered,
}
