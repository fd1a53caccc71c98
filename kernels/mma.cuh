// Products of small matrices of a half type T on tensor cores, a warp together: PTX on the device (sm_80 and later),
// the same mapping of elements to lanes on the host.
//
// c[16, 8] += a[16, 16] b[16, 8], with float sums.  In lane l, let g = l / 4 and t = l % 4.  It holds
//   of a   four pairs:  rows g, g + 8, g, g + 8;  columns 2t and 2t + 1, the last two pairs 8 further
//   of b   two pairs:   column g;  rows 2t and 2t + 1, the second pair 8 further
//   of c   four floats: row g columns 2t, 2t + 1;  row g + 8 columns 2t, 2t + 1
// where a pair is two elements in 32 bits, the first in the low half.
//
// A tile is a matrix in shared memory, row by row, `pitch` elements from row to row.  `tile` points at the corner of
// the 16 x 16 part that is loaded, the same in all lanes.  Rows begin at multiples of 16 bytes, and no bank is asked
// twice if pitch is an odd multiple of 8.

#if !defined(GPUAD_ON_HOST) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "mma.sync m16n8k16 needs sm_80: define TENSOR_CORES as 0"
#endif

#ifdef GPUAD_ON_HOST

DEVICE uint32 pair_of(float16 low, float16 high) { return low.bits | uint32(high.bits) << 16; }
DEVICE uint32 pair_of(bfloat16 low, bfloat16 high) { return low.bits | uint32(high.bits) << 16; }

DEVICE uint32 round_pair(float low, float high, float16) { return pair_of(to_float16(low), to_float16(high)); }
DEVICE uint32 round_pair(float low, float high, bfloat16) { return pair_of(to_bfloat16(low), to_bfloat16(high)); }

template <typename E> DEVICE float element_of(uint32 pair, int place) { return widen(E{uint16(pair >> 16 * place)}); }

template <typename E> DEVICE void load_rows(uint32 (&a)[4], const E* tile, int pitch) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; ++i) {
        const E* at = tile + (g + i % 2 * 8) * pitch + 2 * t + i / 2 * 8;
        a[i] = pair_of(at[0], at[1]);
    }
}

template <typename E> DEVICE void load_columns(uint32 (&b)[4], const E* tile, int pitch) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; ++i) {
        const E* at = tile + (2 * t + i % 2 * 8) * pitch + g + i / 2 * 8;
        b[i] = pair_of(at[0], at[pitch]);
    }
}

template <typename E> DEVICE void load_columns_of_transpose(uint32 (&b)[4], const E* tile, int pitch) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; ++i) {
        const E* at = tile + (g + i / 2 * 8) * pitch + 2 * t + i % 2 * 8;
        b[i] = pair_of(at[0], at[1]);
    }
}

// What a lane brings to a product, which the stand-in computes for the whole warp at once.
template <typename E> struct Product {
    uint32 a[4], b[2];
    float c[4];

    static void compute(Product* const* lanes) {
        float a[16][16], b[16][8];
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 8; ++i) {
                const int g = lane / 4, t = lane % 4, half = i / 2 % 2 * 8, upper = i / 4 * 8;
                a[g + half][2 * t + i % 2 + upper] = element_of<E>(lanes[lane]->a[i / 2], i % 2);
                if (i < 4) b[2 * t + i % 2 + half][g] = element_of<E>(lanes[lane]->b[i / 2], i % 2);
            }
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i) {
                const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                float sum = lanes[lane]->c[i];
                for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
                lanes[lane]->c[i] = sum;
            }
    }
};

template <typename E>
DEVICE void multiply_add(float& c0, float& c1, float& c2, float& c3, const uint32 (&a)[4], uint32 b0, uint32 b1) {
    Product<E> mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {c0, c1, c2, c3}};
    stand_in::warp_together<Product<E>, Product<E>::compute>(0xffffffffu, mine, "mma.sync");
    c0 = mine.c[0], c1 = mine.c[1], c2 = mine.c[2], c3 = mine.c[3];
}

template <typename E> DEVICE void copy_16_bytes(E* shared, const E* global, bool valid) {
    for (int i = 0; i < int(16 / sizeof(E)); ++i) shared[i] = valid ? global[i] : E{};
}

DEVICE void wait_for_copies() {}

#else

DEVICE uint32 round_pair(float low, float high, float16) {
    uint32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

DEVICE uint32 round_pair(float low, float high, bfloat16) {
    uint32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

DEVICE uint32 shared_address(const void* p) { return uint32(__cvta_generic_to_shared(p)); }

// a[i]: what a product takes from the 16 x 16 part at `tile` as its first factor.
template <typename E> DEVICE void load_rows(uint32 (&a)[4], const E* tile, int pitch) {
    const int lane = threadIdx.x % 32;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(shared_address(tile + lane % 16 * pitch + lane / 16 * 8))
                 : "memory");
}

// b[0] and b[1]: the second factor that is columns 0 to 7 of the 16 x 16 part at `tile`; b[2] and b[3]: columns 8 to
// 15.
template <typename E> DEVICE void load_columns(uint32 (&b)[4], const E* tile, int pitch) {
    const int lane = threadIdx.x % 32;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(shared_address(tile + lane % 16 * pitch + lane / 16 * 8))
                 : "memory");
}

// The same of the transpose of the part: rows 0 to 7 of the tile, then rows 8 to 15.
template <typename E> DEVICE void load_columns_of_transpose(uint32 (&b)[4], const E* tile, int pitch) {
    const int lane = threadIdx.x % 32;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(shared_address(tile + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8))
                 : "memory");
}

template <typename E> struct Product;
template <> struct Product<float16> {
    DEVICE static void add(float& c0, float& c1, float& c2, float& c3, const uint32 (&a)[4], uint32 b0, uint32 b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};
template <> struct Product<bfloat16> {
    DEVICE static void add(float& c0, float& c1, float& c2, float& c3, const uint32 (&a)[4], uint32 b0, uint32 b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

template <typename E>
DEVICE void multiply_add(float& c0, float& c1, float& c2, float& c3, const uint32 (&a)[4], uint32 b0, uint32 b1) {
    Product<E>::add(c0, c1, c2, c3, a, b0, b1);
}

// Starts to copy 16 bytes to shared memory, or to clear them there where there is nothing `valid` to copy.
template <typename E> DEVICE void copy_16_bytes(E* shared, const E* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// Returns when the copies that this thread has started are done; a barrier tells the others.
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#endif
