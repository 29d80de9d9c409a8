//! Dumped tables against the answer that they should give.
//!
//! Twice: with the library's decoders and with the reference walker, each from the registers on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use iopt_formats::walk::{Fault, VisitError};
use iopt_formats::{Oa, catalog::FormatName};
use iopt_reference::context::{Binding, ContextFault};
use iopt_reference::{Rigour, ScanError};
use iopt_tools::fixture::{ExpectedDomain, Fixture, Stream, Word};
use serde::Serialize;

use crate::walk::WalkError;
use crate::walk::route::{self, End, Judge, Route};
use crate::walk::subject::{LeafItem, Subject, item_limit};

/// Descriptions kept of what does not match.
const MAX_DETAILS: usize = 16;

/// What the check of a fixture found.
#[derive(Debug, Serialize)]
pub(crate) struct CheckReport {
    schema: u32,
    command: &'static str,
    fixture: String,
    domains: usize,
    contexts_expected: usize,
    /// Devices whose raw entries are as the sidecar says.
    contexts_found: usize,
    leaves_expected: usize,
    /// Leaf items that the library found.
    leaves_found: usize,
    /// Leaf items that the reference walker found.
    reference_leaves_found: usize,
    mismatches: u64,
    /// The first mismatches in words.
    details: Vec<String>,
}

/// Checks every device, domain and leaf of `fixture`, which was read from `path`.
pub(crate) fn check(path: &Path, fixture: &Fixture) -> Result<CheckReport, WalkError> {
    let report = CheckReport {
        schema: 1,
        command: "walk",
        fixture: path.display().to_string(),
        domains: 0,
        contexts_expected: fixture.streams.len(),
        contexts_found: 0,
        leaves_expected: fixture.leaf_count(),
        leaves_found: 0,
        reference_leaves_found: 0,
        mismatches: 0,
        details: Vec::new(),
    };
    let limit = item_limit(fixture.pages.len());
    let mut check = Check {
        path,
        fixture,
        limit,
        report,
    };
    let devices = check.devices()?;
    check.streams(&devices);
    let mut unclaimed: BTreeSet<u32> = devices.keys().copied().collect();
    for domain in &fixture.domains {
        check.domain(domain, &devices)?;
        for sid in &domain.sids {
            unclaimed.remove(sid);
        }
    }
    for sid in unclaimed {
        check.outsider(sid, &devices);
    }
    check.report.domains = fixture.domains.len();
    Ok(check.report)
}

/// Where both decoders say that a device's requests go.
struct Device {
    route: Route,
    binding: Result<Binding, ContextFault>,
}

struct Check<'a> {
    path: &'a Path,
    fixture: &'a Fixture,
    /// Items read at most from one table.
    limit: u64,
    report: CheckReport,
}

