/* AVX512-VNNI: VPDPBUSD multiplies four unsigned by four signed bytes and adds all to a 32-bit sum, which does not
 * saturate. All else is AVX-512's. */
#if defined(__x86_64__)
#include "kernels.h"

#include <immintrin.h>

#define TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#include "target_begin.h"

#define LANES 16
#define FMA(a, b, c) ((vec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define NARROW(u) ((hvec)_mm512_cvtepi32_epi16((__m512i)(u)))
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
#define INPUTS PACKED_QUADS8
#define PARTS 1
#define PART(quads, part) (quads)
#define DOT(sum, a, w) ((ivec)_mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(a), (__m512i)(w)))

#include "vector.h"
#include "tile8_body.h"

void kernels_avx512vnni(struct kernels *k) {
    fill_int8(k, NULL);
}

#include "target_end.h"
#endif
