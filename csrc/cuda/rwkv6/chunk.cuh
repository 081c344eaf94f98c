/* One tile of 16 tokens of wkv_chunk: its shared memory, its decay, A, and r and k decayed. See chunk.cu for the equations.
 *
 * A comes in levels: t and s that part at bit b of their indices lie in the two halves of a block of 2^(b+1) tokens, and
 * X_b, which holds r decayed from the middle in the upper half and k decayed to the middle in the lower, has A[t, s] =
 * X_b[t] . X_b[s]. Only products of decays are formed, never a quotient or a positive exponent: strong decay would
 * overflow. */
#ifndef RWKVSTS_CUDA_CHUNK_CUH
#define RWKVSTS_CUDA_CHUNK_CUH

#include "launch.cuh"
#include "rwkv6/rwkv6.h"
#include "tile.cuh"

enum { WARPS = 2, THREADS = 32 * WARPS, TURN = WARPS * TILE, KEPT = 2 * WARPS };
enum { BLOCKS = 6 }; /* a multiprocessor: at 7 four times the registers spill, at 4 too little is under way */
static_assert(CHUNK_GRAIN == KEPT * TILE, "a cut where the state takes over");

struct chunk_args {
    struct meta meta;
    const bf16 *r, *k, *v, *g; /* [T, C]; g before silu */
    const float *low;          /* [T, D] before tanh */
    const uint4 *w2;           /* [C, K] as pack.cu lays it out */
    const float *time_decay;   /* [C] */
    int D, K;                  /* its rank, and padded */
    const float *u, *weight, *bias;
    float *slots; /* [slot, L, H, N, N], at this layer */
    size_t slot_stride;
    bf16 *out; /* [T, C] */
    int C, H;
    /* Of long pieces only: k decayed to the end of its tile, the decay over each tile, states between parts. */
    bf16 *keys;     /* [T, C] */
    float *totals;  /* [units, PART / TILE, C] */
    float *interim; /* [.., H, N, N] */
};

/* Rows of 64 floats lie in sixteen parts of 16 bytes, mixed by their row as tile.cuh mixes those in 16 bits. */
static __device__ __forceinline__ constexpr int mix32(int row) {
    return (row & 1) * 64 + (row & 2) * 16;
}

struct shared {
    rows16 r[WARPS], k[KEPT], v[KEPT]; /* r and k decayed in place; k and v of the turn before are kept */
    union {
        rows32 wide; /* the decay's exponent on its way from fragments to columns; y */
        rows16 x[2];
    } work[WARPS];
    uint4 high[WARPS][32], low[WARPS][32]; /* A as fragments, in two parts */
    float total[KEPT][HEAD];               /* product of a tile's decays */
};

/* ---- loading ----------------------------------------------------------------------------------------------------- */

/* Sends for `count` tokens from `first`; what stands past them in a tile that has tokens is zero. */
static __device__ __forceinline__ void send_turn(struct shared *m, const struct chunk_args &a, size_t first, int count,
                                                 int set) {
    int n = threadIdx.x % 8, t = threadIdx.x / 8; /* eight tokens at a time */
    int in_row = t * 128 + (n * 16 ^ mix16(t));
    uint32_t to_r = shared_address(m->r) + in_row;
    uint32_t to_k = shared_address(m->k[set]) + in_row;
    uint32_t to_v = shared_address(m->v[set]) + in_row;
    size_t from = first + (size_t)t * a.C + n * 8, step = (size_t)8 * a.C;
    const bf16 *r = a.r + from, *k = a.k + from, *v = a.v + from;
#pragma unroll
    for (int i = 0; i < TURN / 8; i++) {
        if (i * 8 / TILE * TILE >= count) break;
        bool there = t + 8 * i < count;
        copy16_or_zeros(to_r + i * 8 * 128, there ? r : a.r, there);
        copy16_or_zeros(to_k + i * 8 * 128, there ? k : a.k, there);
        copy16_or_zeros(to_v + i * 8 * 128, there ? v : a.v, there);
        r += step, k += step, v += step;
    }
}

/* ---- the decay: tanh to 2^-11 is a quarter of what its bfloat16 rounds to ---------------------------------------------- */

