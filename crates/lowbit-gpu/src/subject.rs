//! The operations as a subject of [`lowbit::conformance`].

use lowbit::conformance::{Numbers, Subject};
use lowbit::{DType, Format, QTensor, Result, Weight};

use crate::numbers::{from_bytes, to_bytes};
use crate::{GpuWeight, Queue, double_quantize, product, quantize};

/// Any queue under test.
#[derive(Debug)]
pub struct OnGpu<'a, Q> {
    /// What runs the kernels.
    pub queue: &'a Q,
    /// What a person would call it.
    pub name: String,
}

impl<Q: Queue> OnGpu<'_, Q> {
    fn upload(&self, x: &Numbers) -> Result<Q::Buffer> {
        self.queue.upload(&to_bytes(&x.values, x.dtype))
    }

    fn read(&self, buffer: &Q::Buffer, dtype: DType, len: usize) -> Result<Numbers> {
        let bytes = self.queue.read(buffer, (len * dtype.size()) as u64)?;
        Ok(Numbers { dtype, values: from_bytes(&bytes, dtype) })
    }

    fn weight(&self, q: &QTensor) -> Result<GpuWeight<Q::Buffer>> {
        GpuWeight::upload(self.queue, &Weight::Quantized(q.clone()))
    }
}

impl<Q: Queue> Subject for OnGpu<'_, Q> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn quantize(
        &self,
        format: &'static Format,
        w: &Numbers,
        shape: &[usize],
        block_size: Option<usize>,
    ) -> Result<QTensor> {
        let numbers = self.upload(w)?;
        quantize(self.queue, format, &numbers, w.dtype, shape, block_size)?
            .read(self.queue, &w.values)
    }

    fn double_quantize(&self, q: QTensor) -> Result<QTensor> {
        let nested = double_quantize(self.queue, &q.scales().to_f32())?;
        q.with_scales(nested)
    }

    fn dequantize(&self, q: &QTensor, dtype: DType) -> Result<Numbers> {
        let w = self.weight(q)?;
        self.read(&product::dequantize(self.queue, &w, dtype)?, dtype, q.numel())
    }

    fn linear(&self, q: &QTensor, x: &Numbers, bias: Option<&Numbers>) -> Result<Numbers> {
        let (w, m) = (self.weight(q)?, x.values.len().checked_div(q.cols()).unwrap_or(0));
        let bias = bias.map(|b| self.upload(b)).transpose()?;
        let y = product::linear(self.queue, &self.upload(x)?, m, &w, bias.as_ref(), x.dtype)?;
        self.read(&y, x.dtype, m * q.rows())
    }

    fn linear_transposed(&self, q: &QTensor, dy: &Numbers) -> Result<Numbers> {
        let (w, m) = (self.weight(q)?, dy.values.len().checked_div(q.rows()).unwrap_or(0));
        let dx = product::linear_transposed(self.queue, &self.upload(dy)?, m, &w, dy.dtype)?;
        self.read(&dx, dy.dtype, m * q.cols())
    }
}
