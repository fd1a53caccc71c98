// out += size + the sum over pieces b of
//     mix(b G + sum over i < WORDS / 2 of (words[b, i] + key(i)) (words[b, WORDS / 2 + i] + key'(i)))
// mod 2^64, for the 32-bit words of `size` bytes, zeros behind the last: 64 bits that depend on every byte and on its
// place.  kernels/digest.cpp computes the same on the CPU, and says why changes show.
//
//   data   uint8[size], contiguous, at any address
//   out    uint64[1], 0 before
//
// Reference: `expected` in tests/test_digest.py.
//
//   entry    threads   grid x                                        no dynamic shared memory
//   digest   256       at most ceil(size / (WARPS * PIECE))      16 bytes at once where the address allows
//
// A warp takes whole pieces, each as many further as the grid has warps.  Integers are added in any order to the same
// sum: the atomic one has the same bits each time, whatever the grid.
#include "elements.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int WORDS = 512;                       // of a piece
constexpr int PIECE = 4 * WORDS;                 // its bytes
constexpr int AT_ONCE = 4;                       // words that a thread loads together
constexpr int LOADS = WORDS / (AT_ONCE * WARP);  // by each thread, for a piece
constexpr int STEP = 16 * WARP;                  // bytes from a thread's load to its next
constexpr uint64 G = 0x9E3779B97F4A7C15u;

DEVICE uint64 mix(uint64 x) {  // as SplitMix64 does: one to one
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

// The words from byte `at` on, of bytes that lie anywhere.
DEVICE Vector<uint32> assembled(const uint8* data, int64 size, int64 at) {
    Vector<uint32> x;
    for (int k = 0; k < AT_ONCE; ++k, at += 4) {
        x.at[k] = 0;
        for (int byte = 0; byte < 4; ++byte)
            if (at + byte < size) x.at[k] |= uint32(data[at + byte]) << 8 * byte;
    }
    return x;
}

KERNEL __launch_bounds__(THREADS) digest(const uint8* data, int64 size, uint64* out) {
    __shared__ Vector<uint32> low[WORDS / 2 / AT_ONCE], high[WORDS / 2 / AT_ONCE];  // the halves of the keys
    for (int i = threadIdx.x; i < WORDS / 2; i += THREADS) {
        const uint64 key = mix((i + 1) * G);
        low[i / AT_ONCE].at[i % AT_ONCE] = uint32(key);
        high[i / AT_ONCE].at[i % AT_ONCE] = uint32(key >> 32);
    }
    __syncthreads();
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int64 pieces = (size + PIECE - 1) / PIECE;
    uint64 sum = 0;
    for (int64 b = int64(blockIdx.x) * WARPS + warp; b < pieces; b += int64(gridDim.x) * WARPS) {
        const int64 begin = b * PIECE + lane * 16;
        Vector<uint32> x[LOADS];
        if (aligned(data) && (b + 1) * PIECE <= size) {
#pragma unroll
            for (int j = 0; j < LOADS; ++j) x[j] = *reinterpret_cast<const Vector<uint32>*>(data + begin + j * STEP);
        } else {
#pragma unroll
            for (int j = 0; j < LOADS; ++j) x[j] = assembled(data, size, begin + j * STEP);
        }
        uint64 of_piece = 0;
#pragma unroll
        for (int j = 0; j < LOADS / 2; ++j)
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                const uint32 first = x[j].at[k] + low[j * WARP + lane].at[k];
                const uint32 second = x[j + LOADS / 2].at[k] + high[j * WARP + lane].at[k];
                of_piece += uint64(first) * second;
            }
        of_piece = lanes_sum(of_piece);
        if (lane == 0) sum += mix(b * G + of_piece);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) atomicAdd(out, blockIdx.x ? sum : sum + size);
}
