/* The CPU behind backend.h: choosing kernels, packing weights, opening workers. The verbs are in rows.c, product.c, rwkv6.c
 * and rwkv7.c. */
#define _POSIX_C_SOURCE 200809L
#include "cpu.h"
#include "worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- device -------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name, *needs;
    void (*fill)(struct kernels *k);
} levels[] = {
    {"portable", "nothing", kernels_portable},
#if defined(__x86_64__)
    {"avx2", "AVX2 and FMA", kernels_avx2},
    {"avx512", "AVX-512 F, BW, DQ and VL", kernels_avx512},
    {"avx512bf16", "AVX512-BF16", kernels_avx512bf16},
    {"amx", "AMX-TILE and AMX-BF16, and a system that permits them", kernels_amx},
#endif
};

/* Fills the table from the portable kernels upward, as far as `isa` or, without one, the processor goes. */
static enum status choose_kernels(const char *isa, struct kernels *k, const char **chosen, struct error *e) {
    int top = -1;
    for (int i = 0; i < COUNT(levels); i++)
        if (isa ? !strcmp(isa, levels[i].name) : cpu_isa_available(levels[i].name)) top = i;
    if (top < 0)
        return fail(e, BAD_INPUT, "instruction set \"%s\": expected portable, avx2, avx512, avx512bf16 or amx", isa);
    if (!cpu_isa_available(levels[top].name))
        return fail(e, DEVICE_FAILED,
                    "instruction set \"%s\" needs %s, which this processor does not offer; leave it out", isa,
                    levels[top].needs);
    for (int i = 0; i <= top; i++) levels[i].fill(k);
    *chosen = levels[top].name;
    return OK;
}

/* The widest of the low ranks. */
static int widest_rank(const struct dims *d) {
    int widest = 0;
    for (int i = 0; i < MOST_RANKS; i++)
        if (d->rank[i] > widest) widest = d->rank[i];
    return widest;
}

/* Whether every matrix of in type can lie in whole tiles. */
static bool all_tiled(const struct dims *d) {
    for (int i = 0; i < MOST_RANKS; i++)
        if (d->rank[i] % TILED) return false;
    return !(d->C % TILED || d->F % TILED || d->N % 16);
}

static enum status device_open(const struct dims *dims, const struct product_kind *products, int count,
                               const struct device_options *options, struct meter *meter, struct device **out,
                               struct error *e) {
    (void)products, (void)count; /* one kernel serves them all */
    *out = NULL;
    if (options->dtype == F16)
        return fail(e, BAD_INPUT,
                    "dtype float16 on a CPU: expected float32 or bfloat16 (float16 weights load into both)");
    if (options->threads < 1 || options->threads > 1024)
        return fail(e, BAD_INPUT, "%d threads: expected 1 .. 1024", options->threads);
    if (dims->N > MAX_HEAD) return fail(e, BAD_INPUT, "head size %d: expected at most %d", dims->N, MAX_HEAD);
    struct device *dev = calloc(1, sizeof *dev);
    if (!dev) return fail(e, NO_MEMORY, "no memory for a device");
    const char *isa = NULL;
    if (choose_kernels(options->isa, &dev->kernels, &isa, e) != OK) {
        free(dev);
        return e->status;
    }
    dev->dims = *dims;
    dev->dtype = options->dtype;
    dev->threads = options->threads;
    dev->product = dev->dtype == BF16 ? &dev->kernels.bf16 : &dev->kernels.f32;
    dev->tiled = dev->product->layout == PACKED_TILES && all_tiled(dims);
    dev->meter = meter;
    snprintf(dev->name, sizeof dev->name, "cpu %s, %d thread%s", isa, dev->threads, dev->threads > 1 ? "s" : "");
    *out = dev;
    return OK;
}

static void device_close(struct device *dev) {
    free(dev);
}

static const char *device_describe(const struct device *dev) {
    return dev->name;
}

static int device_grain(const struct device *dev) {
    (void)dev;
    return 1;
}

static size_t device_in_bytes(const struct device *dev) {
    return dtype_bytes(dev->dtype);
}

static size_t device_out_bytes(const struct device *dev) {
    (void)dev;
    return sizeof(float); /* r, k, v, g: rounding them would cost accuracy and save no time that was measured */
}

/* Enough rows that streaming the weights hides behind the arithmetic; AMX needs more of them. */
static int device_rows(struct device *dev, size_t bytes_per_row, size_t bytes_fixed) {
    (void)bytes_per_row;
    (void)bytes_fixed;
    return dev->product->layout == PACKED_TILES ? 2048 : 1024;
}

