//! Whole models on a GPU against the CPU, and against what others computed.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lowbit::device::Device;
use lowbit::{Cpu, CpuDevice, DType};
use lowbit_gpu::GpuDevice;
use lowbit_llm::generate::{Generation, Options, Session};
use lowbit_llm::models::Logits;
use lowbit_llm::sampling::Sampling;
use lowbit_llm::{Checkpoint, Model};
use serde_json::Value;

use crate::counting::Counting;
use crate::gpu;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn load(directory: &Path, device: Arc<dyn Device>) -> Model {
    Model::load(&Checkpoint::open(directory).unwrap(), device, &mut |_, _| {}).unwrap()
}

/// A model on the processor and on a GPU.
fn both(directory: &Path, dtype: DType) -> Option<[Model; 2]> {
    let gpu = gpu(false)?;
    let cpu = load(directory, Arc::new(CpuDevice::new(Cpu::best(), dtype)));
    Some([cpu, load(directory, Arc::new(GpuDevice::new(gpu, "under test", dtype)))])
}

/// Logits of every position, where the passes end at these positions.
fn logits(model: &Model, ids: &[u32], ends: &[usize]) -> Vec<f32> {
    let mut cache = model.new_cache(ids.len()).unwrap();
    let mut all = Vec::new();
    for &end in ends {
        let part = &ids[cache.len()..end];
        let part = model.forward(part, &mut cache, Logits::All, None).unwrap();
        all.extend(model.device().read(&part).unwrap());
    }
    all
}

#[test]
fn logits_of_every_model_type_are_those_of_the_cpu() {
    let golden = repository().join("golden/models");
    let models: Vec<PathBuf> = std::fs::read_dir(&golden)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").exists())
        .collect();
    assert!(models.len() >= 7);
    for directory in models {
        let Some([cpu, gpu]) = both(&directory, DType::F32) else { return };
        let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 96).collect();
        let expected = logits(&cpu, &ids, &[40]);
        for ends in [&[40][..], &[17, 23, 24, 25, 26, 40], &[1, 2, 3, 40]] {
            let got = logits(&gpu, &ids, ends);
            assert_eq!(got.len(), expected.len());
            let furthest =
                got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(furthest < 1e-4, "{} {ends:?}: {furthest}", directory.display());
        }
    }
}

fn greedy(session: &mut Session<'_>, prompt: &[u32], count: usize, eos: &[u32]) -> Generation {
    let options =
        Options { max_new_tokens: count, sampling: Sampling::GREEDY, eos_token_ids: eos.to_vec() };
    session.generate(prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// The words of the shipped model are those that transformers and bitsandbytes gave on CUDA.
#[test]
fn greedy_text_is_that_of_transformers() {
    let file = std::fs::read(repository().join("models/tinybard/reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&file).unwrap();
    let ids = |value: &Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let prompt = ids(&reference["prompt_ids"]);
    for (name, directory) in [("bf16", "models/tinybard"), ("nf4dq", "models/tinybard-nf4dq")] {
        let expected = ids(&reference["greedy"][name]);
        let count = expected.len() - prompt.len();
        let Some(models) = both(&repository().join(directory), DType::BF16) else { return };
        for model in &models {
            let eos = model.config().eos_token_ids.clone();
            let mut session = Session::new(model, expected.len()).unwrap();
            let made = greedy(&mut session, &prompt, count, &eos);
            assert_eq!([&prompt[..], &made.tokens].concat(), expected, "{name} on {model:?}");
        }
    }
}

/// A device that works ahead of what is read ends where the others end, and goes on from there.
#[test]
fn working_ahead_changes_nothing() {
    let Some(models) = both(&repository().join("golden/models/qwen3"), DType::F32) else { return };
    let talks = models.each_ref().map(|model| {
        let mut session = Session::new(model, 24).unwrap();
        let first = greedy(&mut session, &[5, 6, 7], 6, &[]);
        let again = [&[5, 6, 7][..], &first.tokens, &[9]].concat();
        let second = greedy(&mut session, &again, 4, &[]);
        // Ends with the third token of before, and then with the context.
        let third = greedy(&mut session, &again, 4, &second.tokens[2..3]);
        let full = greedy(&mut session, &again, 100, &[]);
        let steps = [&first, &second, &third, &full].map(|made| made.decode_steps);
        let stops = [&first, &second, &third, &full].map(|made| made.stop);
        (first.tokens, second.tokens, third.tokens, full.tokens, steps, stops)
    });
    assert_eq!(talks[0], talks[1]);
    assert_eq!(talks[0].3.len(), 24 + 1 - 10);
}

/// What decoding costs beyond reading the weights is mostly the number of kernels.
#[test]
fn a_layer_decodes_in_five_kernels() {
    for name in ["models/tinybard", "models/tinybard-nf4dq"] {
        let Some(gpu) = gpu(false) else { return };
        let kernels = Arc::new(AtomicUsize::new(0));
        let queue = Counting { gpu, kernels: kernels.clone() };
        let device = Arc::new(GpuDevice::new(queue, "counting", DType::BF16));
        let model = load(&repository().join(name), device);
        let mut cache = model.new_cache(8).unwrap();
        let token = |model: &Model, logits| model.device().argmax(logits).unwrap();
        let logits = model.forward(&[3, 4], &mut cache, Logits::Last, None).unwrap();
        let id = token(&model, &logits);
        let before = kernels.load(Ordering::Relaxed);
        let logits = model.forward_token(&id, &mut cache).unwrap();
        token(&model, &logits);
        let count = kernels.load(Ordering::Relaxed) - before;
        // The embedding, the last norm, the output layer and the argmax in two steps at most.
        let most = 5 * model.config().num_hidden_layers + 5;
        assert!(count <= most, "{name}: {count} kernels, at most {most} expected");
    }
}
