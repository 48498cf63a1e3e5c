//! What a report may say: capacities that no machine has are refused, so that they cannot draw every call to one node.

use kiln_shared::report::NodeReport;

/// Most memory of a node in MiB: 1 PiB.
pub const MEMORY_MIB_MAX: u64 = 1 << 30;
/// Most cores of a node.
pub const CORES_MAX: u32 = 65_536;
/// Most functions that a node may have containers or calls of.
pub const FUNCTIONS_MAX: usize = 100_000;
/// Most images that a node may have.
pub const IMAGES_MAX: usize = 100_000;

/// What cannot be true in a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Absurd {
    /// No memory, or more than [`MEMORY_MIB_MAX`].
    #[error("{memory_mib} MiB of memory; a node has 1 MiB to 1 PiB")]
    Memory {
        /// What was reported.
        memory_mib: u64,
    },
    /// No CPU, or more than [`CORES_MAX`] cores.
    #[error("{cpu_millis} thousandths of a core; a node has up to 65,536 cores")]
    Cpu {
        /// What was reported.
        cpu_millis: u32,
    },
    /// More than [`FUNCTIONS_MAX`] functions.
    #[error("{functions} functions; a node has at most 100,000")]
    Functions {
        /// What the node would have.
        functions: usize,
    },
    /// More than [`IMAGES_MAX`] images.
    #[error("{images} images; a node has at most 100,000")]
    Images {
        /// What was reported.
        images: usize,
    },
}

/// Checks a report with which its node has `functions` functions.
///
/// # Errors
/// The first thing that cannot be true.
pub(crate) fn check(report: &NodeReport, functions: usize) -> Result<(), Absurd> {
    let memory_mib = report.memory_total_mib;
    if !(1..=MEMORY_MIB_MAX).contains(&memory_mib) {
        return Err(Absurd::Memory { memory_mib });
    }
    let cpu_millis = report.cpu_total_millis;
    if !(1..=CORES_MAX * 1000).contains(&cpu_millis) {
        return Err(Absurd::Cpu { cpu_millis });
    }
    if functions > FUNCTIONS_MAX {
        return Err(Absurd::Functions { functions });
    }
    let images = report.images.as_ref().map_or(0, |images| images.len());
    if images > IMAGES_MAX {
        return Err(Absurd::Images { images });
    }
    Ok(())
}
