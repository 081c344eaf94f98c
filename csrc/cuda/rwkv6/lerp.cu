/* The five lerps of the token shift: mixed_j = a + d (maa_j + tanh(low_j) W2_j), a and d from the stream.
 *
 * A block owns a strip of columns and walks down its rows, 16 at a time: the weights of the strip stay in registers, the
 * row before is at hand, and each row of the stream is read once. Rows come ahead by asynchronous copies; tanh is taken
 * once a block and left in the order of the fragments. A lane ends with neighbouring columns, so that it writes 16 bytes
 * at a time. Issuing instructions and waiting for them is what bounds it: the sums start from maa_j, no store has a branch
 * around it, nothing in the loop loads from memory into registers. The bits are those of up.cu's kernel, which takes
 * what does not fit here. */
#include "elements.cuh"
#include "launch.cuh"
#include "rwkv6/rwkv6.h"

enum { LERPS = MIXES6, ROWS = 16 /* at a time */, STRIP = 128 /* columns of a block */ };

struct walk_args : up_args {
    int run; /* rows that a block walks over: a multiple of 16 */
};

/* Shared memory. Rows are on their way into it, sixteen at a time, low ranks one turn ahead of the rest. */
template <int STEPS, int AHEAD> struct lerp_room {
    float x[AHEAD + 1][ROWS][STRIP + 4]; /* rows a few banks apart */
    float low[AHEAD + 1][ROWS][LERPS * STEPS * 16 + 4];
    float2 stats[AHEAD + 1][ROWS];
    int prev[AHEAD + 1][ROWS];
    alignas(16) uint32_t z[2][LERPS * STEPS][32][4];
    alignas(16) float2 maa[LERPS][STRIP / 2][2]; /* each pair twice: for row lane/4 and for that 8 further */
    float weight[STRIP], bias[STRIP];
};

