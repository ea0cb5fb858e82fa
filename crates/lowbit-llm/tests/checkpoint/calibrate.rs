//! A model that is quantized with a text in mind, layer by layer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowbit::quantizers::Options;
use lowbit::{Cpu, CpuDevice, DType, Weight, formats};
use lowbit_llm::convert::{Calibration, QuantizeOptions, quantize};
use lowbit_llm::eval::evaluate;
use lowbit_llm::{Checkpoint, Model, Tokenizer};
use regex::Regex;

fn tinybard() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tinybard")
}

fn tokens(file: &str, most: usize) -> Vec<u32> {
    let text = std::fs::read_to_string(tinybard().join(file)).unwrap();
    let mut tokens = Tokenizer::open(&tinybard()).unwrap().encode(&text).unwrap();
    tokens.truncate(most);
    tokens
}

fn load(path: &Path) -> Model {
    let device = Arc::new(CpuDevice::new(Cpu::best(), DType::F32));
    Model::load(&Checkpoint::open(path).unwrap(), device, &mut |_, _| {}).unwrap()
}

fn calibration(samples: Option<usize>) -> Option<Calibration> {
    Some(Calibration { tokens: tokens("train.txt", 16 * 128), samples, window: 128 })
}

#[test]
fn calibration_brings_a_model_closer_to_its_original() {
    let dir = tempfile::tempdir().unwrap();
    let original = load(&tinybard());
    let text = tokens("validation.txt", 4 * 128);
    for (name, most) in [("t158", 0.85), ("sub1", 0.75)] {
        let mut options = QuantizeOptions::new(formats::by_name(name).unwrap());
        options.search = Options { fit: true, ..Options::default() };
        let mut kl = [0.0; 2];
        for (calibrated, kl) in kl.iter_mut().enumerate() {
            options.calibration = if calibrated == 1 { calibration(None) } else { None };
            let path = dir.path().join(format!("{name}-{calibrated}"));
            let report = quantize(&tinybard(), &path, &options, &()).unwrap();
            assert_eq!(report.converted.len(), 42);
            let model = load(&path);
            let measured = evaluate(&model, Some(&original), &text, 128, &mut |_, _| {}).unwrap();
            *kl = measured.kl.unwrap();
        }
        assert!(kl[1] < most * kl[0], "{name}: {kl:?}");
    }
}

#[test]
fn a_map_mixes_formats_and_a_seed_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = QuantizeOptions::new(formats::by_name("nf4").unwrap());
    options.map = vec![
        (Regex::new("layers.0.*mlp").unwrap(), formats::by_name("sub1").unwrap()),
        (Regex::new("mlp").unwrap(), formats::by_name("bin1").unwrap()),
        (Regex::new("o_proj").unwrap(), formats::by_name("t158").unwrap()),
    ];
    options.search = Options { fit: true, means: true, ..Options::default() };
    options.calibration = calibration(Some(2));
    let paths = [dir.path().join("one"), dir.path().join("two")];
    for (path, threads) in paths.iter().zip([1, 3]) {
        options.write.threads = Some(threads);
        quantize(&tinybard(), path, &options, &()).unwrap();
    }
    let bytes = |path: &Path| std::fs::read(path.join("model.safetensors")).unwrap();
    assert!(bytes(&paths[0]) == bytes(&paths[1]), "threads change nothing");
    let checkpoint = Checkpoint::open(&paths[0]).unwrap();
    let format = |name: &str| checkpoint.entry(name).unwrap().format_name();
    assert_eq!(format("model.layers.0.mlp.up_proj.weight"), "sub1");
    assert_eq!(format("model.layers.1.mlp.up_proj.weight"), "bin1");
    assert_eq!(format("model.layers.1.self_attn.o_proj.weight"), "t158");
    assert_eq!(format("model.layers.1.self_attn.q_proj.weight"), "nf4");
    // A sign, a scale and a mean for each row of 256.
    let bits = checkpoint.entry("model.layers.1.mlp.up_proj.weight").unwrap().bits_per_weight();
    assert_eq!(bits, 1.0 + 32.0 / 256.0);
}

/// Experts learn from what was sent to them; one that was sent nothing is quantized as without a text.
#[test]
fn experts_are_calibrated_with_what_they_read() {
    let dir = tempfile::tempdir().unwrap();
    let input = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models/mixtral");
    let mut options = QuantizeOptions::new(formats::by_name("t158").unwrap());
    options.search = Options { fit: true, ..Options::default() };
    let quantized = |options: &QuantizeOptions, name: &str| {
        let path = dir.path().join(name);
        quantize(&input, &path, options, &()).unwrap();
        Checkpoint::open(&path).unwrap()
    };
    let plain = quantized(&options, "plain");
    // Of five experts, one token chooses two.
    options.calibration = Some(Calibration { tokens: vec![7], samples: None, window: 1 });
    let one = quantized(&options, "one");
    let tokens = (0..40).map(|i| (i * 37 + 11) % 96).collect();
    options.calibration = Some(Calibration { tokens, samples: None, window: 20 });
    let many = quantized(&options, "many");
    let changed = |other: &Checkpoint, layer: usize| {
        let differs = |expert: &usize| {
            let name = format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight");
            let numbers =
                [&plain, other].map(|checkpoint| match checkpoint.weight(&name).unwrap() {
                    Weight::Quantized(q) => q.codes().to_vec(),
                    Weight::Dense(_) => panic!("{name} is dense"),
                });
            numbers[0] != numbers[1]
        };
        (0..5).filter(differs).count()
    };
    for layer in 0..2 {
        assert_eq!([changed(&one, layer), changed(&many, layer)], [2, 5]);
    }
}

#[test]
fn a_text_that_is_too_short_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = QuantizeOptions::new(formats::by_name("sub1").unwrap());
    for (given, samples) in [(100, None), (300, Some(4)), (300, Some(0))] {
        let tokens = tokens("train.txt", given);
        options.calibration = Some(Calibration { tokens, samples, window: 128 });
        let error = quantize(&tinybard(), &dir.path().join("out"), &options, &()).unwrap_err();
        assert!(error.to_string().contains("too short"), "{error}");
    }
    options.calibration = calibration(None);
    let file = tinybard().join("model.safetensors");
    let error = quantize(&file, &dir.path().join("out"), &options, &()).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
}
