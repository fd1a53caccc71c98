// A table of arrays, in device memory, and the share of a block in them: adamw.cu and norm.cu run over many arrays in
// one launch.
//
// The table is int64[segments, 8]; a row says where a parameter and what belongs to it lie, as addresses and numbers.
// A block takes CHUNK elements of one segment, so the launcher gives a segment ceil(size / CHUNK) blocks, none if it
// has no elements, and writes the number of blocks before it into the row.
#include "elements.cuh"

constexpr int THREADS = 256, CHUNK = 4096;
constexpr int AT_ONCE = 8;  // elements that a thread loads and stores together

enum Column { VALUES, GRADIENT, MASTER, M, V, LENGTH, FIRST_BLOCK, KIND, COLUMNS };

// The row of the table for block `block`: the last one that begins at or before it.  Rows without elements share their
// first block with the next row, which is later.
DEVICE const int64* segment_of(const int64* table, int segments, int64 block) {
    int low = 0, high = segments - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (table[middle * COLUMNS + FIRST_BLOCK] <= block) low = middle;
        else high = middle - 1;
    }
    return table + low * COLUMNS;
}

// `count` elements, at most AT_ONCE, as floats; 0 for the others.
template <typename E> DEVICE void load(float (&x)[AT_ONCE], const E* from, int count, bool vectors) {
    Vector<E> parts[AT_ONCE / Vector<E>::LENGTH] = {};
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) {
        constexpr int LENGTH = Vector<E>::LENGTH;
        if (vectors && count == AT_ONCE) {
            if (k % LENGTH == 0) parts[k / LENGTH] = *reinterpret_cast<const Vector<E>*>(from + k);
        } else if (k < count) {
            parts[k / LENGTH].at[k % LENGTH] = from[k];
        }
    }
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) x[k] = widen(parts[k / Vector<E>::LENGTH].at[k % Vector<E>::LENGTH]);
}

template <typename E> DEVICE void store(const float (&x)[AT_ONCE], E* to, int count, bool vectors) {
    Vector<E> parts[AT_ONCE / Vector<E>::LENGTH];
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) {
        constexpr int LENGTH = Vector<E>::LENGTH;
        put(parts[k / LENGTH].at[k % LENGTH], x[k]);
        if (vectors && count == AT_ONCE) {
            if (k % LENGTH == LENGTH - 1) *reinterpret_cast<Vector<E>*>(to + k - k % LENGTH) = parts[k / LENGTH];
        } else if (k < count) {
            to[k] = parts[k / LENGTH].at[k % LENGTH];
        }
    }
}
