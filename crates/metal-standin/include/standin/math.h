// Functions of floating-point numbers, each for float, half and vectors of both.

namespace metal {

// NAME(x), NAME(x, y) and NAME(x, y, z), defined by an expression for float.
#define FUNCTION1(NAME, EXPRESSION)                                                                          \
    inline float NAME(float x) { return EXPRESSION; }                                                        \
    inline half NAME(half x) { return (half)NAME((float)x); }                                                \
    template <class T, int N>                                                                                \
    vec<T, N> NAME(vec<T, N> x) {                                                                            \
        for (int i = 0; i < N; i++) x[i] = NAME(x[i]);                                                       \
        return x;                                                                                            \
    }
#define FUNCTION2(NAME, EXPRESSION)                                                                          \
    inline float NAME(float x, float y) { return EXPRESSION; }                                               \
    inline half NAME(half x, half y) { return (half)NAME((float)x, (float)y); }                              \
    template <class T, int N>                                                                                \
    vec<T, N> NAME(vec<T, N> x, vec<T, N> y) {                                                               \
        for (int i = 0; i < N; i++) x[i] = NAME(x[i], y[i]);                                                 \
        return x;                                                                                            \
    }                                                                                                        \
    template <class T, int N>                                                                                \
    vec<T, N> NAME(vec<T, N> x, T y) {                                                                       \
        return NAME(x, vec<T, N>(y));                                                                        \
    }
#define FUNCTION3(NAME, EXPRESSION)                                                                          \
    inline float NAME(float x, float y, float z) { return EXPRESSION; }                                      \
    inline half NAME(half x, half y, half z) { return (half)NAME((float)x, (float)y, (float)z); }            \
    template <class T, int N>                                                                                \
    vec<T, N> NAME(vec<T, N> x, vec<T, N> y, vec<T, N> z) {                                                  \
        for (int i = 0; i < N; i++) x[i] = NAME(x[i], y[i], z[i]);                                           \
        return x;                                                                                            \
    }                                                                                                        \
    template <class T, int N>                                                                                \
    vec<T, N> NAME(vec<T, N> x, T y, T z) {                                                                  \
        return NAME(x, vec<T, N>(y), vec<T, N>(z));                                                          \
    }

FUNCTION1(acos, __builtin_acosf(x))
FUNCTION1(acosh, __builtin_acoshf(x))
FUNCTION1(asin, __builtin_asinf(x))
FUNCTION1(asinh, __builtin_asinhf(x))
FUNCTION1(atan, __builtin_atanf(x))
FUNCTION1(atanh, __builtin_atanhf(x))
FUNCTION1(ceil, __builtin_ceilf(x))
FUNCTION1(cos, __builtin_cosf(x))
FUNCTION1(cosh, __builtin_coshf(x))
FUNCTION1(exp, __builtin_expf(x))
FUNCTION1(exp2, __builtin_exp2f(x))
FUNCTION1(fabs, __builtin_fabsf(x))
FUNCTION1(floor, __builtin_floorf(x))
FUNCTION1(fract, x - __builtin_floorf(x))
FUNCTION1(log, __builtin_logf(x))
FUNCTION1(log2, __builtin_log2f(x))
FUNCTION1(rint, __builtin_rintf(x))
FUNCTION1(round, __builtin_roundf(x))
FUNCTION1(rsqrt, 1.0f / __builtin_sqrtf(x))
FUNCTION1(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))
FUNCTION1(sin, __builtin_sinf(x))
FUNCTION1(sinh, __builtin_sinhf(x))
FUNCTION1(sqrt, __builtin_sqrtf(x))
FUNCTION1(tan, __builtin_tanf(x))
FUNCTION1(tanh, __builtin_tanhf(x))
FUNCTION1(trunc, __builtin_truncf(x))
FUNCTION2(atan2, __builtin_atan2f(x, y))
FUNCTION2(copysign, __builtin_copysignf(x, y))
FUNCTION2(fmax, __builtin_fmaxf(x, y))
FUNCTION2(fmin, __builtin_fminf(x, y))
FUNCTION2(fmod, __builtin_fmodf(x, y))
FUNCTION2(pow, __builtin_powf(x, y))
FUNCTION2(powr, __builtin_powf(x, y))
FUNCTION2(step, (y < x ? 0.0f : 1.0f))
FUNCTION3(fma, __builtin_fmaf(x, y, z))
FUNCTION3(mix, x + (y - x) * z)

// These have forms for integers too.
FUNCTION1(abs, __builtin_fabsf(x))
FUNCTION1(sign, (x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x))
FUNCTION2(max, __builtin_fmaxf(x, y))
FUNCTION2(min, __builtin_fminf(x, y))
FUNCTION3(clamp, __builtin_fminf(__builtin_fmaxf(x, y), z))

#undef FUNCTION1
#undef FUNCTION2
#undef FUNCTION3

inline float smoothstep(float low, float high, float x) {
    float t = saturate((x - low) / (high - low));
    return t * t * (3.0f - 2.0f * t);
}
inline float ldexp(float x, int e) { return __builtin_ldexpf(x, e); }
inline half ldexp(half x, int e) { return (half)ldexp((float)x, e); }
inline float frexp(float x, thread int& e) { return __builtin_frexpf(x, &e); }
inline float modf(float x, thread float& whole) {
    whole = trunc(x);
    return x - whole;
}

template <class T, int N>
T dot(vec<T, N> x, vec<T, N> y) {
    T sum = x[0] * y[0];
    for (int i = 1; i < N; i++) sum += x[i] * y[i];
    return sum;
}
template <class T, int N>
T length_squared(vec<T, N> x) {
    return dot(x, x);
}
template <class T, int N>
T length(vec<T, N> x) {
    return sqrt(dot(x, x));
}
template <class T, int N>
T distance(vec<T, N> x, vec<T, N> y) {
    return length(x - y);
}
template <class T, int N>
vec<T, N> normalize(vec<T, N> x) {
    return x * rsqrt(dot(x, x));
}

// Bytes and 16-bit numbers that stand for fractions. Packing rounds to the nearest.
inline float4 unpack_snorm4x8_to_float(uint x) {
    return max(standin_cast<float4>(__builtin_bit_cast(char4, x)) / 127.0f, float4(-1.0f));
}
inline float4 unpack_unorm4x8_to_float(uint x) {
    return standin_cast<float4>(__builtin_bit_cast(uchar4, x)) / 255.0f;
}
inline float2 unpack_snorm2x16_to_float(uint x) {
    return max(standin_cast<float2>(__builtin_bit_cast(short2, x)) / 32767.0f, float2(-1.0f));
}
inline float2 unpack_unorm2x16_to_float(uint x) {
    return standin_cast<float2>(__builtin_bit_cast(ushort2, x)) / 65535.0f;
}
inline uint pack_float_to_snorm4x8(float4 x) {
    return __builtin_bit_cast(uint, standin_cast<char4>(rint(clamp(x, -1.0f, 1.0f) * 127.0f)));
}
inline uint pack_float_to_unorm4x8(float4 x) {
    return __builtin_bit_cast(uint, standin_cast<uchar4>(rint(saturate(x) * 255.0f)));
}
inline uint pack_float_to_snorm2x16(float2 x) {
    return __builtin_bit_cast(uint, standin_cast<short2>(rint(clamp(x, -1.0f, 1.0f) * 32767.0f)));
}
inline uint pack_float_to_unorm2x16(float2 x) {
    return __builtin_bit_cast(uint, standin_cast<ushort2>(rint(saturate(x) * 65535.0f)));
}

}  // namespace metal
