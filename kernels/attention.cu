// out = softmax(scale * q kᵀ) v for each batch and head, and its derivatives, without the matrix of all weights.
//
//   q, out, g, dq   T[batch, heads, queries, HEAD]        lse, delta   float[batch * heads, queries], contiguous
//   k, v, dk, dv    T[batch, heads, keys, HEAD]
//
// lse[i] is the logarithm of the sum of exp(scale * q_i k_j) over the keys j that query i sees: all, or 0 to i if
// CAUSAL. delta[i] is the sum of g_i * out_i.  With p = exp(scale * q kᵀ - lse) and ds = p * (g vᵀ - delta):
//
//   dv = pᵀ g        dk = scale * dsᵀ q        dq = scale * ds k
//
// Reference: scaled_dot_product_attention in gpuad/ops/attention.py (matmul, attention_weights, matmul) and its derivatives.
// Without keys `out` is 0 and `lse` -inf.  Sums are made in one order, so a result has the same bits each time.
//
// Defined before this text: T (float, float16 or bfloat16); HEAD, a multiple of 8 from 8 to 256; CAUSAL, 0 or 1;
// TENSOR_CORES, 1 for a half type on sm_80 and later, else 0.
//
// A block owns some rows (of q, or of k) and streams the others past them, a tile in shared memory at a time; a thread
// holds a few scores of each tile, and its part of the result, in registers.  Which rows and columns are a thread's,
// and how many rows a tile has, is in attention_mma.cuh (tensor cores) and attention_fma.cuh.  Arrays have strides,
// counted in elements, of batch, head and position; features are contiguous.  16 bytes are loaded at once where the
// address and the stride of an array allow.
//
//   entry                       threads   grid x                                        shared memory
//   attention_forward           128       batch * heads * ceil(queries / FORWARD_OWN)   `forward` below
//   attention_delta             128       ceil(batch * heads * queries / 16)            none
//   attention_backward_query    128       batch * heads * ceil(queries / BACKWARD_OWN)  `backward` below
//   attention_backward_key      128       batch * heads * ceil(keys / BACKWARD_OWN)     `backward` below
//
// with grid y = 2 for attention_backward_key if SPLIT, else 1.  A grid of 0 is not launched.  Bytes of shared memory,
// at most 99 KB with tensor cores and 60 KB without (above 48 KB the launcher raises the limit), with o = OWN and s =
// STREAM of the direction, E the bytes of an Element and SCRATCH 0 with tensor cores, else 4 * o * (s + 4):
//
//   forward    (o + FORWARD_STAGES * 2 * s) * PITCH * E + SCRATCH
//   backward   (2 * o + BACKWARD_STAGES * 2 * s) * PITCH * E + SCRATCH + BACKWARD_STAGES * 2 * s * 4
#include "elements.cuh"
#if TENSOR_CORES
#include "attention_mma.cuh"
#else
#include "attention_fma.cuh"
#endif

static_assert(HEAD % 8 == 0 && HEAD >= 8 && HEAD <= 256, "what a tile holds");
constexpr int THREADS = 128;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

DEVICE Element* shared_memory() {
    extern __shared__ Vector<float> memory[];  // begins at a multiple of 16 bytes
    return reinterpret_cast<Element*>(memory);
}

// The rows of one batch and head.
template <typename U> struct Rows {
    U* data;
    int64 stride;  // elements from row to row
    int count;
};

template <typename U>
DEVICE Rows<U> rows_of(U* data, int64 batch, int64 head, int64 row, int pair, int heads, int count) {
    return {data + pair / heads * batch + pair % heads * head, row, count};
}

template <typename U> DEVICE bool by_vectors(const Rows<U>& rows) {
    return aligned(rows.data) && rows.stride * int64(sizeof(T)) % 16 == 0;
}

// Starts to copy `size` rows from `first` on into a tile; what is beyond the last row and feature becomes 0.
DEVICE void fetch(Element* tile, const Rows<const T>& rows, int first, int size) {
    constexpr int LENGTH = Vector<T>::LENGTH, PARTS = PADDED / LENGTH;
    const bool vectors = by_vectors(rows);
    for (int i = threadIdx.x; i < size * PARTS; i += THREADS) {
        const int row = i / PARTS, feature = i % PARTS * LENGTH;
        const bool valid = first + row < rows.count && feature < HEAD;
        const T* from = rows.data + (valid ? int64(first + row) * rows.stride + feature : 0);
        Element* to = tile + row * PITCH + feature;
        if (vectors) {
            fill(to, from, valid);
        } else {
#pragma unroll
            for (int k = 0; k < LENGTH; ++k) to[k] = valid ? as_element(from[k]) : Element{};
        }
    }
}

