"""How the loops of a kernel's text go over threads: on a GPU, and on a CPU.

    FUSED              before an entry, which takes what it is to do in ITEMS
    GROUPS(g, n)       all threads share [0, n): each takes groups of WIDTH elements that begin at g
    LOOP(i, n)         all threads share [0, n), one by one
    TEAMS(r, n)        teams of threads share [0, n); on a CPU a team is one thread
    SPAN(g, a, b)      the members of a team share [a, b), by groups of WIDTH
    EACH(j, g, n)      the elements g + j of a group that are below n
    ONE, FIRST         before a statement that one member of a team, or one thread of all, executes
    SCRATCH(bytes)     declares `scratch`: memory of the team's own

A group of a contiguous array is read by `group` and written by `results` and `put`: on a GPU by accesses of 16 bytes
where memory is aligned; on a CPU a group is one element and the compiler makes vectors of the loop, or WIDTH of them
where random numbers are `drawn` for all together.

COMBINE(T, expression) is a function of a and b.  A reduction is an object that takes values and says what they make
`together`: `row_total` for the columns of a row, `chunk_total` for a chunk of elements, `columns` for each column by
itself; `whole` and `down` reduce partial results.
Which values are combined in which order depends on their number alone.
"""

from __future__ import annotations

STRANDS = 32  # partial results of one reduction that a CPU keeps at a time
DOWN = 16  # the same for one over partial results
WAVE = 512  # elements of a chunk that 32 threads of a GPU reduce

_COMMON = f"""
#define COMBINE(T, expression) [](T a, T b) -> T {{ return expression; }}
constexpr int DOWN = {DOWN};
template <typename T> struct Limits;
#define LIMITS(T, least, most) template <> struct Limits<T> {{ static constexpr T low = least, high = most; }};
LIMITS(bool, false, true)
LIMITS(int8, -128, 127)
LIMITS(int16, -32768, 32767)
LIMITS(int32, -2147483647 - 1, 2147483647)
LIMITS(int64, -9223372036854775807 - 1, 9223372036854775807)
LIMITS(uint8, 0, 255)
LIMITS(uint16, 0, 65535)
LIMITS(uint32, 0, 4294967295u)
LIMITS(uint64, 0, 18446744073709551615u)
// The results p[0], p[stride], ... of n chunks.  Nothing at all makes 0 of a sum: -0 is only where one begins.
template <typename T, typename Op> DEVICE T down(const T* p, int64 stride, int64 n, Op op, T begin) {{
    T part[DOWN];
    for (int lane = 0; lane < DOWN; ++lane) part[lane] = lane < n ? p[lane * stride] : begin;
    int64 k = DOWN;
    for (; k + DOWN <= n; k += DOWN)
        for (int lane = 0; lane < DOWN; ++lane) part[lane] = op(part[lane], p[(k + lane) * stride]);
    for (int lane = 0; k + lane < n; ++lane) part[lane] = op(part[lane], p[(k + lane) * stride]);
    for (int half = DOWN / 2; half; half /= 2)
        for (int lane = 0; lane < half; ++lane) part[lane] = op(part[lane], part[lane + half]);
    return n ? part[0] : T(begin + T(0));
}}
"""

