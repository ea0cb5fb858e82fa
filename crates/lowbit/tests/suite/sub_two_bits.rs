//! What the formats below two bits cost and keep, on normally distributed weights.

use lowbit::conformance::Rng;
use lowbit::cpu::{Isa, reference};
use lowbit::quantizers::{Inputs, Options, Search, patterns, quantize};
use lowbit::{Cpu, DType, Error, Format, QTensor, formats};

/// Squared error over squared weights, and stored bits per weight.
fn cost(q: &QTensor, w: &[f32]) -> (f64, f64) {
    let mut back = vec![0.0f32; w.len()];
    lowbit::dequantize(q, &mut back).unwrap();
    let square = |v: f32| f64::from(v).powi(2);
    let error: f64 = w.iter().zip(&back).map(|(a, b)| square(a - b)).sum();
    (error / w.iter().map(|a| square(*a)).sum::<f64>(), q.bits_per_weight())
}

fn gauss(seed: u64, len: usize) -> Vec<f32> {
    Rng(seed).numbers(DType::F32, len).values
}

#[test]
fn errors_and_sizes_are_those_of_theory() {
    let (n, k) = (512, 2560);
    let w = gauss(1, n * k);
    let sub1 = formats::by_name("sub1").unwrap();
    // Format, error at most, bits: index or sign, and 16 bits a row.
    let row = 16.0 / k as f64;
    let cases: [(&'static Format, f64, f64); 7] = [
        (formats::by_name("bin1").unwrap(), 0.3635, 1.0 + row),
        // Scaled by the mean magnitude that BitNet rounds by; the best scale is another.
        (formats::by_name("t158").unwrap(), 0.264, 1.6 + row),
        (formats::by_name("bitlinear").unwrap(), 0.264, 2.0),
        (sub1.with_bits(0.9).unwrap(), 0.397, 0.9 + row),
        (sub1, 0.441, 0.8 + row),
        (sub1.with_bits(0.75).unwrap(), 0.443, 0.75 + row),
        (sub1.with_bits(0.7).unwrap(), 0.5005, 0.7 + row),
    ];
    for (format, most, bits) in cases {
        let q = lowbit::quantize(format, &w, &[n, k], None).unwrap();
        let (error, stored) = cost(&q, &w);
        assert!(error <= most, "{}: {error:.4}", format.name);
        assert!(error > 0.97 * most, "{}: {error:.4}, too good", format.name);
        // The codebook: two planes of bits for each pattern.
        let book = if q.has_own_codebook() { format.codebook_bytes() } else { 0 };
        let bits = bits + 8.0 * book as f64 / (n * k) as f64;
        assert!((stored - bits).abs() < 1e-3, "{}: {stored:.5} bits, not {bits:.5}", format.name);
    }
}

fn options(fit: bool, means: bool) -> Options {
    Options { search: Search::default(), fit, means }
}

#[test]
fn fitted_scales_and_means_lose_less() {
    let (n, k) = (64, 2560);
    let mut w = gauss(6, n * k);
    let cost_of = |name: &str, w: &[f32], options: &Options| {
        let format = formats::by_name(name).unwrap();
        cost(&quantize(Isa::best(), format, w, &[n, k], None, None, options).unwrap(), w)
    };
    // The least that three levels can lose, by Lloyd and Max; for signs the mean is the best scale.
    for (name, least) in [("t158", 0.1902), ("bitlinear", 0.1902), ("bin1", 0.3634)] {
        let (error, _) = cost_of(name, &w, &options(true, false));
        assert!((error - least).abs() < 0.002, "{name}: {error:.4}");
    }
    // Rows that are not centred.
    for (row, w) in w.chunks_exact_mut(k).enumerate() {
        w.iter_mut().for_each(|v| *v += row as f32 / n as f32);
    }
    let (without, bits) = cost_of("bin1", &w, &options(true, false));
    let (with, more) = cost_of("bin1", &w, &options(true, true));
    assert!(with < 0.8 * without, "{with:.4} against {without:.4}");
    assert!(
        (more - bits - 16.0 / k as f64).abs() < 1e-9,
        "a mean takes 16 bits, not {}",
        more - bits
    );
}

/// Mean squared error of a layer's outputs for the inputs `seen`, against what the original makes of
/// those that it is `given`, over their mean square.
fn output_error(q: &QTensor, w: &[f32], given: &[f32], seen: &[f32]) -> f64 {
    let (n, k) = (q.rows(), q.cols());
    let mut back = vec![0.0f32; w.len()];
    lowbit::dequantize(q, &mut back).unwrap();
    let dot = |w: &[f32], x: &[f32]| -> f64 {
        w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
    };
    let (mut error, mut total) = (0.0, 0.0);
    for (given, seen) in given.chunks_exact(k).zip(seen.chunks_exact(k)) {
        for row in 0..n {
            let part = row * k..(row + 1) * k;
            let (y, z) = (dot(&w[part.clone()], given), dot(&back[part], seen));
            error += (y - z).powi(2);
            total += y.powi(2);
        }
    }
    error / total
}

/// Inputs that hang together, as those of real layers do: mixtures of a few rows of `mix: [R, K]`,
/// and a little of their own.
fn mixed(rng: &mut Rng, mix: &[f32], rows: usize, k: usize) -> Vec<f32> {
    let mut x = vec![0.0f32; rows * k];
    for x in x.chunks_exact_mut(k) {
        for mix in mix.chunks_exact(k) {
            let part = rng.normal();
            x.iter_mut().zip(mix).for_each(|(x, m)| *x += part * m);
        }
        x.iter_mut().for_each(|x| *x += 0.3 * rng.normal());
    }
    x
}

/// Mean of `aᵀ b` over the rows: `[K, K]`.
fn products(a: &[f32], b: &[f32], k: usize) -> Vec<f32> {
    let rows = (a.len() / k) as f32;
    let mut products = vec![0.0f32; k * k];
    for (a, b) in a.chunks_exact(k).zip(b.chunks_exact(k)) {
        for (products, a) in products.chunks_exact_mut(k).zip(a) {
            products.iter_mut().zip(b).for_each(|(p, b)| *p += a * b / rows);
        }
    }
    products
}

#[test]
fn feedback_loses_less_of_the_outputs_in_every_format() {
    let (n, k, rank) = (64, 160, 40);
    let (w, mix, mut rng) = (gauss(7, n * k), gauss(8, rank * k), Rng(9));
    let (seen, unseen) = (mixed(&mut rng, &mix, 600, k), mixed(&mut rng, &mix, 100, k));
    let mut gram = products(&seen, &seen, k);
    let crossing = formats::by_name("sub1-v16-c512").unwrap();
    let signed = |f: &&Format| f.codebook().is_none_or(|book| book.iter().any(|v| *v < 0.0));
    for format in formats::ALL.iter().copied().chain([crossing]).filter(signed) {
        let sizes = format.block_sizes().into_iter().filter(|b| k % b == 0).map(Some);
        for block_size in sizes.chain(format.default_block_size().is_none().then_some(None)) {
            let run = |gram: Option<&[f32]>| {
                let options = options(true, false);
                let shape = [n, k];
                let inputs = gram.map(|gram| Inputs { gram, cross: None });
                quantize(Isa::best(), format, &w, &shape, block_size, inputs.as_ref(), &options)
                    .unwrap()
            };
            let (plain, fed) = (run(None), run(Some(&gram)));
            assert_eq!(plain.bits_per_weight(), fed.bits_per_weight());
            let error = |q: &QTensor| output_error(q, &w, &unseen, &unseen);
            let (plain, fed) = (error(&plain), error(&fed));
            let name = format.name;
            assert!(fed < 0.9 * plain, "{name} {block_size:?}: {fed:.4} against {plain:.4}");
        }
    }
    let bad = |gram: &[f32]| {
        let (format, shape) = (formats::by_name("t158").unwrap(), [n, k]);
        let options = options(true, false);
        let inputs = Inputs { gram, cross: None };
        quantize(Isa::best(), format, &w, &shape, None, Some(&inputs), &options).unwrap_err()
    };
    assert!(bad(&gram[1..]).to_string().contains("inner products"));
    gram[3 * k + 3] = f32::NAN;
    assert!(matches!(bad(&gram), Error::NotFinite { index: 3, .. }));
}

/// Layers before have mixed the inputs up: each is a mixture of what the original gave and of that of
/// the column before.
#[test]
fn a_layer_aims_at_what_the_original_gave() {
    let (n, k, rank) = (64, 160, 40);
    let (w, mix, mut rng) = (gauss(7, n * k), gauss(8, rank * k), Rng(9));
    let mut inputs = |rows: usize| {
        let given = mixed(&mut rng, &mix, rows, k);
        let spoilt = |x: &[f32]| -> Vec<f32> {
            (0..k).map(|i| 0.8 * x[i] + 0.4 * x[(i + k - 1) % k]).collect()
        };
        let seen: Vec<f32> = given.chunks_exact(k).flat_map(spoilt).collect();
        (given, seen)
    };
    let ((given, seen), (given_later, seen_later)) = (inputs(600), inputs(100));
    let (gram, cross) = (products(&seen, &seen, k), products(&given, &seen, k));
    for name in ["nf4", "t158", "bin1", "sub1"] {
        let format = formats::by_name(name).unwrap();
        let error = |cross: Option<&[f32]>| {
            let inputs = Inputs { gram: &gram, cross };
            let options = options(true, false);
            let q = quantize(Isa::best(), format, &w, &[n, k], None, Some(&inputs), &options);
            output_error(&q.unwrap(), &w, &given_later, &seen_later)
        };
        let (own, aimed) = (error(None), error(Some(&cross)));
        assert!(aimed < 0.9 * own, "{name}: {aimed:.4} against {own:.4}");
    }
    let short = Inputs { gram: &gram, cross: Some(&cross[1..]) };
    let t158 = formats::by_name("t158").unwrap();
    let error = quantize(Isa::best(), t158, &w, &[n, k], None, Some(&short), &options(true, false));
    assert!(error.unwrap_err().to_string().contains("products of inputs"));
}

#[test]
fn a_search_depends_on_its_seed_and_on_nothing_else() {
    let (format, shape) = (formats::by_name("sub1-v10-c128").unwrap(), [96, 163]);
    let w = gauss(2, 96 * 163);
    let run = |isa, threads: usize, seed| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let search = Search { seed, ..Search::default() };
        let q = pool
            .install(|| patterns::quantize(isa, format, &w, &shape, None, None, &search))
            .unwrap();
        (q.codes().clone(), q.codebook().to_vec(), q.scales().to_f32())
    };
    let first = run(Isa::best(), 1, 7);
    for isa in Isa::available() {
        assert!(run(isa, 3, 7) == first, "{}", isa.name());
    }
    assert!(run(Isa::best(), 1, 8) != first);
}

