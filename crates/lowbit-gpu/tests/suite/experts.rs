//! Mixtures of experts against those of the CPU.

use lowbit::conformance::Rng;
use lowbit::device::{Device, Routes, Routing};
use lowbit::{DType, DenseTensor, Weight, formats};

use crate::device::{Both, Two, on_both, on_both_at_once};
use crate::full;

/// Weights `[N, K]` of experts, of a format or, behind those, dense.
fn experts(rng: &mut Rng, count: usize, rows: &[usize], k: usize, kind: usize) -> Vec<Vec<Weight>> {
    let mut weight = |n: &usize| -> Weight {
        match formats::ALL.get(kind) {
            Some(format) => rng.tensor(format, &[*n, k], None).unwrap().into(),
            None => {
                let numbers = rng.numbers(DType::F32, n * k).values;
                DenseTensor::from_f32(vec![*n, k], &numbers).unwrap().into()
            }
        }
    };
    (0..count).map(|_| rows.iter().map(&mut weight).collect()).collect()
}

/// What rows chose on each.
fn routes(both: &Both, logits: &Two, routing: Routing) -> [Routes; 2] {
    [both.cpu.route(&logits[0], routing).unwrap(), both.gpu.route(&logits[1], routing).unwrap()]
}

#[test]
fn rows_choose_the_largest_logits() {
    on_both(|both| {
        for (rows, count, top) in
            [(1, 1, 1), (3, 5, 2), (2, 128, 8), (300, 8, 8), (0, 4, 2), (5, 300, 3)]
        {
            for normalize in [false, true] {
                let logits = both.random([rows, count]);
                let routes = routes(both, &logits, Routing { top, normalize });
                let what = format!("route {rows} {count} {top}");
                both.same(&what, &routes.each_ref().map(|routes| routes.experts.clone()));
                let shares = routes.map(|routes| routes.shares);
                both.close(&what, &shares, 0.1, 1.0);
            }
        }
        let equal = both.activations([1, 6], &[1.0, 2.0, 0.0, 2.0, -0.0, 2.0]);
        let routes = routes(both, &equal, Routing { top: 6, normalize: false });
        assert_eq!(both.gpu.read(&routes[1].experts).unwrap(), [1.0, 3.0, 5.0, 0.0, 2.0, 4.0]);
        for top in [0, 7] {
            assert!(both.gpu.route(&equal[1], Routing { top, normalize: true }).is_err());
        }
    });
}

/// Rows, experts, how many each row chooses, `N` and `K`: one launch or many, one by one or in tiles.
const CASES: [[usize; 5]; 5] = [
    [1, 3, 2, 40, 160],
    [1, 4, 4, 256, 256],
    [3, 5, 2, 6, 96],
    [40, 4, 2, 12, 64],
    [2, 3, 1, 5, 7],
];

/// What each row's experts give: every format with every case on some GPU and type of activations, in
/// full on all of them.
#[test]
fn experts_multiply_what_is_sent_to_them() {
    on_both_at_once(|both| {
        for kind in 0..=formats::ALL.len() {
            for (i, case) in CASES.into_iter().enumerate() {
                if full() || i == (both.turn + kind) % CASES.len() {
                    multiplies(both, case, kind);
                }
            }
        }
    });
}

fn multiplies(both: &mut Both, [rows, count, top, n, k]: [usize; 5], kind: usize) {
    // Both are rows of a weight.
    let unit = formats::ALL.get(kind).map_or(1, |format| format.row_multiple());
    let [n, k] = [n, k].map(|rows| rows.next_multiple_of(unit));
    let weights = experts(&mut both.rng, count, &[n, n], k, kind);
    let all = both.run(|d, _| d.experts(&weights));
    let (x, logits) = (both.random([rows, k]), both.random([rows, count]));
    let routes = routes(both, &logits, Routing { top, normalize: true });
    let what = format!("experts {rows} {count} {top} {n} {k} of kind {kind}");
    for part in 0..2 {
        let y =
            both.run(|d, i| Ok(d.linear_experts(&x[i], &all[i], &routes[i])?.swap_remove(part)));
        both.close(&what, &y, (k as f32).sqrt(), 3.0);
    }
    let inner = both.run(|d, i| d.gated_experts(&x[i], &all[i], &routes[i]));
    both.close(&format!("gated {what}"), &inner, 2.0 * k as f32, 3.0);

    // A row for each place, and all of it added up.
    let weights = experts(&mut both.rng, count, &[k], n, kind);
    let all = both.run(|d, _| d.experts(&weights));
    let inner = both.random([rows * top, n]);
    let sum = both.run(|d, i| {
        let y = d.linear_experts(&inner[i], &all[i], &routes[i])?.swap_remove(0);
        d.mix_experts(&y, &routes[i], &x[i])
    });
    both.close(&format!("mix {what}"), &sum, (n as f32).sqrt() + 1.0, 3.0);
}

#[test]
fn experts_of_different_shapes_and_rows_of_others_are_refused() {
    on_both(|both| {
        let dense = formats::ALL.len();
        let mut weights = experts(&mut both.rng, 3, &[4], 8, dense);
        let all = both.run(|d, _| d.experts(&weights));
        let (x, logits) = (both.random([2, 8]), both.random([2, 3]));
        let [_, routes] = routes(both, &logits, Routing { top: 2, normalize: true });
        let other = both.random([3, 8]);
        let gpu = &both.gpu;
        assert!(gpu.gated_experts(&x[1], &all[1], &routes).is_err());
        assert!(gpu.linear_experts(&other[1], &all[1], &routes).is_err());
        assert!(gpu.mix_experts(&x[1], &routes, &x[1]).is_err());
        weights[1] = experts(&mut both.rng, 1, &[5], 8, dense).remove(0);
        for device in [&both.cpu as &dyn Device, &*both.gpu] {
            let error = device.experts(&weights).unwrap_err().to_string();
            assert!(error.contains("[5, 8]"), "{error}");
        }
    });
}
