//! The operations of a model against those of the CPU.

use lowbit::conformance::Rng;
use lowbit::device::{Attention, CacheShape, Device, KvCache, Norm, Rope, Tensor};
use lowbit::{Cpu, CpuDevice, DType, DenseTensor, Result, Weight, formats};
use lowbit_gpu::{GpuDevice, Queue};

#[cfg(unix)]
use crate::metal::standin::{Mode, Recorder, StandIn};
use crate::{full, gpu};

/// The same data on the processor and on a GPU.
pub struct Both {
    pub cpu: CpuDevice,
    pub gpu: Box<dyn Device>,
    pub dtype: DType,
    pub rng: Rng,
    /// Which of five turns of a test it is, where it is not run in full.
    pub turn: usize,
    /// Whether kernels are only noted, so that there are no results.
    recording: bool,
}

/// A tensor of each.
pub type Two = [Tensor; 2];

/// Runs a test with every type of activations on a GPU; and with one, or in full with every one, on a GPU
/// that checks accesses and as Metal text.
pub fn on_both(test: impl Fn(&mut Both)) {
    if on_gpu(&test) {
        #[cfg(unix)]
        run(StandIn::new(Mode::FAST), some_types(), METAL, false, &test);
    }
}

/// [`on_both`] for a test of many kernels, whose Metal text is compiled at once. It may look at results
/// only by [`Both::close`] and [`Both::same`].
pub fn on_both_at_once(test: impl Fn(&mut Both)) {
    if on_gpu(&test) {
        #[cfg(unix)]
        {
            let queue = StandIn::new(Mode::FAST);
            let record =
                |recorder: &Recorder| run(recorder.clone(), some_types(), METAL, true, &test);
            queue.prepare(record).expect("every kernel is translated and compiled");
            run(queue, some_types(), METAL, false, &test);
        }
    }
}

/// The first turn as Metal text.
const METAL: usize = DType::ALL.len() + 1;

fn some_types() -> &'static [DType] {
    if full() { &DType::ALL } else { &[DType::BF16] }
}

/// Whether there is a GPU to run tests on.
fn on_gpu(test: &impl Fn(&mut Both)) -> bool {
    for (checked, dtypes, first) in [(false, &DType::ALL[..], 0), (true, some_types(), METAL - 1)] {
        let Some(gpu) = gpu(checked) else { return false };
        run(gpu, dtypes, first, false, test);
    }
    true
}

fn run<Q: Queue + Clone + 'static>(
    queue: Q,
    dtypes: &[DType],
    first: usize,
    recording: bool,
    test: &impl Fn(&mut Both),
) {
    for (i, &dtype) in dtypes.iter().enumerate() {
        let cpu = CpuDevice::new(Cpu::best(), dtype);
        let gpu = Box::new(GpuDevice::new(queue.clone(), "under test", dtype));
        test(&mut Both { cpu, gpu, dtype, rng: Rng(7), turn: first + i, recording });
    }
}

impl Both {
    /// What the operation gives on each.
    pub fn run(&self, op: impl Fn(&dyn Device, usize) -> Result<Tensor>) -> Two {
        [op(&self.cpu, 0).unwrap(), op(&*self.gpu, 1).unwrap()]
    }

    /// Numbers as activations: rows of a table are, once they are looked up.
    pub fn activations(&self, [rows, cols]: [usize; 2], numbers: &[f32]) -> Two {
        let table: Weight = DenseTensor::from_f32(vec![rows, cols], numbers).unwrap().into();
        let ids: Vec<u32> = (0..rows as u32).collect();
        self.run(|d, _| d.embed(&d.upload(&table)?, &ids))
    }

    pub fn random(&mut self, [rows, cols]: [usize; 2]) -> Two {
        let numbers = self.rng.numbers(self.dtype, rows * cols).values;
        self.activations([rows, cols], &numbers)
    }

    fn vector(&mut self, len: usize) -> Two {
        let numbers = self.rng.numbers(DType::F32, len).values;
        let vector: Weight = DenseTensor::from_f32(vec![len], &numbers).unwrap().into();
        self.run(|d, _| d.upload(&vector))
    }

    fn read(&self, [a, b]: &Two) -> [Vec<f32>; 2] {
        assert_eq!(a.shape(), b.shape());
        [self.cpu.read(a).unwrap(), self.gpu.read(b).unwrap()]
    }

