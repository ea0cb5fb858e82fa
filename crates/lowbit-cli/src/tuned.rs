//! The kernels that `lowbit tune` found to be the fastest on an adapter, in a file of the user's.

use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use lowbit_gpu::{Adapter, Choices};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tuned {
    /// The version that measured; another one may have other kernels.
    pub lowbit: String,
    /// The adapter, and how it was reached.
    pub adapter: String,
    pub backend: String,
    pub driver: String,
    /// The table.
    #[serde(flatten)]
    pub choices: Choices,
}

impl Tuned {
    /// What was measured on that adapter now.
    pub fn new(adapter: &Adapter, choices: Choices) -> Self {
        Tuned {
            lowbit: env!("CARGO_PKG_VERSION").into(),
            adapter: adapter.name(),
            backend: adapter.backend().into(),
            driver: adapter.driver(),
            choices,
        }
    }

    /// Writes the file, and the directories above it.
    pub fn save(&self, path: &Path) -> Result {
        let failed = |error: std::io::Error| {
            Failure::failed(format!("could not write {}: {error}", path.display()))
        };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).map_err(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
        serde_json::to_writer_pretty(&mut file, self).map_err(|e| failed(e.into()))?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

/// Where the file of an adapter lies; `None` where this user has no directory for such files.
pub fn path(adapter: &Adapter) -> Option<PathBuf> {
    let name = format!("{} {}", adapter.name(), adapter.backend());
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = name.chars().map(plain).collect();
    let directory = etcetera::choose_base_strategy().ok()?.config_dir();
    Some(directory.join("lowbit").join("tuned").join(format!("{name}.json")))
}

/// What is known of an adapter, or why its file is of no use. `None` if nobody has tuned it.
pub fn load(adapter: &Adapter) -> Option<std::result::Result<Choices, String>> {
    let path = path(adapter)?;
    let text = std::fs::read_to_string(&path).ok()?;
    let refuse = |why: String| format!("ignoring {}: {why}; run lowbit tune again", path.display());
    Some(match serde_json::from_str::<Tuned>(&text) {
        Err(error) => Err(refuse(error.to_string())),
        Ok(tuned) if tuned.lowbit != env!("CARGO_PKG_VERSION") => {
            Err(refuse(format!("it is of lowbit {}", tuned.lowbit)))
        }
        Ok(tuned) => Ok(tuned.choices),
    })
}
