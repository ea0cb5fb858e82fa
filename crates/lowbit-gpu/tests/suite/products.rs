//! Every kernel that a product can take, and every way to deal its work.

use lowbit::conformance::Rng;
use lowbit::{Cpu, DType, QTensor, formats};
use lowbit_gpu::choices::linear_by_all;
use lowbit_gpu::tune::{Trials, tune};
use lowbit_gpu::{GpuWeight, Queue, Schedule, linear, linear_scheduled};

#[cfg(unix)]
use crate::metal::standin::{Mode, StandIn};
use crate::{full, gpu};

/// A product in f16, of which every number is a whole number of 64ths, and small.
struct Sample {
    w: QTensor,
    m: usize,
    /// `[M, K]` in f16.
    x: Vec<u8>,
    /// `[M, N]`.
    y: Vec<f32>,
}

impl Sample {
    fn new(dims: [usize; 3]) -> Self {
        Self::in_blocks(dims, None)
    }

    fn in_blocks([m, n, k]: [usize; 3], block_size: Option<usize>) -> Self {
        let mut rng = Rng((m + n + k) as u64);
        let w = rng.numbers(DType::F32, n * k).values;
        let w = Cpu::best().quantize(formats::ALL[0], &w, &[n, k], block_size).unwrap();
        let x: Vec<f32> = (0..m * k).map(|_| (rng.below(65) as f32 - 32.0) / 64.0).collect();
        let mut y = vec![0.0; m * n];
        Cpu::best().linear(&w, &x, None, &mut y).unwrap();
        let x = x.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
        Sample { w, m, x, y }
    }

    /// Fails unless it is the product.
    fn check(&self, what: &str, y: &[u8]) {
        let y: Vec<f32> =
            y.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        assert_eq!(y.len(), self.y.len(), "{what}");
        let largest = self.y.iter().fold(0.0f32, |most, y| most.max(y.abs()));
        for (i, (y, expected)) in y.iter().zip(&self.y).enumerate() {
            let off = (y - expected).abs();
            assert!(off <= 2e-3 * largest, "{what}, result {i}: {y} for {expected}");
        }
    }

    /// The names of kernels that can do it, and their results: all of them, or those that are expected and a
    /// third of the others, the same each time. Most are made from one text with other constants.
    fn by_all<Q: Queue>(&self, queue: &Q, expected: &[&str]) -> Vec<(String, Q::Buffer)> {
        let hash = |name: &str| name.bytes().fold(7u32, |h, b| h.wrapping_mul(31) ^ u32::from(b));
        self.by_those(queue, |name| {
            full() || expected.iter().any(|e| name.contains(e)) || hash(name) % 3 == 0
        })
    }

    /// Those of kernels with such names.
    fn by_those<Q: Queue>(
        &self,
        queue: &Q,
        wanted: impl Fn(&str) -> bool,
    ) -> Vec<(String, Q::Buffer)> {
        let w = GpuWeight::upload(queue, &self.w.clone().into()).unwrap();
        let x = queue.upload(&self.x).unwrap();
        linear_by_all(queue, &x, self.m, &w, DType::F16, wanted).unwrap()
    }

    /// Fails unless these kernels and all others give the product.
    fn check_all<Q: Queue>(&self, queue: &Q, expected: &[&str]) {
        self.check_those(queue, self.by_all(queue, expected), expected);
    }

    /// Fails unless these kernels are among those, and all of them gave the product.
    fn check_those<Q: Queue>(&self, queue: &Q, all: Vec<(String, Q::Buffer)>, expected: &[&str]) {
        for (kernel, y) in &all {
            let y = queue.read(y, 2 * self.y.len() as u64).unwrap();
            self.check(&format!("{} rows by {kernel}", self.m), &y);
        }
        for kernel in expected {
            assert!(all.iter().any(|(k, _)| k.contains(kernel)), "{kernel} is missing");
        }
    }
}

/// Sizes that divide no tile.
const SIZES: [([usize; 3], &[&str]); 5] = [
    ([1, 70, 256], &["gemv 2x1", "by pairs, 4 tables"]),
    (
        [1, 70, 2112],
        &["2x1 by halves and exponents, 16 tables", "4x1 by halves and one exponent, 8"],
    ),
    ([3, 70, 320], &["4x4 by halves and exponents, 8 tables"]),
    ([13, 70, 256], &["gemv 2x16", "gemm"]),
    ([70, 70, 128], &["gemm"]),
];

#[test]
fn every_kernel_gives_the_product() {
    for (dims, kernels) in SIZES {
        let Some(gpu) = gpu(false) else { return };
        Sample::new(dims).check_all(&gpu, kernels);
    }
}

