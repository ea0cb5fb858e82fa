//! Codes to bytes and back: the only bit shifting of codes outside the vector kernels.

use crate::format::Packing;

/// Bytes that `count` codes of `bits` bits take.
pub fn packed_len(packing: Packing, bits: u32, count: usize) -> usize {
    match packing {
        Packing::HighFirst | Packing::LowFirst => (count * bits as usize).div_ceil(8),
        Packing::Radix { per_byte, .. } => count.div_ceil(usize::from(per_byte)),
    }
}

/// Code `index` of a run that begins at the first byte.
///
/// `HighFirst` holds widths that divide 8, `LowFirst` any up to 16.
#[inline]
pub fn get(packing: Packing, bits: u32, bytes: &[u8], index: usize) -> usize {
    let width = bits as usize;
    match packing {
        Packing::HighFirst => {
            let per_byte = 8 / width;
            let shift = 8 - width * (index % per_byte + 1);
            (usize::from(bytes[index / per_byte]) >> shift) & ((1 << width) - 1)
        }
        Packing::LowFirst => {
            let first = index * width / 8;
            let last = (index * width + width - 1) / 8;
            let window = bytes[first..=last].iter().rev().fold(0, |w, b| w << 8 | usize::from(*b));
            (window >> (index * width % 8)) & ((1 << width) - 1)
        }
        Packing::Radix { base, per_byte } => {
            let (base, per_byte) = (usize::from(base), usize::from(per_byte));
            let digit = (index % per_byte) as u32;
            usize::from(bytes[index / per_byte]) / base.pow(digit) % base
        }
    }
}

/// Writes code `index` of a run whose bytes are still zero there.
#[inline]
pub fn set(packing: Packing, bits: u32, bytes: &mut [u8], index: usize, code: usize) {
    let width = bits as usize;
    match packing {
        Packing::HighFirst => {
            let per_byte = 8 / width;
            bytes[index / per_byte] |= (code << (8 - width * (index % per_byte + 1))) as u8;
        }
        Packing::LowFirst => {
            let first = index * width / 8;
            let last = (index * width + width - 1) / 8;
            let window = code << (index * width % 8);
            for (i, byte) in bytes[first..=last].iter_mut().enumerate() {
                *byte |= (window >> (8 * i)) as u8;
            }
        }
        Packing::Radix { base, per_byte } => {
            let (base, per_byte) = (usize::from(base), usize::from(per_byte));
            let digit = (index % per_byte) as u32;
            bytes[index / per_byte] += (code * base.pow(digit)) as u8;
        }
    }
}

/// A codebook of values -1, 0 and 1, `length` of them an entry, as planes of bits: for each entry
/// bytes whose bit `i` says that value `i` is positive, then as many that say it is not zero.
pub fn pack_patterns(book: &[f32], length: usize) -> Vec<u8> {
    let plane = |entry: &[f32], bit: fn(f32) -> bool| -> Vec<u8> {
        let byte = |part: &[f32]| part.iter().rev().fold(0, |b, v| b << 1 | u8::from(bit(*v)));
        entry.chunks(8).map(byte).collect()
    };
    let entries = book.chunks(length.max(1));
    entries.flat_map(|e| [plane(e, |v| v > 0.0), plane(e, |v| v != 0.0)].concat()).collect()
}

/// The inverse of [`pack_patterns`].
pub fn unpack_patterns(bytes: &[u8], length: usize) -> Vec<f32> {
    let plane = length.div_ceil(8).max(1);
    let bit = |bytes: &[u8], i: usize| bytes[i / 8] >> (i % 8) & 1 == 1;
    let value = |entry: &[u8], i: usize| match (bit(entry, i), bit(&entry[plane..], i)) {
        (_, false) => 0.0,
        (positive, true) => {
            if positive {
                1.0
            } else {
                -1.0
            }
        }
    };
    let entries = bytes.chunks_exact(2 * plane);
    entries.flat_map(|entry| (0..length).map(move |i| value(entry, i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packings() -> impl Strategy<Value = (Packing, u32, usize)> {
        prop_oneof![
            prop_oneof![Just(1u32), Just(2), Just(4), Just(8)].prop_map(|bits| (
                Packing::HighFirst,
                bits,
                1usize << bits
            )),
            (1u32..=16).prop_map(|bits| (Packing::LowFirst, bits, 1usize << bits)),
            Just((Packing::Radix { base: 3, per_byte: 5 }, 2, 3)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_set_is_got((packing, bits, codes) in packings(), raw in prop::collection::vec(any::<u16>(), 0..70)) {
            let mut bytes = vec![0; packed_len(packing, bits, raw.len())];
            for (i, r) in raw.iter().enumerate() {
                set(packing, bits, &mut bytes, i, usize::from(*r) % codes);
            }
            for (i, r) in raw.iter().enumerate() {
                prop_assert_eq!(get(packing, bits, &bytes, i), usize::from(*r) % codes);
            }
        }
    }

    #[test]
    fn patterns_come_back_from_their_planes() {
        let book = [
            -1.0, 0.0, 1.0, 1.0, 0.0, 0.0, -1.0, 1.0, 1.0, -1.0, 0.0, 1.0, 1.0, -1.0, 0.0, 0.0,
            1.0, 1.0,
        ];
        let packed = pack_patterns(&book[..9], 9);
        assert_eq!(packed, [0b1000_1100, 1, 0b1100_1101, 1]);
        for length in [9, 6, 3] {
            assert_eq!(unpack_patterns(&pack_patterns(&book, length), length), book);
        }
    }

    #[test]
    fn the_first_nibble_is_high_or_low_as_the_packing_says() {
        assert_eq!(get(Packing::HighFirst, 4, &[0x7f], 0), 7);
        assert_eq!(get(Packing::LowFirst, 4, &[0x7f], 0), 15);
        // 1 + 2*3 + 0*9 + 2*27 + 1*81
        assert_eq!(get(Packing::Radix { base: 3, per_byte: 5 }, 2, &[142], 3), 2);
    }
}
