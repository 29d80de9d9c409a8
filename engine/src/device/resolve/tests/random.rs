//! Many descriptions, against looking up device by device.

use super::*;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn id(&mut self) -> u16 {
        let near = [
            0x08, 0x10, 0x18, 0x20, 0x0100, 0x0101, 0x0180, 0x0200, 0x0300, 0x0328,
        ];
        let id = near[self.below(10) as usize];
        (id + self.below(3) as u16).saturating_sub(1)
    }

    fn subject(&mut self) -> Subject {
        let paths: [&[u8]; 8] = [&[1], &[1, 0], &[2], &[2, 0], &[2, 0, 5], &[3], &[4], &[9]];
        let path = path(paths[self.below(8) as usize]);
        match self.below(8) {
            0 => Subject::Function(path),
            1 => Subject::Below(path),
            2 => Subject::Rest {
                segment: self.below(2) as u16,
            },
            3 => Subject::BelowRootPorts {
                segment: u16::from(self.below(8) == 0),
            },
            _ => {
                let (one, other) = (self.id(), self.id());
                Subject::Requesters {
                    segment: u16::from(self.below(8) == 0),
                    mask: [0xffff, 0xfff8, 0xff00, 0x00ff][self.below(4) as usize],
                    first: RequesterId::new(one.min(other)),
                    last: RequesterId::new(one.max(other)),
                }
            }
        }
    }

    fn description(&mut self) -> Description {
        let mut description = described(3, []);
        description.instances[2].is_enabled = self.below(2) == 0;
        for _ in 0..self.below(8) {
            // Of some outputs, most inputs are too large.
            let output = match self.below(5) {
                0 => Output::Fixed(7),
                4 => Output::Both {
                    offset: 0x400,
                    alias: 9,
                },
                1 => Output::Offset(u32::MAX - 0x20),
                _ => Output::Offset(0x400),
            };
            let instance = [None, Some(0), Some(1), Some(2)][self.below(4) as usize];
            let subject = self.subject();
            description.rules.push(sentence(subject, instance, output));
        }
        for place in 0..self.below(4) {
            let subject = Some(self.subject());
            description.regions.push(region(subject, place << 12));
        }
        for bits in 0..self.below(3) {
            description.reaches.push(Reach {
                subject: self.subject(),
                address_bits: Some(32 + bits as u8),
                ranges: Vec::new(),
            });
        }
        description
    }
}

#[test]
fn resolving_all_says_what_looking_up_each_says() {
    let tree = tree();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut counts = [0; 3];
    for round in 0..if cfg!(miri) { 20 } else { 2000 } {
        let description = random.description();
        let resolution = resolve(&description);
        for function in tree.functions() {
            let place = Place::new(&tree, function.address);
            let mut expected = Vec::new();
            let mut open = Vec::new();
            let mut regions = Vec::new();
            let mut reaches = Vec::new();
            for requester in tree.requesters(function.address).expect("it is there") {
                let mut address = function.address;
                address.requester = requester;
                match description.requester(address, &place) {
                    Behind::Instance(seen) => {
                        let Identity::Number(id) = seen.identity else {
                            panic!("{seen:?}")
                        };
                        expected.push((seen.instance.0, id));
                        expected.extend(seen.alias.map(|alias| (seen.instance.0, alias)));
                    }
                    Behind::Nothing(rule) => {
                        let mut rules = description.rules.iter();
                        let place = rules.position(|other| core::ptr::eq(other, rule));
                        let why = Unanswered::Nothing(place.expect("it is among them"));
                        open.push((why, u32::from(requester.get())));
                    }
                    Behind::Unreadable(flaw) => panic!("{flaw}"),
                    Behind::Unsaid => open.push((Unanswered::Unsaid, requester.get().into())),
                }
                let who = Who::Requester(address, &place);
                regions.extend(
                    description
                        .regions_of(who)
                        .map(|region| region.range.start()),
                );
                reaches.extend(
                    description
                        .reach_of(who)
                        .and_then(|reach| reach.address_bits),
                );
            }
            expected.sort_unstable();
            expected.dedup();
            let found: Vec<_> = resolution
                .streams(function.address.into())
                .into_iter()
                .flat_map(|(instance, ids)| ids.into_iter().map(move |id| (instance, id)))
                .collect();
            assert_eq!(found, expected, "{round}: {}", function.address);
            let why = resolution.why_not(function.address.into());
            // Of the device behind the bridge the bridge's ID decides.
            let is_bridged = function.address.requester.bus() == 3;
            let reason = if expected.is_empty() {
                open.iter().min().map(|(why, _)| (*why).into())
            } else {
                open.retain(|(why, id)| *why != Unanswered::Unsaid || !is_bridged || *id == 0x0300);
                let first = open.iter().min();
                first.map(|&(why, id)| Untranslated::Partly { id, why })
            };
            assert_eq!(why, reason, "{round}: {}", function.address);
            regions.sort_unstable();
            regions.dedup();
            let device = resolution.of(function.address.into());
            let found: Vec<_> = device
                .regions
                .iter()
                .map(|region| region.range.start())
                .collect();
            assert_eq!(found, regions, "{round}: {}", function.address);
            assert_eq!(device.reach.address_bits, reaches.iter().min().copied());
            let is_refused = Some(Refusal::Partial) == device.refusal;
            assert_eq!(is_refused, !open.is_empty() && !expected.is_empty());
            counts[usize::from(expected.is_empty()) + 2 * usize::from(is_refused)] += 1;
        }
    }
    assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
}
