//! Root, context and PASID tables, and what is told of their entries.

use super::*;

fn second(root: u64) -> Stage<SecondStage> {
    let format = SecondStage::new(48).expect("legal");
    Stage::<SecondStage>::second(format, Oa::new(root)).expect("aligned")
}

fn first(root: u64) -> Stage<FirstStage> {
    let format = FirstStage::new(47).expect("legal");
    Stage::<FirstStage>::first(format, Oa::new(root)).expect("aligned")
}

fn legacy(domain_id: u16, root: u64) -> ContextEntry {
    ContextEntry::Legacy(LegacyContext::second(domain_id, second(root)).expect("not tracked"))
}

const BLOCKED: ContextEntry = ContextEntry::Legacy(LegacyContext::blocked());

fn silence(unit: &Unit, is_silent: bool) {
    unit.instance().queue().device().set_silent(is_silent);
}

#[test]
fn the_capability_registers_say_what_hardware_can() {
    // Of emulated units in legacy and in scalable mode, and all ones.
    let old = Features::from_registers(0x00d2_008c_222f_0606, 0xf0_0f4a, 39);
    assert_eq!(
        (old.domain_id_bits, old.input_bits, old.host_bits),
        (16, 48, 39)
    );
    assert!(old.has_39_bits && old.has_48_bits && !old.has_57_bits);
    assert!(old.has_pass_through && !old.has_device_tlbs && !old.has_snoop_control);
    assert_eq!(old.pasid_bits, 0);
    assert_eq!(old.best_mode(), TableMode::Legacy);
    assert_eq!(old.widest(), Some(AddressWidth::Bits48));
    let all = PageSizes::EMPTY
        .with(PageSize::KIB_4)
        .with(PageSize::MIB_2)
        .with(PageSize::GIB_1);
    assert_eq!(old.second_sizes, all);
    assert_eq!(old.first_sizes, all.without(PageSize::GIB_1));
    let new = Features::from_registers(0x01d2_008c_222f_0606, 0x8800_00f0_0f4a, 39);
    assert!(new.has_first_stage && !new.has_second_stage);
    assert_eq!(new.first_sizes, all);
    assert_eq!(new.best_mode(), TableMode::Scalable);
    let ones = Features::from_registers(u64::MAX, u64::MAX, u8::MAX);
    assert_eq!((ones.domain_id_bits, ones.pasid_bits), (16, 20));
    assert_eq!((ones.input_bits, ones.host_bits), (64, 52));
    assert_eq!(ones.widest(), Some(AddressWidth::Bits57));
    let none = Features::from_registers(0, 0, 0);
    assert_eq!((none.domain_id_bits, none.host_bits), (4, 32));
    assert_eq!(none.widest(), None);
}

#[test]
fn each_requester_has_an_entry_of_its_own_where_hardware_looks_for_it() {
    for mode in [TableMode::Legacy, TableMode::Scalable] {
        let unit = unit(mode, PLANNER);
        let sources = [
            0x0000_u16, 0x0007, 0x007f, 0x0080, 0x00ff, 0x0100, 0xff7f, 0xffff,
        ];
        assert_eq!(unit.context(0), None);
        let mut written = Vec::new();
        for (number, &source) in sources.iter().enumerate() {
            unit.link(source).expect("hardware answers");
            let said = match mode {
                TableMode::Legacy => legacy(number as u16 + 2, 0x1000 * (number as u64 + 1)),
                TableMode::Scalable => {
                    let table = Oa::new(0x1000 * (number as u64 + 1));
                    let directory = PasidDirectory::new(table, 1 << 13).expect("legal");
                    ContextEntry::Scalable(ScalableContext::new(directory, 0).expect("legal"))
                }
            };
            unit.write(source, &said).expect("hardware answers");
            written.push((source, said));
        }
        for (source, said) in written {
            assert_eq!(unit.context(source), Some(said), "{source:#x}");
        }
        // Nothing is cached of what is not there.
        assert_eq!(take(&unit), []);
    }
}

