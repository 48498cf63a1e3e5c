//! The process's own log on its way to somebody else besides standard error.

use std::fmt::{self, Write as _};
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::TelemetryError;

/// A line of the log.
#[derive(Debug, Clone, Copy)]
pub struct LogLine<'a> {
    /// Info or graver.
    pub level: &'a Level,
    /// The module that says it.
    pub target: &'a str,
    /// The sentence, then its fields as `name=value`.
    pub text: &'a str,
}

type To = Box<dyn Fn(&LogLine<'_>) + Send + Sync>;

static TO: OnceLock<To> = OnceLock::new();

/// Hands what the process logs from now on, of level info or graver and not filtered out, to somebody else as well. It is
/// called where something is logged, so it must neither wait nor log.
///
/// # Errors
/// Somebody has it already.
pub fn relay_logs(to: impl Fn(&LogLine<'_>) + Send + Sync + 'static) -> Result<(), TelemetryError> {
    TO.set(Box::new(to)).map_err(|_| TelemetryError::Twice)
}

/// Part of the process's subscriber; does nothing until [`relay_logs`].
pub(super) struct Relay;

impl<S: Subscriber> Layer<S> for Relay {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let Some(to) = TO.get() else { return };
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let Text { sentence, fields } = text;
        let text = sentence + &fields;
        to(&LogLine { level: metadata.level(), target: metadata.target(), text: &text });
    }
}

#[derive(Default)]
struct Text {
    sentence: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.sentence, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
        written.expect("a string takes everything");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn lines_from_info_on_are_told_with_their_fields() {
        static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
        relay_logs(|line| {
            TOLD.lock().expect("unpoisoned").push(format!("{} {} {}", line.level, line.target, line.text));
        })
        .expect("is the first");
        assert!(relay_logs(|_| {}).is_err());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Relay), || {
            tracing::info!(target: "here", count = 2, name = %"x", "it is told");
            tracing::debug!(target: "here", "it is not");
        });
        assert_eq!(*TOLD.lock().expect("unpoisoned"), ["INFO here it is told count=2 name=x"]);
    }
}
