/* Products of few rows on Hopper: weights stream through, whatever the kernel in front is still doing.
 *
 * A block owns 64 rows and some outputs and walks all of k in one chain of tensor-core products, ascending, as few.cu
 * does and with its bits. Tensor maps bring whole tiles, one copy each, into a ring as deep as shared memory. With few rows
 * the time is that of reading the weights once and, from the second-level cache, the rows once a block: so rows that no
 * pass has are not read, and weights, which depend on no kernel, are asked for before the kernel in front has ended; what
 * has no room in the ring is called into the cache meanwhile. */
#include "launch.cuh"
#include "product/epilogue.cuh"
#include "product/tensor_map.h"

enum { TOKENS = 64, ATOM = 64 /* inputs in a box */, ATOM_BYTES = 2 * ATOM, MULTIPLIERS = 128 };

struct stream_args {
    CUtensorMap w[MOST_PRODUCTS], in[MOST_PRODUCTS];
    struct product p[MOST_PRODUCTS];
    int first[MOST_PRODUCTS + 1]; /* block that a product begins at */
    int count, in_rows;           /* rows of a tile that are read */
    const int *T;
};

/* One way to cut the work: outputs a block, boxes of inputs a stage, stages. */
template <int N_, int BOXES_, int STAGES_> struct stream_cut {
    static constexpr int N = N_, BOXES = BOXES_, STAGES = STAGES_, THREADS = MULTIPLIERS + 64;
    static constexpr int W_BYTES = N * BOXES * ATOM_BYTES, IN_BYTES = TOKENS * BOXES * ATOM_BYTES;
    static constexpr int BYTES = 1024 + STAGES * (W_BYTES + IN_BYTES + 3 * 8);
};

#if HOPPER_CODE

/* Rows come first: a tile of fewer rows than the multiplication reads is followed by something. */
template <typename Cut> struct stream_room {
    uint32_t rows, weights, barriers;
    __device__ __forceinline__ stream_room(const unsigned char *shared)
        : rows((shared_address(shared) + 1023) / 1024 * 1024), weights(rows + Cut::STAGES * Cut::IN_BYTES),
          barriers(weights + Cut::STAGES * Cut::W_BYTES) {
    }
    __device__ __forceinline__ uint32_t in(int slot) const {
        return rows + slot * Cut::IN_BYTES;
    }
    __device__ __forceinline__ uint32_t w(int slot) const {
        return weights + slot * Cut::W_BYTES;
    }
    __device__ __forceinline__ uint32_t w_full(int slot) const {
        return barriers + slot * 8;
    }
    __device__ __forceinline__ uint32_t in_full(int slot) const {
        return barriers + (Cut::STAGES + slot) * 8;
    }
    __device__ __forceinline__ uint32_t empty(int slot) const {
        return barriers + (2 * Cut::STAGES + slot) * 8;
    }
};

/* Where in the ring a step lies, and the phase of its barriers. */
template <typename Cut> struct stream_at {
    int slot = 0;
    unsigned phase = 0;
    __device__ __forceinline__ void next(void) {
        if (++slot == Cut::STAGES) slot = 0, phase ^= 1;
    }
};

template <typename Cut>
static __device__ __forceinline__ void stream_weight(const stream_room<Cut> &room, const CUtensorMap *map, int output,
                                                     int step, int slot) {
    barrier_expect(room.w_full(slot), Cut::W_BYTES);
    copy_box(room.w(slot), map, 0, output, step * Cut::BOXES, room.w_full(slot));
}

template <typename Cut>
static __device__ __forceinline__ void stream_weights(const stream_room<Cut> &room, const CUtensorMap *map, int output,
                                                      int steps) {
    for (int s = Cut::STAGES; s < steps && !barrier_over(room.in_full(0), 0); s++)
        prefetch_box(map, 0, output, s * Cut::BOXES); /* until there are rows to multiply with */
    stream_at<Cut> at;
    for (int s = Cut::STAGES; s < steps; s++, at.next()) {
        barrier_wait(room.empty(at.slot), at.phase);
        stream_weight<Cut>(room, map, output, s, at.slot);
    }
}

template <typename Cut>
static __device__ __forceinline__ void stream_rows(const stream_room<Cut> &room, const CUtensorMap *map, int row,
                                                   int rows, int steps) {
    stream_at<Cut> at;
    for (int s = 0; s < steps; s++, at.next()) {
        if (s >= Cut::STAGES) barrier_wait(room.empty(at.slot), at.phase ^ 1);
        barrier_expect(room.in_full(at.slot), rows * Cut::BOXES * ATOM_BYTES);
        copy_box(room.in(at.slot), map, 0, row, s * Cut::BOXES, room.in_full(at.slot));
    }
}

/* Boxes past the end of k hold zeros. */
template <typename Cut>
static __device__ __forceinline__ void stream_multiply(float *sum, const stream_room<Cut> &room, int rows, int steps) {
    stream_at<Cut> at;
    int before = 0;
    for (int s = 0; s < steps; s++) {
        uint64_t w = tile_descriptor(room.w(at.slot));
        uint64_t in = tile_descriptor(room.in(at.slot));
        barrier_wait(room.w_full(at.slot), at.phase);
        barrier_wait(room.in_full(at.slot), at.phase);
        wgmma_fence();
#pragma unroll
        for (int box = 0; box < Cut::BOXES; box++)
#pragma unroll
            for (int k = 0; k < ATOM / 16; k++)
                wgmma64<Cut::N>(sum, in + (box * rows * ATOM_BYTES + k * 32) / 16,
                                w + (box * Cut::N * ATOM_BYTES + k * 32) / 16, false);
        wgmma_commit();
        wgmma_wait<1>();
        if (s && threadIdx.x % 32 == 0) barrier_arrive(room.empty(before));
        before = at.slot;
        at.next();
    }
    wgmma_wait<0>();
}

