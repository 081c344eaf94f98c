/* Pooling: the rows of a layer, summed in order, a sequence at a time.
 *
 * pool_rows gives a thread four columns of a sequence. A long piece has too few such threads to keep memory busy: there
 * pool_long fetches rows far ahead, and a lane adds each column, in the same order. */
#include "rows/row.cuh"

enum { POOL_THREADS = 128, AHEAD = 8 };

struct pool_args {
    struct meta meta;
    const float *x;
    const float2 *stats; /* NULL: no norm */
    const float *weight, *bias;
    float *pooled, *carry; /* [S, columns, C], [2, columns, C] */
    int C, columns, column, pooling;
};

/* One number into its sum. `position` counts from 0 at the first pooled token of the whole sequence. */
static __device__ __forceinline__ float pool_one(int pooling, float sum, float x, int position) {
    switch (pooling) {
    case POOL_MEAN: return sum + x;
    case POOL_WEIGHTED: return __fmaf_rn((float)(position + 1), x, sum);
    case POOL_MAX: return position == 0 ? x : fmaxf(sum, x);
    default: return x;
    }
}
static __device__ __forceinline__ float4 pool_four(int pooling, float4 sum, float4 x, int position) {
    return make_float4(pool_one(pooling, sum.x, x.x, position), pool_one(pooling, sum.y, x.y, position),
                       pool_one(pooling, sum.z, x.z, position), pool_one(pooling, sum.w, x.w, position));
}

/* What of a piece is pooled: rows first .. last; `position` is that of row 0. */
struct pooled {
    int first, last, position, total;
    bool begins, ends; /* its sequence does */
};

static __device__ __forceinline__ struct pooled pooled_of(const struct pool_args &a, int s) {
    int first = a.meta.start[s], last = a.meta.start[s + 1], before = a.meta.before[s], total = a.meta.total[s];
    int skip = a.meta.skip[s];
    struct pooled p = {first, last, before - first - skip, total - skip, before == 0, before + last - first == total};
    if (skip > before) p.first += skip - before;
    if (a.pooling == POOL_LAST) p.first = last - 1;
    return p;
}

/* What the sums are divided by at the end; 0: nothing. */
static __device__ __forceinline__ float divisor(const struct pool_args &a, const struct pooled &p) {
    if (!p.ends || (a.pooling != POOL_MEAN && a.pooling != POOL_WEIGHTED)) return 0;
    double n = (double)p.total;
    return (float)(a.pooling == POOL_MEAN ? n : 0.5 * n * (n + 1.0));
}

/* Where the sums of a sequence go on from, and where they are left. */
static __device__ __forceinline__ const float *carried(const struct pool_args &a, int c) {
    return a.carry + ((size_t)a.meta.head[2] * a.columns + a.column) * a.C + c;
}
static __device__ __forceinline__ float *result(const struct pool_args &a, const struct pooled &p, int s, int c) {
    size_t at = (size_t)a.column * a.C + c, side = (size_t)a.columns * a.C;
    return (p.ends ? a.pooled + (size_t)s * side : a.carry + (1 - a.meta.head[2]) * side) + at;
}

/* A thread owns four columns of one sequence and adds its rows in order. The next eight rows are on their way meanwhile;
 * past the end the last is read again. Nothing is decided in the loop but how many of them count. */
template <int POOLING, bool NORMED>
static __device__ __forceinline__ float4 add_rows(float4 sum, const struct pool_args &a, const struct pooled &p,
                                                  int c) {
    const float *x = a.x + c;
    float4 w = {}, b = {}, next[AHEAD];
    if (NORMED) {
        w = *(const float4 *)(a.weight + c);
        b = *(const float4 *)(a.bias + c);
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++) next[i] = *(const float4 *)(x + (size_t)min(p.first + i, p.last - 1) * a.C);
    for (int t = p.first; t < p.last; t += AHEAD) {
        float4 now[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            now[i] = next[i];
            next[i] = *(const float4 *)(x + (size_t)min(t + AHEAD + i, p.last - 1) * a.C);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (t + i >= p.last) break;
            if (NORMED) now[i] = normalise4(now[i], a.stats[t + i], w, b);
            sum = pool_four(POOLING, sum, now[i], p.position + t + i);
        }
    }
    return sum;
}