/* K = 16 STEPS. A warp has NT fragments of eight columns, as many as registers hold; a lane ends with 2 NT neighbours. */
template <typename In, int STEPS> struct lerp_walk {
    static constexpr int NT = 8 / STEPS, AHEAD = STEPS <= 2 ? 2 : 1, BLOCKS = STEPS <= 2 ? 2 : 1;
    static constexpr int WIDE = 8 * NT, THREADS = STRIP / WIDE * 32, EACH = 2 * NT;
    static constexpr int PAIRS = LERPS * STEPS * 128 / THREADS, ROW16 = STRIP / 4, SENDS = ROWS * ROW16 / THREADS;
    static constexpr int STAGES = AHEAD + 1, LOW_EACH = THREADS / ROWS;
    typedef lerp_room<STEPS, AHEAD> room_t;
    static_assert(THREADS % 128 == 0 && LERPS * STEPS * 4 % LOW_EACH == 0, "threads share words and copies evenly");

    const struct walk_args &a;
    room_t &room;
    int first, last, strip, lane, column; /* rows of the block; column: the lane's first, within the strip */
    uint32_t w[LERPS][STEPS][NT][2];
    float carry[EACH]; /* lanes 0..3: the normalised row before the turn */

    __device__ __forceinline__ lerp_walk(const struct walk_args &args, room_t &r)
        : a(args), room(r), first((int)blockIdx.y * args.run), last(min(first + args.run, args.meta.head[0])),
          strip((int)blockIdx.x * STRIP), lane((int)threadIdx.x % 32),
          column((int)threadIdx.x / 32 * WIDE + lane % 4 * EACH) {
    }

    __device__ __forceinline__ void load_vectors(void) {
        for (int i = threadIdx.x; i < STRIP; i += THREADS) {
            int c = min(strip + i, a.C - 1);
            room.weight[i] = a.weight[c];
            room.bias[i] = a.bias[c];
#pragma unroll
            for (int g = 0; g < LERPS; g++) {
                float *pair = (float *)room.maa[g][maa_at(i)];
                pair[i % 2] = pair[2 + i % 2] = a.maa[g][c];
            }
        }
    }
    /* Pairs of columns stand as they are read: a fragment's four lanes beside one another. */
    static __device__ __forceinline__ int maa_at(int i) {
        return i / WIDE * (WIDE / 2) + i / 2 % NT * 4 + i % WIDE / EACH;
    }

    /* From pack.cu's order: blocks of 16 columns, a lane's eight being two pairs of k of one column and of one two on. */
    __device__ __forceinline__ void load_weights(void) {
        int n = lane / 4, wide = strip + (int)threadIdx.x / 32 * WIDE;
#pragma unroll
        for (int q = 0; q < NT; q++) {
            int c = min(wide + EACH * (n / 2) + 2 * q + n % 2, a.C - 1), in = c % 16;
            int owner = 4 * (2 * (in / 4) + in % 2) + lane % 4, half = in / 2 % 2;
#pragma unroll
            for (int g = 0; g < LERPS; g++)
#pragma unroll
                for (int s = 0; s < STEPS; s++) {
                    const In *at = (const In *)a.w + ((size_t)g * a.C + c / 16 * 16) * STEPS * 16;
                    uint2 pair = __ldg((const uint2 *)(at + s * 256 + owner * 8 + half * 4));
                    w[g][s][q][0] = pair.x;
                    w[g][s][q][1] = pair.y;
                }
        }
    }

    __device__ __forceinline__ void send_rows(int turn, int stage) {
        int row = (int)threadIdx.x / ROW16, c = 4 * ((int)threadIdx.x % ROW16), t = first + turn * ROWS + row;
        const float *from = a.x + (size_t)t * a.C + strip + c;
        float *to = &room.x[stage][row][c];
        bool wanted = strip + c < a.C;
#pragma unroll
        for (int i = 0; i < SENDS; i++, t += ROWS / SENDS, from += ROWS / SENDS * a.C, to += ROWS / SENDS * (STRIP + 4))
            copy_if<16>(to, from, wanted && t < last);
        t = first + turn * ROWS + (int)threadIdx.x;
        if (threadIdx.x < ROWS) {
            copy_if<8>(&room.stats[stage][threadIdx.x], a.stats + t, t < last);
            copy_if<4>(&room.prev[stage][threadIdx.x], a.meta.prev + t, t < last);
        }
    }
    __device__ __forceinline__ void send_low(int turn, int stage) {
        int row = (int)threadIdx.x / LOW_EACH, c = 4 * ((int)threadIdx.x % LOW_EACH), t = first + turn * ROWS + row;
        const float *from = a.low + (size_t)t * (LERPS * STEPS * 16) + c;
        float *to = &room.low[stage][row][c];
#pragma unroll
        for (int i = 0; i < LERPS * STEPS * 4 / LOW_EACH; i++)
            copy_if<16>(to + 4 * LOW_EACH * i, from + 4 * LOW_EACH * i, t < last);
    }

    /* This thread's pairs of a turn's low ranks; pair p is word p of the fragments. */
    __device__ __forceinline__ void make_low(int turn, int stage) {
        int word = threadIdx.x % 4, owner = threadIdx.x / 4 % 32;
        const float *low =
            &room.low[stage][owner / 4 + 8 * (word & 1)][owner % 4 * 2 + 8 * (word / 2) + (int)threadIdx.x / 128 * 16];
        uint32_t *z = &room.z[turn & 1][0][0][0] + threadIdx.x;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            float2 pair = *(const float2 *)(low + i * (THREADS / 8));
            z[i * THREADS] = pack2<In>(tanh_fast(pair.x), tanh_fast(pair.y));
        }
    }

    static __device__ __forceinline__ void read(float (&to)[EACH], const float *from) {
#pragma unroll
        for (int j = 0; j < EACH; j += 4) *(float4 *)(to + j) = *(const float4 *)(from + j);
    }
    __device__ __forceinline__ void normalise_all(float (&x)[EACH], float2 stats) {
        float weight[EACH], bias[EACH];
        read(weight, room.weight + column);
        read(bias, room.bias + column);
#pragma unroll
        for (int j = 0; j < EACH; j++) x[j] = normalise(x[j], stats.x, stats.y, weight[j], bias[j]);
    }

    /* The row before the block's first. */
    __device__ __forceinline__ void load_carry(void) {
        if (first == 0 || strip + column >= a.C) return;
        read(carry, a.x + (size_t)(first - 1) * a.C + strip + column);
        normalise_all(carry, a.stats[first - 1]);
    }

    /* The lane's two rows, normalised, and what stands before each, less the row. */
    __device__ __forceinline__ void load_rows(float (&now)[2][EACH], float (&d)[2][EACH], int t, int stage) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int row = lane / 4 + 8 * h;
            read(now[h], &room.x[stage][row][column]);
            normalise_all(now[h], room.stats[stage][row]);
        }