/* ---- weights ------------------------------------------------------------------------------------------------- */

/* Rows of the embedding stay in the dtype of the file: exact, and never larger than it was. */
static enum status pack_table(struct device *dev, const struct array *a, struct weight *out, struct error *e) {
    size_t bytes = array_count(a) * dtype_bytes(a->dtype);
    struct array *table = memory_new(NULL, sizeof *table);
    void *data = memory_new(dev->meter, bytes);
    if (!table || !data) {
        memory_free(NULL, table, sizeof *table);
        memory_free(dev->meter, data, bytes);
        return fail(e, NO_MEMORY, "no memory for a table of %zu bytes", bytes);
    }
    *table = *a;
    table->data = memcpy(data, a->data, bytes);
    *out = (struct weight){
        .data = table, .bytes = bytes, .role = TABLE, .g = 1, .n = (int)a->shape[1], .k = (int)a->shape[0]};
    return OK;
}

static void unpack_table(struct device *dev, struct weight *w) {
    struct array *table = w->data;
    memory_free(dev->meter, (void *)(uintptr_t)table->data, w->bytes);
    memory_free(NULL, table, sizeof *table);
}

static enum status device_pack(struct device *dev, enum role role, const struct array *a, struct weight *out,
                               struct error *e) {
    if (role == TABLE) return pack_table(dev, a, out, e);
    if (role != VECTOR) return gemm_pack_weight(dev->product, dev->dtype, role, a, dev->meter, out, e);
    size_t n = array_count(a);
    float *p = memory_new(dev->meter, n * sizeof *p);
    if (!p) return fail(e, NO_MEMORY, "no memory for a vector of %zu numbers", n);
    array_to_float(a, 0, n, p);
    *out = (struct weight){.data = p, .bytes = n * sizeof *p, .role = role, .g = 1, .n = (int)n, .k = 1};
    return OK;
}

static void device_unpack(struct device *dev, struct weight *w) {
    if (!w->data) return;
    switch (w->role) {
    case VECTOR: memory_free(dev->meter, w->data, w->bytes); break;
    case TABLE: unpack_table(dev, w); break;
    default: gemm_unpack_weight(dev->meter, w); break;
    }
    *w = (struct weight){0};
}

/* ---- worker -------------------------------------------------------------------------------------------------- */

static void worker_close(struct worker *w) {
    if (!w) return;
    team_close(w->team);
    while (w->allocations) {
        struct allocation *a = w->allocations;
        w->allocations = a->next;
        memory_free(w->dev->meter, a->p, a->bytes);
        free(a);
    }
    free(w);
}

static enum status worker_alloc(struct worker *w, size_t bytes, void **out, struct error *e) {
    struct allocation *a = malloc(sizeof *a);
    void *p = a ? memory_new(w->dev->meter, bytes) : NULL;
    if (!p) {
        free(a);
        return fail(e, NO_MEMORY, "no memory for a workspace of %zu bytes; a smaller batch_tokens needs less", bytes);
    }
    *a = (struct allocation){w->allocations, p, bytes};
    w->allocations = a;
    *out = p;
    return OK;
}

/* Cuts the next `bytes` off a slab, on cache lines of their own; with slab NULL only counts. */
static void *cut(char *slab, size_t *used, size_t bytes) {
    void *p = slab ? slab + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return p;
}

static size_t slice_scratch(const struct device *dev, char *slab, struct thread_scratch *s) {
    const struct dims *d = &dev->dims;
    size_t used = 0, C = (size_t)d->C, in = dtype_bytes(dev->dtype);
    int rank = widest_rank(d);
    s->normal = cut(slab, &used, (MOST_ROWS + 1) * (C + SHIFT_PAD) * sizeof(float));
    s->d = cut(slab, &used, MOST_ROWS * (C + SHIFT_PAD) * sizeof(float));
    s->mix = cut(slab, &used, MOST_ROWS * C * in);
    s->low_rank = cut(slab, &used, MOST_ROWS * MOST_MIXES * (size_t)rank * in);
    s->packed = cut(slab, &used, gemm_input_bytes(dev->product, MOST_ROWS, d->C > rank ? d->C : rank));
    s->packed_z = cut(slab, &used, MOST_MIXES * gemm_input_bytes(dev->product, MOST_ROWS, rank));
    s->state = cut(slab, &used, (size_t)d->N * (size_t)wkv_padded(d->N) * sizeof(float));
    s->products = cut(slab, &used, gemm_scratch_bytes(dev->product, ROW_BLOCK));
    return used;
}

