//! LLM.int8's split (arXiv 2208.07339): columns with an outlier are left to 16 bit.

use bytes::Bytes;

use super::Cpu;
use crate::format::{Layout, Packing};
use crate::{Element, Error, Format, Parts, QTensor, Result};

/// A quantized matrix without its outlier columns.
#[derive(Debug, Clone)]
pub struct WithoutOutliers {
    /// The matrix; outlier columns are zero in it.
    pub codes: QTensor,
    /// Outlier columns, ascending: those with a number of magnitude `threshold` or more.
    pub columns: Vec<usize>,
}

impl Cpu {
    /// Quantizes `x: [M, K]` by rows as bitsandbytes' `int8_vectorwise_quant` does with a
    /// threshold: numbers of that magnitude or more count for no row's scale, and their columns
    /// are zero. A threshold of 0 means no outliers.
    ///
    /// # Errors
    /// [`Error::Argument`] for a format that does not keep a byte per weight in rows, or a
    /// threshold that is negative or NaN; else as [`quantize`](Self::quantize).
    pub fn quantize_without_outliers<T: Element>(
        &self,
        format: &'static Format,
        x: &[T],
        shape: [usize; 2],
        threshold: f32,
    ) -> Result<WithoutOutliers> {
        const OP: &str = "quantize_without_outliers";
        let zero = match (format.layout, format.packing, format.encoder) {
            (Layout::Rows { pad: 1, .. }, Packing::HighFirst, Some(encoder))
                if format.code_bits == 8 =>
            {
                encoder.encode(0.0)
            }
            _ => {
                return Err(Error::argument(
                    OP,
                    "a format of one byte per weight, in rows",
                    format.name,
                    "choose an 8-bit row format",
                ));
            }
        };
        check_threshold(OP, threshold)?;
        if threshold == 0.0 {
            let codes = self.quantize(format, x, &shape, None)?;
            return Ok(WithoutOutliers { codes, columns: Vec::new() });
        }
        // An outlier may well be infinite; what is left must not be.
        let k = shape[1];
        let outlier = |v: &T| v.to_f32().abs() >= threshold;
        let kept: Vec<T> = x.iter().map(|v| if outlier(v) { T::default() } else { *v }).collect();
        let q = self.quantize(format, &kept, &shape, None)?;
        let mut is_outlier = vec![false; k];
        for row in x.chunks_exact(k.max(1)) {
            for (column, v) in is_outlier.iter_mut().zip(row) {
                *column |= outlier(v);
            }
        }
        let columns: Vec<usize> = (0..k).filter(|i| is_outlier[*i]).collect();
        let mut codes = q.codes().to_vec();
        for row in codes.chunks_exact_mut(k.max(1)) {
            for column in &columns {
                row[*column] = zero;
            }
        }
        let codes = QTensor::from_parts(Parts {
            format,
            shape: shape.to_vec(),
            block_size: None,
            codes: Bytes::from(codes),
            scales: q.scales().clone(),
            means: None,
            codebook: None,
        })?;
        Ok(WithoutOutliers { codes, columns })
    }
}

pub(super) fn check_threshold(op: &'static str, threshold: f32) -> Result<()> {
    if threshold >= 0.0 {
        return Ok(());
    }
    let help = "pass 0 for no outliers";
    Err(Error::argument(op, "a threshold from 0", threshold.to_string(), help))
}
