/* Low ranks up: the five lerps of the token shift, and the decay, where lerp.cu and chunk.cu do not take them.
 *
 * Down by a product that leaves its sums in float32; up here, where tanh is applied as the sums are read.
 * A warp owns 16 rows and walks over columns, 16 at a time: the rows' fragments stay in registers, a column's weights
 * come once in the order of the fragments, and what follows the product is applied to the sums as they stand. Columns are
 * dealt so that a lane ends with four neighbours: whole sectors are read and written. */
#include "elements.cuh"
#include "launch.cuh"
#include "rwkv6/rwkv6.h"

enum { THREADS = 128, WARPS = THREADS / 32, LERPS = MIXES6 };

struct walk_args : up_args {
    int chunk; /* columns a warp walks over */
};

/* What the five mixes of one row and four columns need. */
struct lerp_row {
    float4 a, before;
};

static __device__ __forceinline__ struct lerp_row load_lerp(const struct walk_args &a, int t, int prev, int c, float4 w,
                                                            float4 b) {
    /* Loads first, then what they mean: both rows are on their way before either is waited for. */
    const float *there = prev >= 0         ? a.x + (size_t)prev * a.C
                         : prev == NO_PAST ? a.x
                                           : a.slots + (size_t)(FROM_SLOT - prev) * a.slot_stride;
    float4 now = *(const float4 *)(a.x + (size_t)t * a.C + c), before = *(const float4 *)(there + c);
    float2 stats = a.stats[t], stats_before = a.stats[max(prev, 0)];
    struct lerp_row r = {normalise4(now, stats, w, b), before};
    if (prev >= 0) r.before = normalise4(before, stats_before, w, b);
    else if (prev == NO_PAST) r.before = make_float4(0, 0, 0, 0);
    return r;
}

template <typename In>
static __device__ __forceinline__ void store_lerp(const struct walk_args &a, const struct lerp_row &r, int j, int t,
                                                  int c, float4 mix) {
    store4((In *)a.mixed[j] + (size_t)t * a.C + c,
           make_float4(lerp(r.a.x, r.before.x, mix.x), lerp(r.a.y, r.before.y, mix.y), lerp(r.a.z, r.before.z, mix.z),
                       lerp(r.a.w, r.before.w, mix.w)));
}

static __device__ __forceinline__ void store_decay(const struct walk_args &a, int t, int c, float4 d) {
    *(float4 *)(a.decay + (size_t)t * a.C + c) = d;
}

/* Fragments of a row block of tanh(low), for one group: [K/16][4]. */
template <typename In, int STEPS>
static __device__ __forceinline__ void load_low(uint32_t f[STEPS][4], const struct walk_args &a, int row, int group,
                                                int stride, int T) {
    int lane = threadIdx.x % 32;
    float low[STEPS][4][2];
    /* No branch around a load: eighty of them one after the other cost 200 us a pass. */
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int t = min(row + lane / 4 + 8 * (i / 2 & 1), T - 1),
                k = min(s * 16 + lane % 4 * 2 + 8 * (i / 4) + i % 2, a.k - 1);
            low[s][i / 2][i % 2] = a.low[(size_t)t * stride + group * a.k + k];
        }
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) { /* what stands past k meets weights of zero */
            f[s][i] = pack2<In>(tanh_fast(low[s][i][0]), tanh_fast(low[s][i][1]));
        }
}

/* Sums of 16 rows and 16 columns, begun with what they are added to: out[h] is row lane/4 + 8 h, columns 4 (lane%4) .. + 3
 * of the 16. Column n of a fragment stands for 4 (n/2) + n%2, and in its twin for the one two further; pack.cu lays the
 * weights out so. */
template <typename In, int STEPS>
static __device__ __forceinline__ void multiply16(float4 out[2], const uint32_t f[STEPS][4], const uint4 w[STEPS],
                                                  float4 base) {
    float even[4] = {base.x, base.y, base.x, base.y}, odd[4] = {base.z, base.w, base.z, base.w};
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        uint32_t first[2] = {w[s].x, w[s].y}, second[2] = {w[s].z, w[s].w};
        mma16816<In>(even, f[s], first);
        mma16816<In>(odd, f[s], second);
    }
    out[0] = make_float4(even[0], even[1], odd[0], odd[1]);
    out[1] = make_float4(even[2], even[3], odd[2], odd[3]);
}

/* What a warp reads for 16 columns, all of it asked for at once: asked for in turn, the waits added up to 200 us. */
template <int GROUPS, int STEPS> struct columns16 {
    uint4 w[GROUPS][STEPS];
    float4 base[GROUPS];
};

template <typename In, int GROUPS, int STEPS>
static __device__ __forceinline__ void load_columns(struct columns16<GROUPS, STEPS> *in, const struct walk_args &a,
                                                    int column, int c) {
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const uint4 *w = (const uint4 *)((const In *)a.w + ((size_t)g * a.C + column) * STEPS * 16) + threadIdx.x % 32;
#pragma unroll
        for (int s = 0; s < STEPS; s++) in->w[g][s] = __ldg(w + s * 32);
        in->base[g] = __ldg((const float4 *)((GROUPS == 1 ? a.time_decay : a.maa[g]) + c));
    }
}

