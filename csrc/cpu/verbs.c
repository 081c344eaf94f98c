/* The verbs on the CPU: each is one or two rounds of the team over items that share nothing.
 *
 * Rows of a verb are cut into items, products into row blocks and panel blocks; a sum over inputs, a head's time and
 * a sequence's pooling are never cut. So neither the cut nor the thread shows in the bits. */
#include "worker.h"

#include <string.h>

static int least(int a, int b) {
    return a < b ? a : b;
}

static int pieces(int n, int size) {
    return (n + size - 1) / size;
}

static const float *vector_of(const struct weight *w) {
    return w->data;
}

/* Element `index` of an array of in type, and of the same array to be written. */
static const void *in_at(const struct worker *w, const void *p, size_t index) {
    return (const char *)p + index * dtype_bytes(w->dev->dtype);
}

/* ---- rows ---------------------------------------------------------------------------------------------------- */

/* Rows first .. first + rows of the pass, one item's share. */
struct rows {
    int first, count;
};

/* Small enough to give every thread some, whole tiles so that few are ragged. */
static int rows_per_item(const struct worker *w) {
    int tile = w->dev->product->tile_rows, most = ITEM_ROWS / tile * tile;
    int fair = pieces(pieces(w->pass.T, 2 * w->dev->threads), tile) * tile;
    return least(most, fair);
}

static struct rows rows_of_item(const struct worker *w, int item) {
    int size = rows_per_item(w), first = item * size;
    return (struct rows){first, least(size, w->pass.T - first)};
}

static void run_rows(struct worker *w, team_work *work, void *context) {
    team_run(w->team, pieces(w->pass.T, rows_per_item(w)), work, context);
}

struct embed_job {
    struct worker *w;
    const struct embed *a;
};

