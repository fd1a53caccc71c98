// The norm of many gradients together, what clips it, and whether a step may be taken: two launches, no synchronization.
//
//   table     int64[segments, 8], see segments.cuh; GRADIENT (0: none), LENGTH and FIRST_BLOCK are read
//   partial   float[blocks]: the sum of the squares of a block's elements
//   outcome   float[3]: the norm; min(1, max_norm / (norm + 1e-6)); 1 if all is well, else 0
//   error     int32[4], the device's error word: a norm that is not finite sets NON_FINITE, and leaves `number` as the
//             first check that failed if no other has; see gpuad/devices/cuda_checks.py
//
// All is well if the norm is finite and the error word 0: a step after an index out of range changes nothing either.
//
// Reference: norm_of, limit and isfinite in gpuad/optim/.  Saved beside fusion's kernels, which sum arrays one by one
// or side by side in a copy: all launches but two, and the copy, a read and a write of all gradients.
//
// Defined before this text: T, the dtype of the gradients (float, float16 or bfloat16).  Gradients of several dtypes
// take a launch of gradient_squares each, into parts of one `partial`.
//
//   entry              threads   grid x                                   no dynamic shared memory
//   gradient_squares   256       blocks = sum of ceil(size / CHUNK)       16 bytes at once where an address allows
//   gradient_norm      1024      1
//
// An element's place decides where it is added, so the sums have the same bits each time.  Without clipping max_norm is
// infinite.  A grid of 0 is not launched.
#include "segments.cuh"

KERNEL __launch_bounds__(THREADS) gradient_squares(const int64* table, int segments, float* partial) {
    const int64* segment = segment_of(table, segments, blockIdx.x);
    const T* g = reinterpret_cast<const T*>(segment[GRADIENT]);
    const int64 begin = (blockIdx.x - segment[FIRST_BLOCK]) * CHUNK, left = segment[LENGTH] - begin;
    const int size = left < CHUNK ? int(left) : CHUNK;
    float sum = 0;
    if (g)
        for (int i = threadIdx.x * AT_ONCE; i < size; i += THREADS * AT_ONCE) {
            float x[AT_ONCE];
            load(x, g + begin + i, size - i < AT_ONCE ? size - i : AT_ONCE, aligned(g));
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) sum += x[k] * x[k];
        }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

KERNEL __launch_bounds__(1024) gradient_norm(const float* partial, int64 blocks, float max_norm, float* outcome,
                                             int32* error, int32 number) {
    float sum = 0;
    for (int64 i = threadIdx.x; i < blocks; i += blockDim.x) sum += partial[i];
    const float norm = sqrtf(block_sum(sum));
    if (threadIdx.x) return;
    const float factor = max_norm / (norm + 1e-6f);
    outcome[0] = norm;
    outcome[1] = factor < 1 ? factor : 1.0f;
    if (!(norm < INFINITY)) {
        atomicCAS(error + 1, 0, number);
        flag(error, NON_FINITE);
    }
    outcome[2] = *error == 0;
}