template <bool NORMED>
static __device__ __forceinline__ float4 add_rows(float4 sum, const struct pool_args &a, const struct pooled &p,
                                                  int c) {
    switch (a.pooling) {
    case POOL_MEAN: return add_rows<POOL_MEAN, NORMED>(sum, a, p, c);
    case POOL_WEIGHTED: return add_rows<POOL_WEIGHTED, NORMED>(sum, a, p, c);
    case POOL_MAX: return add_rows<POOL_MAX, NORMED>(sum, a, p, c);
    default: return add_rows<POOL_LAST, NORMED>(sum, a, p, c);
    }
}

static __global__ void __launch_bounds__(POOL_THREADS) pool_rows(const struct pool_args a) {
    int s = blockIdx.x, c = 4 * (blockIdx.y * POOL_THREADS + threadIdx.x);
    let_next_kernel_start();
    wait_for_kernels_before();
    if (s >= a.meta.head[1] || c >= a.C || a.meta.start[s + 1] - a.meta.start[s] > LONG_PIECE) return;
    const struct pooled p = pooled_of(a, s);
    float4 sum = p.begins ? make_float4(0, 0, 0, 0) : *(const float4 *)carried(a, c);
    sum = a.stats ? add_rows<true>(sum, a, p, c) : add_rows<false>(sum, a, p, c);
    float weight = divisor(a, p);
    if (weight)
        sum = make_float4(__fdiv_rn(sum.x, weight), __fdiv_rn(sum.y, weight), __fdiv_rn(sum.z, weight),
                          __fdiv_rn(sum.w, weight));
    *(float4 *)result(a, p, s, c) = sum;
}

/* A block owns 16 columns of one long piece: all of it fetches, lanes of its first warp add. */
enum { STRIP = 16, STAGE = 128 /* rows */, STAGES = 5, SENDERS = STRIP / 4 /* a row */ };
struct strip {
    float x[STAGE][STRIP];
    float2 stats[STAGE];
};

static __device__ __forceinline__ void send_strip(struct strip *to, const struct pool_args &a, int from, int last,
                                                  int column) {
    int row = threadIdx.x / SENDERS, c = threadIdx.x % SENDERS * 4;
    bool inside = column + c < a.C;
#pragma unroll
    for (int i = 0; i < STAGE; i += POOL_THREADS / SENDERS, row += POOL_THREADS / SENDERS)
        copy_if<16>(&to->x[row][c], a.x + (size_t)(from + row) * a.C + column + c, inside && from + row < last);
    if (a.stats && threadIdx.x < STAGE)
        copy_if<8>(&to->stats[threadIdx.x], a.stats + from + threadIdx.x, from + (int)threadIdx.x < last);
}

/* Adds the rows of a stage, in order. Additions wait for each other alone: nothing is decided between them, and the next
 * rows are read meanwhile. */
template <int POOLING, bool NORMED>
static __device__ __forceinline__ float add_strip(float sum, const struct strip &m, int count, int position, float w,
                                                  float b) {
    int lane = threadIdx.x % STRIP, i = 0;
    float next[2 * AHEAD];
#pragma unroll
    for (int j = 0; j < 2 * AHEAD; j++) next[j] = m.x[j][lane];
    for (; i + 2 * AHEAD <= count; i += 2 * AHEAD) {
        float x[2 * AHEAD];
#pragma unroll
        for (int j = 0; j < 2 * AHEAD; j++) {
            x[j] = next[j];
            next[j] = m.x[min(i + 2 * AHEAD + j, STAGE - 1)][lane];
            if (NORMED) x[j] = normalise(x[j], m.stats[i + j].x, m.stats[i + j].y, w, b);
        }
#pragma unroll
        for (int j = 0; j < 2 * AHEAD; j++) sum = pool_one(POOLING, sum, x[j], position + i + j);
    }
    for (; i < count; i++) {
        float x = m.x[i][lane];
        if (NORMED) x = normalise(x, m.stats[i].x, m.stats[i].y, w, b);
        sum = pool_one(POOLING, sum, x, position + i);
    }
    return sum;
}

