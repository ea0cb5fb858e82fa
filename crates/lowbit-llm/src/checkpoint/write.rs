//! Writing a safetensors file tensor by tensor, in any order, without holding it in memory.
//!
//! The `safetensors` crate wants all bytes at once. Here every tensor's place is worked out before
//! the first is quantized, so each is written as soon as it is done; only small tensors whose length
//! is not known by then (JSON) are held back and appended. The header goes last into a space that
//! was kept for it; what remains of that is filled with blanks, as the file format allows.

use std::collections::HashMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::{Error, Result};

/// Tensors start at multiples of this, as the `safetensors` crate pads its own headers.
const ALIGNMENT: usize = 8;
/// Bytes of the length that a file begins with.
const LENGTH_BYTES: usize = 8;
/// What Python's loaders want to read in a header.
const METADATA: (&str, &str) = ("format", "pt");

/// A tensor that will be written: all but its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: usize,
    /// Whether `bytes` is only an upper bound: then it is a vector of bytes, and is written last.
    pub late: bool,
}

impl Slot {
    /// A tensor of whole-byte numbers.
    pub fn new(name: String, dtype: Dtype, shape: Vec<usize>) -> Self {
        let bytes = shape.iter().product::<usize>() * (dtype.bitsize() / 8);
        Slot { name, dtype, shape, bytes, late: false }
    }

    /// A vector of at most so many bytes.
    pub fn late(name: String, most: usize) -> Self {
        Slot { name, dtype: Dtype::U8, shape: vec![most], bytes: most, late: true }
    }
}

/// A safetensors file being written to `sink`.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    sink: W,
    path: PathBuf,
    slots: Vec<Slot>,
    by_name: HashMap<String, usize>,
    /// Where each slot begins, from the end of the header; grows with what is written late.
    offsets: Vec<usize>,
    state: Vec<State>,
    header_bytes: usize,
}

#[derive(Debug, Clone)]
enum State {
    Missing,
    Written,
    Held(Bytes),
}

impl<W: Write + Seek> Writer<W> {
    /// Lays out a file of these tensors; `path` is what errors name.
    ///
    /// # Errors
    /// [`Error::File`] if two have one name or the header is larger than the format allows.
    pub fn new(sink: W, path: &Path, mut slots: Vec<Slot>) -> Result<Self> {
        // Widest numbers first: then all are aligned, and Python can map them in place.
        let order = |s: &Slot| (s.late, std::cmp::Reverse(s.dtype.bitsize()), s.name.clone());
        slots.sort_by_cached_key(order);
        let by_name = slots.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        let state = vec![State::Missing; slots.len()];
        let path = path.to_path_buf();
        let mut writer =
            Writer { sink, path, slots, by_name, offsets: Vec::new(), state, header_bytes: 0 };
        if writer.by_name.len() != writer.slots.len() {
            return Err(writer.broken("tensors of different names", "two of one name"));
        }
        writer.lay_out();
        writer.header_bytes = writer.header()?.len().next_multiple_of(ALIGNMENT);
        Ok(writer)
    }

    /// Writes a tensor, or keeps it if it is a late one.
    ///
    /// # Errors
    /// [`Error::Io`] if the sink refuses, [`Error::File`] for a tensor that was not announced so.
    pub fn write(&mut self, name: &str, data: &Bytes) -> Result<()> {
        let Some(&i) = self.by_name.get(name) else {
            return Err(self.broken("a tensor that was announced", name));
        };
        let slot = &self.slots[i];
        if data.len() != slot.bytes && !(slot.late && data.len() < slot.bytes) {
            let expected = format!("{} bytes for {name}", slot.bytes);
            return Err(self.broken(&expected, &data.len().to_string()));
        }
        self.state[i] = if slot.late { State::Held(data.clone()) } else { State::Written };
        if slot.late {
            Ok(())
        } else {
            self.put(LENGTH_BYTES + self.header_bytes + self.offsets[i], data)
        }
    }

    /// Writes what was held back and the header; gives the sink back for syncing.
    ///
    /// # Errors
    /// [`Error::Io`] if the sink refuses, [`Error::File`] if a tensor is missing.
    pub fn finish(mut self) -> Result<W> {
        for i in 0..self.slots.len() {
            match std::mem::replace(&mut self.state[i], State::Written) {
                State::Written => {}
                State::Missing => {
                    let expected = format!("tensor {}", self.slots[i].name);
                    return Err(self.broken(&expected, "a file without it"));
                }
                State::Held(data) => {
                    self.slots[i].bytes = data.len();
                    self.slots[i].shape = vec![data.len()];
                    self.lay_out();
                    self.put(LENGTH_BYTES + self.header_bytes + self.offsets[i], &data)?;
                }
            }
        }
        let mut header = self.header()?;
        header.resize(self.header_bytes, b' ');
        let length = (self.header_bytes as u64).to_le_bytes();
        self.put(0, &length)?;
        self.put(LENGTH_BYTES, &header)?;
        self.sink.flush().map_err(Error::io("write", &self.path))?;
        Ok(self.sink)
    }

    fn lay_out(&mut self) {
        let mut end = 0;
        self.offsets.clear();
        for slot in &self.slots {
            self.offsets.push(end);
            end += slot.bytes;
        }
    }

