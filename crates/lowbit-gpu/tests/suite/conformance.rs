use lowbit::conformance::{self, Size};
use lowbit_gpu::OnGpu;

use crate::{full, gpu};

fn run(size: Size, checked: bool) {
    let Some(gpu) = gpu(checked) else { return };
    let report = conformance::run(&OnGpu { queue: &gpu, name: gpu.adapter().name() }, size);
    assert!(report.failures.is_empty(), "{report}");
    assert!(report.cases > 0);
}

#[test]
fn a_gpu_agrees_with_the_reference_with_checked_accesses() {
    run(Size::Quick, true);
}

#[test]
fn a_gpu_agrees_with_the_reference() {
    run(if full() { Size::Full } else { Size::Pairs }, false);
}
