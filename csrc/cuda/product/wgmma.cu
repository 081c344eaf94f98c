/* Products of many rows on Hopper: weights and rows come by tensor copies, warpgroups multiply, epilogues are fused.
 *
 * A block is one warpgroup that copies and two that multiply, 64 rows of a tile each; it stays on its multiprocessor and
 * walks over tiles, so that the copies of the next tile run while the sums of this one are written. Blocks come in pairs
 * on neighbouring rows that share each box of weights they fetch. A sum is one chain of wgmma over all of k, ascending:
 * the bits of mma.sync and of cublasLt, which choose.cu compares on the device at hand before this is used.
 *
 * A lane's sums lie two columns wide. The weights of a tile are therefore fetched in an order that gives a lane 4 or 8
 * columns side by side: in D = 2 or 4 boxes of every D-th row. Of box c and its rows 8 g + 2 q, + 1, a lane holds the
 * columns D (8 g + 2 q) + c and D (8 g + 2 q + 1) + c. */
#include "product/epilogue.cuh"
#include "product/tensor_map.h"

enum { STEP_BYTES = STEP_INPUTS * 2, CLUSTER = 2, WARPGROUP = 128, THREADS = 3 * WARPGROUP };
enum { OUTPUTS = WGMMA_OUTPUTS, MINE = 64 /* rows of a warpgroup */, ROWS = 2 * MINE, STAGES = 4 };
enum { ROOM = 4096 }; /* bytes of shared memory that a multiplying warp writes its results through */
enum { STAGE = (ROWS + OUTPUTS) * STEP_BYTES, SHARED = 1024 + STAGES * STAGE + 8 * ROOM + 2 * STAGES * 8 };
/* Tiles of columns that are under way together: so that their weights stay in the second-level cache. */
enum { MOST_COLUMNS = 8 };

struct many_args {
    CUtensorMap in[MOST_PRODUCTS], w[MOST_PRODUCTS];
    struct product p[MOST_PRODUCTS];
    int first[MOST_PRODUCTS + 1]; /* pair of tiles that a product begins at */
    int columns[MOST_PRODUCTS];   /* tiles of columns that are under way together */
    int count, T;
};

/* Of weights, so that a lane has 16 bytes of results side by side. */
static __host__ __device__ __forceinline__ int boxes_of(enum epilogue epilogue) {
    return epilogue == ADD || epilogue == GATE_ADD ? 2 : 4;
}

#if HOPPER_CODE

/* ---- the device's side ------------------------------------------------------------------------------------------ */

struct tile {
    int which, row, output;
};

/* A few columns of tiles at a time, all their rows, then the next columns. */
static __device__ __forceinline__ struct tile tile_at(const struct many_args &args, int i) {
    struct tile t = {0, 0, 0};
    while (t.which + 1 < args.count && i >= args.first[t.which + 1]) t.which++;
    i -= args.first[t.which];
    int rows = (args.T + CLUSTER * ROWS - 1) / (CLUSTER * ROWS), columns = args.columns[t.which];
    int all = args.p[t.which].n / OUTPUTS;
    int group = i / (columns * rows), width = min(columns, all - group * columns);
    i -= group * columns * rows;
    t.row = (i / width * CLUSTER + (int)cluster_rank()) * ROWS;
    t.output = (group * columns + i % width) * OUTPUTS;
    return t;
}

