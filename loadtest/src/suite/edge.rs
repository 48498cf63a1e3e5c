//! The edge beside HAProxy, nginx and Pingora, one at a time, in front of one stand-in server that answers at once.
//!
//! The proxy has core 0 to itself; load generator and stand-in share core 1 (or run anywhere on one core). All get
//! the same request bytes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Bench;
use crate::agent::InstantAgent;
use crate::cost::{self, CpuMeter};
use crate::http::Target;
use crate::kiln::{self, Kiln};
use crate::load::{many_callers, median, one_caller};
use crate::process::{Server, free_port};
use crate::report::{Goal, Row};
use crate::stand_in::StandIn;

const CONNECTIONS: usize = 64;
const PROXY_CORE: usize = 0;
const LOAD_CORE: usize = 1;

/// A proxy under load: its name, process and address.
struct Proxy {
    name: &'static str,
    pid: u32,
    target: Target,
}

/// What one round found of one proxy.
#[derive(Debug, Clone, Copy)]
struct Sample {
    cpu_us: f64,
    rate: f64,
    p50_us: f64,
    p99_us: f64,
    alone_p50_us: f64,
}

/// Runs it.
///
/// # Errors
/// If a proxy is missing, does not start, or answers anything but 200.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let cores_apart = cost::cores() > LOAD_CORE;
    let load_core = cores_apart.then_some(LOAD_CORE);
    let stand_in = StandIn::start(load_core)?;

    let edge = Kiln::edge(&bench.binaries, &bench.folder, Some(PROXY_CORE))?;
    let _agent =
        InstantAgent::start(&kiln::ca_folder(&bench.folder), &bench.folder, edge.link()?, load_core)?;
    let app = edge.create_app("bench")?;
    let request = kiln::call(&edge.create_function(&app, "echo", "example/none:1")?);
    edge.wait_for_node(&request)?;
    let haproxy = start_haproxy(&bench.folder, stand_in.port())?;
    let nginx = start_nginx(&bench.folder, stand_in.port())?;
    let pingora = start_pingora(bench, stand_in.port())?;

    let proxies = [
        Proxy { name: "kiln-lb", pid: edge.pids()[0], target: edge.target.clone() },
        Proxy { name: "HAProxy", pid: haproxy.0.pid(), target: haproxy.1.clone() },
        Proxy { name: "nginx", pid: nginx.0.pid(), target: nginx.1.clone() },
        Proxy { name: "Pingora", pid: pingora.0.pid(), target: pingora.1.clone() },
    ];
    // The generator gets its core in a thread of its own, so that this one stays as it is.
    let samples = thread::scope(|scope| {
        scope
            .spawn(|| -> Result<Vec<Vec<Sample>>> {
                load_core.map_or(Ok(()), cost::pin_to_core)?;
                for proxy in &proxies {
                    measure(proxy, &request, Duration::from_millis(500)).with_context(|| proxy.name)?;
                }
                (0..bench.rounds)
                    .map(|_| {
                        proxies
                            .iter()
                            .map(|proxy| measure(proxy, &request, bench.duration).with_context(|| proxy.name))
                            .collect()
                    })
                    .collect()
            })
            .join()
            .expect("measuring does not panic")
    })?;

    let mut rows = Vec::new();
    for (peer, proxy) in proxies.iter().enumerate().skip(1) {
        let cpu = compare(&samples, peer, "CPU per request (us)", proxy.name, |sample| sample.cpu_us);
        rows.push(match proxy.name {
            "HAProxy" => cpu.goal(Goal::RatioMax(0.95)),
            "Pingora" => cpu.goal(Goal::RatioMax(0.6)),
            _ => cpu,
        });
        rows.push(compare(&samples, peer, "requests per second", proxy.name, |sample| sample.rate));
        rows.push(compare(&samples, peer, "p50 (us)", proxy.name, |sample| sample.p50_us));
        rows.push(compare(&samples, peer, "p99 (us)", proxy.name, |sample| sample.p99_us));
        rows.push(compare(&samples, peer, "p50, 1 connection (us)", proxy.name, |sample| {
            sample.alone_p50_us
        }));
    }
    Ok(rows)
}

