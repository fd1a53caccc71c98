// Fibres for the threads of a block, their scheduler, and the errors that a launch can end with.
#include "cuda_on_host.hpp"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <vector>
#if defined(__x86_64__) && !defined(STAND_IN_UCONTEXT)
#define SWITCH_BY_HAND  // swapcontext asks the system each time
#else
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
unsigned char* stand_in::dynamic_shared;

namespace {

constexpr int MOST_THREADS = 1024;
constexpr size_t STACK = 256 << 10, GUARD = 4096, MOST_SHARED = 256 << 10;
constexpr uint16_t POISON = 0xFFF1;  // a nan in every floating type, and no index

// --- fibres: a stack, and where to go on ------------------------------------------------------

#ifdef SWITCH_BY_HAND
struct Context { void* stack_pointer; };

// Keeps the registers that a call preserves, and the stack pointer, and takes over those of another context.
extern "C" void stand_in_switch(Context* from, Context* to);
asm(R"(
.text
.type stand_in_switch, @function
stand_in_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size stand_in_switch, . - stand_in_switch
)");

void prepare(Context& context, char* stack, void (*start)()) {
    void** top = reinterpret_cast<void**>(stack + STACK) - 2;  // at `start` the stack is as after a call
    top[0] = reinterpret_cast<void*>(start);
    top[1] = nullptr;
    context.stack_pointer = top - 6;
}
#else
using Context = ucontext_t;

void stand_in_switch(Context* from, Context* to) { swapcontext(from, to); }

void prepare(Context& context, char* stack, void (*start)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, start, 0);
}
#endif

struct Fibre {
    Context context;
    char* stack;
};

// --- the state of a launch --------------------------------------------------------------------

enum State { NOT_STARTED, RUNNING, READY, AT_BLOCK, AT_WARP, DONE };

struct Thread {
    State state;
    uint3 index;
    Fibre* fibre;
    const char* what;  // the barrier at which it waits, and its line
    int line;
    unsigned mask;
    void* mine;
    stand_in::Together compute;
};

enum Order { FORWARD, REVERSE, SHUFFLE };

Thread threads[MOST_THREADS];
int count, alive, current;             // threads of the block, those that have not returned, the one that runs
int unstarted[MOST_THREADS], first_unstarted, end_unstarted;
int ready[MOST_THREADS], first_ready, n_ready;  // a ring
int handed;                                     // the thread that another gave its turn to, or -1
int at_block, predicates, last_predicates;
unsigned warp_alive[MOST_THREADS / 32], warp_waiting[MOST_THREADS / 32];

std::vector<Fibre*> fibres, free_fibres;
Context scheduler;
Order order;
uint64_t random_state;
const stand_in::Entry* entry;
void** arguments;

volatile bool launching;  // on this machine's thread, which signals are for
pthread_t launcher;
sigjmp_buf leave;
char message[2000];
void* faulting_address;

uint64_t random_below(uint64_t n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (random_state >> 33) % n;
}

