//! How the fleet is watched and scaled: the options of `kiln-lb` that one node alone has no use for.

#![allow(clippy::doc_markdown, reason = "documentation of options is the help text that people read")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aws_lc_rs::hmac;
use clap::{Args, ValueEnum};
use reqwest::Url;

use crate::fleet::scale_news::{NewsPolicy, ScaleIn};
use crate::fleet::{EjectionPolicy, FleetConfig, ScalePolicy, WaitingLimits};
use crate::scale_hook::HookConfig;

/// A number that was told and is still not there is told again after so long.
const REPEAT_AFTER: Duration = Duration::from_mins(5);
/// Shortest secret, in bytes: half of what SHA-256 gives.
const SECRET_BYTES_MIN: usize = 16;

/// How nodes are judged, how many calls wait for them, and how many there should be.
#[derive(Debug, Clone, Args)]
pub struct FleetArgs {
    /// Where this balancer stands: among nodes that are equally good for a call, one of its own zone is chosen [default:
    /// no zone is preferred]
    #[arg(long, env = "KILN_ZONE", value_name = "NAME")]
    pub zone: Option<String>,
    /// Eject a node (give it no calls for a while) that lost so many calls one after the other; 0: never for that
    #[arg(
        long,
        env = "KILN_EJECT_LOST_CALLS",
        value_name = "CALLS",
        default_value_t = 5,
        help_heading = "Nodes"
    )]
    pub eject_lost_calls: u32,
    /// Eject a node that lost more than this share of its calls within 10 s, of 20 at least; 1: never for that
    #[arg(long, env = "KILN_EJECT_LOST_SHARE", value_name = "SHARE", default_value_t = 0.5, value_parser = share, help_heading = "Nodes")]
    pub eject_lost_share: f64,
    /// Length of a node's first ejection in seconds; the second is twice as long, the third three times
    #[arg(long, env = "KILN_EJECT_SECONDS", value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400), help_heading = "Nodes")]
    pub eject_seconds: u64,
    /// Length of the longest ejection in seconds
    #[arg(long, env = "KILN_EJECT_SECONDS_MAX", value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400), help_heading = "Nodes")]
    pub eject_seconds_max: u64,
    /// Largest share of the nodes that are up that may be ejected at a time; of two or more one always may be
    #[arg(long, env = "KILN_EJECT_SHARE_MAX", value_name = "SHARE", default_value_t = 0.3, value_parser = share, help_heading = "Nodes")]
    pub eject_share_max: f64,
    /// Seconds over which a node without containers that is new, or was down or ejected, gets its full share of calls; 0: at
    /// once
    #[arg(long, env = "KILN_SLOW_START_SECONDS", value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=86_400), help_heading = "Nodes")]
    pub slow_start_seconds: u64,
    /// Most calls that wait at this balancer for a place on a node; further ones get 503. How long: --wait-seconds
    #[arg(
        long,
        env = "KILN_WAITING_CALLS_MAX",
        value_name = "CALLS",
        default_value_t = 16_384,
        help_heading = "Nodes"
    )]
    pub waiting_calls_max: usize,
    /// Most calls of one function that wait
    #[arg(
        long,
        env = "KILN_WAITING_CALLS_PER_FUNCTION_MAX",
        value_name = "CALLS",
        default_value_t = 4096,
        help_heading = "Nodes"
    )]
    pub waiting_calls_per_function_max: usize,
    /// How many nodes there should be
    #[command(flatten)]
    pub scale: ScaleArgs,
}

