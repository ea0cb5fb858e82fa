//! Vectors of bytes: what looks sixteen things up at a time in a table of sixteen.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

/// Rows that [`Bytes::turn`] takes.
pub(crate) const ROWS: usize = 256;
/// Columns that it takes.
pub(crate) const COLUMNS: usize = 64;
/// Rows and columns that are turned at a time.
pub(crate) const SQUARE: usize = 16;
/// Entries of a table of bytes that bytes look up in.
pub(crate) const TABLE: usize = 256;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of the longest vector.
const MOST_BYTES: usize = 64;
/// Entries of half a table.
pub(crate) const HALF_TABLE: usize = 32;
/// Trits in the lower digit of a byte of five.
pub(crate) const LOW_TRITS: usize = 3;
/// How many values it has.
pub(crate) const LOW_VALUES: u8 = 27;
/// Its value where all of them are the middle one.
pub(crate) const LOW_MIDDLE: u8 = 13;

/// Where a loop turns a code to: its row, its square and its column of that.
fn place(i: usize) -> (usize, usize, usize) {
    let squares = COLUMNS / SQUARE;
    // Of sixteen rows that follow each other here, four do elsewhere.
    let within = i % SQUARE / 4 * SQUARE + i % MOST_BYTES / SQUARE * 4 + i % 4;
    let row = i / (squares * MOST_BYTES) % (ROWS / MOST_BYTES) * MOST_BYTES + within;
    (row, i / MOST_BYTES % squares, i / (squares * ROWS))
}

/// Cache lines that are needed soon, asked for one by one during other work: all at once they would wait for each
/// other, and everything for them.
pub(crate) struct Ahead<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
    each: usize,
}

impl<'a> Ahead<'a> {
    /// Those of `bytes[at..end]`, of which not all need be there, so many at a time.
    pub fn new(bytes: &'a [u8], at: usize, end: usize, each: usize) -> Self {
        Ahead { bytes, at, end, each }
    }

    /// Asks for some more.
    #[inline(always)]
    pub fn ask<B: Bytes>(&mut self, s: B) {
        for _ in 0..self.each {
            if self.at >= self.end {
                return;
            }
            s.prefetch_far(self.bytes, self.at);
            self.at += LINE;
        }
    }
}

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
    /// The same for what is needed later: as far as the second-level cache.
    #[inline(always)]
    fn prefetch_far(self, bytes: &[u8], ahead: usize) {
        self.prefetch(bytes, ahead);
    }
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
    /// The same of sixteen, of which four do it. AVX-512 alone has registers for them.
    #[cfg(target_arch = "x86_64")]
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

    /// `v & mask`.
    fn masked(self, v: Self::Bytes, mask: u8) -> Self::Bytes;
    /// `v >> 4`, but for the upper nibble of each byte, which may be anything.
    fn shifted_by_four(self, v: Self::Bytes) -> Self::Bytes;
    /// `table[index]` of some vectors, which share the loads of the table.
    #[inline(always)]
    fn look_up_codes<const N: usize>(
        self,
        table: &[u8; TABLE],
        index: [Self::Bytes; N],
    ) -> [Self::Bytes; N] {
        let mut found = index;
        for found in &mut found {
            let mut bytes = [0; MOST_BYTES];
            self.store_bytes(*found, &mut bytes);
            for byte in &mut bytes[..16 * Self::PARTS] {
                *byte = table[usize::from(*byte)];
            }
            *found = self.load_bytes(&bytes);
        }
        found
    }

    /// Whether [`sum_bytes`](Self::sum_bytes) is more than a loop.
    #[inline(always)]
    fn looks_up_bytes(self) -> bool {
        false
    }
    /// The first [`COLUMNS`] bytes of [`ROWS`] rows that begin `stride` bytes apart, turned: a byte of 64 rows
    /// together, `[SQUARE, ROWS / 64, COLUMNS / SQUARE, 64]`, in an order of rows that
    /// [`sum_bytes`](Self::sum_bytes) knows.
    #[inline(always)]
    fn turn(self, rows: &[u8], stride: usize, codes: &mut [u8], _ahead: &mut Ahead<'_>) {
        for (i, code) in codes.iter_mut().enumerate() {
            let (row, square, column) = place(i);
            *code = rows[row * stride + square * SQUARE + column];
        }
    }
    /// Adds up, by rows, what the codes of some columns of all squares that [`turn`](Self::turn) left find in
    /// their tables, or those of one of the squares: tables in each of `P` planes
    /// `[columns, COLUMNS / SQUARE, TABLE]` of numbers below 128, of which a plane counts 128 times as much as
    /// the one before.
    #[inline(always)]
    fn sum_bytes<const P: usize>(
        self,
        codes: &[u8],
        square: Option<usize>,
        planes: [&[u8]; P],
        sums: &mut [i32; ROWS],
        _ahead: &mut Ahead<'_>,
    ) {
        for (i, code) in codes.iter().enumerate() {
            let (row, at, column) = place(i);
            if square.is_some_and(|square| square != at) {
                continue;
            }
            let table = column * (COLUMNS / SQUARE) + at;
            for (i, plane) in planes.iter().enumerate() {
                sums[row] += i32::from(plane[table * TABLE + usize::from(*code)]) << (7 * i);
            }
        }
    }
    /// The planes of a table of integers that are each the sum of two products, one of each half, times a factor
    /// and rounded, and of what makes it positive and below what the planes hold.
    #[inline(always)]
    fn planes_of_halves<const P: usize>(
        self,
        [low, high]: &[[f32; HALF_TABLE]; 2],
        (factor, half): (f32, i32),
        index: &[[u16; TABLE]; 2],
        planes: [&mut [u8]; P],
    ) {
        let integer = |product: f32| (product * factor).round_ties_even() as i32;
        for (i, table) in planes.into_iter().enumerate() {
            for (code, entry) in table[..TABLE].iter_mut().enumerate() {
                let [a, b] = [low[usize::from(index[0][code])], high[usize::from(index[1][code])]];
                *entry = ((integer(a) + integer(b) + half) >> (7 * i) & 127) as u8;
            }
        }
    }
}
