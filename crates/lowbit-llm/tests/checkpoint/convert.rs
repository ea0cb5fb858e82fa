//! What is quantized, what is left, and that it all comes back.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use lowbit::format::{Keys, Layout};
use lowbit::{Cpu, CpuDevice, DType, Element, Format, formats};
use lowbit_llm::convert::{DequantizeOptions, QuantizeOptions, Report, dequantize, quantize};
use lowbit_llm::models::Logits;
use lowbit_llm::{Checkpoint, Error, Model};
use regex::Regex;
use safetensors::Dtype;

use super::support::{Tensor, bits, golden, quantized, raw, read, write};

fn nf4() -> QuantizeOptions {
    QuantizeOptions::new(formats::by_name("nf4").unwrap())
}

fn patterns(texts: &[&str]) -> Vec<Regex> {
    texts.iter().map(|text| Regex::new(text).unwrap()).collect()
}

fn run(input: &Path, output: &Path, options: &QuantizeOptions) -> Report {
    quantize(input, output, options, &()).unwrap()
}

fn refused(input: &Path, output: &Path, options: &QuantizeOptions, parts: &[&str]) {
    let error = quantize(input, output, options, &()).expect_err("it was accepted").to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
    assert!(!output.exists());
}

fn names(report: &Report) -> (Vec<&str>, Vec<(&str, String)>) {
    let converted = report.converted.iter().map(|c| c.name.as_str()).collect();
    let left = report.left.iter().map(|l| (l.name.as_str(), l.reason.to_string())).collect();
    (converted, left)
}

/// Quantizes shapes of every kind in type `T` to a format, through a file and directly.
fn every_shape<T: Element>(format: &'static Format, block_size: Option<usize>, double: bool) {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    let shapes: [&[usize]; 6] = [&[64, 96], &[7, 100], &[2, 3, 40], &[1, 4500], &[129], &[0, 32]];
    let dtype = match T::DTYPE {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
    };
    // Layouts that pack several rows, and codebooks, need some.
    let holds = |shape: &&[usize]| match (format.layout, format.codebook()) {
        (Layout::Stacked { rows }, _) => shape.len() < 2 || shape[0] % rows == 0,
        (_, None) => shape.len() < 2 || shape.iter().product::<usize>() > 6000 || shape[0] == 0,
        _ => true,
    };
    let shapes: Vec<&[usize]> = shapes.into_iter().filter(holds).collect();
    let mut tensors = Vec::new();
    let mut weights: Vec<Vec<T>> = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        let values = Tensor::weights(&format!("l{i}.weight"), shape);
        let values: Vec<T> = bytemuck::pod_collect_to_vec::<u8, f32>(&values.data)
            .into_iter()
            .map(T::from_f32)
            .collect();
        let data = bytemuck::cast_slice(&values).to_vec();
        tensors.push(Tensor::new(&format!("l{i}.weight"), dtype, shape, data));
        weights.push(values);
    }
    write(&input, &tensors);
    let mut options = QuantizeOptions::new(format);
    (options.block_size, options.double_quant) = (block_size, double);
    options.write.threads = Some(2);
    let report = run(&input, &output, &options);

    let checkpoint = Checkpoint::open(&output).unwrap();
    let has_rows = |shape: &[usize]| shape.len() > 1 || !format.needs_rows();
    let expected = shapes.iter().filter(|shape| has_rows(shape)).count();
    assert_eq!(report.converted.len(), expected, "{}", format.name);
    for ((tensor, values), shape) in tensors.iter().zip(&weights).zip(shapes) {
        let entry = checkpoint.entry(&tensor.name).unwrap();
        if !has_rows(shape) {
            assert_eq!((entry.format.is_none(), entry.dtype), (true, dtype));
            continue;
        }
        let mut direct = lowbit::quantize(format, values, shape, block_size).unwrap();
        if double {
            direct = lowbit::double_quantize(direct).unwrap();
        }
        let read = quantized(&checkpoint, &tensor.name);
        assert_eq!(bits(&read), bits(&direct), "{} {shape:?}", format.name);
        assert_eq!(std::mem::discriminant(read.scales()), std::mem::discriminant(direct.scales()));
        assert_eq!(entry.format.unwrap().name, format.name);
        assert_eq!(entry.block_size, Some(direct.block_size()));
        assert_eq!(entry.double_quantized, double);
        assert_eq!(entry.bytes, direct.bytes() as u64);
        assert_eq!(entry.bits_per_weight(), direct.bits_per_weight());
        if matches!(format.keys, Keys::QuantState { .. }) {
            assert_eq!(entry.dtype, dtype, "the type before is recorded");
        }
    }
    assert_eq!(report.bytes_after, checkpoint.bytes());
}