fn measure(proxy: &Proxy, request: &[u8], duration: Duration) -> Result<Sample> {
    let alone = one_caller(&proxy.target, request, duration / 4)?;
    let meter = CpuMeter::start(&[proxy.pid]);
    let load = many_callers(&proxy.target, request, CONNECTIONS, duration)?;
    let cpu = meter.used();
    Ok(Sample {
        cpu_us: cpu.as_secs_f64() * 1e6 / load.answers() as f64,
        rate: load.rate(),
        p50_us: load.percentile_us(0.5),
        p99_us: load.percentile_us(0.99),
        alone_p50_us: alone.percentile_us(0.5),
    })
}

/// A row of medians over the rounds, with the median of the rounds' ratios.
fn compare(samples: &[Vec<Sample>], peer: usize, what: &str, name: &str, value: fn(&Sample) -> f64) -> Row {
    let of = |index: usize| samples.iter().map(|round| value(&round[index])).collect::<Vec<_>>();
    let ratios: Vec<f64> = samples.iter().map(|round| value(&round[0]) / value(&round[peer])).collect();
    let row_name = format!("edge, {CONNECTIONS} connections: {what}");
    let row_name = if what.contains("1 connection") { format!("edge: {what}") } else { row_name };
    Row::of(row_name, median(&of(0))).beside(name, median(&of(peer))).ratio(median(&ratios))
}

fn start_haproxy(folder: &Path, backend: u16) -> Result<(Server, Target)> {
    let port = free_port()?;
    let config = folder.join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "global\n    nbthread 1\n    maxconn 4096\n\
             defaults\n    mode http\n    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n\
             \x20   option http-keep-alive\n    http-reuse always\n\
             frontend in\n    bind 127.0.0.1:{port}\n    default_backend out\n\
             backend out\n    server s 127.0.0.1:{backend}\n"
        ),
    )?;
    let mut command = Command::new("haproxy");
    command.env("PATH", system_path()).args(["-db", "-f"]).arg(config);
    let mut server = Server::start("haproxy", command, Some(PROXY_CORE), folder)?;
    let target = Target::loopback(port);
    server.wait_until_ready(&target)?;
    Ok((server, target))
}

/// nginx as one process: its CPU clock is all of it.
fn start_nginx(folder: &Path, backend: u16) -> Result<(Server, Target)> {
    let port = free_port()?;
    let config = folder.join("nginx.conf");
    fs::write(
        &config,
        format!(
            "worker_processes 1;\ndaemon off;\nmaster_process off;\npid {0}/nginx.pid;\nerror_log {0}/nginx-error.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n  access_log off;\n  keepalive_requests 1000000000;\n\
             \x20 client_body_temp_path {0}/nginx-body;\n  proxy_temp_path {0}/nginx-proxy;\n\
             \x20 fastcgi_temp_path {0}/nginx-f;\n  uwsgi_temp_path {0}/nginx-u;\n  scgi_temp_path {0}/nginx-s;\n\
             \x20 upstream out {{ server 127.0.0.1:{backend}; keepalive 128; keepalive_requests 1000000000; }}\n\
             \x20 server {{\n    listen 127.0.0.1:{port};\n    location / {{\n      proxy_pass http://out;\n\
             \x20     proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n    }}\n  }}\n}}\n",
            folder.display()
        ),
    )?;
    let mut command = Command::new("nginx");
    command.env("PATH", system_path()).args(["-p"]).arg(folder).arg("-c").arg(config);
    let mut server = Server::start("nginx", command, Some(PROXY_CORE), folder)?;
    let target = Target::loopback(port);
    server.wait_until_ready(&target)?;
    Ok((server, target))
}

fn start_pingora(bench: &Bench, backend: u16) -> Result<(Server, Target)> {
    ensure!(bench.pingora.exists(), "{} is missing; build it with: make bench", bench.pingora.display());
    let port = free_port()?;
    let mut command = Command::new(&bench.pingora);
    command.args([format!("127.0.0.1:{port}"), format!("127.0.0.1:{backend}")]);
    let mut server = Server::start("pingora", command, Some(PROXY_CORE), &bench.folder)?;
    let target = Target::loopback(port);
    server.wait_until_ready(&target)?;
    Ok((server, target))
}

/// PATH with the system's folders, where Debian keeps both proxies.
fn system_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
