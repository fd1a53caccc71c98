// The tile products of attention.cu with float multiplications and additions, for float32 and for half types where
// there are no tensor cores for them.  attention_mma.cuh has the same names.
//
// 16 x 8 threads: a thread has every 16th row of the block, every 8th column, and of every 32 features of the result 4.
// A tile holds floats; its features are padded with zeros to a multiple of 32.

using Element = float;
constexpr int PADDED = (HEAD + 31) / 32 * 32;  // features of a row of a tile
constexpr int PITCH = PADDED + 4;              // elements from row to row
constexpr int FEATURES = PADDED / 8;           // of a row of the result in one thread
constexpr int ROW_LANES = 8;                      // neighbours that share a row

// Rows of a block's own, and streamed tiles: what fits in registers and in shared memory, which is 64 KB on sm_75.
constexpr int FORWARD_OWN = PADDED <= 64 ? 64 : PADDED <= 128 ? 32 : 16;
constexpr int BACKWARD_OWN = PADDED <= 128 ? 32 : 16;
constexpr int FORWARD_STREAM = PADDED <= 64 ? 32 : 16;
constexpr int BACKWARD_STREAM = PADDED <= 64 ? 32 : PADDED <= 224 ? 16 : 8;
constexpr int FORWARD_STAGES = 1;
constexpr int BACKWARD_STAGES = 1;
constexpr bool SPLIT = false;
constexpr int ROWS_OF_THREAD = 16;  // one row in a thread for so many in a block
constexpr int COLUMNS_OF_THREAD = 8;

DEVICE int row_of(int r) { return r * 16 + threadIdx.x / 8; }
DEVICE int column_of(int c) { return c * 8 + threadIdx.x % 8; }
DEVICE int feature_of(int f) { return (f / 4 * 8 + threadIdx.x % 8) * 4 + f % 4; }

DEVICE Element as_element(T x) { return widen(x); }
DEVICE Element rounded(float x) { return x; }
DEVICE float power_of_2(float x) { return exp2f(x); }
DEVICE void fill(Element* tile, const T* from, bool valid) {
    Vector<T> x = {};
    if (valid) x = *reinterpret_cast<const Vector<T>*>(from);
#pragma unroll
    for (int i = 0; i < Vector<T>::LENGTH; i += 4)
        *reinterpret_cast<Vector<float>*>(tile + i) = {
            {widen(x.at[i]), widen(x.at[i + 1]), widen(x.at[i + 2]), widen(x.at[i + 3])}};
}
DEVICE void arrive() { __syncthreads(); }

// A tile of the block's own rows as first factor.
template <int ROWS, bool KEPT> struct Own {
    const Element* tile;

    DEVICE void take(const Element* from) { tile = from; }
};

DEVICE Vector<float> four(const Element* at) { return *reinterpret_cast<const Vector<float>*>(at); }

// s = own otherᵀ
template <int ROWS, int COLUMNS, bool KEPT>
DEVICE void multiply(float (&s)[ROWS][COLUMNS], const Own<ROWS, KEPT>& own, const Element* other) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) s[r][c] = 0;
#pragma unroll 2
    for (int feature = 0; feature < PADDED; feature += 4) {
        Vector<float> a[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) a[r] = four(own.tile + row_of(r) * PITCH + feature);
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            const Vector<float> b = four(other + column_of(c) * PITCH + feature);
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
#pragma unroll
                for (int i = 0; i < 4; ++i) s[r][c] = fmaf(a[r].at[i], b.at[i], s[r][c]);
        }
    }
}

// out += p tile; p goes through `scratch`, where the threads that share a row find all of it
template <int ROWS, int COLUMNS>
DEVICE void accumulate(float (&out)[ROWS][FEATURES], const float (&p)[ROWS][COLUMNS], const Element* tile,
                       float* scratch) {
    constexpr int STREAM = COLUMNS * COLUMNS_OF_THREAD, SCRATCH_PITCH = STREAM + 4;
    __syncwarp();  // the last p may still be read
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) scratch[row_of(r) * SCRATCH_PITCH + column_of(c)] = p[r][c];
    __syncwarp();
    for (int first = 0; first < STREAM; first += 4) {
        Vector<float> a[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) a[r] = four(scratch + row_of(r) * SCRATCH_PITCH + first);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int f = 0; f < FEATURES; f += 4) {
                const Vector<float> b = four(tile + (first + i) * PITCH + feature_of(f));
#pragma unroll
                for (int r = 0; r < ROWS; ++r)
#pragma unroll
                    for (int j = 0; j < 4; ++j) out[r][f + j] = fmaf(a[r].at[i], b.at[j], out[r][f + j]);
            }
    }
}