#[test]
fn every_format_comes_back_to_the_bit() {
    let variant = formats::by_name("sub1-v12-c16").unwrap();
    for format in formats::ALL.iter().copied().chain([variant]) {
        let sizes = format.block_sizes();
        every_shape::<f32>(format, None, false);
        every_shape::<half::f16>(format, sizes.first().copied(), false);
        every_shape::<half::bf16>(format, sizes.last().copied(), false);
        if format.can_double_quantize() && format.keys != Keys::RowStats {
            every_shape::<half::bf16>(format, None, true);
        }
    }
}

#[test]
fn formats_that_cannot_be_double_quantized_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    write(&input, &[Tensor::weights("a.weight", &[4, 64])]);
    let mut refusals = 0;
    for format in formats::ALL {
        if format.can_double_quantize() && format.keys != Keys::RowStats {
            continue;
        }
        let mut options = QuantizeOptions::new(format);
        options.double_quant = true;
        refused(&input, &dir.path().join("out"), &options, &["double quantization", format.name]);
        refusals += 1;
    }
    assert!(refusals >= 2);
}

#[test]
fn of_a_bare_file_every_weight_is_quantized() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    let tensors = [
        Tensor::weights("embed.weight", &[10, 64]),
        Tensor::weights("norm.weight", &[64]),
        Tensor::weights("attn.in_proj_weight", &[6, 64]),
        Tensor::weights("attn.bias", &[64]),
        Tensor::weights("scale", &[64]),
        Tensor::new("ids.weight", Dtype::I64, &[3], vec![7; 24]),
    ];
    write(&input, &tensors);
    let report = run(&input, &output, &nf4());
    let (converted, left) = names(&report);
    assert_eq!(converted, ["attn.in_proj_weight", "embed.weight", "norm.weight"]);
    assert_eq!(left.len(), 3);
    assert!(left.contains(&("ids.weight", "numbers of type I64".into())));
    assert!(left.contains(&("scale", "not a weight by its name".into())));

    // A format with a scale per row leaves the vector.
    for name in ["int8", "fp8_e4m3"] {
        let output = dir.path().join(name);
        let report = run(&input, &output, &QuantizeOptions::new(formats::by_name(name).unwrap()));
        let (converted, left) = names(&report);
        assert_eq!(converted, ["attn.in_proj_weight", "embed.weight"], "{name}");
        assert!(left.contains(&("norm.weight", "no rows, which this format needs".into())));
        let checkpoint = Checkpoint::open(&output).unwrap();
        assert_eq!(quantized(&checkpoint, "attn.in_proj_weight").format().name, name);
        let untouched =
            |path: &Path| read(path).into_iter().find(|t| t.name == "ids.weight").unwrap();
        assert_eq!(untouched(&output).data, vec![7; 24]);
    }

    let mut options = nf4();
    options.include = patterns(&["^scale$", "bias"]);
    options.skip = patterns(&["bias", "^embed"]);
    let output = dir.path().join("chosen");
    let report = run(&input, &output, &options);
    let (converted, left) = names(&report);
    assert_eq!(converted, ["attn.in_proj_weight", "norm.weight", "scale"]);
    assert!(left.contains(&("attn.bias", "skipped as asked".into())), "skip wins");
    assert!(left.contains(&("embed.weight", "skipped as asked".into())));
}

