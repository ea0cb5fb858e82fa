// gemv_pairs.nf4.16.pow2.words.f32.8.to_f32.2x1x128: LOWBIT_UPDATE_SNAPSHOTS=1 cargo test writes this file anew.
// language: metal2.4
#include <metal_stdlib>
#include <simd/simd.h>

using metal::uint;

typedef uint type_6[1];
typedef float type_7[1];
struct Params {
    uint n;
    uint k;
    uint row_words;
    uint row_vectors;
    uint row_bytes;
    uint block_size;
    uint block_shift;
    uint blocks_per_row;
    uint nested_size;
    uint zero;
    uint down;
    uint up;
    uint m;
    uint row_x;
    uint first_x;
    uint row_y;
    uint first_y;
};
struct type_8 {
    float inner[16];
};
typedef metal::float2 X2_;
typedef metal::float4 X4_;
typedef metal::float2x4 X8_;
typedef X8_ type_10[1];
struct type_11 {
    metal::float2 inner[2048];
};
constant uint BITS = 4u;
constant uint MASK = 15u;
constant uint PER_CODE = 1u;
constant uint RADIX = 1u;
constant uint RADIX_DIGITS = 1u;
constant bool IS_RADIX = false;
constant bool HIGH_FIRST = true;
constant uint HIGH_SHIFT = 4u;
constant bool FLAT = true;
constant uint STACKED = 1u;
constant bool POW2_ = true;
constant bool WORDS = true;
constant bool DENSE = false;
constant bool HAS_MEAN = false;
constant bool HAS_UNIT = false;
constant float UNIT = 1.0;
constant uint GROUP = 128u;
constant uint REPLICAS = 8u;
constant uint PAIRS = 2048u;
constant uint BATCH = 1u;
constant uint ROWS = 2u;
constant bool IS_GATED = false;

bool is_nan(
    float x
) {
    return (as_type<uint>(x) & 2147483647u) > 2139095040u;
}

uint bf16_bits(
    float x_1
) {
    uint bits_1 = as_type<uint>(x_1);
    uint rounded_1 = ((bits_1 + 32767u) + ((bits_1 >> 16u) & 1u)) >> 16u;
    bool _e15 = is_nan(x_1);
    return _e15 ? ((bits_1 >> 16u) | 64u) : rounded_1;
}

metal::uint4 bf16_eight(
    metal::float4 a,
    metal::float4 b
) {
    metal::uint4 low_1 = as_type<metal::uint4>(a);
    metal::uint4 high_1 = as_type<metal::uint4>(b);
    metal::uint4 larger = metal::max(low_1 & metal::uint4(2147483647u), high_1 & metal::uint4(2147483647u));
    if (metal::max(metal::max(larger.x, larger.y), metal::max(larger.z, larger.w)) > 2139095040u) {
        uint _e21 = bf16_bits(a.x);
        uint _e23 = bf16_bits(a.y);
        uint _e28 = bf16_bits(a.z);
        uint _e30 = bf16_bits(a.w);
        uint _e35 = bf16_bits(b.x);
        uint _e37 = bf16_bits(b.y);
        uint _e42 = bf16_bits(b.z);
        uint _e44 = bf16_bits(b.w);
        return metal::uint4(_e21 | (_e23 << 16u), _e28 | (_e30 << 16u), _e35 | (_e37 << 16u), _e42 | (_e44 << 16u));
    }
    metal::uint4 l = (low_1 + metal::uint4(32767u)) + ((low_1 >> metal::uint4(16u)) & metal::uint4(1u));
    metal::uint4 h = (high_1 + metal::uint4(32767u)) + ((high_1 >> metal::uint4(16u)) & metal::uint4(1u));
    metal::uint4 evens = metal::uint4(l.xz, h.xz) >> metal::uint4(16u);
    return evens | (metal::uint4(l.yw, h.yw) & metal::uint4(4294901760u));
}

uint f16_bits(
    float x_2
) {
    bool local = {};
    bool local_1 = {};
    uint bits_2 = as_type<uint>(x_2);
    uint sign = (bits_2 >> 16u) & 32768u;
    uint magnitude = bits_2 & 2147483647u;
    uint normal = metal::min((((magnitude - 939524096u) + 4095u) + ((magnitude >> 13u) & 1u)) >> 13u, 31744u);
    uint drop = metal::min(126u - (magnitude >> 23u), 31u);
    uint significand = (magnitude & 8388607u) | 8388608u;
    uint kept = significand >> drop;
    uint rest = significand & ((1u << drop) - 1u);
    uint half_ = 1u << (drop - 1u);
    if (!((rest > half_))) {
        if (rest == half_) {
            local_1 = (kept & 1u) == 1u;
        } else {
            local_1 = false;
        }
        bool _e53 = local_1;
        local = _e53;
    } else {
        local = true;
    }
    bool _e55 = local;
    uint up_1 = static_cast<uint>(_e55);
    uint small = (drop > 24u) ? 0u : (kept + up_1);
    uint finite = (magnitude >= 947912704u) ? normal : small;
    bool _e66 = is_nan(x_2);
    return sign | (_e66 ? 32256u : finite);
}

