// The cross-entropy of a chunk of logits, which become their own gradient: with the matmuls before and after it, a head
// that never holds all logits.
//
//   logits   T[rows, columns], `stride` elements from row to row, features contiguous: read, then overwritten
//   targets  INDEX[rows]                       loss   float[rows]
//   scale    float[1], in device memory: the cotangent of each loss
//   error    the device's error word
//
// With p = softmax(x) of a row x, its target t, and smoothing s:
//
//   loss   = log(sum(exp(x - top))) - (1 - s) * (x[t] - top) - s * mean(x - top),  where top = max(x)
//   x[c]  := scale * (p[c] - (1 - s) * (c == t) - s / columns)
//
// Both are 0 where t is `ignored`.  A target out of range sets OUT_OF_RANGE in the error word and counts as ignored.
//
// Reference: cross_entropy in gpuad/ops/rows.py with reduction="none", and its derivative.  Saved beside the kernels
// that fusion makes of it: the array of the gradient, and one of the three times that the logits are read.
//
// Defined before this text: T (float, float16 or bfloat16), INDEX (int32 or int64).
//
// One block of 512 threads for each row; grid x = rows, no dynamic shared memory.  A thread takes every 512th group of
// 16 bytes, loaded at once in rows that begin at a multiple of 16 bytes: the launcher makes `stride` such that all do.
#include "elements.cuh"

constexpr int THREADS = 512;

struct Bundle {
    static constexpr int LENGTH = Vector<T>::LENGTH;
    float at[LENGTH];
    int count;  // fewer at the end of a row
};

DEVICE Bundle read(const T* row, int first, int columns, bool vectors) {
    Bundle x;
    x.count = columns - first < Bundle::LENGTH ? columns - first : Bundle::LENGTH;
    Vector<T> stored = {};
    if (vectors && x.count == Bundle::LENGTH) {
        stored = *reinterpret_cast<const Vector<T>*>(row + first);
    } else {
#pragma unroll
        for (int k = 0; k < Bundle::LENGTH; ++k)
            if (k < x.count) stored.at[k] = row[first + k];
    }
#pragma unroll
    for (int k = 0; k < Bundle::LENGTH; ++k) x.at[k] = k < x.count ? widen(stored.at[k]) : -INFINITY;
    return x;
}

DEVICE void write(const Bundle& x, T* row, int first, bool vectors) {
    Vector<T> stored;
#pragma unroll
    for (int k = 0; k < Bundle::LENGTH; ++k) put(stored.at[k], x.at[k]);
    if (vectors && x.count == Bundle::LENGTH) {
        *reinterpret_cast<Vector<T>*>(row + first) = stored;
    } else {
#pragma unroll
        for (int k = 0; k < Bundle::LENGTH; ++k)
            if (k < x.count) row[first + k] = stored.at[k];
    }
}

KERNEL __launch_bounds__(THREADS) cross_entropy_in_place(
    T* logits, int64 stride, const INDEX* targets, float* loss, const float* scale, int32* error, int columns,
    int64 ignored, float smoothing) {
    T* row = logits + blockIdx.x * stride;
    const int64 target = targets[blockIdx.x];
    const bool vectors = aligned(row), wrong = target != ignored && (target < 0 || target >= columns);
    constexpr int STEP = THREADS * Bundle::LENGTH;
    const int begin = threadIdx.x * Bundle::LENGTH;

    if (wrong || target == ignored) {
        for (int first = begin; first < columns; first += STEP) {
            Bundle x = read(row, first, columns, vectors);
#pragma unroll
            for (int k = 0; k < Bundle::LENGTH; ++k) x.at[k] = 0;
            write(x, row, first, vectors);
        }
        if (threadIdx.x == 0) {
            loss[blockIdx.x] = 0;
            if (wrong) flag(error, OUT_OF_RANGE);
        }
        return;
    }

    // 1. the largest logit, and the sum of exp(logit - largest): each thread of its own, then of all
    float top = -INFINITY, total = 0, plain = 0;
    for (int first = begin; first < columns; first += STEP) {
        const Bundle x = read(row, first, columns, vectors);
        float largest = top;
#pragma unroll
        for (int k = 0; k < Bundle::LENGTH; ++k) largest = fmaxf(largest, x.at[k]);
        const float base = largest == -INFINITY ? 0.0f : largest;  // -inf less -inf would be nan
        total *= expf(top - base);
        top = largest;
#pragma unroll
        for (int k = 0; k < Bundle::LENGTH; ++k)
            if (k < x.count) {
                total += expf(x.at[k] - base);
                plain += x.at[k];
            }
    }
    const float own_top = top;
    top = block_max(top);
    total = block_sum(own_top == -INFINITY ? total : total * expf(own_top - top));
    if (smoothing != 0) plain = block_sum(plain);
    if (threadIdx.x == 0) {
        float wanted = widen(row[target]) - top;
        if (smoothing != 0) wanted = (1 - smoothing) * wanted + smoothing * (plain / columns - top);
        loss[blockIdx.x] = logf(total) - wanted;
    }
    __syncthreads();  // row[target] has been read

    // 2. the gradient
    const float each = *scale / total, of_target = (1 - smoothing) * *scale, of_all = *scale * (smoothing / columns);
    for (int first = begin; first < columns; first += STEP) {
        Bundle x = read(row, first, columns, vectors);
#pragma unroll
        for (int k = 0; k < Bundle::LENGTH; ++k)
            x.at[k] = expf(x.at[k] - top) * each - (first + k == target ? of_target : 0.0f) - of_all;
        write(x, row, first, vectors);
    }
}
