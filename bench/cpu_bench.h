/* What the C benches of the CPU share: a clock, random numbers, a device with a worker. Included once by each. */
#ifndef RWKVSTS_CPU_BENCH_H
#define RWKVSTS_CPU_BENCH_H
#define _GNU_SOURCE
#include "cpu/cpu.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MOST_THREADS = 256 };

/* With one thread its own processor time: right on a machine that is busy with other things too. */
static clockid_t clock_used = CLOCK_MONOTONIC;

static inline double now(void) {
    struct timespec t;
    clock_gettime(clock_used, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t seed = 88172645463325252u;

static inline float random_float(void) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (float)((double)(seed >> 11) * 0x1p-53 * 2.0 - 1.0);
}

static inline int random_int(int low, int high) {
    return low + (int)((random_float() * 0.5f + 0.5f) * (float)(high - low + 1)) % (high - low + 1);
}

static inline void must(enum status status, const struct error *e) {
    if (status == OK) return;
    fprintf(stderr, "%s\n", e->text);
    exit(1);
}

/* n numbers of a dtype, and what they are as floats. */
static inline void *random_array(enum dtype dtype, size_t n, float scale, float *exact) {
    char *p = aligned_alloc(64, (n * dtype_bytes(dtype) + 63) / 64 * 64);
    for (size_t i = 0; i < n; i++) {
        float f = scale * random_float();
        if (dtype == BF16) {
            uint16_t h = float_to_bfloat16(f);
            f = bfloat16_to_float(h);
            memcpy(p + 2 * i, &h, 2);
        } else {
            memcpy(p + 4 * i, &f, 4);
        }
        if (exact) exact[i] = f;
    }
    return p;
}

/* The n-th processor that this process may run on, and no other, for the thread that calls. */
static inline void run_only_on(int n) {
    cpu_set_t all, one;
    CPU_ZERO(&one);
    sched_getaffinity(getpid(), sizeof all, &all);
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all) && !n--) CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
}

static inline int processors_here(void) {
    cpu_set_t all;
    sched_getaffinity(getpid(), sizeof all, &all);
    return CPU_COUNT(&all) < MOST_THREADS ? CPU_COUNT(&all) : MOST_THREADS;
}

#endif
