/* Passes over rows of the stream: embedding, norms with the token shift, pooling.
 *
 * A row's sums run in one order fixed by C alone: each of 256 threads adds its own columns, a butterfly adds a warp's
 * lanes, eight warps are added in turn. A block walks a run of neighbouring rows and keeps the normalised row before in
 * registers; how long the runs are changes no bit. */
#include "cuda.h"
#include "mma.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, LONG_RUN = 8 };

/* Sum over the block, the same in every thread. `room` must not be written again before the next barrier. */
static __device__ __forceinline__ float block_sum(float a, float *room) {
#pragma unroll
    for (int distance = 16; distance; distance /= 2) a += __shfl_xor_sync(~0u, a, distance);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = a;
    __syncthreads();
    float sum = room[0];
#pragma unroll
    for (int i = 1; i < WARPS; i++) sum += room[i];
    return sum;
}

/* Q groups of four columns a thread: group q is columns 4 (q * 256 + thread). */
template <int Q> struct row {
    float4 a[Q];
};
static __device__ __forceinline__ int column_of(int q) {
    return 4 * (q * THREADS + (int)threadIdx.x);
}

template <int Q> __device__ __forceinline__ void load_row(row<Q> &r, const float *x, int C) {
#pragma unroll
    for (int q = 0; q < Q; q++)
        r.a[q] = column_of(q) < C ? *(const float4 *)(x + column_of(q)) : make_float4(0, 0, 0, 0);
}

template <int Q> __device__ __forceinline__ void store_row(const row<Q> &r, float *x, int C) {
#pragma unroll
    for (int q = 0; q < Q; q++)
        if (column_of(q) < C) *(float4 *)(x + column_of(q)) = r.a[q];
}

/* Mean and 1 / deviation of a row, by two passes over registers. */
template <int Q> __device__ __forceinline__ float2 row_stats(const row<Q> &r, int C, float (*room)[WARPS]) {
    float sum = 0, squares = 0;
#pragma unroll
    for (int q = 0; q < Q; q++) sum += (r.a[q].x + r.a[q].y) + (r.a[q].z + r.a[q].w);
    float mean = __fdiv_rn(block_sum(sum, room[0]), (float)C);
#pragma unroll
    for (int q = 0; q < Q; q++) {
        if (column_of(q) >= C) continue;
        float x = r.a[q].x - mean, y = r.a[q].y - mean, z = r.a[q].z - mean, w = r.a[q].w - mean;
        squares += __fadd_rn(__fmaf_rn(x, x, __fmul_rn(y, y)), __fmaf_rn(z, z, __fmul_rn(w, w)));
    }
    float variance = __fdiv_rn(block_sum(squares, room[1]), (float)C);
    return make_float2(mean, rsqrtf(variance + LN_EPS));
}

static __device__ __forceinline__ float4 normalise4(float4 x, float2 stats, float4 w, float4 b) {
    return make_float4(normalise(x.x, stats.x, stats.y, w.x, b.x), normalise(x.y, stats.x, stats.y, w.y, b.y),
                       normalise(x.z, stats.x, stats.y, w.z, b.z), normalise(x.w, stats.x, stats.y, w.w, b.w));
}

template <int Q>
__device__ __forceinline__ void normalise_row(row<Q> &r, float2 stats, const float *w, const float *b, int C) {
#pragma unroll
    for (int q = 0; q < Q; q++)
        if (column_of(q) < C)
            r.a[q] =
                normalise4(r.a[q], stats, *(const float4 *)(w + column_of(q)), *(const float4 *)(b + column_of(q)));
}

/* ---- embedding ------------------------------------------------------------------------------------------------ */

struct embed_args {
    const int *T, *ids;
    const void *table;
    enum dtype dtype;
    const float *weight, *bias;
    float *x;
    int C;
};