static void embed_rows(void *context, int item, int thread) {
    struct embed_job *job = context;
    struct worker *w = job->w;
    const struct array *table = job->a->table->data;
    struct rows rows = rows_of_item(w, item);
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

struct shift {
    const float *x;
    struct norm ln;
    const float *slots; /* [slot, L, C] */
    int layer;
};

static size_t slot_at(const struct worker *w, int slot, int layer) {
    const struct dims *d = &w->dev->dims;
    return ((size_t)slot * (size_t)d->L + (size_t)layer) * (size_t)d->C;
}

static size_t shift_stride(const struct worker *w) {
    return (size_t)w->dev->dims.C + SHIFT_PAD;
}

/* normal [1 + count, C] = the row before, then LN of the rows; d [count, C] = previous - this; rows shift_stride apart.
 * Where another item owns the row before, it is normalised anew: cheaper than waiting for it, and the same bits. */
static void shift_rows(const struct worker *w, const struct shift *s, struct rows rows, float *normal, float *d) {
    const struct row_kernels *k = &w->dev->kernels.rows;
    int C = w->dev->dims.C;
    const float *weight = vector_of(s->ln.weight), *bias = vector_of(s->ln.bias);
    size_t stride = shift_stride(w);
    for (int i = 0; i < rows.count; i++) {
        int t = rows.first + i, piece = w->piece[t], from = w->pass.from[piece];
        float *a = normal + (size_t)(i + 1) * stride;
        const float *previous = a - stride;
        if (t == w->pass.start[piece]) previous = from < 0 ? w->zeros : s->slots + slot_at(w, from, s->layer);
        else if (i == 0) k->layer_norm(C, s->x + (size_t)(t - 1) * (size_t)C, weight, bias, normal);
        k->layer_norm(C, s->x + (size_t)t * (size_t)C, weight, bias, a);
        k->difference(C, previous, a, d + (size_t)i * stride);
    }
}

/* Leaves the last normalised row of every piece that is asked for in its slot. */
static void save_shift(const struct worker *w, const struct shift *s, float *slots) {
    size_t C = (size_t)w->dev->dims.C;
    for (int i = 0; i < w->pass.S; i++)
        if (w->pass.to[i] >= 0)
            w->dev->kernels.rows.layer_norm((int)C, s->x + (size_t)(w->pass.start[i + 1] - 1) * C,
                                            vector_of(s->ln.weight), vector_of(s->ln.bias),
                                            slots + slot_at(w, w->pass.to[i], s->layer));
}

/* Whether a float32 matrix of this pass is too large to wait in the caches for who reads it. */
static bool goes_past(const struct worker *w, const void *out, int columns) {
    return w->pass.T > ROW_BLOCK && columns % 16 == 0 && (uintptr_t)out % 64 == 0;
}

/* Rows row .. row + rows and columns column .. column + k of a matrix of in type with `stride` columns, for a product:
 * where they lie, if they lie as it reads them, else packed into `room`. */
static struct input input_of(const struct worker *w, const void *in, size_t stride, size_t row, size_t column, int rows,
                             int k, void *room) {
    const struct tile_product *product = w->dev->product;
    const void *from = in_at(w, in, in_place(w->dev->tiled, stride, row, column));
    if (w->dev->tiled) return (struct input){from, TILED * stride * dtype_bytes(w->dev->dtype)};
    gemm_pack_input(product, is_bf16(w), from, stride, rows, k, room);
    return (struct input){room, gemm_input_bytes(product, product->tile_rows, k)};
}

/* Rows row .. of `in`, a matrix with as many columns as the weight has inputs, times all of the weight. */
static void multiply(struct worker *w, const struct weight *weight, const void *in, size_t row, struct rows rows,
                     size_t out_row, const struct thread_scratch *s, const struct finish *finish) {
    const struct packed *p = packed_of(weight);
    struct gemm_part part = {.weight = p, .panels = p->panels, .rows = rows.count, .row = out_row};
    part.in = input_of(w, in, (size_t)p->k, row, 0, rows.count, p->k, s->packed);
    gemm_block(w->dev->product, w->dev->kernels.rows.finish, &part, finish, s->products);
}

struct time_shift_job {
    struct worker *w;
    const struct time_shift *a;
    struct shift shift;
};

/* The low-rank terms up and the lerps, five for a panel of columns while its a and d are in the first-level cache. */
static void lerp_five(struct worker *w, const struct time_shift *a, struct rows rows, const struct thread_scratch *s) {
    const struct device *dev = w->dev;
    const struct packed *w2 = packed_of(a->w2);
    size_t C = (size_t)dev->dims.C, R = (size_t)dev->dims.R, stride = shift_stride(w);
    size_t room = gemm_input_bytes(dev->product, ITEM_ROWS, dev->dims.R);
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
        part[j].in = input_of(w, s->low_rank, 5 * R, 0, j * R, rows.count, dev->dims.R, (char *)s->packed_z + j * room);
    }
    for (int panel = 0; panel < w2->panels; panel++)
        for (int j = 0; j < 5; j++) {
            part[j].panel = panel;
            gemm_block(dev->product, dev->kernels.rows.finish, &part[j], &finish[j], s->products);
        }
}

static void time_shift_rows(void *context, int item, int thread) {
    struct time_shift_job *job = context;
    struct worker *w = job->w;
    const struct time_shift *a = job->a;
    const struct device *dev = w->dev;
    struct thread_scratch *s = &w->scratch[thread];
    struct rows rows = rows_of_item(w, item);
    size_t C = (size_t)dev->dims.C, stride = shift_stride(w);
    struct mixed mix = {s->mix, is_bf16(w), dev->tiled};
    shift_rows(w, &job->shift, rows, s->normal, s->d);
    for (size_t i = 0; i < (size_t)rows.count; i++)
        dev->kernels.rows.lerp((int)C, s->normal + (i + 1) * stride, s->d + i * stride, vector_of(a->maa_x), &mix, i);
    gemm_enter(dev->product);
    multiply(w, a->w1, s->mix, 0, rows, 0, s,
             &(struct finish){.kind = FINISH_TANH,
                              .bf16 = is_bf16(w),
                              .tiled = dev->tiled,
                              .out = s->low_rank,
                              .stride = 5 * (size_t)dev->dims.R});
    lerp_five(w, a, rows, s);
    gemm_leave(dev->product);
}

