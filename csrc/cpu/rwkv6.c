/* The verbs of RWKV-6 on the CPU: the token shift whose mixes depend on the input, and its recurrence. See verbs6.h. */
#include "../verbs6.h"

#include "product.h"

#include <string.h>

/* ---- token shift ------------------------------------------------------------------------------------------------ */

struct shift_job {
    struct worker *w;
    const struct shift6 *a;
    struct token_shift shift;
};

/* The low-rank terms up and the lerps, five for a panel of columns while its a and d are in the first-level cache. */
static void lerp_five(struct worker *w, const struct shift6 *a, struct rows rows, const struct thread_scratch *s) {
    const struct device *dev = w->dev;
    const struct packed *w2 = packed_of(a->w2);
    size_t C = (size_t)dev->dims.C, R = (size_t)dev->dims.rank[SHIFT_RANK], stride = shift_stride(w);
    size_t room = gemm_input_bytes(dev->product, MOST_ROWS, dev->dims.rank[SHIFT_RANK]);
    struct finish finish[5];
    struct gemm_part part[5];
    for (size_t j = 0; j < 5; j++) {
        finish[j] = (struct finish){.kind = FINISH_LERP,
                                    .bf16 = is_bf16(w),
                                    .tiled = dev->tiled,
                                    .out = (char *)a->mixed[j] + (size_t)rows.first * C * dtype_bytes(dev->dtype),
                                    .stride = C,
                                    .a = s->normal + stride,
                                    .d = s->d,
                                    .shift_stride = stride,
                                    .vector = vector_of(a->maa[j])};
        part[j] = (struct gemm_part){.weight = w2, .g = (int)j, .panels = 1, .rows = rows.count};
        part[j].in = input_of(w, s->low_rank, 5 * R, 0, j * R, rows.count, dev->dims.rank[SHIFT_RANK],
                              (char *)s->packed_z + j * room);
    }
    for (int panel = 0; panel < w2->panels; panel++)
        for (int j = 0; j < 5; j++) {
            part[j].panel = panel;
            gemm_block(dev->product, dev->kernels.rows.finish, &part[j], &finish[j], s->products);
        }
}

static void shift_rows(void *context, struct span span, int thread) {
    struct shift_job *job = context;
    struct worker *w = job->w;
    const struct shift6 *a = job->a;
    const struct device *dev = w->dev;
    struct thread_scratch *s = &w->scratch[thread];
    struct rows rows = rows_of(w, span);
    size_t C = (size_t)dev->dims.C, stride = shift_stride(w);
    struct mixed mix = {s->mix, is_bf16(w), dev->tiled};
    normal_and_difference(w, &job->shift, rows, s->normal, s->d);
    for (size_t i = 0; i < (size_t)rows.count; i++)
        dev->kernels.rows.lerp((int)C, s->normal + (i + 1) * stride, s->d + i * stride, vector_of(a->maa_x), &mix, i);
    gemm_enter(dev->product);
    multiply(w, a->w1, s->mix, 0, rows, 0, s,
             &(struct finish){.kind = LOW_TANH,
                              .bf16 = is_bf16(w),
                              .tiled = dev->tiled,
                              .out = s->low_rank,
                              .stride = 5 * (size_t)dev->dims.rank[SHIFT_RANK]});
    lerp_five(w, a, rows, s);
    gemm_leave(dev->product);
}

static enum status shift6(struct worker *w, const struct shift6 *a, struct error *e) {
    (void)e;
    struct shift_job job = {w, a, {a->x, a->ln1, a->past, a->layer}};
    run_rows(w, shift_rows, &job);
    save_past(w, &job.shift);
    return OK;
}

/* ---- wkv -------------------------------------------------------------------------------------------------------- */

struct wkv_job {
    struct worker *w;
    const struct wkv6 *a;
};

/* decay = exp(-exp(time_decay + low W2)) */
static void decay_rows(void *context, struct span span, int thread) {
    struct wkv_job *job = context;
    struct worker *w = job->w;
    const struct wkv6 *a = job->a;
    struct rows rows = rows_of(w, span);
    size_t first = (size_t)rows.first;
    struct finish up = {.kind = FINISH_DECAY, .out = a->decay, .vector = vector_of(a->time_decay)};
    up.stride = (size_t)w->dev->dims.C;
    up.past = goes_past(w, a->decay, w->dev->dims.C);
    gemm_enter(w->dev->product);
    multiply(w, a->w2, a->low, first, rows, first, &w->scratch[thread], &up);
    gemm_leave(w->dev->product);
}

static void wkv_head(void *context, struct span span, int thread) {
    struct wkv_job *job = context;
    struct worker *w = job->w;
    const struct wkv6 *a = job->a;
    const struct dims *d = &w->dev->dims;
    int piece = span.first / d->H, head = span.first % d->H, width = wkv_padded(d->N);
    size_t N = (size_t)d->N, column = (size_t)head * N;
    size_t at = (size_t)w->pass.start[piece] * (size_t)d->C + column;
    float *state = w->scratch[thread].state;
    const float *from = head_slot(w, a->states, w->pass.from[piece], a->layer, head);
    float *to = head_slot(w, a->states, w->pass.to[piece], a->layer, head);
    memset(state, 0, N * (size_t)width * sizeof *state);
    for (size_t i = 0; from && i < N; i++) memcpy(state + i * (size_t)width, from + i * N, N * sizeof *state);
    w->dev->kernels.rows.wkv(&(struct wkv_head){
        .T = w->pass.start[piece + 1] - w->pass.start[piece],
        .N = d->N,
        .stride = (size_t)d->C,
        .r = (const float *)a->r + at,
        .k = (const float *)a->k + at,
        .v = (const float *)a->v + at,
        .g = (const float *)a->g + at,
        .decay = a->decay + at,
        .u = vector_of(a->u) + column,
        .weight = vector_of(a->ln_x.weight) + column,
        .bias = vector_of(a->ln_x.bias) + column,
        .state = state,
        .bf16 = is_bf16(w),
        .tiled = w->dev->tiled,
        .out = a->out,
        .row = (size_t)w->pass.start[piece],
        .column = column,
    });
    for (size_t i = 0; to && i < N; i++) memcpy(to + i * N, state + i * (size_t)width, N * sizeof *state);
}

static enum status wkv6(struct worker *w, const struct wkv6 *a, struct error *e) {
    (void)e;
    run_rows(w, decay_rows, &(struct wkv_job){w, a});
    team_run(w->team, w->pass.S * w->dev->dims.H, 1, wkv_head, &(struct wkv_job){w, a});
    return OK;
}

const struct verbs6 cpu_rwkv6 = {.shift = shift6, .wkv = wkv6};
