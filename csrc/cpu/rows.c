/* The verbs over rows on the CPU: embedding, norm and token shift, pooling. Each is one round of the team over units that
 * share nothing, see team.h. A row's sums and a sequence's pooling are never cut, so neither the spans nor the threads
 * show in the bits. */
#include "rows.h"

#include <string.h>

struct rows rows_of(const struct worker *w, struct span span) {
    int tile = w->dev->product->tile_rows, first = span.first * tile;
    return (struct rows){first, least(span.count * tile, w->pass.T - first)};
}

/* A unit is a tile, so that only the last is ragged. */
void run_rows(struct worker *w, team_work *work, void *context) {
    int tile = w->dev->product->tile_rows;
    team_run(w->team, pieces(w->pass.T, tile), MOST_ROWS / tile, work, context);
}

struct embed_job {
    struct worker *w;
    const struct embed *a;
};

static void embed_rows(void *context, struct span span, int thread) {
    struct embed_job *job = context;
    struct worker *w = job->w;
    const struct array *table = job->a->table->data;
    struct rows rows = rows_of(w, span);
    size_t C = (size_t)w->dev->dims.C;
    float *line = w->scratch[thread].normal;
    for (int t = rows.first; t < rows.first + rows.count; t++) {
        array_to_float(table, (size_t)w->pass.ids[t] * C, C, line);
        w->dev->kernels.rows.layer_norm((int)C, line, vector_of(job->a->ln0.weight), vector_of(job->a->ln0.bias),
                                        job->a->x + (size_t)t * C);
    }
}

enum status cpu_embed(struct worker *w, const struct embed *a, struct error *e) {
    (void)e;
    run_rows(w, embed_rows, &(struct embed_job){w, a});
    return OK;
}

/* ---- token shift ---------------------------------------------------------------------------------------------- */

static size_t slot_at(const struct worker *w, int slot, int layer) {
    const struct dims *d = &w->dev->dims;
    return ((size_t)slot * (size_t)d->L + (size_t)layer) * (size_t)d->C;
}

void normal_and_difference(const struct worker *w, const struct token_shift *s, struct rows rows, float *normal,
                           float *d) {
    const struct row_kernels *k = &w->dev->kernels.rows;
    int C = w->dev->dims.C;
    const float *weight = vector_of(s->ln.weight), *bias = vector_of(s->ln.bias);
    size_t stride = shift_stride(w);
    for (int i = 0; i < rows.count; i++) {
        int t = rows.first + i, piece = w->piece[t], from = w->pass.from[piece];
        float *a = normal + (size_t)(i + 1) * stride;
        const float *previous = a - stride;
        if (t == w->pass.start[piece]) previous = from < 0 ? w->zeros : s->past + slot_at(w, from, s->layer);
        else if (i == 0) k->layer_norm(C, s->x + (size_t)(t - 1) * (size_t)C, weight, bias, normal);
        k->layer_norm(C, s->x + (size_t)t * (size_t)C, weight, bias, a);
        k->difference(C, previous, a, d + (size_t)i * stride);
    }
}

void save_past(const struct worker *w, const struct token_shift *s) {
    size_t C = (size_t)w->dev->dims.C;
    for (int i = 0; i < w->pass.S; i++)
        if (w->pass.to[i] >= 0)
            w->dev->kernels.rows.layer_norm((int)C, s->x + (size_t)(w->pass.start[i + 1] - 1) * C,
                                            vector_of(s->ln.weight), vector_of(s->ln.bias),
                                            s->past + slot_at(w, w->pass.to[i], s->layer));
}

struct shift_job {
    struct worker *w;
    const struct shift *a;
    struct token_shift shift;
};

static void shift_rows(void *context, struct span span, int thread) {
    struct shift_job *job = context;
    struct worker *w = job->w;
    const struct shift *a = job->a;
    struct thread_scratch *s = &w->scratch[thread];
    struct rows rows = rows_of(w, span);
    size_t C = (size_t)w->dev->dims.C, stride = shift_stride(w);
    normal_and_difference(w, &job->shift, rows, s->normal, s->d);
    for (size_t i = 0; i < (size_t)rows.count; i++)
        for (int j = 0; j < a->mixes; j++) {
            struct mixed mixed = {a->mixed[j], is_bf16(w), w->dev->tiled};
            w->dev->kernels.rows.lerp((int)C, s->normal + (i + 1) * stride, s->d + i * stride, vector_of(a->mix[j]),
                                      &mixed, (size_t)rows.first + i);
        }
}

