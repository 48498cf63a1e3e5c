//! What processes cost: CPU time, memory, and on which core they run.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// CPU time (user and system) of all threads that the process has or had, to the nanosecond.
///
/// # Errors
/// If the process is gone.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed()))
        .with_context(|| format!("process {pid} has no CPU clock: it ended"))?;
    Ok(clock_gettime(clock).with_context(|| format!("reading the CPU clock of process {pid}"))?.into())
}

/// CPU time that processes use from one moment to another. Those that end in between are left out.
#[derive(Debug)]
pub struct CpuMeter(Vec<(u32, Duration)>);

impl CpuMeter {
    /// Begins to measure these processes.
    pub fn start(pids: &[u32]) -> Self {
        Self(pids.iter().filter_map(|pid| Some((*pid, cpu_time(*pid).ok()?))).collect())
    }

    /// What they used since then.
    pub fn used(&self) -> Duration {
        self.0.iter().filter_map(|(pid, before)| cpu_time(*pid).ok()?.checked_sub(*before)).sum()
    }
}

/// Memory of the process that is in RAM, in bytes.
///
/// # Errors
/// If the process is gone.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|number| number.trim().parse().ok())
        .with_context(|| format!("process {pid} has no VmRSS"))?;
    Ok(kib * 1024)
}

/// The ids of all processes whose command is one of `names` (the kernel cuts them to 15 bytes).
pub fn processes_named(names: &[&str]) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| names.iter().any(|name| &name[..name.len().min(15)] == comm.trim_end()))
        })
        .collect()
}

/// Keeps the calling thread, and processes that it starts from now on, on one core.
///
/// # Errors
/// If the machine has no such core.
pub fn pin_to_core(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core).with_context(|| format!("core {core}"))?;
    sched_setaffinity(Pid::from_raw(0), &cores).with_context(|| format!("cannot run on core {core} alone"))
}

/// Cores of this machine that may be used.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The share of the machine that is in use now, 0 to 1, seen over half a second.
///
/// # Errors
/// If `/proc/stat` is not as expected.
pub fn machine_use() -> Result<f64> {
    let (busy_before, all_before) = machine_ticks()?;
    let until = Instant::now() + Duration::from_millis(500);
    while let Some(rest) = until.checked_duration_since(Instant::now()) {
        std::thread::sleep(rest);
    }
    let (busy, all) = machine_ticks()?;
    Ok((busy - busy_before) as f64 / (all - all_before).max(1) as f64)
}

fn machine_ticks() -> Result<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().skip(1).filter_map(|number| number.parse().ok()).collect();
    ensure!(ticks.len() >= 5, "/proc/stat does not begin with the machine's ticks");
    let all: u64 = ticks.iter().sum();
    // The fourth is idle time, the fifth waiting for a disk.
    Ok((all - ticks[3] - ticks[4], all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_uses_cpu_time_and_memory() {
        let pid = std::process::id();
        let meter = CpuMeter::start(&[pid, u32::MAX >> 1]);
        let mut sum = 0_u64;
        while meter.used() < Duration::from_millis(5) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(resident_bytes(pid).expect("runs") > 100_000);
    }

    #[test]
    fn a_process_is_found_by_its_name() {
        let comm = fs::read_to_string("/proc/self/comm").expect("is there");
        assert!(processes_named(&[comm.trim_end()]).contains(&std::process::id()));
    }
}