/* Which stage of the ring is next, and the phase of its barriers. */
struct ring_at {
    int stage = 0, phase = 0;
    __device__ __forceinline__ void next(void) {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

struct ring {
    uint32_t stages, barriers;
    __device__ __forceinline__ uint32_t rows(int stage) const {
        return stages + stage * STAGE;
    }
    __device__ __forceinline__ uint32_t weights(int stage) const {
        return rows(stage) + ROWS * STEP_BYTES;
    }
    __device__ __forceinline__ uint32_t full(int stage) const {
        return barriers + stage * 8;
    }
    __device__ __forceinline__ uint32_t empty(int stage) const {
        return barriers + (STAGES + stage) * 8;
    }
};

/* What the epilogue will read comes into the second-level cache while the sums are made. */
static __device__ __forceinline__ void prefetch_addends(const struct product &p, struct tile t, int T) {
    for (int row = t.row + (int)threadIdx.x; row < min(t.row + ROWS, T); row += 32) {
        size_t at = (size_t)row * p.n + t.output;
        prefetch_bytes((const float *)p.out + at, OUTPUTS * 4);
        if (p.epilogue == GATE_ADD) prefetch_bytes((const bf16 *)p.gate + at, OUTPUTS * 2);
    }
}

/* Of one tile: the block's own rows, and of the weights its share, which goes to both blocks of the pair. */
template <int BOXES>
static __device__ __forceinline__ void copy_tile(const struct many_args &args, const struct ring &ring,
                                                 struct ring_at &at, struct tile t) {
    constexpr int BYTES = OUTPUTS / BOXES * STEP_BYTES;
    const CUtensorMap *in = &args.in[t.which], *w = &args.w[t.which];
    int mine = (int)cluster_rank(), group = t.output / BOXES, k = args.p[t.which].k;
    for (int from = 0; from < k; from += STEP_INPUTS, at.next()) {
        uint32_t full = ring.full(at.stage), weights = ring.weights(at.stage) + mine * BYTES;
        barrier_wait(ring.empty(at.stage), at.phase ^ 1);
        barrier_expect(full, STAGE);
        copy_box(ring.rows(at.stage), in, from, t.row, full);
#pragma unroll
        for (int i = 0; i < BOXES; i += CLUSTER)
            copy_box_to_all(weights + i * BYTES, w, from, group, mine + i, full, (1 << CLUSTER) - 1);
    }
}

static __device__ __forceinline__ void copy_tiles(const struct many_args &args, const struct ring &ring) {
    struct ring_at at;
    int total = args.first[args.count];
    for (int i = (int)blockIdx.x / CLUSTER; i < total; i += (int)gridDim.x / CLUSTER) {
        struct tile t = tile_at(args, i);
        const struct product &p = args.p[t.which];
        bool adds = boxes_of(p.epilogue) == 2;
        if (adds) prefetch_addends(p, t, args.T);
        if (threadIdx.x == 0) adds ? copy_tile<2>(args, ring, at, t) : copy_tile<4>(args, ring, at, t);
        __syncwarp();
    }
}

/* One stage of one warpgroup, queued. */
static __device__ __forceinline__ void multiply_stage(float (&sum)[OUTPUTS / 2], uint32_t rows, uint32_t weights,
                                                      int fresh) {
    uint64_t a = tile_descriptor(rows), b = tile_descriptor(weights);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < STEP_INPUTS / 16; k++)
        wgmma64<OUTPUTS>(sum, a + (k * 32 >> 4), b + (k * 32 >> 4), k == 0 && fresh);
    wgmma_commit();
}

/* The stage before is given back when the tensor cores have left it, this one being queued behind. */
static __device__ __forceinline__ void multiply_tile(float (&sum)[OUTPUTS / 2], const struct ring &ring,
                                                     struct ring_at &at, int steps, int mine) {
    int thread = (int)threadIdx.x % WARPGROUP, before = 0;
    for (int s = 0; s < steps; s++) {
        barrier_wait(ring.full(at.stage), at.phase);
        multiply_stage(sum, ring.rows(at.stage) + mine * STEP_BYTES, ring.weights(at.stage), s == 0);
        wgmma_wait<1>();
        if (s > 0 && thread < CLUSTER) barrier_arrive_at(ring.empty(before), thread);
        before = at.stage;
        at.next();
    }
    wgmma_wait<0>();
    if (thread < CLUSTER) barrier_arrive_at(ring.empty(before), thread);
    hold(sum);
}

/* ---- epilogues: eight rows of a warp pass through shared memory, so that global memory sees whole rows ---- */

/* UNITS of 16 bytes a row; unit u of an odd row lies at u ^ 4: so a warp's accesses meet all banks both ways. */
template <int UNITS> struct passage {
    uint32_t even, odd, out[2];

    __device__ __forceinline__ passage(uint32_t room) {
        int lane = (int)threadIdx.x % 32, row = lane / 4, swap = (row & 1) * 64;
        even = room + row * UNITS * 16 + lane % 4 * 16 + swap;
        odd = even - 2 * swap;
        row = lane / UNITS; /* how many rows go at once, less one */
        out[0] = room + row * UNITS * 16 + (lane % UNITS ^ (row & 1) * 4) * 16;
        out[1] = room + (lane % UNITS ^ 4) * 16; /* of an odd row that goes alone */
    }
    /* Unit 4 g + lane % 4 of row lane / 4. */
    template <typename E> __device__ __forceinline__ void put(int g, const E (&a)[4]) const {
        shared_store((g & 1 ? odd : even) + g * 64, a);
    }
    /* Unit lane % UNITS of row r + lane / UNITS. */
    __device__ __forceinline__ uint4 get(int r) const {
        return shared_load((UNITS == 32 && r & 1 ? out[1] : out[0]) + r * UNITS * 16);
    }
};

/* Of one row, column i of those that a lane has side by side in group g. */
static __device__ __forceinline__ float sum_of(const float (&sum)[OUTPUTS / 2], int boxes, int g, int i, int half) {
    return sum[4 * (i % boxes * (OUTPUTS / 8 / boxes) + g) + 2 * half + i / boxes];
}

template <bool SQUARE>
static __device__ __forceinline__ void write_rows(const struct product &p, const float (&sum)[OUTPUTS / 2], int half,
                                                  int row, int output, int T, uint32_t room) {
    constexpr int UNITS = OUTPUTS / 8, AT_ONCE = 32 / UNITS;
    const passage<UNITS> through(room);
    int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int g = 0; g < UNITS / 4; g++) {
        uint32_t y[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float a = sum_of(sum, 4, g, 2 * i, half), b = sum_of(sum, 4, g, 2 * i + 1, half);
            y[i] = SQUARE ? pack2<bf16>(relu_squared<bf16>(a), relu_squared<bf16>(b)) : pack2<bf16>(a, b);
        }
        through.put(g, y);
    }
    __syncwarp();
    row += lane / UNITS;
    bf16 *out = (bf16 *)p.out + (size_t)row * p.n + output + lane % UNITS * 8;
#pragma unroll
    for (int r = 0; r < 8; r += AT_ONCE, step_on(out, AT_ONCE * p.n)) global_store(out, through.get(r), row + r < T);
    __syncwarp();
}

