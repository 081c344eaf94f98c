/* The delta rule of RWKV-7 by tiles: y, norm, bonus and gate. See chunk.cuh for the equations.
 *
 * Two warps own a head of a piece, or four where pieces are longer, and take a tile each a turn: each makes its own, all go
 * over all of them, and each finishes its own. Of a piece that goes ahead, states.cu has made the tiles and the state
 * before each part, and all parts run side by side. */
#include "rwkv7/chunk.cuh"

enum { WARPS_A_MULTIPROCESSOR = 12 }; /* what shared memory has room for */

/* A warp sends for a tile that was made ahead. */
static __device__ __forceinline__ void send_made(struct tile *m, const struct wkv7_args &a, size_t at, int count,
                                                 const struct made *made) {
    send_rows(m->r, a.r, at, a.C, count);
    send_rows(m->k, a.k, at, a.C, count);
    send_rows(m->v, a.v, at, a.C, count);
    send_rows(m->away, a.rate, at, a.C, count);
    send_rows(m->back, a.back, at, a.C, count);
    send_bytes(m->solve, made->solve, sizeof m->solve);
    send_bytes(m->removes_written, made->removes_written, sizeof m->removes_written);
    send_bytes(m->total, made->total, sizeof m->total);
    send_bytes(m->bonus, made->bonus, sizeof m->bonus);
}

/* ---- norm, bonus and gate --------------------------------------------------------------------------------------------- */

/* out = (GroupNorm(y) weight + bias + bonus v) gate: eight lanes a token, eight values a lane. */
static __device__ __forceinline__ void store_tile(struct tile *m, const struct wkv7_args &a, size_t first, int column,
                                                  int count) {
    const int lane = threadIdx.x % 32, part = lane % 8, ys = offset(m, m->y), vs = offset(m, m->v);
    float weight[8], bias[8];
    uint4 gate[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int t = 4 * i + lane / 8;
        gate[i] = t < count ? *(const uint4 *)((const bf16 *)a.gate + first + (size_t)t * a.C + part * 8) : uint4{};
    }
    load8(weight, a.weight + column + part * 8);
    load8(bias, a.bias + column + part * 8);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int t = 4 * i + lane / 8;
        float z[8], square[2] = {};
        load8(z, &at<float>(m, ys + y_at(t, part * 8)));
        const float mean = sum_over_8(sum_of_8(z)) * (1.0f / HEAD), bonus = m->bonus[t];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            z[j] -= mean;
            square[j % 2] = __fmaf_rn(z[j], z[j], square[j % 2]);
        }
        const float scale =
            inverse_root_fast(__fmaf_rn(sum_over_8(square[0] + square[1]), 1.0f / HEAD, GROUP_NORM_EPS));
        const uint4 packed = at<uint4>(m, vs + t * 128 + (part * 16 ^ mix16(t)));
        const uint32_t v[4] = {packed.x, packed.y, packed.z, packed.w},
                       g[4] = {gate[i].x, gate[i].y, gate[i].z, gate[i].w};
        uint32_t out[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 value = unpack(v[j]), by = unpack(g[j]);
            const float left = __fmaf_rn(z[2 * j] * scale, weight[2 * j], bias[2 * j]),
                        right = __fmaf_rn(z[2 * j + 1] * scale, weight[2 * j + 1], bias[2 * j + 1]);
            out[j] = pack2<bf16>(__fmaf_rn(bonus, value.x, left) * by.x, __fmaf_rn(bonus, value.y, right) * by.y);
        }
        if (t < count)
            __stcg((uint4 *)((bf16 *)a.out + first + (size_t)t * a.C + part * 8),
                   make_uint4(out[0], out[1], out[2], out[3]));
    }
}

