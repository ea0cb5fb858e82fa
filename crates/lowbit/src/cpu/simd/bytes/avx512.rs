//! Four parts: AVX-512BW.

use std::arch::x86_64::*;

use super::super::avx512::Avx512;
use super::{Ahead, Bytes, COLUMNS, HALF_TABLE, LOW_MIDDLE, LOW_VALUES, ROWS, SQUARE, TABLE};

/// Bytes of a vector.
const LEN: usize = 64;
/// `2^16 / 27`, rounded up: exact for bytes.
const RECIPROCAL: i16 = 2428;

impl Bytes for Avx512 {
    type Bytes = __m512i;
    const PARTS: usize = LEN / 16;

    // SAFETY of this whole block: a value of `Avx512` proves the features that the intrinsics need,
    // and every access through a pointer is preceded by a slice of the length it touches.

    #[inline(always)]
    fn zeros(self) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn load_bytes(self, bytes: &[u8]) -> __m512i {
        let bytes = &bytes[..LEN];
        // SAFETY: see the top of this block.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, v: __m512i, out: &mut [u8]) {
        let out = &mut out[..LEN];
        // SAFETY: see the top of this block.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn prefetch(self, bytes: &[u8], ahead: usize) {
        // SAFETY: see the top of this block; a hint touches nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(ahead).cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, bytes: &[u8], ahead: usize) {
        // SAFETY: see the top of this block; a hint touches nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(ahead).cast()) }
    }
    #[inline(always)]
    fn interleave(self, a: __m512i, b: __m512i) -> [__m512i; 2] {
        // SAFETY: see the top of this block.
        unsafe { [_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)] }
    }
    #[inline(always)]
    fn nibbles_of(self, v: __m512i) -> [__m512i; 2] {
        // SAFETY: see the top of this block.
        unsafe {
            let low = _mm512_set1_epi8(15);
            [_mm512_and_si512(v, low), _mm512_and_si512(_mm512_srli_epi16::<4>(v), low)]
        }
    }
    #[inline(always)]
    fn trits_of(self, v: __m512i) -> [__m512i; 2] {
        // SAFETY: see the top of this block.
        unsafe {
            let (even, by) = (_mm512_set1_epi16(0xff), _mm512_set1_epi16(RECIPROCAL));
            // The upper byte of an odd one's product is its quotient.
            let odds = _mm512_mulhi_epu16(_mm512_andnot_si512(even, v), by);
            let evens = _mm512_mulhi_epu16(_mm512_and_si512(v, even), by);
            let upper = _mm512_or_si512(_mm512_andnot_si512(even, odds), evens);
            // At most 8 times 27, which fits a byte, so pairs can be multiplied as one.
            let whole = _mm512_mullo_epi16(upper, _mm512_set1_epi16(LOW_VALUES.into()));
            let middle = _mm512_set1_epi8(LOW_MIDDLE as i8);
            [_mm512_sub_epi8(_mm512_sub_epi8(v, whole), middle), upper]
        }
    }
    #[inline(always)]
    fn magnitudes(self, v: __m512i) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_abs_epi8(v) }
    }
    #[inline(always)]
    fn with_sign(self, v: __m512i, sign: __m512i) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe {
            let negative = _mm512_movepi8_mask(sign);
            _mm512_mask_sub_epi8(v, negative, _mm512_setzero_si512(), v)
        }
    }
    #[inline(always)]
    fn look_up(self, table: __m512i, index: __m512i) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_shuffle_epi8(table, index) }
    }
    #[inline(always)]
    fn add_bytes(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_add_epi8(a, b) }
    }
    #[inline(always)]
    fn masked(self, v: __m512i, mask: u8) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    fn shifted_by_four(self, v: __m512i) -> __m512i {
        // SAFETY: see the top of this block.
        unsafe { _mm512_srli_epi16::<4>(v) }
    }
    #[inline(always)]
    fn look_up_codes<const N: usize>(
        self,
        table: &[u8; TABLE],
        index: [__m512i; N],
    ) -> [__m512i; N] {
        self.look_up_256(table, index)
    }
    #[inline(always)]
    fn add_up(self, [pairs, odds]: [__m512i; 2], v: __m512i) -> [__m512i; 2] {
        // SAFETY: see the top of this block.
        unsafe { [_mm512_add_epi16(pairs, v), _mm512_add_epi16(odds, _mm512_srli_epi16::<8>(v))] }
    }
    #[inline(always)]
    fn looks_up_bytes(self) -> bool {
        self.has_vbmi()
    }
    #[inline(always)]
    fn turn(self, rows: &[u8], stride: usize, codes: &mut [u8], ahead: &mut Ahead<'_>) {
        assert!(rows.len() >= (ROWS - 1) * stride + COLUMNS, "all rows");
        assert!(codes.len() >= ROWS * COLUMNS, "room for them");
        for group in 0..ROWS / SQUARE {
            ahead.ask(self);
            let first = group / 4 * LEN + group % 4 * 4;
            // Rows are reached by adding, four at a time: a product for each would take as long as loads.
            let mut at = &rows[first * stride..];
            let mut v = [[self.zeros(); SQUARE / 2]; 2];
            for v in v.as_flattened_mut().as_chunks_mut::<4>().0 {
                for (i, v) in v.iter_mut().enumerate() {
                    *v = self.load_bytes(&at[i * stride..]);
                }
                at = at.get(16 * stride..).unwrap_or_default();
            }
            let v = self.interleave_sixteen(self.interleave_sixteen(v));
            let v = self.interleave_sixteen(self.interleave_sixteen(v));
            let columns = codes.chunks_exact_mut(ROWS * COLUMNS / SQUARE);
            for (v, codes) in v.as_flattened().iter().zip(columns) {
                self.store_bytes(*v, &mut codes[group * LEN..]);
            }
            if group % 4 < 3 {
                continue;
            }
            // Of each four vectors, the parts of a square.
            for codes in codes.chunks_exact_mut(ROWS * COLUMNS / SQUARE) {
                let codes = &mut codes[group / 4 * 4 * LEN..][..4 * LEN];
                let mut columns = [self.zeros(); 4];
                for (column, codes) in columns.iter_mut().zip(codes.chunks_exact(LEN)) {
                    *column = self.load_bytes(codes);
                }
                let squares = parts(columns);
                for (square, codes) in squares.into_iter().zip(codes.chunks_exact_mut(LEN)) {
                    self.store_bytes(square, codes);
                }
            }
        }
    }
    #[inline(always)]
    fn sum_bytes<const P: usize>(
        self,
        codes: &[u8],
        square: Option<usize>,
        planes: [&[u8]; P],
        sums: &mut [i32; ROWS],
        ahead: &mut Ahead<'_>,
    ) {
        assert!(self.has_vbmi(), "only where bytes are looked up");
        // SAFETY: the processor has it, as was just seen; for the rest see the top of this block.
        unsafe { sum_bytes(self, codes, square, planes, sums, ahead) }
    }
    #[inline(always)]
    fn planes_of_halves<const P: usize>(
        self,
        products: &[[f32; HALF_TABLE]; 2],
        to_integers: (f32, i32),
        index: &[[u16; TABLE]; 2],
        planes: [&mut [u8]; P],
    ) {
        assert!(self.has_vbmi(), "only where bytes are looked up");
        // SAFETY: the processor has it, as was just seen; for the rest see the top of this block.
        unsafe { planes_of_halves(self, products, to_integers, index, planes) }
    }
}