CUDA_TEAMS = (
    _COMMON
    + f"constexpr int WAVE = {WAVE};"
    + """
#define FUSED KERNEL __launch_bounds__(512)
#define ITEMS
#define MEMBER (blockIdx.y * int64(blockDim.x) + threadIdx.x)
#define MEMBERS (gridDim.y * int64(blockDim.x))
#define LOOP(i, n) \\
    for (int64 i = blockIdx.x * int64(blockDim.x) + threadIdx.x; i < (n); i += int64(blockDim.x) * gridDim.x)
#define GROUPS(g, n) \\
    for (int64 g = (blockIdx.x * int64(blockDim.x) + threadIdx.x) * WIDTH; g < (n); \\
         g += int64(blockDim.x) * gridDim.x * WIDTH)
#define TEAMS(r, n) \\
    for (int64 r = blockIdx.x * int64(blockDim.y) + threadIdx.y; r < (n); r += int64(blockDim.y) * gridDim.x)
#define SPAN(g, a, b) for (int64 g = (a) + MEMBER * WIDTH; g < (b); g += MEMBERS * WIDTH)
#define EACH(j, g, n) _Pragma("unroll") for (int j = 0; j < WIDTH; ++j) if (g + j < (n))
#define ONE if (MEMBER == 0)
#define FIRST if (blockIdx.x == 0 && threadIdx.x == 0)
#define SCRATCH(bytes) \\
    extern __shared__ __align__(16) unsigned char shared_memory[]; \\
    unsigned char* const scratch = shared_memory + threadIdx.y * (bytes);

template <typename T> struct alignas(sizeof(T) * WIDTH < 16 ? sizeof(T) * WIDTH : 16) Group {
    T element[WIDTH];
    DEVICE T& operator[](int j) { return element[j]; }
    DEVICE const T& operator[](int j) const { return element[j]; }
};
template <typename T> DEVICE bool whole_group(const T* p, int64 g, int64 n) {
    return g + WIDTH <= n && uint64(p + g) % alignof(Group<T>) == 0;
}
template <typename T> DEVICE Group<T> group(const T* p, int64 g, int64 n) {
    if (whole_group(p, g, n)) return *reinterpret_cast<const Group<T>*>(p + g);
    Group<T> found = {};
    EACH(j, g, n) found[j] = p[g + j];
    return found;
}
template <typename T> DEVICE Group<T> results(const T*, int64) { return {}; }
template <typename T> DEVICE void put(const Group<T>& q, T* p, int64 g, int64 n) {
    if (whole_group(p, g, n)) {
        *reinterpret_cast<Group<T>*>(p + g) = q;
        return;
    }
    EACH(j, g, n) p[g + j] = q[j];
}

// What `v` of each thread of a team makes together.  A team is 1, 2, 4, ... 32 threads of a warp, or a whole block.
template <typename T> struct Moved { using type = T; };  // what a shuffle can move
template <> struct Moved<bool> { using type = int32; };
template <> struct Moved<int8> { using type = int32; };
template <> struct Moved<int16> { using type = int32; };
template <> struct Moved<uint8> { using type = int32; };
template <> struct Moved<uint16> { using type = int32; };
template <typename T, typename Op> DEVICE T over_lanes(T v, int lanes, Op op) {
    using M = typename Moved<T>::type;
    const int lane = (threadIdx.y * blockDim.x + threadIdx.x) % 32;
    const uint32 mask = (lanes == 32 ? ~0u : (1u << lanes) - 1) << (lane / lanes * lanes);
    for (int step = lanes / 2; step; step /= 2) v = op(v, T(__shfl_xor_sync(mask, M(v), step)));
    return T(__shfl_sync(mask, M(v), lane / lanes * lanes));
}
template <typename T, typename Op> DEVICE T over_team(T v, Op op, T begin) {
    v = over_lanes(v, blockDim.x < 32 ? int(blockDim.x) : 32, op);
    if (blockDim.x <= 32) return v;
    __shared__ T of_warp[32];
    __syncthreads();  // what was read from here before has been read
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
    __syncthreads();
    const int lane = threadIdx.x % 32;
    return over_lanes(lane < blockDim.x / 32 ? of_warp[lane] : begin, 32, op);
}

template <typename T, typename Op> struct RowTotal {
    Op op;
    T begin, so_far;
    DEVICE void take(int64, T v) { so_far = op(so_far, v); }
    DEVICE T together(int64 n) {
        const T total = over_team(so_far, op, begin);
        return n ? total : T(begin + T(0));
    }
};
template <typename T, typename Op> DEVICE RowTotal<T, Op> row_total(T*, Op op, T begin) { return {op, begin, begin}; }

template <typename T, typename Op> struct ChunkTotal {
    T* values;
    Op op;
    T begin;
    DEVICE void take(int64 at, T v) { values[at] = v; }
    DEVICE T together(int64 n) {  // by waves, whatever the number of threads, a multiple of 32, is
        __shared__ T of_wave[16];
        const int lane = threadIdx.x % 32;
        __syncthreads();
        for (int wave = threadIdx.x / 32; wave * WAVE < n; wave += blockDim.x / 32) {
            T v = begin;
            for (int64 k = wave * WAVE + lane; k < n && k < (wave + 1) * WAVE; k += 32) v = op(v, values[k]);
            v = over_lanes(v, 32, op);
            if (lane == 0) of_wave[wave] = v;
        }
        __syncthreads();
        T total = begin;
        for (int wave = 0; wave * WAVE < n; ++wave) total = op(total, of_wave[wave]);
        __syncthreads();  // before the next chunk is written here
        return total;
    }
};
template <typename T, typename Op> DEVICE ChunkTotal<T, Op> chunk_total(T* values, Op op, T begin) {
    return {values, op, begin};
}

template <typename T, typename Op> struct Columns {  // each thread reads and writes columns of its own
    T* at;
    Op op;
    DEVICE void take(int64 c, T v, bool again) { at[c] = again ? op(at[c], v) : v; }
    DEVICE void flush(T* to, int64 cols) {
        if (at != to) SPAN(g, 0, cols) EACH(j, g, cols) to[g + j] = at[g + j];
    }
};
template <typename T, typename Op> DEVICE Columns<T, Op> columns(T* partial, T* shared, Op op, T) {
    return {COLUMNS_IN_SHARED ? shared : partial, op};
}

template <typename T, typename Op> DEVICE T whole(const T* p, int64 n, Op op, T begin) {  // one block
    T v = begin;
    _Pragma("unroll 4") for (int64 k = threadIdx.x; k < n; k += blockDim.x) v = op(v, p[k]);
    const T total = over_team(v, op, begin);
    return n ? total : T(begin + T(0));
}
"""
)

