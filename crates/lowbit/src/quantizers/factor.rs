//! The one piece of linear algebra that error feedback needs.

use rayon::prelude::*;

use crate::{Error, Result};

/// What is added to the diagonal, as a part of its mean: inputs that never vary have no curvature, and
/// those that a model will see vary more than those of a text, the fewer bits the more.
const DAMPING: f64 = 0.3;
/// Columns that a thread takes at once.
const COLUMNS: usize = 256;

/// The upper triangle `U: [K, K]` with `gram⁻¹ = Uᵀ U`, for a damped `gram: [K, K]`, and the damping.
///
/// # Errors
/// [`Error::Argument`] if that is no matrix of inner products.
pub(super) fn inverse_root(gram: &[f32], k: usize) -> Result<(Vec<f32>, f32)> {
    let diagonal = || (0..k).map(|i| f64::from(gram[i * k + i]));
    let mean = diagonal().sum::<f64>() / k.max(1) as f64;
    let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
    // gram = R Rᵀ with R upper, from the last column on.
    let mut r: Vec<f64> = gram.par_iter().map(|v| f64::from(*v)).collect();
    for j in (0..k).rev() {
        let (above, rest) = r.split_at_mut(j * k);
        let row = &mut rest[..k];
        let square: f64 = row[j + 1..].iter().map(|v| v * v).sum();
        let pivot = row[j] + damping - square;
        if !pivot.is_finite() || pivot <= 0.0 {
            return Err(Error::argument(
                "quantize",
                "the inner products of a layer's inputs",
                format!("a matrix that is not positive, at column {j}"),
                "calibrate with another text, or without feedback",
            ));
        }
        let pivot = pivot.sqrt();
        row[j] = pivot;
        let tail = &row[j + 1..];
        above.par_chunks_mut(k).for_each(|row| {
            let along: f64 = row[j + 1..].iter().zip(tail).map(|(a, b)| a * b).sum();
            row[j] = (row[j] - along) / pivot;
        });
    }
    // U = R⁻¹, row by row from the last, some columns a thread.
    let columns = |first: usize| {
        let width = COLUMNS.min(k - first);
        let mut u = vec![0.0f64; k * width];
        for i in (0..k.min(first + width)).rev() {
            let (mut row, below) = ([0.0f64; COLUMNS], &u[(i + 1) * width..]);
            if (first..first + width).contains(&i) {
                row[i - first] = 1.0;
            }
            let factors = &r[i * k + i + 1..i * k + k.min(first + width)];
            for (factor, below) in factors.iter().zip(below.chunks_exact(width)) {
                for (sum, u) in row.iter_mut().zip(below) {
                    *sum -= factor * u;
                }
            }
            for (u, sum) in u[i * width..][..width].iter_mut().zip(row) {
                *u = sum / r[i * k + i];
            }
        }
        (first, width, u)
    };
    let parts: Vec<_> =
        (0..k).step_by(COLUMNS).collect::<Vec<_>>().into_par_iter().map(columns).collect();
    let mut u = vec![0.0f32; k * k];
    for (first, width, part) in parts {
        for (row, part) in u.chunks_exact_mut(k).zip(part.chunks_exact(width)) {
            for (u, v) in row[first..first + width].iter_mut().zip(part) {
                *u = *v as f32;
            }
        }
    }
    Ok((u, damping as f32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Rng;

    #[test]
    fn its_square_undoes_the_matrix() {
        for k in [1, 5, 300] {
            let mut rng = Rng(9);
            let x: Vec<f32> = (0..2 * k * k).map(|_| rng.normal()).collect();
            let mut gram = vec![0.0f32; k * k];
            for x in x.chunks_exact(k) {
                for i in 0..k {
                    for j in 0..k {
                        gram[i * k + j] += x[i] * x[j] / k as f32;
                    }
                }
            }
            let (u, damping) = inverse_root(&gram, k).unwrap();
            for i in 0..k {
                assert!(u[i * k..i * k + i].iter().all(|v| *v == 0.0), "upper");
                gram[i * k + i] += damping;
            }
            // U gram Uᵀ = 1.
            for i in (0..k).step_by(37) {
                let row: Vec<f64> = (0..k)
                    .map(|j| (0..k).map(|m| f64::from(u[i * k + m] * gram[m * k + j])).sum())
                    .collect();
                for j in (0..k).step_by(41) {
                    let value: f64 = (0..k).map(|m| row[m] * f64::from(u[j * k + m])).sum();
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((value - expected).abs() < 1e-3, "{k} ({i}, {j}): {value}");
                }
            }
        }
        assert!(inverse_root(&[1.0, 2.0, 2.0, 1.0], 2).is_err());
    }
}
