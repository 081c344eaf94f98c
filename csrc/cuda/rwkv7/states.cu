/* The states of RWKV-7's longest pieces, ahead of wkv7_chunk: so that all parts of a piece run side by side.
 *
 * wkv7_chunk walks along a piece, and a pass of few long ones would leave most of the device idle. wkv7_tiles makes all
 * tiles side by side, in the place of what they are made of. wkv7_states then walks along each piece, four warps a head,
 * and leaves the state before each part; wkv7_chunk takes the parts from there. A tile's step is the same function, so
 * whether a piece goes this way changes no bit. */
#include "rwkv7/chunk.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS, BLOCKS = 3 };

/* ---- tiles ----------------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ void store_rows(void *to, const rows16 &from, size_t at, int C, int count) {
    const int lane = threadIdx.x % 32, part = lane % 8;
    bf16 *p = (bf16 *)to + at + part * 8;
#pragma unroll
    for (int t = lane / 8; t < TILE; t += 4)
        if (t < count)
            *(uint4 *)(p + (size_t)t * C) = *(const uint4 *)((const char *)&from + t * 128 + (part * 16 ^ mix16(t)));
}

static __device__ __forceinline__ void store_bytes(void *to, const void *from, int bytes) {
    for (int i = threadIdx.x % 32 * 16; i < bytes; i += 32 * 16)
        *(uint4 *)((char *)to + i) = *(const uint4 *)((const char *)from + i);
}

static __global__ void __launch_bounds__(THREADS, BLOCKS) wkv7_tiles(const struct wkv7_args a) {
    if (!AMPERE_CODE) return;
    const int number = blockIdx.x / a.H, column = (int)blockIdx.x % a.H * HEAD, warp = threadIdx.x / 32;
    struct tile *m = (struct tile *)dynamic_shared() + warp;
    const struct unit unit = a.meta.units[number];
#pragma unroll 1
    for (int tile = warp; unit.first + tile * TILE < unit.last; tile += WARPS) {
        const int first = unit.first + tile * TILE, count = min(TILE, unit.last - first);
        const size_t at = (size_t)first * a.C + column;
        struct made *made = a.made + ((size_t)number * (PART / TILE) + tile) * a.H + column / HEAD;
        send_tile(m, a, at, count);
        copies_wait_all();
        __syncwarp();
        make_tile<false>(m, a, column, count);
        __syncwarp();
        store_rows(a.r, m->r, at, a.C, count);
        store_rows(a.k, m->k, at, a.C, count);
        if (a.value) store_rows(a.v, m->v, at, a.C, count);
        store_rows(a.rate, m->away, at, a.C, count);
        store_rows(a.back, m->back, at, a.C, count);
        store_bytes(made->solve, m->solve, sizeof m->solve);
        store_bytes(made->removes_written, m->removes_written, sizeof m->removes_written);
        store_bytes(made->total, m->total, sizeof m->total);
        store_bytes(made->bonus, m->bonus, sizeof m->bonus);
        __syncwarp();
    }
}

/* ---- states ---------------------------------------------------------------------------------------------------------- */

enum { STAGE = 2, STAGES = 4 }; /* tiles that are sent together; what is on its way */

/* Two warps send for a tile. */
static __device__ __forceinline__ void send_step(struct step *m, const struct wkv7_args &a, size_t at, int count,
                                                 const struct made *made) {
    if (threadIdx.x / 32 % 2) {
        send_rows(m->k, a.k, at, a.C, count);
        send_rows(m->v, a.v, at, a.C, count);
        send_bytes(m->total, made->total, sizeof m->total);
    } else {
        send_rows(m->away, a.rate, at, a.C, count);
        send_rows(m->back, a.back, at, a.C, count);
        send_bytes(m->solve, made->solve, sizeof m->solve);
        send_bytes(m->removes_written, made->removes_written, sizeof m->removes_written);
    }
}

static __global__ void __launch_bounds__(THREADS) wkv7_states(const struct wkv7_args a) {
    if (!AMPERE_CODE) return;
    struct step *ring = (struct step *)dynamic_shared();
    const int head = (int)blockIdx.x % a.H, warp = threadIdx.x / 32;
    const struct long_piece p = a.meta.long_pieces[blockIdx.x / a.H];
    const int length = p.last - p.first, tiles = (length + TILE - 1) / TILE;
    const size_t column = (size_t)head * HEAD, all = (size_t)a.C * HEAD;
    const struct made *made = a.made + (size_t)p.unit * (PART / TILE) * a.H + head;
    float *next = a.interim + (size_t)p.interim * all + column * HEAD;
    struct head_state<1> state = {};
    auto send = [&](int tile, int slot) { /* what stands past the end is not looked at */
                                          tile += warp / 2;
                                          if (tile < tiles)
                                              send_step(&ring[slot * STAGE + warp / 2], a,
                                                        (size_t)(p.first + tile * TILE) * a.C + column,
                                                        min(TILE, length - tile * TILE), made + (size_t)tile * a.H);
                                          copies_commit();
    };
    if (p.from >= 0) move_state<false>(state, a.slots + (size_t)p.from * a.slot_stride + column * HEAD, warp);
    for (int i = 0; i < STAGES - 1; i++) send(i * STAGE, i);
#pragma unroll 1
    for (int tile = 0, slot = 0; tile < tiles; tile += STAGE, slot = (slot + 1) % STAGES) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        send(tile + (STAGES - 1) * STAGE, (slot + STAGES - 1) % STAGES);
        if (tile && tile % (PART / TILE) == 0) {
            move_state<true>(state, next, warp);
            next += all;
        }
#pragma unroll 1
        for (int i = 0; i < STAGE && tile + i < tiles; i++)
            pass_tile<false>(&ring[slot * STAGE + i], NULL, state, warp, p.from >= 0 || tile + i, true);
    }
    if (p.to >= 0) move_state<true>(state, a.slots + (size_t)p.to * a.slot_stride + column * HEAD, warp);
}

/* ---- running --------------------------------------------------------------------------------------------------------- */

template <typename... P>
static cudaError_t launch(const struct worker *w, void (*kernel)(P...), int blocks, int bytes,
                          const struct wkv7_args &a) {
    cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (status != cudaSuccess) return status;
    return launch_early(false, w->stream, kernel, dim3((unsigned)(blocks * a.H)), THREADS, (size_t)bytes, a);
}

cudaError_t wkv7_states_run(const struct worker *w, const struct wkv7_args *a) {
    cudaError_t status = launch(w, wkv7_tiles, w->grid.ahead_units, WARPS * (int)sizeof(struct tile), *a);
    if (status != cudaSuccess) return status;
    return launch(w, wkv7_states, w->grid.ahead_pieces, STAGE * STAGES * (int)sizeof(struct step), *a);
}
