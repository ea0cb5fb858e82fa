// Functions of integers, and those of truth values.

namespace metal {

// NAME for one integer type and its vectors.
#define FUNCTION1(T, NAME, EXPRESSION)                                                                       \
    inline T NAME(T x) { return (T)(EXPRESSION); }                                                           \
    template <int N>                                                                                         \
    vec<T, N> NAME(vec<T, N> x) {                                                                            \
        for (int i = 0; i < N; i++) x[i] = NAME(x[i]);                                                       \
        return x;                                                                                            \
    }
#define FUNCTION2(T, NAME, EXPRESSION)                                                                       \
    inline T NAME(T x, T y) { return (T)(EXPRESSION); }                                                      \
    template <int N>                                                                                         \
    vec<T, N> NAME(vec<T, N> x, vec<T, N> y) {                                                               \
        for (int i = 0; i < N; i++) x[i] = NAME(x[i], y[i]);                                                 \
        return x;                                                                                            \
    }
#define FUNCTION3(T, NAME, EXPRESSION)                                                                       \
    inline T NAME(T x, T y, T z) { return (T)(EXPRESSION); }                                                 \
    template <int N>                                                                                         \
    vec<T, N> NAME(vec<T, N> x, vec<T, N> y, vec<T, N> z) {                                                  \
        for (int i = 0; i < N; i++) x[i] = NAME(x[i], y[i], z[i]);                                           \
        return x;                                                                                            \
    }
#define ORDERED(T)                                                                                           \
    FUNCTION2(T, max, x < y ? y : x)                                                                         \
    FUNCTION2(T, min, y < x ? y : x)                                                                         \
    FUNCTION3(T, clamp, min(max(x, y), z))
ORDERED(char)
ORDERED(uchar)
ORDERED(short)
ORDERED(ushort)
ORDERED(int)
ORDERED(uint)
ORDERED(long)
ORDERED(ulong)
FUNCTION1(int, abs, x < 0 ? -x : x)
FUNCTION1(int, sign, (x > 0) - (x < 0))

// Bits of 32-bit numbers; of none, clz and ctz count all 32.
#define BITS(T)                                                                                              \
    FUNCTION1(T, clz, x == 0 ? 32 : __builtin_clz((uint)x))                                                  \
    FUNCTION1(T, ctz, x == 0 ? 32 : __builtin_ctz((uint)x))                                                  \
    FUNCTION1(T, popcount, __builtin_popcount((uint)x))                                                      \
    FUNCTION1(T, reverse_bits, __builtin_bitreverse32((uint)x))                                              \
    FUNCTION2(T, rotate, ((uint)x << (y & 31)) | ((uint)x >> (-y & 31)))
BITS(int)
BITS(uint)
FUNCTION2(int, mulhi, ((long)x * y) >> 32)
FUNCTION2(uint, mulhi, ((ulong)x * y) >> 32)

#undef BITS
#undef ORDERED
#undef FUNCTION1
#undef FUNCTION2
#undef FUNCTION3

inline uint extract_bits(uint x, uint offset, uint bits) {
    return bits == 0 ? 0 : x << (32 - offset - bits) >> (32 - bits);
}
inline int extract_bits(int x, uint offset, uint bits) {
    return bits == 0 ? 0 : x << (32 - offset - bits) >> (32 - bits);
}
inline uint insert_bits(uint base, uint insert, uint offset, uint bits) {
    uint mask = bits == 0 ? 0 : (~0u >> (32 - bits)) << offset;
    return (base & ~mask) | ((insert << offset) & mask);
}

// The second where the condition holds, else the first.
template <class T>
T select(T no, T yes, bool condition) {
    return condition ? yes : no;
}
template <class T, class C, int N>
vec<T, N> select(vec<T, N> no, vec<T, N> yes, vec<C, N> condition) {
    for (int i = 0; i < N; i++) no[i] = condition[i] ? yes[i] : no[i];
    return no;
}
template <class C, int N>
bool all(vec<C, N> x) {
    bool result = true;
    for (int i = 0; i < N; i++) result = result && x[i];
    return result;
}
template <class C, int N>
bool any(vec<C, N> x) {
    bool result = false;
    for (int i = 0; i < N; i++) result = result || x[i];
    return result;
}

}  // namespace metal