[[noreturn]] void fail(const char* format, ...) {
    const int n = snprintf(message, sizeof message, "%s: block (%u, %u, %u), thread (%u, %u, %u): ", entry->name,
                           blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    va_list values;
    va_start(values, format);
    vsnprintf(message + n, sizeof message - n, format, values);
    va_end(values);
    siglongjmp(leave, 1);
}

// --- who runs next ----------------------------------------------------------------------------

void make_ready(int thread) {
    threads[thread].state = READY;
    ready[(first_ready + n_ready++) % MOST_THREADS] = thread;
}

int take_ready(int place) {  // the one at `place` of the queue, whose place the last one takes
    int& chosen = ready[(first_ready + place) % MOST_THREADS];
    const int thread = chosen;
    if (place == 0) {
        first_ready = (first_ready + 1) % MOST_THREADS;
    } else {
        chosen = ready[(first_ready + n_ready - 1) % MOST_THREADS];
    }
    --n_ready;
    return thread;
}

int take_unstarted(int place) {
    if (place == 0) return unstarted[first_unstarted++];
    const int thread = unstarted[first_unstarted + place];
    unstarted[first_unstarted + place] = unstarted[--end_unstarted];
    return thread;
}

// The thread that runs next; -1 if none can.
int choose() {
    if (handed >= 0) return std::exchange(handed, -1);
    const int waiting = end_unstarted - first_unstarted;
    if (n_ready + waiting == 0) return -1;
    if (order == SHUFFLE) {
        const int place = int(random_below(n_ready + waiting));
        return place < n_ready ? take_ready(place) : take_unstarted(place - n_ready);
    }
    if (n_ready) return take_ready(order == FORWARD ? 0 : n_ready - 1);
    return take_unstarted(order == FORWARD ? 0 : waiting - 1);
}

void become(int thread) {
    current = thread;
    threads[thread].state = RUNNING;
    threadIdx = threads[thread].index;
}

void leave_to_scheduler() { stand_in_switch(&threads[current].fibre->context, &scheduler); }

// --- barriers ---------------------------------------------------------------------------------

void open_block_if_all_are_there() {
    if (at_block == 0 || at_block < alive) return;
    const Thread* one = nullptr;
    for (int i = 0; i < count; ++i) {
        Thread& thread = threads[i];
        if (thread.state != AT_BLOCK) continue;
        if (one && (one->line != thread.line || strcmp(one->what, thread.what)))
            fail("the threads of the block wait at different barriers, %s at line %d and %s at line %d", one->what,
                 one->line, thread.what, thread.line);
        one = &thread;
    }
    last_predicates = predicates;
    at_block = predicates = 0;
    for (int i = 0; i < count; ++i)
        if (threads[i].state == AT_BLOCK) make_ready(i);
}

void open_warp_if_all_are_there(int warp, unsigned mask) {
    const unsigned needed = mask & warp_alive[warp];
    if (needed == 0 || needed & ~warp_waiting[warp]) return;
    Thread* lanes = threads + 32 * warp;
    const Thread& one = lanes[__builtin_ctz(needed)];
    void* brought[32] = {};
    for (int i = 0; i < 32; ++i) {
        if (!(needed >> i & 1)) continue;
        if (lanes[i].mask != mask) return;  // it waits for others, which may yet come
        if (strcmp(lanes[i].what, one.what))
            fail("threads of a warp with the mask %08x meet in %s at line %d and in %s at line %d", mask, one.what,
                 one.line, lanes[i].what, lanes[i].line);
        brought[i] = lanes[i].mine;
    }
    one.compute(brought);
    warp_waiting[warp] &= ~needed;
    for (int i = 0; i < 32; ++i)
        if (needed >> i & 1) make_ready(32 * warp + i);
}

void wait_until_ready() {
    if (threads[current].state == READY && n_ready == 1 && order != SHUFFLE) {
        become(take_ready(0));
        return;
    }
    leave_to_scheduler();
}

void thread_returned() {
    const int warp = current / 32;
    threads[current].state = DONE;
    --alive;
    warp_alive[warp] &= ~(1u << current % 32);
    open_block_if_all_are_there();
    for (unsigned waiting = warp_waiting[warp]; waiting; waiting &= waiting - 1)
        open_warp_if_all_are_there(warp, threads[32 * warp + __builtin_ctz(waiting)].mask);
}

}  // namespace

int stand_in::lane() { return current % 32; }

int stand_in::wait_for_block(int predicate, const char* what, int line) {
    Thread& me = threads[current];
    me.state = AT_BLOCK;
    me.what = what;
    me.line = line;
    ++at_block;
    predicates += predicate;
    open_block_if_all_are_there();
    wait_until_ready();
    return last_predicates;
}

void stand_in::wait_for_warp(unsigned mask, void* mine, Together compute, const char* what, int line) {
    Thread& me = threads[current];
    me.what = what;
    me.line = line;
    const unsigned bit = 1u << current % 32;
    if (!(mask & bit)) fail("%s at line %d with the mask %08x, in which the thread itself is missing", what, line, mask);
    me.state = AT_WARP;
    me.mask = mask;
    me.mine = mine;
    me.compute = compute;
    warp_waiting[current / 32] |= bit;
    open_warp_if_all_are_there(current / 32, mask);
    wait_until_ready();
}

