// out[t] = a[t] b[t] for matrices a[t]: [m, k], b[t]: [k, n], out[t]: [m, n], by a BLAS library's gemm on one thread.
// An item is one tile of one out[t]; tiles are numbered along rows, then columns, then matrices.
// `a` and `b` are stored by rows or, where they are "turned", by columns; out by rows.  Steps are in elements: `_row`
// from row to row (of a turned one from column to column), `_step` from matrix to matrix.
// Reference: numpy.matmul.

enum { BY_ROWS = 101, AS_IS = 111, TURNED = 112 };  // as cblas numbers them

template <typename T> struct Tiles {
    typedef void (*Gemm)(int order, int a_turned, int b_turned, int64 m, int64 n, int64 k, T factor, const T* a,
                         int64 a_row, const T* b, int64 b_row, T before, T* out, int64 out_row);
    Gemm gemm;
    int64 m, n, k, tile_m, tile_n;
    const T* a;
    int64 a_turned, a_row, a_step;
    const T* b;
    int64 b_turned, b_row, b_step;
    T* out;
    int64 out_row, out_step;
};

DEVICE int64 least(int64 a, int64 b) { return a < b ? a : b; }

template <typename T> DEVICE void multiply(const Tiles<T>& x, int64 first, int64 last) {
    const int64 across = (x.n + x.tile_n - 1) / x.tile_n, down = (x.m + x.tile_m - 1) / x.tile_m;
    for (int64 item = first; item < last; ++item) {
        const int64 t = item / (across * down);
        const int64 row = item / across % down * x.tile_m, column = item % across * x.tile_n;
        x.gemm(BY_ROWS, x.a_turned ? TURNED : AS_IS, x.b_turned ? TURNED : AS_IS, least(x.tile_m, x.m - row),
               least(x.tile_n, x.n - column), x.k, 1, x.a + t * x.a_step + row * (x.a_turned ? 1 : x.a_row), x.a_row,
               x.b + t * x.b_step + column * (x.b_turned ? x.b_row : 1), x.b_row, 0,
               x.out + t * x.out_step + row * x.out_row + column, x.out_row);
    }
}

extern "C" void product_float32(const Slot* slots, int64 first, int64 last, unsigned char*) {
    multiply(*(const Tiles<float>*)slots, first, last);
}
extern "C" void product_float64(const Slot* slots, int64 first, int64 last, unsigned char*) {
    multiply(*(const Tiles<double>*)slots, first, last);
}
