/* wkv6 for heads of 64 in bfloat16: sixteen tokens at a time, on tensor cores.
 *
 * Over a tile of 16 tokens y = A v + (r D) S, where A[t, s] = sum_n r_t k_s prod(s < j < t) w_j, its diagonal r (u
 * k), and D = prod(j < t) w_j; then S = diag(prod w) S + sum_s (k_s prod(j > s) w_j)^T v_s. chunk.cuh makes A, r D, the
 * decayed k and the decay itself, from its low rank: float32 would be 8 of 28 KB a token.
 *
 * Two warps own a head and take 32 tokens a turn, a tile each; what A, the decayed r and k are is shared. Then each
 * makes y for 32 values. In the first two turns of a fresh sequence a tile sees those before it through products of
 * its own, r k^T with the decay between, and most sentences need no state at all. Later turns keep it in registers in
 * float32, [value, key], so that accumulators are the next product's operand. Operands are rounded to bfloat16,
 * products of r and k kept in two parts; sums are float32. Turns are counted from where a run starts a sequence, and a
 * pass may cut it at CHUNK_GRAIN tokens: where the state takes over. Parts of a long piece run side by side, each from
 * the state that states.cu has left for it. */
#include "rwkv6/chunk.cuh"

/* ---- y and the state --------------------------------------------------------------------------------------------- */

/* A warp's 32 values by all keys: s[i][j] are values 16 i + lane/4 (+ 8), keys 8 j + 2 (lane%4) (+ 1). */
struct head_state {
    float s[2][8][4];
};

/* y += A v for a warp's values, A in fragments. */
static __device__ __forceinline__ void add_values(float y[4][4], const uint32_t a[4], const uint32_t v[2][4]) {
#pragma unroll
    for (int n = 0; n < 4; n++) multiply(y[n], a, v[n / 2][n % 2 * 2], v[n / 2][n % 2 * 2 + 1]);
}

/* A tile of a fresh sequence sees the `seen` before it, the nearest first: y += (r k^T) v, then r decays over that
 * one. */
static __device__ __forceinline__ void add_seen(struct shared *m, float y[4][4], const rows16 &r, int seen, int half) {
    uint32_t f[4][4];
#pragma unroll
    for (int s = 0; s < 4; s++) block<LEFT>(f[s], r, s);
#pragma unroll 1
    for (int j = seen - 1; j >= 0; j--) {
        float c[2][4] = {};
        uint32_t high[4], low[4], v[2][4];
#pragma unroll
        for (int s = 0; s < 4; s++) {
            uint32_t k[4];
            block<RIGHT>(k, m->k[j], s);
            multiply(c[0], f[s], k[0], k[1]);
            multiply(c[1], f[s], k[2], k[3]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) pack_parts(c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1], &high[i], &low[i]);
#pragma unroll
        for (int i = 0; i < 2; i++) block<TRANSPOSED>(v[i], m->v[j], 2 * half + i);
        add_values(y, high, v);
        add_values(y, low, v);
        if (j == 0) break;
#pragma unroll
        for (int i = 0; i < 8; i++) { /* eight keys of both rows */
            float2 d = *(const float2 *)(m->total[j] + 8 * i + threadIdx.x % 4 * 2);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t *p = &f[i / 2][i % 2 * 2 + h];
                *p = pack(times(unpack(*p), d));
            }
        }
    }
}

/* y += r S */
static __device__ __forceinline__ void add_state(float y[4][4], const rows16 &r, const struct head_state &state) {
#pragma unroll
    for (int s = 0; s < 4; s++) {
        uint32_t f[4];
        block<LEFT>(f, r, s);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const float *p = &state.s[n / 2][2 * s][n % 2 * 2], *q = &state.s[n / 2][2 * s + 1][n % 2 * 2];
            multiply(y[n], f, pack2<bf16>(p[0], p[1]), pack2<bf16>(q[0], q[1]));
        }
    }
}

/* S = diag(total) S + k^T v */
static __device__ __forceinline__ void step_state(struct head_state &state, const rows16 &k, const rows16 &v, int half,
                                                  const float *total) {
    uint32_t left[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) block<TRANSPOSED_LEFT>(left[i], v, 2 * half + i);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint32_t f[4];
        block<TRANSPOSED>(f, k, j);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float2 d = *(const float2 *)(total + 8 * (2 * j + h) + threadIdx.x % 4 * 2);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float *s = state.s[i][2 * j + h];
                s[0] = __fmul_rn(s[0], d.x);
                s[1] = __fmul_rn(s[1], d.y);
                s[2] = __fmul_rn(s[2], d.x);
                s[3] = __fmul_rn(s[3], d.y);
                multiply(s, left[i], f[2 * h], f[2 * h + 1]);
            }
        }
    }
}

