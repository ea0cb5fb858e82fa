//! An open GPU: a [`Queue`] on wgpu.
//!
//! Commands are kept until someone reads or many have come, then run in one submission. Memory of
//! dropped buffers is used again by the next buffer of its size: everything runs in order, so what
//! the commands before wrote has been read by then.

mod pipelines;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowbit::{Error, Result};

use crate::Choices;
use crate::adapter::Adapter;
use crate::kernel::Kernel;
use crate::queue::{Fetch, Limits, Queue};
use pipelines::Pipeline;

/// Dispatches of one submission at most.
const BATCH: usize = 1024;
/// Bytes of parameters of one dispatch: what bindings are aligned to everywhere.
const PARAMS: u64 = 256;
/// Bytes of dropped buffers that are kept.
const KEPT: u64 = 256 << 20;
/// Bytes that wait to be copied to the GPU at most.
const WRITTEN: u64 = 64 << 20;
/// Bytes of a staging buffer that is kept for the next read.
const STAGING: u64 = 4096;
const OP: &str = "gpu";

/// An open GPU. Cloning shares it.
#[derive(Clone)]
pub struct Gpu {
    shared: Arc<Shared>,
    choices: Option<Arc<Choices>>,
}

struct Shared {
    adapter: Adapter,
    device: wgpu::Device,
    queue: wgpu::Queue,
    limits: Limits,
    checked: bool,
    params: wgpu::Buffer,
    failure: Arc<Mutex<Option<String>>>,
    clock: Option<Clock>,
    state: Mutex<State>,
}

/// Two moments on the GPU.
struct Clock {
    queries: wgpu::QuerySet,
    ticks: wgpu::Buffer,
}

#[derive(Default)]
struct State {
    pipelines: HashMap<String, Arc<Pipeline>>,
    commands: Vec<Command>,
    params: Vec<u8>,
    pool: HashMap<u64, Vec<(u64, wgpu::Buffer)>>,
    pooled: u64,
    written: u64,
    staging: Vec<wgpu::Buffer>,
    buffers: u64,
    timed: bool,
    /// By pipeline, and id, offset and size of each buffer.
    groups: HashMap<(u64, Vec<[u64; 3]>), wgpu::BindGroup>,
}

struct Command {
    pipeline: Arc<Pipeline>,
    bindings: wgpu::BindGroup,
    groups: [u32; 3],
}

/// Memory of a [`Gpu`], or a part of it. Cloning shares it.
#[derive(Clone)]
pub struct Buffer {
    inner: Arc<Inner>,
    offset: u64,
    size: u64,
}

struct Inner {
    id: u64,
    size: u64,
    buffer: wgpu::Buffer,
    gpu: std::sync::Weak<Shared>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(gpu) = self.gpu.upgrade() {
            lock(&gpu.state).keep(self.size, (self.id, self.buffer.clone()));
        }
    }
}

