//! The specification: a step in scalar Rust, number by number.
//!
//! Every operation below is one f32 rounding, in the order written, so that the fast path can be
//! held to its bits.

use super::{BLOCK_SIZE, Coefficients, Map, Moment, Rule, Settings, check};
use crate::cpu::reference::Scaling;
use crate::{Element, Result};

/// [`Cpu::optimizer_update`](crate::Cpu::optimizer_update), slowly.
///
/// # Errors
/// As there.
pub fn update<T: Element>(
    rule: Rule,
    settings: &Settings,
    step: u64,
    p: &mut [T],
    g: &[T],
    moments: &mut [Moment<'_>],
) -> Result<()> {
    check(rule, p.len(), g.len(), moments)?;
    settings.check(step)?;
    let mut c = Coefficients::new(rule, settings, step);
    let maps = rule.moments();
    // m: [moments][numbers]
    let mut m: Vec<Vec<f32>> =
        moments.iter().zip(maps).map(|(m, map)| dequantize(m, map)).collect();
    let directions: Vec<f32> = (0..p.len())
        .map(|i| {
            let g = g[i].to_f32() * c.grad_scale + p[i].to_f32() * c.l2;
            let mut now: Vec<f32> = m.iter().map(|m| m[i]).collect();
            let direction = direction(rule, &c, g, &mut now);
            m.iter_mut().zip(now).for_each(|(m, now)| m[i] = now);
            direction
        })
        .collect();
    if settings.max_update_norm > 0.0 {
        let parameter: Vec<f32> = p.iter().map(|p| p.to_f32()).collect();
        c.limit(settings, [norm(&directions), norm(&parameter)]);
    }
    let is_8bit = moments.iter().all(Moment::is_8bit);
    for i in 0..p.len() {
        let sum = m.iter().fold(0.0f32, |sum, m| sum + m[i]);
        if is_8bit && !sum.is_finite() {
            m.iter_mut().for_each(|m| m[i] = 0.0);
        } else {
            p[i] = T::from_f32((p[i].to_f32() * c.before + directions[i] * c.rate) * c.after);
        }
    }
    for ((moment, m), map) in moments.iter_mut().zip(m).zip(maps) {
        quantize(&m, map, moment);
    }
    Ok(())
}

/// Renews the moments and says where to go, before the (negative) rate.
fn direction(rule: Rule, c: &Coefficients, g: f32, m: &mut [f32]) -> f32 {
    let d = &c.decay;
    match rule {
        Rule::Adam => {
            m[0] = m[0] * d[0][0] + d[0][1] * g;
            m[1] = m[1] * d[1][0] + (d[1][1] * g) * g;
            m[0] / (m[1].sqrt() + c.eps)
        }
        Rule::AdEmaMix => {
            m[0] = m[0] * d[0][0] + d[0][1] * g;
            m[1] = m[1] * d[1][0] + d[1][1] * g;
            m[2] = m[2] * d[2][0] + (d[2][1] * g) * g;
            (m[0] * c.mix[0] + m[1] * c.mix[1]) / (m[2].sqrt() * c.root + c.eps)
        }
        Rule::Lion => {
            let towards = m[0] * c.mix[0] + c.mix[1] * g;
            m[0] = m[0] * d[0][0] + d[0][1] * g;
            f32::from(i8::from(towards > 0.0) - i8::from(towards < 0.0))
        }
        Rule::Momentum => {
            m[0] = m[0] * d[0][0] + d[0][1] * g;
            m[0] * c.mix[0] + c.mix[1] * g
        }
        Rule::RmsProp | Rule::Adagrad => {
            m[0] = m[0] * d[0][0] + d[0][1] * (g * g);
            g / (m[0].sqrt() + c.eps)
        }
    }
}

fn dequantize(moment: &Moment<'_>, map: &Map) -> Vec<f32> {
    match moment {
        Moment::F32(numbers) => numbers.to_vec(),
        Moment::Bits8 { codes, absmax } => {
            let value = |(i, code): (usize, &u8)| {
                map.table.values[usize::from(*code)] * absmax[i / BLOCK_SIZE]
            };
            codes.iter().enumerate().map(value).collect()
        }
    }
}

fn quantize(numbers: &[f32], map: &Map, moment: &mut Moment<'_>) {
    match moment {
        Moment::F32(old) => old.copy_from_slice(numbers),
        Moment::Bits8 { codes, absmax } => {
            let blocks = numbers.chunks(BLOCK_SIZE).zip(codes.chunks_mut(BLOCK_SIZE));
            for ((numbers, codes), absmax) in blocks.zip(absmax.iter_mut()) {
                *absmax = numbers.iter().fold(0.0, |max, v| v.abs().max(max));
                let scaling = Scaling::new(map.format(), *absmax);
                for (code, v) in codes.iter_mut().zip(numbers) {
                    *code = map.encoder.encode(scaling.apply(*v));
                }
            }
        }
    }
}

/// In f64; the fast path adds in another order, which rarely shows in the f32 that comes of it.
fn norm(numbers: &[f32]) -> f64 {
    numbers.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}
