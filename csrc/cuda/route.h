/* Which kernel runs when: the one place that decides it, by device, dtype, shape and the pass. Read this first.
 *
 *   step                    kernel                      where
 *   embed                   embed_rows                  always
 *   shift                   shift_rows, narrow          more than a few rows for each multiprocessor, widths of 1024, 2048
 *                                                       and 4096: 64 or 128 threads a row
 *                           shift_rows, wide            else: 256 threads a row
 *   products, few rows      stream_product              Hopper's own code, bfloat16; whole steps of 64 inputs
 *    (T <= FEW_ROWS)        few_rows                    Ampere's code, 16 bits; likewise
 *                           cublasLt                    else
 *   products, many rows     wgmma_product               Hopper's own code, bfloat16, whole tiles; where device_open has
 *                                                       found it faster than cublasLt for about so many rows
 *                           cublasLt                    else; what it cannot do follows in a pass of its own
 *   RWKV-6: lerps           lerp_rows                   Ampere's code, 16 bits, ranks of 32 and 64
 *                           up_rows                     else in 16 bits
 *                           up_rows_plain               float32
 *   RWKV-6: wkv             wkv_chunk                   Ampere's code, bfloat16, heads of 64; makes its decay itself.
 *                           wkv_keys, wkv_states        before it where a piece is long: first its states, one after the
 *                                                       other, then all of its parts side by side
 *                           wkv_64                      heads of 64 otherwise; up_rows has made the decay
 *                           wkv_plain                   other heads; likewise
 *   RWKV-7: low ranks       activate_low                always; then products
 *   RWKV-7: wkv             wkv7_chunk                  Ampere's code, bfloat16, heads of 64: two warps a head, or four
 *                                                       where a piece has more than 20 tokens for each head of the model,
 *                                                       and in passes of few rows
 *                           wkv7_tiles, wkv7_states     before it where a piece is long and has more than 96 for each head
 *                           wkv7_tokens                 else
 *   pool                    pool_rows                   pieces that are not long
 *                           pool_long                   long ones
 *   the whole pass          one recorded launch         few rows, its bucket seen before; kernels overlap on Hopper
 *
 * Every choice is bounded by what was compiled, not only by what the device could do: a build for older devices runs on
 * newer ones by PTX, with the older code's way through every #if. Ways that share a step give the same bits, which
 * device_open checks on the device at hand, so a route changes no result. Plain C, tested without a GPU. */
#ifndef RWKVSTS_CUDA_ROUTE_H
#define RWKVSTS_CUDA_ROUTE_H

#include "backend.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { FEW_ROWS = 256 };   /* a pass of up to so many rows is bound by reading weights */
enum { LONG_PIECE = 512 }; /* tokens: a longer piece of a sequence leaves much of the device idle if walked in order */
/* Tokens of a piece for each head, beyond which RWKV-7's kernels of so many warps a head of a piece leave the device idle
 * in a pass of full size: the longer pieces are, the fewer. */
enum { MOST_FOR_TWO_WARPS = 20, MOST_FOR_FOUR_WARPS = 96 };
enum { ROWS_SIDE_BY_SIDE = 4 }; /* a multiprocessor's rows up to which each has a block of its own */
enum { STEP_INPUTS = 64, WGMMA_OUTPUTS = 256 };
enum { MOST_SHIFT_RANK = 64, MOST_DECAY_RANK = 128 };

struct gpu {
    int capability; /* of the device: 75, 80, 86, 89, 90, .. */
    int code;       /* what the code that it runs was compiled for; at most its capability */
    int hopper;     /* that code is sm_90a's, and the driver makes tensor maps */
    int multiprocessors;
};

enum kernel {
    EMBED_ROWS,
    SHIFT_WIDE,
    SHIFT_NARROW,
    BY_CUBLASLT,
    BY_FEW_ROWS,
    BY_STREAM,
    BY_WGMMA,
    LERP_ROWS,
    UP_ROWS,
    UP_ROWS_PLAIN,
    WKV_CHUNK,
    WKV_STATES,
    WKV_64,
    WKV_PLAIN,
    WKV7_CHUNK,
    WKV7_CHUNK_WIDE,
    WKV7_STATES,
    WKV7_TOKENS,
    POOL_ROWS,
    POOL_LONG,
    KERNELS
};
const char *kernel_name(enum kernel kernel);

/* Refuses what no kernel can do, by name: this dtype or these sizes. `name` is the device's. */
enum status route_check(const struct gpu *gpu, const char *name, enum dtype dtype, const struct dims *dims,
                        struct error *e);

/* What the kernels of one architecture ask of sizes besides. */
enum status route_fits6(const struct dims *dims, struct error *e);
enum status route_fits7(const struct dims *dims, struct error *e);

bool route_is_few(int T); /* and then a pass is recorded */
bool route_overlaps(const struct gpu *gpu);
enum kernel route_shift(const struct gpu *gpu, int C, int T);
/* The way for few rows or for many. BY_WGMMA: where measured faster than BY_CUBLASLT. */
enum kernel route_product(const struct gpu *gpu, enum dtype dtype, const struct product_kind *kind, bool few);
enum kernel route_lerps(const struct gpu *gpu, enum dtype dtype, int C, int rank);
bool route_is_long(int piece); /* tokens of a piece */
enum kernel route_wkv(const struct gpu *gpu, enum dtype dtype, int N, int piece);
/* How RWKV-7 walks along a piece in a pass of T rows. */
enum walk7 { STATES_AHEAD, FOUR_WARPS, TWO_WARPS };
enum walk7 route_walk7(int H, int T, int piece);
enum kernel route_wkv7(const struct gpu *gpu, enum dtype dtype, const struct dims *dims, int T, int piece);
enum kernel route_pool(int piece);

/* The route of a pass of T rows of RWKV-6 whose longest piece has so many tokens: a line a step, "step: kernel". Writes as
 * snprintf does. */
int route_print(char *text, size_t n, const struct gpu *gpu, enum dtype dtype, const struct dims *dims, int T,
                int piece);

#ifdef __cplusplus
}
#endif
#endif
