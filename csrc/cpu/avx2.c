/* AVX2 with FMA: sixteen registers of eight lanes. */
#if defined(__x86_64__)
#include "kernels.h"

#include <immintrin.h>
#include <math.h>

#define TARGET "avx2,fma,f16c"
#include "target_begin.h"

#define LANES 8
#define FMA(a, b, c) ((vec)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
/* Saturating the halves changes nothing: they are below 2^16. */
#define NARROW(u)                                                                                                      \
    ((hvec)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)(u)), _mm256_extracti128_si256((__m256i)(u), 1)))
#define STREAM(p, v) _mm256_stream_ps(p, (__m256)(v))
#define WKV_VECTORS 2
#define TILE_ROWS 6
#define TILE_VECTORS 2
#define TILE_CASES TILE_CASE(1) TILE_CASE(2) TILE_CASE(3) TILE_CASE(4) TILE_CASE(5) TILE_CASE(6)

#include "vector.h"
#include "rows_body.h"
#include "wkv_body.h"
#include "wkv7_body.h"
#include "tile_body.h"
#include "table_body.h"

void kernels_avx2(struct kernels *k) {
    fill_rows(k);
    fill_products(k);
}

#include "target_end.h"
#endif
