// CUDA's thread model on one CPU thread, for kernel text that is compiled by g++.
//
// Each CUDA thread of a block is a fibre; blocks run one after the other.  A barrier knows who has arrived, and is looked
// at again when a thread returns.  cuda_on_host.cpp has the fibres; this has what kernels call.
//
// Stricter than a GPU where that shows mistakes: shared memory is poisoned at the start of each block, the threads of a
// block must wait at one line, a shuffle from a thread that takes no part gives poison, __activemask() gives no more
// than the thread itself, and an access past the end of an array or of the dynamic shared memory is an error.
#pragma once
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_math.hpp"

extern uint3 threadIdx, blockIdx;  // set by the scheduler
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace stand_in {

// What the threads of a warp do together: `lanes` are what each of the 32 brought, null where one takes no part.
using Together = void (*)(void* const* lanes);

int wait_for_block(int predicate, const char* what, int line);  // how many threads brought a predicate that is not 0
void wait_for_warp(unsigned mask, void* mine, Together compute, const char* what, int line);
void let_others_run();
int lane();
extern unsigned char* dynamic_shared;

// `compute(lanes)` once for all threads in `mask`, each of which brings a T: tensor cores are made of this.
template <class T, void (*compute)(T* const* lanes)>
void warp_together(unsigned mask, T& mine, const char* what, int line = __builtin_LINE()) {
    wait_for_warp(mask, &mine, [](void* const* lanes) { compute(reinterpret_cast<T* const*>(lanes)); }, what, line);
}

template <class T> struct Shuffle {
    T value;
    int source;
    T result;

    static void compute(Shuffle* const* lanes) {
        for (int i = 0; i < warpSize; ++i)
            if (lanes[i]) {
                const Shuffle* source = lanes[lanes[i]->source];
                if (source) lanes[i]->result = source->value;
                else memset(&lanes[i]->result, 0xFF, sizeof(T));  // a nan, or an index that is out of range
            }
    }
};

template <class T> T shuffle(unsigned mask, T value, int source, const char* what, int line) {
    static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4, "CUDA shuffles numbers of 4 and 8 bytes");
    Shuffle<T> mine{value, source, value};
    warp_together<Shuffle<T>, Shuffle<T>::compute>(mask, mine, what, line);
    return mine.result;
}

struct Vote {
    bool predicate;
    unsigned voted, asked;

    static void compute(Vote* const* lanes) {
        unsigned voted = 0, asked = 0;
        for (int i = 0; i < warpSize; ++i)
            if (lanes[i]) asked |= 1u << i, voted |= unsigned(lanes[i]->predicate) << i;
        for (int i = 0; i < warpSize; ++i)
            if (lanes[i]) lanes[i]->voted = voted, lanes[i]->asked = asked;
    }
};

inline Vote vote(unsigned mask, bool predicate, const char* what, int line) {
    Vote mine{predicate, 0, 0};
    warp_together<Vote, Vote::compute>(mask, mine, what, line);
    return mine;
}

// Calls an entry with arguments as the driver takes them: the address of each.
template <class... P, size_t... I> void call(void (*entry)(P...), void** arguments, std::index_sequence<I...>) {
    entry(*static_cast<std::remove_reference_t<P>*>(arguments[I])...);
}
template <auto entry> struct Launcher;
template <class... P, void (*entry)(P...)> struct Launcher<entry> {
    static void run(void** arguments) { call(entry, arguments, std::index_sequence_for<P...>()); }
    static constexpr char kinds[] = {(std::is_pointer_v<P> ? '*' : '.')..., 0};
};

// What a compiled library says of each of its entries.
struct Entry {
    const char* name;
    const char* kinds;  // a letter for each parameter: * for a pointer, . for a value
    void (*run)(void** arguments);
    unsigned char *shared, *shared_end;  // static shared memory of the whole library
};

}  // namespace stand_in

// --- barriers, shuffles, votes ------------------------------------------------------------------

