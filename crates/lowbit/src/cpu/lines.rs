//! Codes of a byte by arithmetic: the dynamic map cuts each decade into equal steps, so the rank of
//! a number is a line of it, another one in each decade.

/// Decades that have a line; one more segment is that of the largest value alone.
const DECADES: usize = 7;
const SEGMENTS: usize = DECADES + 1;

/// Ranks in fixed point: so many bits of them are fraction.
pub(crate) const FRACTION: u32 = 16;
const ONE: f64 = (1 << FRACTION) as f64;

/// A rank this near above a whole one may belong to the one below: lines are rounded, and so are
/// the thresholds that they stand for. `agree_with_the_encoder` tells if it is too little.
pub(crate) const DOUBT: u16 = 8;

/// The upper half of a number, less this and times `PER_SEGMENT`, has above 16 bits its segment or
/// the one before. Segments begin just above powers of ten; this steps well between them, so it may
/// be coarse, and one comparison tells which of the two it is.
pub(crate) const FIRST: i32 = 0x3f80 - 22 * 128 + 40;
/// 2^16 by the 425 upper halves in a decade.
pub(crate) const PER_SEGMENT: i32 = 154;

/// The lines of a map with `2^d` or `2^(d + 1)` values in decade `d`, then one more.
#[derive(Debug)]
pub(crate) struct Lines {
    /// The bits of the last number of each segment.
    pub last: [i32; SEGMENTS],
    /// The rank of `x`, in fixed point and `DOUBT / 2` too high, is `x * slope + offset`, at most
    /// `top`: the last value of a decade is nearest for longer than its line says.
    pub slope: [f32; SEGMENTS],
    pub offset: [f32; SEGMENTS],
    pub top: [f32; SEGMENTS],
}

impl Lines {
    /// The lines through ascending thresholds above zero: `ups[rank - 1]` is where a rank begins.
    pub fn new(ups: &[f32]) -> Self {
        let (last, zeros) = ([i32::MAX; SEGMENTS], [0.0; SEGMENTS]);
        let mut lines = Lines { last, slope: zeros, offset: zeros, top: zeros };
        let start = |rank: usize| ups.get(rank - 1).map_or(f64::MAX, |up| f64::from(*up));
        let of_first = ups.len().next_power_of_two() >> DECADES;
        for decade in 0..DECADES {
            // Zero goes with the first decade, and the largest value has a segment to itself.
            let first = if decade == 0 { 0 } else { (of_first << decade) + 1 - of_first };
            let end = (of_first << (decade + 1)) + 1 - of_first;
            let (a, b) = (first + 1, end - 1);
            let (rise, run) =
                if a == b { (0.5, start(a)) } else { ((b - a) as f64, start(b) - start(a)) };
            let slope = (rise * ONE / run) as f32;
            let (mut least, mut most) = (f64::MAX, f64::MIN);
            for rank in a..=b {
                let offset = rank as f64 * ONE - start(rank) * f64::from(slope);
                (least, most) = (least.min(offset), most.max(offset));
            }
            lines.slope[decade] = slope;
            lines.offset[decade] = ((least + most) / 2.0 + f64::from(DOUBT / 2)) as f32;
            lines.top[decade] = ((b as f64 + 0.5) * ONE) as f32;
            lines.last[decade] = (start(end) as f32).to_bits() as i32 - 1;
        }
        lines.offset[DECADES] = ((ups.len() as f64 + 0.5) * ONE) as f32;
        lines.top[DECADES] = lines.offset[DECADES];
        lines
    }
}

/// Powers of four from the first to 1: below it, all numbers have the first code.
const QUADS: usize = 16;

/// The first of them, the least number that is looked at.
pub(crate) const LEAST: f32 = f32::from_bits(0x3000_0000);

/// The same lines for machines that look 32 values up at once: a power of four has numbers of two
/// segments at most.
///
/// Bits 24 to 27 of a number are the index of the upper of both, which is beside that of the lower:
/// bit 28 is set in all numbers from [`LEAST`] to 1.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Quads {
    /// The bits of the last number of the lower segment.
    pub last: [i32; QUADS],
    /// As of [`Lines`]: `[upper, lower]`.
    pub slope: [[f32; QUADS]; 2],
    pub offset: [[f32; QUADS]; 2],
    pub top: [[f32; QUADS]; 2],
}

impl Quads {
    /// The lines of a map.
    pub fn new(lines: &Lines) -> Self {
        let zeros = [[0.0; QUADS]; 2];
        let mut quads = Quads { last: [0; QUADS], slope: zeros, offset: zeros, top: zeros };
        let segment = |bits: i32| lines.last.iter().take_while(|last| bits > **last).count();
        for i in 0..QUADS {
            let first = (LEAST.to_bits() as i32) + ((i as i32) << 24);
            let both = [segment(first + 0x00ff_ffff), segment(first)];
            quads.last[i] = lines.last[both[1]];
            for (j, segment) in both.into_iter().enumerate() {
                quads.slope[j][i] = lines.slope[segment];
                quads.offset[j][i] = lines.offset[segment];
                quads.top[j][i] = lines.top[segment];
            }
        }
        quads
    }
}
