// Slices added up by their indexes along one axis, in one order, without atomics: the gradient of a table of which rows
// were taken, or of `take` along any axis.
//
//   x         T[before, places, width]        result   T[before, rows, width], zeros at first
//   index     INDEX[places]                   order    int64[places]: a stable argsort of `index`
//   starts    int64[rows + 1]: how many indexes are below each row
//   partial   WIDE[2 * (places / PIECE + 1), before * width], scratch;  WIDE is float, or double if T is double
//
// result[b, r, c] is the sum of x[b, k, c] over all k with index[k] == r.  All contiguous.  What an index out of range
// brings is left out.
//
// Reference: scatter_add in gpuad/ops/index.py.  Half types are summed in float and rounded once.
//
// Defined before this text: T (float, double, float16 or bfloat16), INDEX (int32 or int64).
//
// The places of a row stand together in `order`.  They are summed in pieces of PIECE, by one block each, whatever number
// of rows there is and however often one is taken.  The sum of a row with one piece goes to `result`; those of others go
// to `partial`, and are added by the second entry.  A thread has 16 bytes of a slice, or one element if the arrays or
// their slices do not begin at multiples of 16 bytes.  The first entry is for others as well: where each row begins.
//
//   entry             threads   grid x                    grid y                              what it computes
//   segment_starts    256       ceil((rows + 1) / 256)    1                                   starts
//   scatter_pieces    128       ceil(places / PIECE)      ceil(before * width / 128) or less  result, partial
//   scatter_finish    128       ceil(places / PIECE)      the same                            result of longer rows
//
// No dynamic shared memory.  They run in this order; a grid of 0 is not launched.
#include "elements.cuh"

using Wide = decltype(widen(T()));
constexpr int THREADS = 128, PIECE = 64;

KERNEL __launch_bounds__(256) segment_starts(const INDEX* index, const int64* order, int64* starts, int64 places,
                                             int64 rows) {
    const int64 row = blockIdx.x * int64(blockDim.x) + threadIdx.x;
    if (row > rows) return;
    int64 low = 0, high = places;
    while (low < high) {
        const int64 middle = (low + high) / 2;
        if (index[order[middle]] < row) low = middle + 1;
        else high = middle;
    }
    starts[row] = low;
}

// Where the sum of the piece that begins at `begin` is kept: full pieces begin PIECE apart or more, and so do last
// ones.
DEVICE int64 slot_of(int64 begin, int64 stop) { return begin / PIECE * 2 + (stop - begin <= PIECE); }

struct Sizes {
    int64 before, places, rows, width;
};

template <int LENGTH> struct Sum {
    Wide at[LENGTH];
};

template <int LENGTH> DEVICE void add(Sum<LENGTH>& sum, const T* x) {
    struct alignas(LENGTH * sizeof(T)) Part {
        T at[LENGTH];
    };
    const Part part = *reinterpret_cast<const Part*>(x);
#pragma unroll
    for (int k = 0; k < LENGTH; ++k) sum.at[k] += widen(part.at[k]);
}

template <int LENGTH> DEVICE void write(const Sum<LENGTH>& sum, T* result) {
    struct alignas(LENGTH * sizeof(T)) Part {
        T at[LENGTH];
    } part;
#pragma unroll
    for (int k = 0; k < LENGTH; ++k) put(part.at[k], sum.at[k]);
    *reinterpret_cast<Part*>(result) = part;
}

// The piece from `begin` of the places of `row`, which are from `start` to `stop`.
template <int LENGTH>
DEVICE void sum_piece(const T* x, const int64* order, T* result, Wide* partial, Sizes n, int64 row, int64 start,
                      int64 begin, int64 stop) {
    const int64 end = begin + PIECE < stop ? begin + PIECE : stop, columns = n.before * n.width;
    const int64 first = (blockIdx.y * int64(THREADS) + threadIdx.x) * LENGTH;
    for (int64 c = first; c < columns; c += gridDim.y * int64(THREADS * LENGTH)) {
        const int64 b = c / n.width, inside = c % n.width;
        const T* slices = x + b * n.places * n.width + inside;
        Sum<LENGTH> sum = {};
#pragma unroll 4
        for (int64 i = begin; i < end; ++i) add(sum, slices + order[i] * n.width);
        if (stop - start <= PIECE) {
            write(sum, result + (b * n.rows + row) * n.width + inside);
        } else {
#pragma unroll
            for (int k = 0; k < LENGTH; ++k) partial[slot_of(begin, stop) * columns + c + k] = sum.at[k];
        }
    }
}

// A block takes the pieces that begin in its PIECE places.
KERNEL __launch_bounds__(THREADS) scatter_pieces(const T* x, const INDEX* index, const int64* order,
                                                 const int64* starts, T* result, Wide* partial, int64 before,
                                                 int64 places, int64 rows, int64 width) {
    const Sizes n = {before, places, rows, width};
    const bool vectors = aligned(x) && aligned(result) && width % Vector<T>::LENGTH == 0;
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
            if (vectors) sum_piece<Vector<T>::LENGTH>(x, order, result, partial, n, row, start, place, stop);
            else sum_piece<1>(x, order, result, partial, n, row, start, place, stop);
        }
        const int64 next = place - inside + PIECE;
        place = next < stop ? next : stop;
    }
}

// A block takes the row of more than one piece that begins in its PIECE places, of which there is one at most: that of
// the last place.
KERNEL __launch_bounds__(THREADS) scatter_finish(const INDEX* index, const int64* order, const int64* starts,
                                                 const Wide* partial, T* result, int64 before, int64 places, int64 rows,
                                                 int64 width) {
    const int64 begin = blockIdx.x * int64(PIECE), last = (begin + PIECE < places ? begin + PIECE : places) - 1;
    const int64 row = index[order[last]], columns = before * width;
    if (row < 0 || row >= rows) return;
    const int64 start = starts[row], stop = starts[row + 1];
    if (start < begin || stop - start <= PIECE) return;
    const int64 first = blockIdx.y * int64(THREADS) + threadIdx.x;
    for (int64 c = first; c < columns; c += gridDim.y * int64(THREADS)) {
        Wide sum = 0;
        for (int64 k = start; k < stop; k += PIECE) sum += partial[slot_of(k, stop) * columns + c];
        put(result[(c / width * rows + row) * width + c % width], sum);
    }
}
