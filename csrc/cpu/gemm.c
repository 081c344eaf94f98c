/* Packing and the blocked product; see gemm.h and the layouts in kernels.h. */
#include "gemm.h"

#include <string.h>

static int round_up(int n, int step) {
    return (n + step - 1) / step * step;
}

static int least(int a, int b) {
    return a < b ? a : b;
}

/* ---- weights ------------------------------------------------------------------------------------------------ */

/* Outputs first .. first + PANEL of group g as rows [PANEL][k_padded] of the packed type; what is absent stays zero. */
static void gather_panel(const struct array *a, enum role role, const struct packed *p, int g, int first, float *line,
                         void *rows) {
    size_t bytes = dtype_bytes(p->dtype), stride = (size_t)p->k_padded;
    int n = least(PANEL, p->n - first);
    memset(rows, 0, PANEL * stride * bytes);
    if (role == LINEAR && a->dtype == p->dtype) {
        const char *from = (const char *)a->data + (size_t)first * (size_t)p->k * bytes;
        for (int j = 0; j < n; j++)
            memcpy((char *)rows + (size_t)j * stride * bytes, from + (size_t)j * (size_t)p->k * bytes,
                   (size_t)p->k * bytes);
        return;
    }
    /* Lines of the source: one output's inputs where role is LINEAR, one input's outputs elsewhere. */
    int lines = role == LINEAR ? n : p->k, length = role == LINEAR ? p->k : n;
    for (int l = 0; l < lines; l++) {
        size_t at = role == LINEAR ? (size_t)(first + l) * (size_t)p->k
                                   : ((size_t)g * (size_t)p->k + (size_t)l) * (size_t)p->n + (size_t)first;
        array_to_float(a, at, (size_t)length, line);
        for (int i = 0; i < length; i++) {
            size_t to = role == LINEAR ? (size_t)l * stride + (size_t)i : (size_t)i * stride + (size_t)l;
            if (p->dtype == F32) ((float *)rows)[to] = line[i];
            else ((uint16_t *)rows)[to] = float_to_bfloat16(line[i]);
        }
    }
}

/* rows [PANEL][words] -> panel [words][PANEL]; a word is 4 bytes: a float or a pair of bfloat16. Sixteen words are a line. */
static void transpose_panel(const unsigned char *rows, size_t words, unsigned char *panel) {
    enum { WORD = 4 };
    for (size_t first = 0; first < words; first += 16) {
        size_t last = first + 16 < words ? first + 16 : words;
        for (size_t j = 0; j < PANEL; j++)
            for (size_t i = first; i < last; i++)
                memcpy(panel + (i * PANEL + j) * WORD, rows + (j * words + i) * WORD, WORD);
    }
}

enum status gemm_pack_weight(const struct tile_product *product, enum dtype in, enum role role, const struct array *a,
                             struct meter *meter, struct weight *out, struct error *e) {
    int64_t last = a->shape[a->ndim - 1], before = a->shape[a->ndim - 2];
    struct packed head = {.dtype = in == BF16 || a->dtype == BF16 ? BF16 : F32,
                          .g = role == LORA_UP && a->ndim == 3 ? (int)a->shape[0] : 1,
                          .n = (int)(role == LINEAR ? before : last),
                          .k = (int)(role == LINEAR ? last : before)};
    head.k_padded = round_up(head.k, product->k_step);
    head.panels = round_up(head.n, PANEL) / PANEL;
    head.panel_bytes = (size_t)head.k_padded * PANEL * dtype_bytes(head.dtype);
    size_t bytes = (size_t)head.g * (size_t)head.panels * head.panel_bytes;
    size_t line_bytes = (size_t)(head.k > PANEL ? head.k : PANEL) * sizeof(float);
    struct packed *p = memory_new(NULL, sizeof *p);
    head.data = memory_new(meter, bytes);
    float *line = memory_new(NULL, line_bytes);
    unsigned char *rows = memory_new(NULL, head.panel_bytes);
    enum status status = OK;
    if (!p || !head.data || !line || !rows) {
        memory_free(NULL, p, sizeof *p);
        memory_free(meter, head.data, bytes);
        status = fail(e, NO_MEMORY, "no memory to pack a weight of %zu bytes", bytes);
        goto done;
    }
    *p = head;
    for (int g = 0; g < p->g; g++)
        for (int panel = 0; panel < p->panels; panel++) {
            gather_panel(a, role, p, g, panel * PANEL, line, rows);
            transpose_panel(rows, p->panel_bytes / PANEL / 4,
                            p->data + (size_t)(g * p->panels + panel) * p->panel_bytes);
        }
    *out = (struct weight){.data = p, .bytes = bytes, .role = role, .g = p->g, .n = p->n, .k = p->k};
done:
    memory_free(NULL, line, line_bytes);
    memory_free(NULL, rows, head.panel_bytes);
    return status;
}

void gemm_unpack_weight(struct meter *meter, struct weight *w) {
    struct packed *p = w->data;
    memory_free(meter, p->data, w->bytes);
    memory_free(NULL, p, sizeof *p);
}

/* ---- inputs ------------------------------------------------------------------------------------------------- */

