//! What a benchmark found: rows that are printed as a table and stored as `target/bench/NAME.json`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

/// What a figure must reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Kiln's value, at most.
    ValueMax(f64),
    /// Kiln's value over the peer's, at most.
    RatioMax(f64),
    /// Kiln's value over the peer's, at least.
    RatioMin(f64),
}

impl fmt::Display for Goal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ValueMax(value) => write!(formatter, "<= {value}"),
            Self::RatioMax(ratio) => write!(formatter, "<= {ratio} x"),
            Self::RatioMin(ratio) => write!(formatter, ">= {ratio} x"),
        }
    }
}

/// One measured figure.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured, with its unit.
    pub name: String,
    /// Kiln's value.
    pub kiln: f64,
    /// Whom it is compared with.
    pub peer: Option<String>,
    /// The peer's value, in the same unit.
    pub peer_value: Option<f64>,
    /// Kiln's value over the peer's: the median over the rounds where each round measured both.
    pub ratio: Option<f64>,
    /// What it must reach, in words.
    pub goal: Option<String>,
    /// Whether it does.
    pub met: Option<bool>,
}

impl Row {
    /// A figure of Kiln's own.
    pub fn of(name: impl Into<String>, kiln: f64) -> Self {
        Self { name: name.into(), kiln, peer: None, peer_value: None, ratio: None, goal: None, met: None }
    }

    /// Compares it with a peer's value.
    #[must_use]
    pub fn beside(mut self, peer: impl Into<String>, peer_value: f64) -> Self {
        self.peer = Some(peer.into());
        self.peer_value = Some(peer_value);
        self.ratio = Some(self.kiln / peer_value);
        self
    }

    /// Sets the ratio where it is not that of the two values, as with a median of ratios.
    #[must_use]
    pub fn ratio(mut self, ratio: f64) -> Self {
        self.ratio = Some(ratio);
        self
    }

    /// Says what it must reach. For a goal on the ratio, call it after the comparison.
    #[must_use]
    pub fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal.to_string());
        self.met = match goal {
            Goal::ValueMax(value) => Some(self.kiln <= value),
            Goal::RatioMax(ratio) => self.ratio.map(|reached| reached <= ratio),
            Goal::RatioMin(ratio) => self.ratio.map(|reached| reached >= ratio),
        };
        self
    }

    fn cells(&self) -> [String; 7] {
        let met = match self.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        [
            self.name.clone(),
            figure(self.kiln),
            self.peer.clone().unwrap_or_default(),
            self.peer_value.map(figure).unwrap_or_default(),
            self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            self.goal.clone().unwrap_or_default(),
            met.to_owned(),
        ]
    }
}

/// A number with about three digits that matter.
fn figure(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 1000.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// Lays rows out under one another; the first column and texts to the left, numbers to the right.
pub fn table(rows: &[Row]) -> String {
    let mut lines = vec![["", "kiln", "peer", "peer's", "ratio", "goal", ""].map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let mut widths = [0; 7];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in &lines {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let number = matches!(column, 1 | 3 | 4);
            let padding = " ".repeat(width - cell.chars().count());
            let parts: [&str; 3] = if number { [&padding, cell, "  "] } else { [cell, &padding, "  "] };
            text.extend(parts);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Writes the rows to `NAME.json` in `folder` and returns the file's path.
///
/// # Errors
/// If the file cannot be written.
pub fn store(folder: &Path, name: &str, rows: &[Row]) -> Result<PathBuf> {
    let path = folder.join(format!("{name}.json"));
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fs::write(&path, serde_json::to_vec_pretty(rows)?).with_context(|| path.display().to_string())?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_or_missed_by_the_ratio_or_the_value() {
        let row = Row::of("a", 9.0).beside("b", 10.0);
        assert_eq!(row.clone().goal(Goal::RatioMax(0.95)).met, Some(true));
        assert_eq!(row.clone().goal(Goal::RatioMin(0.95)).met, Some(false));
        assert_eq!(row.clone().goal(Goal::ValueMax(8.0)).met, Some(false));
        assert_eq!(row.ratio(0.96).goal(Goal::RatioMax(0.95)).met, Some(false));
        assert_eq!(Row::of("a", 1.0).goal(Goal::RatioMax(1.0)).met, None);
    }

    #[test]
    fn a_stored_row_has_the_fields_that_readers_expect() {
        let folder = tempfile::tempdir().expect("a folder");
        let rows = [Row::of("x (us)", 1.5).beside("y", 3.0).goal(Goal::RatioMax(0.6))];
        let path = store(folder.path(), "test", &rows).expect("writes");
        let stored: serde_json::Value =
            serde_json::from_slice(&fs::read(path).expect("is there")).expect("is JSON");
        let expected = serde_json::json!([{
            "name": "x (us)", "kiln": 1.5, "peer": "y", "peer_value": 3.0, "ratio": 0.5, "goal": "<= 0.6 x", "met": true
        }]);
        assert_eq!(stored, expected);
    }

    #[test]
    fn the_table_lines_its_columns_up() {
        let text = table(&[Row::of("short", 1.0), Row::of("much longer", 12345.6).beside("z", 1.0)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("short         1.00"), "{text}");
        assert!(lines[2].starts_with("much longer  12346  z"), "{text}");
    }
}