float f16_value(
    uint bits
) {
    uint magnitude_1 = bits & 32767u;
    float normal_1 = as_type<float>((magnitude_1 >= 31744u) ? ((magnitude_1 << 13u) + 1879048192u) : ((magnitude_1 << 13u) + 939524096u));
    float value_1 = (magnitude_1 < 1024u) ? (static_cast<float>(magnitude_1) * 0.000000059604645) : normal_1;
    return as_type<float>(as_type<uint>(value_1) | ((bits & 32768u) << 16u));
}

metal::float2 silu(
    metal::float2 x_3
) {
    metal::float2 large = metal::float2(88.0);
    metal::float2 e = metal::exp(-(metal::min(metal::abs(x_3), large)));
    return metal::select((x_3 * metal::select(e, metal::float2(1.0), x_3 >= metal::float2 {})) / (metal::float2(1.0) + e), x_3, x_3 > large);
}

uint code_shift(
    uint bit
) {
    if (HIGH_FIRST) {
        return ((bit & 24u) + HIGH_SHIFT) - (bit & 7u);
    }
    return bit & 31u;
}

uint block_of(
    uint row,
    uint col,
    constant Params& p
) {
    if (FLAT) {
        uint _e5 = p.k;
        uint at = (row * _e5) + col;
        uint _e10 = p.block_size;
        uint _e14 = p.block_shift;
        return POW2_ ? (at >> _e14) : (at / _e10);
    }
    uint _e20 = p.blocks_per_row;
    uint _e24 = p.block_size;
    uint _e28 = p.block_shift;
    return (row * _e20) + (POW2_ ? (col >> _e28) : (col / _e24));
}

float rounded(
    float x_4,
    constant Params& p
) {
    uint _e4 = p.zero;
    return as_type<float>(as_type<uint>(x_4) ^ _e4);
}

metal::float4 rounded4_(
    metal::float4 x_5,
    constant Params& p
) {
    uint _e4 = p.zero;
    return as_type<metal::float4>(as_type<metal::uint4>(x_5) ^ metal::uint4(_e4));
}

metal::float4 finished4_(
    metal::float4 values,
    float scale,
    float mean,
    constant Params& p
) {
    metal::float4 w = {};
    metal::float4 _e4 = rounded4_(values * scale, p);
    w = _e4;
    if (HAS_UNIT) {
        metal::float4 _e7 = w;
        metal::float4 _e10 = rounded4_(_e7 * UNIT, p);
        w = _e10;
    }
    if (HAS_MEAN) {
        metal::float4 _e12 = w;
        w = _e12 + metal::float4(mean);
    }
    metal::float4 _e15 = w;
    return _e15;
}

float scale_from(
    float raw,
    uint block
) {
    return raw;
}

float raw_scale(
    uint block_1,
    device type_7 const& scales
) {
    float _e3 = scales[block_1];
    return _e3;
}

float scale_of(
    uint block_2,
    device type_7 const& scales
) {
    float _e1 = raw_scale(block_2, scales);
    float _e2 = scale_from(_e1, block_2);
    return _e2;
}

float mean_of(
    uint block_3
) {
    return 0.0;
}

float finish(
    float value,
    uint block_4,
    device type_7 const& scales,
    constant Params& p
) {
    float _e3 = scale_of(block_4, scales);
    float _e4 = mean_of(block_4);
    metal::float4 _e5 = finished4_(metal::float4(value), _e3, _e4, p);
    return _e5.x;
}

void load_table(
    uint thread_1,
    device type_7 const& book,
    threadgroup type_8& table
) {
    uint i_1 = {};
    i_1 = thread_1;
    bool loop_init = true;
    while(true) {
        if (!loop_init) {
            uint _e12 = i_1;
            i_1 = _e12 + GROUP;
        }
        loop_init = false;
        uint _e2 = i_1;
        if (_e2 < 16u) {
        } else {
            break;
        }
        {
            uint _e6 = i_1;
            uint _e9 = i_1;
            float _e11 = book[_e9];
            table.inner[_e6] = _e11;
        }
    }
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    return;
}