impl State {
    /// Takes a dropped buffer into the pool. A full pool is emptied, as it may be full of sizes that
    /// nobody asks for any more.
    fn keep(&mut self, size: u64, buffer: (u64, wgpu::Buffer)) {
        let mut gone = Vec::new();
        if self.pooled + size > KEPT {
            gone = self.pool.drain().flat_map(|(_, buffers)| buffers).map(|(id, _)| id).collect();
            self.pooled = 0;
        }
        if size <= KEPT {
            self.pooled += size;
            self.pool.entry(size).or_default().push(buffer);
        } else {
            gone.push(buffer.0);
        }
        if !gone.is_empty() {
            self.groups.retain(|(_, bound), _| !bound.iter().any(|[id, ..]| gone.contains(id)));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens an adapter. `checked` keeps every access of every kernel inside its buffers, as a
    /// browser would; without it kernels are as fast as they can be.
    ///
    /// # Errors
    /// [`Error::Device`] if it cannot be opened.
    pub fn open(adapter: &Adapter, checked: bool) -> Result<Self> {
        let features = adapter.features();
        let matrices = features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
        let experimental_features = if matrices {
            // SAFETY: the only experimental feature is cooperative matrices, whose kernels load and
            // store whole matrices inside workgroup memory of that size.
            unsafe { wgpu::ExperimentalFeatures::enabled() }
        } else {
            wgpu::ExperimentalFeatures::disabled()
        };
        let (device, queue) = adapter.open(&wgpu::DeviceDescriptor {
            label: Some("lowbit"),
            required_features: features,
            required_limits: adapter.wgpu_limits(),
            experimental_features,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        })?;
        let failure = Arc::new(Mutex::new(None));
        let note = |failure: &Arc<Mutex<Option<String>>>| {
            let failure = failure.clone();
            move |what: String| {
                lock(&failure).get_or_insert(what);
            }
        };
        let error = note(&failure);
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| error(e.to_string())));
        let lost = note(&failure);
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                lost(format!("the GPU was lost: {message}"));
            }
        });
        let params = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("parameters"),
            size: PARAMS * BATCH as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let limits = adapter.limits();
        let clock = features.contains(wgpu::Features::TIMESTAMP_QUERY).then(|| Clock {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("clock"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            }),
            ticks: device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("clock"),
                size: 16,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }),
        });
        let (adapter, state) = (adapter.clone(), Mutex::default());
        let shared =
            Shared { adapter, device, queue, limits, checked, params, failure, clock, state };
        Ok(Gpu { shared: Arc::new(shared), choices: None })
    }

    /// The same GPU, on which products take these kernels, those of them that it can run.
    #[must_use]
    pub fn with_choices(mut self, choices: Choices) -> Self {
        self.choices = Some(Arc::new(choices.runnable(&self.shared.limits)));
        self
    }

    /// What was opened.
    pub fn adapter(&self) -> &Adapter {
        &self.shared.adapter
    }

    /// Runs what is queued and waits for it.
    ///
    /// # Errors
    /// [`Error::Device`] if it failed.
    pub fn wait(&self) -> Result<()> {
        let submission = self.shared.flush(&mut lock(&self.shared.state), None)?;
        self.shared.poll(submission)
    }

    /// Seconds that the GPU takes for what `work` queues, which should be less than a thousand
    /// kernels, so that it runs in one go.
    ///
    /// # Errors
    /// [`Error::Device`] if it failed, and what `work` returns.
    pub fn timed<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
        self.wait()?;
        let Some(clock) = &self.shared.clock else {
            let out = work()?;
            let start = std::time::Instant::now();
            self.wait()?;
            return Ok((out, start.elapsed().as_secs_f64()));
        };
        let out = work()?;
        let mut state = lock(&self.shared.state);
        state.timed = true;
        self.shared.flush(&mut state, None)?;
        state.timed = false;
        drop(state);
        let mut encoder = self.shared.device.create_command_encoder(&Default::default());
        encoder.resolve_query_set(&clock.queries, 0..2, &clock.ticks, 0);
        self.shared.queue.submit([encoder.finish()]);
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&self.copy_out(&clock.ticks, 16)?);
        let period = f64::from(self.shared.queue.get_timestamp_period()) * 1e-9;
        Ok((out, ticks[1].wrapping_sub(ticks[0]) as f64 * period))
    }

    /// Waits for what is queued; the first bytes of a buffer.
    fn copy_out(&self, buffer: &wgpu::Buffer, bytes: u64) -> Result<Vec<u8>> {
        self.copy_later(buffer, 0, bytes)?()
    }

    /// Queues a copy of bytes of a buffer, and runs what is queued; what is returned waits
    /// for the copy.
    fn copy_later(
        &self,
        buffer: &wgpu::Buffer,
        offset: u64,
        bytes: u64,
    ) -> Result<impl FnOnce() -> Result<Vec<u8>> + Send + use<>> {
        let shared = self.shared.clone();
        let size = bytes.next_multiple_of(4).max(4);
        let mut state = lock(&shared.state);
        let staging = match state.staging.pop() {
            Some(staging) if size <= STAGING => staging,
            _ => shared.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("staging"),
                size: size.max(STAGING),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }),
        };
        let submission = shared.flush(&mut state, Some((buffer, offset, &staging, size)))?;
        drop(state);
        let failed = |reason: String| Error::Device {
            op: "read",
            reason,
            help: "try again, or use the CPU".into(),
        };
        staging.slice(..size).map_async(wgpu::MapMode::Read, |_| {});
        Ok(move || {
            shared.poll(submission)?;
            let view = staging.slice(..size).get_mapped_range();
            let content = view.map_err(|e| failed(e.to_string()))?[..bytes as usize].to_vec();
            if staging.size() == STAGING {
                staging.unmap();
                lock(&shared.state).staging.push(staging);
            }
            Ok(content)
        })
    }

    /// A buffer with whatever was left in it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    fn allocate(&self, bytes: u64) -> Result<(Buffer, bool)> {
        let size = bytes.next_multiple_of(16).max(16);
        let mut state = lock(&self.shared.state);
        let used = state.pool.get_mut(&size).and_then(Vec::pop);
        let fresh = used.is_none();
        let (id, buffer) = match used {
            Some(used) => {
                state.pooled -= size;
                used
            }
            None => {
                state.buffers += 1;
                (state.buffers, self.shared.create(size)?)
            }
        };
        let gpu = Arc::downgrade(&self.shared);
        let inner = Arc::new(Inner { id, size, buffer, gpu });
        Ok((Buffer { inner, offset: 0, size }, fresh))
    }
}