#define FULL_WARP 0xffffffffu
#define HERE int line = __builtin_LINE()
inline void __syncthreads(HERE) { stand_in::wait_for_block(0, "__syncthreads", line); }
inline int __syncthreads_count(int predicate, HERE) {
    return stand_in::wait_for_block(predicate != 0, "__syncthreads_count", line);
}
inline int __syncthreads_or(int predicate, HERE) {
    return stand_in::wait_for_block(predicate != 0, "__syncthreads_or", line) > 0;
}
inline int __syncthreads_and(int predicate, HERE) {
    return stand_in::wait_for_block(predicate == 0, "__syncthreads_and", line) == 0;
}
inline void __syncwarp(unsigned mask = FULL_WARP, HERE) { stand_in::vote(mask, false, "__syncwarp", line); }
inline unsigned __activemask() { return 1u << stand_in::lane(); }
inline unsigned __ballot_sync(unsigned mask, int predicate, HERE) {
    return stand_in::vote(mask, predicate != 0, "__ballot_sync", line).voted;
}
inline int __any_sync(unsigned mask, int predicate, HERE) {
    return stand_in::vote(mask, predicate != 0, "__any_sync", line).voted != 0;
}
inline int __all_sync(unsigned mask, int predicate, HERE) {
    const stand_in::Vote vote = stand_in::vote(mask, predicate != 0, "__all_sync", line);
    return vote.voted == vote.asked;
}

// `width` is a power of two: the warp falls into groups of that many threads.
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, HERE) {
    const int first = stand_in::lane() & ~(width - 1);
    return stand_in::shuffle(mask, value, first + (source & (width - 1)), "__shfl_sync", line);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = warpSize, HERE) {
    const int me = stand_in::lane(), source = me - int(by);
    return stand_in::shuffle(mask, value, source < (me & ~(width - 1)) ? me : source, "__shfl_up_sync", line);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = warpSize, HERE) {
    const int me = stand_in::lane(), source = me + int(by);
    return stand_in::shuffle(mask, value, source > (me | (width - 1)) ? me : source, "__shfl_down_sync", line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int with, int width = warpSize, HERE) {
    const int me = stand_in::lane(), source = me ^ with;
    return stand_in::shuffle(mask, value, source > (me | (width - 1)) ? me : source, "__shfl_xor_sync", line);
}
#undef HERE
#undef FULL_WARP

// --- atomics, on integers alone -----------------------------------------------------------------

#define ATOMIC(name, T, now)                   \
    inline T name(T* address, T value) {       \
        const T old = *address;                \
        *address = now;                        \
        return old;                            \
    }
#define ATOMICS(T)                                              \
    ATOMIC(atomicMin, T, value < old ? value : old)             \
    ATOMIC(atomicMax, T, old < value ? value : old)             \
    ATOMIC(atomicAnd, T, old & value)                           \
    ATOMIC(atomicOr, T, old | value)                            \
    ATOMIC(atomicXor, T, old ^ value)
ATOMICS(int)
ATOMICS(unsigned)
ATOMICS(long long)
ATOMICS(unsigned long long)
ATOMIC(atomicAdd, int, old + value)
ATOMIC(atomicAdd, unsigned, old + value)
ATOMIC(atomicAdd, unsigned long long, old + value)
ATOMIC(atomicSub, int, old - value)
ATOMIC(atomicSub, unsigned, old - value)
ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
#undef ATOMICS
#undef ATOMIC
float atomicAdd(float*, float) = delete;  // the order of its sums differs from run to run
double atomicAdd(double*, double) = delete;

// These two others may be waiting for, so others get their turn.
#define EXCHANGES(T)                                            \
    inline T atomicExch(T* address, T value) {                  \
        stand_in::let_others_run();                             \
        return std::exchange(*address, value);                  \
    }                                                           \
    inline T atomicCAS(T* address, T expected, T value) {       \
        stand_in::let_others_run();                             \
        const T old = *address;                                 \
        if (old == expected) *address = value;                  \
        return old;                                             \
    }
EXCHANGES(int)
EXCHANGES(unsigned)
EXCHANGES(unsigned long long)
#undef EXCHANGES

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { stand_in::let_others_run(); }

// --- loads and stores with advice about caches --------------------------------------------------

template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldca(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldlu(const T* p) { return *p; }
template <class T> T __ldcv(const T* p) { return *p; }
template <class T> void __stcg(T* p, T value) { *p = value; }
template <class T> void __stcs(T* p, T value) { *p = value; }
template <class T> void __stwb(T* p, T value) { *p = value; }
template <class T> void __stwt(T* p, T value) { *p = value; }

// --- words of the language ----------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_assume(claim) ((void)0)
// One block at a time, so one copy serves.  What is shared lies together, to be poisoned; the compiler of the stand-in
// turns `extern __shared__ T name[]` into a pointer to the memory that the launch asked for.
#define __shared__ static __attribute__((section("stand_in_shared")))