/* Reads or writes a state [key, value]. */
template <bool SAVE> static __device__ __forceinline__ void move_state(struct head_state &state, float *slot) {
    int lane = threadIdx.x % 32, half = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float *there = slot + (8 * j + lane % 4 * 2 + e % 2) * HEAD + 32 * half + 16 * i + lane / 4 + e / 2 * 8;
                if (SAVE) *there = state.s[i][j][e];
                else state.s[i][j][e] = *there;
            }
}

/* y of a tile for this warp's values, into the tile's room; then the state, if it is to be kept. */
template <bool STATE>
static __device__ __forceinline__ void make_y(struct shared *m, struct head_state &state, int tile, int set,
                                              bool started, bool keep) {
    int lane = threadIdx.x % 32, half = threadIdx.x / 32;
    float y[4][4] = {};
    uint32_t v[2][4];
    uint4 high = m->high[tile][lane], low = m->low[tile][lane];
    const uint32_t a[2][4] = {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
#pragma unroll
    for (int i = 0; i < 2; i++) block<TRANSPOSED>(v[i], m->v[set + tile], 2 * half + i);
    add_values(y, a[0], v);
    add_values(y, a[1], v);
    if (STATE && started) add_state(y, m->r[tile], state);
    else add_seen(m, y, m->r[tile], set + tile, half);
    int to = offset(m, m->work[tile].wide) + lane / 4 * 256 + (half * 128 + lane % 4 * 8 ^ mix32(lane / 4));
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            at<float2>(m, (to ^ n * 32) + h * 8 * 256) = make_float2(y[n][2 * h], y[n][2 * h + 1]);
    if (STATE && keep) step_state(state, m->k[set + tile], m->v[set + tile], half, m->total[set + tile]);
}

/* ---- norm and gate ----------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ float gate_of(float a) { /* a sigmoid(a) = a/2 + a/2 tanh(a/2) */
    float half = 0.5f * a;
    return __fmaf_rn(half, tanh_approx(half), half);
}
/* out = (GroupNorm(y) w + b) silu(g): eight lanes a token, eight values a lane. */
static __device__ __forceinline__ void store_tile(struct shared *m, const rows32 &y, const struct chunk_args &a,
                                                  size_t first, int count, const uint4 gate[4], const float *weight,
                                                  const float *bias) {
    int lane = threadIdx.x % 32, part = lane % 8, row = lane / 8; /* mix32 looks at two bits of a row */
    int from = offset(m, y) + row * 256 + (part * 32 ^ mix32(row));
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int t = 4 * i + row;
        float z[8], square[2] = {};
        *(float4 *)z = at<float4>(m, from + i * 4 * 256);
        *(float4 *)(z + 4) = at<float4>(m, (from ^ 16) + i * 4 * 256);
        float mean = sum_over_8(sum_of_8(z)) * (1.0f / HEAD);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            z[j] -= mean;
            square[j % 2] = __fmaf_rn(z[j], z[j], square[j % 2]);
        }
        float scale = inverse_root_fast(__fmaf_rn(sum_over_8(square[0] + square[1]), 1.0f / HEAD, GROUP_NORM_EPS));
        uint32_t g[4] = {gate[i].x, gate[i].y, gate[i].z, gate[i].w}, out[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float2 b = unpack(g[j]);
            out[j] = pack2<bf16>(__fmaf_rn(z[2 * j] * scale, weight[2 * j], bias[2 * j]) * gate_of(b.x),
                                 __fmaf_rn(z[2 * j + 1] * scale, weight[2 * j + 1], bias[2 * j + 1]) * gate_of(b.y));
        }
        if (t < count)
            __stcg((uint4 *)(a.out + first + (size_t)t * a.C + part * 8), make_uint4(out[0], out[1], out[2], out[3]));
    }
}

static __device__ __forceinline__ void load_gate(uint4 gate[4], const struct chunk_args &a, size_t at, int count) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int t = 4 * i + lane / 8;
        gate[i] = t < count ? *(const uint4 *)(a.g + at + (size_t)t * a.C + lane % 8 * 8) : make_uint4(0, 0, 0, 0);
    }
}

/* ---- a unit ------------------------------------------------------------------------------------------------------ */

struct head_unit { /* a unit of a head */
    int first, last, from, to, column;
};

static __device__ __forceinline__ float *state_of(const struct chunk_args &a, int from, int column) {
    float *states =
        from >= 0 ? a.slots + (size_t)from * a.slot_stride : a.interim + (size_t)(FROM_INTERIM - from) * a.C * HEAD;
    return states + (size_t)column * HEAD;
}

