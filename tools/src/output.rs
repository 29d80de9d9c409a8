//! Writing to people on a terminal and to programs.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

use serde::{Serialize, Serializer};

use crate::failure::Failure;

/// Writes the whole answer to standard output.
///
/// A reader that has seen enough and closed the pipe is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        _ => Ok(()),
    }
}

/// Writes one JSON object to standard output.
pub(crate) fn print_json(object: &impl Serialize) -> Result<(), Failure> {
    let error = |error: serde_json::Error| Failure::Output(error.into());
    let mut text = serde_json::to_string_pretty(object).map_err(error)?;
    text.push('\n');
    print(&text)
}

/// A number that JSON holds as hexadecimal text, because many readers lose bits of large ones.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Hex(pub(crate) u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

/// Where the cells of a column stand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows in aligned columns, two spaces apart.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    aligns: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// Creates a table with its first row.
    pub(crate) fn new(columns: [(&str, Align); N]) -> Self {
        Self {
            aligns: columns.map(|(_, align)| align),
            rows: vec![columns.map(|(title, _)| title.to_owned())],
        }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.len().max(*width);
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), align) in row.iter().zip(widths).zip(self.aligns) {
                match align {
                    Align::Left => write!(line, "{cell:<width$}  ")?,
                    Align::Right => write!(line, "{cell:>width$}  ")?,
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let mut table = Table::new([
            ("name", Align::Left),
            ("n", Align::Right),
            ("", Align::Left),
        ]);
        table.row(["a".into(), "1".into(), String::new()]);
        table.row(["longer".into(), "100".into(), "x".into()]);
        assert_eq!(
            table.to_string(),
            "name      n\na         1\nlonger  100  x\n"
        );
    }

    #[test]
    fn large_numbers_stay_exact_in_json() {
        assert_eq!(
            serde_json::to_string(&Hex(u64::MAX)).unwrap(),
            "\"0xffffffffffffffff\""
        );
    }
}
