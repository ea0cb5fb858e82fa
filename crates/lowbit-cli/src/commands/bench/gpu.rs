//! The same cases on a GPU: timed by its own clock, many calls in one submission, on weights that no
//! cache holds.

use lowbit::optim::{self, Settings};
use lowbit::{DType, Element, Format, QTensor, Weight};
use lowbit_gpu::optim::{Optimizer, Parameter, State};
use lowbit_gpu::{
    Buffer, Gpu, GpuWeight, Quantizer, Queue, Schedule, dequantize, linear, linear_scheduled,
};

use super::measure::Times;
use crate::failure::Result;

/// Bytes to rotate through: several times the largest cache of a GPU.
const COLD_BYTES: usize = 400_000_000;
/// Bytes of results of one submission, less than what is kept for the next: more would be allocated anew
/// each time, which leaves the GPU idle for longer than it works, and its clocks low.
const RESULT_BYTES: usize = 200_000_000;
/// Calls of one submission at most.
const CALLS: usize = 64;
/// Seconds of one submission, about.
const SUBMISSION: f64 = 0.02;

/// A GPU and what its memory can do.
pub struct Place {
    pub gpu: Gpu,
    /// Bytes a second.
    pub bandwidth: f64,
    /// Whether each call waits for the one before it, as in a model.
    pub serial: bool,
}

impl Place {
    pub fn new(gpu: Gpu, serial: bool) -> Result<Self> {
        let bandwidth = lowbit_gpu::measure::read_bandwidth(&gpu)?;
        Ok(Place { gpu, bandwidth, serial })
    }

    /// Times `call(i)`, `i` below `items`, for about `seconds`. Unless `serial`, what it returns, `bytes`
    /// each, is kept until its submission has run, so that no call waits for another's memory.
    fn time<R>(
        &self,
        seconds: f32,
        items: usize,
        bytes: usize,
        mut call: impl FnMut(usize) -> lowbit::Result<R>,
    ) -> Result<Times> {
        let mut turn = (0..items).cycle();
        let mut submit = |calls: usize| {
            self.gpu.timed(|| {
                let mut kept = Vec::new();
                for item in turn.by_ref().take(calls) {
                    let made = call(item)?;
                    if !self.serial {
                        kept.push(made);
                    }
                }
                Ok(kept)
            })
        };
        submit(1)?;
        let (_, once) = submit(1)?;
        let most = (RESULT_BYTES / bytes.max(1)).clamp(1, CALLS);
        let calls = ((SUBMISSION / once.max(1e-7)) as usize).clamp(1, most);
        // Its clocks fall while the processor prepares a case, and take a while to rise again.
        Times::rounds(seconds, || submit(calls).map(drop).map_err(Into::into))?;
        let mut times = Times::default();
        Times::rounds(seconds, || {
            let (made, took) = submit(calls)?;
            times.add(took / calls as f64, self.bandwidth);
            drop(made);
            Ok(())
        })?;
        Ok(times)
    }

    /// Copies of something, as many as no cache holds.
    fn copies<T>(&self, bytes: usize, make: impl FnMut() -> lowbit::Result<T>) -> Result<Vec<T>> {
        let count = COLD_BYTES.div_ceil(bytes.max(1)).clamp(2, CALLS);
        Ok(std::iter::repeat_with(make).take(count).collect::<lowbit::Result<_>>()?)
    }

    pub fn linear<T: Element>(
        &self,
        q: &QTensor,
        x: &[T],
        rows: usize,
        schedule: Option<Schedule>,
        seconds: f32,
    ) -> Result<(Times, Vec<T>)> {
        let gpu = &self.gpu;
        let weight = Weight::Quantized(q.clone());
        let weights = self.copies(q.bytes(), || GpuWeight::upload(gpu, &weight))?;
        let x = gpu.upload(bytemuck::cast_slice(x))?;
        let product = |i: usize| match schedule {
            None => linear(gpu, &x, rows, &weights[i], None, T::DTYPE),
            Some(schedule) => linear_scheduled(gpu, &x, rows, &weights[i], schedule, T::DTYPE)?
                .ok_or_else(|| {
                    lowbit::Error::argument(
                        "bench linear",
                        "a product that this GPU takes on matrix hardware",
                        format!("{rows} rows of {} on {}", T::DTYPE, gpu.adapter().name()),
                        "leave --schedule out, or ask for more --rows of bf16 or f16",
                    )
                }),
        };
        let times = self.time(seconds, weights.len(), rows * q.rows() * size_of::<T>(), product)?;
        let y = product(0)?;
        Ok((times, self.read(&y, rows * q.rows())?))
    }