#pragma unroll
        for (int j = 0; j < EACH; j++) { /* row 0 follows the last turn's row 15, row 8 this one's row 7 */
            float up = __shfl_sync(~0u, now[0][j], lane + 28), low = __shfl_sync(~0u, now[1][j], lane + 28);
            d[0][j] = lane < 4 ? carry[j] : up;
            d[1][j] = lane < 4 ? up : low;
            carry[j] = low;
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int prev = room.prev[stage][lane / 4 + 8 * h];
            if (prev < 0) {
                const float *slot = a.slots + (size_t)(FROM_SLOT - prev) * a.slot_stride + strip + column;
                if (prev != NO_PAST && strip + column < a.C && t + 8 * h < last) read(d[h], slot);
                else
#pragma unroll
                    for (int j = 0; j < EACH; j++) d[h][j] = 0;
            }
#pragma unroll
            for (int j = 0; j < EACH; j++) d[h][j] = __fsub_rn(d[h][j], now[h][j]);
        }
    }

    __device__ __forceinline__ void mix(int turn, int stage) {
        float now[2][EACH], d[2][EACH];
        int t = first + turn * ROWS + lane / 4;
        bool inside = strip + column < a.C, wanted[2] = {inside && t < last, inside && t + 8 < last};
        size_t at = (size_t)t * a.C + strip + column, below = (size_t)8 * a.C;
        load_rows(now, d, t, stage);
#pragma unroll
        for (int g = 0; g < LERPS; g++) {
            float sum[NT][4];
#pragma unroll
            for (int q = 0; q < NT; q++)
                *(float4 *)sum[q] = *(const float4 *)room.maa[g][((int)threadIdx.x / 32 * NT + q) * 4 + lane % 4];
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                uint4 f = *(const uint4 *)room.z[turn & 1][g * STEPS + s][lane];
                uint32_t fragment[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
                for (int q = 0; q < NT; q++) mma16816<In>(sum[q], fragment, w[g][s][q]);
            }
            In *to = (In *)a.mixed[g] + at;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t words[NT];
#pragma unroll
                for (int q = 0; q < NT; q++)
                    words[q] = pack2<In>(__fmaf_rn(d[h][2 * q], sum[q][2 * h], now[h][2 * q]),
                                         __fmaf_rn(d[h][2 * q + 1], sum[q][2 * h + 1], now[h][2 * q + 1]));
                store_if(to + (h ? below : 0), words, wanted[h]);
            }
        }
    }

    /* The stage of what comes `on` turns later. */
    static __device__ __forceinline__ int later(int stage, int on) {
        return stage + on < STAGES ? stage + on : stage + on - STAGES;
    }

    __device__ __forceinline__ void walk(void) {
        int turns = (last - first + ROWS - 1) / ROWS;
        load_weights(); /* they and the vectors come from no kernel before */
        wait_for_kernels_before();
        send_low(0, 0);
        copies_commit();
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            send_rows(i, i);
            send_low(i + 1, (i + 1) % STAGES);
            copies_commit();
        }
        load_vectors();
        copies_wait<AHEAD>();
        __syncthreads();
        make_low(0, 0);
        load_carry();
        for (int i = 0, stage = 0; i < turns; i++, stage = later(stage, 1)) {
            copies_wait<AHEAD - 1>();
            __syncthreads();
            send_rows(i + AHEAD, later(stage, AHEAD));
            send_low(i + AHEAD + 1, stage);
            copies_commit();
            make_low(i + 1, later(stage, 1));
            mix(i, stage);
        }
    }
};

template <typename In, int STEPS>
static __global__ void __launch_bounds__(lerp_walk<In, STEPS>::THREADS, lerp_walk<In, STEPS>::BLOCKS)
    lerp_rows(const struct walk_args a) {
    extern __shared__ __align__(16) char memory[];
    let_next_kernel_start();
    lerp_walk<In, STEPS> l(a, *(typename lerp_walk<In, STEPS>::room_t *)memory);
    if (l.first < l.last) l.walk();
}

/* ---- running ------------------------------------------------------------------------------------------------------ */

/* Runs as short as all blocks still run at a time. */
template <typename In, int STEPS>
static enum status launch(struct worker *w, const struct up_args *a, struct error *e) {
    typedef lerp_walk<In, STEPS> walk;
    int strips = pieces_of(a->C, STRIP), slots = walk::BLOCKS * w->dev->gpu.multiprocessors;
    int bytes = (int)sizeof(typename walk::room_t);
    struct walk_args args = {*a, ROWS};
    while (args.run < w->grid.T && strips * pieces_of(w->grid.T, args.run) > slots) args.run += ROWS;
    auto kernel = lerp_rows<In, STEPS>;
    CUDA_TRY(w->dev, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "the lerps", e);
    dim3 grid((unsigned)strips, (unsigned)pieces_of(w->grid.T, args.run));
    launch_early(overlaps(w), w->stream, kernel, grid, walk::THREADS, (size_t)bytes, args);
    return LAUNCHED(w, "the lerps", e);
}

enum status lerp_run(struct worker *w, const struct up_args *a, struct error *e) {
    if (w->dev->in == BF16) return a->K == 32 ? launch<bf16, 2>(w, a, e) : launch<bf16, 4>(w, a, e);
    return a->K == 32 ? launch<half_t, 2>(w, a, e) : launch<half_t, 4>(w, a, e);
}
