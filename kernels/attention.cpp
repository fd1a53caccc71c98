// out = softmax(scale * q k^T) v for each batch and head, and its gradients, without a matrix of all scores.
// q: [batch, heads, queries, features], k: [batch, heads, keys, features], v: [batch, heads, keys, values],
// out: [batch, heads, queries, values], lse: [batch, heads, queries], the logarithm of each query's sum of exp(score).
// Features and values are contiguous and lse is whole; the other strides are arguments.  With `causal`, query i sees
// keys 0 to i.  A query without a key gets zeros.
// Reference: scaled_dot_product_attention in gpuad/ops/attention.py.
//
// Queries and keys are taken in blocks of 64.  The scores of a block of queries and one of keys are a tile on the
// stack, one row per key, so that the lanes of a vector are queries: maxima, sums and exponentials need no sum across
// lanes.  All else is products of tiles, and one function, `product`, does them.  A key that a query may not see is
// left out of its sums, not multiplied by zero: what is there, be it NaN, cannot be felt.
//
// Nothing depends on which items one call is given.  attention_backward takes a head at a time; attention_backward_keys
// and attention_backward_queries together give the same bits from smaller items, with 7 products of tiles instead of 5.
// The stack of a call holds 0.2 MiB for float and 64 features, 0.8 MiB for double and 256.

namespace attention {

#if defined(__AVX512F__)
const int VECTOR_BYTES = 64;
#elif defined(__AVX__)
const int VECTOR_BYTES = 32;
#else
const int VECTOR_BYTES = 16;
#endif
const int BLOCK = 64;  // queries and keys of a tile
const int ROWS = 6;    // of a product, held in registers: 12 vectors of sums, two of b, one of a

template <typename T> struct Vectors {
    typedef T type __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));  // may lie anywhere
};
template <typename T> const int LANES_OF = VECTOR_BYTES / sizeof(T);
template <typename T> const int PANEL = 2 * LANES_OF<T>;        // columns of a product, held in registers
template <typename T> const int PADDING = 64 / sizeof(T);       // puts rows of a tile in different sets of the cache
template <typename T> const int TILE_ROW = BLOCK + PADDING<T>;  // from row to row of a tile of 64 columns

template <typename T> DEVICE T smaller(T a, T b) { return b < a ? b : a; }
template <typename T> DEVICE int64 whole_panels(int64 n) { return (n + PANEL<T> - 1) / PANEL<T> * PANEL<T>; }
template <typename T> DEVICE int64 row_of(int64 n) { return whole_panels<T>(n) + PADDING<T>; }
DEVICE int64 blocks(int64 n) { return (n + BLOCK - 1) / BLOCK; }

// --- products of tiles ---------------------------------------------------------------------------

// c[r, :] = before[r] * c[r, :] + after[r] * sum over p of a(p, r) * b[p, :], without the first term if before is null.
template <typename T> struct Product {
    const T* a;  // any strides: one number at a time is read
    int64 a_p, a_r;
    const T* b;  // rows padded to whole panels
    int64 b_p;
    T* c;
    int64 c_r;
    const T *before, *after;
};

enum Edge { ALL, UP_TO, FROM };  // the p that row r takes: all, those <= r, those >= r

// The end of a row that fills no panel.
template <typename T>
__attribute__((noinline)) void write_part(const T* sum, int64 width, const T* before, T after, T* c) {
    for (int64 i = 0; i < width; ++i) c[i] = before ? *before * c[i] + after * sum[i] : after * sum[i];
}

