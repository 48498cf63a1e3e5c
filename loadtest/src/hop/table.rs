//! What was found, for people and for programs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Case, Measured, Way};

/// The goal for small calls: CPU on both ends, encrypted, over that of pooled HTTP/1.1 on plain TCP.
const GOAL_RATIO: f64 = 0.5;
/// Calls in flight that the goal is for.
const GOAL_IN_FLIGHT: usize = 32;

/// A line for each measurement.
pub fn header() -> String {
    format!(
        "{:>6} {:>6} {:>8}  {:<16} {:>9} {:>8} {:>8} {:>8} {:>6} {:>9} {:>9}",
        "agents",
        "flight",
        "body B",
        "way",
        "calls/s",
        "client",
        "server",
        "both us",
        "ratio",
        "p50 us",
        "p99 us"
    )
}

/// One measurement; `base` is that of pooled HTTP/1.1 in the same case.
pub fn line(measured: &Measured, base: Option<&Measured>) -> String {
    let Case { agents, in_flight, body_bytes } = measured.case;
    let ratio = base.map_or(String::new(), |base| format!("{:.2}", measured.both_us() / base.both_us()));
    let line = format!(
        "{agents:>6} {in_flight:>6} {body_bytes:>8}  {:<16} {:>9.0} {:>8.2} {:>8.2} {:>8.2} {ratio:>6} {:>9.0} {:>9.0}  {}",
        measured.way.name(),
        measured.calls_per_second,
        measured.client_us,
        measured.server_us,
        measured.both_us(),
        measured.p50_us,
        measured.p99_us,
        measured.loss.as_deref().unwrap_or_default()
    );
    line.trim_end().to_owned()
}

/// What a measurement is compared with: that of the same case and round over pooled HTTP/1.1.
pub fn base<'a>(of: &Measured, all: &'a [Measured]) -> Option<&'a Measured> {
    if of.way == Way::Pooled {
        return None;
    }
    all.iter().rev().find(|other| other.way == Way::Pooled && other.case == of.case && other.loss == of.loss)
}

/// How own frames over TLS stand to the goal, a line for each case that it is for; the median over rounds.
pub fn verdict(all: &[Measured]) -> String {
    let mut text = String::new();
    for body_bytes in [0, 1024] {
        let case = Case { agents: 1, in_flight: GOAL_IN_FLIGHT, body_bytes };
        let of = |way| all.iter().filter(move |one| one.way == way && one.case == case && one.loss.is_none());
        let mut ratios: Vec<f64> = of(Way::MuxTls)
            .zip(of(Way::Pooled))
            .map(|(mux, pooled)| mux.both_us() / pooled.both_us())
            .collect();
        ratios.sort_by(f64::total_cmp);
        let Some(median) = ratios.get(ratios.len() / 2) else { continue };
        let word = if *median <= GOAL_RATIO { "met" } else { "MISSED" };
        let line = format!(
            "own frames over TLS, {GOAL_IN_FLIGHT} in flight, {body_bytes} B: {median:.2} x pooled HTTP/1.1 on plain TCP \
             (goal <= {GOAL_RATIO}, {} rounds): {word}",
            ratios.len()
        );
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// Writes all to `hop.json` in `folder`; returns the file's path.
///
/// # Errors
/// If it cannot be written.
pub fn store(folder: &Path, all: &[Measured]) -> Result<PathBuf> {
    let path = folder.join("hop.json");
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fs::write(&path, serde_json::to_vec_pretty(all)?).with_context(|| path.display().to_string())?;
    Ok(path)
}
