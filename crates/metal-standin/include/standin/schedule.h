// What the scheduler does for a thread. `site` is the line of the kernel from which it is asked: threads that
// have to do something together must all ask from the same.

extern "C" {
// Waits for the simdgroup and gives what all its threads brought: this one's place, their number, and from
// the 16th byte on 16 bytes for each.
const void* standin_exchange(const void* value, uint size, uint site);
// Waits for the threadgroup.
void standin_barrier(uint site);
// Notes an operation that a simdgroup does together. True in its first thread, which does it for all.
bool standin_together(uint site);
// The next `size` bytes of threadgroup memory, the same in all threads.
void* standin_threadgroup(uint size, uint align);
}

// Where a thread is, as src/schedule.rs lays it out.
struct standin_position {
    uint threads_per_grid[3];
    uint threadgroups_per_grid[3];
    uint dispatch_threads_per_threadgroup[3];
    uint threads_per_threadgroup[3];
    uint threadgroup_position_in_grid[3];
    uint thread_position_in_threadgroup[3];
    uint thread_position_in_grid[3];
    uint thread_index_in_threadgroup[1];
    uint thread_index_in_simdgroup[1];
    uint simdgroup_index_in_threadgroup[1];
    uint threads_per_simdgroup[1];
    uint simdgroups_per_threadgroup[1];
};

// A position as the number or vector that a kernel declares.
template <class T>
struct standin_builtin {
    static T of(const uint* position) { return (T)position[0]; }
};
template <class T, int N>
struct standin_builtin<metal::vec<T, N>> {
    static metal::vec<T, N> of(const uint* position) {
        metal::vec<T, N> result;
        for (int i = 0; i < N; i++) result[i] = (T)position[i];
        return result;
    }
};

// A variable in threadgroup memory; the compiler of the text writes this for `threadgroup T name;`.
template <class T>
threadgroup T& standin_shared() {
    return *(threadgroup T*)standin_threadgroup(sizeof(T), alignof(T));
}

namespace metal {

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((uint)a | (uint)b); }

inline void threadgroup_barrier(mem_flags, uint site = __builtin_LINE()) { standin_barrier(site); }
inline void simdgroup_barrier(mem_flags, uint site = __builtin_LINE()) { standin_exchange(0, 0, site); }

}  // namespace metal
