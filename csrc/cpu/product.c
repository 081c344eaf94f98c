/* The products of a verb on the CPU: cut into blocks of rows and spans of panels. A sum over inputs is never cut, so neither
 * the blocks nor the threads show in the bits. */
#include "product.h"

bool goes_past(const struct worker *w, const void *out, int columns) {
    return w->pass.T > ROW_BLOCK && columns % 16 == 0 && (uintptr_t)out % 64 == 0;
}

struct input input_of(const struct worker *w, const void *in, size_t stride, size_t row, size_t column, int rows, int k,
                      void *room) {
    const struct tile_product *product = w->dev->product;
    const void *from = in_at(w, in, in_place(w->dev->tiled, stride, row, column));
    if (w->dev->tiled) return (struct input){from, TILED * stride * dtype_bytes(w->dev->dtype)};
    gemm_pack_input(product, is_bf16(w), from, stride, rows, k, room);
    return (struct input){room, gemm_input_bytes(product, product->tile_rows, k)};
}

void multiply(struct worker *w, const struct weight *weight, const void *in, size_t row, struct rows rows,
              size_t out_row, const struct thread_scratch *s, const struct finish *finish) {
    const struct packed *p = packed_of(weight);
    struct gemm_part part = {.weight = p, .panels = p->panels, .rows = rows.count, .row = out_row};
    part.in = input_of(w, in, (size_t)p->k, row, 0, rows.count, p->k, s->packed);
    gemm_block(w->dev->product, w->dev->kernels.rows.finish, &part, finish, s->products);
}

/* Whether what an epilogue writes is of in type. Low ranks are, once their activation is applied. */
static bool feeds_a_product(enum epilogue epilogue) {
    return epilogue == RELU2 || epilogue >= LOW;
}

struct gemm_job {
    struct worker *w;
    const struct gemm *a;
    int count, row_blocks;
    unsigned char *packed[MOST_PRODUCTS]; /* unused where inputs are read as they lie */
    int first_unit[MOST_PRODUCTS + 1];
};

/* One tile of one product's input. */
static void pack_tile(void *context, struct span span, int thread) {
    (void)thread;
    struct gemm_job *job = context;
    int item = span.first;
    struct worker *w = job->w;
    const struct tile_product *product = w->dev->product;
    int tiles = pieces(w->pass.T, product->tile_rows), tile = item % tiles, first = tile * product->tile_rows;
    const struct gemm *a = &job->a[item / tiles];
    int k = packed_of(a->w)->k;
    gemm_pack_input(product, is_bf16(w), in_at(w, a->in, (size_t)first * (size_t)k), (size_t)k,
                    least(product->tile_rows, w->pass.T - first), k,
                    job->packed[item / tiles] + (size_t)tile * gemm_input_bytes(product, product->tile_rows, k));
}

/* Panels of the n-th product for a block of rows. */
static void multiply_panels(const struct gemm_job *job, int n, int block, int panel, int panels, int thread) {
    struct worker *w = job->w;
    const struct tile_product *product = w->dev->product;
    const struct gemm *a = &job->a[n];
    const struct packed *p = packed_of(a->w);
    int most = ROW_BLOCK / product->tile_rows * product->tile_rows, first = block * most;
    struct gemm_part part = {.weight = p, .panel = panel, .panels = panels};
    part.rows = least(most, w->pass.T - first);
    part.row = (size_t)first;
    if (w->dev->tiled) part.in = input_of(w, a->in, (size_t)p->k, part.row, 0, part.rows, p->k, NULL);
    else
        part.in = (struct input){job->packed[n] + gemm_input_bytes(product, first, p->k),
                                 gemm_input_bytes(product, product->tile_rows, p->k)};
    struct finish finish = {
        .kind = (int)a->epilogue, .bf16 = is_bf16(w), .out = a->out, .stride = (size_t)p->n, .gate = a->gate};
    finish.tiled = w->dev->tiled && feeds_a_product(a->epilogue);
    finish.past = goes_past(w, a->out, p->n);
    gemm_block(product, w->dev->kernels.rows.finish, &part, &finish, w->scratch[thread].products);
}

/* A unit is a panel for a block of rows. Panels run fastest, so that a block of inputs, once in the second-level cache,
 * serves all the panels that pass. */
static void multiply_span(void *context, struct span span, int thread) {
    const struct gemm_job *job = context;
    const struct tile_product *product = job->w->dev->product;
    int n = 0;
    gemm_enter(product);
    while (span.count) {
        while (span.first >= job->first_unit[n + 1]) n++;
        int all = packed_of(job->a[n].w)->panels, local = span.first - job->first_unit[n];
        int panel = local % all, panels = least(span.count, all - panel);
        multiply_panels(job, n, local / all, panel, panels, thread);
        span = (struct span){span.first + panels, span.count - panels};
    }
    gemm_leave(product);
}

static void gemm_few(struct worker *w, const struct gemm *a, int count) {
    const struct tile_product *product = w->dev->product;
    int most = ROW_BLOCK / product->tile_rows * product->tile_rows;
    struct gemm_job job = {.w = w, .a = a, .count = count, .row_blocks = pieces(w->pass.T, most)};
    unsigned char *next = w->packed;
    for (int i = 0; i < count; i++) {
        const struct packed *p = packed_of(a[i].w);
        job.packed[i] = next;
        next += gemm_input_bytes(product, w->pass.T, p->k);
        job.first_unit[i + 1] = job.first_unit[i] + job.row_blocks * p->panels;
    }
    if (!w->dev->tiled) team_run(w->team, count * pieces(w->pass.T, product->tile_rows), 1, pack_tile, &job);
    team_run(w->team, job.first_unit[count], PANEL_BLOCK, multiply_span, &job);
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
