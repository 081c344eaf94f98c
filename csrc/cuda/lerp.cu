/* The five lerps of time_shift: mixed_j = a + d (maa_j + tanh(low_j) W2_j), a and d from the stream.
 *
 * A block owns a strip of columns and walks down its rows, 16 at a time: the weights of the strip stay in registers, the
 * row before is at hand, and each row of the stream is read once. Rows come ahead by asynchronous copies; tanh is taken
 * once a block and left in the order of the fragments. A lane ends with neighbouring columns, so that it writes 16 bytes
 * at a time. Issuing instructions and waiting for them is what bounds it: the sums start from maa_j, no store has a branch
 * around it, nothing in the loop loads from memory into registers. The bits are those of lowrank.cu's kernel, which takes
 * what does not fit here. */
#include "cuda.h"
#include "launch.cuh"
#include "mma.cuh"

enum { LERPS = 5, TILE = 16, STRIP = 128 };

struct walk_args : lerp_args {
    int run; /* rows that a block walks over: a multiple of 16 */
};

/* Shared memory. Tiles of rows are on their way into it, low ranks a tile ahead of the rest. */
template <int STEPS, int AHEAD> struct lerp_room {
    float x[AHEAD + 1][TILE][STRIP + 4]; /* rows a few banks apart */
    float low[AHEAD + 1][TILE][LERPS * STEPS * 16 + 4];
    float2 stats[AHEAD + 1][TILE];
    int prev[AHEAD + 1][TILE];
    alignas(16) uint32_t z[2][LERPS * STEPS][32][4];
    alignas(16) float2 maa[LERPS][STRIP / 2][2]; /* each pair twice: for row lane/4 and for that 8 further */
    float weight[STRIP], bias[STRIP];
};

/* Predicates, not branches: both fall into the middle of much arithmetic. What is stored is never read here. */
template <int BYTES> static __device__ __forceinline__ void fetch(void *to, const void *from, bool wanted) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    uint32_t shared = (uint32_t)__cvta_generic_to_shared(to);
    if constexpr (BYTES == 16)
        asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p cp.async.cg.shared.global [%0], [%1], 16;}" ::"r"(shared),
                     "l"(from), "r"((int)wanted));
    else
        asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p cp.async.ca.shared.global [%0], [%1], %3;}" ::"r"(shared),
                     "l"(from), "r"((int)wanted), "n"(BYTES));
#else
    if (wanted) memcpy(to, from, BYTES);
#endif
}
static __device__ __forceinline__ void fetch_commit(void) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int LEFT> static __device__ __forceinline__ void fetch_wait(void) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}
static __device__ __forceinline__ void store_words(void *to, const uint32_t (&w)[4], bool wanted) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %5, 0; @p st.global.v4.b32 [%0], {%1,%2,%3,%4};}" ::"l"(to), "r"(w[0]),
                 "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"((int)wanted));
}
static __device__ __forceinline__ void store_words(void *to, const uint32_t (&w)[2], bool wanted) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %3, 0; @p st.global.v2.b32 [%0], {%1,%2};}" ::"l"(to), "r"(w[0]),
                 "r"(w[1]), "r"((int)wanted));
}

