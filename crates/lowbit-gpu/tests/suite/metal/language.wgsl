// A little of everything that kernels may use, for 64 threads in groups of 32. What they find goes to
// `exact` where it is the same everywhere, and to `near` where a few units in the last place are free.

struct Params { n: u32, three: u32 }
struct Pair { a: u32, b: array<u32, 2> }
@group(0) @binding(0) var<storage, read> words: array<u32>;
@group(0) @binding(1) var<storage, read> pairs: array<vec2<f16>>;
@group(0) @binding(2) var<storage, read_write> exact: array<u32>;
@group(0) @binding(3) var<storage, read_write> near: array<f32>;
@group(0) @binding(4) var<storage, read_write> shared_count: array<atomic<u32>>;
@group(0) @binding(5) var<uniform> p: Params;

const TABLE = array<u32, 4>(7u, 5u, 3u, 1u);
override SCALE: u32 = 3;
var<workgroup> tile: array<vec2<f32>, 32>;
var<workgroup> halves: array<f16, 32>;
var<workgroup> count: atomic<u32>;
var<workgroup> highest: atomic<u32>;
var<private> thread_of: u32;
var<private> exact_at: u32;
var<private> near_at: u32;

fn put(v: u32) {
    exact[thread_of * EXACT + exact_at] = v;
    exact_at += 1u;
}

fn put_float(v: f32) {
    put(bitcast<u32>(v));
}

fn put_near(v: f32) {
    near[thread_of * NEAR + near_at] = v;
    near_at += 1u;
}

fn swap(v: ptr<function, vec4<u32>>, i: u32) -> u32 {
    let old = (*v)[i];
    (*v)[i] = (*v).w;
    (*v).w = old;
    return old;
}

fn doubled(v: ptr<function, array<vec4<u32>, 2>>) -> vec4<u32> {
    (*v)[1] = (*v)[0] * 2u;
    return (*v)[0] + (*v)[1];
}

fn integers(a: u32, b: u32) {
    let i = bitcast<i32>(a);
    let small = (b & 0xffffu) | 1u;
    put(bitcast<u32>(dot4I8Packed(a, b)));
    put(dot4U8Packed(a, b));
    put(extractBits(a, 3u, 9u) + extractBits(a, 30u, 9u) + extractBits(a, b & 31u, 0u));
    put(bitcast<u32>(extractBits(i, 5u, 7u)));
    put(insertBits(a, b, 6u, 11u));
    put(countOneBits(a) + countLeadingZeros(a) * 64u + countTrailingZeros(a) * 4096u);
    put(countLeadingZeros(p.n - p.n) + countTrailingZeros(p.n - p.n));
    put(firstLeadingBit(a) + 64u * firstTrailingBit(a));
    put(bitcast<u32>(firstLeadingBit(i)) + firstLeadingBit(p.n - p.n));
    put(reverseBits(a));
    put((a << (b & 31u)) ^ (a >> (b & 31u)));
    put(bitcast<u32>(i >> (b & 31u)));
    put(a / small);
    put(a % small);
    put(bitcast<u32>(i / i32(small)));
    put(bitcast<u32>(i % i32(small)));
    put(bitcast<u32>(abs(i) + sign(i) + min(i, -5) + max(i, 5) + clamp(i, -100, 100)));
    put(min(a, b) ^ max(a, b) ^ clamp(a, 1000u, 2000000u));
    put(bitcast<u32>(unpack4xI8(a).y * unpack4xI8(b).w));
    put(unpack4xU8(a).z * unpack4xU8(b).x);
    put(pack4xU8(vec4<u32>(a, b, a >> 8u, b >> 8u)) ^ pack4xI8(vec4<i32>(i, 1, -2, 3)));
    put(TABLE[a & 3u] * SCALE + TABLE[p.three]);
}

fn floats(a: u32, b: u32) {
    let x = f32(bitcast<i32>(a) >> 12u) / 64.0;
    let y = f32(b >> 12u) / 4096.0;
    put_float(x + y);
    put_float(x * y);
    put_float(floor(x) + ceil(x) + trunc(x));
    put_float(round(x) + round(2.5) + round(f32(p.three) - 0.5));
    put_float(min(x, y) + max(x, y));
    put_float(sign(x) + step(x, y) + saturate(x) + clamp(x, -2.0, 2.0) + abs(x));
    put(u32(x) + bitcast<u32>(i32(x)) + u32(x * 1e9) + bitcast<u32>(i32(x * -1e9)));
    put_float(f32(a) + f32(bitcast<i32>(b)));
    put(pack2x16float(vec2<f32>(x, y)));
    put_float(unpack2x16float(a & 0x7bff7bffu).x + unpack2x16float(b & 0x7bff7bffu).y);
    put_float(select(x, y, x < y) + select(vec2<f32>(x), vec2<f32>(y), vec2<bool>(x > 0.0, y > 0.0)).y);
    let v = vec4<f32>(x, y, 1.0, -1.0);
    put_float(v.wzyx.y + v[a & 3u] + vec3<f32>(v.xy, y).z);
    put(u32(all(v > vec4<f32>(-2.0))) + 2u * u32(any(v < vec4<f32>(-5.0))));
    let columns = mat2x4<f32>(v, v.wzyx);
    put_float(columns[0].y - columns[1].w);
    let h = pairs[thread_of];
    put_float(f32(h.x * h.y));
    put_float(f32(h.x + f16(y)) + f32(max(h.x, h.y)));
    put_float(f32(vec4<f16>(h, h.yx).z - 1.0h));
    let few = vec2<f16>(f16(a & 15u), 3.0h);
    put_float(f32(fma(few, vec2<f16>(0.5h, 2.0h), few.yx).x));
    put(u32(max(f16(a & 255u), 9.0h)));

    put_near(exp(x / 4096.0) + exp2(y / 64.0) + log(y + 1.0) + log2(y + 2.0));
    put_near(pow(y + 1.0, 1.5) + sqrt(y) + inverseSqrt(y + 1.0));
    put_near(sin(x / 4096.0) + cos(y) + tanh(x / 4096.0));
    put_near(mix(x, y, 0.25) + smoothstep(0.0, 256.0, y) + fma(x, y, 1.0));
    put_near(dot(v, v.yxwz) + length(v) + distance(v.xy, v.zw) + normalize(v.xy).x);
    put_near(ldexp(x, 3) + frexp(y).fract + f32(frexp(y).exp) + modf(x).fract + modf(x).whole);
    put_near(unpack4x8snorm(a).y + unpack4x8unorm(b).z + unpack2x16snorm(a).x + unpack2x16unorm(b).y);
    put_near(fract(x) + x / (y + 1.0) + quantizeToF16(y));
}