// Writes the first rows of a tile that there are to memory.
DEVICE void store(const Rows<T>& rows, int first, int size, const Element* tile) {
    constexpr int LENGTH = Vector<T>::LENGTH, PARTS = HEAD / LENGTH;
    const bool vectors = by_vectors(rows);
    for (int i = threadIdx.x; i < size * PARTS; i += THREADS) {
        const int row = i / PARTS, feature = i % PARTS * LENGTH;
        if (first + row >= rows.count) break;
        const Element* from = tile + row * PITCH + feature;
        T* to = rows.data + int64(first + row) * rows.stride + feature;
        Vector<T> x;
#pragma unroll
        for (int k = 0; k < LENGTH; ++k) put(x.at[k], widen(from[k]));
        if (vectors) {
            *reinterpret_cast<Vector<T>*>(to) = x;
        } else {
#pragma unroll
            for (int k = 0; k < LENGTH; ++k) to[k] = x.at[k];
        }
    }
}

// Rounds what each thread has of a result, times `factor`, into a tile.
template <int ROWS>
DEVICE void collect(Element* tile, const float (&out)[ROWS][FEATURES], const float (&factor)[ROWS]) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int f = 0; f < FEATURES; ++f) tile[row_of(r) * PITCH + feature_of(f)] = rounded(out[r][f] * factor[r]);
}

DEVICE float largest_of_row(float x) {
#pragma unroll
    for (int apart = ROW_LANES / 2; apart; apart /= 2) x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, apart));
    return x;
}

DEVICE bool sees(int query, int key, int queries, int keys) {
    return query < queries && key < keys && (!CAUSAL || key <= query);
}

// Puts `value` where the query does not see the key: rows from `row` on are queries if QUERIES, else keys.
template <bool QUERIES, int ROWS, int COLUMNS>
DEVICE void replace_unseen(float (&x)[ROWS][COLUMNS], int row, int column, int queries, int keys, float value) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            const int a = row + row_of(r), b = column + column_of(c);
            if (!sees(QUERIES ? a : b, QUERIES ? b : a, queries, keys)) x[r][c] = value;
        }
}

// True if every query of some rows sees every key of some others.
DEVICE bool all_see(int first_query, int last_query, int last_key, int queries, int keys) {
    return last_query < queries && last_key < keys && (!CAUSAL || last_key <= first_query);
}

KERNEL __launch_bounds__(THREADS, 2) attention_forward(
    const T* q, int64 q_batch, int64 q_head, int64 q_row,
    const T* k, int64 k_batch, int64 k_head, int64 k_row,
    const T* v, int64 v_batch, int64 v_head, int64 v_row,
    T* out, int64 out_batch, int64 out_head, int64 out_row,
    float* lse, int heads, int queries, int keys, float scale) {
    constexpr int OWN = FORWARD_OWN, STREAM = FORWARD_STREAM, STAGES = FORWARD_STAGES;
    constexpr int ROWS = OWN / ROWS_OF_THREAD, COLUMNS = STREAM / COLUMNS_OF_THREAD, TILE = STREAM * PITCH;
    Element* own_tile = shared_memory();
    Element* streamed = own_tile + OWN * PITCH;  // for each stage a tile of keys and one of values
    float* scratch = reinterpret_cast<float*>(streamed + STAGES * 2 * TILE);

    const int blocks = (queries + OWN - 1) / OWN, pair = blockIdx.x / blocks;
    const int block = CAUSAL ? blocks - 1 - blockIdx.x % blocks : blockIdx.x % blocks;  // the longest first
    const int first = block * OWN;
    const Rows<const T> q_rows = rows_of(q, q_batch, q_head, q_row, pair, heads, queries);
    const Rows<const T> k_rows = rows_of(k, k_batch, k_head, k_row, pair, heads, keys);
    const Rows<const T> v_rows = rows_of(v, v_batch, v_head, v_row, pair, heads, keys);
    const int end = CAUSAL && first + OWN < keys ? first + OWN : keys;  // the keys that a query of this block may see

    float out_part[ROWS][FEATURES] = {}, top[ROWS], total[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) top[r] = -INFINITY, total[r] = 0;

    fetch(own_tile, q_rows, first, OWN);
    if (end > 0) {
        fetch(streamed, k_rows, 0, STREAM);
        fetch(streamed + TILE, v_rows, 0, STREAM);
    }
    arrive();
    Own<ROWS, (PADDED <= 128)> own;
    own.take(own_tile);

    for (int start = 0, stage = 0; start < end; start += STREAM) {
        const Element* k_tile = streamed + stage * 2 * TILE;
        const int next = start + STREAM;
        stage = (stage + 1) % STAGES;
        if (STAGES > 1 && next < end) {
            fetch(streamed + stage * 2 * TILE, k_rows, next, STREAM);
            fetch(streamed + stage * 2 * TILE + TILE, v_rows, next, STREAM);
        }
        float p[ROWS][COLUMNS];  // scores, in units of ln 2, and then weights
        multiply(p, own, k_tile);
        const bool whole = all_see(first, first + OWN - 1, next - 1, queries, keys);
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) p[r][c] *= scale * LOG2_E;
        if (!whole) replace_unseen<true>(p, first, start, queries, keys, -INFINITY);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            float largest = top[r];
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) largest = fmaxf(largest, p[r][c]);
            largest = largest_of_row(largest);
            const float base = largest == -INFINITY ? 0.0f : largest;  // -inf less -inf would be nan
            const float shrink = power_of_2(top[r] - base);
            top[r] = largest;
            float sum = 0;
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                p[r][c] = power_of_2(p[r][c] - base);
                sum += p[r][c];
            }
            total[r] = total[r] * shrink + sum;
