//! Changes of the identity's file while a program runs.

use std::fs;
use std::io;
use std::sync::{Arc, Mutex};

use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::identity::{Fingerprint, IDENTITY_FILE, IdentityError, Reload, WATCH_INTERVAL, certificate};

/// A log that is kept.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn capture(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + 4 * WATCH_INTERVAL;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_file_that_is_not_fit_is_refused_and_the_old_identity_stays() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let credentials = fleet.agent("n1");
    let (path, used) = (fleet.path("n1").join(IDENTITY_FILE), credentials.current().fingerprint());
    let good = fs::read_to_string(&path).unwrap();
    fleet.balancer("lb1");
    other.agent("n1");
    let balancers = fs::read_to_string(fleet.path("lb1").join(IDENTITY_FILE)).unwrap();
    let mixed = format!("{good}{}", fs::read_to_string(other.path("n1").join(IDENTITY_FILE)).unwrap());
    for bad in ["", "nonsense", &good[..good.len() / 2], &balancers, &mixed] {
        fs::write(&path, bad).unwrap();
        assert!(matches!(credentials.reload(now()), Err(IdentityError::Bad { .. })), "{bad}");
        assert_eq!(credentials.current().fingerprint(), used);
    }
    fs::remove_file(&path).unwrap();
    assert!(matches!(credentials.reload(now()), Err(IdentityError::Missing { .. })));
    assert_eq!(credentials.current().fingerprint(), used);
    fs::write(&path, "").unwrap();
    fleet.issue(Role::Agent, "n1").save(&fleet.path("n1")).unwrap();
    assert_eq!(credentials.reload(now()).unwrap(), Reload::Changed);
    assert_eq!(credentials.reload(now()).unwrap(), Reload::Same);
    assert_ne!(credentials.current().fingerprint(), used);
}

#[tokio::test(start_paused = true)]
async fn a_watched_file_is_taken_into_use_and_a_bad_one_is_logged_once() {
    let log = Log::default();
    let _capture = log.capture();
    let fleet = Fleet::new();
    let credentials = fleet.agent("n1");
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    tasks.spawn(credentials.clone().watch(stop.clone()));
    let using = |fingerprint: Fingerprint| credentials.current().fingerprint() == fingerprint;

    let renewed = fleet.issue(Role::Agent, "n1");
    renewed.save(&fleet.path("n1")).unwrap();
    until("a renewal", || using(renewed.fingerprint())).await;

    let path = fleet.path("n1").join(IDENTITY_FILE);
    let key = fs::read_to_string(&path).unwrap().lines().nth(1).unwrap().to_owned();
    let warnings = || log.lines().iter().filter(|line| line.contains("WARN")).count();
    fs::write(&path, format!("-----BEGIN PRIVATE KEY-----\n{key}\n")).unwrap();
    until("a refusal", || warnings() == 1).await;
    sleep(10 * WATCH_INTERVAL).await;
    assert_eq!(warnings(), 1, "{:?}", log.lines());
    assert!(using(renewed.fingerprint()));
    let said = log.lines().join("\n");
    assert!(said.contains(&path.display().to_string()) && said.contains("holds no private key"), "{said}");
    assert!(!said.contains(&key), "{said}");

    let repaired = fleet.issue(Role::Agent, "n1");
    repaired.save(&fleet.path("n1")).unwrap();
    until("a repair", || using(repaired.fingerprint())).await;
    fs::write(&path, "").unwrap();
    until("a second refusal", || warnings() == 2).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

#[test]
fn the_metrics_tell_when_the_certificate_in_use_ends() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        let fleet = Fleet::new();
        let credentials = fleet.agent("n1");
        for hours in [1, 2] {
            let peer = Peer::new(Role::Agent, "n1").unwrap();
            credentials.install(fleet.ca.issue(&peer, hours * HOUR, now()).unwrap()).unwrap();
            let ends = certificate::unix_seconds(credentials.current().validity().not_after);
            let line = format!("kiln_identity_expiry_timestamp_seconds{{role=\"agent\"}} {ends}");
            assert!(metrics.render().contains(&line), "{}", metrics.render());
            assert!(credentials.expires_in(now()) > (hours - 1) * HOUR);
        }
    });
}
