//! Lines by hand, good and bad.

use super::*;

const HEAD: &str = "# iopt-trace 1\n# page-size: 4096\n# platform: a machine\n";

fn read(lines: &str) -> Result<Trace, String> {
    Trace::read(format!("{HEAD}{lines}").as_bytes()).map_err(|error| error.to_string())
}

fn header(text: &str) -> Result<Header, String> {
    Reader::new(text.as_bytes())
        .map(|reader| reader.header)
        .map_err(|error| error.to_string())
}

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).unwrap()
}

#[test]
fn every_operation_is_read_with_its_line() {
    let text = "attach 0 0 0000:00:03.0\nmap 5 1 0x1000 0xfedcb000 0x2000 rwc\n\
                unmap 5 1 0x2000 0x1000\ndetach 6 0 0000:00:03.0\n";
    let trace = read(text).unwrap();
    let device: Box<str> = "0000:00:03.0".into();
    let expected = [
        (
            4,
            0,
            0,
            Action::Attach {
                device: device.clone(),
            },
        ),
        (
            5,
            5,
            1,
            Action::Map {
                range: range(0x1000, 0x2000),
                oa: Oa::new(0xfedc_b000),
                prot: Prot::RW.cached(),
            },
        ),
        (
            6,
            5,
            1,
            Action::Unmap {
                range: range(0x2000, 0x1000),
            },
        ),
        (7, 6, 0, Action::Detach { device }),
    ]
    .map(|(line, time_ns, domain, action)| Operation {
        line,
        time_ns,
        domain,
        action,
    });
    assert_eq!(trace.operations, expected);
    let figures = Figures {
        maps: 1,
        unmaps: 1,
        peak_live_pages: 2,
        live_pages: 1,
        live_mappings: 1,
        domains: 2,
    };
    assert_eq!(trace.figures, figures);
    assert_eq!(trace.header.platform, "a machine");
}

#[test]
fn rights_and_memory_types_are_told_apart() {
    for (text, prot) in [
        ("r", Prot::R),
        ("w", Prot::W),
        ("rw", Prot::RW),
        ("wm", Prot::W.device()),
        ("rc", Prot::R.cached()),
        ("rwmc", Prot::RW.device()),
    ] {
        assert_eq!(parse_prot(text), Some(prot), "{text}");
    }
    for text in ["", "m", "c", "wr", "rr", "rx", "rw ", "R"] {
        assert_eq!(parse_prot(text), None, "{text:?}");
    }
}

#[test]
fn a_bad_header_is_refused() {
    for (text, error) in [
        (
            "",
            "1: not a trace: the first line must be `# iopt-trace 1`",
        ),
        (
            "# iopt-flush 1\n",
            "1: not a trace: the first line must be `# iopt-trace 1`",
        ),
        (
            "# iopt-trace 2\n",
            "1: trace version \"2\" is not supported, only 1",
        ),
        (
            "# iopt-trace 1\n# mode: lazy\n",
            "3: the header has no `page-size`",
        ),
        (
            "# iopt-trace 1\n# page-size: 4095\n",
            "2: header `page-size` has the impossible value \"4095\"",
        ),
        (
            "# iopt-trace 1\n# page-size: 0x1000\n",
            "2: header `page-size` has the impossible value \"0x1000\"",
        ),
        (
            "# iopt-trace 1\n# domain-end: perhaps\n",
            "2: header `domain-end` has the impossible value \"perhaps\"",
        ),
    ] {
        assert_eq!(header(text).unwrap_err(), error);
    }
}

#[test]
fn the_end_of_domains_is_read_from_the_header() {
    let head = "# iopt-trace 1\n# page-size: 16384\n";
    let end = |text: &str| {
        header(&format!("{head}# domain-end: {text}\n"))
            .unwrap()
            .domain_end
    };
    assert_eq!(
        end("a domain and its mappings end with its last detach"),
        DomainEnd::LastDetach
    );
    assert_eq!(
        end("a domain outlives its last detach, its mappings are unmapped afterwards"),
        DomainEnd::Never
    );
    assert_eq!(header(head).unwrap().page_size, PageSize::KIB_16);
}

