// Atomic variables. Threads take turns only where they wait, so plain reads and writes are atomic.

namespace metal {

enum memory_order { memory_order_relaxed };

template <class T>
struct atomic {
    T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;

#define FETCH(SPACE, NAME, EXPRESSION)                                                                       \
    template <class T, class U>                                                                              \
    T NAME(volatile SPACE atomic<T>* p, U operand, memory_order) {                                           \
        T a = p->value, b = (T)operand;                                                                      \
        p->value = EXPRESSION;                                                                               \
        return a;                                                                                            \
    }
#define ATOMICS(SPACE)                                                                                       \
    template <class T>                                                                                       \
    T atomic_load_explicit(const volatile SPACE atomic<T>* p, memory_order) {                                \
        return p->value;                                                                                     \
    }                                                                                                        \
    template <class T, class U>                                                                              \
    void atomic_store_explicit(volatile SPACE atomic<T>* p, U value, memory_order) {                         \
        p->value = (T)value;                                                                                 \
    }                                                                                                        \
    template <class T, class U>                                                                              \
    bool atomic_compare_exchange_weak_explicit(                                                              \
        volatile SPACE atomic<T>* p, thread T* expected, U desired, memory_order, memory_order) {            \
        T old = p->value;                                                                                    \
        bool same = old == *expected;                                                                        \
        if (same) p->value = (T)desired;                                                                     \
        *expected = old;                                                                                     \
        return same;                                                                                         \
    }                                                                                                        \
    FETCH(SPACE, atomic_exchange_explicit, b)                                                                \
    FETCH(SPACE, atomic_fetch_add_explicit, a + b)                                                           \
    FETCH(SPACE, atomic_fetch_sub_explicit, a - b)                                                           \
    FETCH(SPACE, atomic_fetch_max_explicit, max(a, b))                                                       \
    FETCH(SPACE, atomic_fetch_min_explicit, min(a, b))                                                       \
    FETCH(SPACE, atomic_fetch_and_explicit, a & b)                                                           \
    FETCH(SPACE, atomic_fetch_or_explicit, a | b)                                                            \
    FETCH(SPACE, atomic_fetch_xor_explicit, a ^ b)
ATOMICS(device)
ATOMICS(threadgroup)
#undef ATOMICS
#undef FETCH

}  // namespace metal
