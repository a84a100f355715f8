//! What a command has measured, as a table for people or as JSON.
//!
//! Invariants: both show the same cells; the load of the machine stands beside them.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::times::Times;

/// Named rows of cells.
pub(super) struct Table {
    title: String,
    columns: Vec<&'static str>,
    rows: Vec<(String, Vec<Value>)>,
    /// What has to be zero and is not, and other remarks.
    notes: Vec<String>,
}

impl Table {
    pub(super) fn new(title: impl Into<String>, columns: &[&'static str]) -> Self {
        Self { title: title.into(), columns: columns.to_vec(), rows: Vec::new(), notes: Vec::new() }
    }

    /// One more row. Numbers are shown with three digits, `null` as a dash.
    pub(super) fn row(&mut self, name: impl Into<String>, cells: Vec<Value>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push((name.into(), cells));
    }

    /// One more line below.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Prints it; as one JSON object where that is wanted.
    pub(super) fn print(&self, as_json: bool) {
        if as_json {
            println!("{}", self.json());
            return;
        }
        println!("{} (load average {})", self.title, load_average().unwrap_or_default());
        let name_width = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let shown: Vec<Vec<String>> =
            self.rows.iter().map(|(_, cells)| cells.iter().map(show).collect()).collect();
        let width = |column: usize| {
            let cells = shown.iter().map(|row| row[column].chars().count());
            cells.chain([self.columns[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |name: &str, cells: &[String]| {
            let cells: Vec<String> =
                cells.iter().zip(&widths).map(|(cell, &width)| format!("  {cell:>width$}")).collect();
            println!("  {name:<name_width$}{}", cells.concat());
        };
        line("", &self.columns.iter().map(|&column| column.to_owned()).collect::<Vec<_>>());
        for ((name, _), cells) in self.rows.iter().zip(&shown) {
            line(name, cells);
        }
        for note in &self.notes {
            println!("  {note}");
        }
    }

    fn json(&self) -> Value {
        let row = |(name, cells): &(String, Vec<Value>)| {
            let mut row = Map::from_iter([("name".to_owned(), json!(name))]);
            row.extend(self.columns.iter().map(|&column| column.to_owned()).zip(cells.iter().cloned()));
            Value::Object(row)
        };
        json!({
            "title": self.title,
            "load_average": load_average(),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }
}

/// A time in milliseconds; `null` for one that did not end.
pub(super) fn millis(time: Duration) -> Value {
    if time == Duration::MAX { Value::Null } else { json!((time.as_secs_f64() * 1e6).round() / 1e3) }
}

/// p50, p99 and the longest, in milliseconds.
pub(super) fn percentiles(times: &Times) -> Vec<Value> {
    times.percentiles([50, 99, 100]).map(|seconds| millis(Duration::from_secs_f64(seconds))).to_vec()
}

fn show(cell: &Value) -> String {
    match cell {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(value) if number.is_f64() && value.abs() < 10.0 => format!("{value:.2}"),
            Some(value) if number.is_f64() && value.abs() < 100.0 => format!("{value:.1}"),
            Some(value) if number.is_f64() => format!("{value:.0}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// Of the last minute: what else the machine is doing.
fn load_average() -> Option<String> {
    Some(std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_the_same_for_people_and_scripts() {
        let mut table = Table::new("t", &["a", "b"]);
        table.row("x", vec![json!(1.234), Value::Null]);
        let told = table.json();
        assert_eq!(told["rows"], json!([{ "name": "x", "a": 1.234, "b": null }]));
        assert_eq!(show(&told["rows"][0]["a"]), "1.23");
        assert_eq!(show(&json!(12_345)), "12345");
        assert_eq!(millis(Duration::MAX), Value::Null);
        assert_eq!(millis(Duration::from_micros(1_500)), json!(1.5));
    }
}
