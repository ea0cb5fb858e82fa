//! Products of 8-bit integers against the scalar reference and the formulas.

use half::{bf16, f16};
use lowbit::conformance::Rng;
use lowbit::cpu::reference;
use lowbit::{Cpu, DType, Element, QTensor, Result, Weight, formats};
use lowbit_gpu::plan::Planner;
use lowbit_gpu::{GpuWeight, Limits, Queue, int8_linear, int8_matmul, int8_rescale};

use crate::everywhere::{self, On, Test};
use crate::typed::Typed;

/// M, N and K: rows that begin with words and that do not, one and a few rows of activations, more than a
/// tile of either, odd rows of results, single numbers, nothing.
const SIZES: [[usize; 3]; 11] = [
    [1, 40, 96],
    [5, 33, 101],
    [19, 64, 257],
    [2, 3, 1],
    [12, 21, 40],
    [70, 130, 68],
    [65, 67, 39],
    [4, 1, 4],
    [1, 9, 2],
    [3, 0, 8],
    [0, 3, 8],
];

/// Runs a test on everything.
fn everywhere(test: impl Fn(&dyn Subject)) {
    struct Each<F>(F);
    impl<F: Fn(&dyn Subject)> Test for Each<F> {
        fn run<Q: Queue>(&self, on: On<Q>) {
            (self.0)(&on);
        }
    }
    everywhere::everywhere(&Each(test));
}

/// What multiplies.
trait Subject {
    /// Whether there are no results.
    fn is_recorder(&self) -> bool;
    fn matmul(&self, a: &[i8], b: &[i8], sizes: [usize; 3]) -> Result<Vec<i32>>;
    fn rescale(
        &self,
        sums: &[i32],
        rows: &[f32],
        columns: &[f32],
        bias: Option<&Typed>,
        dtype: DType,
    ) -> Result<Vec<f32>>;
    fn linear(
        &self,
        w: &QTensor,
        x: &Typed,
        m: usize,
        threshold: f32,
        bias: Option<&Typed>,
    ) -> Result<Vec<f32>>;
}

impl<Q: Queue> On<Q> {
    fn read(&self, y: &Q::Buffer, dtype: DType, len: usize) -> Result<Vec<f32>> {
        let bytes = self.queue.read(y, (len * dtype.size()) as u64)?;
        Ok(Typed { dtype, bytes }.numbers())
    }

    fn bias(&self, bias: Option<&Typed>) -> Result<Option<Q::Buffer>> {
        bias.map(|bias| self.queue.upload(&bias.bytes)).transpose()
    }
}

impl<Q: Queue> Subject for On<Q> {
    fn is_recorder(&self) -> bool {
        self.is_recorder
    }

    fn matmul(&self, a: &[i8], b: &[i8], [m, n, k]: [usize; 3]) -> Result<Vec<i32>> {
        let upload = |numbers: &[i8]| self.queue.upload(bytemuck::cast_slice(numbers));
        let y = int8_matmul(&self.queue, &upload(a)?, &upload(b)?, [m, n, k])?;
        Ok(bytemuck::pod_collect_to_vec(&self.queue.read(&y, 4 * (m * n) as u64)?))
    }

    fn rescale(
        &self,
        sums: &[i32],
        rows: &[f32],
        columns: &[f32],
        bias: Option<&Typed>,
        dtype: DType,
    ) -> Result<Vec<f32>> {
        let upload = |numbers: &[f32]| self.queue.upload(bytemuck::cast_slice(numbers));
        let there = [upload(rows)?, upload(columns)?];
        let sums = self.queue.upload(bytemuck::cast_slice(sums))?;
        let bias = self.bias(bias)?;
        let sizes = [rows.len(), columns.len()];
        let [a, b] = [&there[0], &there[1]];
        let y = int8_rescale(&self.queue, &sums, [a, b], bias.as_ref(), sizes, dtype)?;
        self.read(&y, dtype, rows.len() * columns.len())
    }

