/* AMX: eight tile registers of 16 rows by 64 bytes; TDPBF16PS and, of int8, TDPBSSD multiply two into a third.
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
#define TARGET "amx-tile,amx-bf16,amx-int8"
#endif

#include "target_begin.h"

enum { TILE_ROWS = 32, LINE = 64, TILE_BYTES = 16 * LINE };
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

#define AMX_FN static inline __attribute__((always_inline))

/* A step takes a line of each input's and each output's row: 32 numbers of bfloat16 or 64 of int8. */
AMX_FN int steps_of(const struct tile *t, bool int8) {
    return t->k / (int8 ? LINE : LINE / 2);
}

/* Whole lines that each of a call's steps fetches. */
AMX_FN size_t lines_a_step(const struct tile *t, bool int8) {
    return t->soon_bytes / (size_t)steps_of(t, int8) / LINE;
}

/* The instructions want constants for registers. */
#define MULTIPLY(sum, a, w)                                                                                            \
    do {                                                                                                               \
        if (int8) _tile_dpbssd(sum, a, w);                                                                             \
        else _tile_dpbf16ps(sum, a, w);                                                                                \
    } while (0)

/* Half a step's weights into the first-level cache, two steps before their turn: a tile's load waits for each line. */
AMX_FN void fetch_weights(const char *w) {
    for (size_t i = 0; i < TILE_BYTES; i += LINE) _mm_prefetch(w + 4 * TILE_BYTES + i, _MM_HINT_T0);
}

AMX_FN const char *fetch(const char *soon, size_t lines) {
    for (size_t i = 0; i < lines; i++, soon += LINE) _mm_prefetch(soon, _MM_HINT_T1);
    return soon;
}

/* Sixteen rows or fewer: one tile of inputs against two of weights. */
AMX_FN void tile_low(const struct tile *t, bool int8) {
    const char *a = t->a, *w = t->w, *soon = t->soon;
    size_t lines = lines_a_step(t, int8);
    _tile_zero(0);
    _tile_zero(1);
    if (!t->first) {
        _tile_loadd(0, t->c, SUM_STRIDE);
        _tile_loadd(1, t->c + 16, SUM_STRIDE);
    }
    for (int step = steps_of(t, int8); step; step--) {
        _tile_stream_loadd(4, a, LINE);
        _tile_loadd(6, w, WEIGHT_STRIDE);
        MULTIPLY(0, 4, 6);
        soon = fetch(soon, lines);
        _tile_loadd(7, w + LINE, WEIGHT_STRIDE);
        MULTIPLY(1, 4, 7);
        a += 2 * TILE_BYTES;
        w += 2 * TILE_BYTES;
    }
    _tile_stored(0, t->c, SUM_STRIDE);
    _tile_stored(1, t->c + 16, SUM_STRIDE);
}

/* Inputs are read past the first-level cache, which is for the weights: all tiles of rows come back to those. */
AMX_FN void tile_full(const struct tile *t, bool int8) {
    const char *a = t->a, *w = t->w, *soon = t->soon;
    size_t lines = lines_a_step(t, int8);
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
    for (int step = steps_of(t, int8); step; step--) {
        _tile_stream_loadd(4, a, LINE);
        _tile_loadd(6, w, WEIGHT_STRIDE);
        MULTIPLY(0, 4, 6);
        soon = fetch(soon, lines);
        fetch_weights(w);
        _tile_loadd(7, w + LINE, WEIGHT_STRIDE);
        MULTIPLY(1, 4, 7);
        _tile_stream_loadd(5, a + TILE_BYTES, LINE);
        MULTIPLY(2, 5, 6);
        fetch_weights(w + TILE_BYTES);
        MULTIPLY(3, 5, 7);
        a += 2 * TILE_BYTES;
        w += 2 * TILE_BYTES;
    }
    _tile_stored(0, high, SUM_STRIDE);
    _tile_stored(1, high + 16, SUM_STRIDE);
    _tile_stored(2, low, SUM_STRIDE);
    _tile_stored(3, low + 16, SUM_STRIDE);
}

static void tile_bf16(const struct tile *t) {
    if (t->m <= 16) tile_low(t, false);
    else tile_full(t, false);
}

static void tile_int8(const struct tile *t) {
    if (t->m <= 16) tile_low(t, true);
    else tile_full(t, true);
}

void kernels_amx(struct kernels *k) {
    k->bf16 = (struct tile_product){
        .layout = PACKED_TILES,
        .tile_rows = TILE_ROWS,
        .k_step = LINE / 2,
        .k_block = 2048,
        .k_chunk = 512,
        .run = {NULL, tile_bf16},
        .enter = enter,
        .leave = leave,
    };
    struct int8_kernels kept = k->int8.int8; /* numbers to int8 and back as the level below does it */
    kept.offset = 0;
    k->int8 = (struct tile_product){
        .layout = PACKED_TILES8,
        .tile_rows = TILE_ROWS,
        .k_step = LINE,
        .k_block = 4096,
        .k_chunk = 1024,
        .run = {tile_int8, NULL},
        .enter = enter,
        .leave = leave,
        .int8 = kept,
    };
}

#include "target_end.h"
#endif
