// Rows of a table by index, and the gradient of the table: for each of its rows the sum of the gradients of all places
// that took it, in one order, without atomics.
//
//   weight, result   T[rows, features]        index   INDEX[places]        g, out   T[places, features]
//   order            int64[places]: a stable argsort of `index`, so that the places of a row stand together, in order
//   starts           int64[rows + 1]: where the places of each row begin in `order`
//   partial          WIDE[2 * (places / PIECE + 1), features], scratch;  WIDE is float, or double if T is double
//   error            the device's error word
//
// All contiguous.  An index out of range sets OUT_OF_RANGE in the error word; it gives a row of zeros, and no gradient.
//
// Reference: embedding in gpuad/ops/nn.py, whose gradient is scatter_add in gpuad/ops/index.py.  Half types are summed
// in float and rounded once.
//
// Defined before this text: T (float, double, float16 or bfloat16), INDEX (int32 or int64).
//
// The places of a row are summed in pieces of PIECE, by one block each, whatever number of rows the table has and
// however often one row is taken.  The sums of a row with one piece go to `result`; others go to `partial`, and are
// summed by the block that also writes zeros where a row is not taken.  16 bytes of features belong to a thread, or one
// feature if the arrays or their rows do not begin at multiples of 16 bytes.
//
//   entry               threads   grid x                           what it computes
//   embedding_forward   128       places                           out
//   embedding_starts    256       ceil((rows + 1) / 256)           starts, error
//   embedding_pieces    128       ceil(places / PIECE)             result of rows with one piece, partial of others
//   embedding_finish    128       rows                             result of the other rows
//
// No dynamic shared memory.  The entries after the first run in this order; a grid of 0 is not launched.
#include "elements.cuh"

using Wide = decltype(widen(T()));
constexpr int THREADS = 128, PIECE = 64;

KERNEL __launch_bounds__(THREADS) embedding_forward(const T* weight, const INDEX* index, T* out, int32* error,
                                                    int64 rows, int64 features) {
    const int64 from = index[blockIdx.x];
    const bool there = from >= 0 && from < rows;
    if (!there && threadIdx.x == 0) flag(error, OUT_OF_RANGE);
    const T* source = weight + (there ? from * features : 0);
    T* to = out + blockIdx.x * features;
    constexpr int LENGTH = Vector<T>::LENGTH;
    if (aligned(weight) && aligned(out) && features % LENGTH == 0) {
        for (int64 f = threadIdx.x * LENGTH; f < features; f += THREADS * LENGTH) {
            Vector<T> x = {};
            if (there) x = *reinterpret_cast<const Vector<T>*>(source + f);
            *reinterpret_cast<Vector<T>*>(to + f) = x;
        }
    } else {
        for (int64 f = threadIdx.x; f < features; f += THREADS) to[f] = there ? source[f] : T{};
    }
}

// starts[row] is the number of places whose index is below `row`.
KERNEL embedding_starts(const INDEX* index, const int64* order, int64* starts, int32* error, int64 places, int64 rows) {
    const int64 row = blockIdx.x * int64(blockDim.x) + threadIdx.x;
    if (row > rows) return;
    int64 low = 0, high = places;
    while (low < high) {
        const int64 middle = (low + high) / 2;
        if (index[order[middle]] < row) low = middle + 1;
        else high = middle;
    }
    starts[row] = low;
    if ((row == 0 && low > 0) || (row == rows && low < places)) flag(error, OUT_OF_RANGE);
}

// Where the sum of the piece that begins at `begin` is kept: full pieces begin PIECE apart or more, and so do last
// ones.
DEVICE int64 slot_of(int64 begin, int64 stop) { return begin / PIECE * 2 + (stop - begin <= PIECE); }

template <int LENGTH> struct Sum {
    Wide at[LENGTH];
};

template <int LENGTH> DEVICE void add(Sum<LENGTH>& sum, const T* g) {
    struct alignas(LENGTH * sizeof(T)) Part {
        T at[LENGTH];
    };
    const Part x = *reinterpret_cast<const Part*>(g);
#pragma unroll
    for (int k = 0; k < LENGTH; ++k) sum.at[k] += widen(x.at[k]);
}

template <int LENGTH> DEVICE void write(const Sum<LENGTH>& sum, T* result) {
    struct alignas(LENGTH * sizeof(T)) Part {
        T at[LENGTH];
    } x;
#pragma unroll
    for (int k = 0; k < LENGTH; ++k) put(x.at[k], sum.at[k]);
    *reinterpret_cast<Part*>(result) = x;
}

// The piece from `begin` of the places of `row`, which are from `start` to `stop`.
template <int LENGTH>
DEVICE void sum_piece(const T* g, const int64* order, T* result, Wide* partial, int64 features, int64 row, int64 start,
                      int64 begin, int64 stop) {
    const int64 end = begin + PIECE < stop ? begin + PIECE : stop;
    for (int64 f = threadIdx.x * LENGTH; f < features; f += THREADS * LENGTH) {
        Sum<LENGTH> sum = {};
#pragma unroll 4
        for (int64 i = begin; i < end; ++i) add(sum, g + order[i] * features + f);
        if (stop - start <= PIECE) {
            write(sum, result + row * features + f);
        } else {
#pragma unroll
            for (int k = 0; k < LENGTH; ++k) partial[slot_of(begin, stop) * features + f + k] = sum.at[k];
        }
    }
}

// A block takes the pieces that begin in its PIECE places.
KERNEL __launch_bounds__(THREADS) embedding_pieces(const T* g, const INDEX* index, const int64* order,
                                                   const int64* starts, T* result, Wide* partial, int64 places,
                                                   int64 rows, int64 features) {
    const bool vectors = aligned(g) && aligned(result) && features % Vector<T>::LENGTH == 0;
    int64 place = blockIdx.x * int64(PIECE);
    const int64 after = place + PIECE < places ? place + PIECE : places;
    while (place < after) {
        const int64 row = index[order[place]];
        if (row < 0 || row >= rows) {
            place = row < 0 ? starts[0] : places;
            continue;
        }
        const int64 start = starts[row], stop = starts[row + 1], inside = (place - start) % PIECE;
        if (inside == 0) {
            if (vectors) sum_piece<Vector<T>::LENGTH>(g, order, result, partial, features, row, start, place, stop);
            else sum_piece<1>(g, order, result, partial, features, row, start, place, stop);
        }
        const int64 next = place - inside + PIECE;
        place = next < stop ? next : stop;
    }
}

KERNEL __launch_bounds__(THREADS) embedding_finish(const int64* starts, const Wide* partial, T* result,
                                                   int64 features) {
    const int64 row = blockIdx.x, start = starts[row], stop = starts[row + 1];
    if (stop > start && stop - start <= PIECE) return;
    for (int64 f = threadIdx.x; f < features; f += THREADS) {
        Wide sum = 0;
        for (int64 begin = start; begin < stop; begin += PIECE) sum += partial[slot_of(begin, stop) * features + f];
        put(result[row * features + f], sum);
    }
}