enum status cpu_time_shift(struct worker *w, const struct time_shift *a, struct error *e) {
    (void)e;
    struct time_shift_job job = {w, a, {a->x, a->ln1, w->pass.att_x, a->layer}};
    run_rows(w, time_shift_rows, &job);
    save_shift(w, &job.shift, (float *)w->pass.att_x);
    return OK;
}

struct channel_shift_job {
    struct worker *w;
    const struct channel_shift *a;
    struct shift shift;
};

static void channel_shift_rows(void *context, int item, int thread) {
    struct channel_shift_job *job = context;
    struct worker *w = job->w;
    const struct channel_shift *a = job->a;
    struct thread_scratch *s = &w->scratch[thread];
    struct rows rows = rows_of_item(w, item);
    size_t C = (size_t)w->dev->dims.C, stride = shift_stride(w);
    struct mixed k = {a->mixed_k, is_bf16(w), w->dev->tiled}, r = {a->mixed_r, is_bf16(w), w->dev->tiled};
    shift_rows(w, &job->shift, rows, s->normal, s->d);
    for (size_t i = 0; i < (size_t)rows.count; i++) {
        const float *b = s->normal + (i + 1) * stride, *d = s->d + i * stride;
        w->dev->kernels.rows.lerp((int)C, b, d, vector_of(a->maa_k), &k, (size_t)rows.first + i);
        w->dev->kernels.rows.lerp((int)C, b, d, vector_of(a->maa_r), &r, (size_t)rows.first + i);
    }
}

enum status cpu_channel_shift(struct worker *w, const struct channel_shift *a, struct error *e) {
    (void)e;
    struct channel_shift_job job = {w, a, {a->x, a->ln2, w->pass.ffn_x, a->layer}};
    run_rows(w, channel_shift_rows, &job);
    save_shift(w, &job.shift, (float *)w->pass.ffn_x);
    return OK;
}

/* ---- products -------------------------------------------------------------------------------------------------- */

enum { MOST_PRODUCTS = 4 };

struct gemm_job {
    struct worker *w;
    const struct gemm *a;
    int count, panel_block, row_blocks;
    unsigned char *packed[MOST_PRODUCTS]; /* unused where inputs are read as they lie */
    int first_item[MOST_PRODUCTS + 1];
};

/* One tile of one product's input. */
static void pack_tile(void *context, int item, int thread) {
    (void)thread;
    struct gemm_job *job = context;
    struct worker *w = job->w;
    const struct tile_product *product = w->dev->product;
    int tiles = pieces(w->pass.T, product->tile_rows), tile = item % tiles, first = tile * product->tile_rows;
    const struct gemm *a = &job->a[item / tiles];
    int k = packed_of(a->w)->k;
    gemm_pack_input(product, is_bf16(w), in_at(w, a->in, (size_t)first * (size_t)k), (size_t)k,
                    least(product->tile_rows, w->pass.T - first), k,
                    job->packed[item / tiles] + (size_t)tile * gemm_input_bytes(product, product->tile_rows, k));
}

