//! What bitsandbytes and transformers wrote: ours must read it, and write the same.

use std::fs;
use std::path::Path;

use lowbit::{DType, Weight, formats};
use lowbit_llm::Checkpoint;
use lowbit_llm::convert::{DequantizeOptions, QuantizeOptions, dequantize, quantize};
use safetensors::Dtype;

use super::support::{Tensor, golden, model, read};

/// Checkpoint, format, double quantization.
const TINY: [(&str, &str, bool); 4] = [
    ("tiny-nf4", "nf4", false),
    ("tiny-nf4-dq", "nf4", true),
    ("tiny-fp4", "fp4", false),
    ("tiny-int8", "int8", false),
];

/// Quantizes `source` as `written` was, and gives the tensors of both files, sorted by name.
fn quantize_as(
    source: &Path,
    written: &Path,
    (format, double_quant): (&str, bool),
    target: &Path,
) -> Vec<(Tensor, Tensor)> {
    let mut options = QuantizeOptions::new(formats::by_name(format).unwrap());
    options.double_quant = double_quant;
    quantize(source, target, &options, &()).unwrap();
    let text = |path: &Path| fs::read_to_string(path.join("config.json")).unwrap();
    assert_eq!(text(target), text(written), "{}", written.display());
    let tokenizer = |path: &Path| fs::read(path.join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer(target), tokenizer(source));
    let ours = read(&target.join("model.safetensors"));
    let theirs = read(&written.join("model.safetensors"));
    let keys = |file: &[Tensor]| -> Vec<(String, Dtype)> {
        file.iter().map(|t| (t.name.clone(), t.dtype)).collect()
    };
    assert_eq!(keys(&ours), keys(&theirs), "{}", written.display());
    ours.into_iter().zip(theirs).collect()
}

#[test]
fn quantizing_writes_the_files_of_bitsandbytes() {
    let out = tempfile::tempdir().unwrap();
    for (name, format, double_quant) in TINY {
        let (target, written) = (out.path().join(name), golden(name));
        let how = (format, double_quant);
        let (mut codes, mut different) = (0, 0);
        for (ours, theirs) in quantize_as(&golden("tiny-bf16"), &written, how, &target) {
            assert_eq!(ours.shape, theirs.shape, "{name} {}", ours.name);
            let is_code = ours.dtype == Dtype::I8
                || (ours.dtype == Dtype::U8 && ours.shape.get(1) == Some(&1))
                || (double_quant && ours.name.ends_with(".absmax"));
            if is_code {
                codes += ours.data.len();
                different += ours.data.iter().zip(&theirs.data).filter(|(a, b)| a != b).count();
            } else {
                assert_eq!(ours.data, theirs.data, "{name} {}", ours.name);
            }
        }
        assert!(codes > 100_000, "{name}: {codes} codes compared");
        if ["tiny-fp4", "tiny-int8"].contains(&name) {
            // The tiny files come from bitsandbytes' CPU kernels. Those give a zero of FP4 either
            // sign, and decide ties by roundings of their own (of a distance, of 127 times a
            // reciprocal). Ours are the rules of the CUDA kernels.
            assert_equally_near(&target, &written);
        } else {
            assert!(different as f64 <= codes as f64 * 1e-4, "{name}: {different} of {codes}");
        }
    }
}

#[test]
fn quantizing_writes_what_cuda_wrote() {
    let out = tempfile::tempdir().unwrap();
    let (source, written) = (model("tinybard"), model("tinybard-nf4dq"));
    let mut states = 0;
    for (ours, theirs) in quantize_as(&source, &written, ("nf4", true), &out.path().join("out")) {
        // CUDA sums the scales in f32 and in an order of its own: the mean may be an ulp away, and
        // so what is left of the largest scale.
        if ours.name.ends_with(".nested_absmax") {
            let f32s = |t: &Tensor| bytemuck::pod_collect_to_vec::<u8, f32>(&t.data);
            for (a, b) in f32s(&ours).iter().zip(f32s(&theirs)) {
                assert!((a - b).abs() <= 3e-7 * b, "{}: {a} {b}", ours.name);
            }
        } else if ours.name.ends_with("bitsandbytes__nf4") {
            let parse = |t: &Tensor| -> (f32, serde_json::Value) {
                let mut json: serde_json::Value = serde_json::from_slice(&t.data).unwrap();
                let offset = json["nested_offset"].take().as_f64().unwrap();
                (offset as f32, json)
            };
            let ((a, ours), (b, theirs)) = (parse(&ours), parse(&theirs));
            assert_eq!(ours, theirs);
            assert!(a.to_bits().abs_diff(b.to_bits()) <= 1, "{a} {b}");
            states += 1;
        } else {
            assert_eq!((ours.shape, ours.data), (theirs.shape, theirs.data), "{}", ours.name);
        }
    }
    assert_eq!(states, 42);
}