/// A model directory with layers of every kind.
fn model(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let tensors = [
        Tensor::weights("lm_head.weight", &[16, 32]),
        Tensor::weights("model.embed_tokens.weight", &[16, 32]),
        Tensor::weights("model.layers.2.mlp.up_proj.weight", &[64, 32]),
        Tensor::weights("model.layers.10.mlp.up_proj.weight", &[64, 32]),
        Tensor::weights("model.layers.10.mlp.up_proj.bias", &[64]),
        Tensor::weights("model.layers.10.input_layernorm.weight", &[32]),
        Tensor::weights("model.layers.10.conv.weight", &[4, 4, 4]),
        Tensor::weights("transformer.wte.weight", &[16, 32]),
        Tensor::new("model.layers.10.attn.position_ids", Dtype::I64, &[2], vec![3; 16]),
    ];
    write(&dir.join("model.safetensors"), &tensors);
    let config =
        r#"{"model_type": "llama", "torch_dtype": "float16", "rms_norm_eps": 1e-06, "name": "é"}"#;
    fs::write(dir.join("config.json"), config).unwrap();
}

#[test]
fn of_a_model_linear_layers_are_quantized() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    model(&input);
    let report = run(&input, &output, &nf4());
    let (converted, left) = names(&report);
    // In the order of the numbers.
    assert_eq!(
        converted,
        ["model.layers.2.mlp.up_proj.weight", "model.layers.10.mlp.up_proj.weight"]
    );
    let reasons: Vec<String> =
        left.into_iter().map(|(name, why)| format!("{name}: {why}")).collect();
    assert_eq!(
        reasons,
        [
            "lm_head.weight: the output head",
            "model.embed_tokens.weight: an embedding",
            "model.layers.10.attn.position_ids: numbers of type I64",
            "model.layers.10.conv.weight: not a matrix",
            "model.layers.10.input_layernorm.weight: a norm",
            "model.layers.10.mlp.up_proj.bias: not a weight by its name",
            "transformer.wte.weight: an embedding",
        ]
    );
    let config = fs::read_to_string(output.join("config.json")).unwrap();
    assert!(config.starts_with("{\n  \"model_type\": \"llama\",\n  \"torch_dtype\": \"float16\""));
    assert!(config.contains("\"rms_norm_eps\": 1e-06") && config.contains(r#""\u00e9""#));
    assert!(config.contains("\"bnb_4bit_compute_dtype\": \"float16\""));
    assert!(config.contains("\"llm_int8_skip_modules\": null"));
    // 64 * 32 weights at 4.5 bits, twice; the rest as it was.
    assert_eq!(report.bytes_before - report.bytes_after, 2 * (64 * 32 * 4 - 64 * 32 / 2 - 32 * 4));

    let back = dir.path().join("back");
    let report = dequantize(&output, &back, &DequantizeOptions::default(), &()).unwrap();
    assert_eq!((report.converted.len(), report.left.len()), (2, 7));
    let keys = |dir: &Path| -> Vec<(String, Dtype, Vec<usize>)> {
        let file = read(&dir.join("model.safetensors"));
        file.into_iter().map(|t| (t.name, t.dtype, t.shape)).collect()
    };
    assert_eq!(keys(&back), keys(&input));
    let config = Checkpoint::open(&back).unwrap().config().unwrap().clone();
    assert_eq!(config, Checkpoint::open(&input).unwrap().config().unwrap().clone());
    let options = DequantizeOptions { dtype: Some(DType::F16), ..Default::default() };
    let half = dir.path().join("half");
    assert_eq!(dequantize(&output, &half, &options, &()).unwrap().converted.len(), 8);
    let half = Checkpoint::open(&half).unwrap();
    assert_eq!(half.entry("model.layers.10.mlp.up_proj.bias").unwrap().format_name(), "f16");
    assert_eq!(half.entry("model.layers.10.attn.position_ids").unwrap().format_name(), "i64");
}

/// Experts are linear layers; what chooses among them stays as it is, and transformers is told so.
#[test]
fn of_a_mixture_experts_are_quantized_and_routers_are_not() {
    let dir = tempfile::tempdir().unwrap();
    for (name, mixture, experts) in [("mixtral", "block_sparse_moe", 30), ("qwen3-moe", "mlp", 27)]
    {
        let (input, output) = (golden("../models").join(name), dir.path().join(name));
        let report = run(&input, &output, &nf4());
        let (converted, left) = names(&report);
        let of_experts = converted.iter().filter(|name| name.contains(".experts."));
        assert_eq!(of_experts.count(), experts);
        let router = format!("model.layers.1.{mixture}.gate");
        let weight = format!("{router}.weight");
        let reason =
            left.iter().find(|(name, _)| *name == weight).map(|(_, reason)| reason.as_str());
        assert_eq!(reason, Some("a router of experts"));
        let quantized = Checkpoint::open(&output).unwrap();
        let skipped = &quantized.config().unwrap()["quantization_config"]["llm_int8_skip_modules"];
        assert!(skipped.as_array().unwrap().contains(&router.into()), "{skipped}");
        let apart = apart(&input, &output);
        let mean = apart.iter().sum::<f32>() / apart.len() as f32;
        // Of a standard deviation of 1.
        assert!(mean > 1e-3 && mean < 0.3, "{name}: {mean}");
    }
}

/// How far two models' logits for some tokens are apart.
fn apart(a: &Path, b: &Path) -> Vec<f32> {
    let device = Arc::new(CpuDevice::new(Cpu::best(), DType::F32));
    let logits = [a, b].map(|path| {
        let checkpoint = Checkpoint::open(path).unwrap();
        let model = Model::load(&checkpoint, device.clone(), &mut |_, _| {}).unwrap();
        let mut cache = model.new_cache(8).unwrap();
        let logits = model.forward(&[5, 1, 7, 80], &mut cache, Logits::All, None).unwrap();
        model.device().read(&logits).unwrap()
    });
    logits[0].iter().zip(&logits[1]).map(|(a, b)| (a - b).abs()).collect()
}

/// What experts in any format give is what their numbers give.
#[test]
fn experts_run_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["mixtral", "qwen3-moe"] {
        for mut format in formats::ALL.iter().copied() {
            if format.variant.is_some() {
                // Such small tensors have no use for a large codebook.
                format = format.with_codebook(4, 16).unwrap();
            }
            let path = |what: &str| dir.path().join(format!("{model}-{}-{what}", format.name));
            let (quantized, numbers) = (path("quantized"), path("numbers"));
            run(&golden("../models").join(model), &quantized, &QuantizeOptions::new(format));
            let options = DequantizeOptions { dtype: Some(DType::F32), ..Default::default() };
            let report = dequantize(&quantized, &numbers, &options, &()).unwrap();
            assert!(report.converted.iter().any(|c| c.name.contains(".experts.")));
            let furthest = apart(&quantized, &numbers).into_iter().fold(0.0, f32::max);
            assert!(furthest < 1e-3, "{model} in {}: {furthest}", format.name);
        }
    }
}

