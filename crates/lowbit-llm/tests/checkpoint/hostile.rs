//! Files that are broken, lie or attack: each is one line that names the file, what was expected and
//! what to do, and never a panic.

use std::fs;
use std::path::Path;

use lowbit_llm::Checkpoint;
use proptest::prelude::*;
use safetensors::Dtype;

use super::support::{Tensor, golden, raw, read, write};

/// Opens the path, reads every tensor and gives the error, one line with all of `parts` in it.
#[track_caller]
fn refused(path: &Path, parts: &[&str]) {
    let everything = |checkpoint: Checkpoint| {
        checkpoint.entries().iter().try_for_each(|entry| checkpoint.weight(&entry.name).map(drop))
    };
    let error = Checkpoint::open(path).and_then(everything).expect_err("it was accepted");
    let line = error.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    for part in parts {
        assert!(line.contains(part), "no {part:?} in: {line}");
    }
}

/// A safetensors file of this header and so many zeros.
fn with_header(path: &Path, header: &str, zeros: usize) {
    fs::write(path, raw(header.as_bytes(), zeros)).unwrap();
}

#[test]
fn paths_that_hold_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    refused(&path("nowhere"), &["could not open", "nowhere", "No such file"]);
    refused(dir.path(), &["expected model.safetensors or", "an empty directory", "check the path"]);
    fs::write(path("notes.txt"), "hello").unwrap();
    refused(dir.path(), &["got no weights"]);
    fs::write(path("pytorch_model.bin"), "pickle").unwrap();
    refused(dir.path(), &["only weights in another format, pytorch_model.bin", "save_pretrained"]);
    write(&path("adapter.safetensors"), &[Tensor::weights("a.weight", &[2, 2])]);
    refused(dir.path(), &["got adapter.safetensors", "pass that file itself"]);
    fs::create_dir(path("model.safetensors")).unwrap();
    refused(dir.path(), &["model.safetensors: expected a regular file"]);
}

#[test]
fn files_that_are_cut_or_lie_about_their_header() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    write(&path, &[Tensor::weights("a.weight", &[4, 4])]);
    let whole = fs::read(&path).unwrap();
    for length in [0, 7] {
        fs::write(&path, &whole[..length]).unwrap();
        refused(&path, &["a.safetensors: expected a safetensors file", "truncated"]);
    }
    fs::write(&path, &whole[..20]).unwrap();
    refused(&path, &["ends within the 20 bytes of the file", "got a header length of"]);
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    refused(&path, &["as many bytes as the header describes", "truncated"]);
    fs::write(&path, [whole.clone(), vec![0]].concat()).unwrap();
    refused(&path, &["as many bytes as the header describes"]);
    for length in [u64::MAX, u64::MAX - 7, 1 << 40] {
        let lie = [&length.to_le_bytes(), &whole[8..]].concat();
        fs::write(&path, lie).unwrap();
        refused(&path, &["a header of at most 100 MB", &length.to_string()]);
    }
    fs::write(&path, [&1000u64.to_le_bytes(), &whole[8..]].concat()).unwrap();
    refused(&path, &["got a header length of 1000"]);
    fs::write(&path, raw(b"{\"a\xff\": 1}", 0)).unwrap();
    refused(&path, &["a header in UTF-8"]);
    for header in ["", "{", "[]", "{\"a\": 1}", "{\"a\": {\"dtype\": \"F32\"}}"] {
        with_header(&path, header, 0);
        refused(&path, &["a header in safetensors' JSON", "is it a safetensors file?"]);
    }
}

#[test]
fn headers_whose_tensors_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let one = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    with_header(&path, &one("F32", "[4]", 8, 24), 16);
    refused(&path, &["without a gap or an overlap", "\"a\""]);
    with_header(&path, &one("F32", "[4]", 16, 0), 16);
    refused(&path, &["without a gap or an overlap"]);
    with_header(&path, &one("F32", "[400]", 0, 1600), 16);
    refused(&path, &["as many bytes as the header describes"]);
    with_header(&path, &one("F32", "[5]", 0, 16), 16);
    refused(&path, &["data_offsets that fit the shape", "\"a\" of F32 [5] at 0..16"]);
    with_header(&path, &one("F32", "[4294967296,4294967296,4]", 0, 16), 16);
    refused(&path, &["data_offsets that fit the shape", "\"a\""]);
    with_header(&path, &one("Q4", "[4]", 0, 16), 16);
    refused(&path, &["unknown variant `Q4`"]);
    with_header(&path, &one("F32", "[-4]", 0, 16), 16);
    refused(&path, &["JSON"]);
    let overlap = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                      "b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    with_header(&path, overlap, 6);
    refused(&path, &["without a gap or an overlap", "\"b\""]);
}

