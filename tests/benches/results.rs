//! Figures: collected over the rounds, printed as a table of medians, and kept
//! as lines of JSON with the facts of the machine.

use std::fs::{File, OpenOptions, create_dir_all};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::machine::{self, Machine};

/// What a figure is called, in the table and in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// With its unit.
    pub(crate) name: &'static str,
    pub(crate) decimals: usize,
}

/// The figures of one benchmark: a row for each contestant, a column for each
/// figure, a value for each round.
pub(crate) struct Table {
    bench: &'static str,
    columns: &'static [Figure],
    rows: Vec<Row>,
}

struct Row {
    contestant: &'static str,
    /// By column.
    values: Vec<Vec<f64>>,
}

impl Table {
    pub(crate) fn new(bench: &'static str, columns: &'static [Figure]) -> Self {
        Self {
            bench,
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds one round's value.
    pub(crate) fn add(&mut self, contestant: &'static str, figure: Figure, value: f64) {
        let column = self.column(figure);
        let known = self
            .rows
            .iter()
            .position(|row| row.contestant == contestant);
        let row = known.unwrap_or_else(|| {
            self.rows.push(Row {
                contestant,
                values: vec![Vec::new(); self.columns.len()],
            });
            self.rows.len() - 1
        });
        self.rows[row].values[column].push(value);
    }

    /// The median over the rounds; nothing where it was not measured.
    pub(crate) fn median(&self, contestant: &str, figure: Figure) -> Option<f64> {
        let column = self.column(figure);
        let row = self.rows.iter().find(|row| row.contestant == contestant)?;
        median(&row.values[column])
    }

    fn column(&self, figure: Figure) -> usize {
        let same = |column: &Figure| column.name == figure.name;
        let column = self.columns.iter().position(same);
        column.expect("a figure is one of the table's own columns")
    }

    fn print(&self) {
        let first = self.rows.iter().map(|row| row.contestant.len()).max();
        let first = first.unwrap_or_default();
        let mut header = format!("| {:first$} |", "");
        let mut rule = format!("|-{}-|", "-".repeat(first));
        for column in self.columns {
            header += &format!(" {} |", column.name);
            rule += &format!("-{}:|", "-".repeat(column.name.len()));
        }
        say(&format!("{header}\n{rule}"));
        for row in &self.rows {
            let mut line = format!("| {:first$} |", row.contestant);
            for (column, values) in self.columns.iter().zip(&row.values) {
                let width = column.name.len();
                let value = median(values).map_or_else(String::new, |value| {
                    format!("{value:.precision$}", precision = column.decimals)
                });
                line += &format!(" {value:>width$} |");
            }
            say(&line);
        }
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// What a figure, or a ratio of two, is meant to be.
pub(crate) struct Target {
    pub(crate) what: &'static str,
    pub(crate) value: Option<f64>,
    pub(crate) bound: Bound,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// Worth knowing; nothing is promised.
    None,
}

impl Target {
    fn line(&self) -> String {
        let what = self.what;
        let Some(value) = self.value else {
            return format!("{what}: not measured");
        };
        let (word, limit, holds) = match self.bound {
            Bound::AtLeast(limit) => ("at least", limit, value >= limit),
            Bound::AtMost(limit) => ("at most", limit, value <= limit),
            Bound::None => return format!("{what}: {value:.2}"),
        };
        let verdict = if holds { "met" } else { "MISSED" };
        format!("{what}: {value:.2} (target: {word} {limit}; {verdict})")
    }
}

/// The file that results are added to.
pub(crate) struct Journal {
    file: File,
    machine: Machine,
}

impl Journal {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if let Some(directory) = path.parent() {
            create_dir_all(directory)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("opening {} for the results", path.display()))?;
        let machine = Machine::look();
        say(&format!("{machine}"));
        Ok(Self { file, machine })
    }

    /// Prints a table and what it means, and keeps its figures.
    pub(crate) fn publish(&mut self, table: &Table, targets: &[Target]) -> Result<()> {
        table.print();
        for target in targets {
            say(&target.line());
        }
        say(&format!("load after: {:.2}", machine::load()));
        for row in &table.rows {
            let figures = table.columns.iter().zip(&row.values);
            let figures: serde_json::Map<_, _> = figures
                .filter(|(_, values)| !values.is_empty())
                .map(|(column, values)| {
                    let value = json!({"median": median(values), "rounds": values});
                    (column.name.to_owned(), value)
                })
                .collect();
            let line = json!({
                "bench": table.bench,
                "contestant": row.contestant,
                "figures": figures,
                "machine": self.machine,
            });
            writeln!(self.file, "{line}")?;
        }
        Ok(())
    }
}

/// Tells whoever runs this.
#[expect(clippy::print_stdout, reason = "the figures are the output")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