fn control(a: u32, b: u32) {
    var v = vec4<u32>(a, b, 3u, 4u);
    put(swap(&v, a & 3u) + v.x * 2u + v.w * 3u);
    var both = array<vec4<u32>, 2>(v, v);
    put(doubled(&both).y ^ both[1].z);
    both[a & 1u][b & 3u] = a;
    let larger = select(both[0], both[1], both[1] > both[0]);
    put(larger.x ^ larger.y ^ larger.z ^ larger.w);
    var copies: array<Pair, 3>;
    copies[b % 3u] = Pair(a, array<u32, 2>(b, a ^ b));
    let copy = copies[a % 3u];
    put(copy.a + copy.b[a & 1u] + copies[b % 3u].b[1]);
    var sum = 0u;
    for (var i = 0u; i < (a & 15u); i++) {
        if (i == 3u) {
            continue;
        }
        sum += i * b;
    }
    var j = b & 7u;
    loop {
        if (j > 9u) {
            break;
        }
        sum ^= j << 3u;
        continuing {
            j += 2u;
        }
    }
    while (j > 4u) {
        j -= 1u;
        sum += j;
    }
    switch (a & 3u) {
        case 0u: {
            sum += 1u;
        }
        case 1u, 2u: {
            sum *= 5u;
        }
        default: {
            sum = ~sum;
        }
    }
    put(sum);
}

fn together(a: u32, lane: u32, width: u32) {
    put(subgroupAdd(a) ^ subgroupMul(a | 1u));
    put(subgroupMax(a) - subgroupMin(a));
    put(subgroupAnd(a | 0xffu) ^ subgroupOr(a & 0xffu) ^ subgroupXor(a));
    put(subgroupExclusiveAdd(a));
    put(subgroupInclusiveAdd(a) ^ subgroupExclusiveMul(a | 1u) ^ subgroupInclusiveMul(a | 1u));
    put(subgroupBallot((a & 1u) == 1u).x);
    put(subgroupShuffle(a, (lane + 3u) % width) ^ subgroupShuffleXor(a, 5u));
    let up = subgroupShuffleUp(a, 1u);
    let down = subgroupShuffleDown(a, 2u);
    put(select(0u, up, lane >= 1u) ^ select(0u, down, lane + 2u < width));
    put(subgroupBroadcast(a, 6u) ^ subgroupBroadcastFirst(a ^ 1u));
    put(quadBroadcast(a, 2u) ^ quadSwapX(a) ^ (quadSwapY(a) << 1u) ^ (quadSwapDiagonal(a) << 2u));
    put(u32(subgroupAny(a > 0xf0000000u)) + 2u * u32(subgroupAll(a > 16u)));
    put_float(subgroupAdd(vec4<f32>(f32(a & 0xffu))).z + subgroupMax(f32(a)));
}

fn group_memory(a: u32, thread: u32) {
    if (thread == 0u) {
        atomicStore(&count, 100u);
        atomicStore(&highest, 0u);
    }
    tile[thread] = vec2<f32>(f32(a), f32(thread));
    halves[thread] = f16(f32(a & 0xfffu));
    workgroupBarrier();
    atomicAdd(&count, a & 0xffu);
    atomicMax(&highest, a);
    atomicAdd(&shared_count[0], 1u);
    let first = atomicCompareExchangeWeak(&shared_count[1], 0u, 1u);
    if (first.exchanged) {
        atomicAdd(&shared_count[2], 1u);
    }
    workgroupBarrier();
    put(atomicLoad(&count) ^ atomicLoad(&highest));
    put_float(tile[thread ^ 7u].x + tile[31u - thread].y + f32(halves[(thread + 5u) & 31u]));
    workgroupBarrier();
    if (thread == 9u) {
        tile[0].x = f32(a);
    }
    put_float(workgroupUniformLoad(&tile[0]).x);
}

@compute @workgroup_size(32)
fn language2(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) place: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) width: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    thread_of = id.x;
    let a = words[id.x];
    let b = words[id.x + p.n];
    put(groups.x + group.x * 16u + place.x * 256u + lane * 65536u);
    put(width + subgroup * 256u + subgroups * 65536u);
    integers(a, b);
    floats(a, b);
    control(a, b);
    together(a, lane, width);
    group_memory(a, thread);
}
