//! Tiles of products on matrix hardware: which products take which, and what else is worth a try.

use super::{MOST_ROWS, Product};
use crate::Limits;
use crate::matrix::{Schedule, Tiles};
use crate::weight::Kind;

/// Rows of activations and weights in a tile, subgroups across, threads and slices, terms of a step, steps
/// ahead.
type Cut = ([u32; 2], u32, [u32; 2], u32, u32);

/// Of what weights a rule is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Those that take few instructions to decode.
    Light,
    All,
}

/// What products of some rows of activations take.
struct Rule {
    /// The fewest and the most of them.
    rows: [usize; 2],
    of: Of,
    /// The fewest tiles of this cut for which it does.
    tiles: usize,
    cut: Cut,
    schedule: Schedule,
}

const fn rule(rows: [usize; 2], of: Of, tiles: usize, cut: Cut, schedule: Schedule) -> Rule {
    Rule { rows, of, tiles, cut, schedule }
}

/// Tiles that give each core of a large GPU one.
const ENOUGH: usize = 128;
const ANY: usize = usize::MAX;
const WHOLE: Schedule = Schedule::Whole;
/// Two groups for each of its cores.
const STREAM: Schedule = Schedule::Stream(264);

/// The first that a product meets is its own: measured on an H200 (`bench/notes.md`). With few rows subgroups
/// share the terms, as there are few results; steps are long where a core has one group, and there are two groups
/// a core where there is enough to do.
const RULES: [Rule; 11] = [
    rule([0, 16], Of::All, 0, ([16, 16], 1, [128, 4], 64, 6), WHOLE),
    rule([17, 32], Of::Light, ENOUGH, ([32, 32], 1, [128, 2], 128, 1), WHOLE),
    rule([17, 32], Of::All, 0, ([32, 16], 1, [128, 4], 64, 6), WHOLE),
    rule([33, 64], Of::Light, ENOUGH, ([64, 32], 1, [128, 2], 128, 1), WHOLE),
    rule([33, 64], Of::All, 0, ([64, 16], 1, [128, 4], 64, 6), WHOLE),
    rule([129, ANY], Of::All, ENOUGH, ([256, 64], 1, [256, 1], 128, 1), WHOLE),
    rule([65, ANY], Of::All, ENOUGH + 1, ([128, 64], 1, [128, 1], 64, 3), WHOLE),
    rule([65, ANY], Of::Light, 86, ([128, 64], 1, [128, 1], 128, 1), WHOLE),
    rule([65, ANY], Of::All, 192, ([128, 32], 1, [128, 1], 64, 3), WHOLE),
    rule([65, ANY], Of::Light, 0, ([128, 32], 1, [128, 1], 128, 1), STREAM),
    rule([65, ANY], Of::All, 0, ([128, 32], 1, [128, 1], 64, 4), STREAM),
];

/// What fits where nothing else does.
const SMALL: Cut = ([64, 64], 2, [256, 1], 32, 2);
/// What no rule says.
const MORE: [Cut; 3] = [
    ([16, 32], 2, [256, 4], 64, 4),
    ([64, 64], 2, [128, 1], 64, 4),
    ([256, 64], 1, [256, 1], 64, 3),
];
/// Groups worth a try for stream-K: a few for each core of some GPUs.
const STREAMS: [u32; 5] = [32, 64, 132, 264, 528];

/// The kernel that a product takes here, from as many rows of activations on as it is faster.
pub(super) fn usual([m, n, k]: [usize; 3], kind: &Kind, limits: &Limits) -> Option<Product> {
    let light = kind.is_light();
    // Of bits, subgroups take more instructions than tiles.
    let fewest = if light || !kind.words() { 8 } else { 4 };
    let meets = |rule: &&Rule| {
        let [rows, cols] = rule.cut.0.map(|n| n as usize);
        (rule.rows[0]..=rule.rows[1]).contains(&m)
            && (light || rule.of == Of::All)
            && m.div_ceil(rows) * n.div_ceil(cols) >= rule.tiles
    };
    let (cut, schedule) = match limits.vector_tiles {
        false if m > MOST_ROWS => (SMALL, WHOLE),
        true if m > fewest => RULES.iter().find(meets).map(|rule| (rule.cut, rule.schedule))?,
        _ => return None,
    };
    // Shorter steps, where a codebook leaves less room or rows are no whole number of them.
    let (tile, across, group, ..) = cut;
    [(cut, schedule), ((tile, across, group, 64, 3), schedule), (SMALL, WHOLE)]
        .into_iter()
        .filter_map(|(cut, schedule)| product(cut, schedule, limits))
        .find(|product| product.suits([n, k], kind, limits))
}

/// All of them that this GPU can run, for someone to measure them.
pub(super) fn candidates(limits: &Limits) -> Vec<Product> {
    let mut cuts: Vec<Cut> = RULES.iter().map(|rule| rule.cut).chain([SMALL]).chain(MORE).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let pieces = STREAMS.map(Schedule::Stream).into_iter().chain([2, 4].map(Schedule::Split));
    let schedules: Vec<Schedule> = std::iter::once(WHOLE).chain(pieces).collect();
    cuts.retain(|(_, _, [group, _], ..)| *group <= limits.threads);
    cuts.into_iter()
        .flat_map(|cut| schedules.iter().filter_map(move |s| product(cut, *s, limits)))
        .collect()
}

/// `None` without matrix hardware.
fn product(cut: Cut, schedule: Schedule, limits: &Limits) -> Option<Product> {
    let ([m, n], across, [group, slices], depth, ahead) = cut;
    let (side, vectors, cut) = (limits.matrix?, limits.vector_tiles, schedule != WHOLE);
    let tiles =
        Tiles { side, m, n, across, group, slices, depth, ahead, replicas: 1, cut, vectors };
    Some(Product::Matrix { tiles, schedule })
}