#[test]
fn a_bad_line_is_refused_with_its_number() {
    for (line, error) in [
        ("", "unknown operation \"\""),
        ("remap 0 0 0x0 0x1000", "unknown operation \"remap\""),
        ("map 0 0 0x0 0x0 0x1000", "map takes 7 fields, not 6"),
        ("map 0 0 0x0 0x0 0x1000 rw ", "map takes 7 fields, not 8"),
        ("unmap 0 0 0x0", "unmap takes 5 fields, not 4"),
        ("attach 0 0", "attach takes 4 fields, not 3"),
        (
            "unmap x 0 0x0 0x1000",
            "time \"x\" is not a decimal number of nanoseconds",
        ),
        (
            "unmap 0 -1 0x0 0x1000",
            "domain \"-1\" is not a decimal number of 32 bits",
        ),
        (
            "unmap 0 4294967296 0x0 0x1000",
            "domain \"4294967296\" is not a decimal number of 32 bits",
        ),
        (
            "unmap 0 0 1000 0x1000",
            "iova \"1000\" is not a hexadecimal number with 0x",
        ),
        (
            "unmap 0 0 0x800 0x1000",
            "iova 0x800 is not a multiple of the page size",
        ),
        (
            "unmap 0 0 0x0 0x800",
            "len 0x800 is not a multiple of the page size",
        ),
        (
            "map 0 0 0x0 0x1 0x1000 r",
            "oa 0x1 is not a multiple of the page size",
        ),
        (
            "unmap 0 0 0x0 0x0",
            "0x0 bytes from 0x0 are not a range of the 64-bit space",
        ),
        (
            "unmap 0 0 0xfffffffffffff000 0x2000",
            "0x2000 bytes from 0xfffffffffffff000 are not a range of the 64-bit space",
        ),
        (
            "map 0 0 0x0 0xfffffffffffff000 0x2000 r",
            "0x2000 bytes from 0xfffffffffffff000 are not a range of the 64-bit space",
        ),
        (
            "map 0 0 0x0 0x0 0x1000 x",
            "prot \"x\" is not a choice of `rwmc`, in that order, with `r` or `w`",
        ),
        (
            "unmap 0 0 0x0 0x1000",
            "domain 0: unmap of 0x0, which is not mapped",
        ),
        ("detach 0 0 d", "domain 0: d is not attached"),
    ] {
        let text = format!("attach 0 1 a\n{line}\n");
        assert_eq!(read(&text).unwrap_err(), format!("5: {error}"));
    }
}

#[test]
fn time_may_stand_still_but_not_fall() {
    assert!(read("attach 3 0 a\nattach 3 0 b\n").is_ok());
    let error = read("attach 3 0 a\nattach 2 0 b\n").unwrap_err();
    assert_eq!(error, "5: time 2 is before that of the line above, 3");
}

#[test]
fn a_map_over_a_mapped_page_is_refused_in_the_same_domain_only() {
    let text = "map 0 0 0x1000 0x0 0x2000 r\nmap 0 1 0x1000 0x0 0x2000 r\n";
    assert_eq!(read(text).unwrap().figures.peak_live_pages, 4);
    let error = read(&format!("{text}map 0 1 0x0 0x0 0x2000 r\n")).unwrap_err();
    assert_eq!(
        error,
        "6: domain 1: map over 0x1000, which is mapped already"
    );
}

#[test]
fn a_cut_last_line_is_refused_even_if_it_parses() {
    let error = read("map 0 0 0x0 0x0 0x10000 rw\nunmap 0 0 0x0 0x1000").unwrap_err();
    assert_eq!(error, "5: the line is cut: it has no line end");
}

#[test]
fn a_domain_that_ends_takes_its_mappings_along() {
    let ends = "# domain-end: a domain and its mappings end with its last detach\n";
    let text = "attach 0 0 a\nattach 0 0 b\nmap 0 0 0x0 0x0 0x3000 r\ndetach 1 0 a\n";
    assert_eq!(
        read(&format!("{ends}{text}")).unwrap().figures.live_pages,
        3
    );
    let text = format!("{text}detach 1 0 b\n");
    let figures = read(&format!("{ends}{text}")).unwrap().figures;
    assert_eq!((figures.peak_live_pages, figures.live_pages), (3, 0));
    assert_eq!(read(&text).unwrap().figures.live_pages, 3);
    let error = read(&format!("{ends}{text}attach 1 0 a\n")).unwrap_err();
    assert_eq!(error, "10: domain 0 ended with its last detach");
}

#[test]
fn nothing_is_read_after_an_error() {
    let text = format!("{HEAD}attach 0 0\nattach 0 0 a\n");
    let mut reader = Reader::new(text.as_bytes()).unwrap();
    assert!(reader.next().unwrap().is_err());
    assert!(reader.next().is_none());
}