    pub fn dequantize<T: Element>(&self, q: &QTensor, seconds: f32) -> Result<(Times, Vec<T>)> {
        let gpu = &self.gpu;
        let weight = Weight::Quantized(q.clone());
        let weights = self.copies(q.bytes(), || GpuWeight::upload(gpu, &weight))?;
        let all = |i: usize| dequantize(gpu, &weights[i], T::DTYPE);
        let times = self.time(seconds, weights.len(), q.numel() * size_of::<T>(), all)?;
        Ok((times, self.read(&all(0)?, q.numel())?))
    }

    pub fn quantize<T: Element>(
        &self,
        format: &'static Format,
        w: &[T],
        shape: &[usize],
        block_size: Option<usize>,
        seconds: f32,
    ) -> Result<(Times, QTensor)> {
        let gpu = &self.gpu;
        let weights = self.copies(size_of_val(w), || gpu.upload(bytemuck::cast_slice(w)))?;
        let quantizer = Quantizer::new(gpu, format)?;
        let codes = |i: usize| quantizer.quantize(gpu, &weights[i], T::DTYPE, shape, block_size);
        let times = self.time(seconds, weights.len(), w.len(), codes)?;
        let q = codes(0)?.read(gpu, &[])?;
        Ok((times, q))
    }

    /// A step from a state, and what it leads to.
    pub fn optimizer_step<T: Element>(
        &self,
        settings: &Settings,
        state: &optim::State,
        p: &[T],
        g: &[T],
    ) -> Result<(Vec<T>, optim::State)> {
        let mut training = Training::upload(&self.gpu, state, p, g)?;
        training.step(&self.gpu, settings)?;
        Ok((self.read(&training.p, p.len())?, training.state.read(&self.gpu)?))
    }

    /// Steps from a state on, of a parameter that no cache holds.
    pub fn optimizer_steps<T: Element>(
        &self,
        settings: &Settings,
        state: &optim::State,
        p: &[T],
        g: &[T],
        seconds: f32,
    ) -> Result<Times> {
        let mut training = Training::upload(&self.gpu, state, p, g)?;
        self.time(seconds, 1, 0, |_| training.step(&self.gpu, settings))
    }

    fn read<T: Element>(&self, buffer: &Buffer, len: usize) -> Result<Vec<T>> {
        let bytes = self.gpu.read(buffer, (len * size_of::<T>()) as u64)?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }
}

/// A parameter, its gradient and its moments, and what takes steps with them.
struct Training {
    optimizer: Optimizer<Buffer>,
    state: State<Buffer>,
    p: Buffer,
    g: Buffer,
    dtype: DType,
    len: usize,
}

impl Training {
    fn upload<T: Element>(gpu: &Gpu, state: &optim::State, p: &[T], g: &[T]) -> Result<Self> {
        let state = State::upload(gpu, state)?;
        Ok(Training {
            optimizer: Optimizer::new(gpu, state.rule())?,
            state,
            p: gpu.upload(bytemuck::cast_slice(p))?,
            g: gpu.upload(bytemuck::cast_slice(g))?,
            dtype: T::DTYPE,
            len: p.len(),
        })
    }

    fn step(&mut self, gpu: &Gpu, settings: &Settings) -> lowbit::Result<()> {
        let Training { dtype, len, .. } = *self;
        let parameter = Parameter { dtype, len, p: &self.p, g: &self.g };
        self.optimizer.step(gpu, settings, &parameter, &mut self.state)
    }
}
