//! Small Metal kernels whose results are known.
#![cfg(unix)]

use metal_standin::{Buffer, Launch, Library, Math, Order, Result, skipped};

/// Runs kernel `f`, which writes to its first buffer, and gives the buffer's content as u32.
fn run(text: &str, math: Math, out: usize, more: &[&[u32]], launch: &Launch) -> Result<Vec<u32>> {
    let text = format!("#include <metal_stdlib>\nusing namespace metal;\n{text}");
    let library = Library::compile(&[("test", &text)], math)?;
    let mut buffers = vec![Buffer::zeros(out * 4)];
    buffers.extend(more.iter().map(|words| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Buffer::from_bytes(&bytes)
    }));
    library.run("test", "f", &buffers.iter().collect::<Vec<_>>(), launch)?;
    let bytes = buffers[0].read(out * 4);
    Ok(bytes.chunks(4).map(|b| u32::from_ne_bytes(b.try_into().unwrap())).collect())
}

/// As [`run`], with one group of threads; must fail, and does so with these words.
fn refusal(text: &str, threads: u32) -> String {
    let launch = Launch::groups([1, 1, 1], [threads, 1, 1]);
    run(text, Math::Precise, 256, &[], &launch).unwrap_err().to_string()
}

fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|word| f32::from_bits(*word)).collect()
}

#[test]
fn every_thread_knows_where_it_is() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let text = "kernel void f(device uint* out [[buffer(0)]],
            uint3 id [[thread_position_in_grid]], uint3 grid [[threads_per_grid]],
            uint2 size [[threads_per_threadgroup]], ushort lane [[thread_index_in_simdgroup]],
            uint simd [[simdgroup_index_in_threadgroup]], uint3 group [[threadgroup_position_in_grid]]) {
        out[(id.z * grid.y + id.y) * grid.x + id.x] =
            lane + 100 * simd + 10000 * (group.x + 10 * group.y) + 1000000 * (size.x + 10 * size.y);
    }";
    // The last group of each axis is smaller.
    let launch =
        Launch { threads: [5, 3, 1], group: [4, 2, 1], simd_width: 4, order: Order::Backward };
    let out = run(text, Math::Precise, 15, &[], &launch)?;
    #[rustfmt::skip]
    assert_eq!(out, [
        24_000_000, 24_000_001, 24_000_002, 24_000_003, 21_010_000,
        24_000_100, 24_000_101, 24_000_102, 24_000_103, 21_010_001,
        14_100_000, 14_100_001, 14_100_002, 14_100_003, 11_110_000,
    ]);
    Ok(())
}

#[test]
fn barriers_let_threads_see_what_others_wrote() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    // A sum by halves, in two groups, which share nothing.
    let text = "kernel void f(device float* out [[buffer(0)]], constant float* x [[buffer(1)]],
            uint i [[thread_index_in_threadgroup]], uint group [[threadgroup_position_in_grid]]) {
        threadgroup float sums[256];
        threadgroup atomic_uint count;
        if (i == 0) atomic_store_explicit(&count, 0u, memory_order_relaxed);
        sums[i] = x[group * 256 + i];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed);
        for (uint half_ = 128; half_ > 0; half_ /= 2) {
            if (i < half_) sums[i] += sums[i + half_];
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        out[group * 256 + i] = sums[0] + atomic_load_explicit(&count, memory_order_relaxed);
    }";
    let x: Vec<u32> = (0..512).map(|i| (i as f32).to_bits()).collect();
    for order in [Order::Forward, Order::Backward] {
        let launch = Launch { order, ..Launch::groups([2, 1, 1], [256, 1, 1]) };
        let out = floats(&run(text, Math::Precise, 512, &[&x], &launch)?);
        assert!(out[..256].iter().all(|sum| *sum == 32640.0 + 256.0), "{out:?}");
        assert!(out[256..].iter().all(|sum| *sum == 98176.0 + 256.0), "{out:?}");
    }
    Ok(())
}

#[test]
fn simdgroups_of_any_width_exchange_values() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let text = "kernel void f(device uint* out [[buffer(0)]], uint i [[thread_position_in_grid]],
            uint lane [[thread_index_in_simdgroup]], uint width [[threads_per_simdgroup]]) {
        bool good = simd_sum(i) == width * (i - lane) + width * (width - 1) / 2;
        good = good && simd_max(i) == i - lane + width - 1 && simd_min(i) == i - lane;
        good = good && simd_prefix_inclusive_sum(1u) == lane + 1;
        good = good && simd_prefix_exclusive_sum(1u) == lane;
        good = good && simd_prefix_exclusive_product(2u) == (1u << lane);
        good = good && simd_broadcast(lane, 2) == 2 && simd_broadcast_first(lane) == 0;
        good = good && simd_shuffle(lane, (lane + 3) % width) == (lane + 3) % width;
        good = good && simd_shuffle_xor(lane, 1) == (lane ^ 1);
        good = good && quad_broadcast(lane, 3) == (lane | 3) && quad_shuffle_xor(lane, 2) == (lane ^ 2);
        uint down = simd_shuffle_down(lane, 1), up = simd_shuffle_up(lane, 1);
        good = good && down == (lane + 1 < width ? lane + 1 : ~0u) && up == lane - 1;
        good = good && (ulong)simd_ballot(lane != 1) == ((1ul << width) - 1 & ~2ul);
        good = good && simd_all(lane < width) && !simd_all(lane > 0) && simd_any(lane == 1);
        float4 sums = simd_sum(float4(1.0, lane, 0.0, -1.0));
        good = good && all(sums == float4(width, width * (width - 1) / 2, 0.0, -float(width)));
        good = good && simd_or(1u << lane) == (uint)((1ul << width) - 1) && simd_xor(lane & 1u) == 0;
        out[i] = good;
    }";
    for (simd_width, order) in [(8, Order::Forward), (16, Order::Backward), (32, Order::Backward)] {
        let launch = Launch { simd_width, order, ..Launch::groups([2, 1, 1], [64, 1, 1]) };
        let out = run(text, Math::Precise, 128, &[], &launch)?;
        assert_eq!(out, [1; 128], "width {simd_width}");
    }
    Ok(())
}