// R rows from `first` and one panel of columns, of which `width` are written.  The p are `whole` that all R rows take
// and, with an edge, R more, of which each row takes those on its side of the diagonal.  The compiler may contract to
// fused multiply-adds in this function alone.
template <typename T, int R, Edge EDGE>
__attribute__((noinline, optimize("fp-contract=fast"))) void
panel_of_rows(const Product<T>& x, int64 first, int64 whole, int64 column, int64 width) {
    using Vector = typename Vectors<T>::type;
    const int W = LANES_OF<T>;
    const int64 a_p = x.a_p, a_r = x.a_r, b_p = x.b_p, c_r = x.c_r, skipped = EDGE == FROM ? first : 0;
    const T *a = x.a + first * a_r + skipped * a_p, *b = x.b + skipped * b_p + column;
    Vector sum[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = Vector{};
    if (EDGE == FROM) {
#pragma GCC unroll 8
        for (int p = 0; p < R; ++p, a += a_p, b += b_p) {
            const Vector low = *(const Vector*)b, high = *(const Vector*)(b + W);
#pragma GCC unroll 8
            for (int r = 0; r <= p; ++r) {
                sum[r][0] += a[r * a_r] * low;
                sum[r][1] += a[r * a_r] * high;
            }
        }
    }
    for (int64 p = 0; p < whole; ++p, a += a_p, b += b_p) {
        const Vector low = *(const Vector*)b, high = *(const Vector*)(b + W);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            sum[r][0] += a[r * a_r] * low;
            sum[r][1] += a[r * a_r] * high;
        }
    }
    if (EDGE == UP_TO) {
#pragma GCC unroll 8
        for (int p = 0; p < R; ++p, a += a_p, b += b_p) {
            const Vector low = *(const Vector*)b, high = *(const Vector*)(b + W);
#pragma GCC unroll 8
            for (int r = p; r < R; ++r) {
                sum[r][0] += a[r * a_r] * low;
                sum[r][1] += a[r * a_r] * high;
            }
        }
    }
    const T *before = x.before ? x.before + first : nullptr, *after = x.after + first;
    T* c = x.c + first * c_r + column;
    if (width >= PANEL<T>) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r, c += c_r) {
            Vector *low = (Vector*)c, *high = (Vector*)(c + W);
            *low = before ? before[r] * *low + after[r] * sum[r][0] : after[r] * sum[r][0];
            *high = before ? before[r] * *high + after[r] * sum[r][1] : after[r] * sum[r][1];
        }
        return;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r, c += c_r) {
        T row[PANEL<T>];
        *(Vector*)row = sum[r][0];
        *(Vector*)(row + W) = sum[r][1];
        write_part(row, width, before ? before + r : nullptr, after[r], c);
    }
}

// `rows` rows and `columns` columns of a product, p in 0 to n-1.
template <typename T, Edge EDGE> void product(const Product<T>& x, int64 rows, int64 columns, int64 n) {
    const int64 even = EDGE == ALL ? rows : smaller(rows, n);  // the rows whose edge is not cut off by n
    for (int64 column = 0; column < columns; column += PANEL<T>) {
        const int64 width = columns - column;
        const auto whole = [=](int64 r, int64 R) { return EDGE == ALL ? n : EDGE == UP_TO ? r : n - r - R; };
        int64 r = 0;
        for (; r + ROWS <= even; r += ROWS) panel_of_rows<T, ROWS, EDGE>(x, r, whole(r, ROWS), column, width);
        for (; r + 4 <= even; r += 4) panel_of_rows<T, 4, EDGE>(x, r, whole(r, 4), column, width);
        for (; r + 2 <= even; r += 2) panel_of_rows<T, 2, EDGE>(x, r, whole(r, 2), column, width);
        for (; r < even; ++r) panel_of_rows<T, 1, EDGE>(x, r, whole(r, 1), column, width);
        for (; r < rows; ++r) panel_of_rows<T, 1, ALL>(x, r, EDGE == UP_TO ? n : 0, column, width);
    }
}

// --- copies into tiles ----------------------------------------------------------------------------

template <typename T> void copy_rows(const T* x, int64 x_row, int64 rows, int64 columns, T* tile) {
    using Vector = typename Vectors<T>::type;
    const int64 whole = columns / LANES_OF<T> * LANES_OF<T>, padded = whole_panels<T>(columns);
    for (int64 i = 0; i < rows; ++i, x += x_row, tile += row_of<T>(columns)) {
        for (int64 j = 0; j < whole; j += LANES_OF<T>) *(Vector*)(tile + j) = *(const Vector*)(x + j);
        for (int64 j = whole; j < padded; ++j) tile[j] = j < columns ? x[j] : T(0);
    }
}