static size_t input_element(const struct tile_product *product) {
    return product->layout == PACKED_F32 ? sizeof(float) : sizeof(uint16_t);
}

size_t gemm_input_bytes(const struct tile_product *product, int rows, int k) {
    return (size_t)round_up(rows, product->tile_rows) * (size_t)round_up(k, product->k_step) * input_element(product);
}

/* Elements k of one row to their places, tile_rows elements apart or, as tiles, 32 at a time. */
static void pack_f32(const float *in, int k, size_t tile_rows, float *out) {
    for (int i = 0; i < k; i++) out[(size_t)i * tile_rows] = in[i];
}

static void pack_widened(const uint16_t *in, int k, size_t tile_rows, float *out) {
    for (int i = 0; i < k; i++) out[(size_t)i * tile_rows] = bfloat16_to_float(in[i]);
}

static void pack_pairs(const uint16_t *in, int k, size_t tile_rows, uint16_t *out) {
    int i = 0;
    for (; i + 2 <= k; i += 2) memcpy(out + (size_t)i * tile_rows, in + i, 4);
    if (i < k) out[(size_t)i * tile_rows] = in[i];
}

static void pack_tiles(const uint16_t *in, int k, size_t tile_rows, uint16_t *out) {
    int i = 0;
    for (; i + 32 <= k; i += 32) memcpy(out + (size_t)i * tile_rows, in + i, 64);
    memcpy(out + (size_t)i * tile_rows, in + i, 2 * (size_t)(k - i));
}

/* Elements first .. first + k of `rows` rows, at most a tile. */
static void pack_tile(const struct tile_product *product, bool bf16, const char *in, size_t stride_bytes, int rows,
                      int first, int k, char *tile) {
    size_t tile_rows = (size_t)product->tile_rows, from = (size_t)first * (bf16 ? 2 : 4);
    char *to = tile + (size_t)first * tile_rows * input_element(product);
    for (size_t i = 0; i < (size_t)rows; i++) {
        const void *row = in + i * stride_bytes + from;
        switch (product->layout) {
        case PACKED_F32:
            if (bf16) pack_widened(row, k, tile_rows, (float *)(void *)to + i);
            else pack_f32(row, k, tile_rows, (float *)(void *)to + i);
            break;
        case PACKED_PAIRS: pack_pairs(row, k, tile_rows, (uint16_t *)(void *)to + 2 * i); break;
        case PACKED_TILES: pack_tiles(row, k, tile_rows, (uint16_t *)(void *)to + 32 * i); break;
        }
    }
}

void gemm_pack_input(const struct tile_product *product, bool bf16, const void *in, size_t stride, int rows, int k,
                     void *out) {
    enum { CHUNK = 128 }; /* elements of each row before the next: what is written stays in the first-level cache */
    int tile_rows = product->tile_rows;
    size_t tile_bytes = gemm_input_bytes(product, tile_rows, k), stride_bytes = stride * (bf16 ? 2 : 4);
    if (k % product->k_step || rows % tile_rows) memset(out, 0, gemm_input_bytes(product, rows, k));
    for (int row = 0; row < rows; row += tile_rows)
        for (int first = 0; first < k; first += CHUNK)
            pack_tile(product, bf16, (const char *)in + (size_t)row * stride_bytes, stride_bytes,
                      least(tile_rows, rows - row), first, least(CHUNK, k - first),
                      (char *)out + (size_t)(row / tile_rows) * tile_bytes);
}

/* ---- product ------------------------------------------------------------------------------------------------ */

static size_t sums_floats(const struct tile_product *product, int rows) {
    return (size_t)round_up(rows, product->tile_rows) * PANEL * PANEL_BLOCK;
}

static size_t widened_floats(const struct tile_product *product) {
    return product->widen ? (size_t)product->k_block * PANEL : 0;
}

size_t gemm_scratch_bytes(const struct tile_product *product, int rows) {
    return (sums_floats(product, rows) + widened_floats(product)) * sizeof(float);
}

/* A walk over a part: a chunk of inputs of a panel, the next chunks of its block, the next panel, the next block. */
struct walk {
    const struct tile_product *product;
    const struct gemm_part *part;
    float *sums, *widened; /* widened: NULL where the kernel reads the weights as they are */
    int tiles, k_block, k_chunk;
    int block, panel, k; /* where the walk stands: first input of the block, panel, first input of the chunk */
};

static int walk_block_end(const struct walk *at) {
    return least(at->block + at->k_block, at->part->weight->k_padded);
}

static int walk_step(const struct walk *at) {
    return least(at->k_chunk, walk_block_end(at) - at->k);
}

static bool walk_ended(const struct walk *at) {
    return at->block >= at->part->weight->k_padded;
}

static void walk_on(struct walk *at) {
    at->k += at->k_chunk;
    if (at->k < walk_block_end(at)) return;
    if (++at->panel == at->part->panels) {
        at->panel = 0;
        at->block += at->k_block;
    }
    at->k = at->block;
}

