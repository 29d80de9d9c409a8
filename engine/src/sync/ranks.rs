//! Every class of locks of the engine, declared once: the order, its table, its checks.

use crate::sync::lockdep::{Class, Kind};

/// Declares the classes, outermost first, and writes their table.
macro_rules! classes {
    ($($name:ident = $rank:literal, $kind:ident $text:literal: $guards:literal;)*) => {
        $(
            #[doc = concat!("Rank ", $rank, ", ", describe!($kind), ": ", $guards, ".")]
            pub static $name: Class = Class::ranked($text, Kind::$kind, $rank);
        )*

        /// Every class of the engine, outermost first: a thread takes locks in rising order of
        /// rank, and of several of one class in rising order of their index.
        ///
        /// Ranks in between are free for what is to come.
        ///
        /// | rank | class | kind | guards |
        /// |---:|---|---|---|
        $(
            #[doc = concat!(
                "| ", $rank, " | [`", stringify!($name), "`] | ", describe!($kind), " | ", $guards, " |"
            )]
        )*
        ///
        /// A pseudo-lock's rank says which locks may be held by who waits for it (those above),
        /// and which may be taken by what is waited for (those below).
        pub static CLASSES: [&Class; [$($rank),*].len()] = [$(&$name),*];

        const _: () = {
            let ranks = [$($rank),*];
            let mut next = 1;
            while next < ranks.len() {
                assert!(ranks[next - 1] < ranks[next], "ranks rise");
                next += 1;
            }
        };
    };
}

macro_rules! describe {
    (Lock) => {
        "lock"
    };
    (Indexed) => {
        "locks by index"
    };
    (Lent) => {
        "lock that users hold"
    };
    (Wait) => {
        "pseudo-lock"
    };
}

classes! {
    EPOCH = 100, Wait "epoch":
        "grace periods: readers run in it, and may do so around anything";
    FINALIZE = 120, Wait "finalize":
        "callbacks that tell drivers of default domains";
    DEVICE_GUARD = 150, Lent "device guard":
        "the binding of a driver to a device, and the device's removal";
    BUS_WALK = 200, Wait "bus_walk":
        "walks over a bus that probe devices";
    ACCESS_UNMAP = 300, Wait "access_unmap":
        "callbacks into accesses whose pages are unmapped";
    PROCESS = 350, Lock "process":
        "which devices are bound to a process";
    REGISTRY = 400, Lock "registry":
        "which devices and IOMMU instances there are, and how each stands";
    GROUP = 500, Lock "group":
        "what the devices of a group are attached to";
    SHARED_ASIDS = 510, Lock "shared ASIDs":
        "which ASIDs of the CPUs an instance uses; held while a domain moves to another one";
    ENDPOINT = 520, Lock "endpoint":
        "what a device is attached to, as its driver knows it";
    FAULTS = 530, Lock "faults":
        "the pages that a device asked for, and who is to answer";
    LISTENERS = 535, Lock "listeners":
        "which device an ID in a record of hardware names";
    ROUNDS = 536, Lock "rounds":
        "which records of hardware have been read";
    PROCESS_DOMAINS = 537, Lock "process domains":
        "the domains of a process, and which endpoints lead to one";
    DOMAIN_IDS = 540, Lock "domain IDs":
        "by which IDs IOMMU instances know a domain";
    SHARED_IDS = 550, Lock "shared IDs":
        "which devices have an ID of an IOMMU instance, and what they want of its entry";
    CONTEXTS = 560, Lock "contexts":
        "the context tables of an IOMMU instance";
    PROCESSES = 580, Lock "processes":
        "which processes are known";
    ASID_HOLDERS = 590, Lock "ASID holders":
        "which domain has an ASID of an instance";
    IDS = 600, Lock "ids":
        "which ASIDs, VMIDs, DIDs and PASIDs are in use";
    ATTACH = 700, Lock "attach":
        "the change of an address space's set of domains, from beginning to end";
    DOMAIN = 800, Lock "domain":
        "the set of domains of an IO address space, a [`DomainLock`](crate::sync::DomainLock)";
    GAPS = 810, Lock "gaps":
        "which IOVA the automatic choice knows to be used";
    AREA_SHARD = 820, Indexed "area shard":
        "one stripe of an address space's areas";
    AREA = 850, Lock "area":
        "what changes in the life of an area; while it is live, its translations";
    UNCONFIRMED = 860, Lock "unconfirmed":
        "what was removed from a domain of an address space and not flushed; removals, if it leaves";
    DEFERRED = 870, Lock "deferred":
        "removals that wait for a common flush";
    OWED = 880, Lock "owed":
        "what the hardware of a table was to be told of maps and cuts, and did not confirm";
    ENDPOINTS = 890, Lock "endpoints":
        "which endpoints of a virtio-iommu device are in which domain, from request to answer";
    SYNC = 900, Wait "sync":
        "invalidations that hardware has not finished";
    ACCESS_LIST = 1110, Lock "access list":
        "the accesses of an address space";
    ACCESS = 1120, Lock "access":
        "which address space an access is bound to, and what it has pinned";
    MAILBOX = 1125, Lock "mailbox":
        "groups of page requests that wait for who reads and answers them";
    LEFTOVERS = 1130, Lock "leftovers":
        "areas that hardware may still use";
    PAGES = 1150, Lock "pages":
        "who uses which pages, and their output addresses";
    PINS = 1200, Lock "pins":
        "which pages of a source are pinned";
    TENANT = 1250, Lock "tenant":
        "which address space changes a domain";
    VIRTIO = 1270, Lock "virtio-iommu":
        "the requests to a device, and what it should map";
    CLAIMS = 1300, Indexed "claims":
        "one stripe of a registry's claims";
    INVALIDATION_SET = 1400, Lock "invalidation set":
        "where the translations of a domain are cached, a [`DomainLock`](crate::sync::DomainLock)";
    GUEST_DEVICES = 1450, Lock "guest devices":
        "which devices and domains a guest's commands name";
    QUARANTINE = 1500, Lock "quarantine":
        "unlinked tables that wait to be freed";
    QUEUE_ERRORS = 1700, Lock "queue errors":
        "the errors of a command queue";
    TABLE_POOL = 1900, Lock "table pool":
        "the search for the last table pages, and pages that nobody may take for a moment";
}
