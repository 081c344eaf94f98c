/* Passes over rows of the stream: embedding, norms with the token shift, pooling.
 *
 * A row's sums run in one order fixed by C alone: of 256 columns' owners, four neighbours each, every one adds its own, a
 * butterfly adds 32 of them, eight such sums are added in turn. Few rows have 256 threads each. Many rows have fewer
 * threads each, which stand for several of the 256: what a row costs a thread beyond its columns is what bounds the
 * pass. A block walks a run of neighbouring rows and keeps the normalised row before in registers; how long the runs are
 * changes no bit. */
#include "cuda.h"
#include "launch.cuh"
#include "mma.cuh"

enum { OWNERS = 256, SUMS = OWNERS / 32, FEW = 4 };

/* How a row is dealt to TH threads when it takes Q groups of four columns for each owner. Fewer threads than owners: then
 * every group is there, C being Q times 1024. */
template <int Q, int TH> struct deal {
    static constexpr int M = OWNERS / TH, N = Q * M; /* owners a thread stands for; its groups of four columns */
    static __device__ __forceinline__ constexpr int offset(int i) { /* of group i from the thread's first column */
        return 4 * (i / M * OWNERS + i % M * TH);
    }
    static __device__ __forceinline__ int first(void) {
        return 4 * (int)threadIdx.x;
    }
    static __device__ __forceinline__ bool has(int i, int C) {
        return TH < OWNERS || first() + offset(i) < C;
    }
};
template <int Q, int TH> struct row {
    float4 a[deal<Q, TH>::N];
};

/* Read where it is needed: left to the compiler such loads leave the loop over rows, for registers that are not there. */
static __device__ __forceinline__ float4 load_again(const float *p) {
    float4 a;
    asm volatile("ld.global.nc.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(a.x), "=f"(a.y), "=f"(a.z), "=f"(a.w) : "l"(p));
    return a;
}
#define EACH_GROUP(i) _Pragma("unroll") for (int i = 0; i < deal<Q, TH>::N; i++)

template <int Q, int TH> __device__ __forceinline__ void load_row(row<Q, TH> &r, const float *x, int C) {
    x += deal<Q, TH>::first();
    EACH_GROUP(i) {
        const float4 *at = (const float4 *)(x + deal<Q, TH>::offset(i));
        r.a[i] = deal<Q, TH>::has(i, C) ? *at : make_float4(0, 0, 0, 0);
    }
}

template <int Q, int TH> __device__ __forceinline__ void store_row(const row<Q, TH> &r, float *x, int C) {
    x += deal<Q, TH>::first();
    EACH_GROUP(i) {
        if (deal<Q, TH>::has(i, C)) *(float4 *)(x + deal<Q, TH>::offset(i)) = r.a[i];
    }
}

/* Room for the sums of BATCH rows: of the rows, then of their squares. Between two uses of one part lies the barrier of the
 * other, so neither needs another. */
template <int BATCH> struct sums {
    float4 part[2][BATCH][SUMS / 4];
};

/* Sums over the block, one a row, the same in every thread. */
template <int TH, int BATCH>
static __device__ __forceinline__ void block_sums(float sum[BATCH], float a[BATCH][OWNERS / TH],
                                                  float4 (*room)[SUMS / 4]) {
    constexpr int M = OWNERS / TH;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        float mine = sum_many<M>(a[i]);
        if (lane % (32 / M) == 0) ((float *)room[i])[lane / (32 / M) * (TH / 32) + warp] = mine;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        float4 b = room[i][0], c = room[i][1];
        sum[i] = ((((((b.x + b.y) + b.z) + b.w) + c.x) + c.y) + c.z) + c.w;
    }
}

/* Mean and 1 / deviation of each row, by two passes over registers. */
template <int Q, int TH, int BATCH>
__device__ __forceinline__ void row_stats(float2 stats[BATCH], const row<Q, TH> r[BATCH], int C, float inverse,
                                          sums<BATCH> &room) {
    constexpr int M = deal<Q, TH>::M;
    float part[BATCH][M] = {}, squares[BATCH][M] = {}, sum[BATCH];
#pragma unroll
    for (int b = 0; b < BATCH; b++)
        EACH_GROUP(i) part[b][i % M] += (r[b].a[i].x + r[b].a[i].y) + (r[b].a[i].z + r[b].a[i].w);
    block_sums<TH, BATCH>(sum, part, room.part[0]);
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
        float mean = __fmul_rn(sum[b], inverse);
        EACH_GROUP(i) {
            if (!deal<Q, TH>::has(i, C)) continue;
            float x = r[b].a[i].x - mean, y = r[b].a[i].y - mean, z = r[b].a[i].z - mean, w = r[b].a[i].w - mean;
            squares[b][i % M] += __fadd_rn(__fmaf_rn(x, x, __fmul_rn(y, y)), __fmaf_rn(z, z, __fmul_rn(w, w)));
        }
        stats[b].x = mean;
    }
    block_sums<TH, BATCH>(sum, squares, room.part[1]);