/// How many nodes there should be, and who is told.
#[derive(Debug, Clone, Args)]
#[command(
    next_help_heading = "How many nodes there should be (kiln_nodes_wanted in /metrics, and the webhook)"
)]
pub struct ScaleArgs {
    /// Fewest nodes that are wanted
    #[arg(long, env = "KILN_NODES_MIN", value_name = "NODES", default_value_t = 1)]
    pub nodes_min: usize,
    /// Most nodes that are wanted
    #[arg(long, env = "KILN_NODES_MAX", value_name = "NODES", default_value_t = 1000)]
    pub nodes_max: usize,
    /// Share of the fleet's memory, and of the calls that its cores can run, that should be in use
    #[arg(long, env = "KILN_SCALE_TARGET", value_name = "SHARE", default_value_t = 0.7, value_parser = share)]
    pub scale_target: f64,
    /// Seconds for which the growth of what is used is continued: about what it takes a new node to come up
    #[arg(long, env = "KILN_SCALE_LOOK_AHEAD_SECONDS", value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(..=3600))]
    pub scale_look_ahead_seconds: u64,
    /// The webhook is told of more nodes when they have been wanted for so many seconds
    #[arg(long, env = "KILN_SCALE_UP_SECONDS", value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub scale_up_seconds: u64,
    /// Fewer nodes are wanted when they have been enough for so many seconds
    #[arg(long, env = "KILN_SCALE_DOWN_SECONDS", value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub scale_down_seconds: u64,
    /// Gets a POST with JSON when another number of nodes is wanted, and when a node that was to go is empty; http or https.
    /// Of several balancers on one database one tells
    #[arg(long, env = "KILN_SCALE_WEBHOOK_URL", value_name = "URL", hide_env_values = true)]
    pub scale_webhook_url: Option<Url>,
    /// File with a secret of 16 bytes or more that the receiver knows too: the POST has its HMAC-SHA256 of the body in the
    /// header Kiln-Signature, as sha256=HEX [default: nothing is signed]
    #[arg(long, env = "KILN_SCALE_WEBHOOK_SECRET_FILE", value_name = "FILE", requires = "scale_webhook_url")]
    pub scale_webhook_secret_file: Option<PathBuf>,
    /// What happens to the node that costs least when fewer are wanted: name tells the webhook which it is, drain drains it
    /// too; both tell when it is empty
    #[arg(
        long,
        env = "KILN_SCALE_IN",
        value_name = "HOW",
        default_value = "name",
        requires = "scale_webhook_url"
    )]
    pub scale_in: ScaleInChoice,
}

/// What happens to a node that is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScaleInChoice {
    /// The webhook is told which it is.
    Name,
    /// It is drained too.
    Drain,
}

/// The options, checked.
#[derive(Debug, Clone, Default)]
pub struct FleetSettings {
    /// How the fleet is watched.
    pub config: FleetConfig,
    /// Who is told how many nodes there should be.
    pub hook: Option<HookConfig>,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("expected a number above 0 and up to 1".to_owned()),
    }
}

impl FleetArgs {
    /// Checks what one option alone cannot say, and reads the webhook's secret.
    ///
    /// # Errors
    /// What is wrong, with the option's name.
    pub fn settings(&self) -> Result<FleetSettings> {
        let scale = &self.scale;
        ensure!(
            scale.nodes_min <= scale.nodes_max,
            "--nodes-min {} is more than --nodes-max {}",
            scale.nodes_min,
            scale.nodes_max
        );
        let config = FleetConfig {
            ejection: EjectionPolicy {
                consecutive_lost_max: self.eject_lost_calls,
                lost_share_max: self.eject_lost_share,
                base: Duration::from_secs(self.eject_seconds),
                longest: Duration::from_secs(self.eject_seconds_max.max(self.eject_seconds)),
                fleet_share_max: self.eject_share_max,
                ..EjectionPolicy::default()
            },
            slow_start: Duration::from_secs(self.slow_start_seconds),
            zone: self.zone.as_deref().map(Into::into),
            waiting: WaitingLimits {
                calls_max: self.waiting_calls_max,
                calls_per_function_max: self.waiting_calls_per_function_max,
            },
            scale: ScalePolicy {
                nodes_min: scale.nodes_min,
                nodes_max: scale.nodes_max,
                utilisation_target: scale.scale_target,
                down_after: Duration::from_secs(scale.scale_down_seconds),
                look_ahead: Duration::from_secs(scale.scale_look_ahead_seconds),
                ..ScalePolicy::default()
            },
            ..FleetConfig::default()
        };
        Ok(FleetSettings { config, hook: scale.hook()? })
    }
}

