//! Tensors that bitsandbytes' CUDA kernels wrote.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use lowbit::cpu::Isa;
use lowbit::{Cpu, DType, Element, Nested, Parts, QTensor, Scales, formats};
use safetensors::{Dtype, SafeTensors};

static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../golden/bnb-cuda.safetensors");
    std::fs::read(path).unwrap()
});
static GOLDEN: LazyLock<SafeTensors<'static>> =
    LazyLock::new(|| SafeTensors::deserialize(&FILE).unwrap());

/// Codes that may differ: numbers within an ulp of a threshold, for CUDA's reciprocal is fast.
const CODES_OFF: f64 = 1e-4;

pub fn bytes(name: &str) -> &'static [u8] {
    GOLDEN.tensor(name).unwrap().data()
}

pub fn f32s(name: &str) -> Vec<f32> {
    bytes(name).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The numbers and their type, whatever it is.
fn numbers(name: &str) -> (DType, Vec<f32>) {
    let tensor = GOLDEN.tensor(name).unwrap();
    let words = tensor.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match tensor.dtype() {
        Dtype::F16 => (DType::F16, words.map(|w| half::f16::from_bits(w).to_f32()).collect()),
        Dtype::BF16 => (DType::BF16, words.map(|w| half::bf16::from_bits(w).to_f32()).collect()),
        _ => (DType::F32, f32s(name)),
    }
}

/// Names of tensors without their last part, for those that have it.
fn cases(prefix: &str, last: &str) -> Vec<String> {
    let names = GOLDEN.names();
    let found: Vec<String> = names
        .iter()
        .filter(|n| n.starts_with(prefix))
        .filter_map(|n| n.strip_suffix(last).map(str::to_owned))
        .collect();
    assert!(!found.is_empty());
    found
}

/// What a part such as `bs64` says.
fn size(case: &str, key: &str) -> usize {
    case.split('.').find_map(|part| part.strip_prefix(key)?.parse().ok()).unwrap()
}

fn quantize_as<T: Element>(cpu: Cpu, name: &str, x: &[f32], shape: &[usize], b: usize) -> QTensor {
    let x: Vec<T> = x.iter().map(|v| T::from_f32(*v)).collect();
    cpu.quantize(formats::by_name(name).unwrap(), &x, shape, Some(b)).unwrap()
}

fn quantize(cpu: Cpu, name: &str, x: &(DType, Vec<f32>), shape: &[usize], b: usize) -> QTensor {
    match x.0 {
        DType::F32 => quantize_as::<f32>(cpu, name, &x.1, shape, b),
        DType::F16 => quantize_as::<half::f16>(cpu, name, &x.1, shape, b),
        DType::BF16 => quantize_as::<half::bf16>(cpu, name, &x.1, shape, b),
    }
}

fn dequantized(cpu: Cpu, q: &QTensor, dtype: DType) -> Vec<f32> {
    fn typed<T: Element>(cpu: Cpu, q: &QTensor) -> Vec<f32> {
        let mut out = vec![T::default(); q.numel()];
        cpu.dequantize(q, &mut out).unwrap();
        out.into_iter().map(T::to_f32).collect()
    }
    match dtype {
        DType::F32 => typed::<f32>(cpu, q),
        DType::F16 => typed::<half::f16>(cpu, q),
        DType::BF16 => typed::<half::bf16>(cpu, q),
    }
}

fn stored(
    name: &str,
    shape: &[usize],
    b: usize,
    codes: &'static [u8],
    absmax: Vec<f32>,
) -> QTensor {
    QTensor::from_parts(Parts {
        format: formats::by_name(name).unwrap(),
        shape: shape.to_vec(),
        block_size: Some(b),
        codes: Bytes::from_static(codes),
        scales: Scales::F32(absmax.into()),
        means: None,
        codebook: None,
    })
    .unwrap()
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

fn differing<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}

/// Codes of nibbles that differ where the block is not all zeros.
fn differing_nibbles(ours: &QTensor, theirs: &[u8]) -> usize {
    let absmax = ours.scales().to_f32();
    assert_eq!(ours.codes().len(), theirs.len());
    (0..ours.numel())
        .filter(|i| absmax[i / ours.block_size()] != 0.0)
        .filter(|i| {
            let shift = if i % 2 == 0 { 4 } else { 0 };
            (ours.codes()[i / 2] >> shift & 15) != (theirs[i / 2] >> shift & 15)
        })
        .count()
}

#[test]
fn four_bit_tensors_are_those_of_cuda() {
    for isa in Isa::available() {
        let cpu = Cpu::with(isa);
        let (mut codes, mut off) = (0, 0);
        for case in cases("q4.", ".packed") {
            let name = case.split('.').nth(1).unwrap();
            let (b, x) = (size(&case, "bs"), numbers(&format!("{case}.x")));
            let shape = [x.1.len()];
            let q = quantize(cpu, name, &x, &shape, b);
            let absmax = f32s(&format!("{case}.absmax"));
            assert_eq!(bits(&q.scales().to_f32()), bits(&absmax), "{case}");
            let packed = bytes(&format!("{case}.packed"));
            codes += x.1.len();
            off += differing_nibbles(&q, packed);
            let theirs = stored(name, &shape, b, packed, absmax);
            let (dtype, expected) = numbers(&format!("{case}.dequant"));
            assert_eq!(dequantized(cpu, &theirs, dtype), expected, "{case}");
        }
        assert!(off as f64 <= CODES_OFF * codes as f64, "{off} of {codes} codes differ");
    }
}

#[test]
fn products_are_those_of_cuda() {
    for isa in Isa::available() {
        let cpu = Cpu::with(isa);
        for case in cases("mm.", ".packed") {
            let name = case.split('.').nth(1).unwrap();
            let (n, k, m) = (size(&case, "n"), size(&case, "k"), size(&case, "m"));
            let absmax = f32s(&format!("{case}.absmax"));
            let packed = bytes(&format!("{case}.packed"));
            let q = stored(name, &[n, k], size(&case, "bs"), packed, absmax);
            let (dtype, x) = numbers(&format!("{case}.x"));
            let expected = f32s(&format!("{case}.ref"));
            // The file's products are of weights rounded to the type of the activations.
            let w = dequantized(cpu, &q, dtype);
            let exact = |i: usize| -> f64 {
                let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
            };
            let mut y = vec![0.0f32; m * n];
            cpu.linear_f32(&q.clone().into(), &x, None, &mut y, dtype).unwrap();
            let rms = (expected.iter().map(|v| v * v).sum::<f32>() / expected.len() as f32).sqrt();
            let bound = match dtype {
                DType::F32 => 1e-6,
                DType::F16 => 1e-3,
                DType::BF16 => 1e-2,
            };
            for (i, (y, e)) in y.iter().zip(&expected).enumerate() {
                assert!((exact(i) as f32 - e).abs() <= 1e-6 * rms, "{case}: {} for {e}", exact(i));
                assert!((y - e).abs() <= bound * rms, "{} {case}: {y} for {e}", isa.name());
            }
        }
    }
}

#[test]
fn eight_bit_tensors_are_those_of_cuda() {
    for isa in Isa::available() {
        let cpu = Cpu::with(isa);
        for case in cases("q8.", ".codes") {
            let unsigned = case.contains("unsigned");
            let name = if unsigned { "dynamic8u" } else { "dynamic8" };
            let format = formats::by_name(name).unwrap();
            assert_eq!(bits(format.codebook().unwrap()), bits(&f32s(&format!("{case}.code"))));
            let (b, x) = (size(&case, "bs"), numbers(&format!("{case}.x")));
            let q = quantize(cpu, name, &x, &[x.1.len()], b);
            let absmax = f32s(&format!("{case}.absmax"));
            let codes = bytes(&format!("{case}.codes"));
            assert_eq!(bits(&q.scales().to_f32()), bits(&absmax), "{case}");
            assert_eq!(differing(q.codes(), codes), 0, "{case}");
            let theirs = stored(name, &[x.1.len()], b, codes, absmax);
            let restored = dequantized(cpu, &theirs, DType::F32);
            assert_eq!(restored, f32s(&format!("{case}.dequant")), "{case}");
        }
    }
}

#[test]
fn double_quantization_is_that_of_cuda() {
    let absmax = f32s("dq.absmax");
    let codes = vec![0u8; absmax.len() * 32];
    for isa in Isa::available() {
        let q = QTensor::from_parts(Parts {
            format: formats::by_name("nf4").unwrap(),
            shape: vec![absmax.len() * 64],
            block_size: Some(64),
            codes: Bytes::from(codes.clone()),
            scales: Scales::F32(absmax.clone().into()),
            means: None,
            codebook: None,
        });
        let q = Cpu::with(isa).double_quantize(q.unwrap()).unwrap();
        let Scales::Nested(nested) = q.scales() else { panic!("not nested") };
        let offset = f32s("dq.offset")[0];
        assert!((nested.offset - offset).abs() <= 1e-6 * offset, "{} {offset}", nested.offset);
        assert_eq!(bits(&nested.map), bits(&f32s("dq.code")));
        let theirs = bytes("dq.codes");
        let off = differing(&nested.codes, theirs);
        assert!(off <= 1, "{off} of {} nested codes differ", theirs.len());

        let theirs = Nested {
            codes: Bytes::from_static(theirs),
            absmax: f32s("dq.nested_absmax"),
            offset,
            block_size: 256,
            map: Nested::default_map(),
        };
        let restored = Scales::Nested(theirs).to_f32();
        assert_eq!(bits(&restored), bits(&f32s("dq.restored")));
    }
}

#[test]
fn int8_rows_are_those_of_cuda() {
    for isa in Isa::available() {
        for case in cases("int8.", ".codes") {
            let x: Vec<half::f16> =
                numbers(&format!("{case}.x")).1.into_iter().map(half::f16::from_f32).collect();
            let shape: [usize; 2] =
                GOLDEN.tensor(&format!("{case}.x")).unwrap().shape().try_into().unwrap();
            let threshold = case.strip_prefix("int8.thr").unwrap().parse().unwrap();
            let format = formats::by_name("int8").unwrap();
            let split = Cpu::with(isa).quantize_without_outliers(format, &x, shape, threshold);
            let split = split.unwrap();
            let stats = f32s(&format!("{case}.row_stats"));
            assert_eq!(bits(&split.codes.scales().to_f32()), bits(&stats), "{case}");
            assert_eq!(
                differing(split.codes.codes(), bytes(&format!("{case}.codes"))),
                0,
                "{case}"
            );
            let columns: Vec<usize> = if threshold == 0.0 {
                Vec::new()
            } else {
                let columns = bytes(&format!("{case}.outlier_cols")).chunks_exact(8);
                columns.map(|b| usize::from(b[0])).collect()
            };
            assert_eq!(split.columns, columns, "{case}");
        }
    }
}

#[test]
fn the_golden_file_has_nothing_that_no_test_reads() {
    let mut kinds = BTreeMap::new();
    for name in GOLDEN.names() {
        *kinds.entry(name.split('.').next().unwrap().to_owned()).or_insert(0) += 1;
    }
    // `opt` is read in optim.rs.
    let known: Vec<&str> = kinds.keys().map(String::as_str).collect();
    assert_eq!(known, ["dq", "int8", "mm", "opt", "q4", "q8"]);
}
