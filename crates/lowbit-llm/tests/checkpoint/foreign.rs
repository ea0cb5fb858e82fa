//! Layers as mlx-lm and MLX write them: made here byte by byte, as their code lays them out.

use std::fs;
use std::path::Path;

use lowbit::{QTensor, Scales, Weight, formats};
use lowbit_llm::Checkpoint;
use lowbit_llm::convert::{DequantizeOptions, QuantizeOptions, dequantize, quantize};
use safetensors::Dtype;

use super::support::{Tensor, read, write};

fn halves(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()
}

/// A model directory with these tensors and a field of `config.json`.
fn model(dir: &Path, tensors: &[Tensor], field: &str) {
    fs::create_dir_all(dir).unwrap();
    write(&dir.join("model.safetensors"), tensors);
    let config = format!("{{\"model_type\": \"llama\", \"torch_dtype\": \"float16\", {field}}}");
    fs::write(dir.join("config.json"), config).unwrap();
}

fn weights(checkpoint: &Checkpoint, name: &str) -> (QTensor, Vec<f32>) {
    let Weight::Quantized(q) = checkpoint.weight(name).unwrap() else { panic!("{name} is dense") };
    let mut out = vec![0.0; q.numel()];
    lowbit::dequantize(&q, &mut out).unwrap();
    (q, out)
}

/// Row `r + i * N / 4` is in bits `2 i` and `2 i + 1` of byte row `r`, as `w + 1`.
#[test]
fn scales_of_bitlinear_layers_multiply_or_divide() {
    let dir = tempfile::tempdir().unwrap();
    let (n, k, scale) = (8usize, 3usize, 2.5f32);
    let trit = |row: usize, col: usize| ((row * 5 + col * 7) % 3) as i32 - 1;
    let mut packed = vec![0u8; n / 4 * k];
    for row in 0..n {
        for col in 0..k {
            let (r, i) = (row % (n / 4), row / (n / 4));
            packed[r * k + col] |= ((trit(row, col) + 1) as u8) << (2 * i);
        }
    }
    let name = "model.layers.0.mlp.up_proj.weight";
    for (dtype, data) in
        [(Dtype::F16, halves(&[scale])), (Dtype::F32, scale.to_le_bytes().to_vec())]
    {
        let tensors = [
            Tensor::new(name, Dtype::U8, &[n / 4, k], packed.clone()),
            Tensor::new("model.layers.0.mlp.up_proj.weight_scale", dtype, &[1], data),
        ];
        let class = |class: &str| {
            format!("\"quantization_config\": {{\"quant_method\": \"bitnet\"{class}}}")
        };
        let cases = [
            (class(""), 1.0 / scale),
            (class(", \"linear_class\": \"bitlinear\""), 1.0 / scale),
            (class(", \"linear_class\": \"autobitlinear\""), scale),
            ("\"x\": 0".to_owned(), scale),
        ];
        for (field, factor) in cases {
            model(dir.path(), &tensors, &field);
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            let (q, out) = weights(&checkpoint, name);
            assert_eq!((q.format().name, q.shape()), ("bitlinear", &[n, k][..]));
            for (i, w) in out.iter().enumerate() {
                assert_eq!(*w, trit(i / k, i % k) as f32 * factor, "{field} weight {i}");
            }
        }
    }
}

#[test]
fn what_is_written_as_bitlinear_says_that_its_scale_multiplies() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output, back) =
        (dir.path().join("in"), dir.path().join("out"), dir.path().join("back"));
    let name = "model.layers.0.mlp.up_proj.weight";
    model(&input, &[Tensor::weights(name, &[64, 48])], "\"x\": 0");
    let format = formats::by_name("bitlinear").unwrap();
    quantize(&input, &output, &QuantizeOptions::new(format), &()).unwrap();
    let keys: Vec<(String, Dtype, Vec<usize>)> = read(&output.join("model.safetensors"))
        .into_iter()
        .map(|t| (t.name, t.dtype, t.shape))
        .collect();
    let scale = name.replace("weight", "weight_scale");
    assert!(keys.contains(&(name.into(), Dtype::U8, vec![16, 48])), "{keys:?}");
    assert!(keys.contains(&(scale, Dtype::F16, vec![1])), "{keys:?}");
    let config = fs::read_to_string(output.join("config.json")).unwrap();
    assert!(config.contains("\"quant_method\": \"bitnet\"") && config.contains("autobitlinear"));
    let (q, expected) = weights(&Checkpoint::open(&output).unwrap(), name);
    assert_eq!(q.bits_per_weight(), 2.0 + 16.0 / (64.0 * 48.0));
    dequantize(&output, &back, &DequantizeOptions::default(), &()).unwrap();
    let Weight::Dense(dense) = Checkpoint::open(&back).unwrap().weight(name).unwrap() else {
        panic!("still quantized")
    };
    assert_eq!(dense.to_f32(), expected);
    // Rows that four to a byte do not hold are named.
    model(&input, &[Tensor::weights(name, &[30, 48])], "\"x\": 0");
    let again = dir.path().join("again");
    let error = quantize(&input, &again, &QuantizeOptions::new(format), &()).unwrap_err();
    assert!(error.to_string().contains("multiple of 4 rows"), "{error}");
}