static const unsigned char *walk_weights(const struct walk *at) {
    const struct packed *w = at->part->weight;
    return w->data + (size_t)(at->part->g * w->panels + at->part->panel + at->panel) * w->panel_bytes +
           (size_t)at->k * PANEL * dtype_bytes(w->dtype);
}

static const char *walk_input(const struct walk *at, int tile) {
    const struct input *in = &at->part->in;
    size_t line = (size_t)at->product->tile_rows * input_element(at->product);
    return (const char *)in->p + (size_t)tile * in->tile_bytes + (size_t)at->k * line;
}

/* Sums of one tile of rows and the panel; those of other panels wait beside them only where K is cut into blocks. */
static float *walk_sums(const struct walk *at, int tile) {
    int panel = at->k_block < at->part->weight->k_padded ? at->panel : 0;
    return at->sums + (size_t)(panel * at->tiles + tile) * (size_t)at->product->tile_rows * PANEL;
}

/* Chunks between the multiplying of weights and the fetching of those to come: 64 to 128 KiB. */
enum { AHEAD = 4 };

/* What each of this chunk's calls fetches. */
static void fetch_ahead(const struct walk *at, struct tile *t) {
    struct walk later = *at;
    for (int i = 0; i < AHEAD && !walk_ended(&later); i++) walk_on(&later);
    if (walk_ended(&later)) return;
    t->soon = (const char *)walk_weights(&later);
    t->soon_bytes = (size_t)walk_step(&later) * PANEL * dtype_bytes(at->part->weight->dtype) / (size_t)at->tiles;
}

/* Rows from .. to of what the panel's last chunk will write or add to, out and gate, are fetched by all its chunks. */
static void fetch_out(const struct finish *f, int from, int to, size_t row, size_t column) {
    bool wanted = f->kind == ADD || f->kind == GATE_ADD || f->kind == RELU2;
    size_t element = f->kind == RELU2 && f->bf16 ? sizeof(uint16_t) : sizeof(float);
    for (int i = from; wanted && i < to; i++) {
        size_t at = in_place(f->tiled, f->stride, row + (size_t)i, column);
        for (size_t line = 0; line < PANEL * element; line += 64) {
            __builtin_prefetch((char *)f->out + at * element + line, 1);
            if (f->kind == GATE_ADD) __builtin_prefetch((const char *)(f->gate + at) + line);
        }
    }
}

/* All rows of a part times one panel's chunk of inputs. */
static void gemm_chunk(const struct walk *at, finish_kernel *apply, const struct finish *finish) {
    const struct gemm_part *part = at->part;
    const struct packed *w = part->weight;
    int tile_rows = at->product->tile_rows, column = (part->panel + at->panel) * PANEL;
    struct tile t = {.k = walk_step(at), .w = walk_weights(at), .first = at->k == 0};
    tile_kernel *run = at->product->run[w->dtype == BF16];
    if (at->widened) {
        at->product->widen(t.k, t.w, at->widened);
        t.w = at->widened;
        run = at->product->run[false];
    }
    fetch_ahead(at, &t);
    int chunks = (w->k_padded - at->block - 1) / at->k_chunk + 1, chunk = (at->k - at->block) / at->k_chunk;
    bool last_block = walk_block_end(at) == w->k_padded;
    for (int i = 0; i < at->tiles; i++, t.soon += t.soon_bytes) {
        int first = i * tile_rows;
        t.m = least(tile_rows, part->rows - first);
        t.a = walk_input(at, i);
        t.c = walk_sums(at, i);
        if (last_block)
            fetch_out(finish, t.m * chunk / chunks, t.m * (chunk + 1) / chunks, part->row + (size_t)first,
                      (size_t)column);
        run(&t);
        if (at->k + t.k == w->k_padded)
            apply(finish, t.m, least(PANEL, w->n - column), part->row + (size_t)first, (size_t)column, t.c);
    }
}

/* Sums wait in memory between chunks and blocks, which keeps their order: ascending k, whatever the blocking. A few rows
 * stay in the cache as they are: then a panel is one long read, which memory likes best. */
static void gemm_panels(const struct tile_product *product, finish_kernel *apply, const struct gemm_part *part,
                        const struct finish *finish, float *scratch) {
    bool few = part->rows <= FEW_ROWS;
    struct walk at = {.product = product, .part = part, .sums = scratch, .k_chunk = product->k_chunk};
    at.tiles = round_up(part->rows, product->tile_rows) / product->tile_rows;
    at.k_block = few ? part->weight->k_padded : product->k_block;
    if (few && product->k_chunk == product->k_block) at.k_chunk = at.k_block;
    if (product->widen && part->weight->dtype == BF16 && !few) at.widened = scratch + sums_floats(product, part->rows);
    for (; !walk_ended(&at); walk_on(&at)) gemm_chunk(&at, apply, finish);
}

void gemm_block(const struct tile_product *product, finish_kernel *apply, const struct gemm_part *part,
                const struct finish *finish, float *scratch) {
    for (int j = 0; j < part->panels; j += PANEL_BLOCK) {
        struct gemm_part few = *part;
        few.panel += j;
        few.panels = least(PANEL_BLOCK, part->panels - j);
        gemm_panels(product, apply, &few, finish, scratch);
    }
}