float value_at(
    uint code,
    uint i_2,
    threadgroup type_8& table
) {
    float _e7 = table.inner[(code * PER_CODE) + i_2];
    return _e7;
}

metal::float2 two(
    uint w_1
) {
    return metal::float2(as_type<float>(w_1), 0.0);
}

metal::float4 four(
    metal::uint2 v
) {
    return metal::float4 {};
}

float dense_at(
    uint i_3
) {
    return 0.0;
}

metal::float4 dense4_(
    uint i_4
) {
    return metal::float4 {};
}

uint code_byte(
    uint byte,
    device type_6 const& codes
) {
    uint _e5 = codes[byte >> 2u];
    return (_e5 >> ((byte & 3u) * 8u)) & 255u;
}

uint code_at(
    uint byte_1,
    uint index,
    device type_6 const& codes
) {
    uint digits = {};
    uint i_5 = {};
    bool local_2 = {};
    uint window = 0u;
    uint i_6 = {};
    if (IS_RADIX) {
        uint _e6 = code_byte(byte_1 + (index / RADIX_DIGITS), codes);
        digits = _e6;
        i_5 = index % RADIX_DIGITS;
        bool loop_init_1 = true;
        while(true) {
            if (!loop_init_1) {
                uint _e18 = i_5;
                i_5 = _e18 - 1u;
            }
            loop_init_1 = false;
            uint _e11 = i_5;
            if (_e11 > 0u) {
            } else {
                break;
            }
            {
                uint _e14 = digits;
                digits = _e14 / RADIX;
            }
        }
        uint _e20 = digits;
        return _e20 % RADIX;
    }
    uint bit_2 = index * BITS;
    uint first_7 = byte_1 + (bit_2 >> 3u);
    if (false) {
        uint _e29 = code_byte(first_7, codes);
        uint _e32 = code_byte(first_7 + 1u, codes);
        return _e29 | (_e32 << 8u);
    }
    if (false) {
        local_2 = true;
    } else {
        local_2 = true;
    }
    bool _e41 = local_2;
    if (_e41) {
        uint within = HIGH_FIRST ? (HIGH_SHIFT - (bit_2 & 7u)) : (bit_2 & 7u);
        uint _e50 = code_byte(first_7, codes);
        return (_e50 >> within) & MASK;
    }
    uint last = byte_1 + (((bit_2 + BITS) - 1u) >> 3u);
    i_6 = first_7;
    bool loop_init_2 = true;
    while(true) {
        if (!loop_init_2) {
            uint _e76 = i_6;
            i_6 = _e76 + 1u;
        }
        loop_init_2 = false;
        uint _e64 = i_6;
        if (_e64 <= last) {
        } else {
            break;
        }
        {
            uint _e66 = window;
            uint _e67 = i_6;
            uint _e68 = code_byte(_e67, codes);
            uint _e69 = i_6;
            window = _e66 | (_e68 << ((_e69 - first_7) * 8u));
        }
    }
    uint _e78 = window;
    return (_e78 >> (bit_2 & 7u)) & MASK;
}

metal::float4 four_values(
    uint word,
    uint bit_1,
    threadgroup type_8& table
) {
    uint _e2 = code_shift(bit_1);
    float _e7 = value_at((word >> _e2) & MASK, 0u, table);
    uint _e10 = code_shift(bit_1 + BITS);
    float _e15 = value_at((word >> _e10) & MASK, 0u, table);
    uint _e18 = code_shift(bit_1 + 8u);
    float _e23 = value_at((word >> _e18) & MASK, 0u, table);
    uint _e26 = code_shift(bit_1 + 12u);
    float _e31 = value_at((word >> _e26) & MASK, 0u, table);
    return metal::float4(_e7, _e15, _e23, _e31);
}

float weight(
    uint row_1,
    uint col_1,
    device type_6 const& codes,
    device type_7 const& scales,
    constant Params& p,
    threadgroup type_8& table
) {
    uint first_1 = {};
    uint index_1 = {};
    if (DENSE) {
        uint _e5 = p.k;
        float _e8 = dense_at((row_1 * _e5) + col_1);
        return _e8;
    }
    uint _e12 = p.row_bytes;
    first_1 = false ? (row_1 * _e12) : 0u;
    uint _e20 = p.k;
    index_1 = col_1 + (FLAT ? (row_1 * _e20) : 0u);
    if (false) {
        uint _e29 = p.n;
        uint rows = _e29 / STACKED;
        uint _e35 = p.k;
        first_1 = (row_1 % rows) * _e35;
        index_1 = (col_1 * STACKED) + (row_1 / rows);
    }
    uint _e41 = first_1;
    uint _e42 = index_1;
    uint _e45 = code_at(_e41, _e42 / PER_CODE, codes);
    uint _e46 = index_1;
    float _e49 = value_at(_e45, _e46 % PER_CODE, table);
    uint _e50 = block_of(row_1, col_1, p);
    float _e51 = finish(_e49, _e50, scales, p);
    return _e51;
}

