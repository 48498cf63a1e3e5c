//! How hard the machine's processors are pressed: the part of the time in which something that could run had to wait for one.
//!
//! Linux counts it: <https://docs.kernel.org/accounting/psi.html>. Where the kernel does not, the processors are never pressed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use tokio::time::Instant;

/// Where the kernel tells.
const FILE: &str = "/proc/pressure/cpu";
/// More of the file than its first line.
const LINE_BYTES_MAX: usize = 256;
/// Shortest time over which pressure is judged, and how often it is looked at.
pub(super) const WINDOW: Duration = Duration::from_millis(10);

/// Watches the processors of this machine.
#[derive(Debug)]
pub(super) struct Pressure {
    file: Option<File>,
    gauge: Gauge,
    /// Pressed is more than this, in percent of the time.
    percent_max: u8,
}

impl Pressure {
    /// Pressed is more than so many percent of the time; with 100, never.
    pub(super) fn new(percent_max: u8) -> Self {
        let file = match File::open(FILE) {
            _ if percent_max >= 100 => None,
            Ok(file) => Some(file),
            Err(error) => {
                tracing::info!(
                    %error,
                    "the kernel does not tell how hard processors are pressed ({FILE}): queued calls are not slowed by it"
                );
                None
            }
        };
        Self { file, gauge: Gauge::default(), percent_max }
    }

    /// True if processors are pressed. Looks at most once in a [`WINDOW`].
    pub(super) fn is_high(&mut self, now: Instant) -> bool {
        let Some(file) = &self.file else { return false };
        if self.gauge.is_due(now) {
            let mut line = [0; LINE_BYTES_MAX];
            let waited = file.read_at(&mut line, 0).ok().and_then(|bytes| waited(&line[..bytes]));
            let Some(waited) = waited else {
                tracing::warn!("{FILE} cannot be read any more: queued calls are not slowed by it");
                self.file = None;
                return false;
            };
            self.gauge.look(now, waited);
        }
        self.gauge.percent > f64::from(self.percent_max)
    }
}

/// The time in which something waited since the machine started, from the line `some avg10=0.00 ... total=1234` in
/// microseconds.
fn waited(text: &[u8]) -> Option<Duration> {
    let some = std::str::from_utf8(text).ok()?.lines().find(|line| line.starts_with("some "))?;
    let total = some.split(' ').find_map(|field| field.strip_prefix("total="))?;
    Some(Duration::from_micros(total.parse().ok()?))
}

/// From a time that grows to its part of the last window.
#[derive(Debug, Default)]
struct Gauge {
    last: Option<(Instant, Duration)>,
    percent: f64,
}

impl Gauge {
    fn is_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|(at, _)| now.saturating_duration_since(at) >= WINDOW)
    }

    fn look(&mut self, now: Instant, waited: Duration) {
        if let Some((at, before)) = self.last {
            let window = now.saturating_duration_since(at).max(WINDOW);
            self.percent = 100.0 * waited.saturating_sub(before).div_duration_f64(window);
        }
        self.last = Some((now, waited));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_understood() {
        let text = b"some avg10=0.01 avg60=5.08 avg300=26.70 total=23596787964\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(waited(text), Some(Duration::from_micros(23_596_787_964)));
        for other in [&b""[..], b"some avg10=1", b"full total=7", b"some total=x", b"\xff"] {
            assert_eq!(waited(other), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pressure_is_the_part_of_the_window_in_which_something_waited() {
        let (start, mut gauge) = (Instant::now(), Gauge::default());
        gauge.look(start, Duration::from_hours(1));
        assert!(gauge.percent.abs() < f64::EPSILON, "one look tells nothing");
        assert!(!gauge.is_due(start + WINDOW / 2) && gauge.is_due(start + WINDOW));
        gauge.look(start + WINDOW, Duration::from_hours(1) + WINDOW / 4);
        assert!((gauge.percent - 25.0).abs() < 1e-6, "{}", gauge.percent);
        gauge.look(start + 11 * WINDOW, Duration::from_hours(1) + WINDOW / 4);
        assert!(gauge.percent.abs() < f64::EPSILON, "it is over");
    }

    #[tokio::test]
    async fn with_a_limit_of_the_whole_time_nothing_is_ever_pressed() {
        let mut pressure = Pressure::new(100);
        assert!(pressure.file.is_none() && !pressure.is_high(Instant::now()));
    }
}