/// Vectors of rows that share a look at a table: so many sums stay in registers.
const GROUPS: usize = 2;

/// What [`Bytes::sum_bytes`] says.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn sum_bytes<const P: usize>(
    s: Avx512,
    codes: &[u8],
    square: Option<usize>,
    planes: [&[u8]; P],
    out: &mut [i32; ROWS],
    ahead: &mut Ahead<'_>,
) {
    for (part, out) in out.chunks_exact_mut(GROUPS * LEN).enumerate() {
        let codes = &codes[part * GROUPS * 4 * LEN..];
        let sums = match square {
            None => sum_squares::<P>(s, codes, planes, ahead),
            Some(square) => sum_square::<P>(s, codes, square, planes),
        };
        for (sums, out) in sums.into_iter().zip(out.chunks_exact_mut(LEN)) {
            let quarters = by_rows(s, sums);
            for (quarter, out) in quarters.into_iter().zip(out.chunks_exact_mut(LEN / 4)) {
                let out: &mut [u8] = bytemuck::cast_slice_mut(out);
                s.store_bytes(_mm512_add_epi32(s.load_bytes(out), quarter), out);
            }
        }
    }
}

/// The first quarters of four vectors, the second ones, and so on.
#[inline(always)]
fn parts([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    use _mm512_shuffle_i32x4 as shuffle;
    /// Quarters 0 and 2, and 1 and 3, of both.
    const EVEN: i32 = 0b1000_1000;
    const ODD: i32 = 0b1101_1101;
    // SAFETY: whoever has vectors of 512 bits has the instructions.
    unsafe {
        let [ab, cd] = [shuffle::<EVEN>(a, b), shuffle::<EVEN>(c, d)];
        let [ab_odd, cd_odd] = [shuffle::<ODD>(a, b), shuffle::<ODD>(c, d)];
        [
            shuffle::<EVEN>(ab, cd),
            shuffle::<EVEN>(ab_odd, cd_odd),
            shuffle::<ODD>(ab, cd),
            shuffle::<ODD>(ab_odd, cd_odd),
        ]
    }
}

/// Bytes from a column of squares to the next.
const COLUMN: usize = ROWS * COLUMNS / SQUARE;
/// Bytes of the tables of such a column.
const TABLES: usize = COLUMNS / SQUARE * TABLE;

/// Sums of all squares.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn sum_squares<const P: usize>(
    s: Avx512,
    codes: &[u8],
    planes: [&[u8]; P],
    ahead: &mut Ahead<'_>,
) -> [[[__m512i; 2]; P]; GROUPS] {
    let mut sums = [[[s.zeros(); 2]; P]; GROUPS];
    for (i, codes) in codes.chunks(COLUMN).enumerate() {
        ahead.ask(s);
        let index: [[__m512i; GROUPS]; 4] = std::array::from_fn(|square| {
            std::array::from_fn(|group| s.load_bytes(&codes[(4 * group + square) * LEN..]))
        });
        for (plane, tables) in planes.into_iter().enumerate() {
            let tables = &tables[i * TABLES..][..TABLES];
            for pair in [0, 2] {
                let a = look_up_256(s, &tables[pair * TABLE..], index[pair]);
                let b = look_up_256(s, &tables[(pair + 1) * TABLE..], index[pair + 1]);
                for group in 0..GROUPS {
                    let both = s.add_bytes(a[group], b[group]);
                    sums[group][plane] = s.add_up(sums[group][plane], both);
                }
            }
        }
    }
    sums
}

