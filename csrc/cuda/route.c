/* The rules of route.h, and their printed form. */
#include "route.h"

#include <stdio.h>

#include "verbs6.h"

static const char *const NAMES[KERNELS] = {
    [EMBED_ROWS] = "embed_rows",
    [SHIFT_WIDE] = "shift_rows, wide",
    [SHIFT_NARROW] = "shift_rows, narrow",
    [BY_CUBLASLT] = "cublasLt",
    [BY_FEW_ROWS] = "few_rows",
    [BY_STREAM] = "stream_product",
    [BY_WGMMA] = "wgmma_product or cublasLt, as measured at opening",
    [LERP_ROWS] = "lerp_rows",
    [UP_ROWS] = "up_rows",
    [UP_ROWS_PLAIN] = "up_rows_plain",
    [WKV_CHUNK] = "wkv_chunk",
    [WKV_STATES] = "wkv_keys, wkv_states, wkv_chunk",
    [WKV_64] = "up_rows, then wkv_64",
    [WKV_PLAIN] = "up_rows, then wkv_plain",
    [WKV7_CHUNK] = "wkv7_chunk, two warps",
    [WKV7_CHUNK_WIDE] = "wkv7_chunk, four warps",
    [WKV7_STATES] = "wkv7_tiles, wkv7_states, wkv7_chunk",
    [WKV7_TOKENS] = "wkv7_tokens",
    [POOL_ROWS] = "pool_rows",
    [POOL_LONG] = "pool_long",
};

const char *kernel_name(enum kernel kernel) {
    return NAMES[kernel];
}

enum status route_check(const struct gpu *gpu, const char *name, enum dtype dtype, const struct dims *d,
                        struct error *e) {
    int N = d->N;
    if (gpu->code < 75)
        return fail(e, DEVICE_FAILED, "%s has compute capability %d.%d: 7.5 or newer is needed", name,
                    gpu->capability / 10, gpu->capability % 10);
    if (dtype == BF16 && gpu->capability < 80)
        return fail(e, DEVICE_FAILED, "dtype bfloat16 needs compute capability 8.0, and %s has %d.%d: use float16",
                    name, gpu->capability / 10, gpu->capability % 10);
    if (dtype == BF16 && gpu->code < 80)
        return fail(e, DEVICE_FAILED,
                    "dtype bfloat16 needs code for compute capability 8.0, and of this build %s runs code for %d.%d: "
                    "install again with RWKVSTS_CUDA_ARCHS=%d, or use float16",
                    name, gpu->code / 10, gpu->code % 10, gpu->capability);
    if (d->C % 16 || d->C > 8192 || d->F % 8)
        return fail(e, DEVICE_FAILED,
                    "a model %d wide with feed-forwards of %d: on CUDA the width must be a multiple of 16 up "
                    "to 8192, the other of 8; use device='cpu'",
                    d->C, d->F);
    if (N != 8 && N != 16 && N != 32 && N != 64 && N != 128)
        return fail(e, DEVICE_FAILED, "head size %d: on CUDA 8, 16, 32, 64 or 128 is expected; use device='cpu'", N);
    return OK;
}

enum status route_fits6(const struct dims *d, struct error *e) {
    if (d->rank[SHIFT_RANK] > MOST_SHIFT_RANK || d->rank[DECAY_RANK] > MOST_DECAY_RANK)
        return fail(e, DEVICE_FAILED, "low ranks %d and %d: on CUDA at most %d and %d are expected; use device='cpu'",
                    d->rank[SHIFT_RANK], d->rank[DECAY_RANK], MOST_SHIFT_RANK, MOST_DECAY_RANK);
    return OK;
}

/* The activated low ranks lie side by side in a matrix as wide as the model, each on lines that products can read. */
enum status route_fits7(const struct dims *d, struct error *e) {
    int sum = 0;
    for (int i = 0; i < MOST_RANKS; i++) {
        sum += d->rank[i];
        if (d->rank[i] % 8)
            return fail(e, DEVICE_FAILED, "a low rank of %d: on CUDA a multiple of 8 is expected; use device='cpu'",
                        d->rank[i]);
    }
    if (sum > d->C)
        return fail(e, DEVICE_FAILED,
                    "low ranks of %d together: on CUDA at most %d, the width of the model, are expected; use "
                    "device='cpu'",
                    sum, d->C);
    return OK;
}

/* ---- the rules ----------------------------------------------------------------------------------------------------- */

bool route_is_few(int T) {
    return T <= FEW_ROWS;
}