static enum status worker_memory(struct worker *w, struct error *e) {
    const struct device *dev = w->dev;
    size_t C = (size_t)dev->dims.C, threads = (size_t)dev->threads, each;
    int widest = 5 * dev->dims.C > dev->dims.F ? 5 * dev->dims.C : dev->dims.F;
    void *p = NULL;
    TRY(worker_alloc(w, (size_t)w->rows * sizeof *w->piece, &p, e));
    w->piece = p;
    TRY(worker_alloc(w, C * sizeof *w->zeros, &p, e));
    w->zeros = memset(p, 0, C * sizeof *w->zeros);
    for (int i = 0; i < 2; i++) {
        TRY(worker_alloc(w, (size_t)w->columns * C * sizeof(float), &p, e));
        w->carry[i] = p;
    }
    if (!dev->tiled)
        w->packed_bytes = gemm_input_bytes(dev->product, w->rows, widest) +
                          gemm_input_bytes(dev->product, w->rows, 5 * dev->product->k_step);
    TRY(worker_alloc(w, w->packed_bytes, &p, e));
    w->packed = p;
    TRY(worker_alloc(w, threads * sizeof *w->scratch, &p, e));
    w->scratch = p;
    each = slice_scratch(dev, NULL, &w->scratch[0]);
    for (size_t i = 0; i < threads; i++) {
        TRY(worker_alloc(w, each, &p, e));
        slice_scratch(dev, p, &w->scratch[i]);
    }
    return OK;
}

static enum status worker_open(struct device *dev, int rows, int sequences, int columns, struct worker **out,
                               struct error *e) {
    *out = NULL;
    struct worker *w = calloc(1, sizeof *w);
    if (!w) return fail(e, NO_MEMORY, "no memory for a worker");
    w->dev = dev;
    w->rows = rows;
    w->sequences = sequences;
    w->columns = columns;
    enum status status = team_open(dev->threads, &w->team, e);
    if (status == OK) status = worker_memory(w, e);
    if (status == OK) *out = w;
    else worker_close(w);
    return status;
}

static enum status worker_copy(struct worker *w, void *to, const void *from, size_t bytes, struct error *e) {
    (void)w;
    (void)e;
    memcpy(to, from, bytes);
    return OK;
}

/* ---- a pass -------------------------------------------------------------------------------------------------- */

static enum status pass_begin(struct worker *w, const struct pass *pass, bool *replay, struct error *e) {
    if (pass->T > w->rows || pass->S > w->sequences || pass->columns > w->columns)
        return fail(e, BAD_INPUT, "a pass of %d rows, %d sequences, %d columns for a worker of %d, %d, %d", pass->T,
                    pass->S, pass->columns, w->rows, w->sequences, w->columns);
    w->pass = *pass;
    w->turn = !w->turn;
    for (int piece = 0; piece < pass->S; piece++)
        for (int t = pass->start[piece]; t < pass->start[piece + 1]; t++) w->piece[t] = piece;
    *replay = false;
    return OK;
}

static enum status pass_done(struct worker *w, struct error *e) {
    (void)w;
    (void)e;
    return OK; /* every verb has finished when it returns */
}

static enum status passes_done(struct worker *w, bool *finite, struct error *e) {
    (void)e;
    *finite = !atomic_exchange_explicit(&w->not_finite, false, memory_order_relaxed);
    return OK;
}

const struct backend *cpu_backend(void) {
    static const struct backend backend = {
        .open = device_open,
        .close = device_close,
        .describe = device_describe,
        .pack = device_pack,
        .unpack = device_unpack,
        .worker_open = worker_open,
        .worker_close = worker_close,
        .rows = device_rows,
        .grain = device_grain,
        .in_bytes = device_in_bytes,
        .out_bytes = device_out_bytes,
        .alloc = worker_alloc,
        .upload = worker_copy,
        .download = worker_copy,
        .begin = pass_begin,
        .end = pass_done,
        .finish = passes_done,
        .embed = cpu_embed,
        .shift = cpu_shift,
        .gemm = cpu_gemm,
        .pool = cpu_pool,
        .rwkv6 = &cpu_rwkv6,
        .rwkv7 = &cpu_rwkv7,
    };
    return &backend;
}
