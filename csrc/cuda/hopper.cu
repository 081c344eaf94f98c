/* Products of many rows on Hopper: weights and rows come by tensor copies, warpgroups multiply, epilogues are fused.
 *
 * A block is one warpgroup that copies and two that multiply; it stays on its processor and walks over tiles, so that
 * the copies of the next tile run while the sums of this one are written. Blocks come in pairs on neighbouring rows
 * that share each box of weights they fetch. A sum is one chain of wgmma over all of k, ascending: the bits of mma.sync
 * and of cublasLt, which products_open compares on the device at hand before this is used.
 *
 * A lane's sums lie two columns wide. The weights of a tile are therefore fetched in an order that gives a lane 4 or 8
 * columns side by side: in D = 2 or 4 boxes of every D-th row. Of box c and its rows 8 g + 2 q, + 1, a lane holds the
 * columns D (8 g + 2 q) + c and D (8 g + 2 q + 1) + c. */
#include "cuda.h"
#include "hopper.cuh"
#include "mma.cuh"

enum { STEP = 64, STEP_BYTES = STEP * 2, CLUSTER = 2, WARPGROUP = 128, MANY_THREADS = 3 * WARPGROUP };
enum { ROOM = 4096 }; /* bytes of shared memory that a multiplying warp writes its results through */
/* Tiles of columns that are under way together: so that their weights stay in the second-level cache. */
enum { MOST_COLUMNS = 8 };

/* One way to cut the work: blocks of 64 rows a warpgroup has, outputs of a tile, stages. TURNS: the warpgroups take
 * tiles in turns, one writes while the other multiplies; otherwise they share a tile. */
template <int TALL_, int OUTPUTS_, int STAGES_, bool TURNS_> struct tiling {
    static constexpr int TALL = TALL_, OUTPUTS = OUTPUTS_, STAGES = STAGES_;
    static constexpr bool TURNS = TURNS_;
    static constexpr int MINE = 64 * TALL, ROWS = TURNS ? MINE : 2 * MINE; /* rows of a warpgroup, of a tile */
    static constexpr int STAGE = (ROWS + OUTPUTS) * STEP_BYTES;
    static constexpr int SHARED = 1024 + STAGES * STAGE + 8 * ROOM + 2 * STAGES * 8;
};

struct many_args {
    CUtensorMap in[MOST_FEW], w[MOST_FEW];
    struct product p[MOST_FEW];
    int first[MOST_FEW + 1]; /* pair of tiles that a product begins at */
    int columns[MOST_FEW];   /* tiles of columns that are under way together */
    int count, T;
};

/* Of weights, so that a lane has 16 bytes of results side by side. */
static __host__ __device__ __forceinline__ int boxes_of(int kind) {
    return kind == ADD || kind == GATE_ADD ? 2 : 4;
}

#if HOPPER_CODE

/* ---- the device's side ------------------------------------------------------------------------------------------ */

struct tile {
    int which, row, output;
};

/* A few columns of tiles at a time, all their rows, then the next columns. */
template <typename Cut> __device__ __forceinline__ struct tile tile_at(const struct many_args &args, int i) {
    struct tile t = {0, 0, 0};
    while (t.which + 1 < args.count && i >= args.first[t.which + 1]) t.which++;
    i -= args.first[t.which];
    int rows = (args.T + CLUSTER * Cut::ROWS - 1) / (CLUSTER * Cut::ROWS), columns = args.columns[t.which];
    int all = args.p[t.which].n / Cut::OUTPUTS;
    int group = i / (columns * rows), width = min(columns, all - group * columns);
    i -= group * columns * rows;
    t.row = (i / width * CLUSTER + (int)cluster_rank()) * Cut::ROWS;
    t.output = (group * columns + i % width) * Cut::OUTPUTS;
    return t;
}

/* Where in the ring of stages. */
template <typename Cut> struct place {
    int stage = 0, phase = 0;
    __device__ __forceinline__ void next(void) {
        if (++stage == Cut::STAGES) stage = 0, phase ^= 1;
    }
    __device__ __forceinline__ void skip(int steps) {
        int to = stage + steps;
        phase ^= to / Cut::STAGES & 1;
        stage = to % Cut::STAGES;
    }
};

