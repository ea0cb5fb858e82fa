//! The limits of bitsandbytes' own tests (mean + 7 sigma over many draws).

use half::{bf16, f16};
use lowbit::conformance::Rng;
use lowbit::cpu::Isa;
use lowbit::{Cpu, DType, Element, Format, formats};

/// Mean absolute and mean relative error of quantizing and restoring `w`.
fn round_trip(name: &str, w: &[f32], shape: &[usize], block_size: usize) -> (f64, f64) {
    let q = lowbit::quantize(formats::by_name(name).unwrap(), w, shape, Some(block_size)).unwrap();
    let mut back = vec![0.0f32; w.len()];
    lowbit::dequantize(&q, &mut back).unwrap();
    let (mut absolute, mut relative) = (0.0, 0.0);
    for (a, b) in w.iter().zip(&back) {
        let error = f64::from((a - b).abs());
        absolute += error;
        relative += error / (f64::from(a.abs()) + 1e-8);
    }
    (absolute / w.len() as f64, relative / w.len() as f64)
}

#[test]
fn four_bit_round_trips_stay_within_the_limits() {
    let limits = [
        (32, [(0.06823, 0.1919), (0.08956, 0.2448)]),
        (64, [(0.07332, 0.2057), (0.09732, 0.2628)]),
        (128, [(0.07747, 0.2180), (0.10391, 0.2788)]),
        (256, [(0.08105, 0.2289), (0.10996, 0.2933)]),
        (4096, [(0.09507, 0.2695), (0.13382, 0.3458)]),
    ];
    let w = Rng(1).numbers(DType::F32, 1024 * 1024).values;
    for (block_size, of) in limits {
        for (name, (absolute, relative)) in ["nf4", "fp4"].into_iter().zip(of) {
            let (a, r) = round_trip(name, &w, &[1024, 1024], block_size);
            assert!(a < absolute && r < relative, "{name} block {block_size}: {a:.5} / {r:.4}");
            // Far below the limits would mean that something else is measured.
            assert!(a > 0.95 * absolute, "{name} block {block_size}: {a:.5}");
        }
    }
}

#[test]
fn eight_bit_round_trips_stay_within_the_limits() {
    let w = Rng(2).numbers(DType::F32, 1024 * 1024).values;
    for block_size in [64, 256, 4096] {
        let (a, r) = round_trip("dynamic8", &w, &[1024, 1024], block_size);
        assert!(a < 0.011 && r < 0.018, "block {block_size}: {a:.5} / {r:.4}");
    }
}

#[test]
fn fp8_rows_have_the_error_of_three_mantissa_bits() {
    let w = Rng(3).numbers(DType::F32, 256 * 1024).values;
    let q =
        lowbit::quantize(formats::by_name("fp8_e4m3").unwrap(), &w, &[256, 1024], None).unwrap();
    let mut back = vec![0.0f32; w.len()];
    lowbit::dequantize(&q, &mut back).unwrap();
    let square = |v: f32| f64::from(v).powi(2);
    let error: f64 = w.iter().zip(&back).map(|(a, b)| square(a - b)).sum();
    let relative = (error / w.iter().map(|a| square(*a)).sum::<f64>()).sqrt();
    assert!((0.025..0.0275).contains(&relative), "{relative:.4}");
}

#[test]
fn a_zero_in_a_block_comes_back_as_zero() {
    let mut w = Rng(4).numbers(DType::F32, 64 * 256).values;
    w.iter_mut().step_by(7).for_each(|v| *v = 0.0);
    let has_zero = |f: &&&Format| f.codebook().is_some_and(|book| book.contains(&0.0));
    for format in formats::ALL.iter().filter(has_zero) {
        let q = lowbit::quantize(format, &w, &[64, 256], None).unwrap();
        let mut back = vec![1.0f32; w.len()];
        lowbit::dequantize(&q, &mut back).unwrap();
        assert!(back.iter().step_by(7).all(|v| *v == 0.0), "{}", format.name);
    }
}