    /// The two agree within `steps` roundings of the type, each relative to the number and to `scale`.
    pub fn close(&self, what: &str, two: &Two, scale: f32, steps: f32) {
        let epsilon = match self.dtype {
            DType::F32 => 2e-6,
            DType::F16 => 1e-3,
            DType::BF16 => 8e-3,
        };
        let [expected, got] = self.read(two);
        if self.recording {
            return;
        }
        assert_eq!(expected.len(), got.len(), "{what} in {}", self.dtype);
        for (i, (e, g)) in expected.iter().zip(&got).enumerate() {
            let bound = epsilon * steps * (e.abs() + scale);
            let close = (e - g).abs() <= bound || e == g || (e.is_nan() && g.is_nan());
            assert!(close, "{what} in {}: number {i}: expected {e}, got {g}", self.dtype);
        }
    }

    pub fn same(&self, what: &str, two: &Two) {
        let [expected, got] = self.read(two);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        if self.recording {
            return;
        }
        assert_eq!(bits(&expected), bits(&got), "{what} in {}: {expected:?}, {got:?}", self.dtype);
    }
}

#[test]
fn embed_looks_rows_up() {
    on_both(|both| {
        for [rows, cols] in [[1, 1], [5, 3], [9, 64], [300, 130]] {
            let ids: Vec<u32> = (0..7).map(|_| both.rng.below(rows) as u32).collect();
            let numbers = both.rng.numbers(DType::F32, rows * cols).values;
            let mut tables: Vec<Weight> = Vec::new();
            for dtype in DType::ALL {
                let bytes = match dtype {
                    DType::F32 => bytemuck::cast_slice(&numbers).to_vec(),
                    DType::F16 => halves(&numbers, |x| half::f16::from_f32(x).to_bits()),
                    DType::BF16 => halves(&numbers, |x| half::bf16::from_f32(x).to_bits()),
                };
                tables
                    .push(DenseTensor::new(dtype, vec![rows, cols], bytes.into()).unwrap().into());
            }
            for format in formats::ALL {
                let rows = rows.next_multiple_of(format.row_multiple());
                tables.push(both.rng.tensor(format, &[rows, cols], None).unwrap().into());
            }
            for table in &tables {
                for ids in [&ids[..], &[]] {
                    let rows = both.run(|d, _| d.embed(&d.upload(table)?, ids));
                    both.same(&format!("embed {ids:?}"), &rows);
                }
            }
        }
        let table =
            both.run(|d, _| d.upload(&DenseTensor::from_f32(vec![2, 2], &[0.0; 4])?.into()));
        assert!(both.gpu.embed(&table[1], &[0, 2]).unwrap_err().to_string().contains("below 2"));
    });
}

fn halves(numbers: &[f32], bits: impl Fn(f32) -> u16) -> Vec<u8> {
    numbers.iter().flat_map(|x| bits(*x).to_le_bytes()).collect()
}

#[test]
fn ids_from_argmax_are_looked_up_where_they_are() {
    on_both(|both| {
        let table = both.random([6, 10]);
        let table = DenseTensor::from_f32(vec![6, 10], &both.read(&table)[0]).unwrap();
        let logits = both.random([3, 6]);
        let rows = both
            .run(|d, i| d.embed_tokens(&d.upload(&table.clone().into())?, &d.argmax(&logits[i])?));
        both.same("embed_tokens", &rows);
    });
}

#[test]
fn linear_multiplies() {
    on_both_at_once(|both| {
        for (m, n, k) in [(1, 5, 7), (3, 9, 64), (0, 4, 8), (2, 0, 8), (17, 33, 128)] {
            let x = both.random([m, k]);
            let bias = both.vector(n);
            let numbers = both.rng.numbers(DType::F32, n * k).values;
            let dense = DenseTensor::from_f32(vec![n, k], &numbers).unwrap().into();
            let quantized: Weight = both.rng.tensor(formats::ALL[0], &[n, k], None).unwrap().into();
            for weight in [&dense, &quantized] {
                for with_bias in [false, true] {
                    let y = both.run(|d, i| {
                        d.linear(&x[i], &d.upload(weight)?, with_bias.then_some(&bias[i]))
                    });
                    both.close(&format!("linear {m} {n} {k}"), &y, (k as f32).sqrt() + 1.0, 2.0);
                }
            }
        }
        let (x, short) = (both.random([2, 8]), both.vector(3));
        let w = DenseTensor::from_f32(vec![4, 8], &[0.0; 32]).unwrap().into();
        let w = both.run(|d, _| d.upload(&w));
        for i in 0..2 {
            let device: &dyn Device = if i == 0 { &both.cpu } else { &*both.gpu };
            assert!(device.linear(&x[i], &w[i], Some(&short[i])).is_err());
            assert!(device.linear(&w[i], &w[i], None).is_err());
        }
    });
}