template <int Q> static __global__ void __launch_bounds__(THREADS) embed_rows(const struct embed_args a) {
    __shared__ float room[2][WARPS];
    int t = blockIdx.x;
    if (t >= *a.T) return;
    size_t from = (size_t)a.ids[t] * a.C;
    row<Q> r;
#pragma unroll
    for (int q = 0; q < Q; q++) {
        size_t at = from + column_of(q);
        r.a[q] = column_of(q) >= a.C ? make_float4(0, 0, 0, 0)
                 : a.dtype == F32    ? load4((const float *)a.table + at)
                 : a.dtype == F16    ? load4((const half_t *)a.table + at)
                                     : load4((const bf16 *)a.table + at);
    }
    float2 stats = row_stats(r, a.C, room);
    normalise_row(r, stats, a.weight, a.bias, a.C);
    store_row(r, a.x + (size_t)t * a.C, a.C);
}

/* ---- norm and token shift --------------------------------------------------------------------------------------- */

struct shift_args {
    struct meta meta;
    const float *x, *weight, *bias;
    float *slots; /* [slot, L, C], at this layer */
    size_t slot_stride;
    const float *mix[2];
    void *out[2];
    float2 *stats;
    int C, run;
};

/* The normalised row before `t`; its own sequence's, a state's, or zeros. */
template <int Q>
__device__ __forceinline__ void row_before(row<Q> &r, const struct shift_args &a, int prev, float (*room)[WARPS]) {
    if (prev >= 0) {
        load_row(r, a.x + (size_t)prev * a.C, a.C);
        normalise_row(r, row_stats(r, a.C, room), a.weight, a.bias, a.C);
    } else if (prev == NO_PAST)
#pragma unroll
        for (int q = 0; q < Q; q++) r.a[q] = make_float4(0, 0, 0, 0);
    else load_row(r, a.slots + (size_t)(FROM_SLOT - prev) * a.slot_stride, a.C);
}

template <typename In, int Q>
__device__ __forceinline__ void store_mix(In *out, const row<Q> &now, const row<Q> &before, const float *mix, int C) {
#pragma unroll
    for (int q = 0; q < Q; q++) {
        if (column_of(q) >= C) continue;
        float4 m = *(const float4 *)(mix + column_of(q)), n = now.a[q], b = before.a[q];
        store4(out + column_of(q),
               make_float4(lerp(n.x, b.x, m.x), lerp(n.y, b.y, m.y), lerp(n.z, b.z, m.z), lerp(n.w, b.w, m.w)));
    }
}

/* OUTS mixed rows, or none: then only the statistics are wanted. */
template <typename In, int Q, int OUTS>
static __global__ void __launch_bounds__(THREADS) shift_rows(const struct shift_args a) {
    __shared__ float room[4][WARPS];
    int first = blockIdx.x * a.run, last = min(first + a.run, a.meta.head[0]);
    if (first >= last) return;
    row<Q> before, now, next;
    load_row(next, a.x + (size_t)first * a.C, a.C);
    for (int t = first; t < last; t++) {
        int prev = OUTS ? a.meta.prev[t] : 0;
        now = next;
        if (t + 1 < last) load_row(next, a.x + (size_t)(t + 1) * a.C, a.C); /* on its way while this one is summed */
        if (OUTS && (t == first || prev != t - 1)) {
            row_before(before, a, prev, room);
            __syncthreads(); /* room is used again at once */
        }
        float2 stats = row_stats(now, a.C, room + 2 * (t & 1));
        normalise_row(now, stats, a.weight, a.bias, a.C);
        if (a.stats && threadIdx.x == 0) a.stats[t] = stats;
        if constexpr (OUTS > 0) {
#pragma unroll
            for (int j = 0; j < OUTS; j++) store_mix((In *)a.out[j] + (size_t)t * a.C, now, before, a.mix[j], a.C);
            int save = a.meta.save[t];
            if (save >= 0) store_row(now, a.slots + (size_t)save * a.slot_stride, a.C);
            before = now;
        }
    }
}

/* ---- pooling ------------------------------------------------------------------------------------------------------ */