/// Where two quantized copies of the same weights differ, both are as near to the original.
fn assert_equally_near(ours: &Path, theirs: &Path) {
    let open = |path: &Path| Checkpoint::open(path).unwrap();
    let (original, ours, theirs) = (open(&golden("tiny-bf16")), open(ours), open(theirs));
    for entry in original.entries() {
        let values = |from: &Checkpoint| match from.weight(&entry.name).unwrap() {
            Weight::Dense(dense) => dense.to_f32(),
            Weight::Quantized(q) => {
                let mut out = vec![0.0f32; q.numel()];
                lowbit::dequantize(&q, &mut out).unwrap();
                out
            }
        };
        let (w, a, b) = (values(&original), values(&ours), values(&theirs));
        let largest = w.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let distance = |(w, (a, b)): (&f32, (&f32, &f32))| ((w - a).abs() - (w - b).abs()).abs();
        let far = w.iter().zip(a.iter().zip(&b)).find(|x| distance(*x) > 1e-6 * largest);
        assert_eq!(far, None, "{}", entry.name);
    }
}

#[test]
fn bitsandbytes_files_read_as_one_tensor_a_weight() {
    for (name, format, double_quant) in TINY {
        let checkpoint = Checkpoint::open(&golden(name)).unwrap();
        assert_eq!(checkpoint.entries().len(), 21, "{name}");
        assert_eq!(checkpoint.config().unwrap()["model_type"], "llama");
        let entry = checkpoint.entry("model.layers.1.mlp.down_proj.weight").unwrap();
        assert_eq!(entry.shape, [128, 320]);
        assert_eq!(entry.format.unwrap().name, format);
        assert_eq!(entry.double_quantized, double_quant);
        assert_eq!(entry.dtype, Dtype::BF16, "{name}");
        let weight = checkpoint.weight(&entry.name).unwrap();
        assert_eq!(weight.bytes() as u64, entry.bytes, "{name}");
        let Weight::Quantized(q) = weight else { panic!("{name} is dense") };
        assert!(!q.has_own_codebook(), "{name}: the table in the file is the format's own");
        let dense = checkpoint.entry("lm_head.weight").unwrap();
        assert_eq!((dense.format_name().as_str(), dense.bits_per_weight()), ("bf16", 16.0));
    }
}

#[test]
fn dequantizing_comes_back_near_the_original() {
    let out = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(&golden("tiny-bf16")).unwrap();
    for (name, _, _) in TINY {
        for dtype in [None, Some(DType::F32), Some(DType::F16)] {
            let target = out.path().join(format!("{name}-{dtype:?}"));
            let options = DequantizeOptions { dtype, ..Default::default() };
            dequantize(&golden(name), &target, &options, &()).unwrap();
            let back = Checkpoint::open(&target).unwrap();
            let config = back.config().unwrap();
            assert!(config.get("quantization_config").is_none());
            let expected = match dtype {
                None => "bfloat16",
                Some(DType::F32) => "float32",
                _ => "float16",
            };
            assert_eq!(config["dtype"], expected);
            assert_eq!(back.entries().len(), original.entries().len());
            for (back, original) in back.entries().iter().zip(original.entries()) {
                assert_eq!((&back.name, &back.shape), (&original.name, &original.shape));
                let wanted = dtype.unwrap_or(DType::BF16).name();
                assert_eq!(back.format_name(), wanted);
                let values = |weight| match weight {
                    Weight::Dense(dense) => dense.to_f32(),
                    Weight::Quantized(q) => panic!("{} is still {}", back.name, q.format().name),
                };
                let (a, b) = (values(back.weight().unwrap()), values(original.weight().unwrap()));
                let power: f32 = b.iter().map(|v| v * v).sum();
                let error: f32 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
                // FP4 loses most: a tenth of the standard deviation, and some.
                assert!((error / power).sqrt() < 0.16, "{name} {}", back.name);
            }
        }
    }
}