impl Check<'_> {
    fn mismatch(&mut self, detail: String) {
        self.report.mismatches += 1;
        if self.report.details.len() < MAX_DETAILS {
            self.report.details.push(detail);
        }
    }

    /// Follows every device that the sidecar names or the reference walker finds.
    fn devices(&mut self) -> Result<BTreeMap<u32, Device>, WalkError> {
        let fixture = self.fixture;
        let words = |oa| fixture.pages.word(oa);
        let register = |error| WalkError::Register {
            path: self.path.into(),
            error,
        };
        let judge = Judge::new(fixture).map_err(register)?;
        let mut sids: BTreeSet<u32> = fixture.streams.iter().map(|stream| stream.sid).collect();
        for domain in &fixture.domains {
            sids.extend(&domain.sids);
        }
        match judge.devices(&words) {
            Ok(found) => sids.extend(found.iter().map(|device| device.id)),
            Err(ContextFault::MissingMemory { address }) => {
                return Err(self.no_page(Oa::new(address)));
            }
            Err(fault) => self.mismatch(format!("for the reference, no list of devices: {fault}")),
        }
        let mut devices = BTreeMap::new();
        for sid in sids {
            let register = |error| WalkError::Register {
                path: self.path.into(),
                error,
            };
            let route = route::find(fixture, &words, sid).map_err(register)?;
            match route.end {
                End::Missing(address) => return Err(self.no_page(address)),
                End::Unsupported(what) => {
                    return Err(WalkError::Unsupported {
                        path: self.path.into(),
                        sid,
                        what,
                    });
                }
                _ => {}
            }
            let binding = judge.binding(&words, sid);
            devices.insert(sid, Device { route, binding });
        }
        Ok(devices)
    }

    fn no_page(&self, address: Oa) -> WalkError {
        WalkError::NoPage {
            path: self.fixture.pages_path.clone(),
            address,
        }
    }

    /// Compares the raw entries of every device with those of the sidecar.
    fn streams(&mut self, devices: &BTreeMap<u32, Device>) {
        for stream in &self.fixture.streams {
            let Some(device) = devices.get(&stream.sid) else {
                continue;
            };
            let wrong = wrong_entries(stream, &device.route);
            if wrong.is_empty() {
                self.report.contexts_found += 1;
            }
            for name in wrong {
                self.mismatch(format!(
                    "sid {}: {name} is not what the sidecar says",
                    stream.sid
                ));
            }
        }
    }

    /// Compares a domain's table, by way of each of its devices.
    fn domain(
        &mut self,
        expected: &ExpectedDomain,
        devices: &BTreeMap<u32, Device>,
    ) -> Result<(), WalkError> {
        let mut seen = None;
        let mut seen_reference = None;
        for sid in &expected.sids {
            let Some(device) = devices.get(sid) else {
                continue;
            };
            match &device.route.end {
                End::Table(table) => {
                    let identity = table.identity();
                    let is_first = seen.is_none();
                    if *seen.get_or_insert_with(|| identity.clone()) != identity {
                        self.mismatch(format!(
                            "sid {sid}: not the table of the domain's first device"
                        ));
                    } else if is_first {
                        self.table(*sid, expected, table.as_ref())?;
                    }
                }
                other => self.mismatch(format!("sid {sid}: {}, not translated", describe(other))),
            }
            match device.binding {
                Ok(Binding::Table(table)) => {
                    let is_first = seen_reference.is_none();
                    if *seen_reference.get_or_insert(table) != table {
                        self.mismatch(format!(
                            "sid {sid}: for the reference, not the table of the domain's first device"
                        ));
                    } else if is_first {
                        self.reference_table(*sid, expected, &table)?;
                    }
                }
                Ok(_) => self.mismatch(format!(
                    "sid {sid}: for the reference, not translated by one table"
                )),
                Err(fault) => self.mismatch(format!("sid {sid}: for the reference: {fault}")),
            }
        }
        Ok(())
    }

    fn table(
        &mut self,
        sid: u32,
        expected: &ExpectedDomain,
        table: &dyn Subject,
    ) -> Result<(), WalkError> {
        if !is_of_kind(table.format(), &expected.kind) {
            let (found, kind) = (table.format(), &expected.kind);
            self.mismatch(format!("sid {sid}: a {found} table, expected kind {kind}"));
        }
        if table.root().oa.get() != expected.root.0 {
            let (found, root) = (table.root().oa, expected.root.0);
            self.mismatch(format!(
                "sid {sid}: the root is at {found}, expected {root:#x}"
            ));
        }
        let (items, error) = table.items(&|oa| self.fixture.pages.word(oa), self.limit);
        match error {
            None => {}
            Some(VisitError::Fault {
                fault: Fault::Unreadable { address },
                ..
            }) => {
                return Err(self.no_page(address));
            }
            Some(error @ VisitError::TooLarge { .. }) => {
                return Err(WalkError::TooLarge {
                    path: self.path.into(),
                    error,
                });
            }
            Some(error) => self.mismatch(format!("sid {sid}: {error}")),
        }
        self.report.leaves_found += items.len();
        self.leaves(&format!("sid {sid}"), expected, items);
        Ok(())
    }

    fn reference_table(
        &mut self,
        sid: u32,
        expected: &ExpectedDomain,
        table: &iopt_reference::Table,
    ) -> Result<(), WalkError> {
        let memory = |address| self.fixture.pages.word(Oa::new(address));
        let mut items = Vec::new();
        let result = table.enumerate(&memory, self.limit, Rigour::Strict, |item| {
            items.push(LeafItem {
                iova: item.iova,
                oa: item.translation.oa,
                len: item.len,
                word: item.translation.word,
            });
        });
        match result {
            Ok(()) => {}
            Err(ScanError::MissingMemory { address }) => {
                return Err(self.no_page(Oa::new(address)));
            }
            Err(error) => self.mismatch(format!("sid {sid}: for the reference: {error}")),
        }
        self.report.reference_leaves_found += items.len();
        self.leaves(&format!("sid {sid}: for the reference"), expected, items);
        Ok(())
    }

    /// Compares leaf items.
    fn leaves(&mut self, who: &str, expected: &ExpectedDomain, found: Vec<LeafItem>) {
        let expected = expected.leaves.iter().map(|leaf| LeafItem {
            iova: leaf.0.0,
            oa: leaf.1.0,
            len: leaf.2,
            word: leaf.3.0,
        });
        let expected: BTreeSet<LeafItem> = expected.collect();
        let found: BTreeSet<LeafItem> = found.into_iter().collect();
        for leaf in expected.difference(&found) {
            self.mismatch(format!("{who}: missing {}", describe_leaf(leaf)));
        }
        for leaf in found.difference(&expected) {
            self.mismatch(format!("{who}: unexpected {}", describe_leaf(leaf)));
        }
    }

    /// Checks a device that is in no domain: no table may translate its requests.
    fn outsider(&mut self, sid: u32, devices: &BTreeMap<u32, Device>) {
        let Some(device) = devices.get(&sid) else {
            return;
        };
        match (&device.route.end, &device.binding) {
            (End::Blocked, Ok(Binding::Blocked) | Err(ContextFault::NotValid { .. }))
            | (End::PassThrough, Ok(Binding::PassThrough { .. })) => {}
            (end, binding) => self.mismatch(format!(
                "sid {sid}: {}, for the reference {}, expected in no domain",
                describe(end),
                describe_binding(binding),
            )),
        }
    }
}