#[test]
fn types_that_are_no_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    for (dtype, bytes) in [(Dtype::I64, 8), (Dtype::F8_E4M3, 1), (Dtype::F64, 8), (Dtype::BOOL, 1)]
    {
        write(&path, &[Tensor::new("layer.weight", dtype, &[2], vec![0; 2 * bytes])]);
        let name = dtype.to_string();
        refused(&path, &["tensor \"layer.weight\"", "F32, F16 or BF16", &name]);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.entries()[0].dtype, dtype, "it is listed all the same");
    }
    let checkpoint = Checkpoint::open(&golden("tiny-bf16")).unwrap();
    let error = checkpoint.weight("model.layers.9.mlp.up_proj.weight").unwrap_err().to_string();
    assert!(error.contains("expected a tensor of that name, got none"), "{error}");
}

#[test]
fn tensors_without_numbers_are_no_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let huge = 1 << 40;
    let empty = [
        Tensor::new("a.weight", Dtype::F32, &[0], vec![]),
        Tensor::new("b.weight", Dtype::BF16, &[0, huge, huge], vec![]),
    ];
    write(&path, &empty);
    let checkpoint = Checkpoint::open(&path).unwrap();
    for entry in checkpoint.entries() {
        assert_eq!((entry.numel(), entry.bits_per_weight()), (0, 0.0));
        entry.weight().unwrap();
    }
    fs::write(&path, raw(b"{}", 0)).unwrap();
    assert!(Checkpoint::open(&path).unwrap().entries().is_empty());
}

