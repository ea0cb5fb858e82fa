//! The common part of conversions: jobs in parallel, shards, the other files of a model.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::{Value, json};

use super::stage::{self, Staged};
use super::{Converted, Left, Progress, Reason, Report, WriteOptions};
use crate::checkpoint::write::{Slot, Writer};
use crate::checkpoint::{CONFIG, INDEX, SINGLE, python_json};
use crate::{Checkpoint, Entry, Error, Result};

/// Names and bytes of what a job makes.
pub(super) type Parts = Vec<(String, Bytes)>;

/// One tensor to be written.
pub(super) struct Job<'a> {
    pub entry: &'a Entry,
    /// Why it is only copied; `None` if it is converted.
    pub left: Option<Reason>,
    /// The keys it takes in the output.
    pub slots: Vec<Slot>,
    /// Makes the bytes of those keys.
    pub make: Box<dyn Fn() -> Result<Parts> + Send + Sync + 'a>,
}

impl<'a> Job<'a> {
    /// Copies a dense tensor.
    pub fn copy(entry: &'a Entry, data: &'a Bytes, reason: Reason) -> Self {
        let slot = Slot {
            name: entry.name.clone(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            bytes: data.len(),
            late: false,
        };
        let make = Box::new(move || Ok(vec![(entry.name.clone(), data.clone())]));
        Job { entry, left: Some(reason), slots: vec![slot], make }
    }

    fn bytes(&self) -> u64 {
        self.slots.iter().map(|s| s.bytes as u64).sum()
    }
}

/// Runs the jobs and puts the output in its place. `config` is the new `config.json` of a model.
pub(super) fn run(
    input: &Checkpoint,
    output: &Path,
    jobs: &[Job<'_>],
    config: Option<&Value>,
    options: &WriteOptions,
    progress: &dyn Progress,
) -> Result<Report> {
    let staged = Staged::new(input, output, options.force)?;
    let crew = Crew::new(options, jobs, progress)?;
    match input.directory() {
        None => crew.write_file(staged.path(), jobs)?,
        Some(directory) => {
            write_weights(&crew, staged.path(), jobs, options.max_shard_size)?;
            if let Some(config) = config {
                let path = staged.path().join(CONFIG);
                stage::write_file(&path, &document(&path, config)?)?;
            }
            copy_others(directory, staged.path())?;
        }
    }
    // A last look at what is on disk, before anything is replaced.
    let written = Checkpoint::open(staged.path())?;
    let report = report(input, &written, jobs)?;
    // Some systems do not rename what is mapped.
    drop(written);
    staged.commit()?;
    Ok(report)
}

fn report(input: &Checkpoint, written: &Checkpoint, jobs: &[Job<'_>]) -> Result<Report> {
    let mut report = Report {
        bytes_before: input.bytes(),
        bytes_after: written.bytes(),
        bits_before: input.bits_per_weight(),
        bits_after: written.bits_per_weight(),
        ..Report::default()
    };
    for Job { entry, left, .. } in jobs {
        let (name, shape) = (entry.name.clone(), entry.shape.clone());
        if let Some(reason) = left.clone() {
            report.left.push(Left { name, shape, reason });
            continue;
        }
        let after = written.require(&name)?;
        report.converted.push(Converted {
            name,
            shape,
            from: entry.format_name(),
            to: after.format_name(),
            bytes_before: entry.bytes,
            bytes_after: after.bytes,
        });
    }
    Ok(report)
}

/// The weights of a model directory: one file, or shards and an index, as transformers names them.
fn write_weights(crew: &Crew<'_>, directory: &Path, jobs: &[Job<'_>], most: u64) -> Result<()> {
    let shards = split(jobs, most);
    if let [only] = shards[..] {
        return crew.write_file(&directory.join(SINGLE), only);
    }
    let mut weight_map = BTreeMap::new();
    let mut total_size = 0;
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let path = directory.join(&file);
        crew.write_file(&path, shard)?;
        for stored in Checkpoint::stored(&path)? {
            total_size += stored.data.len();
            weight_map.insert(stored.name, file.clone());
        }
    }
    let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
    let path = directory.join(INDEX);
    stage::write_file(&path, &document(&path, &index)?)
}

/// Consecutive jobs of at most so many bytes together; all keys of a tensor in one file.
fn split<'j, 'a>(jobs: &'j [Job<'a>], most: u64) -> Vec<&'j [Job<'a>]> {
    let mut shards = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (i, job) in jobs.iter().enumerate() {
        if i > start && size + job.bytes() > most {
            shards.push(&jobs[start..i]);
            (start, size) = (i, 0);
        }
        size += job.bytes();
    }
    shards.push(&jobs[start..]);
    shards
}