#pragma unroll
            for (int f = 0; f < FEATURES; ++f) out_part[r][f] *= shrink;
        }
        accumulate(out_part, p, k_tile + TILE, scratch);
        if (STAGES == 1 && next < end) {
            __syncthreads();
            fetch(streamed, k_rows, next, STREAM);
            fetch(streamed + TILE, v_rows, next, STREAM);
        }
        arrive();
    }

    float factor[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const float sum = lanes_sum<ROW_LANES>(total[r]);
        factor[r] = end > 0 ? 1.0f / sum : 0.0f;
        const int query = first + row_of(r);
        if (threadIdx.x % ROW_LANES == 0 && query < queries)
            lse[int64(pair) * queries + query] = (top[r] + log2f(sum)) * LN_2;
    }
    collect(own_tile, out_part, factor);
    __syncthreads();
    store(rows_of(out, out_batch, out_head, out_row, pair, heads, queries), first, OWN, own_tile);
}

// 8 threads for each row.
KERNEL __launch_bounds__(THREADS) attention_delta(
    const T* out, int64 out_batch, int64 out_head, int64 out_row,
    const T* g, int64 g_batch, int64 g_head, int64 g_row,
    float* delta, int64 pairs, int heads, int queries) {
    constexpr int TOGETHER = 8, LENGTH = Vector<T>::LENGTH;
    const int64 place = blockIdx.x * int64(THREADS / TOGETHER) + threadIdx.x / TOGETHER;
    const bool there = place < pairs * queries;
    float sum = 0;
    if (there) {
        const int pair = int(place / queries), query = int(place % queries);
        const Rows<const T> out_rows = rows_of(out, out_batch, out_head, out_row, pair, heads, queries);
        const Rows<const T> g_rows = rows_of(g, g_batch, g_head, g_row, pair, heads, queries);
        const T *y = out_rows.data + query * out_row, *t = g_rows.data + query * g_row;
        const bool vectors = by_vectors(out_rows) && by_vectors(g_rows);
        for (int f = threadIdx.x % TOGETHER * LENGTH; f < HEAD; f += TOGETHER * LENGTH) {
            Vector<T> a, b;
            if (vectors) {
                a = *reinterpret_cast<const Vector<T>*>(y + f);
                b = *reinterpret_cast<const Vector<T>*>(t + f);
            } else {
#pragma unroll
                for (int k = 0; k < LENGTH; ++k) a.at[k] = y[f + k], b.at[k] = t[f + k];
            }
#pragma unroll
            for (int k = 0; k < LENGTH; ++k) sum += widen(a.at[k]) * widen(b.at[k]);
        }
    }
    sum = lanes_sum<TOGETHER>(sum);
    if (there && threadIdx.x % TOGETHER == 0) delta[place] = sum;
}