#[test]
fn transformers_is_told_which_layers_are_not_what_it_expects() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    model(&input);
    let skip_modules = |out: &str, format: &str, skip: &[&str], include: &[&str]| {
        let mut options = QuantizeOptions::new(formats::by_name(format).unwrap());
        (options.skip, options.include) = (patterns(skip), patterns(include));
        let output = dir.path().join(out);
        run(&input, &output, &options);
        let checkpoint = Checkpoint::open(&output).unwrap();
        let config = checkpoint.config().unwrap()["quantization_config"].clone();
        (config["quant_method"].clone(), config)
    };
    let (method, config) = skip_modules("a", "int8", &["layers\\.2\\."], &[]);
    assert_eq!(method, "bitsandbytes");
    assert_eq!(config["load_in_8bit"], true);
    assert_eq!(
        config["llm_int8_skip_modules"],
        serde_json::json!(["model.layers.2.mlp.up_proj", "lm_head"])
    );
    let (_, config) = skip_modules("b", "nf4", &[], &["lm_head"]);
    assert_eq!(config["llm_int8_skip_modules"], serde_json::json!([]));
    let (_, config) = skip_modules("c", "nf4", &["lm_head"], &[]);
    assert_eq!(config["llm_int8_skip_modules"], serde_json::Value::Null, "it is left anyway");
    let (method, config) = skip_modules("d", "mxfp4", &[], &["embed_tokens"]);
    assert_eq!(method, "lowbit");
    assert_eq!((&config["quant_type"], &config["block_size"]), (&"mxfp4".into(), &32.into()));
    let embedded = Checkpoint::open(&dir.path().join("d")).unwrap();
    assert_eq!(embedded.entry("model.embed_tokens.weight").unwrap().format_name(), "mxfp4");
}