/// `w = scale * bit + bias`, bit `i` of a word is column `32 word + i`.
#[test]
fn one_bit_affine_weights_of_mlx_are_read_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (n, k, group) = (3usize, 128usize, 64usize);
    let bit = |row: usize, col: usize| (row * 131 + col * col) % 5 < 2;
    let words: Vec<u32> = (0..n * k / 32)
        .map(|word| {
            let place = |i: usize| (word * 32 / k, word * 32 % k + i);
            (0..32).map(|i| u32::from(bit(place(i).0, place(i).1)) << i).sum()
        })
        .collect();
    let scales: Vec<f32> = (0..n * k / group).map(|i| 0.25 + i as f32 / 8.0).collect();
    let biases: Vec<f32> = scales.iter().map(|s| -0.375 * s).collect();
    let bf16 = |values: &[f32]| -> Vec<u8> {
        values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
    };
    let name = "model.layers.0.mlp.up_proj.weight";
    for (dtype, is_half) in [(Dtype::F16, true), (Dtype::BF16, false)] {
        let data = |values: &[f32]| if is_half { halves(values) } else { bf16(values) };
        let codes = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let shape = [n, k / group];
        let tensors = [
            Tensor::new(name, Dtype::U32, &[n, k / 32], codes),
            Tensor::new(&name.replace("weight", "scales"), dtype, &shape, data(&scales)),
            Tensor::new(&name.replace("weight", "biases"), dtype, &shape, data(&biases)),
        ];
        model(dir.path(), &tensors, "\"quantization\": {\"group_size\": 64, \"bits\": 1}");
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let (q, out) = weights(&checkpoint, name);
        assert_eq!((q.shape(), q.block_size()), (&[n, k][..], group));
        assert_eq!(matches!(q.scales(), Scales::F16(_)), is_half);
        for (i, w) in out.iter().enumerate() {
            let block = i / k * (k / group) + i % k / group;
            let expected = if bit(i / k, i % k) { scales[block] } else { 0.0 } + biases[block];
            assert_eq!(*w, expected, "weight {i}");
        }
        // Other widths of MLX's are no weights here, as before.
        model(dir.path(), &tensors, "\"quantization\": {\"group_size\": 64, \"bits\": 2}");
        assert!(Checkpoint::open(dir.path()).unwrap().weight(name).is_err());
    }
}

#[test]
fn what_is_written_for_mlx_reads_as_what_was_quantized() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    let name = "model.layers.0.mlp.up_proj.weight";
    let weights_before = Tensor::weights(name, &[6, 192]);
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(&weights_before.data);
    model(&input, &[weights_before], "\"x\": 0");
    let format = formats::by_name("bin1").unwrap();
    let mut options = QuantizeOptions::new(format);
    (options.mlx, options.block_size) = (true, Some(64));
    quantize(&input, &output, &options, &()).unwrap();
    let direct = lowbit::quantize(format, &values, &[6, 192], Some(64)).unwrap();
    let mut expected = vec![0.0f32; values.len()];
    lowbit::dequantize(&direct, &mut expected).unwrap();
    let (q, got) = weights(&Checkpoint::open(&output).unwrap(), name);
    assert_eq!(got, expected);
    assert_eq!((q.codes(), q.codebook()), (direct.codes(), &[0.0, 1.0][..]));
    let keys: Vec<(String, Dtype, Vec<usize>)> = read(&output.join("model.safetensors"))
        .into_iter()
        .map(|t| (t.name, t.dtype, t.shape))
        .collect();
    assert!(keys.contains(&(name.into(), Dtype::U32, vec![6, 6])), "{keys:?}");
    let biases = name.replace("weight", "biases");
    assert!(keys.contains(&(biases, Dtype::F16, vec![6, 3])), "{keys:?}");
    let config = fs::read_to_string(output.join("config.json")).unwrap();
    assert!(config.contains("\"group_size\": 64"), "{config}");
    // MLX has no groups of whole rows, and no trits.
    for (format, block_size) in [(format, None), (formats::by_name("t158").unwrap(), Some(80))] {
        let mut options = QuantizeOptions::new(format);
        (options.mlx, options.block_size) = (true, block_size);
        let error = quantize(&input, &dir.path().join("no"), &options, &()).unwrap_err();
        assert!(error.to_string().contains("for MLX"), "{error}");
    }
}