void stand_in::let_others_run() {
    if (n_ready) handed = take_ready(0);  // the one that has waited longest, so that each gets its turn
    else if (end_unstarted > first_unstarted) handed = take_unstarted(0);
    else return;
    make_ready(current);
    leave_to_scheduler();
}

namespace {

// --- blocks -----------------------------------------------------------------------------------

// Runs threads from start to end, as long as the next one has not begun elsewhere.
void run_threads() {
    for (;;) {
        Fibre* mine = threads[current].fibre;
        entry->run(arguments);
        thread_returned();
        if (n_ready == 0 && end_unstarted > first_unstarted) {
            become(choose());
            threads[current].fibre = mine;
        } else {
            free_fibres.push_back(mine);
            stand_in_switch(&mine->context, &scheduler);
        }
    }
}

Fibre* free_fibre() {
    if (free_fibres.empty()) {
        char* memory = static_cast<char*>(
            mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (memory == MAP_FAILED) fail("no memory for the stack of another thread");
        mprotect(memory, GUARD, PROT_NONE);
        Fibre* fibre = new Fibre{{}, memory + GUARD};
        prepare(fibre->context, fibre->stack, run_threads);
        fibres.push_back(fibre);
        return fibre;
    }
    Fibre* fibre = free_fibres.back();
    free_fibres.pop_back();
    return fibre;
}

void stop_all_fibres() {
    free_fibres.clear();
    for (Fibre* fibre : fibres) {
        prepare(fibre->context, fibre->stack, run_threads);
        free_fibres.push_back(fibre);
    }
}

[[noreturn]] void report_deadlock() {
    char found[1500] = "";
    size_t n = 0;
    for (int i = 0; i < count && n + 100 < sizeof found; ++i) {
        const Thread& one = threads[i];
        if (one.state != AT_BLOCK && one.state != AT_WARP) continue;
        int same = 0;
        bool known = false;
        for (int k = 0; k < count; ++k) {
            const Thread& other = threads[k];
            if (other.state != one.state || other.line != one.line || other.what != one.what) continue;
            known |= k < i;
            ++same;
        }
        if (!known)
            n += snprintf(found + n, sizeof found - n, "\n  %d of %d threads wait in %s at line %d", same, count, one.what,
                          one.line);
    }
    fail("deadlock: no thread of the block can go on; %d have returned%s", count - alive, found);
}

void poison(unsigned char* from, unsigned char* to) {
    for (; from + 1 < to; from += 2) memcpy(from, &POISON, 2);
    if (from < to) *from = 0xF1;
}

unsigned char* end_of_dynamic_shared() {
    static unsigned char* const memory = static_cast<unsigned char*>(
        mmap(nullptr, MOST_SHARED + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    static const int opened = mprotect(memory + GUARD, MOST_SHARED, PROT_READ | PROT_WRITE);
    if (opened) fail("no memory to share");
    return memory + GUARD + MOST_SHARED;
}

void run_block(unsigned shared_bytes) {
    if (entry->shared) poison(entry->shared, entry->shared_end);
    unsigned char* end = end_of_dynamic_shared();
    stand_in::dynamic_shared = end - (shared_bytes + 15) / 16 * 16;
    poison(stand_in::dynamic_shared, end);
    alive = count;
    handed = -1;
    at_block = predicates = first_ready = n_ready = first_unstarted = 0;
    end_unstarted = count;
    for (int w = 0; 32 * w < count; ++w) {
        const int n = count - 32 * w;
        warp_alive[w] = n >= 32 ? ~0u : (1u << n) - 1;
        warp_waiting[w] = 0;
    }
    for (int i = 0; i < count; ++i) {
        threads[i].state = NOT_STARTED;
        unstarted[i] = i;
    }
    while (alive) {
        const int next = choose();
        if (next < 0) report_deadlock();
        const bool begins = threads[next].state == NOT_STARTED;
        become(next);
        if (begins) threads[next].fibre = free_fibre();
        stand_in_switch(&scheduler, &threads[next].fibre->context);
    }
}

void run_blocks(unsigned shared_bytes) {
    const uint64_t blocks = uint64_t(gridDim.x) * gridDim.y * gridDim.z;
    uint64_t step = 1, next = 0;
    if (order == REVERSE) step = blocks - 1, next = blocks - 1;
    if (order == SHUFFLE) {
        const auto divisor = [](uint64_t a, uint64_t b) {
            while (b) a = std::exchange(b, a % b);
            return a;
        };
        next = random_below(blocks);
        do step = 1 + random_below(blocks); while (divisor(step, blocks) != 1);
    }
    for (uint64_t i = 0; i < blocks; ++i, next = (next + step) % blocks) {
        blockIdx.x = unsigned(next % gridDim.x);
        blockIdx.y = unsigned(next / gridDim.x % gridDim.y);
        blockIdx.z = unsigned(next / gridDim.x / gridDim.y);
        run_block(shared_bytes);
    }
}

// --- faults -----------------------------------------------------------------------------------

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction before[4];

void on_signal(int number, siginfo_t* info, void*) {
    if (!launching || !pthread_equal(pthread_self(), launcher)) {  // not ours: whoever was here before gets it again
        for (int i = 0; i < 4; ++i)
            if (SIGNALS[i] == number) sigaction(number, &before[i], nullptr);
        return;
    }
    if (number == SIGFPE) fail("an integer is divided by zero, which a GPU does not report");
    if (number == SIGILL) fail("an index past the end of an array, or an address that its type's alignment forbids");
    faulting_address = info->si_addr;
    const char* address = static_cast<char*>(faulting_address);
    const unsigned char* shared_end = stand_in::dynamic_shared ? end_of_dynamic_shared() : nullptr;
    if (shared_end && faulting_address >= shared_end && faulting_address < shared_end + GUARD)
        fail("an access past the end of the dynamic shared memory");
    for (const Fibre* fibre : fibres)
        if (address >= fibre->stack - GUARD && address < fibre->stack)
            fail("the thread's local variables need more than %zu KiB", STACK >> 10);
    fail("an access to memory that it may not use, at address %p", faulting_address);
}

void catch_signals() {
    stack_t known;
    if (sigaltstack(nullptr, &known) == 0 && known.ss_flags & SS_DISABLE) {
        static thread_local char room[64 << 10];  // for the handler: a thread's own stack may be what is full
        known.ss_sp = room;
        known.ss_size = sizeof room;
        known.ss_flags = 0;
        sigaltstack(&known, nullptr);
    }
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 4; ++i) sigaction(SIGNALS[i], &action, &before[i]);
    launcher = pthread_self();
    launching = true;
}

void stop_catching_signals() {
    launching = false;
    for (int i = 0; i < 4; ++i) sigaction(SIGNALS[i], &before[i], nullptr);
}

}  // namespace

// Runs a grid and gives what went wrong, or null.  `fault` becomes the address that could not be used, or null.
extern "C" const char* stand_in_launch(const stand_in::Entry* which, void** with, const unsigned* grid,
                                       const unsigned* block, unsigned shared_bytes, int in_order, uint64_t seed,
                                       void** fault) {
    entry = which;
    arguments = with;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    count = int(block[0] * block[1] * block[2]);
    order = Order(in_order);
    random_state = seed;
    faulting_address = nullptr;
    for (unsigned i = 0; i < unsigned(count); ++i)
        threads[i].index = {i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
    catch_signals();
    const bool wrong = sigsetjmp(leave, 1) != 0;
    if (wrong) {
        stop_all_fibres();
    } else {
        run_blocks(shared_bytes);
    }
    stop_catching_signals();
    *fault = faulting_address;
    return wrong ? message : nullptr;
}