    fn header(&self) -> Result<Vec<u8>> {
        let info = |(slot, from): (&Slot, &usize)| {
            let data_offsets = (*from, from + slot.bytes);
            let info = TensorInfo { dtype: slot.dtype, shape: slot.shape.clone(), data_offsets };
            (slot.name.clone(), info)
        };
        let tensors = self.slots.iter().zip(&self.offsets).map(info).collect();
        let metadata = HashMap::from([(METADATA.0.to_owned(), METADATA.1.to_owned())]);
        let metadata = Metadata::new(Some(metadata), tensors)
            .map_err(|e| self.broken("a valid safetensors header", &e.to_string()))?;
        serde_json::to_vec(&metadata)
            .map_err(|e| self.broken("a valid safetensors header", &e.to_string()))
    }

    fn put(&mut self, at: usize, data: &[u8]) -> Result<()> {
        self.sink
            .seek(SeekFrom::Start(at as u64))
            .and_then(|_| self.sink.write_all(data))
            .map_err(Error::io("write", &self.path))
    }

    fn broken(&self, expected: &str, got: &str) -> Error {
        Error::file(&self.path, expected, got, "this is a fault of the program: please report it")
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor};

    use safetensors::SafeTensors;

    use super::*;

    fn slots() -> Vec<Slot> {
        vec![
            Slot::new("a.codes".into(), Dtype::U8, vec![3, 1]),
            Slot::late("a.json".into(), 40),
            Slot::new("b".into(), Dtype::BF16, vec![2]),
            Slot::new("a.absmax".into(), Dtype::F32, vec![1]),
            Slot::new("empty".into(), Dtype::F32, vec![0, 4]),
            Slot::late("b.json".into(), 40),
        ]
    }

    fn fill<W: Write + Seek>(writer: &mut Writer<W>) -> Result<()> {
        writer.write("b.json", &Bytes::from_static(b"{\"b\": 12.5}"))?;
        writer.write("a.codes", &Bytes::from_static(&[1, 2, 3]))?;
        writer.write("b", &Bytes::from_static(&[4, 5, 6, 7]))?;
        writer.write("a.json", &Bytes::from_static(b"{}"))?;
        writer.write("empty", &Bytes::new())?;
        writer.write("a.absmax", &Bytes::from_static(&[8, 9, 10, 11]))
    }

    #[test]
    fn the_safetensors_crate_reads_it_whatever_the_order() {
        let path = Path::new("out");
        let mut writer = Writer::new(Cursor::new(Vec::new()), path, slots()).unwrap();
        fill(&mut writer).unwrap();
        let bytes = writer.finish().unwrap().into_inner();
        let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header % ALIGNMENT, 0);
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), 6);
        assert_eq!(file.tensor("a.codes").unwrap().data(), [1, 2, 3]);
        assert_eq!(file.tensor("a.codes").unwrap().shape(), [3, 1]);
        assert_eq!(file.tensor("b").unwrap().dtype(), Dtype::BF16);
        assert_eq!(file.tensor("a.absmax").unwrap().data(), [8, 9, 10, 11]);
        assert_eq!(file.tensor("a.json").unwrap().data(), b"{}");
        assert_eq!(file.tensor("b.json").unwrap().data(), b"{\"b\": 12.5}");
        assert_eq!(file.tensor("empty").unwrap().shape(), [0, 4]);
    }

    #[test]
    fn refuses_what_was_not_announced() {
        let path = Path::new("out");
        let new = || Writer::new(Cursor::new(Vec::new()), path, slots()).unwrap();
        assert!(new().write("c", &Bytes::new()).is_err());
        assert!(new().write("b", &Bytes::from_static(&[1])).is_err());
        assert!(new().write("a.json", &Bytes::from(vec![b' '; 41])).is_err());
        assert!(new().finish().is_err());
        let twice = [slots(), slots()].concat();
        assert!(Writer::new(Cursor::new(Vec::new()), path, twice).is_err());
    }

    /// A disk with room for so many bytes.
    struct Full {
        room: u64,
        at: u64,
    }

    impl Write for Full {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            let fits = self.room.saturating_sub(self.at).min(data.len() as u64);
            if fits == 0 && !data.is_empty() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.at += fits;
            Ok(fits as usize)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Full {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            if let SeekFrom::Start(at) = to {
                self.at = at;
            }
            Ok(self.at)
        }
    }

    #[test]
    fn a_full_disk_is_an_error_wherever_it_ends() {
        let path = Path::new("some/out.safetensors");
        let run = |room| {
            let mut writer = Writer::new(Full { room, at: 0 }, path, slots())?;
            fill(&mut writer)?;
            writer.finish().map(drop)
        };
        let mut whole = Writer::new(Cursor::new(Vec::new()), path, slots()).unwrap();
        fill(&mut whole).unwrap();
        let size = whole.finish().unwrap().into_inner().len() as u64;
        assert!(run(size).is_ok());
        for room in 0..size {
            let error = run(room).unwrap_err().to_string();
            assert!(error.starts_with("could not write some/out.safetensors: "), "{room}: {error}");
            assert!(error.contains("no storage space"), "{room}: {error}");
        }
    }
}
