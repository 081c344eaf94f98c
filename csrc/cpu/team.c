/* Team of threads; see team.h. A generation number starts each round; the last thread to leave a round ends it. */
#define _POSIX_C_SOURCE 200809L
#include "team.h"

#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { SPINS = 4000 }; /* about 40 to 150 microseconds of pauses */

struct helper {
    struct team *team;
    pthread_t thread;
    int index;
};

struct team {
    int threads, started;
    struct helper *helpers;
    pthread_mutex_t lock;
    pthread_cond_t go, done;
    atomic_uint round;  /* raised under the lock to start a round */
    atomic_int next;    /* unit to hand out */
    atomic_int working; /* helpers still in this round */
    bool closing;
    /* Written before `round` is raised, read after it was seen raised. */
    int units, most;
    team_work *work;
    void *context;
};

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The next span; none is left where its count is 0. */
static struct span take_span(struct team *p) {
    int first = atomic_load_explicit(&p->next, memory_order_relaxed), count;
    do {
        int left = p->units - first, share = left / p->threads;
        if (left <= 0) return (struct span){0, 0};
        count = share > p->most ? p->most : share > 1 ? share : 1;
    } while (!atomic_compare_exchange_weak_explicit(&p->next, &first, first + count, memory_order_relaxed,
                                                    memory_order_relaxed));
    return (struct span){first, count};
}

static void take_spans(struct team *p, int thread) {
    for (struct span span = take_span(p); span.count; span = take_span(p)) p->work(p->context, span, thread);
}

static unsigned wait_for_round(struct team *p, unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        unsigned now = atomic_load_explicit(&p->round, memory_order_acquire);
        if (now != seen) return now;
        pause_briefly();
    }
    pthread_mutex_lock(&p->lock);
    unsigned now;
    while ((now = atomic_load_explicit(&p->round, memory_order_acquire)) == seen) pthread_cond_wait(&p->go, &p->lock);
    pthread_mutex_unlock(&p->lock);
    return now;
}

static void *help(void *argument) {
    struct helper *h = argument;
    struct team *p = h->team;
    unsigned seen = 0;
    fesetenv(FE_DFL_ENV); /* a thread is born with the rounding of the one that made it */
    for (;;) {
        seen = wait_for_round(p, seen);
        if (p->closing) return NULL;
        take_spans(p, h->index);
        if (atomic_fetch_sub_explicit(&p->working, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

static void start_round(struct team *p) {
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add_explicit(&p->round, 1, memory_order_release);
    pthread_cond_broadcast(&p->go);
    pthread_mutex_unlock(&p->lock);
}

static void wait_for_helpers(struct team *p) {
    for (int i = 0; i < SPINS; i++) {
        if (!atomic_load_explicit(&p->working, memory_order_acquire)) return;
        pause_briefly();
    }
    pthread_mutex_lock(&p->lock);
    while (atomic_load_explicit(&p->working, memory_order_acquire)) pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

void team_run(struct team *p, int units, int most, team_work *work, void *context) {
    if (!p->started || units <= 1) {
        for (int i = 0; i < units; i += most) work(context, (struct span){i, units - i < most ? units - i : most}, 0);
        return;
    }
    p->units = units;
    p->most = most;
    p->work = work;
    p->context = context;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    atomic_store_explicit(&p->working, p->started, memory_order_relaxed);
    start_round(p);
    take_spans(p, 0);
    wait_for_helpers(p);
}

enum status team_open(int threads, struct team **out, struct error *e) {
    *out = NULL;
    struct team *p = calloc(1, sizeof *p);
    struct helper *helpers = calloc((size_t)threads, sizeof *helpers);
    if (!p || !helpers) {
        free(p);
        free(helpers);
        return fail(e, NO_MEMORY, "no memory for a team of %d threads", threads);
    }
    p->threads = threads;
    p->helpers = helpers;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->go, NULL);
    pthread_cond_init(&p->done, NULL);
    for (int i = 1; i < threads; i++) {
        struct helper *h = &p->helpers[i - 1];
        *h = (struct helper){.team = p, .index = i};
        if (pthread_create(&h->thread, NULL, help, h)) {
            team_close(p);
            return fail(e, NO_MEMORY, "the system gave %d of %d threads; ask for fewer", i, threads);
        }
        p->started++;
    }
    *out = p;
    return OK;
}

void team_close(struct team *p) {
    if (!p) return;
    p->closing = true;
    start_round(p);
    for (int i = 0; i < p->started; i++) pthread_join(p->helpers[i].thread, NULL);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->go);
    pthread_mutex_destroy(&p->lock);
    free(p->helpers);
    free(p);
}