#[test]
fn rms_norm_of_any_length() {
    on_both(|both| {
        for (rows, cols, length) in [
            (1, 1, 1),
            (3, 5, 5),
            (4, 21, 7),
            (5, 64, 64),
            (2, 6, 1),
            (2, 2048, 128),
            (3, 2050, 2050),
        ] {
            let x = both.random([rows, cols]);
            let weight = both.vector(length);
            let normed = both.run(|d, i| d.rms_norm(&x[i], &weight[i], 1e-5));
            both.close(&format!("rms_norm {rows} {cols} {length}"), &normed, 0.1, 1.0);
        }
        let (x, weight, empty) = (both.random([2, 6]), both.vector(4), both.random([0, 4]));
        assert!(both.gpu.rms_norm(&x[1], &weight[1], 1e-5).is_err());
        both.same("no rows", &both.run(|d, i| d.rms_norm(&empty[i], &weight[i], 1e-5)));
    });
}

/// Weights that multiply one `x`, of a format or, behind those, dense; and their biases.
fn layers(both: &mut Both, k: usize, rows: &[usize], kind: usize, bias: bool) -> Layers {
    let dense = |both: &mut Both, shape: Vec<usize>| -> Weight {
        let numbers = both.rng.numbers(DType::F32, shape.iter().product()).values;
        DenseTensor::from_f32(shape, &numbers).unwrap().into()
    };
    let layer = |n: &usize| {
        let weight = match formats::ALL.get(kind) {
            None => dense(both, vec![*n, k]),
            Some(format) => {
                let n = n * format.row_multiple();
                let q = both.rng.tensor(format, &[n, k], None).unwrap();
                let nested = bias && format.can_double_quantize();
                if nested { lowbit::double_quantize(q).unwrap().into() } else { q.into() }
            }
        };
        let rows = weight.shape()[0];
        (weight, bias.then(|| dense(both, vec![rows])))
    };
    rows.iter().map(layer).collect()
}

type Layers = Vec<(Weight, Option<Weight>)>;

/// Stacked or not, normed or not, with biases or without: what several products give.
#[test]
fn bundles_multiply_as_their_parts() {
    on_both_at_once(|both| {
        for (case, (m, k, rows)) in [
            (1, 64, &[8, 4, 4][..]),
            (1, 256, &[32, 16, 16]),
            (3, 64, &[6, 5]),
            (1, 96, &[3, 2]),
            (40, 64, &[4, 6]),
            (1, 7, &[2, 4]),
            (0, 64, &[2, 2]),
        ]
        .into_iter()
        .enumerate()
        {
            // Each kind in every third case, or in full in all of them.
            for kind in (0..=formats::ALL.len()).filter(|kind| full() || (case + kind) % 3 == 0) {
                let layers = layers(both, k, rows, kind, (case + kind) % 2 == 0);
                let (x, weight) = (both.random([m, k]), both.vector(k));
                let bundle = both.run(|d, _| d.bundle(&layers));
                for normed in [false, true] {
                    for part in 0..rows.len() {
                        let y = both.run(|d, i| {
                            let norm = normed.then_some(Norm { weight: &weight[i], eps: 1e-5 });
                            Ok(d.linears(&x[i], norm, &bundle[i])?.swap_remove(part))
                        });
                        let what = format!("linears {m} {k} {rows:?} of kind {kind}, {normed}");
                        both.close(&what, &y, (k as f32).sqrt() + 1.0, 3.0);
                    }
                }
            }
        }
    });
}