metal::float4 weights4_(
    uint row_2,
    uint col_2,
    device type_6 const& codes,
    device type_7 const& scales,
    constant Params& p,
    threadgroup type_8& table
) {
    bool local_3 = {};
    metal::float4 w_2 = {};
    uint i_7 = 0u;
    metal::float4 w_3 = {};
    if (DENSE) {
        local_3 = WORDS;
    } else {
        local_3 = false;
    }
    bool _e7 = local_3;
    if (_e7) {
        uint _e10 = p.k;
        metal::float4 _e13 = dense4_((row_2 * _e10) + col_2);
        return _e13;
    }
    if (false) {
        bool loop_init_3 = true;
        while(true) {
            if (!loop_init_3) {
                uint _e33 = i_7;
                i_7 = _e33 + 1u;
            }
            loop_init_3 = false;
            uint _e18 = i_7;
            if (_e18 < 4u) {
            } else {
                break;
            }
            {
                uint _e21 = i_7;
                uint _e25 = p.k;
                if ((col_2 + _e21) < _e25) {
                    uint _e27 = i_7;
                    uint _e29 = i_7;
                    float _e31 = weight(row_2, col_2 + _e29, codes, scales, p, table);
                    w_2[_e27] = _e31;
                }
            }
        }
        metal::float4 _e35 = w_2;
        return _e35;
    }
    uint bit_3 = col_2 * BITS;
    uint _e38 = block_of(row_2, col_2, p);
    uint _e42 = p.row_words;
    uint _e48 = codes[(row_2 * _e42) + (bit_3 >> 5u)];
    metal::float4 _e49 = four_values(_e48, bit_3, table);
    w_3 = _e49;
    metal::float4 _e51 = w_3;
    float _e52 = scale_of(_e38, scales);
    w_3 = _e51 * (_e52 * UNIT);
    if (HAS_MEAN) {
        metal::float4 _e57 = w_3;
        float _e58 = mean_of(_e38);
        w_3 = _e57 + metal::float4(_e58);
    }
    metal::float4 _e61 = w_3;
    return _e61;
}

metal::float4 exact4_(
    uint row_3,
    uint col_3,
    device type_6 const& codes,
    device type_7 const& scales,
    constant Params& p,
    threadgroup type_8& table
) {
    if (DENSE) {
        uint _e5 = p.k;
        metal::float4 _e8 = dense4_((row_3 * _e5) + col_3);
        return _e8;
    }
    uint bit_4 = col_3 * BITS;
    uint _e11 = block_of(row_3, col_3, p);
    uint _e15 = p.row_words;
    uint _e21 = codes[(row_3 * _e15) + (bit_4 >> 5u)];
    metal::float4 _e22 = four_values(_e21, bit_4, table);
    float _e23 = scale_of(_e11, scales);
    float _e24 = mean_of(_e11);
    metal::float4 _e25 = finished4_(_e22, _e23, _e24, p);
    return _e25;
}

metal::float2 x_unpack(
    X2_ v_1
) {
    return v_1;
}

metal::float4 x_unpack4_(
    X4_ v_2
) {
    return v_2;
}

X2_ x_pack(
    metal::float2 v_3
) {
    return v_3;
}

metal::float4 x_low(
    X8_ v_4
) {
    return v_4[0];
}

metal::float4 x_high(
    X8_ v_5
) {
    return v_5[1];
}

X8_ x_eight(
    metal::float4 a_1,
    metal::float4 b_1
) {
    return X8_(a_1, b_1);
}

X8_ x_load(
    uint i_8,
    device type_10 const& x_6
) {
    X8_ _e3 = x_6[i_8];
    return _e3;
}

void prepare(
    uint thread_2,
    uint lane_1,
    uint width_1,
    uint subgroup_1,
    uint subgroups_1
) {
    return;
}

metal::float2 with_bias(
    metal::float2 v_6,
    uint n
) {
    return v_6;
}

metal::float2 y_added(
    uint i_9,
    bool second
) {
    return metal::float2 {};
}