// The block's own rows are queries (q and g), and k and v stream past; or own keys (k and v), and q and g do.
// `first_result` is dq or dk, the sum of ds times rows of k or q; `second_result`, for keys only, is dv.
template <bool QUERIES, bool TO_FIRST, bool TO_SECOND>
DEVICE void sweep(int first, int queries, int keys, float scale, const Rows<const T>& own_1, const Rows<const T>& own_2,
                  const Rows<const T>& stream_1, const Rows<const T>& stream_2, const float* lse, const float* delta,
                  const Rows<T>& first_result, const Rows<T>& second_result) {
    constexpr int OWN = BACKWARD_OWN, STREAM = BACKWARD_STREAM, STAGES = BACKWARD_STAGES;
    constexpr int ROWS = OWN / ROWS_OF_THREAD, COLUMNS = STREAM / COLUMNS_OF_THREAD, TILE = STREAM * PITCH;
    Element* own_tiles = shared_memory();
    Element* streamed = own_tiles + 2 * OWN * PITCH;  // for each stage a tile of either array
    float* of_stream = reinterpret_cast<float*>(streamed + STAGES * 2 * TILE);  // lse and delta of streamed queries
    float* scratch = of_stream + STAGES * 2 * STREAM;

    int begin = 0, end = stream_1.count;
    if (CAUSAL && QUERIES && first + OWN < end) end = first + OWN;
    if (CAUSAL && !QUERIES) begin = first / STREAM * STREAM;  // no earlier query sees these keys

    // lse in units of ln 2, and such that p is 0 in rows that are not there
    const auto lse_of = [&](int query) { return query < queries ? lse[query] * LOG2_E : INFINITY; };
    const auto delta_of = [&](int query) { return query < queries ? delta[query] : 0.0f; };
    const auto fetch_stage = [&](int stage, int start) {
        fetch(streamed + stage * 2 * TILE, stream_1, start, STREAM);
        fetch(streamed + stage * 2 * TILE + TILE, stream_2, start, STREAM);
        if (!QUERIES)
            for (int i = threadIdx.x; i < STREAM; i += THREADS) {
                of_stream[stage * 2 * STREAM + i] = lse_of(start + i);
                of_stream[stage * 2 * STREAM + STREAM + i] = delta_of(start + i);
            }
    };

    fetch(own_tiles, own_1, first, OWN);
    if (TO_FIRST) fetch(own_tiles + OWN * PITCH, own_2, first, OWN);
    if (begin < end) fetch_stage(0, begin);
    arrive();
    Own<ROWS, (PADDED <= 64)> own_of_scores, own_of_g;
    own_of_scores.take(own_tiles);
    if (TO_FIRST) own_of_g.take(own_tiles + OWN * PITCH);

    float lse_part[ROWS], delta_part[ROWS];  // of the thread's own queries
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        lse_part[r] = QUERIES ? lse_of(first + row_of(r)) : 0.0f;
        delta_part[r] = QUERIES ? delta_of(first + row_of(r)) : 0.0f;
    }
    float first_part[ROWS][FEATURES] = {}, second_part[ROWS][FEATURES] = {};

    for (int start = begin, stage = 0; start < end; start += STREAM) {
        const Element *tile_1 = streamed + stage * 2 * TILE, *tile_2 = tile_1 + TILE;
        const float *lse_of_column = of_stream + stage * 2 * STREAM, *delta_of_column = lse_of_column + STREAM;
        const int next = start + STREAM;
        stage = (stage + 1) % STAGES;
        if (STAGES > 1 && next < end) fetch_stage(stage, next);

        float p[ROWS][COLUMNS];
        multiply(p, own_of_scores, tile_1);
        const bool whole = QUERIES ? all_see(first, first + OWN - 1, next - 1, queries, keys)
                                   : all_see(start, next - 1, first + OWN - 1, queries, keys);
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                const float log_sum = QUERIES ? lse_part[r] : lse_of_column[column_of(c)];
                p[r][c] = power_of_2(p[r][c] * (scale * LOG2_E) - log_sum);
            }
        if (!whole) replace_unseen<QUERIES>(p, first, start, queries, keys, 0.0f);
        if (TO_SECOND) accumulate(second_part, p, tile_2, scratch);
        if (TO_FIRST) {
            float ds[ROWS][COLUMNS];
            multiply(ds, own_of_g, tile_2);
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) {
                    const float mean = QUERIES ? delta_part[r] : delta_of_column[column_of(c)];
                    ds[r][c] = p[r][c] * (ds[r][c] - mean);
                }
            if (!whole) replace_unseen<QUERIES>(ds, first, start, queries, keys, 0.0f);
            accumulate(first_part, ds, tile_1, scratch);
        }
        if (STAGES == 1 && next < end) {
            __syncthreads();
            fetch_stage(0, next);
        }
        arrive();
    }

    float factor[ROWS], one[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) factor[r] = scale, one[r] = 1.0f;
    if (TO_FIRST) collect(own_tiles, first_part, factor);
    if (TO_SECOND) collect(own_tiles + OWN * PITCH, second_part, one);
    __syncthreads();
    if (TO_FIRST) store(first_result, first, OWN, own_tiles);
    if (TO_SECOND) store(second_result, first, OWN, own_tiles + OWN * PITCH);
}