impl Shared {
    fn create(&self, size: u64) -> Result<wgpu::Buffer> {
        let out_of_memory = |help: String| Error::OutOfMemory { op: OP, bytes: size, help };
        if size > self.device.limits().max_buffer_size {
            return Err(out_of_memory(format!(
                "this GPU holds at most {} bytes in one buffer; use a shorter context or a smaller batch",
                self.device.limits().max_buffer_size
            )));
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        match pollster::block_on(scope.pop()) {
            None => Ok(buffer),
            Some(_) => Err(out_of_memory(
                "close other programs that use the GPU, use a smaller model or context, or the CPU"
                    .into(),
            )),
        }
    }

    fn check(&self) -> Result<()> {
        match &*lock(&self.failure) {
            None => Ok(()),
            Some(reason) => Err(Error::Device {
                op: OP,
                reason: reason.clone(),
                help: "nothing on disk was changed; try again, or use the CPU".into(),
            }),
        }
    }

    /// Waits for a submission, or for all.
    fn poll(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        self.check()?;
        polled.map(|_| ()).map_err(|e| Error::Device {
            op: OP,
            reason: e.to_string(),
            help: "try again, or use the CPU".into(),
        })
    }

    /// Submits what is queued, and a copy out after it.
    fn flush(
        &self,
        state: &mut State,
        copy: Option<(&wgpu::Buffer, u64, &wgpu::Buffer, u64)>,
    ) -> Result<Option<wgpu::SubmissionIndex>> {
        if state.commands.is_empty() && copy.is_none() {
            return self.check().map(|()| None);
        }
        if !state.params.is_empty() {
            self.queue.write_buffer(&self.params, 0, &state.params);
        }
        let mut encoder = self.device.create_command_encoder(&Default::default());
        if !state.commands.is_empty() {
            let clock = self.clock.as_ref().filter(|_| state.timed);
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: clock.map(|clock| wgpu::ComputePassTimestampWrites {
                    query_set: &clock.queries,
                    beginning_of_pass_write_index: Some(0),
                    end_of_pass_write_index: Some(1),
                }),
            });
            let mut current = 0;
            for (i, command) in state.commands.iter().enumerate() {
                if command.pipeline.id != current {
                    pass.set_pipeline(&command.pipeline.pipeline);
                    current = command.pipeline.id;
                }
                pass.set_bind_group(0, &command.bindings, &[(i as u64 * PARAMS) as u32]);
                let [x, y, z] = command.groups;
                pass.dispatch_workgroups(x, y, z);
            }
        }
        if let Some((from, offset, to, bytes)) = copy {
            encoder.copy_buffer_to_buffer(from, offset, to, 0, bytes);
        }
        let submission = self.queue.submit([encoder.finish()]);
        state.commands.clear();
        state.params.clear();
        self.check().map(|()| Some(submission))
    }
}

