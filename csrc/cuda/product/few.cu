/* Products of few rows, Ampere and newer: weights stream once through many small blocks.
 *
 * A block owns 64 rows and 16 or 64 outputs and walks all of k in one chain of tensor-core products, ascending, as
 * cublasLt's algorithms do; choose.cu compares the two on the device at hand before this is used. With few
 * rows the time is that of reading the weights and, from the second-level cache, the rows once per block: so as many
 * blocks as there are processors, and a deep pipeline of asynchronous copies. Epilogues are fused. */
#include "product/epilogue.cuh"

enum { ROWS = 64 }; /* a block */

/* One way to cut the work: outputs a block, groups of four warps that share them, k a stage, stages. Four more warps do
 * nothing but copy: a multiplying warp has its scheduler to itself, and nothing would hide the copies' arithmetic. */
template <int OUTPUTS_, int SIDES_, int STEP_, int STAGES_> struct cut {
    static constexpr int OUTPUTS = OUTPUTS_, STEP = STEP_, STAGES = STAGES_;
    static constexpr int MULTIPLIERS = 128 * SIDES_, COPIERS = 128, THREADS = MULTIPLIERS + COPIERS;
    static constexpr int MINE = OUTPUTS / SIDES_;         /* outputs a warp */
    static constexpr int CHUNKS = STEP / 8;               /* of 16 bytes, in a row of a stage */
    static constexpr int STAGE = (ROWS + OUTPUTS) * STEP; /* elements */
};

struct few_args {
    struct product p[MOST_PRODUCTS];
    int first[MOST_PRODUCTS + 1]; /* block that a product begins at */
    int count;
    const int *T;
};

/* Chunks of a row lie permuted by the row, so that eight rows of one chunk meet different banks. */
template <typename Cut> __device__ __forceinline__ int permuted(int row, int chunk) {
    return (row * Cut::CHUNKS + (chunk ^ (row & 7))) * 8;
}

/* Four 8x8 matrices: rows r .. r+15 by chunks c, c+1 of a tile. Order: (r, c), (r+8, c), (r, c+1), (r+8, c+1). */
template <typename Cut, typename E>
__device__ __forceinline__ void load_fragment(uint32_t f[4], const E *tile, int row, int chunk) {
    int lane = threadIdx.x & 31;
    load_matrices(f, shared_address(tile + permuted<Cut>(row + (lane & 15), chunk + (lane >> 4))));
}

/* What a thread copies of every stage: the same chunk of every RUN-th row. */
template <typename Cut> struct loader {
    static constexpr int RUN = Cut::COPIERS / Cut::CHUNKS, INS = ROWS / RUN, WEIGHTS = Cut::OUTPUTS / RUN;
    static_assert(RUN % 8 == 0 && INS * RUN == ROWS && WEIGHTS * RUN == Cut::OUTPUTS, "whole runs, one permutation");
    const char *in, *w;
    size_t stride; /* bytes of RUN rows */
    unsigned there;
    int to;

    template <typename E> __device__ __forceinline__ void open(const struct product &p, int row, int output, int T) {
        int thread = (int)threadIdx.x - Cut::MULTIPLIERS, r = thread / Cut::CHUNKS, c = thread % Cut::CHUNKS;
        to = permuted<Cut>(r, c);
        stride = (size_t)RUN * p.k * sizeof(E);
        in = (const char *)p.in + ((size_t)(row + r) * p.k + c * 8) * sizeof(E);
        w = (const char *)p.w + ((size_t)(output + r) * p.k + c * 8) * sizeof(E);
        there = 0;
        for (int i = 0; i < INS; i++) there |= (unsigned)(row + r + i * RUN < T) << i;
        for (int i = 0; i < WEIGHTS; i++) there |= (unsigned)(output + r + i * RUN < p.n) << (INS + i);
    }

    template <typename E> __device__ __forceinline__ void next(E *stage) {
#pragma unroll
        for (int i = 0; i < INS; i++)
            stream16_or_zeros(shared_address(stage + to + i * RUN * Cut::STEP), in + i * stride, there >> i & 1);
        stage += ROWS * Cut::STEP;
#pragma unroll
        for (int i = 0; i < WEIGHTS; i++)
            stream16_or_zeros(shared_address(stage + to + i * RUN * Cut::STEP), w + i * stride, there >> (INS + i) & 1);
        in += Cut::STEP * sizeof(E);
        w += Cut::STEP * sizeof(E);
    }
};

/* The fragments of 16 k for one warp: its 16 rows, its outputs. */
template <typename Cut> struct fragments {
    uint32_t a[4], b[Cut::MINE / 16][4];
    template <typename E> __device__ __forceinline__ void load(const E *tile, int row, int side, int k) {
        load_fragment<Cut>(a, tile, row, 2 * k);
#pragma unroll
        for (int n = 0; n < Cut::MINE / 16; n++)
            load_fragment<Cut>(b[n], tile + ROWS * Cut::STEP, side + n * 16, 2 * k);
    }
    template <typename E> __device__ __forceinline__ void multiply(float sum[][4]) const {
#pragma unroll
        for (int n = 0; n < Cut::MINE / 16; n++) {
            uint32_t low[2] = {b[n][0], b[n][2]}, high[2] = {b[n][1], b[n][3]};
            mma16816<E>(sum[2 * n], a, low);
            mma16816<E>(sum[2 * n + 1], a, high);
        }
    }
};

