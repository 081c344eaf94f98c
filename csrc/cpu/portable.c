/* Portable kernels: four lanes of the compiler's vector extension, whatever the machine makes of them. */
#include "kernels.h"

#include <math.h>

#define LANES 4
#define FMA(a, b, c) ((a) * (b) + (c))
#define NARROW(u) __builtin_convertvector(u, hvec)
#define STREAM(p, v) store(p, v)
#define WKV_VECTORS 2
#define TILE_ROWS 4
#define TILE_VECTORS 2
#define TILE_CASES TILE_CASE(1) TILE_CASE(2) TILE_CASE(3) TILE_CASE(4)

#include "vector.h"
#include "rows_body.h"
#include "wkv_body.h"
#include "wkv7_body.h"
#include "tile_body.h"
#include "table_body.h"

void kernels_portable(struct kernels *k) {
    fill_rows(k);
    fill_products(k);
}
