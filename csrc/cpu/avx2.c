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
#define NARROW8(i) narrow8((__m256i)(i))
#define STREAM(p, v) _mm256_stream_ps(p, (__m256)(v))
#define WKV_VECTORS 2
#define TILE_ROWS 6
#define TILE_VECTORS 2
#define TILE_CASES TILE_CASE(1) TILE_CASE(2) TILE_CASE(3) TILE_CASE(4) TILE_CASE(5) TILE_CASE(6)
/* int8 as pairs of 16 bits: VPMADDUBSW, which takes bytes, saturates. A word's even bytes, then its odd ones. */
#define INPUTS PACKED_QUADS16
#define PARTS 2
#define PART(quads, part)                                                                                              \
    ((ivec)((part) ? _mm256_srai_epi16((__m256i)(quads), 8)                                                            \
                   : _mm256_srai_epi16(_mm256_slli_epi16((__m256i)(quads), 8), 8)))
#define DOT(sum, a, w) ((sum) + (ivec)_mm256_madd_epi16((__m256i)(a), (__m256i)(w)))

#include "vector.h"

typedef int8_t eight __attribute__((vector_size(8)));
VECTOR_FN eight narrow8(__m256i v) {
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return (eight)_mm_cvtsi128_si64(_mm_packs_epi16(words, words));
}

#include "rows_body.h"
#include "wkv_body.h"
#include "wkv7_body.h"
#include "tile_body.h"
#include "quantise_body.h"
#include "tile8_body.h"
#include "table_body.h"

void kernels_avx2(struct kernels *k) {
    fill_rows(k);
    fill_products(k);
    fill_int8(k, &(struct int8_kernels){quantise, dequantise, 0});
}

#include "target_end.h"
#endif
