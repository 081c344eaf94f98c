/* Portable kernels: four lanes of the compiler's vector extension, whatever the machine makes of them. */
#include "kernels.h"

#include <math.h>

#define LANES 4
#define FMA(a, b, c) ((a) * (b) + (c))
#define NARROW(u) __builtin_convertvector(u, hvec)
#define NARROW8(i) __builtin_convertvector(i, bvec)
#define STREAM(p, v) store(p, v)
#define WKV_VECTORS 2
#define TILE_ROWS 4
#define TILE_VECTORS 2
#define TILE_CASES TILE_CASE(1) TILE_CASE(2) TILE_CASE(3) TILE_CASE(4)
/* int8 as pairs of 16 bits, as in avx2.c; a pair's halves are multiplied one after the other. */
#define INPUTS PACKED_QUADS16
#define PARTS 2
#define BYTE(quads, i) ((ivec)((uvec)(quads) << (24 - 8 * (i))) >> 24)
#define PART(quads, part) ((ivec)(((uvec)BYTE(quads, part) & 0xffff) | (uvec)BYTE(quads, (part) + 2) << 16))
#define LOW_HALF(v) ((ivec)((uvec)(v) << 16) >> 16)
#define DOT(sum, a, w) ((sum) + LOW_HALF(a) * LOW_HALF(w) + ((a) >> 16) * ((w) >> 16))

#include "vector.h"
#include "rows_body.h"
#include "wkv_body.h"
#include "wkv7_body.h"
#include "tile_body.h"
#include "quantise_body.h"
#include "tile8_body.h"
#include "table_body.h"

void kernels_portable(struct kernels *k) {
    fill_rows(k);
    fill_products(k);
    fill_int8(k, &(struct int8_kernels){quantise, dequantise, 0});
}