void y_put(
    uint i_10,
    metal::float2 v_7,
    metal::float2 more,
    bool second_1,
    device type_7& y
) {
    y[i_10] = v_7.x;
    if (second_1) {
        y[i_10 + 1u] = v_7.y;
        return;
    } else {
        return;
    }
}

void y_store(
    uint i_11,
    metal::float2 v_8,
    bool second_2,
    device type_7& y
) {
    metal::float2 _e3 = y_added(i_11, second_2);
    y_put(i_11, v_8, _e3, second_2, y);
    return;
}

uint outs(
    constant Params& p
) {
    uint _e2 = p.n;
    return _e2;
}

uint x_row(
    uint b_2,
    uint place,
    constant Params& p
) {
    uint _e4 = p.first_x;
    uint _e11 = p.m;
    return metal::min((_e4 + (place * BATCH)) + b_2, _e11 - 1u);
}

uint part_row(
    uint row_4,
    uint place_1
) {
    return row_4;
}

bool has_y(
    uint row_5,
    uint b_3,
    uint place_2,
    constant Params& p
) {
    bool local_4 = {};
    uint _e5 = p.first_x;
    uint _e12 = p.m;
    if (((_e5 + (place_2 * BATCH)) + b_3) < _e12) {
        uint _e18 = p.n;
        local_4 = row_5 < _e18;
    } else {
        local_4 = false;
    }
    bool _e21 = local_4;
    return _e21;
}

uint y_at(
    uint row_6,
    uint b_4,
    uint place_3,
    constant Params& p
) {
    uint _e5 = p.first_x;
    uint _e12 = p.row_y;
    uint _e16 = p.first_y;
    return ((((_e5 + (place_3 * BATCH)) + b_4) * _e12) + _e16) + row_6;
}

uint row_of(
    uint first_2,
    uint r,
    uint place_4,
    constant Params& p
) {
    if (IS_GATED) {
        uint _e10 = outs(p);
        uint _e17 = part_row(((first_2 / 2u) + (r % 2u)) + ((r >= 2u) ? (_e10 / 2u) : 0u), place_4);
        return _e17;
    }
    uint _e19 = part_row(first_2 + r, place_4);
    return _e19;
}

bool has_second(
    uint row_7,
    uint b_5,
    uint place_5,
    constant Params& p
) {
    bool local_5 = {};
    uint _e5 = outs(p);
    if ((row_7 + 1u) < _e5) {
        bool _e11 = has_y(row_7 + 1u, b_5, place_5, p);
        local_5 = _e11;
    } else {
        local_5 = false;
    }
    bool _e13 = local_5;
    return _e13;
}

metal::float2 added(
    uint first_3,
    uint r_1,
    uint b_6,
    uint place_6,
    constant Params& p
) {
    uint row_8 = first_3 + r_1;
    uint _e6 = y_at(row_8, b_6, place_6, p);
    bool _e7 = has_y(row_8, b_6, place_6, p);
    bool _e9 = has_second(row_8, b_6, place_6, p);
    metal::float2 _e10 = y_added(_e7 ? _e6 : 0u, _e9);
    return _e10;
}

void put_added(
    uint first_4,
    uint r_2,
    uint b_7,
    uint place_7,
    metal::float2 sum,
    metal::float2 more_1,
    constant Params& p,
    device type_7& y
) {
    uint row_9 = first_4 + r_2;
    bool _e7 = has_y(row_9, b_7, place_7, p);
    if (_e7) {
        uint _e8 = y_at(row_9, b_7, place_7, p);
        metal::float2 _e9 = with_bias(sum, row_9);
        bool _e10 = has_second(row_9, b_7, place_7, p);
        y_put(_e8, _e9, more_1, _e10, y);
        return;
    } else {
        return;
    }
}

void put(
    uint first_5,
    uint r_3,
    uint b_8,
    uint place_8,
    metal::float2 sum_1,
    constant Params& p,
    device type_7& y
) {
    metal::float2 _e5 = added(first_5, r_3, b_8, place_8, p);
    put_added(first_5, r_3, b_8, place_8, sum_1, _e5, p, y);
    return;
}

void put_gated(
    uint first_6,
    uint place_9,
    metal::float2 gate,
    metal::float2 up,
    constant Params& p,
    device type_7& y
) {
    uint row_10 = first_6 / 2u;
    uint _e6 = outs(p);
    if (first_6 < _e6) {
        metal::float2 _e8 = with_bias(gate, row_10);
        X2_ _e9 = x_pack(_e8);
        metal::float2 _e10 = x_unpack(_e9);
        uint _e11 = outs(p);
        metal::float2 _e15 = with_bias(up, row_10 + (_e11 / 2u));
        X2_ _e16 = x_pack(_e15);
        metal::float2 _e17 = x_unpack(_e16);
        uint _e18 = outs(p);
        metal::float2 _e23 = silu(_e10);
        y_store((place_9 * (_e18 / 2u)) + row_10, _e23 * _e17, true, y);
        return;
    } else {
        return;
    }
}

