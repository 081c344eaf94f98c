/* The verbs of RWKV-7 on the CPU: the upper half of its low ranks, then its delta rule. See verbs7.h. */
#include "../verbs7.h"

#include "product.h"

#include <string.h>

struct wkv_job {
    struct worker *w;
    const struct wkv7 *a;
};

/* Rows of base + low up, finished as `kind` says into `out` [T, C]. */
static void up(const struct wkv_job *job, int which, struct rows rows, int kind, void *out,
               const struct thread_scratch *s) {
    struct worker *w = job->w;
    const struct low_rank *l = &job->a->low[which];
    size_t first = (size_t)rows.first;
    struct finish finish = {.kind = kind, .out = out, .gate = job->a->v_first};
    finish.vector = l->base ? vector_of(l->base) : NULL;
    finish.stride = (size_t)w->dev->dims.C;
    finish.past = goes_past(w, out, w->dev->dims.C);
    multiply(w, l->up, l->low, first, rows, first, s, &finish);
}

static void up_rows(void *context, struct span span, int thread) {
    const struct wkv_job *job = context;
    const struct wkv7 *a = job->a;
    const struct tile_product *product = job->w->dev->product;
    const struct thread_scratch *s = &job->w->scratch[thread];
    struct rows rows = rows_of(job->w, span);
    gemm_enter(product);
    up(job, DECAY_LOW, rows, FINISH_DECAY7, a->low[DECAY_LOW].out, s);
    up(job, RATE_LOW, rows, FINISH_RATE, a->low[RATE_LOW].out, s);
    up(job, GATE_LOW, rows, STORE, a->low[GATE_LOW].out, s);
    if (a->layer) up(job, VALUE_LOW, rows, FINISH_BLEND, a->v, s);
    gemm_leave(product);
}

static void wkv_head(void *context, struct span span, int thread) {
    const struct wkv_job *job = context;
    const struct worker *w = job->w;
    const struct wkv7 *a = job->a;
    const struct dims *d = &w->dev->dims;
    int piece = span.first / d->H, head = span.first % d->H;
    size_t N = (size_t)d->N, width = (size_t)wkv_padded(d->N), column = (size_t)head * N;
    size_t at = (size_t)w->pass.start[piece] * (size_t)d->C + column;
    float *state = w->scratch[thread].state;
    const float *from = head_slot(w, a->states, w->pass.from[piece], a->layer, head);
    float *to = head_slot(w, a->states, w->pass.to[piece], a->layer, head);
    memset(state, 0, N * width * sizeof *state);
    for (size_t value = 0; from && value < N; value++)
        for (size_t key = 0; key < N; key++) state[key * width + value] = from[value * N + key];
    w->dev->kernels.rows.wkv7(&(struct wkv7_head){
        .T = w->pass.start[piece + 1] - w->pass.start[piece],
        .N = d->N,
        .stride = (size_t)d->C,
        .r = (const float *)a->r + at,
        .k = (const float *)a->k + at,
        .v = (const float *)a->v + at,
        .decay = (const float *)a->low[DECAY_LOW].out + at,
        .rate = (const float *)a->low[RATE_LOW].out + at,
        .gate = (const float *)a->low[GATE_LOW].out + at,
        .k_k = vector_of(a->k_k) + column,
        .k_a = vector_of(a->k_a) + column,
        .r_k = vector_of(a->r_k) + column,
        .weight = vector_of(a->ln_x.weight) + column,
        .bias = vector_of(a->ln_x.bias) + column,
        .state = state,
        .bf16 = is_bf16(w),
        .tiled = w->dev->tiled,
        .out = a->out,
        .row = (size_t)w->pass.start[piece],
        .column = column,
    });
    for (size_t value = 0; to && value < N; value++)
        for (size_t key = 0; key < N; key++) to[value * N + key] = state[key * width + value];
}

static enum status wkv7(struct worker *w, const struct wkv7 *a, struct error *e) {
    (void)e;
    run_rows(w, up_rows, &(struct wkv_job){w, a});
    team_run(w->team, w->pass.S * w->dev->dims.H, 1, wkv_head, &(struct wkv_job){w, a});
    return OK;
}

const struct verbs7 cpu_rwkv7 = {.wkv = wkv7};