template <typename In, int STEPS, bool DECAY>
static __global__ void __launch_bounds__(THREADS, STEPS > 2 ? 2 : 3) up_rows(const struct walk_args a) {
    constexpr int GROUPS = DECAY ? 1 : LERPS;
    let_next_kernel_start();
    wait_for_kernels_before();
    int T = a.meta.head[0], lane = threadIdx.x % 32, row = ((int)blockIdx.x * WARPS + (int)threadIdx.x / 32) * 16;
    if (row >= T) return;
    uint32_t f[GROUPS][STEPS][4];
#pragma unroll
    for (int g = 0; g < GROUPS; g++) load_low<In, STEPS>(f[g], a, row, g, GROUPS * a.k, T);
    int t[2] = {row + lane / 4, row + lane / 4 + 8}, prev[2];
#pragma unroll
    for (int h = 0; h < 2; h++) prev[h] = a.meta.prev[min(t[h], T - 1)];
    int first = blockIdx.y * a.chunk, last = min(first + a.chunk, a.C);
    for (int column = first; column < last; column += 16) {
        int c = column + lane % 4 * 4;
        struct lerp_row r[2];
        struct columns16<GROUPS, STEPS> in;
        load_columns<In>(&in, a, column, c);
        if constexpr (!DECAY) {
            if (column + 32 < last) /* a line further: memory answers while this one is worked on */
                for (int h = 0; h < 2; h++) prefetch_line(a.x + (size_t)min(t[h], T - 1) * a.C + c + 32);
            float4 weight = __ldg((const float4 *)(a.weight + c)), bias = __ldg((const float4 *)(a.bias + c));
#pragma unroll
            for (int h = 0; h < 2; h++) r[h] = load_lerp(a, min(t[h], T - 1), prev[h], c, weight, bias);
        }
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            float4 sum[2];
            multiply16<In, STEPS>(sum, f[g], in.w[g], in.base[g]);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (t[h] >= T) continue;
                if constexpr (DECAY) store_decay(a, t[h], c, sum[h]);
                else store_lerp<In>(a, r[h], g, t[h], c, sum[h]);
            }
        }
    }
}

/* The same in plain float32, a block a row: for checking. */
template <bool DECAY> static __global__ void __launch_bounds__(THREADS) up_rows_plain(const struct walk_args a) {
    constexpr int GROUPS = DECAY ? 1 : LERPS;
    __shared__ float z[LERPS * MOST_DECAY_RANK];
    int t = blockIdx.x;
    if (t >= a.meta.head[0]) return;
    for (int i = threadIdx.x; i < GROUPS * a.k; i += THREADS) z[i] = tanhf(a.low[(size_t)t * GROUPS * a.k + i]);
    __syncthreads();
    for (int c = 4 * threadIdx.x; c < a.C; c += 4 * THREADS) {
        struct lerp_row r;
        if constexpr (!DECAY)
            r = load_lerp(a, t, a.meta.prev[t], c, *(const float4 *)(a.weight + c), *(const float4 *)(a.bias + c));
        for (int g = 0; g < GROUPS; g++) {
            float4 base = *(const float4 *)((DECAY ? a.time_decay : a.maa[g]) + c);
            float m[4] = {base.x, base.y, base.z, base.w};
            const float *w = (const float *)a.w + ((size_t)g * a.C + c) * a.K;
            for (int k = 0; k < a.k; k++)
                for (int i = 0; i < 4; i++) m[i] = __fmaf_rn(z[g * a.k + k], w[(size_t)i * a.K + k], m[i]);
            float4 sum = make_float4(m[0], m[1], m[2], m[3]);
            if constexpr (DECAY) store_decay(a, t, c, sum);
            else store_lerp<float>(a, r, g, t, c, sum);
        }
    }
}

/* ---- running ------------------------------------------------------------------------------------------------------ */

template <typename In, bool DECAY> static void launch(const struct worker *w, const struct walk_args &a) {
    dim3 grid((unsigned)pieces_of(w->grid.T, 16 * WARPS), (unsigned)pieces_of(a.C, a.chunk));
    auto kernel = up_rows<In, 1, DECAY>;
    switch (a.K) {
    case 16: break;
    case 32: kernel = up_rows<In, 2, DECAY>; break;
    case 64: kernel = up_rows<In, 4, DECAY>; break;
    default:
        if constexpr (DECAY) kernel = up_rows<In, 8, DECAY>;
    }
    launch_early(overlaps(w), w->stream, kernel, grid, THREADS, 0, a);
}

template <bool DECAY> static enum status up(struct worker *w, const struct up_args *a, struct error *e) {
    /* Long walks load the rows' fragments once; few rows want many warps. */
    struct walk_args args = {*a, 16};
    while (args.chunk < 512 &&
           pieces_of(w->grid.T, 16) * pieces_of(a->C, args.chunk) > 32 * w->dev->gpu.multiprocessors)
        args.chunk *= 2;
    if (w->dev->in == F32) up_rows_plain<DECAY><<<(unsigned)w->grid.T, THREADS, 0, w->stream>>>(args);
    else if (w->dev->in == BF16) launch<bf16, DECAY>(w, args);
    else launch<half_t, DECAY>(w, args);
    return LAUNCHED(w, DECAY ? "the decay" : "the lerps", e);
}

void up_weight(const struct worker *w, const struct weight *weight, struct up_args *args) {
    args->meta = w->meta;
    args->w = weight->data;
    args->k = weight->k;
    args->K = (int)(weight->bytes / dtype_bytes(w->dev->in) / (size_t)weight->g / (size_t)weight->n);
    args->C = w->dev->dims.C;
}

enum status up_lerps(struct worker *w, const struct up_args *a, struct error *e) {
    return up<false>(w, a, e);
}

enum status up_decay(struct worker *w, const struct up_args *a, struct error *e) {
    return up<true>(w, a, e);
}
