//! Tensors that bitsandbytes' CUDA kernels wrote, on a GPU.

use std::path::Path;

use bytes::Bytes;
use lowbit::conformance::{Numbers, Subject};
use lowbit::{DType, Parts, QTensor, Scales, formats};
use lowbit_gpu::{Gpu, OnGpu};
use safetensors::{Dtype, SafeTensors};

use crate::gpu;

/// Codes that may differ: numbers within an ulp of a threshold, for CUDA's reciprocal is fast.
const CODES_OFF: f64 = 1e-4;

/// Calls `test` with the GPU and the file, unless GPU tests are left out.
fn with_golden(test: impl Fn(&OnGpu<'_, Gpu>, &Golden<'_>)) {
    let Some(gpu) = gpu(false) else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/bnb-cuda.safetensors");
    let file = std::fs::read(path).unwrap();
    let golden = Golden(SafeTensors::deserialize(&file).unwrap());
    test(&OnGpu { queue: &gpu, name: "under test".into() }, &golden);
}

struct Golden<'a>(SafeTensors<'a>);

impl Golden<'_> {
    /// Names of tensors without their last part, for those that have it.
    fn cases(&self, prefix: &str, last: &str) -> Vec<String> {
        let names = self.0.names().into_iter().filter(|name| name.starts_with(prefix));
        let found: Vec<_> =
            names.filter_map(|name| name.strip_suffix(last).map(str::to_owned)).collect();
        assert!(!found.is_empty());
        found
    }

    fn bytes(&self, name: &str) -> &[u8] {
        self.0.tensor(name).unwrap().data()
    }

    fn numbers(&self, name: &str) -> Numbers {
        let tensor = self.0.tensor(name).unwrap();
        let halves = tensor.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        let (dtype, values) = match tensor.dtype() {
            Dtype::F16 => (DType::F16, halves.map(|h| half::f16::from_bits(h).to_f32()).collect()),
            Dtype::BF16 => {
                (DType::BF16, halves.map(|h| half::bf16::from_bits(h).to_f32()).collect())
            }
            _ => (DType::F32, bytemuck::pod_collect_to_vec(tensor.data())),
        };
        Numbers { dtype, values }
    }

    /// A tensor as the file has it.
    fn stored(&self, case: &str, format: &str, shape: &[usize], codes: &str) -> QTensor {
        QTensor::from_parts(Parts {
            format: formats::by_name(format).unwrap(),
            shape: shape.to_vec(),
            block_size: Some(size(case, "bs")),
            codes: Bytes::copy_from_slice(self.bytes(&format!("{case}{codes}"))),
            scales: Scales::F32(self.numbers(&format!("{case}.absmax")).values.into()),
            means: None,
            codebook: None,
        })
        .unwrap()
    }
}

/// What a part such as `bs64` says.
fn size(case: &str, key: &str) -> usize {
    case.split('.').find_map(|part| part.strip_prefix(key)?.parse().ok()).unwrap()
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// Numbers whose codes differ, but for blocks of zeros, whose codes have no meaning.
fn differing(ours: &QTensor, theirs: &QTensor) -> usize {
    let scales = ours.scales().to_f32();
    let per_byte = (8 / ours.format().code_bits) as usize;
    let bytes = ours.codes().iter().zip(theirs.codes().iter()).enumerate();
    bytes
        .filter(|(i, (a, b))| a != b && scales[i * per_byte / ours.block_size()] != 0.0)
        .map(|_| per_byte)
        .sum()
}

#[test]
fn tensors_are_those_of_cuda() {
    with_golden(|gpu, golden| {
        for (prefix, codes) in [("q4.", ".packed"), ("q8.", ".codes")] {
            let (mut all, mut off) = (0, 0);
            for case in golden.cases(prefix, codes) {
                let format = match (prefix, case.contains("unsigned")) {
                    ("q4.", _) => case.split('.').nth(1).unwrap(),
                    (_, true) => "dynamic8u",
                    (_, false) => "dynamic8",
                };
                let x = golden.numbers(&format!("{case}.x"));
                let theirs = golden.stored(&case, format, &[x.values.len()], codes);
                let block_size = Some(theirs.block_size());
                let ours = gpu.quantize(theirs.format(), &x, theirs.shape(), block_size).unwrap();
                assert_eq!(
                    bits(&ours.scales().to_f32()),
                    bits(&theirs.scales().to_f32()),
                    "{case}"
                );
                all += x.values.len();
                off += differing(&ours, &theirs);
                let expected = golden.numbers(&format!("{case}.dequant"));
                let restored = gpu.dequantize(&theirs, expected.dtype).unwrap();
                assert_eq!(restored.values, expected.values, "{case}");
            }
            assert!(off as f64 <= CODES_OFF * all as f64, "{off} of {all} codes differ");
        }
    });
}

#[test]
fn products_are_those_of_cuda() {
    with_golden(|gpu, golden| {
        for case in golden.cases("mm.", ".packed") {
            let format = case.split('.').nth(1).unwrap();
            let w = golden.stored(&case, format, &[size(&case, "n"), size(&case, "k")], ".packed");
            let x = golden.numbers(&format!("{case}.x"));
            let y = gpu.linear(&w, &x, None).unwrap().values;
            let expected = golden.numbers(&format!("{case}.ref")).values;
            assert_eq!(y.len(), expected.len());
            let square: f32 = expected.iter().map(|v| v * v).sum();
            let rms = (square / expected.len() as f32).sqrt();
            // The file's weights are rounded to the type of the activations, our result is.
            let (bound, rounding) = match x.dtype {
                DType::F32 => (1e-6, 0.0),
                DType::F16 => (1e-3, 2f32.powi(-11)),
                DType::BF16 => (1e-2, 2f32.powi(-9)),
            };
            for (y, e) in y.iter().zip(&expected) {
                let limit = bound * rms + rounding * e.abs();
                assert!((y - e).abs() <= limit, "{case}: {y} for {e}");
            }
        }
    });
}

#[test]
fn nested_scales_are_those_of_cuda() {
    with_golden(|gpu, golden| {
        let absmax = golden.numbers("dq.absmax").values;
        let q = QTensor::from_parts(Parts {
            format: formats::by_name("nf4").unwrap(),
            shape: vec![absmax.len() * 64],
            block_size: Some(64),
            codes: vec![0; absmax.len() * 32].into(),
            scales: Scales::F32(absmax.into()),
            means: None,
            codebook: None,
        });
        let q = gpu.double_quantize(q.unwrap()).unwrap();
        let Scales::Nested(nested) = q.scales() else { panic!("not nested") };
        let offset = golden.numbers("dq.offset").values[0];
        assert!((nested.offset - offset).abs() <= 1e-6 * offset, "{} {offset}", nested.offset);
        let codes = nested.codes.iter().zip(golden.bytes("dq.codes"));
        assert!(codes.filter(|(a, b)| a != b).count() <= 1);
    });
}
