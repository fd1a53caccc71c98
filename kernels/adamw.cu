// A step of Adam or AdamW over all parameters of one dtype, whatever groups and arrays they are in: one launch.
//
//   table     int64[segments, 8], see segments.cuh: for each parameter the addresses of its values T, of its gradient G
//             (0: it stays as it is), of its master weights (float; 0 without), of m and v (S); its size, its first
//             block, and which row of `options` it follows
//   options   float[kinds, 8]: SHRINK = 1 - lr * decay, or 1; DECAY, what of the values is added to the gradient, or 0;
//             1 - b1; b2; 1 - b2; lr / (1 - b1^n); sqrt(1 - b2^n); eps, where n is the number of the step
//   outcome   float[3] of norm.cu: the gradient is multiplied by outcome[1]; if outcome[2] is 0 nothing changes
//
// Reference: Adam.rule in gpuad/optim/rules.py, with the same roundings in float.  With master weights the values
// are only written: they are the master weights rounded.
//
// What it saves beside fusion's kernel, which is one for each group and dtype and as fast over flat arrays: the copy of
// all gradients side by side (a read and a write of each), launches, and the kernels that spread options over
// parameters.
//
// Defined before this text: T, G and S, each float, float16 or bfloat16.  256 threads, grid x = sum of ceil(size / CHUNK),
// no dynamic shared memory; a grid of 0 is not launched.  A thread takes 8 elements at a time, with accesses of 16
// bytes in segments whose addresses are all multiples of 16.
#include "segments.cuh"

enum Option { SHRINK, DECAY, TAKE_M, KEEP_V, TAKE_V, SIZE, ROOT, EPS, OPTIONS };

KERNEL __launch_bounds__(THREADS) adamw(const int64* table, int segments, const float* options, const float* outcome) {
    if (outcome[2] == 0) return;
    const int64* segment = segment_of(table, segments, blockIdx.x);
    const int64 begin = (blockIdx.x - segment[FIRST_BLOCK]) * CHUNK, left = segment[LENGTH] - begin;
    const int size = left < CHUNK ? int(left) : CHUNK;
    const G* gradient = reinterpret_cast<const G*>(segment[GRADIENT]);
    if (!gradient) return;
    T* values = reinterpret_cast<T*>(segment[VALUES]);
    float* master = reinterpret_cast<float*>(segment[MASTER]);
    S* of_m = reinterpret_cast<S*>(segment[M]);
    S* of_v = reinterpret_cast<S*>(segment[V]);
    float o[OPTIONS];
#pragma unroll
    for (int k = 0; k < OPTIONS; ++k) o[k] = options[segment[KIND] * OPTIONS + k];
    const float factor = outcome[1];
    const bool vectors = aligned(gradient) && aligned(values) && aligned(master) && aligned(of_m) && aligned(of_v);
    for (int64 i = begin + threadIdx.x * AT_ONCE; i < begin + size; i += THREADS * AT_ONCE) {
        const int count = begin + size - i < AT_ONCE ? int(begin + size - i) : AT_ONCE;
        float g[AT_ONCE], p[AT_ONCE], m[AT_ONCE], v[AT_ONCE];
        load(g, gradient + i, count, vectors);
        if (master) load(p, master + i, count, vectors);
        else load(p, values + i, count, vectors);
        load(m, of_m + i, count, vectors);
        load(v, of_v + i, count, vectors);
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k) {
            g[k] *= factor;
            if (o[DECAY] != 0) g[k] += o[DECAY] * p[k];
            m[k] += o[TAKE_M] * (g[k] - m[k]);
            v[k] = v[k] * o[KEEP_V] + o[TAKE_V] * (g[k] * g[k]);
            p[k] = p[k] * o[SHRINK] - o[SIZE] * (m[k] / (sqrtf(v[k]) / o[ROOT] + o[EPS]));
        }
        if (master) store(p, master + i, count, vectors);
        store(p, values + i, count, vectors);
        store(m, of_m + i, count, vectors);
        store(v, of_v + i, count, vectors);
    }
}
