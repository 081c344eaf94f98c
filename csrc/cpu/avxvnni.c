/* AVX-VNNI: VPDPBUSD multiplies four unsigned by four signed bytes and adds all to a 32-bit sum, which does not saturate.
 * All else is AVX2's. */
#if defined(__x86_64__)
#include "kernels.h"

#include <immintrin.h>

#define TARGET "avx2,fma,avxvnni"
#include "target_begin.h"

#define LANES 8
#define FMA(a, b, c) ((vec)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define NARROW(u)                                                                                                      \
    ((hvec)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)(u)), _mm256_extracti128_si256((__m256i)(u), 1)))
#define TILE_ROWS 6
#define TILE_VECTORS 2
#define TILE_CASES TILE_CASE(1) TILE_CASE(2) TILE_CASE(3) TILE_CASE(4) TILE_CASE(5) TILE_CASE(6)
#define INPUTS PACKED_QUADS8
#define PARTS 1
#define PART(quads, part) (quads)
#define DOT(sum, a, w) ((ivec)_mm256_dpbusd_avx_epi32((__m256i)(sum), (__m256i)(a), (__m256i)(w)))

#include "vector.h"
#include "tile8_body.h"

void kernels_avxvnni(struct kernels *k) {
    fill_int8(k, NULL);
}

#include "target_end.h"
#endif
