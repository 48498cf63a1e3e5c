//! What a call record costs: CPU time of the whole process per record, sent at a steady rate through the sink and
//! the writer into a database on disk, with retention at work.
//!
//! `cargo run --release -p kiln-api --example record_cost [records per second] [seconds] [log bytes per call] [functions]`

use std::time::{Duration, Instant};

use kiln_api::{Catalog, RecordWriter, Retention};
use kiln_shared::ids::{AppId, CallId, FunctionId, NodeId};
use kiln_shared::record::{CallRecord, CallStatus, LogChunk, Record, RecordSink};
use kiln_shared::story::{NodeTimes, Placement, Reason, Story};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often the sender sends what is due.
const TICK: Duration = Duration::from_millis(20);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let rate = numbers.next().transpose()?.unwrap_or(20_000);
    let seconds = numbers.next().transpose()?.unwrap_or(15);
    let log_bytes = numbers.next().transpose()?.unwrap_or(0);
    let functions = numbers.next().transpose()?.unwrap_or(20);
    let home = tempfile::tempdir()?;
    let catalog = Catalog::open(&format!("sqlite://{}", home.path().join("cost.db").display())).await?;
    let (sink, records) = RecordSink::bounded(8192);
    let stop = CancellationToken::new();
    let mut writers = JoinSet::new();
    writers.spawn(RecordWriter::new(catalog.clone(), Retention::default()).0.run(records, stop.clone()));
    let functions: Vec<FunctionId> = (0..functions).map(|_| FunctionId::generate()).collect();
    let text = "x".repeat(log_bytes as usize);
    let (begin, cpu_begin, mut sent) = (Instant::now(), cpu_time(), 0_u64);
    let mut sending = Duration::ZERO;
    while begin.elapsed() < Duration::from_secs(seconds) {
        let wall = Instant::now();
        let due = (begin.elapsed().as_secs_f64() * rate as f64) as u64;
        while sent < due {
            let call = record(functions[sent as usize % functions.len()]);
            let (call_id, app_id, function_id) = (call.id, call.app_id, call.function_id);
            sink.send(Record::Call(call));
            if log_bytes > 0 {
                let text = text.clone();
                sink.send(Record::Log(LogChunk { call_id, app_id, function_id, part: 0, text }));
            }
            sent += 1;
        }
        sending += wall.elapsed();
        tokio::time::sleep(TICK).await;
    }
    stop.cancel();
    while let Some(ended) = writers.join_next().await {
        ended?;
    }
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / sent as f64;
    let cpu = micros(cpu_time().saturating_sub(cpu_begin));
    println!(
        "{sent} calls, {cpu:.2} us CPU each; making and sending them took {:.2} us of it",
        micros(sending)
    );
    catalog.close().await;
    Ok(())
}

fn record(function_id: FunctionId) -> CallRecord {
    let now = jiff::Timestamp::now();
    CallRecord {
        id: CallId::generate(),
        app_id: AppId::generate(),
        function_id,
        trigger_id: None,
        status: CallStatus::Success,
        error: None,
        created_at: now,
        started_at: Some(now),
        completed_at: now,
        cold: false,
        story: story(),
    }
}

/// The story of a call that found a warm slot at home.
fn story() -> Story {
    let placement = Placement {
        balancer: "lb1".into(),
        reason: Some(Reason::WarmHome),
        asked: 1,
        calls: 3,
        tries: 1,
        refused: Vec::new(),
        waits: 0,
        waited: Duration::ZERO,
        before: Duration::from_micros(12),
    };
    let run = Duration::from_micros(873);
    let times = NodeTimes { run, whole: run, ..NodeTimes::default() };
    Story {
        node: Some(NodeId::new("node-17")),
        placement: Some(placement),
        times: Some(times),
        ..Story::default()
    }
}

/// User and system time of all threads of this process.
fn cpu_time() -> Duration {
    let usage =
        nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("always allowed");
    let time = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs())
            + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    time(usage.user_time()) + time(usage.system_time())
}