/// Error, relative error and largest error of gemv against dequantize and multiply, each over
/// sqrt(dim), as bitsandbytes' test_gemv_4bit takes them.
fn gemv_errors<T: Element>(cpu: Cpu, name: &str, dim: usize, rng: &mut Rng) -> [f64; 3] {
    let n = dim;
    let shrink = 1.0 / (dim as f32).sqrt();
    let w: Vec<T> = (0..n * dim).map(|_| T::from_f32(rng.normal() * shrink)).collect();
    let x: Vec<T> = (0..dim).map(|_| T::from_f32(rng.normal())).collect();
    let q = cpu.quantize(formats::by_name(name).unwrap(), &w, &[n, dim], None).unwrap();
    let (mut back, mut y) = (vec![T::default(); w.len()], vec![T::default(); n]);
    cpu.dequantize(&q, &mut back).unwrap();
    cpu.gemv(&q, &x, &mut y).unwrap();
    let (mut sum, mut relative, mut max) = (0.0, 0.0, 0.0f64);
    for (row, y) in back.chunks_exact(dim).zip(&y) {
        let exact: f64 =
            row.iter().zip(&x).map(|(w, x)| f64::from(w.to_f32()) * f64::from(x.to_f32())).sum();
        let exact = f64::from(T::from_f32(exact as f32).to_f32());
        let error = (exact - f64::from(y.to_f32())).abs();
        sum += error;
        relative += error / (exact.abs() + 1e-5);
        max = max.max(error);
    }
    let root = (dim as f64).sqrt();
    [sum / n as f64 / root, relative / n as f64 / root, max / root]
}

fn check_gemv<T: Element>(small: [f64; 3], large: [f64; 3]) {
    for isa in Isa::available() {
        let mut rng = Rng(5);
        for name in ["nf4", "fp4"] {
            for (dim, limits) in [(128, small), (256, small), (512, small), (1024, large)] {
                let got = gemv_errors::<T>(Cpu::with(isa), name, dim, &mut rng);
                let within = got.iter().zip(limits).all(|(g, limit)| *g <= limit);
                assert!(within, "{} {name} {dim}: {got:?} > {limits:?}", isa.name());
            }
        }
    }
}

#[test]
fn gemv_stays_within_the_limits_for_f32() {
    check_gemv::<f32>([3.4e-8, 9.2e-6, 2.0e-7], [2.4e-8, 1.6e-6, 1.2e-7]);
}

#[test]
fn gemv_stays_within_the_limits_for_f16() {
    check_gemv::<f16>([9.6e-5, 2.7e-3, 9.0e-4], [3.8e-5, 1.5e-3, 3.0e-4]);
}

#[test]
fn gemv_stays_within_the_limits_for_bf16() {
    check_gemv::<bf16>([8.3e-4, 8.5e-2, 7.6e-3], [2.1e-4, 6.0e-3, 2.0e-3]);
}

#[test]
fn quantizing_into_used_memory_gives_the_same_bytes() {
    // Large enough for several pieces, and with codes that end inside a byte.
    for (rows, cols) in [(4, 37), (304, 511)] {
        let w = Rng(5).numbers(DType::F32, rows * cols).values;
        for format in formats::ALL.iter().filter(|f| f.encoder.is_some()) {
            let q = lowbit::quantize(format, &w, &[rows, cols], None).unwrap();
            let mut codes = vec![0xa5u8; q.codes().len()];
            let shape = [rows, cols];
            let scales = Cpu::best().quantize_into(format, &w, &shape, None, &mut codes).unwrap();
            assert!(codes == *q.codes(), "{}", format.name);
            assert_eq!(scales.to_f32(), q.scales().to_f32(), "{}", format.name);
            let short = Cpu::best().quantize_into(format, &w, &shape, None, &mut codes[1..]);
            assert!(short.is_err(), "{}", format.name);
        }
    }
}
