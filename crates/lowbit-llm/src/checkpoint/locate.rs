//! Which files make up a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::{Error, Result};

/// Name of the weights of a model directory that has but one file of them.
pub(crate) const SINGLE: &str = "model.safetensors";
/// Name of the file that says which shard holds which tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Files of weights that transformers also reads, and this library does not.
const FOREIGN: [&str; 7] = ["bin", "gguf", "ggml", "pt", "pth", "h5", "msgpack"];

/// The files of a checkpoint.
#[derive(Debug)]
pub(super) struct Files {
    /// The model directory, if the checkpoint is one.
    pub directory: Option<PathBuf>,
    /// Its safetensors files, in the order of their names.
    pub weights: Vec<PathBuf>,
    /// The index: in which of `weights` each tensor is. Empty without one.
    pub weight_map: BTreeMap<String, PathBuf>,
}

/// Finds the files of a checkpoint at `path`: a model directory or a safetensors file.
pub(super) fn locate(path: &Path) -> Result<Files> {
    let metadata = path.metadata().map_err(Error::io("open", path))?;
    if !metadata.is_dir() {
        let weights = vec![path.to_path_buf()];
        return Ok(Files { directory: None, weights, weight_map: BTreeMap::new() });
    }
    let directory = Some(path.to_path_buf());
    // The order in which transformers looks.
    let single = path.join(SINGLE);
    if single.exists() {
        return Ok(Files { directory, weights: vec![single], weight_map: BTreeMap::new() });
    }
    let index = path.join(INDEX);
    if !index.exists() {
        return Err(nothing_found(path));
    }
    let weight_map = read_index(path, &index)?;
    let weights: BTreeSet<&PathBuf> = weight_map.values().collect();
    if let Some(missing) = weights.iter().find(|shard| !shard.exists()) {
        return Err(Error::file(
            &index,
            "every shard it names beside it",
            format!("no file {}", missing.display()),
            "fetch the missing shard",
        ));
    }
    let weights = weights.into_iter().cloned().collect();
    Ok(Files { directory, weights, weight_map })
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn read_index(directory: &Path, index: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let Index { weight_map } = read_json(index)?;
    if weight_map.is_empty() {
        let help = "fetch the checkpoint again";
        return Err(Error::file(index, "a weight_map that names shards", "an empty one", help));
    }
    let shard = |(tensor, file): (String, String)| {
        let mut components = Path::new(&file).components();
        match (components.next(), components.next()) {
            (Some(Component::Normal(name)), None) if name == file.as_str() => {
                Ok((tensor, directory.join(name)))
            }
            _ => Err(Error::file(
                index,
                "shards named as files of its own directory",
                format!("{file:?}"),
                "do not load it: no honest checkpoint points elsewhere",
            )),
        }
    };
    weight_map.into_iter().map(shard).collect()
}

/// Reads a JSON file.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|e| {
        Error::file(path, "valid JSON of its kind", e.to_string(), "repair it or fetch it again")
    })
}

fn nothing_found(directory: &Path) -> Error {
    let entries = match directory.read_dir() {
        Ok(entries) => entries,
        Err(source) => {
            return Error::Io { action: "read", path: directory.into(), source };
        }
    };
    let mut names: Vec<PathBuf> =
        entries.filter_map(|entry| Some(PathBuf::from(entry.ok()?.file_name()))).collect();
    names.sort();
    let with = |wanted: &[&str]| {
        names.iter().find(|name| {
            name.extension().and_then(|e| e.to_str()).is_some_and(|e| wanted.contains(&e))
        })
    };
    let (got, help) = if let Some(other) = with(&["safetensors"]) {
        (format!("{}", other.display()), "pass that file itself, or give it the usual name")
    } else if let Some(foreign) = with(&FOREIGN) {
        let help = "convert it first: in transformers, from_pretrained(..) and save_pretrained(..)";
        (format!("only weights in another format, {}", foreign.display()), help)
    } else if names.is_empty() {
        ("an empty directory".into(), "check the path")
    } else {
        ("no weights".into(), "check the path, or fetch the weights as well")
    };
    Error::file(directory, format!("{SINGLE} or {INDEX}"), got, help)
}