// Element 2i of `low` and `high`, put end to end, is element i of `a`, and element 2i + 1 is element i of `b`.
template <typename Vector, int W> DEVICE void interleave(Vector a, Vector b, Vector& low, Vector& high) {
    if constexpr (W == 2) {
        low = __builtin_shufflevector(a, b, 0, 2);
        high = __builtin_shufflevector(a, b, 1, 3);
    } else if constexpr (W == 4) {
        low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
        high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    } else if constexpr (W == 8) {
        low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
        high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    } else {
        low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
}

// A square of as many rows as a vector has lanes.  To interleave the first half of the rows with the second, as cards
// are shuffled, log2(W) times, is to transpose.
template <typename T> DEVICE void transpose_square(const T* x, int64 x_row, T* tile) {
    using Vector = typename Vectors<T>::type;
    const int W = LANES_OF<T>;
    Vector rows[W], mixed[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = *(const Vector*)(x + i * x_row);
#pragma GCC unroll 4
    for (int step = 1; step < W; step *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < W / 2; ++i)
            interleave<Vector, W>(rows[i], rows[i + W / 2], mixed[2 * i], mixed[2 * i + 1]);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) rows[i] = mixed[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) *(Vector*)(tile + i * TILE_ROW<T>) = rows[i];
}

// tile[j, i] = x[i, j], and zeros for the i that fill a panel.
template <typename T> void copy_transposed(const T* x, int64 x_row, int64 rows, int64 columns, T* tile) {
    const int W = LANES_OF<T>;
    const int64 padded = whole_panels<T>(rows);
    for (int64 i = 0; i < padded; i += W) {
        int64 j = 0;
        if (i + W <= rows)
            for (; j + W <= columns; j += W) transpose_square(x + i * x_row + j, x_row, tile + j * TILE_ROW<T> + i);
        for (; j < columns; ++j)
            for (int64 l = i; l < i + W; ++l) tile[j * TILE_ROW<T> + l] = l < rows ? x[l * x_row + j] : T(0);
    }
}

// --- what is given --------------------------------------------------------------------------------

template <typename T> struct Heads {  // of one array
    T* data;
    int64 batch, head, row;  // strides
    Heads(const Slot* args) : data((T*)args[0].p), batch(args[1].i), head(args[2].i), row(args[3].i) {}
    T* at(int64 b, int64 h, int64 i) const { return data + b * batch + h * head + i * row; }
};

template <typename T> struct Given {
    int64 heads, queries, keys, features, values;
    bool causal;
    T scale;
    T* lse;
    Heads<T> q, k, v, out;
    Given(const Slot* args)
        : heads(args[0].i), queries(args[1].i), keys(args[2].i), features(args[3].i), values(args[4].i),
          causal(args[5].i != 0), scale(T(args[6].d)), lse((T*)args[7].p), q(args + 8), k(args + 12), v(args + 16),
          out(args + 20) {}
};

// Memory on the stack of one call, handed out in pieces of whole lines of the cache.
template <typename T> struct Stack {
    T* next;
    Stack(T* memory) : next((T*)(((uint64)memory + 63) / 64 * 64)) {}
    T* take(int64 n) {
        T* piece = next;
        next += n;
        return piece;
    }
};

// scores[key, :] = scale[key] * k[key, :] times `transposed`; on the diagonal without panels whose queries cannot see
// the key.
template <typename T>
void multiply_by_keys(const T* k, int64 k_row, int64 keys, const T* transposed, int64 queries, int64 features,
                      bool diagonal, const T* scale, T* scores) {
    for (int64 column = 0; column < queries; column += PANEL<T>) {
        const int64 rows = diagonal ? smaller(keys, column + PANEL<T>) : keys;
        product<T, ALL>({k, 1, k_row, transposed + column, TILE_ROW<T>, scores + column, TILE_ROW<T>, nullptr, scale},
                        rows, PANEL<T>, features);
    }
}

// --- forward --------------------------------------------------------------------------------------

template <typename T> struct Forward {
    Given<T> x;
    T *transposed, *v, *scores;                      // [features, queries], [keys, values], [keys, queries]
    T *peak, *shift, *total, *before, *after;        // for each query
    T *scale, *places;                               // the scale in each element, and 0 to 63

    static int64 memory(const Given<T>& x) {
        return (x.features + BLOCK) * TILE_ROW<T> + BLOCK * row_of<T>(x.values) + 7 * BLOCK + PADDING<T>;
    }
    Forward(const Slot* args, T* memory) : x(args) {
        Stack<T> stack(memory);
        transposed = stack.take(x.features * TILE_ROW<T>);
        scores = stack.take(BLOCK * TILE_ROW<T>);
        v = stack.take(BLOCK * row_of<T>(x.values));
        peak = stack.take(BLOCK);
        total = stack.take(BLOCK);
        before = stack.take(BLOCK);
        after = stack.take(BLOCK);
        shift = stack.take(BLOCK);
        scale = stack.take(BLOCK);
        places = stack.take(BLOCK);
        for (int i = 0; i < BLOCK; ++i) scale[i] = x.scale, places[i] = T(i);
    }

    // Scores become weights exp(score - peak); `before` is what the sums so far shrink by, now that the peak is higher.
    void weigh(int64 keys, int64 queries, bool diagonal) {
        using Vector = typename Vectors<T>::type;
        const T infinity = T(__builtin_inf());
        for (int64 column = 0; column < queries; column += LANES_OF<T>) {
            const int64 rows = diagonal ? smaller(keys, whole_panels<T>(column + 1)) : keys;
            const Vector query = *(const Vector*)(places + column), lowest = Vector{} - infinity;
            Vector high = *(const Vector*)(peak + column);
            T* row = scores + column;
            for (int64 k = 0; k < rows; ++k, row += TILE_ROW<T>) {
                Vector& score = *(Vector*)row;
                if (diagonal) score = query < T(k) ? lowest : score;
                high = score > high ? score : high;
            }
            *(Vector*)(before + column) = *(const Vector*)(peak + column);
            *(Vector*)(peak + column) = high;
        }
        for (int64 i = 0; i < whole_panels<T>(queries); ++i) {
            shift[i] = peak[i] == -infinity ? T(0) : peak[i];  // so that exp(-inf - shift) is 0 before any finite score
            before[i] = exp(before[i] - shift[i]);
            total[i] *= before[i];
        }
        for (int64 k = 0; k < keys; ++k) {
            T* __restrict row = scores + k * TILE_ROW<T>;
            T* __restrict sum = total;
            const T* __restrict offset = shift;
            for (int64 i = diagonal ? k / PANEL<T> * PANEL<T> : 0; i < whole_panels<T>(queries); ++i) {
                row[i] = exp(row[i] - offset[i]);
                sum[i] += row[i];
            }
        }
    }

    // Item (b * heads + h) * blocks(queries) + block of queries.
    void item(int64 item) {
        const int64 head = item / blocks(x.queries), q0 = item % blocks(x.queries) * BLOCK;
        const int64 b = head / x.heads, h = head % x.heads, queries = smaller<int64>(BLOCK, x.queries - q0);
        const int64 seen = x.causal ? smaller(x.keys, q0 + queries) : x.keys;
        T *out = x.out.at(b, h, q0), *lse = x.lse + head * x.queries + q0;
        copy_transposed(x.q.at(b, h, q0), x.q.row, queries, x.features, transposed);
        for (int i = 0; i < BLOCK; ++i) peak[i] = -T(__builtin_inf()), total[i] = 0, after[i] = 1;
        for (int64 k0 = 0; k0 < seen; k0 += BLOCK) {
            const int64 keys = smaller<int64>(BLOCK, seen - k0);
            const bool diagonal = x.causal && k0 == q0;
            multiply_by_keys(x.k.at(b, h, k0), x.k.row, keys, transposed, queries, x.features, diagonal, scale, scores);
            weigh(keys, queries, diagonal);
            if (k0 + keys == seen)
                for (int i = 0; i < BLOCK; ++i) after[i] = 1 / total[i], before[i] *= after[i];
            copy_rows(x.v.at(b, h, k0), x.v.row, keys, x.values, v);
            const T* shrink = k0 ? before : nullptr;
            const Product<T> y = {scores, TILE_ROW<T>, 1, v, row_of<T>(x.values), out, x.out.row, shrink, after};
            if (diagonal)
                product<T, UP_TO>(y, queries, x.values, keys);
            else
                product<T, ALL>(y, queries, x.values, keys);
        }
        for (int64 i = 0; i < queries; ++i) {
            lse[i] = peak[i] + log(total[i]);
            if (seen == 0)
                for (int64 j = 0; j < x.values; ++j) out[i * x.out.row + j] = 0;
        }
    }
};

template <typename T> void forward(const Slot* args, int64 first, int64 last) {
    T memory[Forward<T>::memory(Given<T>(args))];
    Forward<T> forward(args, memory);
    for (int64 item = first; item < last; ++item) forward.item(item);
}

// --- backward -------------------------------------------------------------------------------------

// With w the weights and g the cotangent of out: dv = w^T g, and with slopes = scale * w * (g v^T - delta), where delta
// is the sum of out * g over values, dq = slopes k and dk = slopes^T q.
template <typename T> struct Backward {
    Given<T> x;
    Heads<T> g, dq, dk, dv;
    int64 b, h;                      // the head at hand
    T *q, *g_rows, *k;               // [queries, features], [queries, values], [keys, features]
    T *q_transposed, *g_transposed;  // [features, queries], [values, queries]
    T *weights, *slopes;             // [keys, queries]
    T *lse, *delta;                  // for each query
    T *scale, *ones;                 // the scale, and 1, in each element

    static int64 memory(const Given<T>& x) {
        return (x.features + x.values + 2 * BLOCK) * TILE_ROW<T> + 2 * BLOCK * row_of<T>(x.features) +
               BLOCK * row_of<T>(x.values) + 4 * BLOCK + PADDING<T>;
    }
    Backward(const Slot* args, T* memory) : x(args), g(args + 24), dq(args + 28), dk(args + 32), dv(args + 36) {
        Stack<T> stack(memory);
        q = stack.take(BLOCK * row_of<T>(x.features));
        g_rows = stack.take(BLOCK * row_of<T>(x.values));
        k = stack.take(BLOCK * row_of<T>(x.features));
        q_transposed = stack.take(x.features * TILE_ROW<T>);
        g_transposed = stack.take(x.values * TILE_ROW<T>);
        weights = stack.take(BLOCK * TILE_ROW<T>);
        slopes = stack.take(BLOCK * TILE_ROW<T>);
        lse = stack.take(BLOCK);
        delta = stack.take(BLOCK);
        scale = stack.take(BLOCK);
        ones = stack.take(BLOCK);
        for (int i = 0; i < BLOCK; ++i) scale[i] = x.scale, ones[i] = 1, lse[i] = delta[i] = 0;
    }

    void start_head(int64 head) { b = head / x.heads, h = head % x.heads; }

    void load_queries(int64 q0) {
        using Vector = typename Vectors<T>::type;
        const int64 queries = smaller<int64>(BLOCK, x.queries - q0), whole = x.values / LANES_OF<T> * LANES_OF<T>;
        copy_rows(x.q.at(b, h, q0), x.q.row, queries, x.features, q);
        copy_rows(g.at(b, h, q0), g.row, queries, x.values, g_rows);
        copy_transposed(x.q.at(b, h, q0), x.q.row, queries, x.features, q_transposed);
        copy_transposed(g.at(b, h, q0), g.row, queries, x.values, g_transposed);
        for (int64 i = 0; i < queries; ++i) {
            const T *y = x.out.at(b, h, q0 + i), *t = g_rows + i * row_of<T>(x.values);
            Vector sums = {};
            for (int64 j = 0; j < whole; j += LANES_OF<T>) sums += *(const Vector*)(y + j) * *(const Vector*)(t + j);
            T sum = 0;
            for (int j = 0; j < LANES_OF<T>; ++j) sum += sums[j];
            for (int64 j = whole; j < x.values; ++j) sum += y[j] * t[j];
            delta[i] = sum;
            lse[i] = x.lse[(b * x.heads + h) * x.queries + q0 + i];
        }
    }

    // Scores become weights, and what is g v^T becomes slopes.
    void differentiate(int64 keys, int64 queries, bool diagonal) {
        const T factor = x.scale;
        for (int64 k = 0; k < keys; ++k) {
            T *__restrict w = weights + k * TILE_ROW<T>, *__restrict s = slopes + k * TILE_ROW<T>;
            const T *__restrict l = lse, *__restrict d = delta;
            for (int64 i = diagonal ? k / PANEL<T> * PANEL<T> : 0; i < whole_panels<T>(queries); ++i) {
                w[i] = exp(w[i] - l[i]);
                s[i] = w[i] * (s[i] - d[i]) * factor;
            }
        }
    }

    // What the queries from q0, which are loaded, and the keys from k0 give to the gradients.
    template <Edge QUERIES, Edge KEYS> void multiply(int64 q0, int64 k0, bool to_queries, bool to_keys) {
        const bool diagonal = KEYS == FROM;
        const int64 queries = smaller<int64>(BLOCK, x.queries - q0), keys = smaller<int64>(BLOCK, x.keys - k0);
        const int64 features_row = row_of<T>(x.features), values_row = row_of<T>(x.values), row = TILE_ROW<T>;
        copy_rows(x.k.at(b, h, k0), x.k.row, keys, x.features, k);
        multiply_by_keys(k, features_row, keys, q_transposed, queries, x.features, diagonal, scale, weights);
        multiply_by_keys(x.v.at(b, h, k0), x.v.row, keys, g_transposed, queries, x.values, diagonal, ones, slopes);
        differentiate(keys, queries, diagonal);
        if (to_keys) {
            const T* before = q0 == first_query(k0) ? nullptr : ones;
            product<T, KEYS>({weights, 1, row, g_rows, values_row, dv.at(b, h, k0), dv.row, before, ones},
                             keys, x.values, queries);
            product<T, KEYS>({slopes, 1, row, q, features_row, dk.at(b, h, k0), dk.row, before, ones},
                             keys, x.features, queries);
        }
        if (to_queries)
            product<T, QUERIES>({slopes, row, 1, k, features_row, dq.at(b, h, q0), dq.row, k0 ? ones : nullptr, ones},
                                queries, x.features, keys);
    }

    void tile(int64 q0, int64 k0, bool to_queries, bool to_keys) {
        if (x.causal && q0 == k0)
            multiply<UP_TO, FROM>(q0, k0, to_queries, to_keys);
        else
            multiply<ALL, ALL>(q0, k0, to_queries, to_keys);
    }

    // Where the first block of queries that sees the keys from k0 starts, and the end of the places at which blocks of
    // keys start that the queries from q0 see.
    int64 first_query(int64 k0) const { return x.causal ? k0 : 0; }
    int64 end_of_keys(int64 q0) const { return x.causal ? smaller(x.keys, q0 + 1) : x.keys; }

    // Zeros where no block of queries, or no block of keys, gives anything.
    void clear(const Heads<T>& gradient, int64 first, int64 last, int64 columns) {
        for (int64 i = first; i < last; ++i)
            for (int64 j = 0; j < columns; ++j) gradient.at(b, h, i)[j] = 0;
    }
    void clear_unseen_keys(int64 first, int64 last) {
        clear(dk, first, last, x.features);
        clear(dv, first, last, x.values);
    }

    // Item b * heads + h.
    void head(int64 item) {
        start_head(item);
        for (int64 q0 = 0; q0 < x.queries; q0 += BLOCK) {
            load_queries(q0);
            for (int64 k0 = 0; k0 < end_of_keys(q0); k0 += BLOCK) tile(q0, k0, true, true);
        }
        if (x.keys == 0) clear(dq, 0, x.queries, x.features);
        clear_unseen_keys(x.causal || x.queries == 0 ? smaller(x.keys, blocks(x.queries) * BLOCK) : x.keys, x.keys);
    }

    // Item (b * heads + h) * blocks(queries) + block of queries.
    void block_of_queries(int64 item) {
        const int64 q0 = item % blocks(x.queries) * BLOCK;
        start_head(item / blocks(x.queries));
        load_queries(q0);
        for (int64 k0 = 0; k0 < end_of_keys(q0); k0 += BLOCK) tile(q0, k0, true, false);
        if (x.keys == 0) clear(dq, q0, smaller(q0 + BLOCK, x.queries), x.features);
    }

    // Item (b * heads + h) * blocks(keys) + block of keys.
    void block_of_keys(int64 item) {
        const int64 k0 = item % blocks(x.keys) * BLOCK;
        start_head(item / blocks(x.keys));
        for (int64 q0 = first_query(k0); q0 < x.queries; q0 += BLOCK) {
            load_queries(q0);
            tile(q0, k0, false, true);
        }
        if (first_query(k0) >= x.queries) clear_unseen_keys(k0, smaller(k0 + BLOCK, x.keys));
    }
};

template <typename T, void (Backward<T>::*ITEM)(int64)>
void backward(const Slot* args, int64 first, int64 last) {
    T memory[Backward<T>::memory(Given<T>(args))];
    Backward<T> backward(args, memory);
    for (int64 item = first; item < last; ++item) (backward.*ITEM)(item);
}

}  // namespace attention

// Arguments: heads, queries, keys, features, values, causal, scale (a double), lse; then for each of q, k, v, out its
// address and its strides from batch to batch, head to head, position to position; backward: then g, dq, dk, dv.
#define ENTRY(name, ...) \
    extern "C" void name(const Slot* args, int64 first, int64 last) { attention::__VA_ARGS__(args, first, last); }
#define ENTRIES(T, dtype)                                                                               \
    ENTRY(attention_forward_##dtype, forward<T>)                                                        \
    ENTRY(attention_backward_##dtype, backward<T, &attention::Backward<T>::head>)                       \
    ENTRY(attention_backward_keys_##dtype, backward<T, &attention::Backward<T>::block_of_keys>)         \
    ENTRY(attention_backward_queries_##dtype, backward<T, &attention::Backward<T>::block_of_queries>)
#ifndef ONLY_FLOAT64
ENTRIES(float, float32)
#endif
#ifndef ONLY_FLOAT32
ENTRIES(double, float64)
#endif
#undef ENTRIES
#undef ENTRY