template <typename Cut> struct ring {
    uint32_t stages, barriers;
    __device__ __forceinline__ uint32_t rows(int stage) const {
        return stages + stage * Cut::STAGE;
    }
    __device__ __forceinline__ uint32_t weights(int stage) const {
        return rows(stage) + Cut::ROWS * STEP_BYTES;
    }
    __device__ __forceinline__ uint32_t full(int stage) const {
        return barriers + stage * 8;
    }
    __device__ __forceinline__ uint32_t empty(int stage) const {
        return barriers + (Cut::STAGES + stage) * 8;
    }
};

/* What the epilogue will read comes into the second-level cache while the sums are made. */
template <typename Cut>
static __device__ __forceinline__ void prefetch_addends(const struct product &p, struct tile t, int T) {
    for (int row = t.row + (int)threadIdx.x; row < min(t.row + Cut::ROWS, T); row += 32) {
        size_t at = (size_t)row * p.n + t.output;
        prefetch((const float *)p.out + at, Cut::OUTPUTS * 4);
        if (p.kind == GATE_ADD) prefetch((const bf16 *)p.gate + at, Cut::OUTPUTS * 2);
    }
}

/* Of one tile: the block's own rows, and of the weights its share, which goes to both blocks of the pair. */
template <typename Cut, int BOXES>
static __device__ __forceinline__ void copy_tile(const struct many_args &args, const ring<Cut> &ring, place<Cut> &at,
                                                 struct tile t) {
    constexpr int BYTES = Cut::OUTPUTS / BOXES * STEP_BYTES;
    const void *in = &args.in[t.which], *w = &args.w[t.which];
    int mine = (int)cluster_rank(), group = t.output / BOXES, k = args.p[t.which].k;
    for (int from = 0; from < k; from += STEP, at.next()) {
        uint32_t full = ring.full(at.stage), weights = ring.weights(at.stage) + mine * BYTES;
        barrier_wait(ring.empty(at.stage), at.phase ^ 1);
        barrier_expect(full, Cut::STAGE);
        copy_box(ring.rows(at.stage), in, from, t.row, full);
#pragma unroll
        for (int i = 0; i < BOXES; i += CLUSTER)
            copy_box_to_all(weights + i * BYTES, w, from, group, mine + i, full, (1 << CLUSTER) - 1);
    }
}

template <typename Cut>
static __device__ __forceinline__ void copy_tiles(const struct many_args &args, const ring<Cut> &ring) {
    place<Cut> at;
    int total = args.first[args.count];
    for (int i = (int)blockIdx.x / CLUSTER; i < total; i += (int)gridDim.x / CLUSTER) {
        struct tile t = tile_at<Cut>(args, i);
        const struct product &p = args.p[t.which];
        bool adds = boxes_of(p.kind) == 2;
        if (adds) prefetch_addends<Cut>(p, t, args.T);
        if (threadIdx.x == 0) adds ? copy_tile<Cut, 2>(args, ring, at, t) : copy_tile<Cut, 4>(args, ring, at, t);
        __syncwarp();
    }
}

/* One stage of one warpgroup, queued. */
template <typename Cut>
static __device__ __forceinline__ void multiply_stage(float (&sum)[Cut::TALL][Cut::OUTPUTS / 2], uint32_t rows,
                                                      uint32_t weights, int fresh) {
    uint64_t a = tile_descriptor(rows), b = tile_descriptor(weights);
    products_fence();
#pragma unroll
    for (int k = 0; k < STEP / 16; k++)
#pragma unroll
        for (int m = 0; m < Cut::TALL; m++)
            multiply(sum[m], a + (m * 64 * STEP_BYTES + k * 32 >> 4), b + (k * 32 >> 4), k == 0 && fresh);
    products_commit();
}

/* The stage before is given back when the tensor cores have left it, this one being queued behind. `before_the_end`
 * runs when all is queued. */
