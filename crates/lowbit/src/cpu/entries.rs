//! Where kernels are entered with numbers of a type, compiled for each type in this crate.
//!
//! What is generic is compiled anew by every crate that calls it, and these kernels take minutes. So the generic
//! functions of [`Cpu`] do no more than call one of these, which are not.

use super::low_rank::{self, LowRank, LowRankGradients};
use super::{Cpu, check_len, check_linear, dequantize, embedding, int8_linear, linear, quantize};
use super::{rows_of, to_f32, transposed};
use crate::cpu::view::View;
use crate::format::Values;
use crate::optim::{self, Moment, Rule, Settings};
use crate::quantizers::{Search, patterns};
use crate::tensor::rows_cols;
use crate::{Element, Format, QTensor, Result, Scales};

/// The functions of [`Cpu`] by these names, for one type. Only types of this crate have them.
pub trait Entries: Sized {
    /// [`Cpu::quantize`].
    fn quantize(
        cpu: &Cpu,
        format: &'static Format,
        w: &[Self],
        shape: &[usize],
        block_size: Option<usize>,
    ) -> Result<QTensor>;
    /// [`Cpu::quantize_into`].
    fn quantize_into(
        cpu: &Cpu,
        format: &'static Format,
        w: &[Self],
        shape: &[usize],
        block_size: Option<usize>,
        codes: &mut [u8],
    ) -> Result<Scales>;
    /// [`Cpu::dequantize`].
    fn dequantize(cpu: &Cpu, q: &QTensor, out: &mut [Self]) -> Result<()>;
    /// [`Cpu::linear`].
    fn linear(
        cpu: &Cpu,
        q: &QTensor,
        x: &[Self],
        bias: Option<&[Self]>,
        y: &mut [Self],
    ) -> Result<()>;
    /// [`Cpu::linear_transposed`].
    fn linear_transposed(cpu: &Cpu, q: &QTensor, dy: &[Self], dx: &mut [Self]) -> Result<()>;
    /// [`Cpu::low_rank`].
    fn low_rank(
        cpu: &Cpu,
        of: &LowRank<'_>,
        x: &[Self],
        y: &mut [Self],
        hidden: &mut [f32],
    ) -> Result<()>;
    /// [`Cpu::low_rank_backward`].
    fn low_rank_backward(
        cpu: &Cpu,
        of: &LowRank<'_>,
        x: &[Self],
        hidden: &[f32],
        dy: &[Self],
        out: LowRankGradients<'_, Self>,
    ) -> Result<()>;
    /// [`Cpu::embedding`].
    fn embedding(cpu: &Cpu, w: &QTensor, ids: &[i64], out: &mut [Self]) -> Result<()>;
    /// [`Cpu::int8_linear`].
    fn int8_linear(
        cpu: &Cpu,
        w: &QTensor,
        x: &[Self],
        threshold: f32,
        bias: Option<&[Self]>,
        y: &mut [Self],
    ) -> Result<()>;
    /// [`Cpu::optimizer_update`].
    fn optimizer_update(
        cpu: &Cpu,
        rule: Rule,
        settings: &Settings,
        step: u64,
        p: &mut [Self],
        g: &[Self],
        moments: &mut [Moment<'_>],
    ) -> Result<()>;
}

macro_rules! entries {
    ($($T:ty),*) => {$(
        impl Entries for $T {
            fn quantize(
                cpu: &Cpu,
                format: &'static Format,
                w: &[$T],
                shape: &[usize],
                block_size: Option<usize>,
            ) -> Result<QTensor> {
                if let (None, Values::Patterns { .. }) = (format.encoder, format.values) {
                    let (w, search) = (to_f32(w), Search::default());
                    return patterns::quantize(cpu.isa, format, &w, shape, block_size, None, &search);
                }
                quantize::quantize(cpu.isa, format, w, shape, block_size)
            }

            fn quantize_into(
                cpu: &Cpu,
                format: &'static Format,
                w: &[$T],
                shape: &[usize],
                block_size: Option<usize>,
                codes: &mut [u8],
            ) -> Result<Scales> {
                quantize::quantize_into(cpu.isa, format, w, shape, block_size, codes)
            }

            fn dequantize(cpu: &Cpu, q: &QTensor, out: &mut [$T]) -> Result<()> {
                check_len("dequantize", "numbers of output", q.numel(), out.len())?;
                dequantize::dequantize(cpu.isa, q, out);
                Ok(())
            }

            fn linear(
                cpu: &Cpu,
                q: &QTensor,
                x: &[$T],
                bias: Option<&[$T]>,
                y: &mut [$T],
            ) -> Result<()> {
                check_linear(q.shape(), x.len(), bias.map(<[$T]>::len), y.len())?;
                let (bias, dtype) = (bias.map(to_f32), <$T>::DTYPE);
                linear::linear(cpu.isa, &View::quantized(q), x, bias.as_deref(), y, dtype);
                Ok(())
            }

            fn linear_transposed(cpu: &Cpu, q: &QTensor, dy: &[$T], dx: &mut [$T]) -> Result<()> {
                const OP: &str = "linear_transposed";
                let (n, k) = rows_cols(q.shape());
                let m = rows_of(dy.len(), n, dx.len(), k);
                check_len(OP, format_args!("numbers of dy, rows of N = {n}"), m * n, dy.len())?;
                check_len(OP, format_args!("numbers of dx, {m} rows of K = {k}"), m * k, dx.len())?;
                let view = View::quantized(q);
                transposed::linear_transposed(cpu.isa, &view, dy, dx, <$T>::DTYPE);
                Ok(())
            }

            fn low_rank(
                cpu: &Cpu,
                of: &LowRank<'_>,
                x: &[$T],
                y: &mut [$T],
                hidden: &mut [f32],
            ) -> Result<()> {
                low_rank::forward(cpu.isa, of, x, y, hidden)
            }

            fn low_rank_backward(
                cpu: &Cpu,
                of: &LowRank<'_>,
                x: &[$T],
                hidden: &[f32],
                dy: &[$T],
                out: LowRankGradients<'_, $T>,
            ) -> Result<()> {
                low_rank::backward(cpu.isa, of, x, hidden, dy, out)
            }

            fn embedding(cpu: &Cpu, w: &QTensor, ids: &[i64], out: &mut [$T]) -> Result<()> {
                embedding::embedding(cpu.isa, w, ids, out)
            }

            fn int8_linear(
                cpu: &Cpu,
                w: &QTensor,
                x: &[$T],
                threshold: f32,
                bias: Option<&[$T]>,
                y: &mut [$T],
            ) -> Result<()> {
                int8_linear::int8_linear(cpu.isa, w, x, threshold, bias, y)
            }

            fn optimizer_update(
                cpu: &Cpu,
                rule: Rule,
                settings: &Settings,
                step: u64,
                p: &mut [$T],
                g: &[$T],
                moments: &mut [Moment<'_>],
            ) -> Result<()> {
                optim::update(cpu.isa, rule, settings, step, p, g, moments)
            }
        }
    )*};
}
entries!(f32, half::f16, half::bf16);