#[test]
fn a_model_in_which_nothing_is_quantized_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    model(&input);
    let mut options = nf4();
    options.skip = patterns(&["proj"]);
    refused(
        &input,
        &dir.path().join("out"),
        &options,
        &["a linear layer to quantize", "skip less"],
    );
}

#[test]
fn nan_and_infinity_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    for (dtype, bad, shown) in [
        (Dtype::F32, f32::NAN.to_le_bytes().to_vec(), "NaN"),
        (Dtype::F32, f32::NEG_INFINITY.to_le_bytes().to_vec(), "-inf"),
        (Dtype::F16, half::f16::INFINITY.to_le_bytes().to_vec(), "inf"),
        (Dtype::BF16, half::bf16::NAN.to_le_bytes().to_vec(), "NaN"),
    ] {
        for format in formats::ALL {
            let size = bad.len();
            let mut data = vec![0; 4 * 64 * size];
            data[70 * size..71 * size].copy_from_slice(&bad);
            data[200 * size..201 * size].copy_from_slice(&bad);
            let good = Tensor::weights("a.weight", &[64, 64]);
            write(&input, &[good, Tensor::new("b.weight", dtype, &[4, 64], data)]);
            let parts = ["tensor \"b.weight\"", "expected finite values", "index 70", shown];
            refused(&input, &output, &QuantizeOptions::new(format), &parts);
            assert_eq!(
                fs::read_dir(dir.path()).unwrap().count(),
                1,
                "nothing but the input is left"
            );
        }
    }
}

#[test]
fn block_sizes_and_names_that_a_format_cannot_have() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    write(&input, &[Tensor::weights("a.weight", &[4, 64]), Tensor::weights("table", &[4, 64])]);
    let mut options = nf4();
    options.block_size = Some(48);
    refused(&input, &output, &options, &["tensor \"a.weight\"", "a power of two", "got 48"]);
    let mut int8 = QuantizeOptions::new(formats::by_name("int8").unwrap());
    int8.include = patterns(&["table"]);
    refused(&input, &output, &int8, &["a tensor whose name ends in weight for int8", "\"table\""]);
}

#[test]
fn what_is_quantized_already_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let help = "dequantize it first";
    refused(
        &golden("tiny-nf4"),
        &output,
        &nf4(),
        &["weights that are not quantized", "nf4 for", help],
    );
    let file = golden("tiny-int8").join("model.safetensors");
    refused(&file, &output, &nf4(), &["int8 for \"model.layers.0.mlp.down_proj.weight\"", help]);
    let input = dir.path().join("gptq");
    model(&input);
    fs::write(input.join("config.json"), r#"{"quantization_config": {"quant_method": "gptq"}}"#)
        .unwrap();
    refused(&input, &output, &nf4(), &["a model quantized by gptq"]);
    let undo = |input: &Path| {
        dequantize(input, &output, &DequantizeOptions::default(), &()).unwrap_err().to_string()
    };
    assert!(undo(&input).contains("a model quantized by gptq"));
    assert!(undo(&golden("tiny-bf16")).contains("only dense tensors"));
}