impl ScaleArgs {
    fn hook(&self) -> Result<Option<HookConfig>> {
        let Some(url) = &self.scale_webhook_url else { return Ok(None) };
        if !matches!(url.scheme(), "http" | "https") {
            bail!("--scale-webhook-url must begin with http:// or https://");
        }
        let secret = self.scale_webhook_secret_file.as_deref().map(secret).transpose()?;
        let news = NewsPolicy {
            up_after: Duration::from_secs(self.scale_up_seconds),
            down_after: Duration::from_secs(self.scale_down_seconds),
            repeat_after: REPEAT_AFTER,
            scale_in: match self.scale_in {
                ScaleInChoice::Name => ScaleIn::Name,
                ScaleInChoice::Drain => ScaleIn::Drain,
            },
        };
        Ok(Some(HookConfig { url: url.clone(), secret, news }))
    }
}

/// The secret in a file, without white space around it.
fn secret(path: &Path) -> Result<hmac::Key> {
    let bytes =
        fs::read(path).with_context(|| format!("cannot read the webhook's secret in {}", path.display()))?;
    let secret = bytes.trim_ascii();
    ensure!(
        secret.len() >= SECRET_BYTES_MIN,
        "the webhook's secret in {} has {} bytes; make one of at least {SECRET_BYTES_MIN}, as with `openssl rand -hex 32`",
        path.display(),
        secret.len()
    );
    Ok(hmac::Key::new(hmac::HMAC_SHA256, secret))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        fleet: FleetArgs,
    }

    fn settings(arguments: &str) -> Result<FleetSettings> {
        let words = std::iter::once("kiln-lb").chain(arguments.split_whitespace());
        Program::try_parse_from(words)?.fleet.settings()
    }

    #[test]
    fn without_options_the_fleet_is_watched_by_the_defaults() {
        let settings = settings("").unwrap();
        assert_eq!(settings.config, FleetConfig::default());
        assert!(settings.hook.is_none());
    }

    #[test]
    fn options_reach_the_policies() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        fs::write(&file, "0123456789abcdef\n").unwrap();
        let settings = settings(&format!(
            "--zone b --eject-lost-calls 9 --eject-share-max 0.5 --slow-start-seconds 0 --waiting-calls-max 7 \
             --nodes-max 12 --scale-webhook-url https://a.example/scale --scale-in drain --scale-webhook-secret-file {}",
            file.display()
        ))
        .unwrap();
        let config = &settings.config;
        assert_eq!((config.zone.as_deref(), config.slow_start), (Some("b"), Duration::ZERO));
        assert_eq!((config.ejection.consecutive_lost_max, config.ejection.fleet_share_max), (9, 0.5));
        assert_eq!((config.waiting.calls_max, config.scale.nodes_max), (7, 12));
        let hook = settings.hook.unwrap();
        assert_eq!((hook.url.as_str(), hook.news.scale_in), ("https://a.example/scale", ScaleIn::Drain));
        assert!(hook.secret.is_some());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        fs::write(&file, "short\n").unwrap();
        let secret = format!("--scale-webhook-url http://a/ --scale-webhook-secret-file {}", file.display());
        for (arguments, words) in [
            ("--nodes-min 3 --nodes-max 2", "--nodes-min 3 is more than --nodes-max 2"),
            ("--scale-target 1.1", "above 0 and up to 1"),
            ("--scale-target NaN", "above 0 and up to 1"),
            ("--scale-webhook-url ftp://a/", "http:// or https://"),
            ("--scale-in drain", "--scale-webhook-url"),
            ("--eject-seconds 0", "--eject-seconds"),
            (&secret, "has 5 bytes"),
        ] {
            let error = settings(arguments).unwrap_err().to_string();
            assert!(error.contains(words), "{arguments}: {error}");
        }
    }
}
