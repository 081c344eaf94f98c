/* The delta rule of RWKV-7: a head's state lives in registers while its sequence goes by, a token at a time, in float32.
 *
 * A thread owns one value: its row of the state, N keys. Tokens come in chunks of 8: first warps share out the tokens and
 * prepare what all threads read (the direction that is removed, the key that is written, the decay), then each thread walks
 * over the tokens by itself, then warps share out the tokens' group norms. Sums over keys are four chains, added in a fixed
 * order; sums over a head's columns are one tree over a warp. So a row's bits depend on its own sequence alone. */
#include "launch.cuh"
#include "rwkv7/delta.cuh"

enum { CHUNK = 8 };

/* What a chunk's tokens bring; rows of N. */
template <int N> struct tokens {
    float r[CHUNK][N], decay[CHUNK][N], minus_kk[CHUNK][N], kk_rate[CHUNK][N], k[CHUNK][N], v[CHUNK][N], y[CHUNK][N];
    float bonus[CHUNK]; /* sum over the head of r k r_k */
};

/* Columns of a head that a lane has: lane, lane + 32, .. */
template <int N> struct lanes {
    static constexpr int each = N < 32 ? 1 : N / 32;
};

static __device__ __forceinline__ float sum_warp(float a) {
#pragma unroll
    for (int d = 16; d; d /= 2) a += __shfl_xor_sync(~0u, a, d);
    return a;
}

template <typename Out> static __device__ __forceinline__ float read(const void *p, size_t i) {
    return to_float(((const Out *)p)[i]);
}

template <typename Out, int N>
static __device__ __forceinline__ float value_of(const struct wkv7_args &a, size_t at, int column) {
    float v = read<Out>(a.v, at);
    if (!a.value) return v;
    return __fmaf_rn(read<Out>(a.v_first, at) - v, sigmoid(a.v0[column] + read<Out>(a.value, at)), v);
}

/* Token i of the chunk, by one warp; `at` is the head's first column of its row. */
template <typename Out, int N>
static __device__ __forceinline__ void prepare(struct tokens<N> *s, const struct wkv7_args &a, int i, size_t at,
                                               int column) {
    constexpr int EACH = lanes<N>::each;
    const int lane = threadIdx.x % 32;
    float kk[EACH], k[EACH], rate[EACH], squares = 0, bonus = 0;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const int c = lane + 32 * j;
        kk[j] = k[j] = rate[j] = 0;
        if (c >= N) continue;
        k[j] = read<Out>(a.k, at + c);
        kk[j] = k[j] * a.k_k[column + c];
        squares = __fmaf_rn(kk[j], kk[j], squares);
        rate[j] = sigmoid(a.a0[column + c] + read<Out>(a.rate, at + c));
    }
    const float scale = 1.0f / fmaxf(sqrtf(sum_warp(squares)), 1e-12f);
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const int c = lane + 32 * j;
        if (c >= N) continue;
        const float r = read<Out>(a.r, at + c), key = k[j] * __fmaf_rn(rate[j] - 1.0f, a.k_a[column + c], 1.0f);
        bonus = __fmaf_rn(r * a.r_k[column + c], key, bonus);
        s->r[i][c] = r;
        s->k[i][c] = key;
        s->minus_kk[i][c] = -kk[j] * scale;
        s->kk_rate[i][c] = kk[j] * scale * rate[j];
        s->decay[i][c] = exp2_fast(decay_exponent(a.w0[column + c] + a.decay[at + c]));
        s->v[i][c] = value_of<Out, N>(a, at + c, column + c);
    }
    bonus = sum_warp(bonus);
    if (lane == 0) s->bonus[i] = bonus;
}

/* One token for one value: S = S diag(decay) + (S minus_kk) kk_rate^T + v k^T; y = S r. */
template <int N> static __device__ __forceinline__ void step(struct tokens<N> *s, float state[N], int i, int value) {
    float part[4] = {}, y[4] = {};
#pragma unroll
    for (int n = 0; n < N; n += 4) {
        const float4 away = *(const float4 *)&s->minus_kk[i][n];
        part[0] = __fmaf_rn(state[n], away.x, part[0]);
        part[1] = __fmaf_rn(state[n + 1], away.y, part[1]);
        part[2] = __fmaf_rn(state[n + 2], away.z, part[2]);
        part[3] = __fmaf_rn(state[n + 3], away.w, part[3]);
    }
    const float removed = (part[0] + part[1]) + (part[2] + part[3]), v = s->v[i][value];
#pragma unroll
    for (int n = 0; n < N; n += 4) {
        float keep[4], back[4], key[4], r[4];
        *(float4 *)keep = *(const float4 *)&s->decay[i][n];
        *(float4 *)back = *(const float4 *)&s->kk_rate[i][n];
        *(float4 *)key = *(const float4 *)&s->k[i][n];
        *(float4 *)r = *(const float4 *)&s->r[i][n];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float e = __fmaf_rn(removed, back[j], __fmul_rn(state[n + j], keep[j]));
            state[n + j] = __fmaf_rn(v, key[j], e);
            y[j] = __fmaf_rn(state[n + j], r[j], y[j]);
        }
    }
    s->y[i][value] = (y[0] + y[1]) + (y[2] + y[3]);
}