/* A left operand of tanh(low): two rows, sixteen of the rank from k. */
static __device__ __forceinline__ void load_low(uint32_t f[4], const float *const row[2], int k, int D) {
    float2 l[4];
#pragma unroll
    for (int i = 0; i < 4; i++) { /* what stands past the rank meets weights of zero */
        int n = k + threadIdx.x % 4 * 2 + i / 2 * 8;
        l[i] = make_float2(row[i % 2][min(n, D - 1)], row[i % 2][min(n + 1, D - 1)]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) f[i] = pack2<bf16>(tanh_approx(l[i].x), tanh_approx(l[i].y));
}

/* The same where the rank is 16 STEPS: pairs in one access, all of it asked for at once. */
template <int STEPS>
static __device__ __forceinline__ void load_all_low(uint32_t f[STEPS][4], const float *const row[2]) {
    float2 l[STEPS][4];
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) l[s][i] = *(const float2 *)(row[i % 2] + s * 16 + threadIdx.x % 4 * 2 + i / 2 * 8);
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) f[s][i] = pack2<bf16>(tanh_approx(l[s][i].x), tanh_approx(l[s][i].y));
}

/* Leaves the exponents time_decay + tanh(low) W2 of a tile's tokens and a head's keys in `out`; past `last` that of no
 * decay, whatever stands there. STEPS is the rank by 16, or 0 where that is not known or not whole. */
template <int STEPS>
static __device__ __forceinline__ void decay_up(void *m, const rows32 &out, const struct chunk_args &a, int first,
                                                int last, int column) {
    int lane = threadIdx.x % 32, to = offset(m, out) + lane / 4 * 256 + (lane % 4 * 16 ^ mix32(lane / 4));
    uint32_t f[STEPS ? STEPS : 1][4];
    const float *row[2];
    bool there[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        there[h] = first + lane / 4 + 8 * h < last;
        row[h] = a.low + (size_t)min(first + lane / 4 + 8 * h, last - 1) * a.D;
    }
    if constexpr (STEPS > 0) load_all_low<STEPS>(f, row);
    const uint4 *w = a.w2 + (size_t)column / 16 * (a.K / 16) * 32 + lane;
#pragma unroll
    for (int n = 0; n < HEAD / 16; n++) {
        float4 base = __ldg((const float4 *)(a.time_decay + column + n * 16 + lane % 4 * 4));
        float even[4], odd[4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            even[2 * h] = there[h] ? base.x : -INFINITY;
            even[2 * h + 1] = there[h] ? base.y : -INFINITY;
            odd[2 * h] = there[h] ? base.z : -INFINITY;
            odd[2 * h + 1] = there[h] ? base.w : -INFINITY;
        }
        int steps = STEPS ? STEPS : a.K / 16;
#pragma unroll
        for (int s = 0; s < steps; s++) {
            uint4 b = __ldg(w + (n * steps + s) * 32);
            if constexpr (STEPS == 0) load_low(f[0], row, s * 16, a.D);
            const uint32_t *left = f[STEPS ? s : 0];
            multiply(even, left, b.x, b.y);
            multiply(odd, left, b.z, b.w);
        }
#pragma unroll
        for (int h = 0; h < 2; h++)
            at<float4>(m, (to ^ n * 64) + h * 8 * 256) =
                make_float4(even[2 * h], even[2 * h + 1], odd[2 * h], odd[2 * h + 1]);
    }
}

/* ---- a tile ------------------------------------------------------------------------------------------------------ */

/* X for blocks of 2 * HALF tokens. Loads first: the compiler cannot move one over a store. */
template <int HALF>
static __device__ __forceinline__ void store_level(struct shared *m, int x, int r, int k, const float2 w[TILE]) {
    uint32_t a[TILE];
#pragma unroll
    for (int t = 0; t < TILE; t++) a[t] = pair(m, t & HALF ? r : k, t);
#pragma unroll
    for (int middle = HALF; middle < TILE; middle += 2 * HALF) {
        float2 p = w[middle], q = w[middle - 1];
        pair(m, x, middle) = a[middle];
        pair(m, x, middle - 1) = a[middle - 1];
#pragma unroll
        for (int i = 1; i < HALF; i++) {
            pair(m, x, middle + i) = pack(times(unpack(a[middle + i]), p));
            pair(m, x, middle - 1 - i) = pack(times(unpack(a[middle - 1 - i]), q));
            if (i < HALF - 1) p = times(p, w[middle + i]), q = times(q, w[middle - 1 - i]);
        }
    }
}