#[test]
fn gated_products() {
    on_both_at_once(|both| {
        for (m, k, n) in
            [(1, 64, 8), (1, 256, 2048), (1, 64, 7), (2, 64, 8), (1, 13, 4), (0, 64, 4)]
        {
            for kind in [0, 1, 4, formats::ALL.len()] {
                let layers = layers(both, k, &[n, n], kind, kind == 0);
                let (x, weight) = (both.random([m, k]), both.vector(k));
                let bundle = both.run(|d, _| d.bundle(&layers));
                for normed in [false, true] {
                    let y = both.run(|d, i| {
                        let norm = normed.then_some(Norm { weight: &weight[i], eps: 1e-5 });
                        d.gated(&x[i], norm, &bundle[i])
                    });
                    let what = format!("gated {m} {k} {n} of kind {kind}, {normed}");
                    both.close(&what, &y, 2.0 * k as f32, 3.0);
                }
            }
        }
        let layers = layers(both, 8, &[2, 2, 2], formats::ALL.len(), false);
        let (x, bundle) = (both.random([1, 8]), both.run(|d, _| d.bundle(&layers)));
        assert!(both.gpu.gated(&x[1], None, &bundle[1]).is_err());
        assert!(both.gpu.linears(&bundle[1], None, &bundle[1]).is_err());
    });
}

#[test]
fn products_are_added_to() {
    on_both_at_once(|both| {
        for (m, n, k) in [(1, 6, 64), (1, 5, 64), (3, 7, 64), (2, 8, 10), (70, 6, 64), (0, 3, 8)] {
            for kind in [0, formats::ALL.len()] {
                let layers = layers(both, k, &[n], kind, n % 2 == 0);
                let (x, to) = (both.random([m, k]), both.random([m, n]));
                let y = both.run(|d, i| {
                    let [(weight, bias)] = &layers[..] else { panic!("one layer") };
                    let bias = bias.as_ref().map(|bias| d.upload(bias)).transpose()?;
                    d.linear_add(&x[i], &d.upload(weight)?, bias.as_ref(), &to[i])
                });
                both.close(&format!("linear_add {m} {n} {k} {kind}"), &y, (k as f32).sqrt(), 3.0);
            }
        }
    });
}

/// Of pairs that cross rows, each number belongs to its own row only.
#[test]
fn nan_stays_in_its_row() {
    on_both(|both| {
        for cols in [5, 6] {
            let mut numbers = both.rng.numbers(both.dtype, 4 * cols).values;
            numbers[cols + 2] = f32::NAN;
            let x = both.activations([4, cols], &numbers);
            let weight = both.vector(cols);
            let normed = both.run(|d, i| d.rms_norm(&x[i], &weight[i], 1e-5));
            both.close("rms_norm", &normed, 0.1, 1.0);
            for (row, values) in both.read(&normed)[1].chunks(cols).enumerate() {
                assert!(values.iter().all(|v| v.is_nan() == (row == 1)), "{cols}: {values:?}");
            }
            both.close("add", &both.run(|d, i| d.add(&x[i], &x[i])), 0.0, 1.0);
            both.close("silu_mul", &both.run(|d, i| d.silu_mul(&x[i], &x[i])), 0.1, 2.0);
            both.close("rows", &both.run(|d, i| d.rows(&x[i], 1, 2)), 0.0, 0.0);
        }
    });
}

#[test]
fn rope_turns_heads() {
    on_both(|both| {
        for (rows, heads, half, start) in
            [(1, 1, 1, 0), (3, 2, 3, 5), (2, 4, 32, 1020), (7, 3, 8, 100_000), (0, 2, 4, 3)]
        {
            let inv_freq = (0..half).map(|i| 10f32.powf(-(i as f32) / 4.0)).collect();
            let rope = Rope { inv_freq, scale: 1.1 };
            let x = both.random([rows, heads * 2 * half]);
            let turned = both.run(|d, i| d.rope(&x[i], &rope, start));
            both.close(&format!("rope {rows} {heads} {half} {start}"), &turned, 0.3, 1.0);
            assert!(rows == 0 || both.read(&turned)[1] != both.read(&x)[1] || start == 0);
        }
        let x = both.random([2, 10]);
        let rope = Rope { inv_freq: vec![1.0; 4], scale: 1.0 };
        assert!(both.gpu.rope(&x[1], &rope, 0).is_err());
    });
}

