//! What is known of this machine.

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Memory, in bytes.
pub struct Memory {
    pub total: u64,
    /// What programs can still have.
    pub free: u64,
}

pub fn memory() -> Memory {
    let ram = MemoryRefreshKind::nothing().with_ram();
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(ram));
    Memory { total: system.total_memory(), free: system.available_memory() }
}

/// What its maker calls the processor.
pub fn processor() -> String {
    let cpu = CpuRefreshKind::nothing();
    let system = System::new_with_specifics(RefreshKind::nothing().with_cpu(cpu));
    match system.cpus().first().map(|cpu| cpu.brand().trim()) {
        None | Some("") => std::env::consts::ARCH.into(),
        Some(name) => name.into(),
    }
}

/// Size of the last-level cache in bytes, as Linux tells it; elsewhere a large guess.
pub fn last_level_cache() -> usize {
    let size = |index: usize| -> Option<usize> {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.trim().strip_suffix('K')?.parse::<usize>().ok()? * 1024)
    };
    (0..8).filter_map(size).max().unwrap_or(64 << 20)
}
