/* AVX512-BF16: VDPBF16PS multiplies pairs of bfloat16 and adds both products to a float32 sum. Some processors run it
 * at half their float32 FMA rate, others at twice; feature bits do not tell, so it is used wherever it exists. */
#if defined(__x86_64__)
#include "kernels.h"

#include <immintrin.h>
#include <math.h>

#define TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"
#include "target_begin.h"

#define LANES 16
#define FMA(a, b, c) ((vec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define BFLOAT16(v) ((hvec)_mm512_cvtneps_pbh((__m512)(v)))
#define STREAM(p, v) _mm512_stream_ps(p, (__m512)(v))
#define WKV_VECTORS 4

#include "vector.h"
#include "rows_body.h"
#include "wkv_body.h"
#include "wkv7_body.h"
#include "table_body.h"

enum { TILE_ROWS = 12 };

typedef __m512bh pairs;

static inline __attribute__((always_inline)) pairs same_pair(const uint32_t *p) {
    return (pairs)_mm512_set1_epi32((int)*p);
}

/* a: pairs [k/2][TILE_ROWS], w: pairs [k/2][PANEL]. */
static inline __attribute__((always_inline)) void tile_rows(int m, const struct tile *t, bool first) {
    const uint32_t *a = t->a, *w = t->w;
    float *c = t->c;
    __m512 sum[TILE_ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < m; i++) {
        sum[i][0] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(c + i * PANEL);
        sum[i][1] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(c + i * PANEL + 16);
    }
    for (int step = 0; step < t->k; step += 2) {
        pairs left = (pairs)_mm512_loadu_si512(w), right = (pairs)_mm512_loadu_si512(w + 16);
#pragma GCC unroll 16
        for (int i = 0; i < m; i++) {
            pairs both = same_pair(a + i);
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], both, left);
            sum[i][1] = _mm512_dpbf16_ps(sum[i][1], both, right);
        }
        a += TILE_ROWS;
        w += PANEL;
    }
#pragma GCC unroll 16
    for (int i = 0; i < m; i++) {
        _mm512_storeu_ps(c + i * PANEL, sum[i][0]);
        _mm512_storeu_ps(c + i * PANEL + 16, sum[i][1]);
    }
}

#define TILE_CASE(m)                                                                                                   \
    case m: tile_rows(m, t, t->first); break;

static void tile_pairs(const struct tile *t) {
    switch (t->m) { /* constants, so that sums stay in registers */
        TILE_CASE(1)
        TILE_CASE(2)
        TILE_CASE(3)
        TILE_CASE(4)
        TILE_CASE(5)
        TILE_CASE(6)
        TILE_CASE(7)
        TILE_CASE(8)
        TILE_CASE(9)
        TILE_CASE(10)
        TILE_CASE(11)
        TILE_CASE(12)
    }
}

void kernels_avx512bf16(struct kernels *k) {
    fill_rows(k);
    k->bf16 = (struct tile_product){
        .layout = PACKED_PAIRS,
        .tile_rows = TILE_ROWS,
        .k_step = 2,
        .k_block = 1024,
        .k_chunk = 1024,
        .run = {NULL, tile_pairs},
    };
}

#include "target_end.h"
#endif
