//! Where the demo's model is.

use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// Where it is in the repository.
const MODEL: &str = "models/tinybard";

/// The model here, or in a directory above the program (`target/release/lowbit` has it three up).
///
/// # Errors
/// If there is none, with what to do.
pub fn model() -> Result<PathBuf> {
    let program = std::env::current_exe().unwrap_or_default();
    find(Path::new("."), &program).ok_or_else(|| {
        Failure::failed(format!(
            "the demo's model was not found: expected {MODEL} here or above {}; run this in a \
             checkout of lowbit, or choose a model with --model",
            program.display()
        ))
    })
}

fn find(here: &Path, program: &Path) -> Option<PathBuf> {
    let is_model = |path: &PathBuf| path.join("config.json").is_file();
    let above = program.ancestors().skip(1);
    std::iter::once(here)
        .chain(above)
        .map(|directory| directory.join(MODEL))
        .find(is_model)
        .map(|path| path.strip_prefix(".").map(Path::to_owned).unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_found_here_first_and_then_above_the_program() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let (here, there) = (temp.path().join("here"), temp.path().join("there"));
        let program = there.join("target/release/lowbit");
        assert_eq!(find(&here, &program), None);
        for place in [&there, &here] {
            let model = place.join(MODEL);
            std::fs::create_dir_all(&model).expect("a directory");
            std::fs::write(model.join("config.json"), "{}").expect("a file");
            assert_eq!(find(&here, &program), Some(model));
        }
    }
}