/* K = 16 STEPS. A warp has NT fragments of eight columns, as many as registers hold; a lane ends with 2 NT neighbours. */
template <typename In, int STEPS> struct lerp_walk {
    static constexpr int NT = 8 / STEPS, AHEAD = STEPS <= 2 ? 2 : 1, BLOCKS = STEPS <= 2 ? 2 : 1;
    static constexpr int WIDE = 8 * NT, THREADS = STRIP / WIDE * 32, EACH = 2 * NT;
    static constexpr int PAIRS = LERPS * STEPS * 128 / THREADS, ROW16 = STRIP / 4, SENDS = TILE * ROW16 / THREADS;
    static constexpr int STAGES = AHEAD + 1, LOW_EACH = THREADS / TILE;
    typedef lerp_room<STEPS, AHEAD> room_t;
    static_assert(THREADS % 128 == 0 && LERPS * STEPS * 4 % LOW_EACH == 0, "threads share words and copies evenly");

    const struct walk_args &a;
    room_t &room;
    int first, last, strip, lane, column; /* rows of the block; column: the lane's first, within the strip */
    uint32_t w[LERPS][STEPS][NT][2];
    float carry[EACH]; /* lanes 0..3: the normalised row before the tile */

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

    __device__ __forceinline__ void send_rows(int tile, int stage) {
        int row = (int)threadIdx.x / ROW16, c = 4 * ((int)threadIdx.x % ROW16), t = first + tile * TILE + row;
        const float *from = a.x + (size_t)t * a.C + strip + c;
        float *to = &room.x[stage][row][c];
        bool wanted = strip + c < a.C;
#pragma unroll
        for (int i = 0; i < SENDS; i++, t += TILE / SENDS, from += TILE / SENDS * a.C, to += TILE / SENDS * (STRIP + 4))
            fetch<16>(to, from, wanted && t < last);
        t = first + tile * TILE + (int)threadIdx.x;
        if (threadIdx.x < TILE) {
            fetch<8>(&room.stats[stage][threadIdx.x], a.stats + t, t < last);
            fetch<4>(&room.prev[stage][threadIdx.x], a.meta.prev + t, t < last);
        }
    }
    __device__ __forceinline__ void send_low(int tile, int stage) {
        int row = (int)threadIdx.x / LOW_EACH, c = 4 * ((int)threadIdx.x % LOW_EACH), t = first + tile * TILE + row;
        const float *from = a.low + (size_t)t * (LERPS * STEPS * 16) + c;
        float *to = &room.low[stage][row][c];
#pragma unroll
        for (int i = 0; i < LERPS * STEPS * 4 / LOW_EACH; i++)
            fetch<16>(to + 4 * LOW_EACH * i, from + 4 * LOW_EACH * i, t < last);
    }

    /* This thread's pairs of a tile's low ranks; pair p is word p of the fragments. */
    __device__ __forceinline__ void make_low(int tile, int stage) {
        int word = threadIdx.x % 4, owner = threadIdx.x / 4 % 32;
        const float *low =
            &room.low[stage][owner / 4 + 8 * (word & 1)][owner % 4 * 2 + 8 * (word / 2) + (int)threadIdx.x / 128 * 16];
        uint32_t *z = &room.z[tile & 1][0][0][0] + threadIdx.x;
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
        for (int j = 0; j < EACH; j++) { /* row 0 follows the last tile's row 15, row 8 this one's row 7 */
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

    __device__ __forceinline__ void mix(int tile, int stage) {
        float now[2][EACH], d[2][EACH];
        int t = first + tile * TILE + lane / 4;
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
                uint4 f = *(const uint4 *)room.z[tile & 1][g * STEPS + s][lane];
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
                store_words(to + (h ? below : 0), words, wanted[h]);
            }
        }
    }

    /* The stage of what comes `on` tiles later. */
    static __device__ __forceinline__ int later(int stage, int on) {
        return stage + on < STAGES ? stage + on : stage + on - STAGES;
    }

    __device__ __forceinline__ void walk(void) {
        int tiles = (last - first + TILE - 1) / TILE;
        load_weights(); /* they and the vectors come from no kernel before */
        wait_for_kernels_before();
        send_low(0, 0);
        fetch_commit();
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            send_rows(i, i);
            send_low(i + 1, (i + 1) % STAGES);
            fetch_commit();
        }
        load_vectors();
        fetch_wait<AHEAD>();
        __syncthreads();
        make_low(0, 0);
        load_carry();
        for (int i = 0, stage = 0; i < tiles; i++, stage = later(stage, 1)) {
            fetch_wait<AHEAD - 1>();
            __syncthreads();
            send_rows(i + AHEAD, later(stage, AHEAD));
            send_low(i + AHEAD + 1, stage);
            fetch_commit();
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
static enum status launch(struct worker *w, const struct lerp_args *a, struct error *e) {
    typedef lerp_walk<In, STEPS> walk;
    int strips = pieces(a->C, STRIP), slots = walk::BLOCKS * w->dev->sms, bytes = (int)sizeof(typename walk::room_t);
    struct walk_args args = {*a, TILE};
    while (args.run < w->grid.T && strips * pieces(w->grid.T, args.run) > slots) args.run += TILE;
    auto kernel = lerp_rows<In, STEPS>;
    CUDA_TRY(w->dev, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "the lerps", e);
    dim3 grid((unsigned)strips, (unsigned)pieces(w->grid.T, args.run));
    launch_early(overlaps(w), w->stream, kernel, grid, walk::THREADS, (size_t)bytes, args);
    return LAUNCHED(w, "the lerps", e);
}

bool lerp_fits(const struct worker *w, const struct lerp_args *a, int K) {
    return w->dev->in != F32 && w->dev->major >= 8 && a->k == K && (K == 32 || K == 64) && a->C % 32 == 0;
}

enum status lerp_run(struct worker *w, const struct lerp_args *a, int K, struct error *e) {
    if (w->dev->in == BF16) return K == 32 ? launch<bf16, 2>(w, a, e) : launch<bf16, 4>(w, a, e);
    return K == 32 ? launch<half_t, 2>(w, a, e) : launch<half_t, 4>(w, a, e);
}