static __device__ __forceinline__ float4 as_floats(uint4 a) {
    return make_float4(__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(a.z), __uint_as_float(a.w));
}

/* x += y, or x += sigmoid(gate) y, 128 columns at a time. */
template <bool GATED>
static __device__ __forceinline__ void add_rows(const struct product &p, const float (&sum)[OUTPUTS / 2], int half,
                                                int row, int output, int T, uint32_t room) {
    const passage<32> through(room);
    size_t first = (size_t)row * p.n + output + (int)threadIdx.x % 32 * 4;
#pragma unroll
    for (int part = 0; part < OUTPUTS / 128; part++) {
        float *x = (float *)p.out + first + 128 * part;
        const bf16 *gate = (const bf16 *)p.gate + first + 128 * part;
        uint4 old[8];
        uint2 gates[8];
#pragma unroll
        for (int r = 0; r < 8; r++, step_on(x, p.n)) {
            old[r] = global_load4(x, row + r < T);
            if (GATED) gates[r] = global_load2(gate, row + r < T);
            if (GATED) step_on(gate, p.n);
        }
#pragma unroll
        for (int g = 0; g < 8; g++) {
            float y[4];
#pragma unroll
            for (int i = 0; i < 4; i++) y[i] = sum_of(sum, 2, 8 * part + g, i, half);
            through.put(g, y);
        }
        __syncwarp();
        x = (float *)p.out + first + 128 * part;
#pragma unroll
        for (int r = 0; r < 8; r++, step_on(x, p.n)) {
            float4 a = as_floats(old[r]), b = as_floats(through.get(r));
            if (GATED) {
                float4 s = load4(reinterpret_cast<const bf16 *>(&gates[r]));
                a = make_float4(gate_add<bf16>(a.x, s.x, b.x), gate_add<bf16>(a.y, s.y, b.y),
                                gate_add<bf16>(a.z, s.z, b.z), gate_add<bf16>(a.w, s.w, b.w));
            } else {
                a = make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
            }
            global_store(x, *reinterpret_cast<uint4 *>(&a), row + r < T);
        }
        __syncwarp();
    }
}

