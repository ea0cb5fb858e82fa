//! Rotary position embedding: the frequencies of the variants that Llama-family configs use.
//!
//! Settings come in two styles. New: `rope_parameters` with everything in it. Old: `rope_theta`
//! beside a `rope_scaling` that is null or has a `rope_type` (once `type`). Both may mix, and are
//! read as transformers reads them.

use std::f32::consts::PI;

use lowbit::device::Rope;

use crate::Result;
use crate::fields::{Fields, INCONSISTENT, OTHER_MODEL, positions, positive, text};

/// `rope_theta` where a file has none.
const DEFAULT_THETA: f32 = 10_000.0;

/// How the frequencies of a longer context are made from the trained ones.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scaling {
    /// As trained.
    Default,
    /// All divided by `factor`.
    Linear { factor: f32 },
    /// Llama 3.1: waves longer than `original / low` are divided by `factor`, ones shorter than
    /// `original / high` kept, those between interpolated.
    Llama3 { factor: f32, low: f32, high: f32, original: f32 },
}

/// The rotary embedding of a `config.json`.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) for a variant that is not one of those above, or a
/// setting that is missing or out of range.
pub fn parse(fields: &Fields, head_dim: usize, max_positions: usize) -> Result<Rope> {
    let settings = match fields.object("rope_scaling")? {
        Some(old) => Some(old),
        None => fields.object("rope_parameters")?,
    };
    let outer_theta = fields.optional("rope_theta", positive)?.unwrap_or(DEFAULT_THETA);
    refuse_partial(fields)?;
    let Some(settings) = settings else {
        return Ok(frequencies(outer_theta, head_dim, Scaling::Default));
    };
    refuse_partial(&settings)?;
    if let Some((name, _)) = settings.iter().find(|(_, value)| value.is_object()) {
        let expected = "the same settings for all layers";
        return Err(settings.refuse(name, expected, OTHER_MODEL));
    }
    let theta = settings.optional("rope_theta", positive)?.unwrap_or(outer_theta);
    let key = if settings.has("rope_type") { "rope_type" } else { "type" };
    let scaling = match settings.optional(key, text)?.unwrap_or("default") {
        "default" => Scaling::Default,
        "linear" => Scaling::Linear { factor: settings.required("factor", positive)? },
        "llama3" => llama3(fields, &settings, max_positions)?,
        _ => {
            let expected = "\"default\", \"linear\" or \"llama3\"";
            return Err(settings.refuse(key, expected, OTHER_MODEL));
        }
    };
    Ok(frequencies(theta, head_dim, scaling))
}

fn llama3(fields: &Fields, settings: &Fields, max_positions: usize) -> Result<Scaling> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let outer = fields.optional(ORIGINAL, positions)?;
    let inner = settings.optional(ORIGINAL, positions)?;
    let low = settings.required("low_freq_factor", positive)?;
    let high = settings.required("high_freq_factor", positive)?;
    if low >= high {
        let expected = format!("more than low_freq_factor = {low}");
        return Err(settings.refuse("high_freq_factor", expected, INCONSISTENT));
    }
    let factor = settings.required("factor", positive)?;
    let original = outer.or(inner).unwrap_or(max_positions) as f32;
    Ok(Scaling::Llama3 { factor, low, high, original })
}

/// Models that turn a part of each head only are of other families.
fn refuse_partial(fields: &Fields) -> Result<()> {
    match fields.optional("partial_rotary_factor", positive)? {
        None | Some(1.0) => Ok(()),
        Some(_) => Err(fields.refuse("partial_rotary_factor", "1", OTHER_MODEL)),
    }
}

/// `theta^(-2i / head_dim)`, scaled: `[head_dim / 2]`.
///
/// The roundings to f32 are torch's, so that angles agree at far positions too.
fn frequencies(theta: f32, head_dim: usize, scaling: Scaling) -> Rope {
    let trained = (0..head_dim / 2).map(|i| {
        let exponent = (2 * i) as f32 / head_dim as f32;
        1.0 / f64::from(theta).powf(f64::from(exponent)) as f32
    });
    let scaled = |f: f32| match scaling {
        Scaling::Default => f,
        Scaling::Linear { factor } => f / factor,
        Scaling::Llama3 { factor, low, high, original } => {
            let wave = 2.0 * PI / f;
            if wave < original / high {
                f
            } else if wave > original / low {
                f / factor
            } else {
                let smooth = (original / wave - low) / (high - low);
                (1.0 - smooth) * f / factor + smooth * f
            }
        }
    };
    Rope { inv_freq: trained.map(scaled).collect(), scale: 1.0 }
}