/// Sums of one square of those side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn sum_square<const P: usize>(
    s: Avx512,
    codes: &[u8],
    square: usize,
    planes: [&[u8]; P],
) -> [[[__m512i; 2]; P]; GROUPS] {
    let mut sums = [[[s.zeros(); 2]; P]; GROUPS];
    for (i, codes) in codes.chunks(COLUMN).enumerate() {
        let index = std::array::from_fn(|group| s.load_bytes(&codes[(4 * group + square) * LEN..]));
        for (plane, tables) in planes.into_iter().enumerate() {
            let found = look_up_256(s, &tables[i * TABLES + square * TABLE..], index);
            for group in 0..GROUPS {
                sums[group][plane] = s.add_up(sums[group][plane], found[group]);
            }
        }
    }
    sums
}

/// `table[index]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up_256(s: Avx512, table: &[u8], index: [__m512i; GROUPS]) -> [__m512i; GROUPS] {
    let [a, b] = [s.load_bytes(table), s.load_bytes(&table[LEN..])];
    let [c, d] = [s.load_bytes(&table[2 * LEN..]), s.load_bytes(&table[3 * LEN..])];
    let mut found = index;
    for (found, index) in found.iter_mut().zip(index) {
        let lower = _mm512_permutex2var_epi8(a, index, b);
        let upper = _mm512_permutex2var_epi8(c, index, d);
        *found = _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), lower, upper);
    }
    found
}