HOST_TEAMS = (
    _COMMON
    + f"constexpr int STRANDS = {STRANDS};"
    + """
union Slot { void* p; int64 i; double d; float f; uint64 u; bool b; };
struct Items { int64 first, last; unsigned char* scratch; };  // of the outermost loop, and memory of this thread's own
#define FUSED KERNEL
#define ITEMS , const Items items
#define VECTORS _Pragma("GCC ivdep")
#define LOOP(i, n) VECTORS for (int64 i = items.first; i < items.last; ++i)
#define TEAMS(r, n) for (int64 r = items.first; r < items.last; ++r)
#if WIDTH == 1
#define GROUPS(g, n) VECTORS for (int64 g = items.first; g < items.last; ++g)
#define SPAN(g, a, b) VECTORS for (int64 g = (a); g < (b); ++g)
#define EACH(j, g, n) if (constexpr int j = 0; true)
#else
#define GROUPS(g, n) for (int64 g = items.first; g < items.last; g += WIDTH)
#define SPAN(g, a, b) for (int64 g = (a); g < (b); g += WIDTH)
#define EACH(j, g, n) VECTORS for (int j = 0, stop_ = int((n) - (g) < WIDTH ? (n) - (g) : WIDTH); j < stop_; ++j)
#endif
#define ONE
#define FIRST
#define SCRATCH(bytes) unsigned char* const scratch = items.scratch;

template <typename T> DEVICE const T* group(const T* p, int64 g, int64) { return p + g; }
template <typename T> DEVICE T* results(T* p, int64 g) { return p + g; }
template <typename T> DEVICE void put(const T*, T*, int64, int64) {}

template <typename T, typename Op> DEVICE T over_lanes(const T* values, int64 n, Op op, T begin) {
    T part[STRANDS];
    for (int lane = 0; lane < STRANDS; ++lane) part[lane] = begin;
    int64 k = 0;
    for (; k + STRANDS <= n; k += STRANDS)
        for (int lane = 0; lane < STRANDS; ++lane) part[lane] = op(part[lane], values[k + lane]);
    for (int lane = 0; k + lane < n; ++lane) part[lane] = op(part[lane], values[k + lane]);
    for (int half = STRANDS / 2; half; half /= 2)
        for (int lane = 0; lane < half; ++lane) part[lane] = op(part[lane], part[lane + half]);
    return n ? part[0] : T(begin + T(0));
}

template <typename T, typename Op> struct Total {  // values are collected, and reduced when all are there
    T* values;
    Op op;
    T begin;
    MEMBER_OF_STRUCT void take(int64 at, T v) { values[at] = v; }
    MEMBER_OF_STRUCT T together(int64 n) { return over_lanes(values, n, op, begin); }
};
template <typename T, typename Op> DEVICE Total<T, Op> row_total(T* values, Op op, T begin) {
    return {values, op, begin};
}
template <typename T, typename Op> DEVICE Total<T, Op> chunk_total(T* values, Op op, T begin) {
    return {values, op, begin};
}

template <typename T, typename Op> struct Columns {
    T* at;
    Op op;
    MEMBER_OF_STRUCT void take(int64 c, T v, bool again) { at[c] = again ? op(at[c], v) : v; }
    inline void flush(T*, int64) {}
};
template <typename T, typename Op> DEVICE Columns<T, Op> columns(T* partial, T*, Op op, T) { return {partial, op}; }

template <typename T, typename Op> DEVICE T whole(const T* p, int64 n, Op op, T begin) {
    return over_lanes(p, n, op, begin);
}
"""
)
