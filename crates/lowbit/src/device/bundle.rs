//! Linear layers that read the same input, one after the other: what a device does that has no way of
//! its own.

use super::{Device, Norm, Tensor};
use crate::{Error, Result, Weight};

/// Weights with their biases.
struct Bundle(Vec<(Tensor, Option<Tensor>)>);

/// Uploads each.
///
/// # Errors
/// Those of [`Device::upload`]; so for the others.
pub fn upload<D: Device + ?Sized>(
    device: &D,
    weights: &[(Weight, Option<Weight>)],
) -> Result<Tensor> {
    let both = |(weight, bias): &(Weight, Option<Weight>)| {
        let bias = bias.as_ref().map(|bias| device.upload(bias)).transpose()?;
        Ok((device.upload(weight)?, bias))
    };
    let all = weights.iter().map(both).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::new(vec![weights.len()], Bundle(all)))
}

/// Norms `x`, then multiplies by each.
///
/// # Errors
/// Those of the device's operations.
pub fn linears<D: Device + ?Sized>(
    device: &D,
    x: &Tensor,
    norm: Option<Norm<'_>>,
    bundle: &Tensor,
) -> Result<Vec<Tensor>> {
    let Bundle(weights) = bundle.get("linears")?;
    let normed = norm.map(|norm| device.rms_norm(x, norm.weight, norm.eps)).transpose()?;
    let x = normed.as_ref().unwrap_or(x);
    weights.iter().map(|(weight, bias)| device.linear(x, weight, bias.as_ref())).collect()
}

/// The first of two results gates the second.
///
/// # Errors
/// [`Error::Argument`] unless there are two; those of the device's operations.
pub fn gated<D: Device + ?Sized>(
    device: &D,
    x: &Tensor,
    norm: Option<Norm<'_>>,
    bundle: &Tensor,
) -> Result<Tensor> {
    gate(device, &device.linears(x, norm, bundle)?)
}

/// The first of two gates the second.
///
/// # Errors
/// [`Error::Argument`] unless there are two; those of the device's operations.
pub fn gate<D: Device + ?Sized>(device: &D, both: &[Tensor]) -> Result<Tensor> {
    match both {
        [gate, up] => device.silu_mul(gate, up),
        several => Err(Error::argument(
            "gated",
            "a bundle of two weights",
            several.len().to_string(),
            "bundle the gate and what it multiplies",
        )),
    }
}
