/* Products of few rows on Hopper: weights stream through, whatever the kernel in front is still doing.
 *
 * A block owns 64 rows and some outputs and walks all of k in one chain of tensor-core products, ascending, as few.cu
 * does and with its bits. Tensor maps bring whole tiles, one copy each, into a ring as deep as shared memory. With few rows
 * the time is that of reading the weights once and, from the second-level cache, the rows once a block: so rows that no
 * pass has are not read, and weights, which depend on no kernel, are asked for before the kernel in front has ended; what
 * has no room in the ring is called into the cache meanwhile. */
#include "async.cuh"
#include "cuda.h"
#include "finish.cuh"
#include "launch.cuh"
#include "mma.cuh"

#include <dlfcn.h>

enum { TOKENS = 64, ATOM = 64 /* inputs in a box */, ATOM_BYTES = 2 * ATOM, MULTIPLIERS = 128 };

struct stream_args {
    CUtensorMap w[MOST_FEW], in[MOST_FEW];
    struct product p[MOST_FEW];
    int first[MOST_FEW + 1]; /* block that a product begins at */
    int count, in_rows;      /* rows of a tile that are read */
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
    unsigned char *in, *w;
    uint64_t *w_full, *in_full, *empty;
    __device__ __forceinline__ stream_room(unsigned char *shared) {
        in = shared + (1024 - shared_address(shared) % 1024) % 1024;
        w = in + Cut::STAGES * Cut::IN_BYTES;
        w_full = (uint64_t *)(w + Cut::STAGES * Cut::W_BYTES);
        in_full = w_full + Cut::STAGES;
        empty = in_full + Cut::STAGES;
    }
};

/* Where in the ring a step lies, and the parity of its barriers. */
template <typename Cut> struct stream_place {
    int slot = 0;
    unsigned parity = 0;
    __device__ __forceinline__ void next(void) {
        if (++slot == Cut::STAGES) slot = 0, parity ^= 1;
    }
};

template <typename Cut>
static __device__ __forceinline__ void stream_weight(const stream_room<Cut> &room, const CUtensorMap *map, int output,
                                                     int step, int slot) {
    barrier_expect(&room.w_full[slot], Cut::W_BYTES);
    copy_boxes(room.w + slot * Cut::W_BYTES, map, output, step * Cut::BOXES, &room.w_full[slot]);
}

template <typename Cut>
static __device__ __forceinline__ void stream_weights(const stream_room<Cut> &room, const CUtensorMap *map, int output,
                                                      int steps) {
    for (int s = Cut::STAGES; s < steps && !barrier_over(&room.in_full[0], 0); s++)
        fetch_boxes(map, output, s * Cut::BOXES); /* until there are rows to multiply with */
    stream_place<Cut> at;
    for (int s = Cut::STAGES; s < steps; s++, at.next()) {
        barrier_wait(&room.empty[at.slot], at.parity);
        stream_weight<Cut>(room, map, output, s, at.slot);
    }
}

template <typename Cut>
static __device__ __forceinline__ void stream_rows(const stream_room<Cut> &room, const CUtensorMap *map, int row,
                                                   int rows, int steps) {
    stream_place<Cut> at;
    for (int s = 0; s < steps; s++, at.next()) {
        if (s >= Cut::STAGES) barrier_wait(&room.empty[at.slot], at.parity ^ 1);
        barrier_expect(&room.in_full[at.slot], rows * Cut::BOXES * ATOM_BYTES);
        copy_boxes(room.in + at.slot * Cut::IN_BYTES, map, row, s * Cut::BOXES, &room.in_full[at.slot]);
    }
}