#endif

template <typename Cut>
static __global__ void __launch_bounds__(Cut::THREADS, 1) stream_product(const __grid_constant__ struct stream_args a) {
#if HOPPER_CODE
    extern __shared__ __align__(128) unsigned char shared[];
    stream_room<Cut> room(shared);
    let_next_kernel_start();
    int which = 0, row = blockIdx.y * TOKENS, warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    while (which + 1 < a.count && (int)blockIdx.x >= a.first[which + 1]) which++;
    const struct product &p = a.p[which];
    int output = ((int)blockIdx.x - a.first[which]) * Cut::N, steps = (p.k / ATOM + Cut::BOXES - 1) / Cut::BOXES;
    if (threadIdx.x == MULTIPLIERS) {
        for (int i = 0; i < Cut::STAGES; i++) {
            barrier_init(room.w_full(i), 1);
            barrier_init(room.in_full(i), 1);
            barrier_init(room.empty(i), MULTIPLIERS / 32);
        }
        barriers_publish();
        for (int s = 0; s < min(steps, Cut::STAGES); s++) stream_weight<Cut>(room, &a.w[which], output, s, s);
    }
    __syncthreads();
    if (warp == MULTIPLIERS / 32) {
        if (lane == 0) stream_weights<Cut>(room, &a.w[which], output, steps);
    } else if (warp > MULTIPLIERS / 32) {
        if (lane == 0) {
            fetch_map(&a.in[which]);
            wait_for_kernels_before();
            stream_rows<Cut>(room, &a.in[which], row, a.in_rows, steps);
        }
    } else {
        constexpr int PAIRS = Cut::N / 4, AHEAD = 4; /* pairs loaded before they are finished */
        float sum[2 * PAIRS] = {};
        struct addends to[AHEAD];
        row += warp * 16 + lane / 4;
        output += lane % 4 * 2;
        wait_for_kernels_before();
        int T = *a.T;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) to[i] = load_addends<bf16>(p, row + i % 2 * 8, output + i / 2 * 8, T);
        stream_multiply<Cut>(sum, room, a.in_rows, steps);
#pragma unroll
        for (int n = 0; n < PAIRS; n += AHEAD) {
#pragma unroll
            for (int i = n; i < n + AHEAD; i++)
                finish<bf16, bf16>(p, row + i % 2 * 8, output + i / 2 * 8, T, sum[2 * i], sum[2 * i + 1], to[i - n]);
#pragma unroll
            for (int i = n + AHEAD; i < min(n + 2 * AHEAD, PAIRS); i++)
                to[i - n - AHEAD] = load_addends<bf16>(p, row + i % 2 * 8, output + i / 2 * 8, T);
        }
    }
#endif
}

/* ---- the host's side -------------------------------------------------------------------------------------------------- */

/* A matrix [rows, k] seen as [k / 64, rows, 64], in boxes of `boxes` by `box_rows`. */
static bool encode(const struct device *dev, CUtensorMap *map, const void *p, int rows, int k, int box_rows,
                   int boxes) {
    const cuuint64_t sizes[] = {ATOM, (cuuint64_t)rows, (cuuint64_t)k / ATOM};
    const cuuint64_t strides[] = {(cuuint64_t)k * 2, ATOM_BYTES};
    const cuuint32_t box[] = {ATOM, (cuuint32_t)box_rows, (cuuint32_t)boxes};
    return tensor_map_encode(dev->encode, map, p, 3, sizes, strides, box);
}

template <typename Cut> static cudaError_t launch(const struct queue *q, const struct product *p, int count) {
    struct stream_args a = {};
    auto kernel = stream_product<Cut>;
    int blocks = 0;
    a.count = count;
    a.T = q->T;
    a.in_rows = q->rows < TOKENS ? pieces_of(q->rows, 8) * 8 : TOKENS;
    for (int i = 0; i < count; i++) {
        a.p[i] = p[i];
        a.first[i] = blocks;
        blocks += pieces_of(p[i].n, Cut::N);
        if (!encode(q->dev, &a.w[i], p[i].w, p[i].n, p[i].k, Cut::N, Cut::BOXES) ||
            !encode(q->dev, &a.in[i], p[i].in, q->rows, p[i].k, a.in_rows, Cut::BOXES))
            return cudaErrorInvalidValue;
    }
    cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Cut::BYTES);
    if (status != cudaSuccess) return status;
    return launch_early(q->early, q->stream, kernel, dim3((unsigned)blocks, (unsigned)pieces_of(q->rows, TOKENS)),
                        Cut::THREADS, Cut::BYTES, a);
}

static int blocks_of(const struct product *p, int count, int outputs) {
    int blocks = 0;
    for (int i = 0; i < count; i++) blocks += pieces_of(p[i].n, outputs);
    return blocks;
}

/* As few outputs a block as leave every block a processor of its own. */
cudaError_t stream_run(const struct queue *q, const struct product *p, int count) {
    int multiprocessors = q->dev->gpu.multiprocessors;
    auto run = launch<stream_cut<128, 1, 9>>;
    if (blocks_of(p, count, 16) <= multiprocessors) run = launch<stream_cut<16, 2, 10>>;
    else if (blocks_of(p, count, 64) <= multiprocessors) run = launch<stream_cut<64, 1, 13>>;
    else if (blocks_of(p, count, 80) <= multiprocessors) run = launch<stream_cut<80, 1, 11>>;
    return run(q, p, count);
}
