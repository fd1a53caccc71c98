"""Our own threads: they share the items of a compiled kernel, by ranges of constant size.

A thread that has nothing to do looks for work a while and then sleeps.  A kernel's results do not depend on who did
which range, so neither the number of threads nor their speed shows in them.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

from .compiler import library

TEXT = r"""
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

typedef long long int64;
typedef void (*Entry)(const void* slots, int64 first, int64 last, unsigned char* scratch);

// Threads; how often an idle one looks for work before it sleeps, some 0.3 ms; after how many looks it lets others have
// the core, if there are any; bytes of scratch memory that a thread keeps.
enum { MOST = 64, LOOKS = 20000, POLITE = 256, KEPT = 4 << 20 };

static struct {
    Entry entry;
    const void* slots;
    int64 items, grain, scratch_bytes;
    int64 next;   // the first item that nobody has taken
    int open;     // may helpers join?
    int joined;   // helpers that may be at work
    long number;  // of the task; helpers wait for it to grow
} task;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static int helpers, sleeping;
static struct { unsigned char* memory; int64 bytes; } scratch[MOST];

static unsigned char* scratch_of(int thread, int64 bytes) {
    if (scratch[thread].bytes < bytes) {
        free(scratch[thread].memory);
        scratch[thread].memory = 0;
        scratch[thread].bytes = 0;
        if (posix_memalign((void**)&scratch[thread].memory, 64, bytes)) return 0;
        scratch[thread].bytes = bytes;
    }
    return scratch[thread].memory;
}

static void drop_large(int thread) {
    if (scratch[thread].bytes <= KEPT) return;
    free(scratch[thread].memory);
    scratch[thread].memory = 0;
    scratch[thread].bytes = 0;
}

static int work(int thread) {
    unsigned char* own = scratch_of(thread, task.scratch_bytes);
    if (!own && task.scratch_bytes) return 1;  // the others do it
    for (;;) {
        const int64 first = __atomic_fetch_add(&task.next, task.grain, __ATOMIC_RELAXED);
        if (first >= task.items) break;
        const int64 last = first + task.grain < task.items ? first + task.grain : task.items;
        task.entry(task.slots, first, last, own);
    }
    drop_large(thread);
    return 0;
}

static void pause_a_little(int look) {
    if (look % POLITE == POLITE - 1) sched_yield();
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

static void* help(void* which) {
    const int thread = (int)(long)which;
    long done = 0;
    for (;;) {
        for (int look = 0; look < LOOKS && __atomic_load_n(&task.number, __ATOMIC_ACQUIRE) == done; ++look)
            pause_a_little(look);
        if (__atomic_load_n(&task.number, __ATOMIC_ACQUIRE) == done) {
            pthread_mutex_lock(&lock);
            __atomic_fetch_add(&sleeping, 1, __ATOMIC_SEQ_CST);
            while (__atomic_load_n(&task.number, __ATOMIC_ACQUIRE) == done) pthread_cond_wait(&more, &lock);
            __atomic_fetch_sub(&sleeping, 1, __ATOMIC_SEQ_CST);
            pthread_mutex_unlock(&lock);
        }
        done = __atomic_load_n(&task.number, __ATOMIC_ACQUIRE);
        __atomic_fetch_add(&task.joined, 1, __ATOMIC_SEQ_CST);  // before looking: a closed task may be overwritten
        if (__atomic_load_n(&task.open, __ATOMIC_SEQ_CST)) work(thread);
        __atomic_fetch_sub(&task.joined, 1, __ATOMIC_RELEASE);
    }
    return 0;
}

static void forget_threads(void) {  // a forked child has none of its parent's
    helpers = sleeping = task.open = task.joined = 0;
    task.number = 0;
    pthread_mutex_init(&lock, 0);
    pthread_cond_init(&more, 0);
}

static void start_helpers(int wanted) {
    static int prepared;
    if (!prepared) {
        pthread_atfork(0, 0, forget_threads);
        prepared = 1;
    }
    while (helpers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, 0, help, (void*)(long)(helpers + 1))) return;
        pthread_detach(thread);
        ++helpers;
    }
}

// One caller at a time.  Returns 1 where there is no memory for scratch: then nothing of use was computed.
extern "C" int run(Entry entry, const void* slots, int64 items, int64 grain, int64 scratch_bytes, int threads) {
    task.scratch_bytes = scratch_bytes;
    if (threads > 1 && items > grain && !helpers) start_helpers((threads < MOST ? threads : MOST) - 1);
    if (threads == 1 || items <= grain || !helpers) {
        unsigned char* own = scratch_of(0, scratch_bytes);
        if (!own && scratch_bytes) return 1;
        entry(slots, 0, items, own);
        drop_large(0);
        return 0;
    }
    task.entry = entry, task.slots = slots, task.items = items, task.grain = grain, task.next = 0;
    __atomic_store_n(&task.open, 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&task.number, 1, __ATOMIC_RELEASE);
    if (__atomic_load_n(&sleeping, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&more);
        pthread_mutex_unlock(&lock);
    }
    const int failed = work(0);
    __atomic_store_n(&task.open, 0, __ATOMIC_SEQ_CST);
    for (int look = 0; __atomic_load_n(&task.joined, __ATOMIC_SEQ_CST); look = (look + 1) % POLITE)
        pause_a_little(look);
    return failed;
}
"""


@functools.cache
def _run() -> Any:
    function = library(TEXT, "-pthread").run
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_int]
    return function


@functools.cache
def count() -> int:
    """How many threads share a kernel: GPUAD_CPU_THREADS, else one for each core this process may use."""
    given = os.environ.get("GPUAD_CPU_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare() -> None:
    """Compile the threads, or find them compiled.  Raises a CompilerError."""
    _run()


def run(entry: int, slots: int, items: int, grain: int, scratch_bytes: int, threads: int) -> None:
    """Call the entry at an address for all items, `grain` at a time, with the arguments at the address `slots`."""
    if _run()(entry, slots, items, grain, scratch_bytes, threads):
        raise MemoryError(f"a kernel needs {scratch_bytes:,} bytes of scratch memory a thread")