    fn linear(
        &self,
        w: &QTensor,
        x: &Typed,
        m: usize,
        threshold: f32,
        bias: Option<&Typed>,
    ) -> Result<Vec<f32>> {
        let n = w.rows();
        let w = GpuWeight::upload(&self.queue, &Weight::Quantized(w.clone()))?;
        let (x_there, bias) = (self.queue.upload(&x.bytes)?, self.bias(bias)?);
        let y = int8_linear(&self.queue, &x_there, m, &w, threshold, bias.as_ref(), x.dtype)?;
        self.read(&y, x.dtype, m * n)
    }
}

fn integers(rng: &mut Rng, len: usize) -> Vec<i8> {
    (0..len).map(|_| (rng.below(256) as i32 - 128) as i8).collect()
}

fn numbers(rng: &mut Rng, dtype: DType, len: usize) -> Typed {
    Typed::new(dtype, &(0..len).map(|_| rng.normal()).collect::<Vec<_>>())
}

fn close(what: &str, got: &[f32], expected: &[f32], eps: f32, around: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= eps * e.abs() + around, "{what}: number {i} is {g}, not {e}");
    }
}

fn eps(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => 2e-6,
        DType::F16 => 1.0 / 1024.0,
        DType::BF16 => 1.0 / 128.0,
    }
}

#[test]
fn integer_products_are_exact() {
    everywhere(|subject| {
        for [m, n, k] in SIZES {
            let mut rng = Rng((m * n + k) as u64);
            let (a, b) = (integers(&mut rng, m * k), integers(&mut rng, n * k));
            let got = subject.matmul(&a, &b, [m, n, k]).unwrap();
            if !subject.is_recorder() {
                assert_eq!(got, reference::int8_matmul(&a, &b, k), "{m} {n} {k}");
            }
        }
        for m in [2, 20] {
            let k = 1000;
            let got = subject.matmul(&vec![-128; m * k], &vec![-128; 3 * k], [m, 3, k]).unwrap();
            assert!(subject.is_recorder() || got == vec![128 * 128 * 1000; 3 * m]);
            let none = subject.matmul(&[], &[], [m, 3, 0]).unwrap();
            assert!(subject.is_recorder() || none == vec![0; 3 * m]);
        }
    });
}

#[test]
fn sums_become_numbers_of_every_type() {
    everywhere(|subject| {
        for (i, [m, n, _]) in SIZES.into_iter().enumerate() {
            let dtype = DType::ALL[i % 3];
            let mut rng = Rng((m + n) as u64);
            let sums: Vec<i32> =
                (0..m * n).map(|_| rng.below(1 << 24) as i32 - (1 << 23)).collect();
            let rows = numbers(&mut rng, DType::F32, m).numbers();
            let columns = numbers(&mut rng, DType::F32, n).numbers();
            let bias = numbers(&mut rng, dtype, n);
            for bias in [None, Some(&bias)] {
                let got = subject.rescale(&sums, &rows, &columns, bias, dtype).unwrap();
                let wide = bias.map(Typed::numbers);
                let mut right = vec![0.0f32; m * n];
                let cpu = Cpu::best();
                cpu.int8_rescale(&sums, &rows, &columns, wide.as_deref(), &mut right).unwrap();
                if !subject.is_recorder() {
                    close(&format!("{m} {n} {dtype}"), &got, &right, eps(dtype), 1e-4);
                }
            }
        }
    });
}

fn on_the_cpu(
    w: &QTensor,
    x: &Typed,
    threshold: f32,
    bias: Option<&Typed>,
    len: usize,
) -> Vec<f32> {
    fn typed<T: Element>(
        w: &QTensor,
        x: &Typed,
        threshold: f32,
        bias: Option<&Typed>,
        len: usize,
    ) -> Vec<f32> {
        let x: Vec<T> = bytemuck::pod_collect_to_vec(&x.bytes);
        let bias: Option<Vec<T>> = bias.map(|bias| bytemuck::pod_collect_to_vec(&bias.bytes));
        let mut y = vec![T::default(); len];
        Cpu::best().int8_linear(w, &x, threshold, bias.as_deref(), &mut y).unwrap();
        y.iter().map(|v| v.to_f32()).collect()
    }
    match x.dtype {
        DType::F32 => typed::<f32>(w, x, threshold, bias, len),
        DType::F16 => typed::<f16>(w, x, threshold, bias, len),
        DType::BF16 => typed::<bf16>(w, x, threshold, bias, len),
    }
}