#pragma unroll
    for (int b = 0; b < BATCH; b++) stats[b].y = rsqrtf(__fmaf_rn(sum[b], inverse, LN_EPS));
}

template <int Q, int TH>
__device__ __forceinline__ void normalise_row(row<Q, TH> &r, float2 stats, const float *w, const float *b, int C) {
    w += deal<Q, TH>::first(), b += deal<Q, TH>::first();
    EACH_GROUP(i) {
        int c = deal<Q, TH>::offset(i);
        if (deal<Q, TH>::has(i, C)) r.a[i] = normalise4(r.a[i], stats, load_again(w + c), load_again(b + c));
    }
}

/* ---- embedding ------------------------------------------------------------------------------------------------ */

struct embed_args {
    const int *T, *ids;
    const void *table;
    enum dtype dtype;
    const float *weight, *bias;
    float *x;
    int C;
    float inverse; /* 1 / C */
};

template <int Q> static __global__ void __launch_bounds__(OWNERS) embed_rows(const struct embed_args a) {
    constexpr int TH = OWNERS;
    __shared__ sums<1> room;
    int t = blockIdx.x;
    let_next_kernel_start();
    wait_for_kernels_before();
    if (t >= *a.T) return;
    size_t from = (size_t)a.ids[t] * a.C;
    row<Q, TH> r;
    float2 stats;
    EACH_GROUP(i) {
        size_t at = from + deal<Q, TH>::first() + deal<Q, TH>::offset(i);
        r.a[i] = !deal<Q, TH>::has(i, a.C) ? make_float4(0, 0, 0, 0)
                 : a.dtype == F32          ? load4((const float *)a.table + at)
                 : a.dtype == F16          ? load4((const half_t *)a.table + at)
                                           : load4((const bf16 *)a.table + at);
    }
    row_stats<Q, TH, 1>(&stats, &r, a.C, a.inverse, room);
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
    float inverse; /* 1 / C */
};

template <typename In, int Q, int TH>
__device__ __forceinline__ void store_mix(In *out, const row<Q, TH> &now, const row<Q, TH> &before, const float *mix,
                                          int C) {
    out += deal<Q, TH>::first(), mix += deal<Q, TH>::first();
    EACH_GROUP(i) {
        int c = deal<Q, TH>::offset(i);
        if (!deal<Q, TH>::has(i, C)) continue;
        float4 m = load_again(mix + c), n = now.a[i], b = before.a[i];
        store4(out + c,
               make_float4(lerp(n.x, b.x, m.x), lerp(n.y, b.y, m.y), lerp(n.z, b.z, m.z), lerp(n.w, b.w, m.w)));
    }
}

/* What comes before a sequence's first row of the pass: a state's, or zeros. */
template <int Q, int TH>
__device__ __forceinline__ void load_past(row<Q, TH> &r, const struct shift_args &a, int prev) {
    if (prev <= FROM_SLOT) load_row(r, a.slots + (size_t)(FROM_SLOT - prev) * a.slot_stride, a.C);
    else EACH_GROUP(i) r.a[i] = make_float4(0, 0, 0, 0);
}

/* OUTS mixed rows, or none: then only the statistics are wanted. BATCH rows share their barriers, and the next ones are on
 * their way meanwhile. The walk begins one row early, for the row before. */
