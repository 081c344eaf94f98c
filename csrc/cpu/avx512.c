/* AVX-512: thirty-two registers of sixteen lanes. A tile of 12 rows and one panel holds 24 sums. */
#if defined(__x86_64__)
#include "kernels.h"

#include <immintrin.h>
#include <math.h>

#define TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#include "target_begin.h"

#define LANES 16
#define FMA(a, b, c) ((vec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define NARROW(u) ((hvec)_mm512_cvtepi32_epi16((__m512i)(u)))
#define STREAM(p, v) _mm512_stream_ps(p, (__m512)(v))
#define WKV_VECTORS 4
#define TILE_ROWS 12
#define TILE_VECTORS 2
#define TILE_CASES                                                                                                     \
    TILE_CASE(1)                                                                                                       \
    TILE_CASE(2)                                                                                                       \
    TILE_CASE(3)                                                                                                       \
    TILE_CASE(4)                                                                                                       \
    TILE_CASE(5)                                                                                                       \
    TILE_CASE(6)                                                                                                       \
    TILE_CASE(7) TILE_CASE(8) TILE_CASE(9) TILE_CASE(10) TILE_CASE(11) TILE_CASE(12)

#include "vector.h"
#include "rows_body.h"
#include "wkv_body.h"
#include "wkv7_body.h"
#include "tile_body.h"
#include "table_body.h"

void kernels_avx512(struct kernels *k) {
    fill_rows(k);
    fill_products(k);
}

#include "target_end.h"
#endif