float dot8_(
    uint word_1,
    metal::float4 low,
    metal::float4 high,
    uint replica,
    threadgroup type_11& pairs
) {
    float sum_2 = {};
    metal::float2 w0_ = pairs.inner[((word_1 & 255u) * REPLICAS) + replica];
    metal::float2 w1_ = pairs.inner[(((word_1 >> 8u) & 255u) * REPLICAS) + replica];
    metal::float2 w2_ = pairs.inner[(((word_1 >> 16u) & 255u) * REPLICAS) + replica];
    metal::float2 w3_ = pairs.inner[((word_1 >> 24u) * REPLICAS) + replica];
    sum_2 = w0_.x * low.x;
    float _e46 = sum_2;
    sum_2 = metal::fma(w0_.y, low.y, _e46);
    float _e50 = sum_2;
    sum_2 = metal::fma(w1_.x, low.z, _e50);
    float _e54 = sum_2;
    sum_2 = metal::fma(w1_.y, low.w, _e54);
    float _e58 = sum_2;
    sum_2 = metal::fma(w2_.x, high.x, _e58);
    float _e62 = sum_2;
    sum_2 = metal::fma(w2_.y, high.y, _e62);
    float _e66 = sum_2;
    sum_2 = metal::fma(w3_.x, high.z, _e66);
    float _e70 = sum_2;
    return metal::fma(w3_.y, high.w, _e70);
}