/* r decayed from the tile's start, k to its end, and the decay over all of it. The bonus is made on the way. */
static __device__ __forceinline__ void store_ends(struct shared *m, int r, int k, float *total, const float2 w[TILE],
                                                  float2 u, float bonus[TILE]) {
    float2 p = w[0], q = w[TILE - 1];
    uint32_t a[TILE], b[TILE];
#pragma unroll
    for (int i = 0; i < TILE; i++) a[i] = pair(m, r, i), b[i] = pair(m, k, i);
#pragma unroll
    for (int i = 0; i < TILE; i++) {
        float2 c = unpack(a[i]), d = times(unpack(b[i]), u);
        bonus[i] = __fmaf_rn(c.x, d.x, __fmul_rn(c.y, d.y));
    }
#pragma unroll
    for (int i = 1; i < TILE; i++) { /* the first r and the last k stand there as they are */
        pair(m, r, i) = pack(times(unpack(a[i]), p));
        pair(m, k, TILE - 1 - i) = pack(times(unpack(b[TILE - 1 - i]), q));
        p = times(p, w[i]);
        if (i < TILE - 1) q = times(q, w[TILE - 1 - i]);
    }
    *(float2 *)(total + 2 * (threadIdx.x % 32)) = p;
}

/* first, second: products of tokens 0..7 and 8..15 of X with themselves; only where both belong together is kept. */
static __device__ __forceinline__ void square(float first[4], float second[4], const rows16 &x) {
#pragma unroll
    for (int s = 0; s < 4; s++) {
        uint32_t f[4], h[4];
        block<LEFT>(f, x, s);
        block<RIGHT>(h, x, s);
        multiply(first, f, h[0], h[1]);
        multiply(second, f, h[2], h[3]);
    }
}

/* One tile: A into high and low, r and k decayed in place, the total. Its room holds the exponents. */
static __device__ __forceinline__ void make_tile(struct shared *m, int tile, int set, float2 u) {
    int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    rows16 &r = m->r[tile], &k = m->k[set + tile], *x = m->work[tile].x;
    int rs = offset(m, r), ks = offset(m, k), xs = offset(m, x);
    float2 w[TILE];
    float one[2][4] = {}, two[2][4] = {}, four[2][4] = {}, eight[4] = {}, bonus[TILE];
#pragma unroll
    for (int t = 0; t < TILE; t++) { /* in a function of its own this would move the registers that are spilled */
        float2 d = at<float2>(m, (xs + lane * 8 ^ mix32(t)) + t * 256);
        w[t] = make_float2(decay_of(d.x), decay_of(d.y));
    }
#pragma unroll
    for (int s = 0; s < 4; s++) {
        uint32_t f[4], h[4];
        block<LEFT>(f, r, s);
        block<RIGHT>(h, k, s);
        multiply(one[0], f, h[0], h[1]);
        multiply(one[1], f, h[2], h[3]);
    }
    __syncwarp(); /* the exponents were read */
    store_level<8>(m, xs, rs, ks, w);
    store_level<4>(m, xs + (int)sizeof(rows16), rs, ks, w);
    __syncwarp();
#pragma unroll
    for (int s = 0; s < 4; s++) {
        uint32_t f[4], h[4];
        block<LEFT>(f, x[0], s);
        block<RIGHT>(h, x[0], s);
        multiply(eight, f, h[0], h[1]);
    }
    square(four[0], four[1], x[1]);
    __syncwarp();
    store_level<2>(m, xs, rs, ks, w);
    store_ends(m, rs, ks, m->total[set + tile], w, u, bonus);
    __syncwarp();
    square(two[0], two[1], x[0]);
    float sum = sum_tokens<TILE>(bonus);
    float a[2][2]; /* [half][column]: rows and columns of the same eight tokens */
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float diagonal = __shfl_sync(~0u, sum, 2 * (row + 8 * h));
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int s = column + i, parts = row ^ s, at = 2 * h + i;
            float below = parts >= 4 ? four[h][at] : parts >= 2 ? two[h][at] : one[h][at];
            a[h][i] = row > s ? below : row == s ? diagonal : 0.0f;
        }
    }
    uint4 high = {}, low = {};
    pack_parts(a[0][0], a[0][1], &high.x, &low.x);
    pack_parts(eight[2], eight[3], &high.y, &low.y);
    pack_parts(a[1][0], a[1][1], &high.w, &low.w);
    m->high[tile][lane] = high;
    m->low[tile][lane] = low;
}

/* states.cu: of the long pieces of the pass. Fills keys, totals and interim, and leaves the states that are asked for. */
cudaError_t wkv_states_run(const struct worker *w, const struct chunk_args *a);

#endif