#[test]
fn elementwise_operations() {
    on_both(|both| {
        for shape in [[1, 1], [3, 5], [2, 64], [0, 3], [700, 33]] {
            let (a, b) = (both.random(shape), both.random(shape));
            both.same("add", &both.run(|d, i| d.add(&a[i], &b[i])));
            both.close("silu_mul", &both.run(|d, i| d.silu_mul(&a[i], &b[i])), 0.1, 2.0);
            for (start, rows) in [(0, shape[0]), (shape[0] / 3, shape[0] / 2), (shape[0], 0)] {
                both.same("rows", &both.run(|d, i| d.rows(&a[i], start, rows)));
            }
            assert!(both.gpu.rows(&a[1], shape[0], 1).is_err());
            let other = both.random([shape[0] + 1, shape[1]]);
            assert!(both.gpu.add(&a[1], &other[1]).is_err());
        }
        let extreme = [-1e4, -100.0, -0.0, 0.0, 88.0, 1e4, f32::INFINITY, f32::NAN];
        let x = both.activations([1, 8], &extreme);
        let ones = both.activations([1, 8], &[1.0; 8]);
        both.close("silu", &both.run(|d, i| d.silu_mul(&x[i], &ones[i])), 0.01, 1.0);
    });
}

#[test]
fn argmax_takes_the_first_of_equals() {
    on_both(|both| {
        for shape in [[1, 1], [3, 7], [2, 5000], [5, 12_289], [0, 9], [4, 0]] {
            let x = both.random(shape);
            both.same(&format!("argmax {shape:?}"), &both.run(|d, i| d.argmax(&x[i])));
        }
        let nan = f32::NAN;
        let rows = [
            [0.0, 2.0, 2.0, 1.0, 2.0],
            [-0.0, 0.0, 0.0, -1.0, 0.0],
            [-3.0, -1.0, -2.0, -1.0, -9.0],
            [nan, 5.0, 6.0, 7.0, nan],
            [1.0, nan, 3.0, nan, 2.0],
            [nan; 5],
            [f32::NEG_INFINITY; 5],
            [-1.0, f32::INFINITY, nan, f32::INFINITY, 1e9],
        ];
        let x = both.activations([8, 5], rows.as_flattened());
        let ids = both.run(|d, i| d.argmax(&x[i]));
        assert_eq!(both.read(&ids)[0], [1.0, 0.0, 1.0, 0.0, 2.0, 0.0, 0.0, 1.0]);
        both.same("argmax", &ids);
        // The same far from each other, in several parts.
        let mut wide = vec![-1.0; 3 * 10_001];
        for (at, value) in
            [(9_000, 4.0), (4_200, 4.0), (10_001, nan), (15_000, 9.0), (30_002, -0.5)]
        {
            wide[at] = value;
        }
        let x = both.activations([3, 10_001], &wide);
        let ids = both.run(|d, i| d.argmax(&x[i]));
        assert_eq!(both.read(&ids)[0], [4_200.0, 0.0, 10_000.0]);
        both.same("argmax", &ids);
    });
}

/// A conversation with a layer: passes of so many positions each.
fn converse(both: &mut Both, settings: &Attention, passes: &[usize], rope: Option<&Rope>) {
    let Attention { heads, kv_heads, head_dim, .. } = *settings;
    let capacity = passes.iter().sum::<usize>() + 3;
    let shape = CacheShape { layers: 2, kv_heads, head_dim, capacity };
    let mut caches: [KvCache; 2] =
        [both.cpu.kv_cache(shape).unwrap(), both.gpu.kv_cache(shape).unwrap()];
    for (pass, &rows) in passes.iter().enumerate() {
        let q = both.random([rows, heads * head_dim]);
        let k = both.random([rows, kv_heads * head_dim]);
        let v = both.random([rows, kv_heads * head_dim]);
        let mut attend = |device: &dyn Device, i: usize| {
            let cache = &mut caches[i];
            let y = match rope {
                None => device.attention(&q[i], &k[i], &v[i], cache, 1, settings),
                Some(rope) => device.rope_attention(&q[i], &k[i], &v[i], rope, cache, 1, settings),
            };
            cache.advance(rows).unwrap();
            y.unwrap()
        };
        let y = [attend(&both.cpu, 0), attend(&*both.gpu, 1)];
        both.close(&format!("pass {pass} of {passes:?} with {settings:?}"), &y, 0.5, 1.0);
    }
}

