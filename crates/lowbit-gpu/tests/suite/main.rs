//! Tests that need an adapter; on Debian `scripts/gpu-setup` brings a software one.

mod conformance;
mod counting;
mod device;
mod everywhere;
mod experts;
mod golden;
mod int8;
#[cfg(unix)]
mod metal;
mod model;
mod optim;
mod products;
mod typed;

use lowbit_gpu::{Adapter, Gpu};

/// The GPU under test: the one that `LOWBIT_GPU` names, else any. `None` if the GPU tests are to be
/// left out.
fn gpu(checked: bool) -> Option<Gpu> {
    if skipped() {
        return None;
    }
    let name = std::env::var("LOWBIT_GPU").unwrap_or_default();
    match Adapter::find(Some(&name)) {
        Ok(adapter) => Some(Gpu::open(&adapter, checked).unwrap()),
        Err(error) => panic!("{error}; or set LOWBIT_SKIP_GPU=1"),
    }
}

/// Whether tests of GPU code are to be left out, and says so.
#[allow(clippy::print_stderr)]
fn skipped() -> bool {
    let skip = std::env::var_os("LOWBIT_SKIP_GPU").is_some_and(|v| v == "1");
    if skip {
        eprintln!("skipped: LOWBIT_SKIP_GPU=1");
    }
    skip
}

/// Whether every combination is to be run, which takes long.
fn full() -> bool {
    std::env::var_os("LOWBIT_FULL").is_some_and(|v| v == "1")
}