#[test]
fn what_is_not_there_is_announced_where_it_is_cached() {
    for (planner, count) in [
        (PLANNER, 0),
        (CACHING, 1),
        (
            Planner {
                has_write_buffer: true,
                ..PLANNER
            },
            1,
        ),
    ] {
        let unit = unit(TableMode::Scalable, planner);
        unit.link(0x108).expect("hardware answers");
        assert_eq!(take(&unit), [ALL_CONTEXTS][..count]);
        // In a piece that is there, too: the number may have been looked up before.
        unit.link(0x110).expect("hardware answers");
        assert_eq!(take(&unit), [ALL_CONTEXTS][..count]);
        let mut tables = PasidTables::new(&unit, 0).expect("memory");
        for number in [0, 8191] {
            tables.link(&unit, pasid(number)).expect("hardware answers");
            assert_eq!(take(&unit), [entry(0, pasid(number))][..count]);
        }
        let refused = tables.link(&unit, pasid(8192));
        assert_eq!(refused, Err(LinkError::Absent { index: 8192 }));
    }
}

/// Section 6.5.3: the entry, then what was translated by it.
#[test]
fn a_legacy_entry_is_forgotten_under_its_old_domain_id_with_its_translations() {
    let unit = unit(TableMode::Legacy, PLANNER);
    unit.link(8).expect("hardware answers");
    unit.write(8, &legacy(5, 0x1000)).expect("hardware answers");
    assert_eq!(take(&unit), []);
    // The same again.
    unit.write(8, &legacy(5, 0x1000)).expect("hardware answers");
    assert_eq!(take(&unit), []);
    // Another table of the same domain: in one store.
    unit.write(8, &legacy(5, 0x2000)).expect("hardware answers");
    assert_eq!(take(&unit), [context(8, 5), domain(5)]);
    unit.write(8, &legacy(6, 0x3000)).expect("hardware answers");
    assert_eq!(take(&unit), [context(8, 5), domain(5), context(8, 6)]);
    let through = LegacyContext::pass_through(1, AddressWidth::Bits48);
    unit.write(8, &ContextEntry::Legacy(through))
        .expect("hardware answers");
    assert_eq!(take(&unit), [context(8, 6), domain(6), context(8, 1)]);
    unit.write(8, &BLOCKED).expect("hardware answers");
    assert_eq!(take(&unit), [context(8, 1), domain(1)]);
}

#[test]
fn where_absence_is_cached_it_is_forgotten_under_domain_id_0() {
    let unit = unit(TableMode::Legacy, CACHING);
    unit.link(8).expect("hardware answers");
    take(&unit);
    unit.write(8, &legacy(5, 0x1000)).expect("hardware answers");
    assert_eq!(take(&unit), [context(8, 0)]);
    unit.write(8, &legacy(6, 0x2000)).expect("hardware answers");
    let told = [
        context(8, 5),
        context(8, 0),
        domain(5),
        context(8, 6),
        context(8, 0),
    ];
    assert_eq!(take(&unit), told);
    unit.write(8, &BLOCKED).expect("hardware answers");
    assert_eq!(take(&unit), [context(8, 6), context(8, 0), domain(6)]);
}

#[test]
fn an_entry_of_the_other_mode_is_refused() {
    let unit = unit(TableMode::Scalable, PLANNER);
    unit.link(8).expect("hardware answers");
    let refused = unit.write(8, &legacy(5, 0x1000));
    assert_eq!(refused, Err(Unwritten::Absent { index: 8 }));
    let narrow = Features {
        has_scalable_mode: false,
        ..FEATURES
    };
    let refused = Unit::new(
        narrow,
        TableMode::Scalable,
        Arc::new(Heap),
        Queue::instance_of(PLANNER),
    );
    assert_eq!(refused.err(), Some(UnitError::NotScalable));
}

#[test]
fn a_scalable_context_that_changes_takes_all_behind_it_along() {
    let unit = unit(TableMode::Scalable, PLANNER);
    unit.link(8).expect("hardware answers");
    let tables = PasidTables::new(&unit, 0).expect("memory");
    let plain = tables.context();
    unit.write(8, &ContextEntry::Scalable(plain))
        .expect("hardware answers");
    assert_eq!(take(&unit), []);
    let told = [context(8, 0), ALL_PASIDS, ALL_TRANSLATIONS];
    unit.write(8, &ContextEntry::Scalable(plain.with_device_tlb()))
        .expect("hardware answers");
    assert_eq!(take(&unit), told);
    unit.write(8, &ContextEntry::Scalable(ScalableContext::blocked()))
        .expect("hardware answers");
    assert_eq!(take(&unit), told);
    unit.forget_everything().expect("hardware answers");
    assert_eq!(take(&unit), [ALL_CONTEXTS, ALL_PASIDS, ALL_TRANSLATIONS]);
}

