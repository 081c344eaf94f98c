/* Tile products with float32 FMA, written once on vector.h. The including file defines TILE_ROWS and TILE_VECTORS, how
 * many accumulators its registers hold; a panel is walked in strips of TILE_VECTORS vectors. See kernels.h. */

enum { STRIP = TILE_VECTORS * LANES };

/* bfloat16 weights are widened on the way in: the pair of k and k+1 lies in one 32-bit lane. */
VECTOR_FN void tile_strip(int m, int k, bool paired, const float *a, const float *w, float *c, bool first) {
    vec sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int j = 0; j < TILE_VECTORS; j++) sum[i][j] = first ? (vec){0} : load(c + i * PANEL + j * LANES);
    for (int step = 0; step < k; step += paired ? 2 : 1) {
        vec even[TILE_VECTORS], odd[TILE_VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < TILE_VECTORS; j++) {
            vec pair = load(w + j * LANES);
            even[j] = paired ? (vec)((uvec)pair << 16) : pair;
            odd[j] = paired ? (vec)((uvec)pair & 0xffff0000) : pair;
        }
#pragma GCC unroll 16
        for (int i = 0; i < m; i++)
#pragma GCC unroll 8
            for (int j = 0; j < TILE_VECTORS; j++) sum[i][j] = FMA(all(a[i]), even[j], sum[i][j]);
        if (paired)
#pragma GCC unroll 16
            for (int i = 0; i < m; i++)
#pragma GCC unroll 8
                for (int j = 0; j < TILE_VECTORS; j++) sum[i][j] = FMA(all(a[TILE_ROWS + i]), odd[j], sum[i][j]);
        a += paired ? 2 * TILE_ROWS : TILE_ROWS;
        w += PANEL;
    }
#pragma GCC unroll 16
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int j = 0; j < TILE_VECTORS; j++) store(c + i * PANEL + j * LANES, sum[i][j]);
}

VECTOR_FN void tile_panel(int m, const struct tile *t, bool paired) {
    const float *a = t->a, *w = t->w;
    for (int j = 0; j < PANEL; j += STRIP) {
        if (t->first) tile_strip(m, t->k, paired, a, w + j, t->c + j, true);
        else tile_strip(m, t->k, paired, a, w + j, t->c + j, false);
    }
}

/* The number of rows is a constant in each case, so that sums stay in registers. */
#define TILE_CASE(m)                                                                                                   \
    case m: tile_panel(m, t, paired); break;

VECTOR_FN void tile_of(const struct tile *t, bool paired) {
    switch (t->m) { TILE_CASES }
}

static void tile_f32(const struct tile *t) {
    tile_of(t, false);
}

static void tile_widened(const struct tile *t) {
    tile_of(t, true);
}

/* Widening within tile_widened takes instructions of every tile of rows: many tiles share a widened panel instead. */
static void widen(int k, const void *pairs, float *panel) {
    const float *w = pairs;
    for (int step = 0; step < k; step += 2, w += PANEL, panel += 2 * PANEL)
        for (int j = 0; j < PANEL; j += LANES) {
            uvec pair = (uvec)load(w + j);
            store(panel + j, (vec)(pair << 16));
            store(panel + PANEL + j, (vec)(pair & 0xffff0000));
        }
}