/* Panels run fastest, so that a block of inputs, once in the second-level cache, serves all the panels that pass. */
static void multiply_block(void *context, int item, int thread) {
    struct gemm_job *job = context;
    struct worker *w = job->w;
    const struct tile_product *product = w->dev->product;
    int i = 0;
    while (item >= job->first_item[i + 1]) i++;
    const struct gemm *a = &job->a[i];
    const struct packed *p = packed_of(a->w);
    int panel_blocks = pieces(p->panels, job->panel_block), local = item - job->first_item[i];
    int block = local / panel_blocks, panel = local % panel_blocks * job->panel_block;
    int most = ROW_BLOCK / product->tile_rows * product->tile_rows, first = block * most;
    struct gemm_part part = {.weight = p, .panel = panel, .panels = least(job->panel_block, p->panels - panel)};
    part.rows = least(most, w->pass.T - first);
    part.row = (size_t)first;
    if (w->dev->tiled) part.in = input_of(w, a->in, (size_t)p->k, part.row, 0, part.rows, p->k, NULL);
    else
        part.in = (struct input){job->packed[i] + gemm_input_bytes(product, first, p->k),
                                 gemm_input_bytes(product, product->tile_rows, p->k)};
    struct finish finish = {
        .kind = (int)a->epilogue, .bf16 = is_bf16(w), .out = a->out, .stride = (size_t)p->n, .gate = a->gate};
    finish.tiled = w->dev->tiled && a->epilogue == RELU2;
    finish.past = goes_past(w, a->out, p->n);
    gemm_enter(product);
    gemm_block(product, w->dev->kernels.rows.finish, &part, &finish, w->scratch[thread].products);
    gemm_leave(product);
}

/* Panels an item takes: as many as gemm_block likes, fewer where the threads would not all have some. */
static int choose_panel_block(const struct gemm_job *job) {
    int panels = 0, threads = job->w->dev->threads;
    for (int i = 0; i < job->count; i++) panels += packed_of(job->a[i].w)->panels;
    int block = PANEL_BLOCK;
    while (block > 1 && panels * job->row_blocks < 4 * threads * block) block /= 2;
    return block;
}

static void gemm_few(struct worker *w, const struct gemm *a, int count) {
    const struct tile_product *product = w->dev->product;
    int most = ROW_BLOCK / product->tile_rows * product->tile_rows;
    struct gemm_job job = {.w = w, .a = a, .count = count, .row_blocks = pieces(w->pass.T, most)};
    job.panel_block = choose_panel_block(&job);
    unsigned char *next = w->packed;
    for (int i = 0; i < count; i++) {
        const struct packed *p = packed_of(a[i].w);
        job.packed[i] = next;
        next += gemm_input_bytes(product, w->pass.T, p->k);
        job.first_item[i + 1] = job.first_item[i] + job.row_blocks * pieces(p->panels, job.panel_block);
    }
    if (!w->dev->tiled) team_run(w->team, count * pieces(w->pass.T, product->tile_rows), pack_tile, &job);
    team_run(w->team, job.first_item[count], multiply_block, &job);
}

enum status cpu_gemm(struct worker *w, const struct gemm *a, int count, struct error *e) {
    (void)e;
    for (int first = 0; first < count;) {
        int few = 0;
        size_t bytes = 0;
        while (first + few < count && few < MOST_PRODUCTS) {
            bytes += gemm_input_bytes(w->dev->product, w->pass.T, packed_of(a[first + few].w)->k);
            if (!w->dev->tiled && bytes > w->packed_bytes) break;
            few++;
        }
        gemm_few(w, a + first, few);
        first += few;
    }
    return OK;
}

struct decay_job {
    struct worker *w;
    const struct decay *a;
};

static void decay_rows(void *context, int item, int thread) {
    struct decay_job *job = context;
    struct worker *w = job->w;
    const struct decay *a = job->a;
    struct thread_scratch *s = &w->scratch[thread];
    struct rows rows = rows_of_item(w, item);
    size_t first = (size_t)rows.first;
    struct finish down = {.kind = FINISH_TANH, .bf16 = is_bf16(w), .tiled = w->dev->tiled, .out = s->low_rank};
    struct finish up = {.kind = FINISH_DECAY, .out = a->decay, .vector = vector_of(a->time_decay)};
    down.stride = (size_t)w->dev->dims.D;
    up.stride = (size_t)w->dev->dims.C;
    up.past = goes_past(w, a->decay, w->dev->dims.C);
    gemm_enter(w->dev->product);
    multiply(w, a->w1, a->mixed_w, first, rows, 0, s, &down);
    multiply(w, a->w2, s->low_rank, 0, rows, first, s, &up);
    gemm_leave(w->dev->product);
}