#[test]
fn a_pasid_entry_is_forgotten_and_then_what_it_translated_as_its_stage_has_it() {
    let unit = unit(TableMode::Scalable, PLANNER);
    let mut tables = PasidTables::new(&unit, 20).expect("memory");
    assert_eq!(tables.directory().pasid_count(), 1 << 20);
    let at = pasid(0xf_ffff);
    assert_eq!(tables.get(at), None);
    tables.link(&unit, at).expect("hardware answers");
    let mut told = |entry: PasidEntry| {
        tables.write(&unit, at, &entry).expect("hardware answers");
        assert_eq!(tables.get(at), Some(entry));
        take(&unit)
    };
    assert_eq!(told(PasidEntry::first(5, first(0x1000))), []);
    // The same domain, another table: in one store.
    let moved = told(PasidEntry::first(5, first(0x2000)));
    assert_eq!(moved, [entry(5, at), space(5, at)]);
    let replaced = told(PasidEntry::second(6, second(0x3000)));
    assert_eq!(replaced, [entry(5, at), space(5, at), entry(6, at)]);
    let through = PasidEntry::pass_through(1, AddressWidth::Bits48);
    assert_eq!(told(through), [entry(6, at), domain(6), entry(1, at)]);
    let nested = PasidEntry::nested(7, first(0x1000), second(0x3000));
    assert_eq!(told(nested), [entry(1, at), space(1, at), entry(7, at)]);
    assert_eq!(told(PasidEntry::blocked()), [entry(7, at), domain(7)]);
}

/// What hardware may hold is told of until it answers.
#[test]
fn an_entry_that_hardware_did_not_confirm_is_forgotten_with_everything() {
    let unit = unit(TableMode::Legacy, PLANNER);
    unit.link(8).expect("hardware answers");
    unit.write(8, &legacy(5, 0x1000)).expect("hardware answers");
    for left in 0..4 {
        take(&unit);
        unit.instance().queue().device().fall_silent_after(left);
        // The entry, its translations, the new entry.
        let written = unit.write(8, &legacy(6 + left as u16, 0x2000));
        assert_eq!(written.is_err(), left < 3, "{written:?}");
        assert_eq!(unit.is_quarantined(8), left < 3);
        if left < 3 {
            assert_eq!(unit.context(8), Some(BLOCKED));
        }
        silence(&unit, false);
        take(&unit);
        unit.write(8, &legacy(5, 0x1000)).expect("hardware answers");
        assert!(!unit.is_quarantined(8));
        let told = take(&unit);
        if left < 3 {
            assert_eq!(told, [ALL_CONTEXTS, ALL_TRANSLATIONS]);
        } else {
            assert_eq!(told, [context(8, 9), domain(9), context(8, 5)]);
        }
    }
}

#[test]
fn a_pasid_entry_that_hardware_did_not_confirm_is_forgotten_with_everything() {
    let unit = unit(TableMode::Scalable, PLANNER);
    let mut tables = PasidTables::new(&unit, 0).expect("memory");
    let at = pasid(3);
    tables.link(&unit, at).expect("hardware answers");
    let said = PasidEntry::first(5, first(0x1000));
    tables.write(&unit, at, &said).expect("hardware answers");
    unit.instance().queue().device().fall_silent_after(1);
    let blocked = tables.write(&unit, at, &PasidEntry::blocked());
    assert!(
        matches!(blocked, Err(Unwritten::Quarantined(_))),
        "{blocked:?}"
    );
    assert!(tables.is_quarantined(at));
    silence(&unit, false);
    take(&unit);
    tables.write(&unit, at, &said).expect("hardware answers");
    assert_eq!(take(&unit), [ALL_CONTEXTS, ALL_PASIDS, ALL_TRANSLATIONS]);
    assert!(!tables.is_quarantined(at));
}

#[test]
fn domain_ids_leave_out_those_that_hardware_and_identity_have() {
    let few = Features {
        domain_id_bits: 4,
        ..FEATURES
    };
    let instance = Queue::instance_of(PLANNER);
    let unit = Unit::new(few, TableMode::Legacy, Arc::new(Heap), instance).expect("memory");
    let ids: Vec<_> = core::iter::from_fn(|| unit.domain_ids().allocate().ok()).collect();
    assert!(ids.iter().map(crate::device::ids::Id::get).eq(2..16));
}
