//! An output that is built beside its place and moved there when it is complete.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::checkpoint::{INDEX, SINGLE};
use crate::{Checkpoint, Error, Result};

/// An output under a temporary name in its own file system. Dropping it removes what was built.
#[derive(Debug)]
pub(super) struct Staged {
    target: PathBuf,
    /// Holds the new output under its final name, and for a moment the old one.
    temp: TempDir,
    path: PathBuf,
}

impl Staged {
    /// Prepares to write `target`, of the kind that `input` is: a directory, or a file.
    ///
    /// # Errors
    /// [`Error::File`] if `target` exists and may not be replaced, or overlaps with `input`;
    /// [`Error::Io`] if nothing can be written beside it.
    pub fn new(input: &Checkpoint, target: &Path, force: bool) -> Result<Self> {
        let is_directory = input.directory().is_some();
        let Some(name) = target.file_name() else {
            let help = "give the output a name of its own";
            return Err(Error::file(target, "a path that ends in a name", "none", help));
        };
        let parent = match target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let parent = parent.canonicalize().map_err(Error::io("find the directory", parent))?;
        check_apart(input, target, &parent.join(name))?;
        check_replaceable(target, is_directory, force)?;
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        let temp = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".tmp")
            .tempdir_in(&parent)
            .map_err(Error::io("write in", &parent))?;
        let path = temp.path().join(name);
        if is_directory {
            fs::create_dir(&path).map_err(Error::io("create", &path))?;
        }
        Ok(Staged { target: parent.join(name), temp, path })
    }

    /// Where to build the output: a directory that exists, or a file that does not.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the output to its place. An older one is moved out of the way, and back if that fails.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses.
    pub fn commit(self) -> Result<()> {
        let Staged { target, temp, path } = self;
        if path.is_dir() {
            sync(&path)?;
        }
        if path.is_dir() && target.exists() {
            let old = temp.path().join("replaced");
            fs::rename(&target, &old).map_err(Error::io("replace", &target))?;
            if let Err(source) = fs::rename(&path, &target) {
                if fs::rename(&old, &target).is_err() {
                    // Better litter than the only copy lost.
                    let _kept = temp.keep();
                }
                return Err(Error::Io { action: "write", path: target, source });
            }
        } else {
            fs::rename(&path, &target).map_err(Error::io("write", &target))?;
        }
        sync(target.parent().unwrap_or(&target))
    }
}

/// Creates a file that must not exist.
pub(super) fn create(path: &Path) -> Result<File> {
    File::create_new(path).map_err(Error::io("create", path))
}

/// Writes a small file and waits until it is on disk.
pub(super) fn write_file(path: &Path, contents: &[u8]) -> Result<()> {
    fs::write(path, contents).map_err(Error::io("write", path))?;
    sync(path)
}

/// Waits until a file, or the names in a directory, are on disk.
pub(super) fn sync(path: &Path) -> Result<()> {
    // Only Unix can open a directory.
    if cfg!(not(unix)) && path.is_dir() {
        return Ok(());
    }
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))
}

/// An output must not be its own input, nor hold it or lie in it.
fn check_apart(input: &Checkpoint, target: &Path, resolved: &Path) -> Result<()> {
    let resolved = resolved.canonicalize().unwrap_or_else(|_| resolved.to_path_buf());
    let mut sources = vec![input.path()];
    sources.extend(input.files().iter().map(PathBuf::as_path));
    for source in sources {
        let full = source.canonicalize().map_err(Error::io("find", source))?;
        let inside = input.directory().is_some() && resolved.starts_with(&full);
        if inside || full.starts_with(&resolved) {
            return Err(Error::file(
                target,
                "an output apart from its input",
                format!("one that shares {}", source.display()),
                "choose another output path",
            ));
        }
    }
    Ok(())
}

/// What exists is replaced only if asked, and only if it is of the same kind and ours to replace.
fn check_replaceable(target: &Path, is_directory: bool, force: bool) -> Result<()> {
    let Ok(existing) = target.symlink_metadata() else {
        return Ok(());
    };
    let refuse =
        |expected: &str, got: &str, help: &str| Err(Error::file(target, expected, got, help));
    let got = match existing.is_dir() {
        true => "a directory that exists",
        false => "a file that exists",
    };
    if existing.is_dir() != is_directory {
        let expected =
            if is_directory { "a directory, as the input is" } else { "a file, as the input is" };
        refuse(expected, got, "choose another output path")
    } else if !force {
        refuse("a path that does not exist", got, "choose another, or force its replacement")
    } else if is_directory && !is_plain_model(target)? {
        let help = "remove it yourself, or choose another output path";
        refuse("a model directory to replace", "a directory that holds other things", help)
    } else {
        Ok(())
    }
}

/// Whether a directory is empty, or holds a model and no directories: not somebody's home.
fn is_plain_model(directory: &Path) -> Result<bool> {
    let read = |source| Error::Io { action: "read", path: directory.into(), source };
    let mut is_empty = true;
    for entry in directory.read_dir().map_err(read)? {
        is_empty = false;
        if entry.and_then(|e| e.file_type()).map_err(read)?.is_dir() {
            return Ok(false);
        }
    }
    Ok(is_empty || directory.join(SINGLE).exists() || directory.join(INDEX).exists())
}