/// As many threads as were asked for.
pub(super) fn pool(options: &WriteOptions) -> Result<ThreadPool> {
    let available = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.unwrap_or_else(available).max(1);
    ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| {
        let help = "ask for fewer threads";
        Error::argument("convert", format!("{threads} threads"), e.to_string(), help)
    })
}

/// Threads, and what they have done so far.
struct Crew<'a> {
    pool: ThreadPool,
    threads: usize,
    progress: &'a dyn Progress,
    done: AtomicU64,
    total: u64,
}

impl<'a> Crew<'a> {
    fn new(options: &WriteOptions, jobs: &[Job<'_>], progress: &'a dyn Progress) -> Result<Self> {
        let pool = pool(options)?;
        let threads = pool.current_num_threads();
        let total = jobs.iter().map(|job| job.entry.bytes).sum();
        Ok(Crew { pool, threads, progress, done: AtomicU64::new(0), total })
    }

    /// Writes one safetensors file. As many tensors are in flight as there are threads: while one is
    /// written, the kernels work on the others.
    fn write_file(&self, path: &Path, jobs: &[Job<'_>]) -> Result<()> {
        let slots = jobs.iter().flat_map(|job| job.slots.clone()).collect();
        let writer = Mutex::new(Writer::new(stage::create(path)?, path, slots)?);
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let failures = Mutex::new(BTreeMap::new());
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(job) = jobs.get(i) else { break };
                if let Err(error) = self.run(job, &writer) {
                    stop.store(true, Ordering::Relaxed);
                    failures.lock().unwrap_or_else(PoisonError::into_inner).insert(i, error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.threads.min(jobs.len()) {
                scope.spawn(work);
            }
        });
        // Whichever thread was first, the first tensor that failed is named.
        let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, error)) = failures.into_iter().next() {
            return Err(error);
        }
        let writer = writer.into_inner().unwrap_or_else(PoisonError::into_inner);
        writer.finish()?.sync_all().map_err(Error::io("sync", path))
    }

    fn run(&self, job: &Job<'_>, writer: &Mutex<Writer<File>>) -> Result<()> {
        if self.progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let parts = self.pool.install(&job.make)?;
        {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            parts.iter().try_for_each(|(name, data)| writer.write(name, data))?;
        }
        let done = self.done.fetch_add(job.entry.bytes, Ordering::Relaxed) + job.entry.bytes;
        self.progress.update(done, self.total, &job.entry.name);
        Ok(())
    }
}

/// Copies the files of a model that are neither weights nor written by us: tokenizer, settings, ..
fn copy_others(from: &Path, to: &Path) -> Result<()> {
    for entry in from.read_dir().map_err(Error::io("read", from))? {
        let path = entry.map_err(Error::io("read", from))?.path();
        let Some(name) = path.file_name() else { continue };
        if path.is_file() && is_other(Path::new(name)) {
            let copy: PathBuf = to.join(name);
            fs::copy(&path, &copy).map_err(Error::io("copy", &path))?;
            stage::sync(&copy)?;
        }
    }
    Ok(())
}

/// Extensions of weights; those of other libraries would contradict the new ones.
const WEIGHTS: [&str; 12] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "gguf",
    "ggml",
    "h5",
    "msgpack",
    "onnx",
    "ot",
    "ckpt",
    "npz",
];

fn is_other(name: &Path) -> bool {
    let text = name.to_string_lossy();
    let extension = name.extension().map(|e| e.to_string_lossy().to_lowercase());
    let is_weights = extension.is_some_and(|e| WEIGHTS.contains(&e.as_str()));
    !(is_weights || text == CONFIG || text.ends_with(".index.json") || text.starts_with('.'))
}

fn document(path: &Path, value: &Value) -> Result<Vec<u8>> {
    python_json::document(value).map_err(|e| {
        Error::file(path, "what JSON can hold", e.to_string(), "repair the input's copy of it")
    })
}
