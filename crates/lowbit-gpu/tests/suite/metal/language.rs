//! WGSL means in Metal what it means in Vulkan.

use lowbit::Result;
use lowbit::conformance::Rng;
use lowbit_gpu::msl::Bounds;
use lowbit_gpu::{Access, Binding, Kernel, Needs, Queue};
use metal_standin::{Math, Order};

use super::standin::{Mode, StandIn};
use crate::{gpu, skipped};

/// How many results of each kind the kernel has for each of its threads.
const EXACT: usize = 63;
const NEAR: usize = 8;
const THREADS: usize = 64;

fn kernel() -> Kernel {
    let binding = |(name, access)| Binding { name, access };
    let bindings = [
        ("words", Access::Read),
        ("pairs", Access::Read),
        ("exact", Access::ReadWrite),
        ("near", Access::ReadWrite),
        ("shared_count", Access::ReadWrite),
        ("p", Access::Uniform),
    ];
    let text = include_str!("language.wgsl");
    Kernel {
        name: "language".into(),
        source: format!("enable f16;\nconst EXACT = {EXACT}u;\nconst NEAR = {NEAR}u;\n{text}"),
        entry: "language2",
        workgroup: [32, 1, 1],
        bindings: bindings.map(binding).to_vec(),
        params: &["n", "three"],
        needs: Needs { f16: true, subgroups: true, matrix: None },
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_ne_bytes(b.try_into().expect("4 bytes"))).collect()
}

/// What the kernel finds: exact results, near ones, counts.
fn results<Q: Queue>(queue: &Q) -> Result<(Vec<u32>, Vec<f32>, Vec<u32>)> {
    let mut rng = Rng(7);
    let numbers: Vec<u8> = (0..THREADS).flat_map(|_| rng.next_u64().to_ne_bytes()).collect();
    let halves: Vec<u8> =
        (0..2 * THREADS).flat_map(|_| half::f16::from_f32(rng.normal()).to_ne_bytes()).collect();
    let (numbers, pairs) = (queue.upload(&numbers)?, queue.upload(&halves)?);
    let exact = queue.scratch((4 * EXACT * THREADS) as u64)?;
    let near = queue.scratch((4 * NEAR * THREADS) as u64)?;
    let counts = queue.zeros(16)?;
    let buffers = [&numbers, &pairs, &exact, &near, &counts];
    queue.dispatch(&kernel(), &buffers, &[THREADS as u32, 3], [2, 1, 1])?;
    let near = words(&queue.read(&near, (4 * NEAR * THREADS) as u64)?);
    let exact = words(&queue.read(&exact, (4 * EXACT * THREADS) as u64)?);
    let near = near.into_iter().map(f32::from_bits).collect();
    Ok((exact, near, words(&queue.read(&counts, 12)?)))
}

#[test]
fn wgsl_means_the_same_in_metal_as_in_vulkan() {
    if skipped() {
        return;
    }
    let gpu = gpu(false).expect("GPU tests are not left out");
    let (exact, near, counts) = results(&gpu).expect("the kernel runs");
    assert_eq!(counts, [64, 1, 1]);
    let simd_width = gpu.limits().subgroup.1;
    let modes = [
        Mode { simd_width, ..Mode::APPLE },
        Mode { simd_width, order: Order::Backward, bounds: Bounds::Checked, ..Mode::APPLE },
        Mode { simd_width, math: Math::Fast, ..Mode::APPLE },
    ];
    for mode in modes {
        let (metal_exact, metal_near, metal_counts) =
            results(&StandIn::new(mode)).expect("the kernel runs");
        assert_eq!(metal_counts, counts);
        for (i, (vulkan, metal)) in exact.iter().zip(&metal_exact).enumerate() {
            let (thread, which) = (i / EXACT, i % EXACT);
            assert_eq!(vulkan, metal, "thread {thread}, exact result {which}, {mode:?}");
        }
        for (i, (vulkan, metal)) in near.iter().zip(&metal_near).enumerate() {
            let (thread, which) = (i / NEAR, i % NEAR);
            let close = (vulkan - metal).abs() <= 1e-4 * vulkan.abs().max(1.0);
            assert!(close, "thread {thread}, near result {which}: {vulkan}, {metal}; {mode:?}");
        }
    }
}