KERNEL __launch_bounds__(THREADS, 2) attention_backward_query(
    const T* q, int64 q_batch, int64 q_head, int64 q_row,
    const T* k, int64 k_batch, int64 k_head, int64 k_row,
    const T* v, int64 v_batch, int64 v_head, int64 v_row,
    const T* g, int64 g_batch, int64 g_head, int64 g_row,
    T* dq, int64 dq_batch, int64 dq_head, int64 dq_row,
    const float* lse, const float* delta, int heads, int queries, int keys, float scale) {
    const int blocks = (queries + BACKWARD_OWN - 1) / BACKWARD_OWN, pair = blockIdx.x / blocks;
    const int block = CAUSAL ? blocks - 1 - blockIdx.x % blocks : blockIdx.x % blocks;  // the longest first
    const int64 place = int64(pair) * queries;
    const Rows<T> result = rows_of(dq, dq_batch, dq_head, dq_row, pair, heads, queries);
    sweep<true, true, false>(block * BACKWARD_OWN, queries, keys, scale,
                             rows_of(q, q_batch, q_head, q_row, pair, heads, queries),
                             rows_of(g, g_batch, g_head, g_row, pair, heads, queries),
                             rows_of(k, k_batch, k_head, k_row, pair, heads, keys),
                             rows_of(v, v_batch, v_head, v_row, pair, heads, keys), lse + place, delta + place, result,
                             result);
}

KERNEL __launch_bounds__(THREADS, 2) attention_backward_key(
    const T* q, int64 q_batch, int64 q_head, int64 q_row,
    const T* k, int64 k_batch, int64 k_head, int64 k_row,
    const T* v, int64 v_batch, int64 v_head, int64 v_row,
    const T* g, int64 g_batch, int64 g_head, int64 g_row,
    T* dk, int64 dk_batch, int64 dk_head, int64 dk_row,
    T* dv, int64 dv_batch, int64 dv_head, int64 dv_row,
    const float* lse, const float* delta, int heads, int queries, int keys, float scale) {
    const int blocks = (keys + BACKWARD_OWN - 1) / BACKWARD_OWN, pair = blockIdx.x / blocks;
    const int first = blockIdx.x % blocks * BACKWARD_OWN;
    const int64 place = int64(pair) * queries;
    const Rows<const T> q_rows = rows_of(q, q_batch, q_head, q_row, pair, heads, queries);
    const Rows<const T> k_rows = rows_of(k, k_batch, k_head, k_row, pair, heads, keys);
    const Rows<const T> v_rows = rows_of(v, v_batch, v_head, v_row, pair, heads, keys);
    const Rows<const T> g_rows = rows_of(g, g_batch, g_head, g_row, pair, heads, queries);
    const Rows<T> dk_rows = rows_of(dk, dk_batch, dk_head, dk_row, pair, heads, keys);
    const Rows<T> dv_rows = rows_of(dv, dv_batch, dv_head, dv_row, pair, heads, keys);
    lse += place;
    delta += place;
    if (!SPLIT)
        sweep<false, true, true>(first, queries, keys, scale, k_rows, v_rows, q_rows, g_rows, lse, delta, dk_rows,
                                 dv_rows);
    else if (blockIdx.y == 0)
        sweep<false, true, false>(first, queries, keys, scale, k_rows, v_rows, q_rows, g_rows, lse, delta, dk_rows,
                                  dv_rows);
    else
        sweep<false, false, true>(first, queries, keys, scale, k_rows, v_rows, q_rows, g_rows, lse, delta, dk_rows,
                                  dv_rows);
}
