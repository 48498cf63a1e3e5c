//! Measures cold starts: from the decision to the first byte of a function's answer, image on the node.
//!
//! Compares the driver, with and without a prepared network sandbox, with `docker run` of the same image and the
//! same limits. Rounds are interleaved, so that a slow minute of the machine hits all alike.
//!
//! `cargo run -p kiln-agent --release --example cold_start [ROUNDS]`

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kiln_agent::container::docker::{DockerConfig, DockerDriver};
use kiln_agent::container::{Driver, StartStages, Transport};
use kiln_shared::ids::NodeId;

use support::{call, docker, image, plan, spec};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let rounds: usize =
        std::env::args().nth(1).map_or(Ok(30), |text| text.parse()).context("ROUNDS is a number")?;
    let image = image("function");
    let directory = tempfile::tempdir()?;
    let driver = async |name: &str, sandboxes: usize| {
        let config =
            DockerConfig::new(NodeId::new(format!("cold-start-{name}")), directory.path().join(name));
        DockerDriver::connect(DockerConfig { sandboxes, ..config }).await
    };
    let (pooled, plain) = (driver("pooled", 2).await?, driver("plain", 0).await?);

    let (mut with_sandbox, mut without, mut by_run) = (Vec::new(), Vec::new(), Vec::new());
    let mut stages = Vec::new();
    for round in 0..rounds {
        quiet("cold-start-pooled", 2).await;
        let (time, stage) = through(&pooled, &image).await?;
        with_sandbox.push(time);
        stages.push(stage);
        quiet("cold-start-pooled", 2).await;
        without.push(through(&plain, &image).await?.0);
        quiet("cold-start-plain", 0).await;
        by_run.push(docker_run(&image, &directory.path().join(format!("run-{round}"))).await?);
    }
    println!("cold start to the first byte, ms, {rounds} rounds      p50     p95     max");
    for (name, times) in [
        ("driver, sandbox ready", &mut with_sandbox),
        ("driver, no sandbox", &mut without),
        ("docker run", &mut by_run),
    ] {
        times.sort();
        println!("{name:<46} {:>7.1} {:>7.1} {:>7.1}", at(times, 50), at(times, 95), at(times, 100));
    }
    let median = |stage: fn(&StartStages) -> Duration| {
        let mut times: Vec<Duration> = stages.iter().map(stage).collect();
        times.sort();
        at(&times, 50)
    };
    println!(
        "stages with a sandbox, p50: create {:.1}, start {:.1}, init {:.1}",
        median(|stages| stages.create),
        median(|stages| stages.start),
        median(|stages| stages.init)
    );
    println!("ratio to docker run: {:.2}", at(&with_sandbox, 50) / at(&by_run, 50));
    pooled.close().await;
    plain.close().await;
    Ok(())
}

async fn through(driver: &DockerDriver, image: &str) -> anyhow::Result<(Duration, StartStages)> {
    let begun = Instant::now();
    let container = driver.start(plan(spec(image, "phony"), Transport::Socket)).await?;
    call(container.socket.as_deref().context("a socket")?, "hello").await?;
    Ok((begun.elapsed(), container.stages))
}

/// The command that a person would type, with the contract's limits.
async fn docker_run(image: &str, directory: &Path) -> anyhow::Result<Duration> {
    std::fs::create_dir(directory)?;
    Command::new("chmod").arg("0777").arg(directory).status()?;
    let socket = directory.join("lsnr.sock");
    let mount = format!("{}:/tmp/iofs", directory.display());
    let name = format!("cold-start-{}", kiln_shared::ids::Id::generate().as_str().to_ascii_lowercase());
    let begun = Instant::now();
    let mut run = Command::new("docker")
        .args(["run", "--rm", "--name", &name, "--init", "--user", "1000:1000", "--cap-drop", "ALL"])
        .args([
            "--security-opt",
            "no-new-privileges:true",
            "--read-only",
            "--tmpfs",
            "/tmp",
            "--pids-limit",
            "50",
        ])
        .args(["--memory", "64m", "--memory-swap", "64m", "--log-driver", "none", "-v", &mount, image])
        .stdin(Stdio::null())
        .spawn()?;
    while !socket.exists() {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    call(&socket, "hello").await?;
    let time = begun.elapsed();
    docker(&["kill", &name]);
    run.wait()?;
    Ok(time)
}

/// Waits until nothing but `sandboxes` containers of `node` is left, so that no clearing up is measured.
async fn quiet(node: &str, sandboxes: usize) {
    let filter = format!("label=kiln.node={node}");
    support::eventually("the engine is quiet", async || {
        let all = docker(&["ps", "-aq", "--filter", &filter]).lines().count();
        let running = docker(&["ps", "-q", "--filter", &filter]).lines().count();
        all == sandboxes && running == sandboxes
    })
    .await;
}

/// The value at `percent` of sorted `times`, in milliseconds.
fn at(times: &[Duration], percent: usize) -> f64 {
    times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1000.0
}