template <typename Cut, typename Then>
static __device__ __forceinline__ void multiply_tile(float (&sum)[Cut::TALL][Cut::OUTPUTS / 2], const ring<Cut> &ring,
                                                     place<Cut> &at, int steps, int mine, Then before_the_end) {
    int thread = (int)threadIdx.x % WARPGROUP, before = 0;
    for (int s = 0; s < steps; s++) {
        barrier_wait(ring.full(at.stage), at.phase);
        multiply_stage<Cut>(sum, ring.rows(at.stage) + mine * STEP_BYTES, ring.weights(at.stage), s == 0);
        products_wait<1>();
        if (s > 0 && thread < CLUSTER) barrier_arrive(ring.empty(before), thread);
        before = at.stage;
        at.next();
    }
    before_the_end();
    products_wait<0>();
    if (thread < CLUSTER) barrier_arrive(ring.empty(before), thread);
#pragma unroll
    for (int m = 0; m < Cut::TALL; m++) hold(sum[m]);
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
template <typename Cut>
static __device__ __forceinline__ float sum_of(const float (&sum)[Cut::OUTPUTS / 2], int boxes, int g, int i,
                                               int half) {
    return sum[4 * (i % boxes * (Cut::OUTPUTS / 8 / boxes) + g) + 2 * half + i / boxes];
}

template <typename Cut, bool SQUARE>
static __device__ __forceinline__ void write_rows(const struct product &p, const float (&sum)[Cut::OUTPUTS / 2],
                                                  int half, int row, int output, int T, uint32_t room) {
    constexpr int UNITS = Cut::OUTPUTS / 8, AT_ONCE = 32 / UNITS;
    const passage<UNITS> through(room);
    int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int g = 0; g < UNITS / 4; g++) {
        uint32_t y[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float a = sum_of<Cut>(sum, 4, g, 2 * i, half), b = sum_of<Cut>(sum, 4, g, 2 * i + 1, half);
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
template <typename Cut, bool GATED>
static __device__ __forceinline__ void add_rows(const struct product &p, const float (&sum)[Cut::OUTPUTS / 2], int half,
                                                int row, int output, int T, uint32_t room) {
    const passage<32> through(room);
    size_t first = (size_t)row * p.n + output + (int)threadIdx.x % 32 * 4;
#pragma unroll
    for (int part = 0; part < Cut::OUTPUTS / 128; part++) {
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
            for (int i = 0; i < 4; i++) y[i] = sum_of<Cut>(sum, 2, 8 * part + g, i, half);
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

template <typename Cut>
static __device__ __forceinline__ void write_tile(const struct many_args &args, struct tile t,
                                                  const float (&sum)[Cut::TALL][Cut::OUTPUTS / 2], int mine,
                                                  uint32_t room) {
    const struct product &p = args.p[t.which];
    int first = t.row + mine + (int)threadIdx.x % WARPGROUP / 32 * 16;
#pragma unroll
    for (int m = 0; m < Cut::TALL; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first + 64 * m + 8 * half;
            switch (p.kind) {
            case ADD: add_rows<Cut, false>(p, sum[m], half, row, t.output, args.T, room); break;
            case GATE_ADD: add_rows<Cut, true>(p, sum[m], half, row, t.output, args.T, room); break;
            case RELU2: write_rows<Cut, true>(p, sum[m], half, row, t.output, args.T, room); break;
            default: write_rows<Cut, false>(p, sum[m], half, row, t.output, args.T, room); break;
            }
        }
}

/* With turns, a warpgroup begins when the other has seen its last stage come: a barrier's phase is told from the one
 * before, not from the one before that. */
template <typename Cut>
static __device__ __forceinline__ void multiply_tiles(const struct many_args &args, const ring<Cut> &ring,
                                                      int warpgroup) {
    place<Cut> at;
    int total = args.first[args.count], stride = (int)gridDim.x / CLUSTER, first = (int)blockIdx.x / CLUSTER;
    int mine = Cut::TURNS ? 0 : warpgroup * Cut::MINE, turn = 0;
    uint32_t room = ring.stages + Cut::STAGES * Cut::STAGE + ((int)threadIdx.x / 32 - 4) * ROOM;
    for (int i = first; i < total; i += stride, turn ^= 1) {
        struct tile t = tile_at<Cut>(args, i);
        int steps = args.p[t.which].k / STEP;
        if (Cut::TURNS && turn != warpgroup) {
            at.skip(steps);
            continue;
        }
        float sum[Cut::TALL][Cut::OUTPUTS / 2];
        if (Cut::TURNS && i > first) turn_wait(warpgroup, 2 * WARPGROUP);
        multiply_tile<Cut>(sum, ring, at, steps, mine, [&] {
            if (Cut::TURNS && i + stride < total) turn_pass(warpgroup ^ 1, 2 * WARPGROUP);
        });
        write_tile<Cut>(args, t, sum, mine, room);
    }
}

#endif

template <typename Cut>
static __global__ void __launch_bounds__(MANY_THREADS, 1) many_rows(const __grid_constant__ struct many_args args) {
#if HOPPER_CODE
    extern __shared__ unsigned char shared[];
    uint32_t stages = (shared_address(shared) + 1023) / 1024 * 1024; /* the same in both blocks */
    ring<Cut> ring = {stages, stages + Cut::STAGES * Cut::STAGE + 8 * ROOM};
    if (threadIdx.x == 0) {
        for (int i = 0; i < Cut::STAGES; i++) {
            barrier_open(ring.full(i), 1);
            barrier_open(ring.empty(i), (Cut::TURNS ? 1 : 2) * CLUSTER);
        }
        barriers_opened();
    }
    if (threadIdx.x < args.count) {
        fetch_map(&args.in[threadIdx.x]);
        fetch_map(&args.w[threadIdx.x]);
    }
    __syncwarp();
    cluster_sync();
    if (threadIdx.x < WARPGROUP) {
        fewer_registers<40>();
        if (threadIdx.x < 32) copy_tiles<Cut>(args, ring);
        __syncwarp();
    } else {
        more_registers<232>();
        multiply_tiles<Cut>(args, ring, threadIdx.x / WARPGROUP - 1);
    }
    cluster_sync(); /* a block's memory and barriers outlive what its neighbour sends there */
#endif
}

/* ---- launching ---------------------------------------------------------------------------------------------------- */

/* Boxes of STEP inputs; what lies outside is read as zeros. */
static bool encode(void *entry, CUtensorMap *map, const void *p, int rank, const cuuint64_t *sizes,
                   const cuuint64_t *strides, const cuuint32_t *box) {
    const cuuint32_t ones[3] = {1, 1, 1};
    return ((encoder)entry)(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)rank, (void *)p, sizes, strides, box,
                            ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <typename Cut> static bool encode_maps(void *entry, struct many_args *args, int i) {
    const struct product *p = &args->p[i];
    cuuint64_t k = (cuuint64_t)p->k, boxes = (cuuint64_t)boxes_of(p->kind), groups = (cuuint64_t)p->n / boxes;
    const cuuint64_t in_sizes[] = {k, (cuuint64_t)args->T}, in_strides[] = {2 * k};
    const cuuint64_t w_sizes[] = {k, groups, boxes}, w_strides[] = {2 * k * boxes, 2 * k};
    const cuuint32_t in_box[] = {STEP, Cut::ROWS}, w_box[] = {STEP, Cut::OUTPUTS / (cuuint32_t)boxes, 1};
    return encode(entry, &args->in[i], p->in, 2, in_sizes, in_strides, in_box) &&
           encode(entry, &args->w[i], p->w, 3, w_sizes, w_strides, w_box);
}

template <typename Cut>
static cudaError_t launch(const struct device *dev, cudaStream_t stream, int T, const struct product *p, int count) {
    struct many_args args = {};
    int rows = pieces(T, CLUSTER * Cut::ROWS), pairs = 0;
    args.count = count;
    args.T = T;
    for (int i = 0; i < count; i++) {
        int columns = p[i].n / Cut::OUTPUTS;
        args.p[i] = p[i];
        args.first[i] = pairs;
        args.columns[i] = pieces(columns, pieces(columns, MOST_COLUMNS));
        pairs += rows * columns;
        if (!encode_maps<Cut>(dev->encode, &args, i)) return cudaErrorInvalidValue;
    }
    args.first[count] = pairs;
    cudaError_t status = cudaFuncSetAttribute(many_rows<Cut>, cudaFuncAttributeMaxDynamicSharedMemorySize, Cut::SHARED);
    if (status != cudaSuccess) return status;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = CLUSTER;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(min(pairs, dev->sms / CLUSTER) * CLUSTER));
    config.blockDim = dim3(MANY_THREADS);
    config.dynamicSmemBytes = Cut::SHARED;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, many_rows<Cut>, args);
}

typedef cudaError_t (*launcher)(const struct device *, cudaStream_t, int, const struct product *, int);
static const struct {
    launcher run;
    int outputs;
} cuts[CUTS] = {
    {launch<tiling<1, 256, 4, false>>, 256},
    {launch<tiling<2, 128, 6, true>>, 128},
    {launch<tiling<1, 128, 6, false>>, 128},
};

/* Whole tiles of outputs, whole stages of inputs: what is ragged is left to cublasLt. */
bool hopper_fits(const struct device *dev, int cut, const struct product *p) {
    return dev->encode && p->kind != STORE_FLOAT && p->n % cuts[cut].outputs == 0 && p->k % STEP == 0;
}

cudaError_t hopper_run(const struct device *dev, cudaStream_t stream, int cut, int T, const struct product *p,
                       int count) {
    return cuts[cut].run(dev, stream, T, p, count);
}