enum status cpu_shift(struct worker *w, const struct shift *a, struct error *e) {
    (void)e;
    struct shift_job job = {w, a, {a->x, a->ln, a->past, a->layer}};
    run_rows(w, shift_rows, &job);
    save_past(w, &job.shift);
    return OK;
}

/* ---- pooling ---------------------------------------------------------------------------------------------------- */

/* Sequences are split by columns too, unless a norm needs the whole row: one long sequence keeps all threads busy. */
enum { STRIP = 512 };

struct pool_job {
    struct worker *w;
    const struct pool *a;
    int strips;
};

/* One row into the sum. `position` counts from 0 at the first pooled token of the whole sequence. */
static void pool_row(const struct row_kernels *k, enum pooling pooling, int C, int64_t position, const float *x,
                     float *sum) {
    switch (pooling) {
    case POOL_MEAN: k->add_scaled(C, 1.0f, x, sum); break;
    case POOL_WEIGHTED: k->add_scaled(C, (float)(position + 1), x, sum); break;
    case POOL_MAX:
        if (position) {
            k->maximum(C, x, sum);
            break;
        }
        memcpy(sum, x, (size_t)C * sizeof *sum);
        break;
    case POOL_LAST: memcpy(sum, x, (size_t)C * sizeof *sum); break;
    }
}

static void pool_strip(void *context, struct span span, int thread) {
    struct pool_job *job = context;
    struct worker *w = job->w;
    const struct pass *pass = &w->pass;
    const struct row_kernels *k = &w->dev->kernels.rows;
    int piece = span.first / job->strips, column = span.first % job->strips * STRIP, C = w->dev->dims.C;
    int width = job->strips > 1 ? least(STRIP, C - column) : C;
    int first = pass->start[piece], last = pass->start[piece + 1];
    int64_t before = pass->before[piece], skip = pass->skip[piece], total = pass->total[piece] - skip;
    bool ends = piece < pass->finished;
    size_t bytes = (size_t)width * sizeof(float), at = (size_t)job->a->column * (size_t)C + (size_t)column;
    float *sum = (ends ? pass->pooled + (size_t)piece * (size_t)pass->columns * (size_t)C : w->carry[!w->turn]) + at;
    if (before) memcpy(sum, w->carry[w->turn] + at, bytes);
    else memset(sum, 0, bytes);
    int pooled = skip > before ? first + (int)(skip - before) : first;
    for (int t = pass->pooling == POOL_LAST ? last - 1 : pooled; t < last; t++) {
        const float *x = job->a->x + (size_t)t * (size_t)C + column;
        if (job->a->ln) {
            float *normal = w->scratch[thread].normal;
            k->layer_norm(C, x, vector_of(job->a->ln->weight), vector_of(job->a->ln->bias), normal);
            x = normal;
        }
        pool_row(k, pass->pooling, width, before + t - first - skip, x, sum);
    }
    if (!ends) return;
    double weight = pass->pooling == POOL_MEAN ? (double)total : 0.5 * (double)total * (double)(total + 1);
    for (int i = 0; i < width && (pass->pooling == POOL_MEAN || pass->pooling == POOL_WEIGHTED); i++)
        sum[i] = (float)(sum[i] / weight);
    if (!floats_finite(sum, (size_t)width)) atomic_store_explicit(&w->not_finite, true, memory_order_relaxed);
}

enum status cpu_pool(struct worker *w, const struct pool *a, struct error *e) {
    (void)e;
    int strips = a->ln ? 1 : pieces(w->dev->dims.C, STRIP);
    team_run(w->team, w->pass.S * strips, 1, pool_strip, &(struct pool_job){w, a, strips});
    return OK;
}