#[test]
fn important_columns_lose_less() {
    let (format, n, k) = (formats::by_name("sub1").unwrap(), 128, 640);
    let w = gauss(3, n * k);
    let importance: Vec<f32> = (0..k).map(|i| if i % 5 == 0 { 25.0 } else { 1.0 }).collect();
    let error = |importance: Option<&[f32]>| {
        let search = Search::default();
        let q = patterns::quantize(Isa::best(), format, &w, &[n, k], None, importance, &search)
            .unwrap();
        let mut back = vec![0.0f32; w.len()];
        lowbit::dequantize(&q, &mut back).unwrap();
        let all = w.iter().zip(&back).enumerate();
        all.filter(|(i, _)| i % k % 5 == 0).map(|(_, (a, b))| f64::from(a - b).powi(2)).sum::<f64>()
    };
    let (with, without) = (error(Some(&importance)), error(None));
    assert!(with < 0.9 * without, "{with} against {without}");
}

#[test]
fn what_a_layout_cannot_hold_is_refused_with_a_reason() {
    let refused = |name: &str, n: usize, k: usize, words: &str| {
        let format = formats::by_name(name).unwrap();
        let error = lowbit::quantize(format, &gauss(4, n * k), &[n, k], None).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused("bitlinear", 30, 64, "multiple of 4 rows");
    refused("sub1", 16, 100, "256 vectors of 10 weights or more");
    let format = formats::by_name("sub1").unwrap();
    let mut w = gauss(5, 64 * 100);
    w[777] = f32::NAN;
    let error = lowbit::quantize(format, &w, &[64, 100], None).unwrap_err();
    assert!(matches!(error, Error::NotFinite { index: 777, .. }), "{error}");
}

/// Rows enough for tables, and more columns than are looked up together: groups that end within a row or
/// a block, blocks and whole rows, one row of activations and several, one of them an outlier.
#[test]
fn products_by_tables_are_those_of_the_reference() {
    let mut rng = Rng(11);
    for format in formats::ALL {
        let sizes = format.block_sizes().into_iter().rev().map(Some);
        let sizes = format.default_block_size().is_none().then_some(None).into_iter().chain(sizes);
        let shapes = [(300, 967, 3), (20, 9001, 2), (600, 640, 1), (256, 330, 4), (516, 81, 1)];
        for (block_size, (n, k, m)) in sizes.cycle().zip(shapes) {
            let Ok(q) = rng.tensor(format, &[n, k], block_size) else { continue };
            let mut x: Vec<f32> = (0..m * k).map(|_| rng.normal()).collect();
            x[k / 2] = 30.0;
            let (expected, w) = (reference::linear(&q, &x, None), reference::dequantize(&q));
            let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let norms: Vec<f64> = w.chunks_exact(k).map(norm).collect();
            for isa in Isa::available() {
                let mut y = vec![f32::NAN; m * n];
                Cpu::with(isa).linear(&q, &x, None, &mut y).unwrap();
                for (i, (y, e)) in y.iter().zip(&expected).enumerate() {
                    let x = &x[i / n * k..][..k];
                    let bound = 1e-6 * norm(x) * norms[i % n] + 1e-6 * e.abs();
                    let error = (f64::from(*y) - e).abs();
                    let name = format.name;
                    assert!(error <= bound, "{name} {block_size:?} [{n}, {k}] {i}: {error:e}");
                }
            }
        }
    }
}