impl Queue for Gpu {
    type Buffer = Buffer;

    fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    fn choices(&self) -> Option<&Choices> {
        self.choices.as_deref()
    }

    fn zeros(&self, bytes: u64) -> Result<Buffer> {
        let (buffer, fresh) = self.allocate(bytes)?;
        if !fresh {
            let mut state = lock(&self.shared.state);
            self.shared.flush(&mut state, None)?;
            let mut encoder = self.shared.device.create_command_encoder(&Default::default());
            encoder.clear_buffer(&buffer.inner.buffer, 0, None);
            self.shared.queue.submit([encoder.finish()]);
        }
        Ok(buffer)
    }

    fn scratch(&self, bytes: u64) -> Result<Buffer> {
        self.allocate(bytes).map(|(buffer, _)| buffer)
    }

    fn upload(&self, content: &[u8]) -> Result<Buffer> {
        let (buffer, fresh) = self.allocate(content.len() as u64)?;
        let mut state = lock(&self.shared.state);
        if !fresh {
            // What is queued may still read what this buffer held before.
            self.shared.flush(&mut state, None)?;
        }
        let (queue, target) = (&self.shared.queue, &buffer.inner.buffer);
        let whole = content.len() / 4 * 4;
        for (i, part) in content[..whole].chunks(WRITTEN as usize).enumerate() {
            queue.write_buffer(target, i as u64 * WRITTEN, part);
            state.written += part.len() as u64;
            if state.written >= WRITTEN {
                // Else the whole model would wait in memory.
                state.written = 0;
                self.shared.poll(Some(queue.submit([])))?;
            }
        }
        let mut rest = vec![0; (buffer.inner.size as usize - whole).min(16)];
        rest[..content.len() - whole].copy_from_slice(&content[whole..]);
        queue.write_buffer(target, whole as u64, &rest);
        Ok(buffer)
    }

    fn dispatch(
        &self,
        kernel: &Kernel,
        buffers: &[&Buffer],
        params: &[u32],
        groups: [u32; 3],
    ) -> Result<()> {
        let (bound, given) = (kernel.bindings.len() - 1, buffers.len());
        if bound != given || kernel.params.len() != params.len() {
            return Err(Error::argument(
                "dispatch",
                format!("{bound} buffers and {} parameters", kernel.params.len()),
                format!("{given} and {}", params.len()),
                "this is a mistake in the kernel's host side; report it",
            ));
        }
        let mut state = lock(&self.shared.state);
        if state.commands.len() == BATCH {
            self.shared.flush(&mut state, None)?;
        }
        let pipeline = self.shared.pipeline(&mut state, kernel)?;
        let bindings = self.shared.bind(&mut state, &pipeline, buffers);
        let end = state.params.len() + PARAMS as usize;
        state.params.extend_from_slice(bytemuck::cast_slice(params));
        state.params.resize(end, 0);
        state.commands.push(Command { pipeline, bindings, groups });
        Ok(())
    }

    fn read(&self, buffer: &Buffer, bytes: u64) -> Result<Vec<u8>> {
        self.fetch(buffer, bytes)?()
    }

    fn fetch(&self, buffer: &Buffer, bytes: u64) -> Result<Fetch> {
        Ok(Box::new(self.copy_later(&buffer.inner.buffer, buffer.offset, bytes)?))
    }

    fn slice(&self, buffer: &Buffer, offset: u64, bytes: u64) -> Option<Buffer> {
        let limits = self.shared.device.limits();
        let offset = buffer.offset + offset;
        // Kernels read whole words.
        let size = bytes.next_multiple_of(4);
        let fits = offset + size <= buffer.offset + buffer.size && size > 0;
        let aligned = offset % u64::from(limits.min_storage_buffer_offset_alignment) == 0;
        (fits && aligned).then(|| Buffer { inner: buffer.inner.clone(), offset, size })
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("adapter", &self.shared.adapter.name()).finish()
    }
}
