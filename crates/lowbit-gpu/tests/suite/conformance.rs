use lowbit::conformance::{self, Size};
use lowbit_gpu::{Adapter, Gpu, OnGpu};

/// The adapter under test: the one that `LOWBIT_GPU` names, else any. `None` if the GPU tests are to
/// be left out.
fn adapter() -> Option<Adapter> {
    if std::env::var_os("LOWBIT_SKIP_GPU").is_some_and(|v| v == "1") {
        eprintln!("skipped: LOWBIT_SKIP_GPU=1");
        return None;
    }
    let name = std::env::var("LOWBIT_GPU").unwrap_or_default();
    match Adapter::find(Some(&name)) {
        Ok(adapter) => Some(adapter),
        Err(error) => panic!("{error}; or set LOWBIT_SKIP_GPU=1"),
    }
}

fn run(size: Size, checked: bool) {
    let Some(adapter) = adapter() else { return };
    let gpu = Gpu::open(&adapter, checked).unwrap();
    let report = conformance::run(&OnGpu { queue: &gpu, name: adapter.name() }, size);
    assert!(report.failures.is_empty(), "{report}");
    assert!(report.cases > 0);
}

#[test]
fn a_gpu_agrees_with_the_reference_with_checked_accesses() {
    run(Size::Quick, true);
}

#[test]
fn a_gpu_agrees_with_the_reference() {
    run(Size::Full, false);
}
