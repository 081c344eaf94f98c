/* AMX-BF16: eight tile registers of 16 rows by 64 bytes; TDPBF16PS multiplies two into a third.
 *
 * A tile of rows is 32 by one panel: four sums (0..3), two inputs (4, 5), two weights (6, 7), so each load feeds two
 * products. The second-level cache gives a line in the time a product wants one: block sizes keep the inputs there, a
 * chunk of weights in the first level, and weights to come are fetched meanwhile. */
#if defined(__x86_64__)
#include "kernels.h"

#include <immintrin.h>
#if defined(EMULATE_AMX)
#include EMULATE_AMX /* bench/amx_model.h */
#define TARGET "avx512f"
#else
#define TARGET "amx-tile,amx-bf16"
#endif

#include "target_begin.h"

enum { TILE_ROWS = 32, K_STEP = 32, LINE = 64, TILE_BYTES = 16 * LINE };
enum { WEIGHT_STRIDE = PANEL * 4, SUM_STRIDE = PANEL * 4 };

/* Static: gcc 12 believes that the instruction reads 8 bytes of its operand, and drops stores to one on the stack. */
static const unsigned char config[64] __attribute__((aligned(64))) = {
    1,         [16] = LINE, [18] = LINE, [20] = LINE, [22] = LINE, [24] = LINE, [26] = LINE, [28] = LINE, [30] = LINE,
    [48] = 16, [49] = 16,   [50] = 16,   [51] = 16,   [52] = 16,   [53] = 16,   [54] = 16,   [55] = 16,
};

static void enter(void) {
    _tile_loadconfig(config);
}

static void leave(void) {
    _tile_release();
}

/* Whole lines that each of a call's steps fetches. */
static size_t lines_a_step(const struct tile *t) {
    return t->soon_bytes / ((size_t)t->k / K_STEP) / LINE;
}

/* Half a step's weights into the first-level cache, two steps before their turn: a tile's load waits for each line. */
static inline __attribute__((always_inline)) void fetch_weights(const char *w) {
    for (size_t i = 0; i < TILE_BYTES; i += LINE) _mm_prefetch(w + 4 * TILE_BYTES + i, _MM_HINT_T0);
}

static inline __attribute__((always_inline)) const char *fetch(const char *soon, size_t lines) {
    for (size_t i = 0; i < lines; i++, soon += LINE) _mm_prefetch(soon, _MM_HINT_T1);
    return soon;
}

/* Sixteen rows or fewer: one tile of inputs against two of weights. */
static void tile_low(const struct tile *t) {
    const char *a = t->a, *w = t->w, *soon = t->soon;
    size_t lines = lines_a_step(t);
    _tile_zero(0);
    _tile_zero(1);
    if (!t->first) {
        _tile_loadd(0, t->c, SUM_STRIDE);
        _tile_loadd(1, t->c + 16, SUM_STRIDE);
    }
    for (int step = 0; step < t->k; step += K_STEP) {
        _tile_stream_loadd(4, a, LINE);
        _tile_loadd(6, w, WEIGHT_STRIDE);
        _tile_dpbf16ps(0, 4, 6);
        soon = fetch(soon, lines);
        _tile_loadd(7, w + LINE, WEIGHT_STRIDE);
        _tile_dpbf16ps(1, 4, 7);
        a += 2 * TILE_BYTES;
        w += 2 * TILE_BYTES;
    }
    _tile_stored(0, t->c, SUM_STRIDE);
    _tile_stored(1, t->c + 16, SUM_STRIDE);
}

/* Inputs are read past the first-level cache, which is for the weights: all tiles of rows come back to those. */
static void tile_full(const struct tile *t) {
    const char *a = t->a, *w = t->w, *soon = t->soon;
    size_t lines = lines_a_step(t);
    float *high = t->c, *low = high + 16 * PANEL;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (!t->first) {
        _tile_loadd(0, high, SUM_STRIDE);
        _tile_loadd(1, high + 16, SUM_STRIDE);
        _tile_loadd(2, low, SUM_STRIDE);
        _tile_loadd(3, low + 16, SUM_STRIDE);
    }
    for (int step = 0; step < t->k; step += K_STEP) {
        _tile_stream_loadd(4, a, LINE);
        _tile_loadd(6, w, WEIGHT_STRIDE);
        _tile_dpbf16ps(0, 4, 6);
        soon = fetch(soon, lines);
        fetch_weights(w);
        _tile_loadd(7, w + LINE, WEIGHT_STRIDE);
        _tile_dpbf16ps(1, 4, 7);
        _tile_stream_loadd(5, a + TILE_BYTES, LINE);
        _tile_dpbf16ps(2, 5, 6);
        fetch_weights(w + TILE_BYTES);
        _tile_dpbf16ps(3, 5, 7);
        a += 2 * TILE_BYTES;
        w += 2 * TILE_BYTES;
    }
    _tile_stored(0, high, SUM_STRIDE);
    _tile_stored(1, high + 16, SUM_STRIDE);
    _tile_stored(2, low, SUM_STRIDE);
    _tile_stored(3, low + 16, SUM_STRIDE);
}

static void tile_amx(const struct tile *t) {
    if (t->m <= 16) tile_low(t);
    else tile_full(t);
}

void kernels_amx(struct kernels *k) {
    k->bf16 = (struct tile_product){
        .layout = PACKED_TILES,
        .tile_rows = TILE_ROWS,
        .k_step = K_STEP,
        .k_block = 2048,
        .k_chunk = 512,
        .run = {NULL, tile_amx},
        .enter = enter,
        .leave = leave,
    };
}

#include "target_end.h"
#endif