static __device__ __forceinline__ void write_tile(const struct many_args &args, struct tile t,
                                                  const float (&sum)[OUTPUTS / 2], int mine, uint32_t room) {
    const struct product &p = args.p[t.which];
    int first = t.row + mine + (int)threadIdx.x % WARPGROUP / 32 * 16;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + 8 * half;
        switch (p.epilogue) {
        case ADD: add_rows<false>(p, sum, half, row, t.output, args.T, room); break;
        case GATE_ADD: add_rows<true>(p, sum, half, row, t.output, args.T, room); break;
        case RELU2: write_rows<true>(p, sum, half, row, t.output, args.T, room); break;
        default: write_rows<false>(p, sum, half, row, t.output, args.T, room); break;
        }
    }
}

static __device__ __forceinline__ void multiply_tiles(const struct many_args &args, const struct ring &ring,
                                                      int warpgroup) {
    struct ring_at at;
    int total = args.first[args.count], stride = (int)gridDim.x / CLUSTER, mine = warpgroup * MINE;
    uint32_t room = ring.stages + STAGES * STAGE + ((int)threadIdx.x / 32 - 4) * ROOM;
    for (int i = (int)blockIdx.x / CLUSTER; i < total; i += stride) {
        struct tile t = tile_at(args, i);
        float sum[OUTPUTS / 2];
        multiply_tile(sum, ring, at, args.p[t.which].k / STEP_INPUTS, mine);
        write_tile(args, t, sum, mine, room);
    }
}

#endif

static __global__ void __launch_bounds__(THREADS, 1) wgmma_product(const __grid_constant__ struct many_args args) {
#if HOPPER_CODE
    extern __shared__ unsigned char shared[];
    uint32_t stages = (shared_address(shared) + 1023) / 1024 * 1024; /* the same in both blocks */
    struct ring ring = {stages, stages + STAGES * STAGE + 8 * ROOM};
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(ring.full(i), 1);
            barrier_init(ring.empty(i), 2 * CLUSTER);
        }
        barriers_publish();
    }
    if (threadIdx.x < args.count) {
        fetch_map(&args.in[threadIdx.x]);
        fetch_map(&args.w[threadIdx.x]);
    }
    __syncwarp();
    cluster_sync();
    if (threadIdx.x < WARPGROUP) {
        fewer_registers<40>();
        if (threadIdx.x < 32) copy_tiles(args, ring);
        __syncwarp();
    } else {
        more_registers<232>();
        multiply_tiles(args, ring, threadIdx.x / WARPGROUP - 1);
    }
    cluster_sync(); /* a block's memory and barriers outlive what its neighbour sends there */
#endif
}

/* ---- launching ---------------------------------------------------------------------------------------------------- */

static bool encode_maps(void *entry, struct many_args *args, int i) {
    const struct product *p = &args->p[i];
    cuuint64_t k = (cuuint64_t)p->k, boxes = (cuuint64_t)boxes_of(p->epilogue), groups = (cuuint64_t)p->n / boxes;
    const cuuint64_t in_sizes[] = {k, (cuuint64_t)args->T}, in_strides[] = {2 * k};
    const cuuint64_t w_sizes[] = {k, groups, boxes}, w_strides[] = {2 * k * boxes, 2 * k};
    const cuuint32_t in_box[] = {STEP_INPUTS, ROWS}, w_box[] = {STEP_INPUTS, OUTPUTS / (cuuint32_t)boxes, 1};
    return tensor_map_encode(entry, &args->in[i], p->in, 2, in_sizes, in_strides, in_box) &&
           tensor_map_encode(entry, &args->w[i], p->w, 3, w_sizes, w_strides, w_box);
}

cudaError_t wgmma_run(const struct queue *q, const struct product *p, int count) {
    struct many_args args = {};
    int rows = pieces_of(q->rows, CLUSTER * ROWS), pairs = 0;
    args.count = count;
    args.T = q->rows; /* many rows are never a recorded pass: the host knows T */
    for (int i = 0; i < count; i++) {
        int columns = p[i].n / OUTPUTS;
        args.p[i] = p[i];
        args.first[i] = pairs;
        args.columns[i] = pieces_of(columns, pieces_of(columns, MOST_COLUMNS));
        pairs += rows * columns;
        if (!encode_maps(q->dev->encode, &args, i)) return cudaErrorInvalidValue;
    }
    args.first[count] = pairs;
    cudaError_t status = cudaFuncSetAttribute(wgmma_product, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED);
    if (status != cudaSuccess) return status;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = CLUSTER;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(min(pairs, q->dev->gpu.multiprocessors / CLUSTER) * CLUSTER));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = SHARED;
    config.stream = q->stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, wgmma_product, args);
}
