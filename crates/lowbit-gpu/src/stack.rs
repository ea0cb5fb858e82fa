//! Several weights on top of each other, as one: a product with it is several products in one kernel.

use bytes::{Bytes, BytesMut};
use lowbit::format::Layout;
use lowbit::{DenseTensor, Geometry, Nested, Parts, QTensor, Scales, Weight};

/// Rows of several weights, one after the other.
#[derive(Debug)]
pub(crate) struct Stack {
    /// All rows. Of nested scales it has the offset of the first weight.
    pub weight: Weight,
    /// Offsets of nested blocks, where scales are nested.
    pub offsets: Option<Vec<f32>>,
}

/// Stacks `[N_i, K]` of one format; `None` where a block, a nested block or a byte would then hold rows
/// of two weights, or they have too little in common.
pub(crate) fn stack(weights: &[&Weight]) -> Option<Stack> {
    let dense: Option<Vec<&DenseTensor>> = weights.iter().map(|w| as_dense(w)).collect();
    if let Some(dense) = dense {
        return Some(Stack { weight: stack_dense(&dense)?.into(), offsets: None });
    }
    let quantized: Option<Vec<&QTensor>> = weights.iter().map(|w| as_quantized(w)).collect();
    stack_quantized(&quantized?)
}

fn as_dense(weight: &Weight) -> Option<&DenseTensor> {
    if let Weight::Dense(dense) = weight { Some(dense) } else { None }
}

fn as_quantized(weight: &Weight) -> Option<&QTensor> {
    if let Weight::Quantized(q) = weight { Some(q) } else { None }
}

/// `[N_1 + N_2 + .., K]`, if all have that `K`.
fn shape<'a>(shapes: impl Iterator<Item = &'a [usize]>) -> Option<Vec<usize>> {
    let mut all = [0, 0];
    for (i, shape) in shapes.enumerate() {
        let [n, k] = *shape else { return None };
        if i > 0 && k != all[1] {
            return None;
        }
        all = [all[0] + n, k];
    }
    Some(all.to_vec())
}

fn join<'a>(parts: impl Iterator<Item = &'a Bytes>) -> Bytes {
    let mut all = BytesMut::new();
    parts.for_each(|part| all.extend_from_slice(part));
    all.freeze()
}

fn stack_dense(weights: &[&DenseTensor]) -> Option<DenseTensor> {
    let dtype = weights.first()?.dtype();
    let shape = shape(weights.iter().map(|w| w.shape()))?;
    let same = weights.iter().all(|w| w.dtype() == dtype);
    let data = || join(weights.iter().map(|w| w.data()));
    if same { DenseTensor::new(dtype, shape, data()).ok() } else { None }
}

/// A codebook may have NaN, which equals nothing.
fn bits(codebook: &[f32]) -> impl Iterator<Item = u32> {
    codebook.iter().map(|v| v.to_bits())
}

fn stack_quantized(weights: &[&QTensor]) -> Option<Stack> {
    let (first, last) = (weights.first()?, weights.len() - 1);
    let format = first.format();
    let shape = shape(weights.iter().map(|w| w.shape()))?;
    let alike = |w: &QTensor| {
        std::ptr::eq(w.format(), format)
            && w.block_size() == first.block_size()
            && bits(w.codebook()).eq(bits(first.codebook()))
            && w.has_own_codebook() == first.has_own_codebook()
    };
    let ends_with_a_block = |w: &QTensor| match format.layout {
        Layout::Rows { .. } => true,
        Layout::Stacked { .. } => false,
        Layout::Flat { .. } => {
            let bytes = w.codes().len() * w.block_size();
            // Whole blocks, and no bits left in the last byte.
            w.numel() % w.block_size() == 0
                && Geometry::new(format, &[1, w.block_size()], Some(w.block_size()))
                    .is_ok_and(|g| bytes == w.numel() * g.code_bytes)
        }
    };
    if !weights.iter().all(|w| alike(w)) || !weights[..last].iter().all(|w| ends_with_a_block(w)) {
        return None;
    }
    let (scales, offsets) = stack_scales(weights)?;
    let means = weights.iter().map(|w| w.means()).collect::<Option<Vec<_>>>();
    if means.is_none() && weights.iter().any(|w| w.means().is_some()) {
        return None;
    }
    let q = QTensor::from_parts(Parts {
        format,
        shape,
        block_size: Some(first.block_size()).filter(|_| !format.block_sizes().is_empty()),
        codes: join(weights.iter().map(|w| w.codes())),
        scales,
        means: means.map(|means| means.concat()),
        codebook: first.has_own_codebook().then(|| first.codebook().into()),
    });
    Some(Stack { weight: q.ok()?.into(), offsets })
}