#[test]
fn llm_int8_is_that_of_the_cpu() {
    let int8 = formats::by_name("int8").unwrap();
    everywhere(|subject| {
        for (i, [m, n, k]) in SIZES.into_iter().enumerate() {
            let dtype = DType::ALL[i % 3];
            let mut rng = Rng((m * n * k) as u64);
            let w = numbers(&mut rng, DType::F32, n * k).numbers();
            let w = Cpu::best().quantize(int8, &w, &[n, k], None).unwrap();
            let mut x = numbers(&mut rng, dtype, m * k).numbers();
            for _ in 0..4.min(x.len()) {
                let at = rng.below(x.len());
                x[at] = if at % 2 == 0 { 20.0 } else { -9.0 };
            }
            if m > 2 {
                x[..k].fill(0.0);
            }
            let (x, bias) = (Typed::new(dtype, &x), numbers(&mut rng, dtype, n));
            for (threshold, bias) in [(0.0, Some(&bias)), (6.0, None), (2.5, Some(&bias))] {
                let got = subject.linear(&w, &x, m, threshold, bias).unwrap();
                if !subject.is_recorder() {
                    let right = on_the_cpu(&w, &x, threshold, bias, m * n);
                    let what = format!("{m} {n} {k} {dtype} {threshold}");
                    close(&what, &got, &right, eps(dtype), 1e-4);
                }
            }
        }
    });
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    let int8 = formats::by_name("int8").unwrap();
    let w = Cpu::best().quantize(int8, &[0.5; 4 * 64], &[4, 64], None).unwrap();
    everywhere(|subject| {
        for (bad, threshold) in [(f32::NAN, 0.0), (f32::INFINITY, 0.0), (f32::NAN, 6.0)] {
            let mut x = vec![1.0f32; 2 * 64];
            x[3] = bad;
            let y = subject.linear(&w, &Typed::new(DType::F32, &x), 2, threshold, None).unwrap();
            if !subject.is_recorder() {
                assert!(y[..4].iter().all(|v| v.is_nan()), "{y:?}");
                assert!(y[4..].iter().all(|v| (v - 32.0).abs() < 1e-3), "{y:?}");
            }
        }
        // Numbers whose factor overflows.
        let x: Vec<f32> = (0..64).map(|i| i as f32 * 2e-39).collect();
        let got = subject.linear(&w, &Typed::new(DType::F32, &x), 1, 0.0, None).unwrap();
        assert!(subject.is_recorder() || got.iter().all(|v| v.is_finite()));
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    let limits = Limits { binding: 1 << 20, ..lowbit_gpu::msl::APPLE };
    let planner = Planner::new(limits);
    let refused = |result: Result<usize>, why: &str| {
        let got = result.unwrap_err().to_string();
        assert!(got.contains(why), "{got}");
    };
    assert!(int8_matmul(&planner, &0, &1, [512, 512, 2048]).is_ok());
    refused(int8_matmul(&planner, &0, &1, [2, 2, 1 << 17]), "131071");
    refused(int8_matmul(&planner, &0, &1, [513, 2, 2048]), "1048576 bytes");
    refused(int8_matmul(&planner, &0, &1, [1 << 20, 1 << 20, 1]), "2^32");
    let weight = |name: &str| {
        let w = vec![0.5f32; 4 * 64];
        let q = Cpu::best().quantize(formats::by_name(name).unwrap(), &w, &[4, 64], None).unwrap();
        GpuWeight::upload(&planner, &Weight::Quantized(q)).unwrap()
    };
    let linear = |name: &str, threshold| {
        int8_linear(&planner, &0, 1, &weight(name), threshold, None, DType::F32)
    };
    assert!(linear("int8", 0.0).is_ok());
    refused(linear("nf4", 0.0), "nf4");
    refused(linear("fp8_e4m3", 0.0), "8-bit integer row");
    refused(linear("int8", -1.0), "threshold from 0");
    refused(linear("int8", f32::NAN), "threshold from 0");
}
