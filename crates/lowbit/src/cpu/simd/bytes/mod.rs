//! Vectors of bytes: what looks sixteen things up at a time in a table of sixteen.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

/// Rows that [`Bytes::sum_bytes`] takes.
pub(crate) const ROWS: usize = 64;
/// Entries of a table of bytes that bytes look up in.
pub(crate) const TABLE: usize = 256;
/// Trits in the lower digit of a byte of five.
pub(crate) const LOW_TRITS: usize = 3;
/// How many values it has.
pub(crate) const LOW_VALUES: u8 = 27;
/// Its value where all of them are the middle one.
pub(crate) const LOW_MIDDLE: u8 = 13;

/// An instruction set's vectors of bytes, in parts of sixteen.
///
/// As for [`Simd`](super::Simd), slices may be longer than what a method reads or writes.
pub(crate) trait Bytes: Copy {
    /// `PARTS * 16` bytes.
    type Bytes: Copy;
    /// Parts of sixteen.
    const PARTS: usize;

    /// All of them zero.
    fn zeros(self) -> Self::Bytes;
    /// Reads a vector.
    fn load_bytes(self, bytes: &[u8]) -> Self::Bytes;
    /// Writes a vector.
    fn store_bytes(self, v: Self::Bytes, out: &mut [u8]);
    /// Asks for the cache line so many bytes past the first, where an instruction set can; it need not
    /// be there.
    #[inline(always)]
    fn prefetch(self, _bytes: &[u8], _ahead: usize) {}
    /// In each part: the lower eight bytes of `a` and `b` in turn, and the upper eight.
    fn interleave(self, a: Self::Bytes, b: Self::Bytes) -> [Self::Bytes; 2];
    /// A round of transposing eight vectors, of which three do it: those of the first half and of the second
    /// in turn. Written out, since a loop would keep the vectors in memory.
    #[inline(always)]
    fn interleave_eight(self, v: [Self::Bytes; 8]) -> [Self::Bytes; 8] {
        let [a, b, c, d, e, f, g, h] = v;
        let ([a, e], [b, f]) = (self.interleave(a, e), self.interleave(b, f));
        let ([c, g], [d, h]) = (self.interleave(c, g), self.interleave(d, h));
        [a, e, b, f, c, g, d, h]
    }
    /// The same of sixteen, of which four do it.
    #[inline(always)]
    fn interleave_sixteen(self, v: [[Self::Bytes; 8]; 2]) -> [[Self::Bytes; 8]; 2] {
        let [[a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]] = v;
        [
            self.interleave_eight([a, b, c, d, i, j, k, l]),
            self.interleave_eight([e, f, g, h, m, n, o, p]),
        ]
    }
    /// The lower and the upper nibble of each byte.
    fn nibbles_of(self, v: Self::Bytes) -> [Self::Bytes; 2];
    /// Of bytes that hold five trits: the value of the lower three less its middle, from -13 to 13, and
    /// that of the upper two.
    fn trits_of(self, v: Self::Bytes) -> [Self::Bytes; 2];
    /// Magnitudes of signed bytes.
    fn magnitudes(self, v: Self::Bytes) -> Self::Bytes;
    /// `v`, negative where `sign` is.
    fn with_sign(self, v: Self::Bytes, sign: Self::Bytes) -> Self::Bytes;
    /// In each part: `table[index]` of indices below sixteen.
    fn look_up(self, table: Self::Bytes, index: Self::Bytes) -> Self::Bytes;
    /// `a + b`, which fit a byte.
    fn add_bytes(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Adds a byte to each of as many 16-bit sums: to the first vector pairs of bytes as little-endian
    /// integers, to the second the odd bytes. Taking the second 256 times from the first, modulo
    /// 65536, leaves the sums of the even bytes.
    fn add_up(self, sums: [Self::Bytes; 2], v: Self::Bytes) -> [Self::Bytes; 2];

    /// Reads the first [`PARTS`](Self::PARTS) of four parts.
    #[inline(always)]
    fn load_parts(self, parts: [&[u8; 16]; 4]) -> Self::Bytes {
        let mut bytes = [0u8; 64];
        for (bytes, part) in bytes.chunks_exact_mut(16).zip(parts) {
            bytes.copy_from_slice(part);
        }
        self.load_bytes(&bytes)
    }
    /// Whether [`sum_bytes`](Self::sum_bytes) is more than a loop.
    #[inline(always)]
    fn looks_up_bytes(self) -> bool {
        false
    }
    /// Sums, by rows and in each of `P` planes, of what at most 512 columns of bytes find in their tables,
    /// `codes: [columns, ROWS]` in `tables: [columns, P, TABLE]` of numbers below 128; as
    /// [`add_up`](Self::add_up) leaves them.
    #[inline(always)]
    fn sum_bytes<const P: usize>(self, codes: &[u8], tables: &[u8]) -> [[[u8; ROWS]; 2]; P] {
        let mut sums = [[0u16; ROWS]; P];
        for (codes, tables) in codes.chunks_exact(ROWS).zip(tables.chunks_exact(P * TABLE)) {
            for (sums, table) in sums.iter_mut().zip(tables.chunks_exact(TABLE)) {
                for (sum, code) in sums.iter_mut().zip(codes) {
                    *sum += u16::from(table[usize::from(*code)]);
                }
            }
        }
        sums.map(|sums| {
            let mut words = [[0u8; ROWS]; 2];
            for i in (0..ROWS).step_by(2) {
                let pair = sums[i].wrapping_add(sums[i + 1] << 8);
                words[0][i..i + 2].copy_from_slice(&pair.to_le_bytes());
                words[1][i..i + 2].copy_from_slice(&sums[i + 1].to_le_bytes());
            }
            words
        })
    }
}