/* out = (GroupNorm(y) weight + bias + bonus v) gate for token i, by one warp. */
template <typename In, typename Out, int N>
static __device__ __forceinline__ void finish(const struct tokens<N> *s, const struct wkv7_args &a, int i, size_t at,
                                              int column) {
    constexpr int EACH = lanes<N>::each;
    const int lane = threadIdx.x % 32;
    float y[EACH], sum = 0, squares = 0;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        y[j] = lane + 32 * j < N ? s->y[i][lane + 32 * j] : 0;
        sum += y[j];
    }
    const float mean = sum_warp(sum) * (1.0f / N);
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        y[j] = lane + 32 * j < N ? y[j] - mean : 0;
        squares = __fmaf_rn(y[j], y[j], squares);
    }
    const float scale = rsqrtf(sum_warp(squares) * (1.0f / N) + GROUP_NORM_EPS);
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const int c = lane + 32 * j;
        if (c >= N) continue;
        float out = __fmaf_rn(y[j] * scale, a.weight[column + c], a.bias[column + c]);
        out = __fmaf_rn(s->bonus[i], s->v[i][c], out) * read<Out>(a.gate, at + c);
        ((In *)a.out)[at + c] = from_float<In>(out);
    }
}

template <int N> struct block_of {
    static constexpr int threads = N < 32 ? 32 : N, warps = threads / 32;
    static constexpr int per_multiprocessor = N <= 64 ? 8 : 2;
};

template <typename In, typename Out, int N>
static __global__ void __launch_bounds__(block_of<N>::threads, block_of<N>::per_multiprocessor)
    wkv7_tokens(const struct wkv7_args a) {
    __shared__ __align__(16) struct tokens<N> s;
    constexpr int WARPS = block_of<N>::warps;
    const int piece = blockIdx.x / a.H, head = blockIdx.x % a.H, value = threadIdx.x, warp = threadIdx.x / 32;
    const int column = head * N;
    let_next_kernel_start();
    wait_for_kernels_before();
    if (piece >= a.meta.head[1]) return;
    const int first = a.meta.start[piece], last = a.meta.start[piece + 1];
    const int from = a.meta.from[piece], to = a.meta.to[piece];
    const size_t row = ((size_t)column + value) * N; /* of this thread's values in a slot */
    float state[N] = {};
    if (from >= 0 && value < N)
#pragma unroll
        for (int n = 0; n < N; n++) state[n] = a.slots[(size_t)from * a.slot_stride + row + n];
    for (int t = first; t < last; t += CHUNK) {
        const int count = min(CHUNK, last - t);
        const size_t at = (size_t)t * a.C + column;
        __syncthreads();
        for (int i = warp; i < count; i += WARPS) prepare<Out, N>(&s, a, i, at + (size_t)i * a.C, column);
        __syncthreads();
        if (value < N)
#pragma unroll 1
            for (int i = 0; i < count; i++) step<N>(&s, state, i, value);
        __syncthreads();
        for (int i = warp; i < count; i += WARPS) finish<In, Out, N>(&s, a, i, at + (size_t)i * a.C, column);
    }
    if (to >= 0 && value < N)
#pragma unroll
        for (int n = 0; n < N; n++) a.slots[(size_t)to * a.slot_stride + row + n] = state[n];
}

/* ---- verb ---------------------------------------------------------------------------------------------------------- */

template <typename In, typename Out> static void launch(const struct worker *w, const struct wkv7_args &a, int N) {
    const dim3 blocks((unsigned)w->grid.S * (unsigned)a.H);
    auto kernel = wkv7_tokens<In, Out, 64>;
    if (N == 8) kernel = wkv7_tokens<In, Out, 8>;
    else if (N == 16) kernel = wkv7_tokens<In, Out, 16>;
    else if (N == 32) kernel = wkv7_tokens<In, Out, 32>;
    else if (N == 128) kernel = wkv7_tokens<In, Out, 128>;
    cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    launch_early(overlaps(w), w->stream, kernel, blocks, N < 32 ? 32 : N, 0, a);
}

enum status cuda_wkv7(struct worker *w, const struct wkv7 *a, struct error *e) {
    const struct dims *d = &w->dev->dims;
    const size_t layer = (size_t)d->C * (size_t)d->N;
    struct wkv7_args args = {};
    TRY(low_ranks_up(w, a, a->out, e)); /* `out` is free until the delta rule writes it */
    args.meta = w->meta;
    args.r = a->r;
    args.k = a->k;
    args.v = a->v;
    args.v_first = a->v_first;
    args.decay = (const float *)a->low[DECAY_LOW].out;
    args.rate = a->low[RATE_LOW].out;
    args.value = a->layer ? a->low[VALUE_LOW].out : NULL;
    args.back = a->low[VALUE_LOW].out;
    args.gate = a->low[GATE_LOW].out;
    args.w0 = vector_of(a->low[DECAY_LOW].base);
    args.a0 = vector_of(a->low[RATE_LOW].base);
    args.v0 = a->layer ? vector_of(a->low[VALUE_LOW].base) : NULL;
    args.k_k = vector_of(a->k_k);
    args.k_a = vector_of(a->k_a);
    args.r_k = vector_of(a->r_k);
    args.weight = vector_of(a->ln_x.weight);
    args.bias = vector_of(a->ln_x.bias);
    args.slots = a->states + (size_t)a->layer * layer;
    args.slot_stride = (size_t)d->L * layer;
    args.out = a->out;
    args.C = d->C;
    args.H = d->H;
    args.made = (struct made *)w->low; /* [T, C]: as wide as the decay's low rank up */
    args.interim = (float *)w->temp;   /* [T, C] in 16 bits: a state for 128 tokens */
    if (route_wkv7(&w->dev->gpu, w->dev->in, d, w->grid.T, 0) != WKV7_TOKENS)
        return cuda_status(w->dev, wkv7_chunk_run(w, &args), "the delta rule", e);
    if (w->dev->in == BF16) launch<bf16, bf16>(w, args, d->N);
    else if (w->dev->in == F16) launch<half_t, float>(w, args, d->N);
    else launch<float, float>(w, args, d->N);
    return LAUNCHED(w, "the delta rule", e);
}