#[test]
fn attention_in_prefill_and_decoding() {
    // lavapipe takes 20 s to compile a kernel whose group is one subgroup of 32.
    let widest = if full() { 520 } else { 264 };
    on_both_at_once(|both| {
        for (heads, kv_heads, head_dim, window, passes) in [
            (1, 1, 8, None, &[1, 1, 5, 1][..]),
            (4, 2, 16, None, &[7, 1, 1, 40]),
            (6, 2, 6, Some(3), &[5, 1, 2, 1]),
            (3, 1, 5, None, &[4, 1, 33, 1]),
            (8, 1, 64, Some(20), &[50, 1, 1]),
            (2, 2, 80, Some(0), &[3, 1]),
            (9, 1, 128, None, &[35, 1]),
            (2, 1, widest, None, &[2, 1]),
            (4, 2, 8, None, &[0, 3, 0, 1]),
        ] {
            let scale = 1.0 / (head_dim as f32).sqrt();
            let settings = Attention { heads, kv_heads, head_dim, scale, window };
            converse(both, &settings, passes, None);
            if head_dim % 2 == 0 {
                let inv_freq = (0..head_dim / 2).map(|i| 0.7f32.powi(i as i32)).collect();
                converse(both, &settings, passes, Some(&Rope { inv_freq, scale: 1.0 }));
            }
        }
    });
}

/// Many positions and few heads are split into parts, and many are read once for several heads.
#[test]
fn attention_over_many_positions() {
    on_both_at_once(|both| {
        for (heads, kv_heads, head_dim, window) in
            [(4, 1, 16, None), (10, 2, 12, Some(1100)), (2, 1, 7, None)]
        {
            let settings = Attention { heads, kv_heads, head_dim, scale: 0.3, window };
            converse(both, &settings, &[1500, 1, 2, 1], None);
        }
    });
}

#[test]
fn attention_keeps_nan_from_those_who_do_not_see_it() {
    on_both(|both| {
        let (heads, kv_heads, head_dim, rows) = (4, 2, 8, 6);
        let settings = Attention { heads, kv_heads, head_dim, scale: 0.3, window: None };
        let clean = both.random([rows, kv_heads * head_dim]);
        let mut numbers = both.read(&clean)[0].clone();
        numbers[4 * kv_heads * head_dim] = f32::NAN;
        let spoilt = both.activations([rows, kv_heads * head_dim], &numbers);
        let q = both.random([rows, heads * head_dim]);
        let mut last = both.random([1, heads * head_dim]);
        for (k, v) in [(&spoilt, &clean), (&clean, &spoilt)] {
            let shape = CacheShape { layers: 1, kv_heads, head_dim, capacity: 8 };
            let run = |d: &dyn Device, i: usize| {
                let mut cache = d.kv_cache(shape)?;
                let first = d.attention(&q[i], &k[i], &v[i], &mut cache, 0, &settings)?;
                cache.advance(rows)?;
                let one = [d.rows(&k[i], 0, 1)?, d.rows(&v[i], 0, 1)?];
                let then = d.attention(&last[i], &one[0], &one[1], &mut cache, 0, &settings)?;
                Ok((first, then))
            };
            both.close("all positions", &both.run(|d, i| Ok(run(d, i)?.0)), 0.5, 1.0);
            both.close("the next one", &both.run(|d, i| Ok(run(d, i)?.1)), 0.5, 1.0);
        }
        last.reverse();
        assert!(last[0].get::<Vec<f32>>("test").is_err() && both.gpu.argmax(&last[1]).is_err());
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    on_both(|both| {
        let settings = Attention { heads: 2, kv_heads: 1, head_dim: 4, scale: 1.0, window: None };
        let shape = CacheShape { layers: 1, kv_heads: 1, head_dim: 4, capacity: 2 };
        let (q, k) = (both.random([3, 8]), both.random([3, 4]));
        let mut ours = both.gpu.kv_cache(shape).unwrap();
        let mut theirs = both.cpu.kv_cache(shape).unwrap();
        let error = both.gpu.attention(&q[1], &k[1], &k[1], &mut ours, 0, &settings).unwrap_err();
        assert!(error.to_string().contains("at most 2 positions"), "{error}");
        let (q, k) = (both.random([1, 8]), both.random([1, 4]));
        let error = both.gpu.attention(&q[1], &k[1], &k[1], &mut theirs, 0, &settings).unwrap_err();
        assert!(error.to_string().contains("foreign cache"), "{error}");
        assert!(both.gpu.attention(&q[1], &k[1], &k[1], &mut ours, 1, &settings).is_err());
        assert!(both.gpu.attention(&k[1], &k[1], &k[1], &mut ours, 0, &settings).is_err());
        let huge =
            CacheShape { layers: 1, kv_heads: 1 << 20, head_dim: 1 << 10, capacity: 1 << 30 };
        let error = both.gpu.kv_cache(huge).err().unwrap();
        assert!(matches!(error, lowbit::Error::OutOfMemory { .. }), "{error}");
    });
}