template <typename In, int Q, int OUTS, int TH, int BATCH, int PER_SM>
static __global__ void __launch_bounds__(TH, PER_SM) shift_rows(const struct shift_args a) {
    __shared__ sums<BATCH> room;
    let_next_kernel_start();
    wait_for_kernels_before();
    int first = blockIdx.x * a.run, last = min(first + a.run, a.meta.head[0]);
    if (first >= last) return;
    row<Q, TH> before, now[BATCH], next[BATCH];
    int from = OUTS ? first - 1 : first;
#pragma unroll
    for (int b = 0; b < BATCH; b++) load_row(next[b], a.x + (size_t)min(max(from + b, 0), last - 1) * a.C, a.C);
    for (; from < last; from += BATCH) {
        int prev[BATCH], save[BATCH];
        float2 stats[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            int t = min(max(from + b, 0), last - 1);
            now[b] = next[b];
            prev[b] = OUTS ? a.meta.prev[t] : 0;
            save[b] = OUTS ? a.meta.save[t] : 0;
        }
        if (from + BATCH < last)
#pragma unroll
            for (int b = 0; b < BATCH; b++) load_row(next[b], a.x + (size_t)min(from + BATCH + b, last - 1) * a.C, a.C);
        row_stats<Q, TH, BATCH>(stats, now, a.C, a.inverse, room);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            int t = from + b;
            if (t >= last) break;
            if (OUTS > 0) normalise_row(now[b], stats[b], a.weight, a.bias, a.C);
            if (t >= first) {
                if (a.stats && threadIdx.x == 0) a.stats[t] = stats[b];
                if constexpr (OUTS > 0) {
                    if (prev[b] < 0) load_past(before, a, prev[b]);
#pragma unroll
                    for (int j = 0; j < OUTS; j++)
                        store_mix((In *)a.out[j] + (size_t)t * a.C, now[b], before, a.mix[j], a.C);
                    if (save[b] >= 0) store_row(now[b], a.slots + (size_t)save[b] * a.slot_stride, a.C);
                }
            }
            before = now[b];
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
    let_next_kernel_start();
    wait_for_kernels_before();
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
    int groups = pieces(C, 4 * OWNERS);
    if (groups <= 1) f.template run<1>();
    else if (groups <= 2) f.template run<2>();
    else if (groups <= 4) f.template run<4>();
    else f.template run<8>();
}

struct embed_launch {
    struct worker *w;
    struct embed_args args;
    template <int Q> void run() const {
        launch_early(overlaps(w), w->stream, embed_rows<Q>, dim3((unsigned)w->grid.T), OWNERS, 0, args);
    }
};

enum status cuda_embed(struct worker *w, const struct embed *a, struct error *e) {
    struct embed_args args = {
        w->meta.head,           w->meta.ids, a->table->data, w->dev->table_dtype,         vector_of(a->ln0.weight),
        vector_of(a->ln0.bias), a->x,        w->dev->dims.C, 1.0f / (float)w->dev->dims.C};
    for_columns(args.C, embed_launch{w, args});
    return LAUNCHED(w, "the embedding", e);
}

/* How many rows are walked where every group of columns is there: threads a row, walks a multiprocessor. */
template <int Q> struct many {
    static constexpr int threads = Q == 1 ? 64 : 128, walks = Q == 1 ? 8 : Q == 2 ? 4 : 3;
};

struct shift_launch {
    struct worker *w;
    struct shift_args args;
    int outs;
    template <typename In, int Q, int TH, int BATCH, int PER_SM> void run_as() const {
        unsigned blocks = (unsigned)pieces(w->grid.T, args.run);
        auto kernel = outs == 0   ? shift_rows<In, Q, 0, TH, BATCH, PER_SM>
                      : outs == 1 ? shift_rows<In, Q, 1, TH, BATCH, PER_SM>
                                  : shift_rows<In, Q, 2, TH, BATCH, PER_SM>;
        launch_early(overlaps(w), w->stream, kernel, dim3(blocks), TH, 0, args);
    }
    template <typename In, int Q> void run_as() const {
        constexpr int batch = Q < 8 ? 2 : 1, blocks = Q < 4 ? 3 : 1;
        bool walked = args.run > 1 && args.C == 4 * OWNERS * Q;
        if constexpr (Q < 8)
            if (walked) return run_as<In, Q, many<Q>::threads, 1, many<Q>::walks>();
        run_as<In, Q, OWNERS, batch, blocks>();
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
    args.inverse = 1.0f / (float)d->C;
    int walks = d->C <= 4 * OWNERS ? many<1>::walks : d->C <= 8 * OWNERS ? many<2>::walks : many<4>::walks;
    args.run = w->grid.T <= FEW * w->dev->sms ? 1 : pieces(w->grid.T, walks * w->dev->sms);
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
    launch_early(overlaps(w), w->stream, pool_rows, grid, POOL_THREADS, 0, args);
    return LAUNCHED(w, "pooling", e);
}