#[cfg(unix)]
#[test]
fn every_kernel_for_matrix_hardware_gives_the_product() {
    if crate::skipped() {
        return;
    }
    for matrix in [8, 16] {
        let queue = StandIn::new(Mode { matrix: Some(matrix), ..Mode::FAST });
        let sample = Sample::new([40, 24, 512]);
        let expected =
            ["matrix 64x64x1x32, 256 threads, Split(2)", "matrix 16x16x4x64", "Stream(32)"];
        queue.prepare(|recorder| drop(sample.by_all(recorder, &expected))).unwrap();
        sample.check_all(&queue, &expected);
    }
}

#[cfg(unix)]
#[test]
fn every_kernel_for_one_row_gives_the_product_as_metal_text() {
    if crate::skipped() {
        return;
    }
    let queue = StandIn::new(Mode::FAST);
    let sample = Sample::new([1, 22, 320]);
    let expected = ["2x1 by halves and exponents", "4x1 by halves and one exponent, 16 tables"];
    queue.prepare(|recorder| drop(sample.by_all(recorder, &expected))).unwrap();
    sample.check_all(&queue, &expected);
}

/// Few rows, which need not fill a batch; the last columns, pieces and rows of weights are not whole, and
/// blocks of 32 columns are scaled before lanes add their sums.
#[cfg(unix)]
#[test]
fn kernels_that_keep_x_in_registers_give_the_product_as_metal_text() {
    if crate::skipped() {
        return;
    }
    let queue = StandIn::new(Mode::FAST);
    let samples = [
        ([3, 22, 1088], 64, "2 pieces"),
        ([11, 50, 1088], 64, "2 pieces"),
        ([4, 18, 1056], 32, "2 pieces"),
        ([5, 18, 1056], 32, "4 pieces"),
    ]
    .map(|(dims, block_size, pieces)| {
        (Sample::in_blocks(dims, Some(block_size)), format!("by registers, {pieces}"))
    });
    for (sample, kernels) in &samples {
        let wanted = |name: &str| name.contains(kernels);
        queue.prepare(|recorder| drop(sample.by_those(recorder, wanted))).unwrap();
    }
    for (sample, kernels) in samples {
        let all = sample.by_those(&queue, |name| name.contains(&kernels));
        sample.check_those(&queue, all, &["16x", "32x", "64x"]);
    }
}

/// Groups add their pieces of a tile after all of them are done, in one order.
#[cfg(unix)]
#[test]
fn dealt_products_have_the_same_bits_in_any_order_of_groups() {
    use metal_standin::Order;
    if crate::skipped() {
        return;
    }
    let sample = Sample::new([70, 200, 512]);
    let schedules = [
        Schedule::Whole,
        Schedule::Split(2),
        Schedule::Split(5),
        Schedule::Stream(3),
        Schedule::Stream(7),
        Schedule::Stream(1000),
    ];
    let run = |order: Order| {
        let queue = StandIn::new(Mode { order, ..Mode::APPLE });
        let w = GpuWeight::upload(&queue, &sample.w.clone().into()).unwrap();
        let x = queue.upload(&sample.x).unwrap();
        schedules.map(|schedule| {
            let y = linear_scheduled(&queue, &x, sample.m, &w, schedule, DType::F16).unwrap();
            let y = queue.read(&y.expect("matrix hardware"), 2 * sample.y.len() as u64).unwrap();
            sample.check(&format!("{schedule:?}"), &y);
            y
        })
    };
    let first = run(Order::Forward);
    for order in [Order::Forward, Order::Backward] {
        for ((schedule, a), b) in schedules.iter().zip(&first).zip(run(order)) {
            assert!(*a == b, "{schedule:?}: other bits in another run");
        }
    }
}

#[test]
fn tuning_finds_kernels_that_are_right() {
    let Some(gpu) = gpu(false) else { return };
    let trials = Trials {
        shapes: vec![[64, 256]],
        rows: vec![1, 3, 70],
        dtypes: vec![DType::F32, DType::F16],
        seconds: 1e-4,
    };
    let mut seen = Vec::new();
    let tuned = tune(&gpu, &trials, &mut |done, total, _| seen.push((done, total))).unwrap();
    assert_eq!(tuned.wrong, Vec::<String>::new());
    assert!(tuned.measured > 20, "{}", tuned.measured);
    assert_eq!(tuned.choices.lines.len(), 12);
    assert_eq!((seen[0], seen.last()), ((0, 12), Some(&(12, 12))));
    for line in &tuned.choices.lines {
        assert!(line.us > 0.0 && line.us <= line.usual_us, "{line:?}");
    }
    let gpu = gpu.with_choices(tuned.choices);
    for m in [1, 2, 3, 70, 100] {
        let sample = Sample::new([m, 66, 256]);
        let w = GpuWeight::upload(&gpu, &sample.w.clone().into()).unwrap();
        let x = gpu.upload(&sample.x).unwrap();
        let y = linear(&gpu, &x, m, &w, None, DType::F16).unwrap();
        sample.check("as measured", &gpu.read(&y, 2 * sample.y.len() as u64).unwrap());
    }
}