struct gemv_pairsInput {
};
[[max_total_threads_per_threadgroup(128)]] kernel void gemv_pairs(
  metal::uint3 group [[threadgroup_position_in_grid]]
, metal::uint3 groups [[threadgroups_per_grid]]
, uint thread_ [[thread_index_in_threadgroup]]
, uint lane [[thread_index_in_simdgroup]]
, uint width [[threads_per_simdgroup]]
, uint subgroup [[simdgroup_index_in_threadgroup]]
, uint subgroups [[simdgroups_per_threadgroup]]
, device type_6 const& codes [[buffer(0)]]
, device type_7 const& scales [[buffer(1)]]
, device type_7 const& book [[buffer(2)]]
, constant Params& p [[buffer(5)]]
, device type_10 const& x_6 [[buffer(3)]]
, device type_7& y [[buffer(4)]]
) {
    threadgroup type_11 pairs;
    uint i = {};
    uint first = {};
    uint word_0_0_ = {};
    uint word_0_1_ = {};
    uint word_0_2_ = {};
    uint word_0_3_ = {};
    float sum_0_0_ = {};
    uint word_1_0_ = {};
    uint word_1_1_ = {};
    uint word_1_2_ = {};
    uint word_1_3_ = {};
    float sum_1_0_ = {};
    uint c = {};
    uint replica_1 = thread_ % REPLICAS;
    uint words = p.row_words;
    uint step = (groups.x * subgroups) * ROWS;
    uint start = ((group.x * subgroups) + subgroup) * ROWS;
    i = thread_;
    bool loop_init_4 = true;
    while(true) {
        if (!loop_init_4) {
            uint _e45 = i;
            i = _e45 + GROUP;
        }
        loop_init_4 = false;
        uint _e22 = i;
        if (_e22 < PAIRS) {
        } else {
            break;
        }
        {
            uint _e25 = i;
            uint byte_2 = _e25 / REPLICAS;
            float high_2 = book[byte_2 >> 4u];
            float low_2 = book[byte_2 & 15u];
            uint _e39 = i;
            pairs.inner[_e39] = HIGH_FIRST ? metal::float2(high_2, low_2) : metal::float2(low_2, high_2);
        }
    }
    prepare(thread_, lane, width, subgroup, subgroups);
    metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    first = start;
    bool loop_init_5 = true;
    while(true) {
        if (!loop_init_5) {
            uint _e416 = first;
            first = _e416 + step;
        }
        loop_init_5 = false;
        uint _e49 = first;
        uint _e50 = outs(p);
        if (_e49 < _e50) {
        } else {
            break;
        }
        {
            uint _e52 = first;
            uint _e55 = row_of(_e52, 0u, group.y, p);
            uint _e58 = p.n;
            uint row_0_ = metal::min(_e55, _e58 - 1u);
            uint base_0_ = row_0_ * words;
            uint _e72 = codes[base_0_ + metal::min((0u * width) + lane, words - 1u)];
            word_0_0_ = _e72;
            uint _e83 = codes[base_0_ + metal::min((1u * width) + lane, words - 1u)];
            word_0_1_ = _e83;
            uint _e94 = codes[base_0_ + metal::min((2u * width) + lane, words - 1u)];
            word_0_2_ = _e94;
            uint _e105 = codes[base_0_ + metal::min((3u * width) + lane, words - 1u)];
            word_0_3_ = _e105;
            sum_0_0_ = 0.0;
            uint _e109 = first;
            uint _e112 = row_of(_e109, 1u, group.y, p);
            uint _e115 = p.n;
            uint row_1_ = metal::min(_e112, _e115 - 1u);
            uint base_1_ = row_1_ * words;
            uint _e129 = codes[base_1_ + metal::min((0u * width) + lane, words - 1u)];
            word_1_0_ = _e129;
            uint _e140 = codes[base_1_ + metal::min((1u * width) + lane, words - 1u)];
            word_1_1_ = _e140;
            uint _e151 = codes[base_1_ + metal::min((2u * width) + lane, words - 1u)];
            word_1_2_ = _e151;
            uint _e162 = codes[base_1_ + metal::min((3u * width) + lane, words - 1u)];
            word_1_3_ = _e162;
            sum_1_0_ = 0.0;
            uint _e168 = x_row(0u, group.y, p);
            uint x_0_ = _e168 * words;
            c = lane;
            bool loop_init_6 = true;
            while(true) {
                if (!loop_init_6) {
                    uint _e397 = c;
                    c = _e397 + (4u * width);
                }
                loop_init_6 = false;
                uint _e171 = c;
                if (_e171 < words) {
                } else {
                    break;
                }
                {
                    uint _e173 = c;
                    uint at_0_ = metal::min(_e173 + (0u * width), words - 1u);
                    uint _e180 = c;
                    uint ahead_0_ = metal::min(_e180 + (4u * width), words - 1u);
                    uint next_0_0_ = codes[base_0_ + ahead_0_];
                    uint _e193 = block_of(row_0_, at_0_ * 8u, p);
                    float _e194 = scale_of(_e193, scales);
                    uint _e195 = c;
                    float scale_0_0_ = ((_e195 + (0u * width)) < words) ? _e194 : 0.0;
                    uint next_1_0_ = codes[base_1_ + ahead_0_];
                    uint _e208 = block_of(row_1_, at_0_ * 8u, p);
                    float _e209 = scale_of(_e208, scales);
                    uint _e210 = c;
                    float scale_1_0_ = ((_e210 + (0u * width)) < words) ? _e209 : 0.0;
                    uint _e217 = c;
                    uint at_1_ = metal::min(_e217 + (1u * width), words - 1u);
                    uint _e224 = c;
                    uint ahead_1_ = metal::min(_e224 + (5u * width), words - 1u);
                    uint next_0_1_ = codes[base_0_ + ahead_1_];
                    uint _e237 = block_of(row_0_, at_1_ * 8u, p);
                    float _e238 = scale_of(_e237, scales);
                    uint _e239 = c;
                    float scale_0_1_ = ((_e239 + (1u * width)) < words) ? _e238 : 0.0;
                    uint next_1_1_ = codes[base_1_ + ahead_1_];
                    uint _e252 = block_of(row_1_, at_1_ * 8u, p);
                    float _e253 = scale_of(_e252, scales);
                    uint _e254 = c;
                    float scale_1_1_ = ((_e254 + (1u * width)) < words) ? _e253 : 0.0;
                    uint _e261 = c;
                    uint at_2_ = metal::min(_e261 + (2u * width), words - 1u);
                    uint _e268 = c;
                    uint ahead_2_ = metal::min(_e268 + (6u * width), words - 1u);
                    uint next_0_2_ = codes[base_0_ + ahead_2_];
                    uint _e281 = block_of(row_0_, at_2_ * 8u, p);
                    float _e282 = scale_of(_e281, scales);
                    uint _e283 = c;
                    float scale_0_2_ = ((_e283 + (2u * width)) < words) ? _e282 : 0.0;
                    uint next_1_2_ = codes[base_1_ + ahead_2_];
                    uint _e296 = block_of(row_1_, at_2_ * 8u, p);
                    float _e297 = scale_of(_e296, scales);
                    uint _e298 = c;
                    float scale_1_2_ = ((_e298 + (2u * width)) < words) ? _e297 : 0.0;
                    uint _e305 = c;
                    uint at_3_ = metal::min(_e305 + (3u * width), words - 1u);
                    uint _e312 = c;
                    uint ahead_3_ = metal::min(_e312 + (7u * width), words - 1u);
                    uint next_0_3_ = codes[base_0_ + ahead_3_];
                    uint _e325 = block_of(row_0_, at_3_ * 8u, p);
                    float _e326 = scale_of(_e325, scales);
                    uint _e327 = c;
                    float scale_0_3_ = ((_e327 + (3u * width)) < words) ? _e326 : 0.0;
                    uint next_1_3_ = codes[base_1_ + ahead_3_];
                    uint _e340 = block_of(row_1_, at_3_ * 8u, p);
                    float _e341 = scale_of(_e340, scales);
                    uint _e342 = c;
                    float scale_1_3_ = ((_e342 + (3u * width)) < words) ? _e341 : 0.0;
                    X8_ _e350 = x_load(x_0_ + at_0_, x_6);
                    metal::float4 _e351 = x_low(_e350);
                    metal::float4 _e352 = x_high(_e350);
                    uint _e353 = word_0_0_;
                    float _e354 = dot8_(_e353, _e351, _e352, replica_1, pairs);
                    float _e355 = sum_0_0_;
                    sum_0_0_ = metal::fma(_e354, scale_0_0_, _e355);
                    uint _e357 = word_1_0_;
                    float _e358 = dot8_(_e357, _e351, _e352, replica_1, pairs);
                    float _e359 = sum_1_0_;
                    sum_1_0_ = metal::fma(_e358, scale_1_0_, _e359);
                    word_0_0_ = next_0_0_;
                    word_1_0_ = next_1_0_;
                    X8_ _e362 = x_load(x_0_ + at_1_, x_6);
                    metal::float4 _e363 = x_low(_e362);
                    metal::float4 _e364 = x_high(_e362);
                    uint _e365 = word_0_1_;
                    float _e366 = dot8_(_e365, _e363, _e364, replica_1, pairs);
                    float _e367 = sum_0_0_;
                    sum_0_0_ = metal::fma(_e366, scale_0_1_, _e367);
                    uint _e369 = word_1_1_;
                    float _e370 = dot8_(_e369, _e363, _e364, replica_1, pairs);
                    float _e371 = sum_1_0_;
                    sum_1_0_ = metal::fma(_e370, scale_1_1_, _e371);
                    word_0_1_ = next_0_1_;
                    word_1_1_ = next_1_1_;
                    X8_ _e374 = x_load(x_0_ + at_2_, x_6);
                    metal::float4 _e375 = x_low(_e374);
                    metal::float4 _e376 = x_high(_e374);
                    uint _e377 = word_0_2_;
                    float _e378 = dot8_(_e377, _e375, _e376, replica_1, pairs);
                    float _e379 = sum_0_0_;
                    sum_0_0_ = metal::fma(_e378, scale_0_2_, _e379);
                    uint _e381 = word_1_2_;
                    float _e382 = dot8_(_e381, _e375, _e376, replica_1, pairs);
                    float _e383 = sum_1_0_;
                    sum_1_0_ = metal::fma(_e382, scale_1_2_, _e383);
                    word_0_2_ = next_0_2_;
                    word_1_2_ = next_1_2_;
                    X8_ _e386 = x_load(x_0_ + at_3_, x_6);
                    metal::float4 _e387 = x_low(_e386);
                    metal::float4 _e388 = x_high(_e386);
                    uint _e389 = word_0_3_;
                    float _e390 = dot8_(_e389, _e387, _e388, replica_1, pairs);
                    float _e391 = sum_0_0_;
                    sum_0_0_ = metal::fma(_e390, scale_0_3_, _e391);
                    uint _e393 = word_1_3_;
                    float _e394 = dot8_(_e393, _e387, _e388, replica_1, pairs);
                    float _e395 = sum_1_0_;
                    sum_1_0_ = metal::fma(_e394, scale_1_3_, _e395);
                    word_0_3_ = next_0_3_;
                    word_1_3_ = next_1_3_;
                }
            }
            float _e401 = sum_0_0_;
            float unnamed = metal::simd_sum(_e401);
            float total_0_0_ = unnamed * UNIT;
            float _e405 = sum_1_0_;
            float unnamed_1 = metal::simd_sum(_e405);
            float total_1_0_ = unnamed_1 * UNIT;
            if (lane == 0u) {
                uint _e411 = first;
                put(_e411, 0u, 0u, group.y, metal::float2(total_0_0_, total_1_0_), p, y);
            }
        }
    }
    return;
}