/* Boxes past the end of k hold zeros. */
template <typename Cut>
static __device__ __forceinline__ void stream_multiply(float *sum, const stream_room<Cut> &room, int rows, int steps) {
    stream_place<Cut> at;
    int before = 0;
    for (int s = 0; s < steps; s++) {
        uint64_t w = tile_descriptor(shared_address(room.w + at.slot * Cut::W_BYTES));
        uint64_t in = tile_descriptor(shared_address(room.in + at.slot * Cut::IN_BYTES));
        barrier_wait(&room.w_full[at.slot], at.parity);
        barrier_wait(&room.in_full[at.slot], at.parity);
        products_fence();
#pragma unroll
        for (int box = 0; box < Cut::BOXES; box++)
#pragma unroll
            for (int k = 0; k < ATOM / 16; k++)
                add_product64<Cut::N>(sum, in + (box * rows * ATOM_BYTES + k * 32) / 16,
                                      w + (box * Cut::N * ATOM_BYTES + k * 32) / 16);
        products_commit();
        products_wait<1>();
        if (s && threadIdx.x % 32 == 0) barrier_arrive(&room.empty[before]);
        before = at.slot;
        at.next();
    }
    products_wait<0>();
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
            barrier_init(&room.w_full[i], 1);
            barrier_init(&room.in_full[i], 1);
            barrier_init(&room.empty[i], MULTIPLIERS / 32);
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
                finish<bf16, bf16>(p, row + i % 2 * 8, output + i / 2 * 8, T, sum[2 * i], sum[2 * i + 1], to[i - n],
                                   1.0f);
#pragma unroll
            for (int i = n + AHEAD; i < min(n + 2 * AHEAD, PAIRS); i++)
                to[i - n - AHEAD] = load_addends<bf16>(p, row + i % 2 * 8, output + i / 2 * 8, T);
        }
    }
#endif
}

/* ---- the host's side -------------------------------------------------------------------------------------------------- */

void *stream_encoder(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW); /* the runtime has it open */
    return driver ? dlsym(driver, "cuTensorMapEncodeTiled") : NULL;
}

/* A matrix [rows, k] seen as [k / 64, rows, 64], in boxes of `boxes` by `box_rows`. */
static bool encode_map(const struct device *dev, CUtensorMap *map, const void *p, int rows, int k, int box_rows,
                       int boxes) {
    cuuint64_t sizes[3] = {ATOM, (cuuint64_t)rows, (cuuint64_t)k / ATOM}, strides[2] = {(cuuint64_t)k * 2, ATOM_BYTES};
    cuuint32_t box[3] = {ATOM, (cuuint32_t)box_rows, (cuuint32_t)boxes}, step[3] = {1, 1, 1};
    return ((encoder)dev->encode)(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void *>(p), sizes, strides, box,
                                  step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <typename Cut>
static cudaError_t launch_cut(const struct device *dev, cudaStream_t stream, bool early, const int *T, int grid_rows,
                              const struct product *p, int count) {
    struct stream_args a = {};
    auto kernel = stream_product<Cut>;
    int blocks = 0;
    a.count = count;
    a.T = T;
    a.in_rows = grid_rows < TOKENS ? pieces(grid_rows, 8) * 8 : TOKENS;
    for (int i = 0; i < count; i++) {
        a.p[i] = p[i];
        a.first[i] = blocks;
        blocks += pieces(p[i].n, Cut::N);
        if (!encode_map(dev, &a.w[i], p[i].w, p[i].n, p[i].k, Cut::N, Cut::BOXES) ||
            !encode_map(dev, &a.in[i], p[i].in, grid_rows, p[i].k, a.in_rows, Cut::BOXES))
            return cudaErrorInvalidValue;
    }
    cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Cut::BYTES);
    if (status != cudaSuccess) return status;
    return launch_early(early, stream, kernel, dim3((unsigned)blocks, (unsigned)pieces(grid_rows, TOKENS)),
                        Cut::THREADS, Cut::BYTES, a);
}

static int blocks_of(const struct product *p, int count, int outputs) {
    int blocks = 0;
    for (int i = 0; i < count; i++) blocks += pieces(p[i].n, outputs);
    return blocks;
}

bool stream_fits(const struct device *dev, const struct product *p, int count) {
    bool fits = dev->encode != NULL;
    for (int i = 0; i < count; i++) fits = fits && few_fits(dev, &p[i]);
    return fits;
}

/* As few outputs a block as leave every block a processor of its own. */
cudaError_t stream_run(const struct device *dev, cudaStream_t stream, bool early, const int *T, int grid_rows,
                       const struct product *p, int count) {
    auto launch = launch_cut<stream_cut<128, 1, 9>>;
    if (blocks_of(p, count, 16) <= dev->sms) launch = launch_cut<stream_cut<16, 2, 10>>;
    else if (blocks_of(p, count, 64) <= dev->sms) launch = launch_cut<stream_cut<64, 1, 13>>;
    else if (blocks_of(p, count, 80) <= dev->sms) launch = launch_cut<stream_cut<80, 1, 11>>;
    return launch(dev, stream, early, T, grid_rows, p, count);
}
