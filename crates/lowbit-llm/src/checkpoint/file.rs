//! One safetensors file: mapped, its header checked, its tensors as slices of the map.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensorError, SafeTensors};

use crate::{Error, Result};

/// Bytes of the length that a file begins with.
const LENGTH_BYTES: usize = 8;

/// A tensor as a file holds it; `data` shares the file's memory map.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Bytes,
    /// The file that holds it.
    pub path: Arc<PathBuf>,
}

/// All tensors of a safetensors file, in the order of their bytes.
pub(super) fn read(path: &Path) -> Result<Vec<Stored>> {
    let bytes = map(path)?;
    let (header, metadata) =
        SafeTensors::read_metadata(&bytes).map_err(|e| explain(path, &bytes, e))?;
    let shared = Arc::new(path.to_path_buf());
    let start = LENGTH_BYTES + header;
    let tensor = |name: String| {
        let TensorInfo { dtype, shape, data_offsets: (from, to) } = metadata.info(&name)?.clone();
        // `read_metadata` has checked that the offsets tile the rest of the file.
        let data = bytes.slice(start + from..start + to);
        Some(Stored { name, dtype, shape, data, path: shared.clone() })
    };
    Ok(metadata.offset_keys().into_iter().filter_map(tensor).collect())
}

/// Maps a file. Whoever cuts it short while it is mapped makes later reads fail with a bus error.
#[allow(unsafe_code)]
fn map(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    if !metadata.is_file() {
        let help = "pass a safetensors file or a model directory";
        return Err(Error::file(path, "a regular file", "something else", help));
    }
    // SAFETY: the map is read-only and this process never writes to the files it has mapped: outputs
    // are new files that are renamed into place. That no other process changes a file while it is
    // mapped is what every user of a memory map must grant; every bit pattern is a valid `u8`.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io("map", path))?;
    Ok(Bytes::from_owner(map))
}

/// One line that says what is wrong with a header and what to do.
fn explain(path: &Path, bytes: &[u8], error: SafeTensorError) -> Error {
    const AGAIN: &str = "it is truncated or damaged: fetch or write it again";
    const FORMAT: &str = "is it a safetensors file? if so it is damaged: fetch it again";
    let claimed = bytes.first_chunk::<LENGTH_BYTES>().map_or(0, |n| u64::from_le_bytes(*n));
    let total = bytes.len();
    let (expected, got, help) = match error {
        SafeTensorError::HeaderTooSmall => {
            ("a safetensors file of at least 8 bytes".into(), format!("{total} bytes"), AGAIN)
        }
        SafeTensorError::HeaderTooLarge => {
            ("a header of at most 100 MB".into(), format!("a header length of {claimed}"), FORMAT)
        }
        SafeTensorError::InvalidHeaderLength => (
            format!("a header that ends within the {total} bytes of the file"),
            format!("a header length of {claimed}"),
            FORMAT,
        ),
        SafeTensorError::InvalidHeader(e) => ("a header in UTF-8".into(), e.to_string(), FORMAT),
        SafeTensorError::InvalidHeaderDeserialization(e) => {
            ("a header in safetensors' JSON".into(), e.to_string(), FORMAT)
        }
        SafeTensorError::InvalidOffset(name) => (
            "tensors that follow each other without a gap or an overlap".into(),
            format!("other data_offsets for tensor {name:?}"),
            AGAIN,
        ),
        SafeTensorError::MetadataIncompleteBuffer => (
            "as many bytes as the header describes".into(),
            format!("a file of {total} bytes"),
            AGAIN,
        ),
        SafeTensorError::TensorInvalidInfo | SafeTensorError::ValidationOverflow => (
            "data_offsets that fit the shape and the dtype".into(),
            format!("others for tensor {}", misfit(bytes).unwrap_or_default()),
            AGAIN,
        ),
        other => ("a valid safetensors header".into(), other.to_string(), AGAIN),
    };
    Error::file(path, expected, got, help)
}

/// The first tensor by name whose offsets do not fit its shape and dtype.
fn misfit(bytes: &[u8]) -> Option<String> {
    let claimed = usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    let header = bytes.get(LENGTH_BYTES..)?.get(..claimed)?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    let mut infos: Vec<(String, TensorInfo)> = header
        .into_iter()
        .filter_map(|(name, info)| Some((name, serde_json::from_value(info).ok()?)))
        .collect();
    infos.sort_by(|a, b| a.0.cmp(&b.0));
    infos.into_iter().find_map(|(name, info)| {
        let numel = info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let bits = numel.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        let (from, to) = info.data_offsets;
        let stated = to.checked_sub(from).and_then(|n| n.checked_mul(8));
        (bits.is_none() || bits != stated)
            .then(|| format!("{name:?} of {:?} {:?} at {from}..{to}", info.dtype, info.shape))
    })
}
