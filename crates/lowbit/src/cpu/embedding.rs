//! Rows of a quantized table by their index.

use super::convert::narrow;
use super::dispatch::Isa;
use super::simd::{Simd, Task};
use super::view::View;
use super::{Cpu, check_len};
use crate::{Element, Error, QTensor, Result, threads};

/// Numbers from which several threads are faster than one.
const PARALLEL_FROM: usize = 1 << 16;

impl Cpu {
    /// `out[i] = w[ids[i]]`: `w: [N, K]`, `out: [ids, K]`. Only those rows are dequantized.
    ///
    /// # Errors
    /// [`Error::Argument`] for an index that is not one of a row, with its place, or if `out` has
    /// another length.
    pub fn embedding<T: Element>(&self, w: &QTensor, ids: &[i64], out: &mut [T]) -> Result<()> {
        T::embedding(self, w, ids, out)
    }
}

/// [`Cpu::embedding`].
pub(super) fn embedding<T: Element>(
    isa: Isa,
    w: &QTensor,
    ids: &[i64],
    out: &mut [T],
) -> Result<()> {
    const OP: &str = "embedding";
    let (n, k) = (w.rows(), w.cols());
    check_len(
        OP,
        format_args!("numbers of out, {} rows of K = {k}", ids.len()),
        ids.len() * k,
        out.len(),
    )?;
    check_indices(OP, "ids", ids, n)?;
    if out.is_empty() {
        return Ok(());
    }
    let view = View::quantized(w);
    let task = |(id, out): (&i64, &mut [T])| {
        isa.run(Row { view: &view, row: *id as usize, out });
    };
    let serial = out.len() < PARALLEL_FROM;
    let rows = ids.iter().zip(out.chunks_exact_mut(k));
    if serial {
        rows.for_each(task)
    } else {
        threads::for_each(rows, task)
    }
    Ok(())
}

/// Refuses an index that is not from `0` to `len - 1`.
pub(crate) fn check_indices(op: &'static str, name: &str, ids: &[i64], len: usize) -> Result<()> {
    match ids.iter().position(|id| usize::try_from(*id).map_or(true, |id| id >= len)) {
        None => Ok(()),
        Some(at) => Err(Error::argument(
            op,
            format!("{name} from 0 to less than {len}"),
            format!("{} at place {at}", ids[at]),
            "check where the indices come from",
        )),
    }
}

struct Row<'a, T> {
    view: &'a View<'a>,
    row: usize,
    out: &'a mut [T],
}

impl<T: Element> Task for Row<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const PART: usize = 1024;
        let mut buffer = [0.0f32; PART];
        for (i, out) in self.out.chunks_mut(PART).enumerate() {
            let numbers = &mut buffer[..out.len()];
            self.view.decode(s, self.row, i * PART, numbers);
            narrow(s, numbers, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Rng;
    use crate::cpu::{Isa, reference};
    use crate::formats;

    #[test]
    fn rows_are_those_of_dequantize() {
        let mut rng = Rng(4);
        for format in formats::ALL {
            for (n, k) in [(7usize, 100), (3, 33), (5, 1500), (1, 1)] {
                let n = n.next_multiple_of(format.row_multiple());
                let block = format.block_sizes().first().copied();
                let q = rng.tensor(format, &[n, k], block).unwrap();
                let all = reference::dequantize(&q);
                let ids: Vec<i64> = (0..9).map(|_| rng.below(n) as i64).collect();
                for isa in Isa::available() {
                    let mut out = vec![half::bf16::ZERO; ids.len() * k];
                    Cpu::with(isa).embedding(&q, &ids, &mut out).unwrap();
                    for (id, out) in ids.iter().zip(out.chunks_exact(k)) {
                        let row = &all[*id as usize * k..][..k];
                        let rounded: Vec<_> =
                            row.iter().map(|v| half::bf16::from_f32(*v)).collect();
                        assert_eq!(out, rounded, "{} {} row {id}", isa.name(), format.name);
                    }
                }
            }
        }
    }

    #[test]
    fn indices_are_checked() {
        let q = Rng(1).tensor(formats::by_name("nf4").unwrap(), &[4, 64], None).unwrap();
        let mut out = vec![0.0f32; 128];
        for bad in [-1, 4, i64::MIN, i64::MAX] {
            let why = Cpu::best().embedding(&q, &[0, bad], &mut out).unwrap_err().to_string();
            assert!(why.contains("less than 4") && why.contains("at place 1"), "{why}");
        }
        assert!(Cpu::best().embedding(&q, &[0], &mut out).is_err());
        Cpu::best().embedding::<f32>(&q, &[], &mut []).unwrap();
    }
}
