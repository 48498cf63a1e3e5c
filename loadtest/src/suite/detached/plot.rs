//! The fairness experiment as a picture: how long others waited, and how deep the burst's queue was, over time.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::load::percentile;

const SIZE: (u32, u32) = (900, 560);
/// Waits are drawn as the 50th and 99th percentile of so long, in seconds.
const BIN_S: f64 = 1.0;
const P50: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const P99: RGBColor = RGBColor(0xd6, 0x27, 0x28);
const DEPTH: RGBColor = RGBColor(0x55, 0x55, 0x55);

/// One round of the experiment. Times are seconds since its begin.
#[derive(Debug)]
pub(super) struct Round {
    /// Waits of others while there was no burst, in milliseconds.
    pub(super) alone: Vec<f64>,
    /// Waits of others from the burst's first message until its last had ended, in milliseconds.
    pub(super) during: Vec<f64>,
    /// Of these, the ones of calls that were sent when all of the burst had been accepted.
    pub(super) draining: Vec<f64>,
    /// Of the first, the time until they were accepted.
    pub(super) accepting_alone: Vec<f64>,
    /// Of those during the burst, the time until they were accepted.
    pub(super) accepting_during: Vec<f64>,
    /// All waits, by when the call was sent.
    pub(super) waits: Vec<(f64, f64)>,
    /// Messages of the burst that waited, and when.
    pub(super) depths: Vec<(f64, u64)>,
    /// When the burst began.
    pub(super) began_s: f64,
    /// How long it took until all of it was accepted.
    pub(super) accepted_s: f64,
    /// How long it took until all of it had ended.
    pub(super) drained_s: f64,
}

impl Round {
    /// A percentile of the waits during the burst over the same without it.
    pub(super) fn ratio(&self, share: f64) -> f64 {
        percentile(&self.during, share) / percentile(&self.alone, share)
    }

    /// The same while the burst was only drained.
    pub(super) fn draining_ratio(&self, share: f64) -> f64 {
        percentile(&self.draining, share) / percentile(&self.alone, share)
    }

    /// A percentile of the waits in each piece of time, at its middle.
    fn binned(&self, share: f64) -> Vec<(f64, f64)> {
        let mut bins: Vec<Vec<f64>> = Vec::new();
        for (second, ms) in &self.waits {
            let bin = (second / BIN_S).max(0.0) as usize;
            if bins.len() <= bin {
                bins.resize(bin + 1, Vec::new());
            }
            bins[bin].push(*ms);
        }
        let middle = |bin: usize| (bin as f64 + 0.5) * BIN_S;
        let value = |(bin, waits): (usize, &Vec<f64>)| {
            (!waits.is_empty()).then(|| (middle(bin), percentile(waits, share)))
        };
        bins.iter().enumerate().filter_map(value).collect()
    }
}

/// Draws a round as `async.svg` in `folder` and returns the file's path.
///
/// # Errors
/// If it cannot be written.
pub(super) fn draw(folder: &Path, round: &Round) -> Result<PathBuf> {
    let path = folder.join("async.svg");
    {
        let area = SVGBackend::new(&path, SIZE).into_drawing_area();
        draw_on(&area, round).map_err(|error| anyhow!("{error}"))?;
        area.present().with_context(|| path.display().to_string())?;
    }
    Ok(path)
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw_on(area: &DrawingArea<SVGBackend<'_>, Shift>, round: &Round) -> Drawn {
    area.fill(&WHITE)?;
    let (above, below) = area.split_vertically(SIZE.1 * 3 / 5);
    let end = round.waits.iter().map(|(second, _)| *second).fold(0.0, f64::max);
    let (p50, p99) = (round.binned(0.5), round.binned(0.99));
    let highest = p99.iter().map(|(_, ms)| *ms).fold(0.0, f64::max) * 1.1;
    let during = round.began_s..round.began_s + round.drained_s;

    let mut chart = ChartBuilder::on(&above)
        .caption("Calls of others: from enqueue to start, per second", ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..end, 0.0..highest)?;
    chart.configure_mesh().light_line_style(TRANSPARENT).y_desc("ms").draw()?;
    chart.draw_series([Rectangle::new(
        [(during.start, 0.0), (during.end, highest)],
        BLACK.mix(0.06).filled(),
    )])?;
    for (name, line, colour) in [("p50", p50, P50), ("p99", p99, P99)] {
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().border_style(BLACK.mix(0.3)).background_style(WHITE).draw()?;

    let deepest = round.depths.iter().map(|(_, waiting)| *waiting).max().unwrap_or(1).max(1) as f64 * 1.1;
    let mut chart = ChartBuilder::on(&below)
        .caption("Messages of the burst that wait (grey: from its first to its last)", ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..end, 0.0..deepest)?;
    chart.configure_mesh().light_line_style(TRANSPARENT).x_desc("seconds").draw()?;
    chart.draw_series([Rectangle::new(
        [(during.start, 0.0), (during.end, deepest)],
        BLACK.mix(0.06).filled(),
    )])?;
    let depths = round.depths.iter().map(|(second, waiting)| (*second, *waiting as f64));
    chart.draw_series(LineSeries::new(depths, DEPTH.stroke_width(2)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round() -> Round {
        Round {
            alone: vec![1.0, 2.0, 3.0],
            during: vec![2.0, 4.0, 6.0],
            draining: vec![2.0, 2.0, 3.0],
            accepting_alone: vec![1.0],
            accepting_during: vec![1.0],
            waits: vec![(0.1, 1.0), (0.2, 3.0), (2.5, 8.0)],
            depths: vec![(1.0, 10), (2.0, 90), (3.0, 0)],
            began_s: 1.0,
            accepted_s: 1.0,
            drained_s: 2.0,
        }
    }

    #[test]
    fn waits_are_put_together_by_the_second_and_seconds_without_any_are_left_out() {
        assert_eq!(round().binned(0.5), [(0.5, 2.0), (2.5, 8.0)]);
        assert!((round().ratio(0.5) - 2.0).abs() < 1e-9);
        assert!((round().draining_ratio(0.5) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_picture_is_a_small_file_that_names_what_it_shows() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = draw(folder.path(), &round()).expect("draws");
        let text = std::fs::read_to_string(path).expect("is there");
        assert!(text.contains("from enqueue to start") && text.contains("p99") && text.len() < 30_000);
    }
}
