// Operations of a simdgroup. Each waits for all its threads, so that a thread that does not come is noticed.

namespace metal {

// Bytes between what one thread brings to an exchange and what the next one does.
constexpr __constant uint standin_slot = 16;

// What the threads of a simdgroup brought. Of a thread that does not exist Metal says nothing; here it brought
// bits that are all set.
template <class T>
struct standin_values {
    const uchar* slots;
    uint lane, width;  // this thread's place, and how many threads there are

    T operator[](uint i) const { return *(const T*)(slots + (i < width ? i : width) * standin_slot); }
};
template <class T>
standin_values<T> standin_gather(T value, uint site) {
    static_assert(sizeof(T) <= standin_slot, "a value is larger than what threads can exchange");
    const uint* head = (const uint*)standin_exchange(&value, sizeof(T), site);
    return {(const uchar*)head + standin_slot, head[0], head[1]};
}

// Reductions, in the order of the threads.
#define REDUCTION(NAME, EXPRESSION)                                                                          \
    template <class T>                                                                                       \
    T NAME(T value, uint site = __builtin_LINE()) {                                                          \
        standin_values<T> all = standin_gather(value, site);                                                 \
        T a = all[0];                                                                                        \
        for (uint i = 1; i < all.width; i++) {                                                               \
            T b = all[i];                                                                                    \
            a = EXPRESSION;                                                                                  \
        }                                                                                                    \
        return a;                                                                                            \
    }
REDUCTION(simd_sum, a + b)
REDUCTION(simd_product, a * b)
REDUCTION(simd_max, max(a, b))
REDUCTION(simd_min, min(a, b))
REDUCTION(simd_and, a & b)
REDUCTION(simd_or, a | b)
REDUCTION(simd_xor, a ^ b)
#undef REDUCTION

// The same over the threads before this one, and this one where the scan is inclusive.
#define SCAN(NAME, START, EXTRA, EXPRESSION)                                                                 \
    template <class T>                                                                                       \
    T NAME(T value, uint site = __builtin_LINE()) {                                                          \
        standin_values<T> all = standin_gather(value, site);                                                 \
        T a = T(START);                                                                                      \
        for (uint i = 0; i < all.lane + EXTRA; i++) {                                                        \
            T b = all[i];                                                                                    \
            a = EXPRESSION;                                                                                  \
        }                                                                                                    \
        return a;                                                                                            \
    }
SCAN(simd_prefix_inclusive_sum, 0, 1, a + b)
SCAN(simd_prefix_exclusive_sum, 0, 0, a + b)
SCAN(simd_prefix_inclusive_product, 1, 1, a * b)
SCAN(simd_prefix_exclusive_product, 1, 0, a * b)
#undef SCAN

// The value of one other thread.
#define SHUFFLE(NAME, INDEX)                                                                                 \
    template <class T>                                                                                       \
    T NAME(T value, ushort n, uint site = __builtin_LINE()) {                                                \
        standin_values<T> all = standin_gather(value, site);                                                 \
        return all[INDEX];                                                                                   \
    }
SHUFFLE(simd_broadcast, n)
SHUFFLE(simd_shuffle, n)
SHUFFLE(simd_shuffle_down, all.lane + n)
SHUFFLE(simd_shuffle_up, all.lane - n)
SHUFFLE(simd_shuffle_xor, all.lane ^ n)
SHUFFLE(simd_shuffle_rotate_down, (all.lane + n) % all.width)
SHUFFLE(simd_shuffle_rotate_up, (all.lane + all.width - n % all.width) % all.width)
SHUFFLE(quad_broadcast, (all.lane & ~3u) + n)
SHUFFLE(quad_shuffle, (all.lane & ~3u) + n)
SHUFFLE(quad_shuffle_xor, all.lane ^ (n & 3u))
#undef SHUFFLE

template <class T>
T simd_broadcast_first(T value, uint site = __builtin_LINE()) {
    return standin_gather(value, site)[0];
}

// One bit for each thread.
struct simd_vote {
    ulong bits;
    operator ulong() const { return bits; }
};
inline simd_vote simd_ballot(bool value, uint site = __builtin_LINE()) {
    standin_values<bool> all = standin_gather(value, site);
    simd_vote vote = {0};
    for (uint i = 0; i < all.width; i++) vote.bits |= (ulong)all[i] << i;
    return vote;
}
inline bool simd_all(bool value, uint site = __builtin_LINE()) {
    standin_values<bool> all = standin_gather(value, site);
    bool result = true;
    for (uint i = 0; i < all.width; i++) result = result && all[i];
    return result;
}
inline bool simd_any(bool value, uint site = __builtin_LINE()) {
    standin_values<bool> all = standin_gather(value, site);
    bool result = false;
    for (uint i = 0; i < all.width; i++) result = result || all[i];
    return result;
}

}  // namespace metal