/// Returns the names of the entries on the way that differ from the sidecar's.
fn wrong_entries(stream: &Stream, route: &Route) -> Vec<&'static str> {
    let expected: [(&[&'static str], &Option<Vec<Word>>); 6] = [
        (&["STE"], &stream.ste),
        (&["CD"], &stream.cd),
        (&["context entry", "scalable context entry"], &stream.ctx),
        (&["PASID entry"], &stream.pasid0),
        (&["DTE"], &stream.dte),
        (&["device context"], &stream.dc),
    ];
    let mut wrong = Vec::new();
    for (names, words) in expected {
        let Some(words) = words else { continue };
        let words: Vec<u64> = words.iter().map(|word| word.0).collect();
        let found = route
            .entries
            .iter()
            .find(|entry| names.contains(&entry.name));
        if !found.is_some_and(|entry| entry.starts_with(&words)) {
            wrong.extend(names.first());
        }
    }
    wrong
}

/// Returns whether a format is what the sidecar calls a kind.
fn is_of_kind(format: FormatName, kind: &str) -> bool {
    let name = format.as_str();
    match kind {
        "s1" => name.starts_with("arm-s1-"),
        "s2" => name.starts_with("arm-s2-"),
        "ss" => format == FormatName::VtdSs,
        "fs" => format == FormatName::VtdFs,
        "v1" => format == FormatName::AmdV1,
        _ => name.starts_with("riscv-"),
    }
}

fn describe(end: &End) -> String {
    match end {
        End::Blocked => "blocked".into(),
        End::PassThrough => "passed through".into(),
        End::Table(table) => format!("translated by the table at {}", table.root().oa),
        End::Unsupported(what) => format!("unsupported: {what}"),
        End::Illegal(why) => format!("illegal entry: {why}"),
        End::Missing(address) => format!("no memory at {address}"),
    }
}

fn describe_binding(binding: &Result<Binding, ContextFault>) -> String {
    match binding {
        Ok(Binding::Blocked) => "blocked".into(),
        Ok(Binding::PassThrough { .. }) => "passed through".into(),
        Ok(Binding::Table(_)) => "translated".into(),
        Ok(Binding::Nested { .. }) => "translated twice".into(),
        Err(fault) => fault.to_string(),
    }
}

fn describe_leaf(leaf: &LeafItem) -> String {
    format!(
        "leaf {:#x} -> {:#x}, {:#x} bytes, {:#018x}",
        leaf.iova, leaf.oa, leaf.len, leaf.word
    )
}

impl CheckReport {
    /// Returns the number of mismatches.
    pub(crate) fn mismatches(&self) -> u64 {
        self.mismatches
    }

    /// Returns the report for people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{}\n  {} of {} devices, {} domains\n  {} of {} leaves, {} by the reference walker\n",
            self.fixture,
            self.contexts_found,
            self.contexts_expected,
            self.domains,
            self.leaves_found,
            self.leaves_expected,
            self.reference_leaves_found,
        );
        for detail in &self.details {
            let _ = writeln!(text, "  mismatch: {detail}");
        }
        let _ = writeln!(text, "  {} mismatches", self.mismatches);
        text
    }
}