enum { POOL_THREADS = 128, AHEAD = 8 };

struct pool_args {
    struct meta meta;
    const float *x;
    const float2 *stats; /* NULL: no norm */
    const float *weight, *bias;
    float *pooled, *carry; /* [S, columns, C], [2, columns, C] */
    int C, columns, column, pooling;
};

static __device__ __forceinline__ float4 pool_one(int pooling, float4 sum, float4 x, int position) {
    float f = (float)(position + 1);
    switch (pooling) {
    case POOL_MEAN: return make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
    case POOL_WEIGHTED:
        return make_float4(__fmaf_rn(f, x.x, sum.x), __fmaf_rn(f, x.y, sum.y), __fmaf_rn(f, x.z, sum.z),
                           __fmaf_rn(f, x.w, sum.w));
    case POOL_MAX:
        if (position == 0) return x;
        return make_float4(fmaxf(sum.x, x.x), fmaxf(sum.y, x.y), fmaxf(sum.z, x.z), fmaxf(sum.w, x.w));
    default: return x;
    }
}

/* A thread owns four columns of one sequence and adds its rows in order, eight loads ahead. */
static __global__ void __launch_bounds__(POOL_THREADS) pool_rows(const struct pool_args a) {
    int s = blockIdx.x, c = 4 * (blockIdx.y * POOL_THREADS + threadIdx.x);
    if (s >= a.meta.head[1] || c >= a.C) return;
    int first = a.meta.start[s], last = a.meta.start[s + 1], before = a.meta.before[s], total = a.meta.total[s];
    int turn = a.meta.head[2];
    bool ends = before + last - first == total;
    size_t at = (size_t)a.column * a.C + c, side = (size_t)a.columns * a.C;
    float4 sum = before ? *(const float4 *)(a.carry + turn * side + at) : make_float4(0, 0, 0, 0), w = sum, b = sum;
    if (a.stats) {
        w = *(const float4 *)(a.weight + c);
        b = *(const float4 *)(a.bias + c);
    }
    if (a.pooling == POOL_LAST) {
        before += last - 1 - first;
        first = last - 1;
    }
    for (int t = first; t < last; t += AHEAD) {
        float4 x[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (t + i < last) x[i] = *(const float4 *)(a.x + (size_t)(t + i) * a.C + c);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (t + i >= last) break;
            if (a.stats) x[i] = normalise4(x[i], a.stats[t + i], w, b);
            sum = pool_one(a.pooling, sum, x[i], before + t + i - first);
        }
    }
    if (ends && (a.pooling == POOL_MEAN || a.pooling == POOL_WEIGHTED)) {
        double n = (double)total;
        float weight = (float)(a.pooling == POOL_MEAN ? n : 0.5 * n * (n + 1.0));
        sum = make_float4(__fdiv_rn(sum.x, weight), __fdiv_rn(sum.y, weight), __fdiv_rn(sum.z, weight),
                          __fdiv_rn(sum.w, weight));
    }
    float *to = ends ? a.pooled + (size_t)s * side : a.carry + (1 - turn) * side;
    *(float4 *)(to + at) = sum;
}

/* ---- verbs -------------------------------------------------------------------------------------------------------- */

/* Calls f.run<Q>() for the number of column groups that C takes. */
template <typename F> static void for_columns(int C, F f) {
    int groups = pieces(C, 4 * THREADS);
    if (groups <= 1) f.template run<1>();
    else if (groups <= 2) f.template run<2>();
    else if (groups <= 4) f.template run<4>();
    else f.template run<8>();
}

struct embed_launch {
    struct worker *w;
    struct embed_args args;
    template <int Q> void run() const {
        embed_rows<Q><<<(unsigned)w->grid.T, THREADS, 0, w->stream>>>(args);
    }
};

