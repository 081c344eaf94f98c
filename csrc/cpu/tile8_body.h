/* Tile products of int8, written once on vector.h: as in tile_body.h, but a 32-bit lane of weights holds a quad of inputs'
 * int8 and sums are int32. The including file defines how a quad is multiplied:
 *   INPUTS         the layout of inputs
 *   PARTS          words that a row's quad has there
 *   PART(q, p)     weights of quad q as word p of an input is multiplied with
 *   DOT(sum, a, w) sum + what a and w have in common, lane by lane
 * and TILE_ROWS, TILE_VECTORS and TILE_CASES as for tile_body.h. See kernels.h. */

VECTOR_FN ivec load_words(const void *p) {
    ivec v;
    memcpy(&v, p, sizeof v);
    return v;
}

VECTOR_FN ivec same_word(const int32_t *p) {
    return *p - (ivec){0};
}

VECTOR_FN void tile8_strip(int m, int k, const int32_t *a, const int32_t *w, float *c, bool first) {
    ivec sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int j = 0; j < TILE_VECTORS; j++) sum[i][j] = first ? (ivec){0} : load_words(c + i * PANEL + j * LANES);
    for (int step = 0; step < k; step += 4) {
#pragma GCC unroll 2
        for (int part = 0; part < PARTS; part++) {
            ivec weights[TILE_VECTORS];
#pragma GCC unroll 8
            for (int j = 0; j < TILE_VECTORS; j++) weights[j] = PART(load_words(w + j * LANES), part);
#pragma GCC unroll 16
            for (int i = 0; i < m; i++) {
                ivec word = same_word(a + i * PARTS + part);
#pragma GCC unroll 8
                for (int j = 0; j < TILE_VECTORS; j++) sum[i][j] = DOT(sum[i][j], word, weights[j]);
            }
        }
        a += TILE_ROWS * PARTS;
        w += PANEL;
    }
#pragma GCC unroll 16
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int j = 0; j < TILE_VECTORS; j++) memcpy(c + i * PANEL + j * LANES, &sum[i][j], sizeof sum[i][j]);
}

VECTOR_FN void tile8_panel(int m, const struct tile *t) {
    const int32_t *a = t->a, *w = t->w;
    for (int j = 0; j < PANEL; j += TILE_VECTORS * LANES) {
        if (t->first) tile8_strip(m, t->k, a, w + j, t->c + j, true);
        else tile8_strip(m, t->k, a, w + j, t->c + j, false);
    }
}

#undef TILE_CASE
#define TILE_CASE(m)                                                                                                   \
    case m: tile8_panel(m, t); break;

static void tile8(const struct tile *t) {
    switch (t->m) { TILE_CASES }
}

/* Adds the product; how numbers become int8 and back is what `int8` says, or stays as the level below has it. */
VECTOR_FN void fill_int8(struct kernels *k, const struct int8_kernels *int8) {
    struct int8_kernels kept = int8 ? *int8 : k->int8.int8;
    kept.offset = INPUTS == PACKED_QUADS8 ? 128 : 0;
    k->int8 = (struct tile_product){
        .layout = INPUTS,
        .tile_rows = TILE_ROWS,
        .k_step = TURN,
        .k_block = 4096 / (2 * PARTS),
        .k_chunk = 4096 / (2 * PARTS),
        .run = {tile8, NULL},
        .int8 = kept,
    };
}