fn stack_scales(weights: &[&QTensor]) -> Option<(Scales, Option<Vec<f32>>)> {
    let mut plain = Vec::new();
    let mut halves = Vec::new();
    let mut exponents = Vec::new();
    let mut nested: Vec<&Nested> = Vec::new();
    for w in weights {
        match w.scales() {
            Scales::F32(scales) => plain.push(&scales[..]),
            Scales::F16(scales) => halves.push(&scales[..]),
            Scales::E8M0(scales) => exponents.push(scales),
            Scales::Nested(scales) => nested.push(scales),
        }
    }
    if plain.len() == weights.len() {
        return Some((Scales::F32(plain.concat().into()), None));
    }
    if halves.len() == weights.len() {
        return Some((Scales::F16(halves.concat().into()), None));
    }
    if exponents.len() == weights.len() {
        return Some((Scales::E8M0(join(exponents.into_iter())), None));
    }
    let (first, last) = (*nested.first()?, nested.len() - 1);
    let alike = |n: &&Nested| n.block_size == first.block_size && n.map == first.map;
    let whole = |n: &&Nested| n.codes.len() % n.block_size == 0;
    if nested.len() < weights.len()
        || !nested.iter().all(alike)
        || !nested[..last].iter().all(whole)
    {
        return None;
    }
    let offsets = nested.iter().flat_map(|n| std::iter::repeat_n(n.offset, n.absmax.len()));
    let offsets = offsets.collect();
    let scales = Nested {
        codes: join(nested.iter().map(|n| &n.codes)),
        absmax: nested.iter().flat_map(|n| n.absmax.iter().copied()).collect(),
        ..first.clone()
    };
    Some((Scales::Nested(scales), Some(offsets)))
}

#[cfg(test)]
mod tests {
    use lowbit::conformance::Rng;
    use lowbit::cpu::reference;
    use lowbit::formats;

    use super::*;

    fn numbers(stack: &Stack) -> Vec<f32> {
        match &stack.weight {
            Weight::Dense(dense) => dense.to_f32(),
            Weight::Quantized(q) => reference::dequantize(q),
        }
    }

    #[test]
    fn a_stack_has_the_rows_of_all() {
        let mut rng = Rng(3);
        for format in formats::ALL {
            let unit = format.row_multiple();
            let own = rng.tensor(format, &[unit, 256], None).unwrap().has_own_codebook();
            let tensors = [4, 2, 3].map(|n| rng.tensor(format, &[n * unit, 256], None).unwrap());
            let weights = tensors.each_ref().map(|q| Weight::from(q.clone()));
            let stacked = stack(&weights.each_ref());
            // Codebooks of their own differ, and one block has one scale.
            assert_eq!(stacked.is_none(), own || unit > 1, "{}", format.name);
            let Some(stacked) = stacked else { continue };
            let expected: Vec<f32> = tensors.iter().flat_map(reference::dequantize).collect();
            let (bits, got) = (|x: &f32| x.to_bits(), numbers(&stacked));
            assert!(got.iter().map(bits).eq(expected.iter().map(bits)), "{}", format.name);
        }
    }

    #[test]
    fn nested_scales_keep_their_offsets() {
        let mut rng = Rng(4);
        let format = formats::ALL[0];
        let nested = |rng: &mut Rng, n| {
            let q = rng.tensor(format, &[n, 256], None).unwrap();
            lowbit::double_quantize(q).unwrap()
        };
        let (whole, other) = (nested(&mut rng, 256), nested(&mut rng, 5));
        let both = [Weight::from(whole.clone()), Weight::from(other.clone())];
        let stacked = stack(&both.each_ref()).unwrap();
        let offset = |q: &QTensor| match q.scales() {
            Scales::Nested(n) => (n.absmax.len(), n.offset),
            _ => (0, 0.0),
        };
        let (a, b) = (offset(&whole), offset(&other));
        assert_ne!(a.1, b.1);
        assert_eq!(stacked.offsets, Some([vec![a.1; a.0], vec![b.1; b.0]].concat()));
        // A nested block would hold scales of two.
        assert!(stack(&[&both[1], &both[0]]).is_none());
    }

    #[test]
    fn what_differs_is_not_stacked() {
        let mut rng = Rng(5);
        let dense = |shape: [usize; 2]| {
            let numbers = vec![1.0; shape[0] * shape[1]];
            Weight::from(DenseTensor::from_f32(shape.to_vec(), &numbers).unwrap())
        };
        let mut quantized =
            |format, shape: &[usize]| Weight::from(rng.tensor(format, shape, None).unwrap());
        let [a, b] = [formats::ALL[0], formats::ALL[1]];
        assert!(stack(&[&dense([2, 3]), &dense([1, 3])]).is_some());
        assert!(stack(&[&dense([2, 3]), &dense([2, 4])]).is_none());
        assert!(stack(&[&dense([2, 64]), &quantized(a, &[2, 64])]).is_none());
        assert!(stack(&[&quantized(a, &[2, 64]), &quantized(b, &[2, 64])]).is_none());
        // The first ends within a block.
        assert!(stack(&[&quantized(a, &[1, 65]), &quantized(a, &[2, 65])]).is_none());
        assert!(stack(&[]).is_none());
    }
}