bool route_is_long(int piece) {
    return piece > LONG_PIECE;
}

bool route_overlaps(const struct gpu *gpu) {
    return gpu->code >= 90;
}

/* Narrow rows want every group of four columns there. */
enum kernel route_shift(const struct gpu *gpu, int C, int T) {
    bool whole = C == 1024 || C == 2048 || C == 4096;
    return whole && T > ROWS_SIDE_BY_SIDE * gpu->multiprocessors ? SHIFT_NARROW : SHIFT_WIDE;
}

enum kernel route_product(const struct gpu *gpu, enum dtype dtype, const struct product_kind *p, bool few) {
    bool hopper = gpu->hopper && dtype == BF16, steps = p->k % STEP_INPUTS == 0;
    if (few && steps && p->n % 2 == 0 && gpu->code >= 80 && dtype != F32) return hopper ? BY_STREAM : BY_FEW_ROWS;
    if (!few && hopper && steps && p->n % WGMMA_OUTPUTS == 0 && p->epilogue < LOW) return BY_WGMMA;
    return BY_CUBLASLT;
}

enum kernel route_lerps(const struct gpu *gpu, enum dtype dtype, int C, int rank) {
    if (dtype == F32) return UP_ROWS_PLAIN;
    return gpu->code >= 80 && (rank == 32 || rank == 64) && C % 32 == 0 ? LERP_ROWS : UP_ROWS;
}

enum kernel route_wkv(const struct gpu *gpu, enum dtype dtype, int N, int piece) {
    if (N == 64 && dtype == BF16 && gpu->code >= 80) return route_is_long(piece) ? WKV_STATES : WKV_CHUNK;
    return N == 64 ? WKV_64 : WKV_PLAIN;
}

enum walk7 route_walk7(int H, int T, int piece) {
    if (route_is_long(piece) && piece > MOST_FOR_FOUR_WARPS * H) return STATES_AHEAD;
    return route_is_few(T) || piece > MOST_FOR_TWO_WARPS * H ? FOUR_WARPS : TWO_WARPS;
}

enum kernel route_wkv7(const struct gpu *gpu, enum dtype dtype, const struct dims *d, int T, int piece) {
    const enum kernel kernels[] = {
        [STATES_AHEAD] = WKV7_STATES, [FOUR_WARPS] = WKV7_CHUNK_WIDE, [TWO_WARPS] = WKV7_CHUNK};
    return d->N == 64 && dtype == BF16 && gpu->code >= 80 ? kernels[route_walk7(d->H, T, piece)] : WKV7_TOKENS;
}

enum kernel route_pool(int piece) {
    return route_is_long(piece) ? POOL_LONG : POOL_ROWS;
}

/* ---- printed ------------------------------------------------------------------------------------------------------- */

int route_print(char *text, size_t n, const struct gpu *gpu, enum dtype dtype, const struct dims *d, int T, int piece) {
    int C = d->C, F = d->F, R = d->rank[SHIFT_RANK], D = d->rank[DECAY_RANK];
    bool few = route_is_few(T);
    const struct {
        const char *step;
        struct product_kind kind;
    } products[] = {
        {"low rank of the token shift", {5 * R, C, LOW_TANH, false}},
        {"key, value, receptance, gate", {C, C, STORE, false}},
        {"low rank of the decay", {D, C, LOW_TANH, false}},
        {"output", {C, C, ADD, false}},
        {"ffn key", {F, C, RELU2, false}},
        {"ffn receptance", {C, C, SIGMOID, false}},
        {"ffn value", {C, F, GATE_ADD, true}},
    };
    size_t used = 0;
#define LINE(step, kernel)                                                                                             \
    used += (size_t)snprintf(used < n ? text + used : NULL, used < n ? n - used : 0, "%s: %s\n", step,                 \
                             kernel_name(kernel))
    LINE("embed", EMBED_ROWS);
    LINE("norm and token shift", route_shift(gpu, C, T));
    LINE("lerps of the token shift", route_lerps(gpu, dtype, C, R));
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        LINE(products[i].step, route_product(gpu, dtype, &products[i].kind, few));
    LINE("wkv", route_wkv(gpu, dtype, d->N, piece));
    LINE("pool", route_pool(piece));
#undef LINE
    used += (size_t)snprintf(used < n ? text + used : NULL, used < n ? n - used : 0, "pass: %s\n",
                             !few                  ? "launched kernel by kernel"
                             : route_overlaps(gpu) ? "recorded when seen again, kernels overlap"
                                                   : "recorded when seen again");
    return (int)used;
}
