//! Vectors of bytes: what looks sixteen things up at a time in a table of sixteen.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

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
}
