//! Mixtures of experts, one expert after the other: what a device does that has no way of its own.

use super::{Device, Routes, Routing, Tensor, bundle, check};
use crate::{DenseTensor, Error, Result, Weight};

/// Weights of each expert, of which all read the same input.
struct Experts(Vec<Vec<Tensor>>);

/// Uploads each.
///
/// # Errors
/// [`Error::Argument`] unless all experts have weights of the same shapes; those of
/// [`Device::upload`].
pub fn upload<D: Device + ?Sized>(device: &D, experts: &[Vec<Weight>]) -> Result<Tensor> {
    check::experts(experts)?;
    let each = |weights: &Vec<Weight>| weights.iter().map(|w| device.upload(w)).collect();
    let all = experts.iter().map(each).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::new(vec![experts.len()], Experts(all)))
}

/// Softmax, and the largest of it; of equals the first.
///
/// # Errors
/// [`Error::Argument`] unless there are as many experts; those of the device's operations, as for
/// the others.
pub fn route<D: Device + ?Sized>(device: &D, logits: &Tensor, routing: Routing) -> Result<Routes> {
    let (rows, count) = logits.rows_cols();
    check::routing(count, routing)?;
    let numbers = device.read(logits)?;
    let (mut experts, mut shares) = (Vec::new(), Vec::new());
    for logits in numbers.chunks_exact(count) {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let parts: Vec<f32> = logits.iter().map(|logit| (logit - most).exp()).collect();
        let mut order: Vec<usize> = (0..count).collect();
        // Of zeros the sign does not count.
        let key = |expert: &usize| logits[*expert] + 0.0;
        order.sort_by(|a, b| key(b).total_cmp(&key(a)));
        order.truncate(routing.top);
        let whole: f32 = match routing.normalize {
            true => order.iter().map(|expert| parts[*expert]).sum(),
            false => parts.iter().sum(),
        };
        experts.extend(order.iter().map(|expert| *expert as f32));
        shares.extend(order.iter().map(|expert| parts[*expert] / whole));
    }
    let vector = |numbers: Vec<f32>| {
        device.upload(&DenseTensor::from_f32(vec![numbers.len()], &numbers)?.into())
    };
    Ok(Routes { rows, top: routing.top, experts: vector(experts)?, shares: vector(shares)? })
}

/// Rows of an expert.
#[derive(Debug)]
pub struct Routed {
    /// Which expert.
    pub expert: usize,
    /// Where its results belong: row `i` of the routes' row `t` is `t * top + i`.
    pub places: Vec<usize>,
    /// What it reads, `[places, K]`.
    pub x: Tensor,
}

/// The rows that each expert reads, of those that read any: `x: [T, K]` or `[T * top, K]`.
///
/// # Errors
/// [`Error::Argument`] if `x` has another number of rows.
pub fn by_expert<D: Device + ?Sized>(
    device: &D,
    x: &Tensor,
    routes: &Routes,
) -> Result<Vec<Routed>> {
    let readers = check::routed(x, routes)?;
    let (rows, cols) = x.rows_cols();
    let chosen = device.read(&routes.experts)?;
    let table =
        device.upload(&DenseTensor::from_f32(vec![rows, cols], &device.read(x)?)?.into())?;
    let mut experts: Vec<usize> = chosen.iter().map(|expert| *expert as usize).collect();
    experts.sort_unstable();
    experts.dedup();
    let of_expert = |expert: usize| {
        let mine = |place: &usize| chosen[*place] as usize == expert;
        let places: Vec<usize> = (0..chosen.len()).filter(mine).collect();
        let ids: Vec<u32> = places.iter().map(|place| (place / readers) as u32).collect();
        Ok(Routed { expert, places, x: device.embed(&table, &ids)? })
    };
    experts.into_iter().map(of_expert).collect()
}

/// Multiplies what each expert reads.
///
/// # Errors
/// As [`by_expert`].
pub fn linears<D: Device + ?Sized>(
    device: &D,
    x: &Tensor,
    experts: &Tensor,
    routes: &Routes,
) -> Result<Vec<Tensor>> {
    const OP: &str = "linear_experts";
    let Experts(experts) = experts.get(OP)?;
    let widths = experts.first().into_iter().flatten().map(|w| w.shape()[0]);
    let places = routes.rows * routes.top;
    let mut results: Vec<(usize, Vec<f32>)> = widths.map(|n| (n, vec![0.0; places * n])).collect();
    for Routed { expert, places, x } in by_expert(device, x, routes)? {
        let weights = experts.get(expert).ok_or_else(|| {
            let (expected, got) = (format!("{} experts", experts.len()), format!("{expert}"));
            Error::argument(OP, expected, got, "route with the router of these experts")
        })?;
        for (weight, (n, all)) in weights.iter().zip(&mut results) {
            let y = device.read(&device.linear(&x, weight, None)?)?;
            for (place, y) in places.iter().zip(y.chunks_exact((*n).max(1))) {
                all[place * *n..(place + 1) * *n].copy_from_slice(y);
            }
        }
    }
    results.into_iter().map(|(n, all)| activations(device, places, n, &all)).collect()
}

/// The first of two results gates the second.
///
/// # Errors
/// [`Error::Argument`] unless there are two; as [`by_expert`].
pub fn gated<D: Device + ?Sized>(
    device: &D,
    x: &Tensor,
    experts: &Tensor,
    routes: &Routes,
) -> Result<Tensor> {
    bundle::gate(device, &device.linear_experts(x, experts, routes)?)
}

/// Adds the shares of each row's results to it.
///
/// # Errors
/// [`Error::Argument`] if shapes do not fit.
pub fn mix<D: Device + ?Sized>(
    device: &D,
    y: &Tensor,
    routes: &Routes,
    to: &Tensor,
) -> Result<Tensor> {
    let (rows, cols) = check::mix(y, routes, to)?;
    let (mut sums, shares) = (device.read(to)?, device.read(&routes.shares)?);
    for (place, (share, y)) in shares.iter().zip(device.read(y)?.chunks(cols.max(1))).enumerate() {
        let row = place / routes.top;
        for (sum, y) in sums[row * cols..(row + 1) * cols].iter_mut().zip(y) {
            *sum += share * y;
        }
    }
    activations(device, rows, cols, &sums)
}

/// Numbers as activations: rows of a table are, once they are looked up.
fn activations<D: Device + ?Sized>(
    device: &D,
    rows: usize,
    cols: usize,
    numbers: &[f32],
) -> Result<Tensor> {
    let table = device.upload(&DenseTensor::from_f32(vec![rows, cols], numbers)?.into())?;
    let ids: Vec<u32> = (0..rows as u32).collect();
    device.embed(&table, &ids)
}