enum status cuda_embed(struct worker *w, const struct embed *a, struct error *e) {
    struct embed_args args = {
        w->meta.head,           w->meta.ids, a->table->data, w->dev->table_dtype, vector_of(a->ln0.weight),
        vector_of(a->ln0.bias), a->x,        w->dev->dims.C};
    for_columns(args.C, embed_launch{w, args});
    return LAUNCHED(w, "the embedding", e);
}

struct shift_launch {
    struct worker *w;
    struct shift_args args;
    int outs;
    template <typename In, int Q> void run_as() const {
        unsigned blocks = (unsigned)pieces(w->grid.T, args.run);
        if (outs == 0) shift_rows<In, Q, 0><<<blocks, THREADS, 0, w->stream>>>(args);
        else if (outs == 1) shift_rows<In, Q, 1><<<blocks, THREADS, 0, w->stream>>>(args);
        else shift_rows<In, Q, 2><<<blocks, THREADS, 0, w->stream>>>(args);
    }
    template <int Q> void run() const {
        if (w->dev->in == BF16) run_as<bf16, Q>();
        else if (w->dev->in == F16) run_as<half_t, Q>();
        else run_as<float, Q>();
    }
};

static struct shift_args shift_args_of(const struct worker *w, const float *x, struct norm ln, const float *slots,
                                       int layer) {
    const struct dims *d = &w->dev->dims;
    struct shift_args args = {};
    args.meta = w->meta;
    args.x = x;
    args.weight = vector_of(ln.weight);
    args.bias = vector_of(ln.bias);
    if (slots) args.slots = const_cast<float *>(slots) + (size_t)layer * (size_t)d->C;
    args.slot_stride = (size_t)d->L * (size_t)d->C;
    args.C = d->C;
    args.run = w->grid.T >= LONG_RUN * 2 * w->dev->sms ? LONG_RUN : 1;
    return args;
}

enum status shift_first(struct worker *w, const struct time_shift *a, struct error *e) {
    struct shift_args args = shift_args_of(w, a->x, a->ln1, w->pass.att_x, a->layer);
    args.mix[0] = vector_of(a->maa_x);
    args.out[0] = w->temp;
    args.stats = w->stats;
    for_columns(args.C, shift_launch{w, args, 1});
    return LAUNCHED(w, "the token shift", e);
}

enum status cuda_channel_shift(struct worker *w, const struct channel_shift *a, struct error *e) {
    struct shift_args args = shift_args_of(w, a->x, a->ln2, w->pass.ffn_x, a->layer);
    args.mix[0] = vector_of(a->maa_k);
    args.mix[1] = vector_of(a->maa_r);
    args.out[0] = a->mixed_k;
    args.out[1] = a->mixed_r;
    for_columns(args.C, shift_launch{w, args, 2});
    return LAUNCHED(w, "the channel shift", e);
}

enum status cuda_pool(struct worker *w, const struct pool *a, struct error *e) {
    if (w->pool_waits)
        CUDA_TRY(w->dev, cudaStreamWaitEvent(w->stream, w->flights[w->turn ^ 1].done, 0), "waiting for pooled rows", e);
    w->pool_waits = false;
    struct pool_args args = {};
    args.meta = w->meta;
    args.x = a->x;
    if (a->ln) {
        struct shift_args stats = shift_args_of(w, a->x, *a->ln, NULL, 0);
        stats.stats = w->stats;
        for_columns(stats.C, shift_launch{w, stats, 0});
        TRY(LAUNCHED(w, "the last norm", e));
        args.stats = w->stats;
        args.weight = vector_of(a->ln->weight);
        args.bias = vector_of(a->ln->bias);
    }
    args.pooled = w->pooled;
    args.carry = w->carry;
    args.C = w->dev->dims.C;
    args.columns = w->pass.columns;
    args.column = a->column;
    args.pooling = w->pass.pooling;
    dim3 grid((unsigned)w->grid.S, (unsigned)pieces(args.C, 4 * POOL_THREADS));
    pool_rows<<<grid, POOL_THREADS, 0, w->stream>>>(args);
    return LAUNCHED(w, "pooling", e);
}
