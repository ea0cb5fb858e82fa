//! How kernels find the code of a number: by its cell of an even grid, where each holds one threshold at most,
//! or else by a search among all.

use lowbit::format::Encoder;

use crate::kernel::Builder;

const GRID: &str = include_str!("kernels/grid.wgsl");
const RANKS: &str = include_str!("kernels/ranks.wgsl");

/// Most cells of a grid: they are copied to the memory of each group of threads.
const MOST_CELLS: u32 = 512;
/// How far thresholds stay from where a cell ends: more than cells are rounded by.
const MARGIN: f64 = 1e-3;

/// An even grid: number `x` is in cell `round(x * scale + start)`.
#[derive(Debug, Clone, PartialEq)]
struct Grid {
    scale: f32,
    start: f32,
    cells: Vec<Cell>,
}

/// Numbers from `up` on have code `codes[1]`, others `codes[0]`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cell {
    up: f32,
    codes: [u8; 2],
}

impl Grid {
    /// The grid with the fewest cells.
    fn of(encoder: &Encoder) -> Option<Self> {
        let mut counts = (4..).map(|bits| 1u32 << bits).take_while(|count| *count <= MOST_CELLS);
        // A little coarser, and thresholds lie elsewhere in their cells.
        counts
            .find_map(|count| (0..16).find_map(|i| Self::with(encoder, count, f64::from(i) / 64.0)))
    }

    fn with(encoder: &Encoder, count: u32, coarser: f64) -> Option<Self> {
        let [first, last] = [*encoder.ups.first()?, *encoder.ups.last()?].map(f64::from);
        let scale = (f64::from(count - 3) * (1.0 - coarser) / (last - first)) as f32;
        let start = (1.0 - first * f64::from(scale)) as f32;
        if !scale.is_finite() || !start.is_finite() {
            return None;
        }
        let mut ups = vec![f32::MAX; count as usize];
        for up in encoder.ups {
            let place = f64::from(*up) * f64::from(scale) + f64::from(start);
            let cell = ups.get_mut(place.round() as usize)?;
            if (place - place.round()).abs() > 0.5 - MARGIN || *cell != f32::MAX {
                return None;
            }
            *cell = *up;
        }
        let mut rank = 0;
        let cells = ups.into_iter().map(|up| {
            let below = rank;
            rank += usize::from(up != f32::MAX);
            Cell { up, codes: [encoder.codes[below], encoder.codes[rank]] }
        });
        Some(Grid { scale, start, cells: cells.collect() })
    }
}

/// What an encoder's kernels read: `ups` and `ranked`.
pub(crate) fn tables(encoder: &Encoder) -> (Vec<f32>, Vec<u32>) {
    match Grid::of(encoder) {
        None => (encoder.ups.to_vec(), encoder.codes.iter().map(|c| u32::from(*c)).collect()),
        Some(grid) => grid
            .cells
            .iter()
            .map(|Cell { up, codes: [below, from] }| {
                (*up, u32::from(*below) | u32::from(*from) << 16)
            })
            .unzip(),
    }
}

impl Builder {
    /// `load_ranks`, `encode` and `scaled`, which read `ups` and `ranked`.
    pub fn ranks(self, encoder: &Encoder) -> Self {
        let this = self.constant("SIGN_BIT", encoder.sign_bit);
        match Grid::of(encoder) {
            None => this
                .constant("RANKS", encoder.ups.len() as u32)
                .constant("PLACES", (encoder.ups.len() as u32 + 1).next_power_of_two())
                .text(RANKS),
            Some(Grid { scale, start, cells }) => this
                .constant("CELLS", cells.len() as u32)
                .text(&format!("const GRID_SCALE = {scale:?}f;\nconst GRID_START = {start:?}f;"))
                .text(GRID),
        }
    }
}

#[cfg(test)]
mod tests {
    use lowbit::formats;

    use super::*;

    /// As `grid.wgsl` finds it, in whatever order its compiler rounds.
    fn code(grid: &Grid, encoder: &Encoder, x: f32, fused: bool) -> u8 {
        let value = if encoder.sign_bit == 0 { x } else { x.abs() };
        let place = match fused {
            true => value.mul_add(grid.scale, grid.start),
            false => value * grid.scale + grid.start,
        };
        let place = place.clamp(0.0, (grid.cells.len() - 1) as f32) + 8_388_608.0;
        let cell = &grid.cells[place.to_bits() as usize % grid.cells.len()];
        let sign = if x < 0.0 { encoder.sign_bit } else { 0 };
        cell.codes[usize::from(cell.up <= value)] | sign
    }

    #[test]
    fn a_grid_gives_the_codes_of_its_encoder() {
        let mut grids = 0;
        for format in formats::ALL {
            let Some(encoder) = format.encoder else { continue };
            let Some(grid) = Grid::of(encoder) else { continue };
            grids += 1;
            let near = |x: f32| {
                [x.next_down().next_down(), x.next_down(), x, x.next_up(), x.next_up().next_up()]
            };
            let ends = (0..=grid.cells.len()).map(|i| (i as f32 - 0.5 - grid.start) / grid.scale);
            let inside = (-4000..=4000).map(|i| i as f32 * format.peak / 3000.0);
            let all = encoder.ups.iter().copied().chain(ends).flat_map(near).chain(inside);
            for x in all.chain([0.0, -0.0, 1e30, -1e30]).flat_map(|x| [x, -x]) {
                for fused in [false, true] {
                    let got = code(&grid, encoder, x, fused);
                    assert_eq!(got, encoder.encode(x), "{} {x}", format.name);
                }
            }
        }
        assert!(grids > 2, "{grids} formats");
    }
}