/* STATE: without, the piece is a fresh sequence whole, and short enough to need none. */
template <int STEPS, bool STATE>
static __device__ __forceinline__ void run_unit(struct shared *m, const struct chunk_args &a, const struct head_unit &p,
                                                int warp) {
    int lane = threadIdx.x % 32, set = 0; /* which of those kept is the first tile */
    bool started = STATE && p.from != NO_PAST, lasting = p.to >= 0 || p.last - p.first > CHUNK_GRAIN;
    struct head_state state = {};
    send_turn(m, a, (size_t)p.first * a.C + p.column, min(TURN, p.last - p.first), set);
    float2 u = *(const float2 *)(a.u + p.column + 2 * lane);
    if (started) move_state<false>(state, state_of(a, p.from, p.column));
#pragma unroll 1
    for (int t = p.first; t < p.last; t += TURN, set ^= WARPS) {
        int count = min(TURN, p.last - t), next = t + TURN, mine = count - TILE * warp;
        size_t here = (size_t)(t + TILE * warp) * a.C + p.column;
        uint4 gate[4];
        float weight[8], bias[8];
        if (STATE && t - p.first >= CHUNK_GRAIN) started = true;
        if (mine > 0) decay_up<STEPS>(m, m->work[warp].wide, a, t + TILE * warp, p.last, p.column);
        copies_wait_all();
        __syncthreads();
        if (mine > 0) make_tile(m, warp, set, u);
        __syncthreads();
        load_gate(gate, a, here, mine);
#pragma unroll 1
        for (int tile = 0; tile * TILE < count; tile++) {
            bool later = next < p.last || (tile + 1) * TILE < count;
            make_y<STATE>(m, state, tile, set, started, started ? later || p.to >= 0 : lasting);
        }
        load8(weight, a.weight + p.column + lane % 8 * 8);
        load8(bias, a.bias + p.column + lane % 8 * 8);
        __syncthreads();
        if (next < p.last) send_turn(m, a, (size_t)next * a.C + p.column, min(TURN, p.last - next), set ^ WARPS);
        if (mine > 0) store_tile(m, m->work[warp].wide, a, here, mine, gate, weight, bias);
        __syncwarp();
    }
    if (STATE && p.to >= 0) move_state<true>(state, state_of(a, p.to, p.column));
}

template <int STEPS> static __global__ void __launch_bounds__(THREADS, BLOCKS) wkv_chunk(const struct chunk_args a) {
    if (!AMPERE_CODE) return;
    __shared__ __align__(256) struct shared m;
    int number = blockIdx.x / a.H, lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    let_next_kernel_start();
    if (number >= a.meta.head[3]) return;
    /* One load for all four, and by shuffles: else the compiler loads again where they are needed, and waits again. */
    int value = ((const int *)(a.meta.units + number))[lane % 4];
    struct head_unit p = {__shfl_sync(~0u, value, 0), __shfl_sync(~0u, value, 1), __shfl_sync(~0u, value, 2),
                          __shfl_sync(~0u, value, 3), (int)blockIdx.x % a.H * HEAD};
    wait_for_kernels_before(); /* the numbers of the pass come from none */
    if (p.last - p.first <= CHUNK_GRAIN && p.from == NO_PAST && p.to < 0) run_unit<STEPS, false>(&m, a, p, warp);
    else run_unit<STEPS, true>(&m, a, p, warp);
}

/* ---- running ------------------------------------------------------------------------------------------------------- */

template <int STEPS> static cudaError_t launch(const struct worker *w, const struct chunk_args &a) {
    cudaFuncSetAttribute(wkv_chunk<STEPS>, cudaFuncAttributePreferredSharedMemoryCarveout,
                         cudaSharedmemCarveoutMaxShared);
    dim3 grid((unsigned)w->grid.units * (unsigned)a.H);
    return launch_early(overlaps(w), w->stream, wkv_chunk<STEPS>, grid, THREADS, 0, a);
}

cudaError_t wkv_chunk_run(const struct worker *w, const struct wkv6 *a, const struct wkv_args *args) {
    struct up_args up = {};
    up_weight(w, a->w2, &up);
    const struct chunk_args chunk = {args->meta,
                                     (const bf16 *)args->r,
                                     (const bf16 *)args->k,
                                     (const bf16 *)args->v,
                                     (const bf16 *)args->g,
                                     (const float *)a->low,
                                     (const uint4 *)up.w,
                                     vector_of(a->time_decay),
                                     up.k,
                                     up.K,
                                     args->u,
                                     args->weight,
                                     args->bias,
                                     args->slots,
                                     args->slot_stride,
                                     (bf16 *)args->out,
                                     args->C,
                                     args->H,
                                     (bf16 *)a->decay,
                                     (float *)w->temp,
                                     a->decay + (size_t)w->grid.T * (size_t)args->C / 2};
    if (w->grid.long_pieces) {
        cudaError_t status = wkv_states_run(w, &chunk);
        if (status != cudaSuccess) return status;
    }
    if (up.k == 64) return launch<4>(w, chunk);
    if (up.k == 128) return launch<8>(w, chunk);
    return launch<0>(w, chunk);
}
