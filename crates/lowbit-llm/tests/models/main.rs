//! The model runner against transformers: see golden/make_models.py for how the data came about.

mod chat;
mod config;
mod counting;
mod generate;
mod logits;
mod sampling;
mod tinybard;
mod tokenizer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowbit::device::Device;
use lowbit::{Cpu, CpuDevice, DType};
use lowbit_llm::{Checkpoint, Model, Result};
use serde::de::DeserializeOwned;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden(name: &str) -> PathBuf {
    repository().join("golden/models").join(name)
}

fn golden_json<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn tinybard() -> PathBuf {
    repository().join("models/tinybard")
}

fn cpu(activations: DType) -> Arc<dyn Device> {
    Arc::new(CpuDevice::new(Cpu::best(), activations))
}

fn load(directory: &Path) -> Result<Model> {
    Model::load(&Checkpoint::open(directory)?, cpu(DType::F32), &mut |_, _| {})
}

/// A golden model in a directory of its own, with other settings; null removes one.
fn with_config(name: &str, changes: serde_json::Value) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let weights = "model.safetensors";
    std::fs::copy(golden(name).join(weights), directory.path().join(weights)).unwrap();
    let mut config: serde_json::Value = golden_json(&format!("{name}/config.json"));
    let fields = config.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            fields.remove(key);
        } else {
            fields.insert(key.clone(), value.clone());
        }
    }
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    directory
}