/// Sums of 64 rows as integers, by sixteen rows: the order in which [`Bytes::turn`] lays them is that of these
/// steps.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn by_rows<const P: usize>(s: Avx512, sums: [[__m512i; 2]; P]) -> [__m512i; 4] {
    let mut planes = [[s.zeros(); 2]; 4];
    for (plane, [pairs, odds]) in planes.iter_mut().zip(sums) {
        *plane = [_mm512_sub_epi16(pairs, _mm512_slli_epi16::<8>(odds)), odds];
    }
    // Two planes make a 32-bit integer, and two more make what is added to it.
    let lower = _mm512_set1_epi32(1 | 128 << 16);
    let upper = _mm512_set1_epi32(1 << 14);
    let mut halves = [[s.zeros(); 2]; 2];
    for odd in 0..2 {
        let [a, b, c, d] = [planes[0][odd], planes[1][odd], planes[2][odd], planes[3][odd]];
        let two = [_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)];
        let more = [_mm512_unpacklo_epi16(c, d), _mm512_unpackhi_epi16(c, d)];
        for i in 0..2 {
            halves[i][odd] = _mm512_madd_epi16(two[i], lower);
            if P > 2 {
                let more = _mm512_madd_epi16(more[i], upper);
                halves[i][odd] = _mm512_add_epi32(halves[i][odd], more);
            }
        }
    }
    let [[a, b], [c, d]] = halves;
    [
        _mm512_unpacklo_epi32(a, b),
        _mm512_unpackhi_epi32(a, b),
        _mm512_unpacklo_epi32(c, d),
        _mm512_unpackhi_epi32(c, d),
    ]
}

/// What [`Bytes::planes_of_halves`] says.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn planes_of_halves<const P: usize>(
    s: Avx512,
    [low, high]: &[[f32; HALF_TABLE]; 2],
    (factor, half): (f32, i32),
    index: &[[u16; TABLE]; 2],
    planes: [&mut [u8]; P],
) {
    let factor = _mm512_set1_ps(factor);
    let rounded = |products: &[f32], more: i32| {
        let products = _mm512_castsi512_ps(s.load_bytes(bytemuck::cast_slice(products)));
        let integers = _mm512_cvtps_epi32(_mm512_mul_ps(products, factor));
        _mm512_add_epi32(integers, _mm512_set1_epi32(more))
    };
    let low = [rounded(low, half), rounded(&low[HALF_TABLE / 2..], half)];
    let high = [rounded(high, 0), rounded(&high[HALF_TABLE / 2..], 0)];
    let mut planes = planes;
    if let [lower_plane, upper_plane] = &mut planes[..] {
        // Sixteen bits hold both planes.
        let words = |[a, b]: [__m512i; 2]| {
            let lower = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(a));
            _mm512_inserti64x4::<1>(lower, _mm512_cvtepi32_epi16(b))
        };
        let (low, high) = (words(low), words(high));
        let mut evens = [0u8; LEN];
        for (i, even) in evens.iter_mut().enumerate() {
            *even = 2 * i as u8;
        }
        let evens = s.load_bytes(&evens);
        let mask = _mm512_set1_epi8(127);
        for i in 0..TABLE / LEN {
            let sum = |at: usize| {
                let index = |half: usize| load16(s, &index[half][i * LEN + at * LEN / 2..]);
                let low = _mm512_permutexvar_epi16(index(0), low);
                _mm512_add_epi16(low, _mm512_permutexvar_epi16(index(1), high))
            };
            let [a, b] = [sum(0), sum(1)];
            let lower = _mm512_and_si512(_mm512_permutex2var_epi8(a, evens, b), mask);
            let [a, b] = [_mm512_srli_epi16::<7>(a), _mm512_srli_epi16::<7>(b)];
            s.store_bytes(lower, &mut lower_plane[i * LEN..]);
            let upper = _mm512_permutex2var_epi8(a, evens, b);
            s.store_bytes(upper, &mut upper_plane[i * LEN..]);
        }
        return;
    }
    let mask = _mm512_set1_epi32(127);
    for i in 0..TABLE / 16 {
        let index = |half: usize| {
            let words: &[u8] = bytemuck::cast_slice(&index[half][i * 16..][..16]);
            // SAFETY: sixteen words are there.
            unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(words.as_ptr().cast())) }
        };
        let a = _mm512_permutex2var_epi32(low[0], index(0), low[1]);
        let b = _mm512_permutex2var_epi32(high[0], index(1), high[1]);
        let mut sum = _mm512_add_epi32(a, b);
        for plane in &mut planes {
            let bytes = _mm512_cvtepi32_epi8(_mm512_and_si512(sum, mask));
            let out = &mut plane[i * 16..][..16];
            // SAFETY: room for sixteen bytes is there.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) };
            sum = _mm512_srli_epi32::<7>(sum);
        }
    }
}

/// 32 words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn load16(s: Avx512, words: &[u16]) -> __m512i {
    s.load_bytes(bytemuck::cast_slice(words))
}
