//! What benches print: rows for people, or JSON.

use core::fmt;
use std::io::{self, Write};

use crate::cpu;
use crate::row::Row;
use crate::verdict::Verdict;

/// Prints rows as they come.
pub struct Report<'o> {
    out: &'o mut dyn Write,
    is_json: bool,
    is_first: bool,
    not_met_count: usize,
}

impl<'o> Report<'o> {
    /// Begins a report.
    ///
    /// # Errors
    ///
    /// Fails if nothing can be written there.
    pub fn new(out: &'o mut dyn Write, is_json: bool) -> io::Result<Self> {
        let name = cpu::name();
        if is_json {
            write!(out, "{{\"version\":1,\"cpu\":{name:?},\"results\":[")?;
        } else {
            writeln!(out, "{name}")?;
            writeln!(
                out,
                "{:8} {:32} {:28} {:>10} {:18} {:>8} {:9}",
                "", "what", "how", "measured", "", "bar", ""
            )?;
        }
        Ok(Self {
            out,
            is_json,
            is_first: true,
            not_met_count: 0,
        })
    }

    /// Adds the answer to a question.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn rows(&mut self, question: &str, rows: &[Row]) -> io::Result<()> {
        rows.iter().try_for_each(|row| self.row(question, row))
    }

    fn row(&mut self, question: &str, row: &Row) -> io::Result<()> {
        self.not_met_count += usize::from(row.verdict == Some(Verdict::NotMet));
        let Row {
            what,
            how,
            value,
            unit,
            bar,
            verdict,
            beside,
        } = row;
        if self.is_json {
            let mark = if std::mem::take(&mut self.is_first) {
                ""
            } else {
                ","
            };
            write!(
                self.out,
                "{mark}{{\"question\":\"{question}\",\"what\":\"{what}\",\"how\":\"{how}\",\
                 \"value\":{},\"unit\":\"{unit}\"",
                json_number(*value)
            )?;
            if let Some((bar, verdict)) = bar.zip(*verdict) {
                write!(self.out, ",\"bar\":\"{bar}\",\"verdict\":\"{verdict}\"")?;
            }
            for (name, value) in beside {
                write!(self.out, ",\"{name}\":{}", json_number(*value))?;
            }
            return write!(self.out, "}}");
        }
        let bar = bar.map_or_else(String::new, |bar| bar.to_string());
        let verdict = verdict.map_or("", Verdict::as_str);
        write!(
            self.out,
            "{question:8} {what:32} {how:28} {value:>10.2} {unit:18} {bar:>8} {verdict:9}"
        )?;
        for (name, value) in beside {
            write!(self.out, "  {name} {value:.2}")?;
        }
        writeln!(self.out)?;
        self.out.flush()
    }

    /// Ends the report and returns how many promises were not kept.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn end(self) -> io::Result<usize> {
        if self.is_json {
            writeln!(self.out, "]}}")?;
        }
        Ok(self.not_met_count)
    }
}

/// Returns a number as JSON has it, which knows no infinity.
fn json_number(value: f64) -> String {
    if value.is_finite() {
        format!("{value:.4}")
    } else {
        "null".to_owned()
    }
}

impl fmt::Debug for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report")
            .field("is_json", &self.is_json)
            .field("not_met_count", &self.not_met_count)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Bar;

    #[test]
    fn rows_are_json_and_broken_promises_are_counted() {
        let mut out = Vec::new();
        let mut report = Report::new(&mut out, true).expect("memory takes it");
        let kept = Row::new("a", "b", f64::INFINITY, "ns").with_bar(Bar::AtLeast(2.0), false);
        let broken = Row::new("c", "d", 3.0, "ns").with_bar(Bar::AtMost(2.0), false);
        let rows = [kept, broken.beside("more", 0.5)];
        report.rows("q", &rows).expect("memory takes it");
        assert_eq!(report.end().expect("memory takes it"), 1);
        let text = String::from_utf8(out).expect("it is text");
        let (_, rows) = text.split_once("\"results\":").expect("there are results");
        assert_eq!(
            rows,
            "[{\"question\":\"q\",\"what\":\"a\",\"how\":\"b\",\"value\":null,\"unit\":\"ns\",\
             \"bar\":\">= 2\",\"verdict\":\"met\"},{\"question\":\"q\",\"what\":\"c\",\"how\":\"d\",\
             \"value\":3.0000,\"unit\":\"ns\",\"bar\":\"<= 2\",\"verdict\":\"NOT MET\",\"more\":0.5000}]}\n"
        );
    }
}
