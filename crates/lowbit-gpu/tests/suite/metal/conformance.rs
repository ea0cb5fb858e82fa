//! Every format's kernels as Metal text against the scalar reference.

use lowbit::conformance::{self, Size};
use lowbit_gpu::OnGpu;
use lowbit_gpu::msl::Bounds;

use super::standin::{Mode, Recorder, StandIn};
use crate::{full, skipped};

/// Runs the suite.
fn conforms(mode: Mode, size: Size) {
    if skipped() {
        return;
    }
    let size = if full() { Size::Full } else { size };
    let queue = StandIn::new(mode);
    let name = format!("{mode:?}");
    let record = |recorder: &Recorder| {
        conformance::run(&OnGpu { queue: recorder, name: name.clone() }, size);
    };
    queue.prepare(record).expect("every kernel is translated and compiled");
    let report = conformance::run(&OnGpu { queue: &queue, name: name.clone() }, size);
    assert!(report.cases > 0 && report.failures.is_empty(), "{report}");
}

#[test]
fn as_on_apple() {
    conforms(Mode::APPLE, Size::Pairs);
}

#[test]
fn with_fast_math() {
    conforms(Mode::FAST, Size::Pairs);
}

#[test]
fn with_matrices_of_16() {
    conforms(Mode { matrix: Some(16), ..Mode::FAST }, Size::Pairs);
}

#[test]
fn with_checked_bounds_and_small_simdgroups() {
    let bounds = Bounds::Checked;
    conforms(Mode { bounds, matrix: None, simd_width: 16, ..Mode::APPLE }, Size::Quick);
}