/* One stage; the next fragments are under way while these are multiplied. */
template <typename Cut, typename E>
static __device__ __forceinline__ void multiply_stage(float sum[][4], const E *tile, int row, int side) {
    fragments<Cut> f[2];
    f[0].load(tile, row, side, 0);
#pragma unroll
    for (int k = 0; k < Cut::STEP / 16; k++) {
        if (k + 1 < Cut::STEP / 16) f[(k + 1) & 1].load(tile, row, side, k + 1);
        f[k & 1].template multiply<E>(sum);
    }
}

/* The copiers' way through the stages; they meet the multipliers once a stage, in another place of the code. A stage is filled again once the barrier
 * after its use is passed. */
template <typename Cut, typename E>
static __device__ __forceinline__ void copy_stages(E *stages, const struct product &p, int row, int output, int T,
                                                   int steps) {
    struct loader<Cut> loader;
    loader.template open<E>(p, row, output, T);
#pragma unroll
    for (int s = 0; s < Cut::STAGES - 1; s++) {
        if (s < steps) loader.next(stages + s * Cut::STAGE);
        copies_commit();
    }
    for (int s = 0; s < steps; s++) {
        copies_wait<Cut::STAGES - 2>();
        meet_anywhere<Cut::THREADS>();
        int next = s + Cut::STAGES - 1;
        if (next < steps) loader.next(stages + next % Cut::STAGES * Cut::STAGE);
        copies_commit();
    }
}

template <typename In, typename Out, typename Cut>
static __global__ void __launch_bounds__(Cut::THREADS) few_rows(const struct few_args args) {
#if AMPERE_CODE
    extern __shared__ __align__(128) unsigned char shared[];
    constexpr int STAGES = Cut::STAGES;
    In *stages = (In *)shared;
    int which = 0, T = *args.T, row = blockIdx.y * ROWS;
    while (which + 1 < args.count && (int)blockIdx.x >= args.first[which + 1]) which++;
    const struct product p = args.p[which];
    int output = ((int)blockIdx.x - args.first[which]) * Cut::OUTPUTS, steps = p.k / Cut::STEP;
    if (row >= T) return;
    if ((int)threadIdx.x >= Cut::MULTIPLIERS) {
        copy_stages<Cut>(stages, p, row, output, T, steps);
        return;
    }
    float sum[Cut::MINE / 8][4] = {};
    int warp = threadIdx.x / 32 % 4 * 16, side = threadIdx.x / 128 * Cut::MINE, lane = threadIdx.x % 32;
    for (int s = 0; s < steps; s++) {
        meet_anywhere<Cut::THREADS>();
        multiply_stage<Cut>(sum, stages + s % STAGES * Cut::STAGE, warp, side);
    }
    struct addends to[Cut::MINE / 8][2];
    row += warp + lane / 4;
    output += side + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < Cut::MINE / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) to[n][half] = load_addends<Out>(p, row + 8 * half, output + n * 8, T);
#pragma unroll
    for (int n = 0; n < Cut::MINE / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            finish<In, Out>(p, row + 8 * half, output + n * 8, T, sum[n][2 * half], sum[n][2 * half + 1], to[n][half]);
#endif
}

/* ---- launching ------------------------------------------------------------------------------------------------------ */

template <typename In, typename Out, typename Cut>
static cudaError_t launch(const struct queue *q, struct few_args args) {
    constexpr int bytes = Cut::STAGES * Cut::STAGE * 2;
    auto kernel = few_rows<In, Out, Cut>;
    int blocks = 0;
    for (int i = 0; i < args.count; i++) {
        args.first[i] = blocks;
        blocks += pieces_of(args.p[i].n, Cut::OUTPUTS);
    }
    cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (status != cudaSuccess) return status;
    dim3 grid((unsigned)blocks, (unsigned)pieces_of(q->rows, ROWS));
    kernel<<<grid, Cut::THREADS, bytes, q->stream>>>(args);
    return cudaGetLastError();
}

/* Narrow blocks where wide ones would leave processors idle. */
template <typename In, typename Out>
static cudaError_t launch_widths(const struct queue *q, const struct few_args &args) {
    int outputs = 0;
    bool even = true;
    for (int i = 0; i < args.count; i++) {
        outputs += args.p[i].n;
        even = even && args.p[i].k % (2 * STEP_INPUTS) == 0;
    }
    bool narrow = outputs <= 16 * 2 * q->dev->gpu.multiprocessors;
    if (narrow && even) return launch<In, Out, cut<16, 1, 128, 4>>(q, args);
    if (narrow) return launch<In, Out, cut<16, 1, 64, 9>>(q, args);
    return launch<In, Out, cut<64, 2, 64, 6>>(q, args);
}

cudaError_t few_run(const struct queue *q, const struct product *p, int count) {
    struct few_args args = {};
    for (int i = 0; i < count; i++) args.p[i] = p[i];
    args.count = count;
    args.T = q->T;
    return q->dev->in == BF16 ? launch_widths<bf16, bf16>(q, args) : launch_widths<half_t, float>(q, args);
}