#[test]
fn shards_that_do_not_fit_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let index = path("model.safetensors.index.json");
    let map = |entries: &str| {
        fs::write(&index, format!(r#"{{"metadata": {{}}, "weight_map": {{{entries}}}}}"#)).unwrap();
    };
    write(&path("one.safetensors"), &[Tensor::weights("a", &[2])]);
    write(&path("two.safetensors"), &[Tensor::weights("b", &[2])]);
    map(r#""a": "one.safetensors", "b": "two.safetensors""#);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().entries().len(), 2);

    map(r#""a": "one.safetensors", "b": "three.safetensors""#);
    refused(dir.path(), &["index.json", "no file", "three.safetensors", "fetch the missing shard"]);
    map(r#""a": "two.safetensors", "b": "two.safetensors""#);
    refused(dir.path(), &["two.safetensors: tensor \"a\"", "as the index says"]);
    map("");
    refused(dir.path(), &["a weight_map that names shards"]);
    for index_text in ["", "{}", "[1]", "{\"weight_map\": {\"a\": 1}}", "\u{feff}{}"] {
        fs::write(&index, index_text).unwrap();
        refused(dir.path(), &["model.safetensors.index.json: expected valid JSON"]);
    }
    fs::write(&index, [0xff, 0xfe]).unwrap();
    refused(dir.path(), &["model.safetensors.index.json: expected valid JSON"]);

    let outside = path("model");
    fs::create_dir(&outside).unwrap();
    let inner = outside.join("model.safetensors.index.json");
    let absolute = path("one.safetensors");
    for shard in [
        "../one.safetensors",
        "./x/../../one.safetensors",
        absolute.to_str().unwrap(),
        "..",
        "",
        "x/",
    ] {
        let text = serde_json::json!({"weight_map": {"a": shard}}).to_string();
        fs::write(&inner, text).unwrap();
        refused(&outside, &["shards named as files of its own directory", "do not load it"]);
    }

    write(&path("two.safetensors"), &[Tensor::weights("a", &[2]), Tensor::weights("b", &[2])]);
    map(r#""a": "one.safetensors", "b": "two.safetensors""#);
    refused(dir.path(), &["tensor \"a\"", "one tensor of that name", "another in"]);
}

#[test]
fn a_config_that_is_not_json() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("model.safetensors"), &[Tensor::weights("a", &[2])]);
    assert!(Checkpoint::open(dir.path()).unwrap().config().is_none());
    fs::write(dir.path().join("config.json"), "{\"model_type\": ").unwrap();
    refused(dir.path(), &["config.json: expected valid JSON", "line 1"]);
}

/// The tensors of a quantized weight, one of them changed or taken away.
struct Quantized {
    dir: tempfile::TempDir,
    tensors: Vec<Tensor>,
}

const NAME: &str = "model.layers.0.self_attn.k_proj.weight";

impl Quantized {
    fn of(checkpoint: &str) -> Self {
        let layer = NAME.strip_suffix("weight").unwrap();
        let mut tensors = read(&golden(checkpoint).join("model.safetensors"));
        tensors.retain(|t| t.name.starts_with(layer));
        Quantized { dir: tempfile::tempdir().unwrap(), tensors }
    }

    fn get(&mut self, suffix: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name.ends_with(suffix)).unwrap()
    }

    fn without(mut self, suffix: &str) -> Self {
        self.tensors.retain(|t| !t.name.ends_with(suffix));
        self
    }

    fn with(mut self, suffix: &str, edit: impl FnOnce(&mut Tensor)) -> Self {
        edit(self.get(suffix));
        self
    }

    /// The JSON with a text in it replaced.
    fn state(self, from: &str, to: &str) -> Self {
        self.with("__nf4", |json| {
            let text = String::from_utf8(json.data.clone()).unwrap();
            assert!(text.contains(from), "{text}");
            json.data = text.replace(from, to).into_bytes();
            json.shape = vec![json.data.len()];
        })
    }

    #[track_caller]
    fn refused(self, parts: &[&str]) {
        let path = self.dir.path().join("a.safetensors");
        write(&path, &self.tensors);
        refused(&path, parts);
    }

    fn accepted(self) -> Checkpoint {
        let path = self.dir.path().join("a.safetensors");
        write(&path, &self.tensors);
        let checkpoint = Checkpoint::open(&path).unwrap();
        checkpoint.weight(NAME).unwrap();
        checkpoint
    }
}

fn shorter(tensor: &mut Tensor) {
    tensor.data.truncate(tensor.data.len() / 2);
    tensor.shape[0] /= 2;
}

#[test]
fn quantized_weights_whose_keys_are_incomplete() {
    let nf4 = || Quantized::of("tiny-nf4");
    let nested = || Quantized::of("tiny-nf4-dq");
    let int8 = || Quantized::of("tiny-int8");
    assert_eq!(nf4().accepted().entries().len(), 1);
    assert_eq!(nested().accepted().entries().len(), 1);
    assert_eq!(int8().accepted().entries().len(), 1);
    assert_eq!(int8().without("weight_format").accepted().entries().len(), 1);

    let beside = |key: &str| format!("\"{NAME}{key}\" beside it, got none");
    nf4().without(".absmax").refused(&["quant_state", &beside(".absmax")]);
    nf4().without(".quant_map").refused(&[&beside(".quant_map")]);
    nf4().without("k_proj.weight").refused(&[&beside("")]);
    nf4().without("__nf4").refused(&[&format!("tensor {NAME:?}"), "quant_state", "beside it"]);
    nested().without(".nested_absmax").refused(&[&beside(".nested_absmax")]);
    nested().without(".nested_quant_map").refused(&[&beside(".nested_quant_map")]);
    int8().without("SCB").refused(&[&format!("tensor {NAME:?}"), "its SCB beside it"]);
    int8().without("k_proj.weight").refused(&["SCB", "beside it, got none"]);
}

#[test]
fn quantized_weights_whose_parts_do_not_fit() {
    let nf4 = || Quantized::of("tiny-nf4");
    let nested = || Quantized::of("tiny-nf4-dq");
    let int8 = || Quantized::of("tiny-int8");
    nf4().with(".absmax", shorter).refused(&["absmax", "512 bytes for nf4 of shape [64, 128]"]);
    nf4().with("k_proj.weight", shorter).refused(&["4096 bytes for nf4 of shape [64, 128]"]);
    nf4().with(".quant_map", shorter).refused(&["quant_map", "expected 16 f32, got F32 [8]"]);
    nf4().with(".absmax", |t| t.dtype = Dtype::I32).refused(&["absmax", "expected F32, got I32"]);
    nf4()
        .with("k_proj.weight", |t| t.dtype = Dtype::I8)
        .refused(&["expected U8 or F16 or BF16 or F32, got I8"]);
    nested()
        .with(".nested_absmax", |t| *t = Tensor::f32s(&t.name, &[2], &[1.0; 2]))
        .refused(&["nested_absmax", "expected 1 f32, got F32 [2]"]);
    nested().with(".nested_quant_map", shorter).refused(&["expected 256 f32"]);
    int8().with("SCB", shorter).refused(&["SCB", "256 bytes for int8 of shape [64, 128]"]);
    int8().with("k_proj.weight", |t| t.dtype = Dtype::U8).refused(&["expected I8, got U8"]);
    int8().with("k_proj.weight", |t| t.shape = vec![64 * 128]).refused(&["[N, K] for int8"]);
    int8().with("SCB", |t| t.dtype = Dtype::I32).refused(&["SCB", "expected F32, got I32"]);
    int8().with("weight_format", |t| t.data = vec![2]).refused(&[
        "weight_format",
        "expected 0",
        "old CUDA",
    ]);
}

#[test]
fn quant_states_that_lie() {
    let nf4 = || Quantized::of("tiny-nf4");
    let nested = || Quantized::of("tiny-nf4-dq");
    nf4().state("{", "[").refused(&["quant_state", "the JSON of a quantized tensor"]);
    nf4().state("nf4", "\u{0}").refused(&["the JSON of a quantized tensor"]);
    nf4().with("__nf4", |t| t.data[20] = 0xff).refused(&["the JSON of a quantized tensor"]);
    nf4().state("\"nf4\"", "\"fp4\"").refused(&["expected quant_type \"nf4\"", "got \"fp4\""]);
    nf4()
        .with("__nf4", |t| t.name = t.name.replace("__nf4", "__nf9"))
        .refused(&["expected one of bitsandbytes__nf4", "got bitsandbytes__nf9"]);
    nf4().state("bfloat16", "int3").refused(&["dtype float32, float16 or bfloat16", "int3"]);
    nf4().state("[64, 128]", "[64, 129]").refused(&["bytes for nf4 of shape [64, 129]"]);
    nf4().state("[64, 128]", "[4294967296, 4294967296]").refused(&["fits in memory"]);
    nf4().state("[64, 128]", "[0, 4294967296, 4294967296, 3]").refused(&["fits in memory"]);
    nf4().state("[64, 128]", "[-64, 128]").refused(&["JSON"]);
    nf4().state("\"blocksize\": 64", "\"blocksize\": 0").refused(&["block_size", "a power of two"]);
    nf4().state("\"blocksize\": 64", "\"blocksize\": 128").refused(&["256 bytes for nf4"]);
    nested()
        .state("\"nested_blocksize\": 256", "\"nested_blocksize\": 0")
        .refused(&["nested_blocksize"]);
    nested()
        .state("\"nested_offset\": 0.", "\"nested_offset\": 1e300, \"x\": 0.")
        .refused(&["nested_offset"]);
    nested().state("float32", "float64").refused(&["nested_dtype"]);
    // Without the nested fields the bytes of `.absmax` would have to be f32.
    nested().state("nested_offset", "offset").refused(&["absmax", "expected F32, got U8"]);
}

#[test]
fn two_states_for_one_weight() {
    let mut nf4 = Quantized::of("tiny-nf4");
    let mut other = nf4.get("__nf4").clone();
    other.name = other.name.replace("nf4", "fp4");
    other.data = String::from_utf8(other.data).unwrap().replace("nf4", "fp4").into_bytes();
    nf4.tensors.push(other);
    nf4.refused(&["beside it, got none"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        open(&bytes);
        open(&raw(&bytes, 16));
    }

    #[test]
    fn no_header_makes_it_panic(
        header in r#"\{("[ab](\.absmax|\.quant_state\.bitsandbytes__nf4)?":\{"dtype":"(F32|U8|I8)","shape":\[[0-9]{0,19}(,[0-9]{1,3})?\],"data_offsets":\[[0-9]{1,2},[0-9]{1,20}\]\},?){0,3}\}"#,
        zeros in 0usize..64,
    ) {
        open(&raw(header.as_bytes(), zeros));
    }

    #[test]
    fn no_single_byte_makes_it_panic(at in 0usize..2500, byte in any::<u8>(), dq in any::<bool>()) {
        let quantized = Quantized::of(if dq { "tiny-nf4-dq" } else { "tiny-int8" });
        let path = quantized.dir.path().join("a.safetensors");
        write(&path, &quantized.tensors);
        let mut bytes = fs::read(&path).unwrap();
        let length = bytes.len();
        bytes[at.min(length - 1)] = byte;
        open(&bytes);
    }
}

/// Opens a file of these bytes and reads all it offers; whether that works is not the question.
fn open(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    fs::write(&path, bytes).unwrap();
    if let Ok(checkpoint) = Checkpoint::open(&path) {
        for entry in checkpoint.entries() {
            let _ = (entry.weight(), entry.bits_per_weight(), entry.format_name());
        }
    }
}
