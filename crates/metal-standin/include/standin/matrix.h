// Matrices that a simdgroup holds together. Here its first thread holds them alone: what the others wrote to
// memory before is there when it comes, for Metal too wants a barrier between the two.

namespace metal {

template <class T, int Columns, int Rows>
struct simdgroup_matrix {
    T rows[Rows][Columns];
};

#define MATRICES(N)                                                                                          \
    typedef simdgroup_matrix<half, N, N> simdgroup_half##N##x##N;                                            \
    typedef simdgroup_matrix<float, N, N> simdgroup_float##N##x##N;
MATRICES(8)
// Metal has no larger ones. These let the kernels for other GPUs run that use them.
MATRICES(16)
#undef MATRICES

template <class T, int Columns, int Rows>
simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
    simdgroup_matrix<T, Columns, Rows> m;
    for (int r = 0; r < Rows; r++)
        for (int c = 0; c < Columns; c++) m.rows[r][c] = value;
    return m;
}

// Memory at `source` has `stride` elements from one row to the next, or from one column to the next where it
// is transposed.
#define ACCESS(SPACE)                                                                                        \
    template <class T, int Columns, int Rows>                                                                \
    void simdgroup_load(thread simdgroup_matrix<T, Columns, Rows>& m, const SPACE T* source,                 \
                        ulong stride = Columns, ulong2 origin = 0, bool transposed = false,                  \
                        uint site = __builtin_LINE()) {                                                      \
        if (!standin_together(site)) return;                                                                 \
        for (int r = 0; r < Rows; r++)                                                                       \
            for (int c = 0; c < Columns; c++)                                                                \
                m.rows[r][c] = transposed ? source[(c + origin.x) * stride + r + origin.y]                   \
                                          : source[(r + origin.y) * stride + c + origin.x];                  \
    }                                                                                                        \
    template <class T, int Columns, int Rows>                                                                \
    void simdgroup_store(const thread simdgroup_matrix<T, Columns, Rows>& m, SPACE T* target,                \
                         ulong stride = Columns, ulong2 origin = 0, bool transposed = false,                 \
                         uint site = __builtin_LINE()) {                                                     \
        if (!standin_together(site)) return;                                                                 \
        for (int r = 0; r < Rows; r++)                                                                       \
            for (int c = 0; c < Columns; c++)                                                                \
                (transposed ? target[(c + origin.x) * stride + r + origin.y]                                 \
                            : target[(r + origin.y) * stride + c + origin.x]) = m.rows[r][c];                \
    }
ACCESS(device)
ACCESS(threadgroup)
#undef ACCESS

// d = a b + c, summed in the type of d.
template <class D, class A, class B, class C, int Columns, int Rows, int Inner>
void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, Columns, Rows>& d,
                                   const thread simdgroup_matrix<A, Inner, Rows>& a,
                                   const thread simdgroup_matrix<B, Columns, Inner>& b,
                                   const thread simdgroup_matrix<C, Columns, Rows>& c,
                                   uint site = __builtin_LINE()) {
    if (!standin_together(site)) return;
    for (int r = 0; r < Rows; r++) {
        D sums[Columns];
        for (int i = 0; i < Columns; i++) sums[i] = (D)c.rows[r][i];
        for (int k = 0; k < Inner; k++)
            for (int i = 0; i < Columns; i++) sums[i] += (D)a.rows[r][k] * (D)b.rows[k][i];
        for (int i = 0; i < Columns; i++) d.rows[r][i] = sums[i];
    }
}

}  // namespace metal
