//! What this machine can give to containers (`spec/placement-and-lb.md`, 3.1).

use std::fs;
use std::io;

/// Least and most that is left to the machine itself, in MiB.
const HEADROOM_MIB: std::ops::RangeInclusive<u64> = 256..=5 * 1024;
const CGROUP_LIMIT_FILES: [&str; 2] =
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// Memory that containers may commit in MiB: what is available, or this process's own limit if that is less,
/// less a tenth of it (at least 256 MiB, at most 5 GiB).
///
/// # Errors
/// If `/proc/meminfo` cannot be read or has no `MemAvailable`.
pub fn memory_for_containers_mib() -> io::Result<u64> {
    let available_mib = available_kib(&fs::read_to_string("/proc/meminfo")?)
        .ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))?
        / 1024;
    let limit_mib = CGROUP_LIMIT_FILES
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .filter_map(|text| text.trim().parse::<u64>().ok())
        .min()
        .map_or(u64::MAX, |bytes| bytes >> 20);
    Ok(less_headroom(available_mib.min(limit_mib)))
}

fn available_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn less_headroom(mib: u64) -> u64 {
    mib.saturating_sub((mib / 10).clamp(*HEADROOM_MIB.start(), *HEADROOM_MIB.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headroom_has_a_floor_and_a_ceiling() {
        assert_eq!(less_headroom(1024), 768);
        assert_eq!(less_headroom(10 * 1024), 9 * 1024);
        assert_eq!(less_headroom(100 * 1024), 95 * 1024);
        assert_eq!(less_headroom(100), 0);
    }

    #[test]
    fn available_memory_is_read_from_meminfo() {
        assert_eq!(available_kib("MemTotal: 9 kB\nMemAvailable:   123 kB\n"), Some(123));
        assert_eq!(available_kib("MemTotal: 9 kB\n"), None);
    }
}
