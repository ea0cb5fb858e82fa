//! A test on every way in which kernels run here.

use lowbit_gpu::Queue;
#[cfg(unix)]
use lowbit_gpu::msl::Bounds;

use crate::gpu;
#[cfg(unix)]
use crate::metal::standin::{Mode, Recorder, StandIn};

/// What a test runs on.
pub struct On<Q> {
    pub queue: Q,
    /// Whether there are no results.
    pub is_recorder: bool,
}

/// A test for any queue.
pub trait Test {
    fn run<Q: Queue>(&self, on: On<Q>);
}

/// Runs a test on a GPU, with and without checked accesses, and as Metal text.
pub fn everywhere(test: &impl Test) {
    for checked in [false, true] {
        let Some(gpu) = gpu(checked) else { return };
        test.run(On { queue: gpu, is_recorder: false });
    }
    #[cfg(unix)]
    for mode in
        [Mode::APPLE, Mode::FAST, Mode { bounds: Bounds::Checked, simd_width: 16, ..Mode::FAST }]
    {
        let queue = StandIn::new(mode);
        let record = |recorder: &Recorder| {
            test.run(On { queue: recorder.clone(), is_recorder: true });
        };
        queue.prepare(record).expect("every kernel is translated and compiled");
        test.run(On { queue, is_recorder: false });
    }
}