/* ---- a piece, or a part ---------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ float *state_of(const struct wkv7_args &a, int from, int column) {
    float *states =
        from >= 0 ? a.slots + (size_t)from * a.slot_stride : a.interim + (size_t)(FROM_INTERIM - from) * a.C * HEAD;
    return states + (size_t)column * HEAD;
}

/* MADE: a part, whose tiles are made; else a piece, the tiles of which are made here. `number`: of the part. */
template <int WARPS, bool MADE>
static __device__ __forceinline__ void run_unit(struct tile *tiles, const struct wkv7_args &a, const struct unit &p,
                                                int number, int column) {
    constexpr int TURN = WARPS * TILE, ROWS = HEAD / 16 / WARPS;
    const int warp = threadIdx.x / 32;
    struct tile *own = &tiles[warp];
    bool started = p.from != NO_PAST;
    struct head_state<ROWS> state = {};
    if (started) move_state<false>(state, state_of(a, p.from, column), warp);
#pragma unroll 1
    for (int t = p.first; t < p.last; t += TURN) {
        const int count = min(TURN, p.last - t), mine = min(TILE, count - TILE * warp);
        const size_t here = (size_t)(t + TILE * warp) * a.C + column;
        const int tile_number = number * (PART / TILE) + (t - p.first) / TILE + warp;
        if (mine > 0 && MADE) send_made(own, a, here, mine, a.made + (size_t)tile_number * a.H + column / HEAD);
        if (mine > 0 && !MADE) send_tile(own, a, here, mine);
        copies_wait_all();
        __syncwarp();
        if (mine > 0 && MADE) make_matrices<false, true>(own);
        if (mine > 0 && !MADE) make_tile<true>(own, a, column, mine);
        __syncthreads();
#pragma unroll 1
        for (int tile = 0; tile * TILE < count; tile++, started = true)
            pass_tile<true>(&tiles[tile], &tiles[tile], state, warp, started,
                            p.to >= 0 || t + (tile + 1) * TILE < p.last);
        __syncthreads();
        if (mine > 0) store_tile(own, a, here, column, mine);
        __syncwarp();
    }
    if (p.to >= 0) move_state<true>(state, state_of(a, p.to, column), warp);
}

/* Pieces by their order from the `skipped`-th on; or parts. */
template <int WARPS, bool MADE>
static __global__ void __launch_bounds__(32 * WARPS, WARPS_A_MULTIPROCESSOR / WARPS)
    wkv7_chunk(const struct wkv7_args a, int skipped) {
    if (!AMPERE_CODE) return;
    struct tile *tiles = (struct tile *)dynamic_shared();
    const int number = blockIdx.x / a.H + skipped, column = (int)blockIdx.x % a.H * HEAD;
    let_next_kernel_start();
    wait_for_kernels_before();
    if (MADE) {
        const struct unit part = a.meta.units[number];
        run_unit<WARPS, true>(tiles, a, part, number, column);
    } else if (number < a.meta.head[1]) {
        const int n = a.meta.order[number];
        const struct unit piece = {a.meta.start[n], a.meta.start[n + 1], a.meta.from[n], a.meta.to[n]};
        run_unit<WARPS, false>(tiles, a, piece, 0, column);
    }
}

/* ---- running --------------------------------------------------------------------------------------------------------- */

template <int WARPS, bool MADE>
static cudaError_t launch(const struct worker *w, const struct wkv7_args &a, int skipped, int count) {
    constexpr int bytes = WARPS * sizeof(struct tile);
    if (!count) return cudaSuccess;
    auto kernel = wkv7_chunk<WARPS, MADE>;
    cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (status != cudaSuccess) return status;
    return launch_early(overlaps(w), w->stream, kernel, dim3((unsigned)(count * a.H)), 32 * WARPS, bytes, a, skipped);
}

cudaError_t wkv7_chunk_run(const struct worker *w, const struct wkv7_args *a) {
    const int ahead = w->grid.ahead_pieces, four = w->grid.four_warps;
    cudaError_t status = cudaSuccess;
    if (ahead) status = wkv7_states_run(w, a);
    if (status == cudaSuccess) status = launch<4, true>(w, *a, 0, w->grid.ahead_units);
    if (status == cudaSuccess) status = launch<4, false>(w, *a, ahead, four);
    if (status == cudaSuccess) status = launch<2, false>(w, *a, ahead + four, w->grid.S - ahead - four);
    return status;
}
