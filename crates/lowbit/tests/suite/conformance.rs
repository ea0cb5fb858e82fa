//! Every instruction set of this machine runs the one suite.

use lowbit::conformance::{Report, Rng, Size, Subject, run, run_format};
use lowbit::cpu::{Isa, reference};
use lowbit::format::{Format, Keys, Layout, Packing, RowBlock, ScaleKind, Values};
use lowbit::{Cpu, DType, formats};

#[test]
fn every_instruction_set_agrees_with_the_reference() {
    for isa in Isa::available() {
        let report = run(&Cpu::with(isa), Size::Full);
        assert!(report.failures.is_empty(), "{}: {report}", isa.name());
        assert!(report.cases > 1000, "{} cases", report.cases);
    }
}

/// What is written for machines that multiply matrices, on a model of one in plain Rust.
#[test]
fn products_of_matrices_agree_with_the_reference() {
    let report = run(&Cpu::with(Isa::modelled()), Size::Pairs);
    assert!(report.failures.is_empty(), "{report}");
    assert!(report.cases > 1000, "{} cases", report.cases);
}

/// Short enough for the emulator of `scripts/test-avx512`.
#[test]
fn every_instruction_set_passes_the_quick_suite() {
    for isa in Isa::available() {
        let report = run(&Cpu::with(isa), Size::Quick);
        assert!(report.failures.is_empty(), "{}: {report}", isa.name());
    }
}

/// A format that uses every part of the vocabulary that the table does not use yet: codes that
/// stand for vectors, a codebook stored with the tensor, padded rows, two scale tensors.
static VECTORS: Format = Format {
    name: "test-vectors",
    about: "five weights a code, 9 bits, codebook with the tensor, block means",
    values: Values::Stored { entries: 300 },
    code_bits: 9,
    weights_per_code: 5,
    packing: Packing::LowFirst,
    layout: Layout::Rows { block: RowBlock::OneOf(&[40, 80]), pad: 40 },
    scale: ScaleKind::Absmax,
    peak: 1.0,
    unit: 1.0,
    has_mean: true,
    encoder: None,
    keys: Keys::QuantState { library: "lowbit" },
    variant: None,
};

static TRITS: Format = Format {
    name: "test-trits",
    about: "five trits a byte",
    values: Values::Codebook(&[-1.0, 0.0, 1.0]),
    code_bits: 2,
    weights_per_code: 1,
    packing: Packing::Radix { base: 3, per_byte: 5 },
    layout: Layout::Flat { min: 32, max: 4096, default: 128 },
    scale: ScaleKind::Absmax,
    peak: 1.0,
    unit: 0.5,
    has_mean: false,
    encoder: None,
    keys: Keys::QuantState { library: "lowbit" },
    variant: None,
};

#[test]
fn formats_to_come_need_no_new_kernel() {
    let wide = formats::by_name("sub1-v16-c4096").unwrap();
    let crossing = formats::by_name("sub1-v10-c512").unwrap();
    for format in [&VECTORS, &TRITS, wide, crossing] {
        for isa in Isa::available() {
            let mut report = Report::default();
            run_format(&Cpu::with(isa), format, Size::Full, &mut report);
            assert!(report.failures.is_empty(), "{}: {report}", isa.name());
            assert!(report.cases > 100, "{} cases", report.cases);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let format = formats::by_name("nf4").unwrap();
    let mut rng = Rng(3);
    let (n, k, m) = (512, 1024, 5);
    let w = rng.numbers(DType::F32, n * k).values;
    let x = rng.numbers(DType::F32, m * k).values;
    let q = lowbit::quantize(format, &w, &[n, k], None).unwrap();
    let product = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut y = vec![0.0; m * n];
        pool.install(|| lowbit::linear(&q, &x, None, &mut y)).unwrap();
        y
    };
    assert_eq!(product(1), product(4));
}

/// Many rows of activations are multiplied some at a time; each gives what it gives alone.
#[test]
fn many_rows_are_multiplied_as_one_is() {
    let format = formats::by_name("nf4").unwrap();
    let mut rng = Rng(4);
    let (n, k, m) = (70, 192, 250);
    let w = rng.numbers(DType::F32, n * k).values;
    let x = rng.numbers(DType::F32, m * k).values;
    let q = lowbit::quantize(format, &w, &[n, k], None).unwrap();
    for isa in Isa::available() {
        let cpu = Cpu::with(isa);
        let mut all = vec![0.0; m * n];
        cpu.linear(&q, &x, None, &mut all).unwrap();
        for (row, (x, y)) in x.chunks(k).zip(all.chunks(n)).enumerate() {
            let mut alone = vec![0.0; n];
            cpu.linear(&q, x, None, &mut alone).unwrap();
            let largest = alone.iter().fold(0f32, |most, v| most.max(v.abs()));
            let error = alone.iter().zip(y).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(error <= 1e-5 * largest, "{} row {row}: {error} of {largest}", isa.name());
        }
    }
}

/// Numbers of rows around which kernels take turns, on blocks of 64 and more: each row as the reference has it.
#[test]
fn a_few_rows_agree_with_the_reference() {
    let mut rng = Rng(5);
    let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let isas = || Isa::available().into_iter().chain([Isa::modelled()]);
    for (name, block_size) in [("nf4", 64), ("fp4", 256)] {
        let format = formats::by_name(name).unwrap();
        let (n, k) = (70, 512);
        let q = rng.tensor(format, &[n, k], Some(block_size)).unwrap();
        let nested = lowbit::double_quantize(q.clone()).unwrap();
        for (q, m) in [q, nested].iter().flat_map(|q| [5, 6, 12, 16, 17, 32, 33].map(|m| (q, m))) {
            let w = reference::dequantize(q);
            for dtype in DType::ALL {
                let x = rng.numbers(dtype, m * k);
                let expected = reference::linear(q, &x.values, None);
                // Of the result, and of |x| |w|: what the suite allows.
                let (of_result, of_sum) = match dtype {
                    DType::F32 => (1e-6, 1e-6),
                    DType::F16 => (1e-3, 3e-4),
                    DType::BF16 => (8e-3, 3e-4),
                };
                for isa in isas() {
                    let got = Subject::linear(&Cpu::with(isa), q, &x, None).unwrap().values;
                    for (i, (e, g)) in expected.iter().zip(&got).enumerate() {
                        let error = (e - f64::from(*g)).abs();
                        let sum = norm(&x.values[i / n * k..][..k]) * norm(&w[i % n * k..][..k]);
                        let case = format!("{} {name} {m} {dtype} number {i}", isa.name());
                        assert!(error <= of_result * e.abs() + of_sum * sum, "{case}: {e} {g}");
                    }
                }
            }
        }
    }
}