#[test]
fn f16_that_overflows_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("q"));
    write(&input, &[Tensor::f32s("a.weight", &[2, 32], &[1e5; 64])]);
    run(&input, &output, &nf4());
    let back = dir.path().join("back");
    let mut options = DequantizeOptions { dtype: Some(DType::F16), ..Default::default() };
    let error = dequantize(&output, &back, &options, &()).unwrap_err();
    assert!(matches!(&error, Error::Tensor { tensor, .. } if tensor == "a.weight"), "{error}");
    assert!(error.to_string().contains("choose bf16 or f32") && !back.exists());
    options.dtype = Some(DType::BF16);
    dequantize(&output, &back, &options, &()).unwrap();
}

#[test]
fn shards_in_and_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = nf4();
    let whole = dir.path().join("whole");
    run(&golden("tiny-bf16"), &whole, &options);
    options.write.max_shard_size = 100_000;
    let sharded = dir.path().join("sharded");
    run(&golden("tiny-bf16"), &sharded, &options);
    let checkpoint = Checkpoint::open(&sharded).unwrap();
    assert!(checkpoint.files().len() > 3);
    assert!(!sharded.join("model.safetensors").exists());
    let count = checkpoint.files().len();
    let first = format!("model-00001-of-{count:05}.safetensors");
    assert_eq!(checkpoint.files()[0].file_name().unwrap(), first.as_str());
    let index = fs::read(sharded.join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();

    // Together the shards hold what the one file does, each key where the index says.
    let mut together = Vec::new();
    for file in checkpoint.files() {
        for tensor in read(file) {
            let name = file.file_name().unwrap().to_str().unwrap();
            assert_eq!(index["weight_map"][&tensor.name], name);
            together.push(tensor);
        }
    }
    together.sort_by(|a, b| a.name.cmp(&b.name));
    let one = read(&whole.join("model.safetensors"));
    assert_eq!(index["weight_map"].as_object().unwrap().len(), one.len());
    let total: usize = one.iter().map(|t| t.data.len()).sum();
    assert_eq!(index["metadata"]["total_size"], total);
    let contents = |tensors: Vec<Tensor>| -> Vec<(String, Vec<usize>, Vec<u8>)> {
        tensors.into_iter().map(|t| (t.name, t.shape, t.data)).collect()
    };
    assert_eq!(contents(together), contents(one));
    for file in checkpoint.files() {
        let tensors: usize = read(file).iter().map(|t| t.data.len()).sum();
        assert!(tensors <= 100_000 || read(file).len() == 1, "{}", file.display());
    }

    // Shards in, one file out: and the same numbers as from one file.
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    dequantize(&sharded, &a, &DequantizeOptions::default(), &()).unwrap();
    dequantize(&whole, &b, &DequantizeOptions::default(), &()).unwrap();
    let bytes = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
    assert_eq!(bytes(&a), bytes(&b));
}

#[test]
fn the_same_bytes_with_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = nf4();
    options.double_quant = true;
    let outputs = [1, 2, 7].map(|threads| {
        let output = dir.path().join(threads.to_string());
        options.write.threads = Some(threads);
        run(&golden("tiny-bf16"), &output, &options);
        fs::read(output.join("model.safetensors")).unwrap()
    });
    assert!(outputs[0] == outputs[1] && outputs[1] == outputs[2]);
}

#[test]
fn tensors_that_a_writer_did_not_align() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    let weights = Tensor::weights("a.weight", &[4, 64]);
    let header = r#"{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a.weight":{"dtype":"F32","shape":[4,64],"data_offsets":[1,1025]}}"#;
    fs::write(&input, [raw(header.as_bytes(), 1), weights.data.clone()].concat()).unwrap();
    run(&input, &output, &nf4());
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(&weights.data);
    let direct = lowbit::quantize(nf4().format, &values, &[4, 64], None).unwrap();
    let checkpoint = Checkpoint::open(&output).unwrap();
    assert_eq!(bits(&quantized(&checkpoint, "a.weight")), bits(&direct));
}
