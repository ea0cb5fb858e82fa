// Scalars and vectors: names, constructors, conversions.

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;

namespace metal {

using ::uchar;
using ::uint;
using ::ulong;
using ::ushort;

template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));

// What a comparison gives, and what chooses: a number that is 0 or not, or a vector of those.
template <class T>
struct element {
    typedef T type;
    static constexpr __constant int length = 1;
};
template <class T, int N>
struct element<vec<T, N>> {
    typedef T type;
    static constexpr __constant int length = N;
};

// Conversion of a number, or of every element of a vector.
template <class To>
struct converter {
    template <class From>
    static To convert(From x) {
        return (To)x;
    }
};
template <class To, int N>
struct converter<vec<To, N>> {
    template <class From>
    static vec<To, N> convert(From x) {
        return (To)x;
    }
    template <class From>
    static vec<To, N> convert(vec<From, N> x) {
        return __builtin_convertvector(x, vec<To, N>);
    }
};
template <class To, class From>
To standin_cast(From x) {
    return converter<To>::convert(x);
}

// Elements of a vector from numbers and shorter vectors, one after the other.
template <class T, int N>
struct gather {
    vec<T, N> result;
    int at;

    template <class U>
    void add(U x) {
        result[at++] = (T)x;
    }
    template <class U, int M>
    void add(vec<U, M> x) {
        for (int i = 0; i < M; i++) result[at++] = (T)x[i];
    }
    void all() {}
    template <class First, class... Rest>
    void all(First first, Rest... rest) {
        add(first);
        all(rest...);
    }
};
template <class T, int N>
struct maker {
    template <class U>
    static vec<T, N> make(U x) {
        return standin_cast<vec<T, N>>(x);
    }
    template <class A, class B, class... Rest>
    static vec<T, N> make(A a, B b, Rest... rest) {
        gather<T, N> g = {vec<T, N>(0), 0};
        g.all(a, b, rest...);
        return g.result;
    }
};

#define VECTOR(T, N)                                                                                         \
    typedef vec<T, N> T##N;                                                                                  \
    typedef T packed_##T##N __attribute__((ext_vector_type(N), aligned(sizeof(T))));                         \
    template <class... Parts>                                                                                \
    T##N make_##T##N(Parts... parts) {                                                                       \
        return maker<T, N>::make(parts...);                                                                  \
    }
#define VECTORS(T) VECTOR(T, 2) VECTOR(T, 3) VECTOR(T, 4)
VECTORS(char)
VECTORS(uchar)
VECTORS(short)
VECTORS(ushort)
VECTORS(int)
VECTORS(uint)
VECTORS(half)
VECTORS(float)
VECTORS(long)
VECTORS(ulong)
#undef VECTORS
#undef VECTOR

// Columns of vectors, one after the other.
template <class T, int C, int R>
struct matrix {
    vec<T, R> columns[C];

    matrix() = default;
    template <class... Rest>
    matrix(vec<T, R> first, Rest... rest) : columns{first, rest...} {}
    vec<T, R>& operator[](int i) { return columns[i]; }
    const vec<T, R>& operator[](int i) const { return columns[i]; }
};
#define MATRICES(T, C)                                                                                       \
    typedef matrix<T, C, 2> T##C##x2;                                                                        \
    typedef matrix<T, C, 3> T##C##x3;                                                                        \
    typedef matrix<T, C, 4> T##C##x4;
MATRICES(half, 2)
MATRICES(half, 3)
MATRICES(half, 4)
MATRICES(float, 2)
MATRICES(float, 3)
MATRICES(float, 4)
#undef MATRICES

// Vectors have no elements of type bool here: a comparison gives integers, all of whose bits are set or none.
#define BOOLEANS(N)                                                                                          \
    typedef int##N bool##N;                                                                                  \
    template <class... Parts>                                                                                \
    bool##N make_bool##N(Parts... parts) {                                                                   \
        return maker<int, N>::make(parts...) != 0;                                                           \
    }
BOOLEANS(2)
BOOLEANS(3)
BOOLEANS(4)
#undef BOOLEANS

}  // namespace metal

// The same bits as another type.
template <class To, class From>
To as_type(From x) {
    return __builtin_bit_cast(To, x);
}

// Metal knows these without their namespace.
using namespace metal;