enum status cpu_decay(struct worker *w, const struct decay *a, struct error *e) {
    (void)e;
    run_rows(w, decay_rows, &(struct decay_job){w, a});
    return OK;
}

/* ---- wkv -------------------------------------------------------------------------------------------------------- */

struct wkv_job {
    struct worker *w;
    const struct wkv *a;
};

/* A state slot's head, [N, N], or NULL. */
static float *head_slot(const struct worker *w, int slot, int layer, int head) {
    const struct dims *d = &w->dev->dims;
    if (slot < 0) return NULL;
    size_t heads = ((size_t)slot * (size_t)d->L + (size_t)layer) * (size_t)d->H + (size_t)head;
    return (float *)w->pass.wkv + heads * (size_t)d->N * (size_t)d->N;
}

static void wkv_head(void *context, int item, int thread) {
    struct wkv_job *job = context;
    struct worker *w = job->w;
    const struct wkv *a = job->a;
    const struct dims *d = &w->dev->dims;
    int piece = item / d->H, head = item % d->H, width = wkv_padded(d->N);
    size_t N = (size_t)d->N, column = (size_t)head * N;
    size_t at = (size_t)w->pass.start[piece] * (size_t)d->C + column;
    float *state = w->scratch[thread].state;
    const float *from = head_slot(w, w->pass.from[piece], a->layer, head);
    float *to = head_slot(w, w->pass.to[piece], a->layer, head);
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

enum status cpu_wkv(struct worker *w, const struct wkv *a, struct error *e) {
    (void)e;
    team_run(w->team, w->pass.S * w->dev->dims.H, wkv_head, &(struct wkv_job){w, a});
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

/* One row into the sum. `position` counts from 0 in the whole sequence of `total` tokens. */
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

static void pool_strip(void *context, int item, int thread) {
    struct pool_job *job = context;
    struct worker *w = job->w;
    const struct pass *pass = &w->pass;
    const struct row_kernels *k = &w->dev->kernels.rows;
    int piece = item / job->strips, column = item % job->strips * STRIP, C = w->dev->dims.C;
    int width = job->strips > 1 ? least(STRIP, C - column) : C;
    int first = pass->start[piece], last = pass->start[piece + 1];
    int64_t before = pass->before[piece], total = pass->total[piece];
    bool ends = before + last - first == total;
    size_t bytes = (size_t)width * sizeof(float), at = (size_t)job->a->column * (size_t)C + (size_t)column;
    float *sum = (ends ? pass->pooled + (size_t)piece * (size_t)pass->columns * (size_t)C : w->carry[!w->turn]) + at;
    if (before) memcpy(sum, w->carry[w->turn] + at, bytes);
    else memset(sum, 0, bytes);
    for (int t = pass->pooling == POOL_LAST ? last - 1 : first; t < last; t++) {
        const float *x = job->a->x + (size_t)t * (size_t)C + column;
        if (job->a->ln) {
            float *normal = w->scratch[thread].normal;
            k->layer_norm(C, x, vector_of(job->a->ln->weight), vector_of(job->a->ln->bias), normal);
            x = normal;
        }
        pool_row(k, pass->pooling, width, before + t - first, x, sum);
    }
    if (!ends || pass->pooling == POOL_LAST || pass->pooling == POOL_MAX) return;
    double weight = pass->pooling == POOL_MEAN ? (double)total : 0.5 * (double)total * (double)(total + 1);
    for (int i = 0; i < width; i++) sum[i] = (float)(sum[i] / weight);
}

enum status cpu_pool(struct worker *w, const struct pool *a, struct error *e) {
    (void)e;
    int strips = a->ln ? 1 : pieces(w->dev->dims.C, STRIP);
    team_run(w->team, w->pass.S * strips, pool_strip, &(struct pool_job){w, a, strips});
    return OK;
}