#[test]
fn simdgroup_matrices_multiply() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    // y = a b + 1 for 16 x 16 matrices, of which b is stored by columns; in tiles of 8, then of 16.
    let tiles = |n: u32| {
        format!(
            "kernel void f(device float* y [[buffer(0)]], device const float* a [[buffer(1)]],
                device const float* b [[buffer(2)]], uint simd [[simdgroup_index_in_threadgroup]],
                uint i [[thread_index_in_threadgroup]]) {{
            threadgroup half tile[256];
            for (uint j = i; j < 256; j += 32 * {groups}) tile[j] = half(a[j]);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            uint row = simd * {n} / 16 * {n}, column = simd * {n} % 16;
            simdgroup_float{n}x{n} c = make_filled_simdgroup_matrix<float, {n}, {n}>(1.0);
            for (uint k = 0; k < 16; k += {n}) {{
                simdgroup_half{n}x{n} left;
                simdgroup_float{n}x{n} right;
                simdgroup_load(left, &tile[row * 16 + k], 16);
                simdgroup_load(right, &b[column * 16 + k], 16, 0, true);
                simdgroup_multiply_accumulate(c, left, right, c);
            }}
            simdgroup_store(c, &y[row * 16 + column], 16);
        }}",
            groups = 256 / n / n
        )
    };
    let a: Vec<f32> = (0..256).map(|i| (i % 7) as f32 - 3.0).collect();
    let b: Vec<f32> = (0..256).map(|i| (i % 11) as f32 - 5.0).collect();
    let dot = |i: usize| (0..16).map(|k| a[i / 16 * 16 + k] * b[i % 16 * 16 + k]).sum::<f32>();
    let expected: Vec<f32> = (0..256).map(|i| dot(i) + 1.0).collect();
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for n in [8, 16] {
        let launch = Launch::groups([1, 1, 1], [32 * 256 / n / n, 1, 1]);
        let y = run(&tiles(n), Math::Precise, 256, &[&bits(&a), &bits(&b)], &launch)?;
        assert_eq!(floats(&y), expected, "tiles of {n}");
    }
    Ok(())
}

#[test]
fn arithmetic_is_that_of_metal() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let text = "constant float TABLE[3] = {0.1, 0.2, 0.3};
    kernel void f(device float* out [[buffer(0)]], uint i [[thread_position_in_grid]]) {
        float x = 16777216.0;
        out[0] = x + 1.0 - x;               // literals are float, and so are sums
        out[1] = half(2049.0h) + half(0.25h);  // 2049 is no half
        half2 h = as_type<half2>(0x3c003800u);
        out[2] = h.y + float2(h).x;
        out[3] = metal::float4(float2(1.0, 2.0), 3.0, 4.0).wzyx.y;
        packed_char4 bytes = as_type<packed_char4>(0x80ff7f01u);
        out[4] = bytes[0] + bytes[1] + bytes[2] + bytes[3];
        out[5] = static_cast<int4>(float4(-1.5, 2.5, 3.0, 4.0)).x + TABLE[2];
        out[6] = clz(1u) + ctz(8u) + popcount(0xf0fu) + extract_bits(0xabcdu, 4u, 8u) + clz(0u);
        out[7] = select(float2(1.0), float2(2.0), bool2(true, false)).y + (any(uint2(0u, 1u) == 1u) ? 1 : 0);
        out[8] = fma(3.0, 0.5, 1.0) + rint(2.5) + sign(-2.0) + saturate(7.0) + min(3u, 2u) + max(1, 2);
        out[9] = as_type<float>(0x00400000u + i) * 2.0;  // not a normal number
    }";
    let launch = Launch::groups([1, 1, 1], [1, 1, 1]);
    let expected =
        [0.0, 2048.0, 1.5, 3.0, -1.0, -1.0 + 0.3, 31.0 + 3.0 + 8.0 + 188.0 + 32.0, 2.0, 8.5];
    let out = floats(&run(text, Math::Precise, 10, &[], &launch)?);
    assert_eq!(out[..9], expected);
    assert_eq!(out[9], f32::from_bits(0x0080_0000));
    let out = floats(&run(text, Math::Fast, 10, &[], &launch)?);
    assert_eq!(out[2..], [&expected[2..], &[0.0]].concat());
    assert_eq!(f32::from_bits(0x0040_0000) * 2.0, f32::from_bits(0x0080_0000), "only in kernels");
    Ok(())
}