template <bool NORMED>
static __device__ __forceinline__ float add_strip(int pooling, float sum, const struct strip &m, int count,
                                                  int position, float w, float b) {
    switch (pooling) {
    case POOL_MEAN: return add_strip<POOL_MEAN, NORMED>(sum, m, count, position, w, b);
    case POOL_WEIGHTED: return add_strip<POOL_WEIGHTED, NORMED>(sum, m, count, position, w, b);
    case POOL_MAX: return add_strip<POOL_MAX, NORMED>(sum, m, count, position, w, b);
    default: return add_strip<POOL_LAST, NORMED>(sum, m, count, position, w, b);
    }
}

static __global__ void __launch_bounds__(POOL_THREADS) pool_long(const struct pool_args a) {
    __shared__ __align__(16) struct strip ring[STAGES];
    int s = a.meta.long_pieces[blockIdx.x].number, column = (int)blockIdx.y * STRIP + (int)threadIdx.x % STRIP;
    const struct pooled p = pooled_of(a, s);
    const bool adds = threadIdx.x < STRIP && column < a.C;
    float sum = p.begins || !adds ? 0 : *carried(a, column), w = 1, b = 0;
    if (a.stats && adds) w = a.weight[column], b = a.bias[column];
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        send_strip(&ring[i], a, p.first + i * STAGE, p.last, blockIdx.y * STRIP);
        copies_commit();
    }
    for (int t = p.first, slot = 0; t < p.last; t += STAGE, slot = slot + 1 < STAGES ? slot + 1 : 0) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        send_strip(&ring[slot ? slot - 1 : STAGES - 1], a, t + (STAGES - 1) * STAGE, p.last, blockIdx.y * STRIP);
        copies_commit();
        if (!adds) continue;
        const int count = min(STAGE, p.last - t), position = p.position + t;
        sum = a.stats ? add_strip<true>(a.pooling, sum, ring[slot], count, position, w, b)
                      : add_strip<false>(a.pooling, sum, ring[slot], count, position, w, b);
    }
    float weight = divisor(a, p);
    if (weight) sum = __fdiv_rn(sum, weight);
    if (adds) *result(a, p, s, column) = sum;
}

enum status cuda_pool(struct worker *w, const struct pool *a, struct error *e) {
    if (w->pool_waits)
        CUDA_TRY(w->dev, cudaStreamWaitEvent(w->stream, w->flights[w->side ^ 1].done, 0), "waiting for pooled rows", e);
    w->pool_waits = false;
    struct pool_args args = {};
    args.meta = w->meta;
    args.x = a->x;
    if (a->ln) {
        struct shift norm = {};
        norm.x = a->x;
        norm.ln = *a->ln;
        TRY(shift_with_stats(w, &norm, e));
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
    if (w->grid.long_pieces) {
        dim3 strips((unsigned)w->grid.long_pieces, (unsigned)pieces_of(args.C, STRIP));
        launch_early(false, w->stream, pool_long, strips, POOL_THREADS, 0, args);
    }
    if (w->grid.long_pieces == w->pass.S) return LAUNCHED(w, "pooling", e);
    dim3 grid((unsigned)w->grid.S, (unsigned)pieces_of(args.C, 4 * POOL_THREADS));
    launch_early(overlaps(w), w->stream, pool_rows, grid, POOL_THREADS, 0, args);
    return LAUNCHED(w, "pooling", e);
}
