/* Pooling: the rows of a layer, summed in order, a sequence at a time. */
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
    int skip = a.meta.skip[s], turn = a.meta.head[2];
    bool ends = before + last - first == total;
    size_t at = (size_t)a.column * a.C + c, side = (size_t)a.columns * a.C;
    float4 sum = before ? *(const float4 *)(a.carry + turn * side + at) : make_float4(0, 0, 0, 0), w = sum, b = sum;
    if (a.stats) {
        w = *(const float4 *)(a.weight + c);
        b = *(const float4 *)(a.bias + c);
    }
    int position = before - first - skip; /* of row 0, among the pooled rows of its sequence */
    total -= skip;
    if (skip > before) first += skip - before;
    if (a.pooling == POOL_LAST) first = last - 1;
    for (int t = first; t < last; t += AHEAD) {
        float4 x[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (t + i < last) x[i] = *(const float4 *)(a.x + (size_t)(t + i) * a.C + c);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (t + i >= last) break;
            if (a.stats) x[i] = normalise4(x[i], a.stats[t + i], w, b);
            sum = pool_one(a.pooling, sum, x[i], position + t + i);
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

enum status cuda_pool(struct worker *w, const struct pool *a, struct error *e) {
    if (w->pool_waits)
        CUDA_TRY(w->dev, cudaStreamWaitEvent(w->stream, w->flights[w->turn ^ 1].done, 0), "waiting for pooled rows", e);
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
    dim3 grid((unsigned)w->grid.S, (unsigned)pieces_of(args.C, 4 * POOL_THREADS));
    launch_early(overlaps(w), w->stream, pool_rows, grid, POOL_THREADS, 0, args);
    return LAUNCHED(w, "pooling", e);
}
