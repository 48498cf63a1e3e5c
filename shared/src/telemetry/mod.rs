//! Logs and metrics set-up, once per process.

mod relay;

use std::io::IsTerminal as _;
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::relay::Relay;
pub use self::relay::{LogLine, relay_logs};

/// How the process's own log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level or filter is none.
    #[error(
        "bad log level {level:?}; use error, warn, info, debug or trace, or a filter such as info,kiln_agent=debug"
    )]
    Level {
        /// As given.
        level: String,
    },
    /// A recorder or logger is installed already.
    #[error("telemetry is set up twice in one process")]
    Twice,
    /// The recorder cannot be built.
    #[error("the metrics recorder cannot be built")]
    Metrics(#[from] BuildError),
}

/// What says in many lines at each attempt what Kiln says once; a level that names it itself is heard.
const QUIET: &str = "rskafka=off";

/// Sends the process's log to standard error, with colours if that is a terminal and `NO_COLOR` is not set.
///
/// # Errors
/// A bad level, or a second call in one process.
pub fn start_logs(format: LogFormat, level: &str) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(format!("{QUIET},{level}"))
        .map_err(|_| TelemetryError::Level { level: level.to_owned() })?;
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_target(false).finish().with(Relay).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().with(Relay).try_init(),
    };
    started.map_err(|_| TelemetryError::Twice)
}

/// Bounds of the duration histograms in seconds: 50 us to 5 minutes.
const DURATION_BUCKETS_SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Installs the metrics recorder. Its text is what `/metrics` answers.
///
/// # Errors
/// A second call in one process.
pub fn start_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".to_owned()), DURATION_BUCKETS_SECONDS)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| TelemetryError::Twice)?;
    Ok(handle)
}

/// How often the histograms are folded when nobody scrapes them.
const UPKEEP: Duration = Duration::from_secs(5);

/// Keeps the histograms bounded between scrapes, until the task is aborted. Needs a runtime.
pub fn keep_up(metrics: PrometheusHandle) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(UPKEEP);
        loop {
            tick.tick().await;
            metrics.run_upkeep();
        }
    })
}

pub use metrics_exporter_prometheus::PrometheusHandle as MetricsHandle;
