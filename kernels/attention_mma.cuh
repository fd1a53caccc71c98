// The tile products of attention.cu on tensor cores, for half types.  attention_fma.cuh has the same names.
//
// 4 warps.  Each takes 16 of every 64 rows of the block, and all columns: a thread has 2 rows of every 16, and of every
// 8 columns 2.  A tile holds T; its features are padded with zeros to a multiple of 16.
#include "mma.cuh"

using Element = T;
constexpr int PADDED = (HEAD + 15) / 16 * 16;  // features of a row of a tile
constexpr int PITCH = PADDED + 8;              // elements from row to row
constexpr int FEATURES = PADDED / 4;           // of a row of the result in one thread
constexpr int ROW_LANES = 4;                      // neighbours that share a row

// Rows of a block's own, and streamed tiles: what fits in registers and in shared memory.
constexpr int FORWARD_OWN = PADDED <= 64 ? 128 : 64;
constexpr int BACKWARD_OWN = 64;
constexpr int FORWARD_STREAM = PADDED <= 64 ? 64 : PADDED <= 192 ? 32 : 16;
constexpr int BACKWARD_STREAM = FORWARD_STREAM;
constexpr int FORWARD_STAGES = 2;
constexpr int BACKWARD_STAGES = PADDED <= 128 ? 2 : 1;
constexpr bool SPLIT = PADDED > 128;       // two results together would not fit in registers
constexpr int ROWS_OF_THREAD = 32;        // one row in a thread for so many in a block
constexpr int COLUMNS_OF_THREAD = 4;
constexpr int STEPS = PADDED / 16;

DEVICE int row_of(int r) { return r / 2 * 64 + threadIdx.x / 32 * 16 + r % 2 * 8 + threadIdx.x % 32 / 4; }
DEVICE int column_of(int c) { return c / 2 * 8 + threadIdx.x % 4 * 2 + c % 2; }
DEVICE int feature_of(int f) { return column_of(f); }

DEVICE Element as_element(T x) { return x; }
DEVICE Element rounded(float x) {
    T y;
    put(y, x);
    return y;
}
DEVICE float power_of_2(float x) {
#ifdef GPUAD_ON_HOST
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));  // 2 ulp, which a half type does not show
    return y;
#endif
}
DEVICE void fill(Element* tile, const T* from, bool valid) { copy_16_bytes(tile, from, valid); }
DEVICE void arrive() {
    wait_for_copies();
    __syncthreads();
}

// A tile of the block's own rows as first factor, in registers where there is room.
template <int ROWS, bool KEPT> struct Own {
    const Element* tile;
    uint32 kept[KEPT ? STEPS : 1][ROWS / 2][4];

    DEVICE const Element* part(int step, int m) const {
        return tile + (m * 64 + threadIdx.x / 32 * 16) * PITCH + step * 16;
    }
    DEVICE void take(const Element* from) {
        tile = from;
        if (!KEPT) return;
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
#pragma unroll
            for (int m = 0; m < ROWS / 2; ++m) load_rows(kept[KEPT ? step : 0][m], part(step, m), PITCH);
    }
    DEVICE void fragment(uint32 (&a)[4], int step, int m) const {
        if (!KEPT) return load_rows(a, part(step, m), PITCH);
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = kept[KEPT ? step : 0][m][i];
    }
};

// s = own otherᵀ
template <int ROWS, int COLUMNS, bool KEPT>
DEVICE void multiply(float (&s)[ROWS][COLUMNS], const Own<ROWS, KEPT>& own, const Element* other) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) s[r][c] = 0;
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        uint32 a[ROWS / 2][4];
#pragma unroll
        for (int m = 0; m < ROWS / 2; ++m) own.fragment(a[m], step, m);
#pragma unroll
        for (int c = 0; c < COLUMNS; c += 4) {
            uint32 b[4];
            load_columns_of_transpose(b, other + c * 4 * PITCH + step * 16, PITCH);
#pragma unroll
            for (int m = 0; m < ROWS / 2; ++m) {
                float(&x)[COLUMNS] = s[2 * m], (&y)[COLUMNS] = s[2 * m + 1];
                multiply_add<T>(x[c], x[c + 1], y[c], y[c + 1], a[m], b[0], b[1]);
                multiply_add<T>(x[c + 2], x[c + 3], y[c + 2], y[c + 3], a[m], b[2], b[3]);
            }
        }
    }
}

// out += p tile, with p rounded to T
template <int ROWS, int COLUMNS>
DEVICE void accumulate(float (&out)[ROWS][FEATURES], const float (&p)[ROWS][COLUMNS], const Element* tile, float*) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c += 4) {
        uint32 a[ROWS / 2][4];
#pragma unroll
        for (int m = 0; m < ROWS / 2; ++m) {
            const float(&x)[COLUMNS] = p[2 * m], (&y)[COLUMNS] = p[2 * m + 1];
            a[m][0] = round_pair(x[c], x[c + 1], T());
            a[m][1] = round_pair(y[c], y[c + 1], T());
            a[m][2] = round_pair(x[c + 2], x[c + 3], T());
            a[m][3] = round_pair(y[c + 2], y[c + 3], T());
        }
#pragma unroll
        for (int f = 0; f < FEATURES; f += 4) {
            uint32 b[4];
            load_columns(b, tile + c * 4 * PITCH + f * 4, PITCH);
#pragma unroll
            for (int m = 0; m < ROWS / 2; ++m) {
                float(&x)[FEATURES] = out[2 * m], (&y)[FEATURES] = out[2 * m + 1];
                multiply_add<T>(x[f], x[f + 1], y[f], y[f + 1], a[m], b[0], b[1]);
                multiply_add<T>(x[f + 2], x[f + 3], y[f + 2], y[f + 3], a[m], b[2], b[3]);
            }
        }
    }
}