#[test]
fn threads_that_do_not_come_are_missed() {
    if skipped() {
        return;
    }
    let barrier = "threadgroup_barrier(mem_flags::mem_none);";
    let text = format!(
        "kernel void f(uint i [[thread_position_in_grid]], device uint* out [[buffer(0)]]) {{
            if (i == 5) return;
            {barrier}
        }}"
    );
    let expected = "thread 0 waits at the barrier in line 5, but thread 5 is at its end";
    assert!(refusal(&text, 8).contains(expected), "{}", refusal(&text, 8));

    let text = "kernel void f(uint i [[thread_position_in_grid]], device uint* out [[buffer(0)]]) {
        if (i < 32) {
            threadgroup_barrier(mem_flags::mem_none);
        } else {
            threadgroup_barrier(mem_flags::mem_none);
        }
    }";
    let expected =
        "thread 0 waits at the barrier in line 5, but thread 32 waits at the barrier in line 7";
    assert!(refusal(text, 64).contains(expected), "{}", refusal(text, 64));

    let text = "kernel void f(uint i [[thread_position_in_grid]], device uint* out [[buffer(0)]]) {
        if (i % 2 == 0) out[i] = simd_sum(i);
    }";
    let expected = "thread 0 waits for its simdgroup in line 4, but thread 1 is at its end";
    assert!(refusal(text, 32).contains(expected), "{}", refusal(text, 32));

    let text =
        "kernel void f(uint i [[thread_position_in_grid]], device float* out [[buffer(0)]]) {
        simdgroup_float8x8 m = simdgroup_float8x8 {};
        if (i == 0) simdgroup_store(m, out, 8);
    }";
    let expected = "threads 0 and 1 did not do the same matrix operations";
    assert!(refusal(text, 32).contains(expected), "{}", refusal(text, 32));
}

#[test]
fn a_missing_barrier_shows_in_another_order() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let text = "kernel void f(uint i [[thread_position_in_grid]], device uint* out [[buffer(0)]]) {
        threadgroup uint shared[2];
        shared[i] = i;
        out[i] = shared[0];
    }";
    let launch = Launch::groups([1, 1, 1], [2, 1, 1]);
    assert_eq!(run(text, Math::Precise, 2, &[], &launch)?, [0, 0]);
    let launch = Launch { order: Order::Backward, ..launch };
    assert_eq!(run(text, Math::Precise, 2, &[], &launch)?, [0, u32::MAX]);
    Ok(())
}

#[test]
fn what_metal_refuses_is_refused() {
    if skipped() {
        return;
    }
    let text = "float first(device float* x) { return x[0]; }
    kernel void f(device float* out [[buffer(0)]]) {
        threadgroup float tile[4];
        out[0] = first(&tile[0]);
    }";
    assert!(refusal(text, 1).contains("clang: test:6:"), "{}", refusal(text, 1));

    let text = "kernel void f(device float* out [[buffer(0)]]) {
        threadgroup float4 a[1024];
        threadgroup float4 b[1025];
        out[0] = a[0].x + b[0].x;
    }";
    let expected = "a thread has 32784 bytes of threadgroup memory, more than 32768";
    assert!(refusal(text, 1).contains(expected), "{}", refusal(text, 1));

    let text = "kernel void f(device float* a [[buffer(0)]], device float* b [[buffer(1)]]) {}";
    assert!(refusal(text, 1).contains("it takes 2 buffers, not 1"), "{}", refusal(text, 1));

    let text = "kernel void f(device float* out [[buffer(0)]]) {}";
    let expected = "it cannot be started like this: Launch { threads: [1025, 1, 1]";
    assert!(refusal(text, 1025).contains(expected), "{}", refusal(text, 1025));
}

/// Runs in a process of its own, which does not survive it.
#[test]
fn an_access_outside_of_a_buffer_names_the_thread() {
    if skipped() {
        return;
    }
    if std::env::var_os("STANDIN_CRASH").is_some() {
        let text =
            "kernel void f(uint i [[thread_position_in_grid]], device uint* out [[buffer(0)]]) {
            out[i < 37 ? i : i * 1000] = 1;
        }";
        let launch = Launch::groups([2, 1, 1], [32, 1, 1]);
        let _ = run(text, Math::Precise, 64, &[], &launch);
        return;
    }
    let this = std::env::current_exe().unwrap();
    let arguments = ["--exact", "an_access_outside_of_a_buffer_names_the_thread", "--nocapture"];
    let child = std::process::Command::new(this).args(arguments).env("STANDIN_CRASH", "1").output();
    let output = child.unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = "kernel f of test, group [1, 0, 0], thread [5, 0, 0]: an access outside";
    assert!(!output.status.success() && words.contains(expected), "{words}");
}
