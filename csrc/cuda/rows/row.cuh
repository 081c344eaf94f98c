/* A row of the stream, dealt to the threads of a block: loading, storing, its mean and deviation.
 *
 * A row's sums run in one order fixed by C alone: of 256 columns' owners, four neighbours each, every one adds its own, a
 * butterfly adds 32 of them, eight such sums are added in turn. Few rows have 256 threads each. Many rows have fewer
 * threads each, which stand for several of the 256: what a row costs a thread beyond its columns is what bounds the
 * pass. */
#ifndef RWKVSTS_CUDA_ROW_CUH
#define RWKVSTS_CUDA_ROW_CUH

#include "elements.cuh"
#include "launch.cuh"

enum { OWNERS = 256, SUMS = OWNERS / 32 };

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

/* Calls f.run<Q>() for the number of column groups that C takes. */
template <typename F> static void for_columns(int C, F f) {
    int groups = pieces_of(C, 4 * OWNERS);
    if (groups <= 1) f.template run<1>();
    else if (groups <= 2) f.template run<2>();
    else if (groups <= 4) f.template run<4>();
    else f.template run<8>();
}

#endif
