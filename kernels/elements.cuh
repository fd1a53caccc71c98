// What the kernels share: rounding to what memory holds, vectors of 16 bytes, sums over a warp and a block, the error
// word.  The prelude (gpuad/fuse/prelude.py) stands before this text and gives `widen`, `to_float16`, `to_bfloat16`.

constexpr int WARP = 32;
constexpr uint32 EVERY_LANE = 0xffffffffu;

// Bits of a device's error word, as in gpuad/devices/device.py.
constexpr int NON_FINITE = 1;
constexpr int OUT_OF_RANGE = 2;  // there: INDEX

DEVICE void put(double& place, double x) { place = x; }
DEVICE void put(float& place, float x) { place = x; }
DEVICE void put(float16& place, float x) { place = to_float16(x); }
DEVICE void put(bfloat16& place, float x) { place = to_bfloat16(x); }

// 16 bytes of elements, which memory moves at once where the address is a multiple of 16.
template <typename E> struct alignas(16) Vector {
    static constexpr int LENGTH = 16 / sizeof(E);
    E at[LENGTH];
};

DEVICE bool aligned(const void* p) { return uint64(p) % 16 == 0; }

// The sum of `x` over groups of SIZE neighbouring lanes; each lane gets it.
template <int SIZE = WARP, typename E> DEVICE E lanes_sum(E x) {
    for (int apart = SIZE / 2; apart; apart /= 2) x += __shfl_xor_sync(EVERY_LANE, x, apart);
    return x;
}

// The sum of `x` over a block of at most 1024 threads, a multiple of 32; each thread gets it.
template <typename E> DEVICE E block_sum(E x) {
    __shared__ E of_warp[WARP];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    x = lanes_sum(x);
    __syncthreads();  // `of_warp` may still be read from the last time
    if (lane == 0) of_warp[warp] = x;
    __syncthreads();
    return lanes_sum(lane < int(blockDim.x) / WARP ? of_warp[lane] : E(0));
}

// The largest `x` of a block, -inf or more; nan counts for nothing.
DEVICE float block_max(float x) {
    __shared__ float of_warp[WARP];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int apart = WARP / 2; apart; apart /= 2) x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, apart));
    __syncthreads();  // `of_warp` may still be read from the last time
    if (lane == 0) of_warp[warp] = x;
    __syncthreads();
    x = lane < int(blockDim.x) / WARP ? of_warp[lane] : -INFINITY;
    for (int apart = WARP / 2; apart; apart /= 2) x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, apart));
    return x;
}

DEVICE void flag(int32* error, int bit) { atomicOr(error, bit); }
