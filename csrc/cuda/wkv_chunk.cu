/* wkv6 for heads of 64 in bfloat16: sixteen tokens at a time, on tensor cores.
 *
 * Over a tile of 16 tokens y = A v + (r D) S, where A[t, s] = sum_n r_t k_s prod(s < j < t) w_j, its diagonal r (u
 * k), and D = prod(j < t) w_j; then S = diag(prod w) S + sum_s (k_s prod(j > s) w_j)^T v_s. Only products of decays
 * are formed, never a quotient or a positive exponent: strong decay would overflow. A comes in levels: t and s that
 * part at bit b of their indices lie in the two halves of a block of 2^(b+1) tokens, and X_b, which holds r decayed
 * from the middle in the upper half and k decayed to the middle in the lower, has A[t, s] = X_b[t] . X_b[s].
 *
 * Two warps own a head and take 32 tokens a turn, a tile each; what A, the decayed r and k are is shared. Then each
 * makes y for 32 values. In the first two turns of a fresh sequence a tile sees those before it through products of
 * its own, r k^T with the decay between, and most sentences need no state at all. Later turns keep it in registers in
 * float32, [value, key], so that accumulators are the next product's operand. Operands are rounded to bfloat16,
 * products of r and k kept in two parts; sums are float32. Turns are counted from where a run starts a sequence, and a
 * pass may cut it at CHUNK_GRAIN tokens: where the state takes over. The decay is made here too, from its low rank:
 * float32 would be 8 of 28 KB a token. */
#include "cuda.h"
#include "launch.cuh"
#include "mma.cuh"

enum { HEAD = 64, TILE = 16, WARPS = 2, THREADS = 32 * WARPS, TURN = WARPS * TILE, KEPT = 2 * WARPS };
enum { BLOCKS = 6 }; /* a multiprocessor: at 7 four times the registers spill, at 4 too little is under way */
static_assert(CHUNK_GRAIN == KEPT * TILE, "a cut where the state takes over");

/* Builds for older devices hold an empty kernel. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
static constexpr bool HAS_BF16 = false;
#else
static constexpr bool HAS_BF16 = true;
#endif

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
};

/* Rows of 64 in 16-bit lie in eight parts of 16 bytes, mixed by their row so that eight rows' same part meets all
 * banks; rows of 64 floats in sixteen, mixed likewise. All is aligned to a row, so that mixing is one xor on a byte's
 * place. */
typedef bf16 rows16[TILE][HEAD];
typedef float rows32[TILE][HEAD];

static __device__ __forceinline__ constexpr int mix16(int row) {
    return (row & 7) * 16;
}
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

/* A byte's place in shared memory; what stands there. */
static __device__ __forceinline__ int place(const struct shared *m, const void *p) {
    return (int)((const char *)p - (const char *)m);
}
template <typename T> static __device__ __forceinline__ T &at(struct shared *m, int place) {
    return *(T *)((char *)m + place);
}

/* Sixteen rows by sixteen columns of a[.][16 s ..], as an operand of a product. LEFT: its rows are the result's; RIGHT:
 * its rows are the result's columns, {0,1} the first eight; TURNED: its rows are summed over, {0,1} the first eight
 * columns; TURNED_LEFT: the same, its columns being the result's rows. */
enum operand { LEFT, RIGHT, TURNED, TURNED_LEFT };

template <enum operand AS> static __device__ __forceinline__ void block(uint32_t f[4], const rows16 &a, int s) {
    int lane = threadIdx.x % 32, low = lane / 8 % 2, high = lane / 16;
    int row = lane % 8 + 8 * (AS == LEFT || AS == TURNED ? low : high), part = AS == LEFT || AS == TURNED ? high : low;
    uint32_t p = (uint32_t)__cvta_generic_to_shared(&a) + row * 128 + (part * 16 ^ mix16(row));
    p ^= s * 32;
    if (AS == LEFT || AS == RIGHT)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
                     : "r"(p)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
                     : "r"(p)
                     : "memory");
}
static __device__ __forceinline__ void multiply(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    uint32_t b[2] = {b0, b1};
    mma16816<bf16>(c, a, b);
}

static __device__ __forceinline__ float2 unpack(uint32_t a) {
    return make_float2(__uint_as_float(a << 16), __uint_as_float(a & 0xffff0000u));
}
static __device__ __forceinline__ float2 times(float2 a, float2 b) {
    return make_float2(__fmul_rn(a.x, b.x), __fmul_rn(a.y, b.y));
}
static __device__ __forceinline__ uint32_t pack(float2 a) {
    return pack2<bf16>(a.x, a.y);
}
/* a = high + low */
static __device__ __forceinline__ void pack_parts(float a, float b, uint32_t *high, uint32_t *low) {
    *high = pack2<bf16>(a, b);
    float2 h = unpack(*high);
    *low = pack2<bf16>(a - h.x, b - h.y);
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ void copies_wait(void) {
    asm volatile("cp.async.wait_all;" ::: "memory");
}
/* Zeros where there is nothing to read. */
static __device__ __forceinline__ void copy16(uint32_t to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}

/* Sends for `count` tokens from `first`; what stands past them in a tile that has tokens is zero. */
static __device__ __forceinline__ void send_turn(struct shared *m, const struct chunk_args &a, size_t first, int count,
                                                 int set) {
    int n = threadIdx.x % 8, t = threadIdx.x / 8; /* eight tokens at a time */
    int in_row = t * 128 + (n * 16 ^ mix16(t));
    uint32_t to_r = (uint32_t)__cvta_generic_to_shared(m->r) + in_row;
    uint32_t to_k = (uint32_t)__cvta_generic_to_shared(m->k[set]) + in_row;
    uint32_t to_v = (uint32_t)__cvta_generic_to_shared(m->v[set]) + in_row;
    size_t from = first + (size_t)t * a.C + n * 8, step = (size_t)8 * a.C;
    const bf16 *r = a.r + from, *k = a.k + from, *v = a.v + from;
#pragma unroll
    for (int i = 0; i < TURN / 8; i++) {
        if (i * 8 / TILE * TILE >= count) break;
        bool there = t + 8 * i < count;
        copy16(to_r + i * 8 * 128, there ? r : a.r, there);
        copy16(to_k + i * 8 * 128, there ? k : a.k, there);
        copy16(to_v + i * 8 * 128, there ? v : a.v, there);
        r += step, k += step, v += step;
    }
}

/* ---- the decay --------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ float tanh_short(float a) { /* 2^-11: a quarter of what its bfloat16 rounds to */
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(a));
    return y;
}

/* A left operand of tanh(low): two rows, sixteen of the rank from k. */
static __device__ __forceinline__ void load_low(uint32_t f[4], const float *const row[2], int k, int D) {
    float2 l[4];
#pragma unroll
    for (int i = 0; i < 4; i++) { /* what stands past the rank meets weights of zero */
        int n = k + threadIdx.x % 4 * 2 + i / 2 * 8;
        l[i] = make_float2(row[i % 2][min(n, D - 1)], row[i % 2][min(n + 1, D - 1)]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) f[i] = pack2<bf16>(tanh_short(l[i].x), tanh_short(l[i].y));
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
        for (int i = 0; i < 4; i++) f[s][i] = pack2<bf16>(tanh_short(l[s][i].x), tanh_short(l[s][i].y));
}

/* Leaves the exponents time_decay + tanh(low) W2 of a tile's tokens and a head's keys in `out`; past `last` that of no
 * decay, whatever stands there. STEPS is the rank by 16, or 0 where that is not known or not whole. */
template <int STEPS>
static __device__ __forceinline__ void decay_up(struct shared *m, const rows32 &out, const struct chunk_args &a,
                                                int first, int last, int column) {
    int lane = threadIdx.x % 32, to = place(m, out) + lane / 4 * 256 + (lane % 4 * 16 ^ mix32(lane / 4));
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

/* A lane has two keys of a tile: `pair` is those of token t in rows that start at `place`. */
static __device__ __forceinline__ uint32_t &pair(struct shared *m, int place, int t) {
    return at<uint32_t>(m, (place + (int)threadIdx.x % 32 * 4 ^ mix16(t)) + t * 128);
}

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

/* As sum_many, in the form that this kernel's registers were measured with: the other moves its spills about. */
template <int COUNT> static __device__ __forceinline__ float sum_tokens(float *a) {
    constexpr int HALF = COUNT / 2, DISTANCE = 16 * COUNT / TILE;
    if constexpr (COUNT == 1) {
        return a[0] + __shfl_xor_sync(~0u, a[0], 1);
    } else {
        bool upper = threadIdx.x & DISTANCE;
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            float send = upper ? a[i] : a[i + HALF], keep = upper ? a[i + HALF] : a[i];
            a[i] = keep + __shfl_xor_sync(~0u, send, DISTANCE);
        }
        return sum_tokens<HALF>(a);
    }
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
    int rs = place(m, r), ks = place(m, k), xs = place(m, x);
    float2 w[TILE];
    float one[2][4] = {}, two[2][4] = {}, four[2][4] = {}, eight[4] = {}, bonus[TILE];
#pragma unroll
    for (int t = 0; t < TILE; t++) {
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

/* ---- y and the state --------------------------------------------------------------------------------------------- */

/* A warp's 32 values by all keys: s[i][j] are values 16 i + lane/4 (+ 8), keys 8 j + 2 (lane%4) (+ 1). */
struct state {
    float s[2][8][4];
};

/* y += A v for a warp's values, A in fragments. */
static __device__ __forceinline__ void add_values(float y[4][4], const uint32_t a[4], const uint32_t v[2][4]) {
#pragma unroll
    for (int n = 0; n < 4; n++) multiply(y[n], a, v[n / 2][n % 2 * 2], v[n / 2][n % 2 * 2 + 1]);
}

/* A tile of a fresh sequence sees the `seen` before it, the nearest first: y += (r k^T) v, then r decays over that
 * one. */
static __device__ __forceinline__ void add_seen(struct shared *m, float y[4][4], const rows16 &r, int seen, int half) {
    uint32_t f[4][4];
#pragma unroll
    for (int s = 0; s < 4; s++) block<LEFT>(f[s], r, s);
#pragma unroll 1
    for (int j = seen - 1; j >= 0; j--) {
        float c[2][4] = {};
        uint32_t high[4], low[4], v[2][4];
#pragma unroll
        for (int s = 0; s < 4; s++) {
            uint32_t k[4];
            block<RIGHT>(k, m->k[j], s);
            multiply(c[0], f[s], k[0], k[1]);
            multiply(c[1], f[s], k[2], k[3]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) pack_parts(c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1], &high[i], &low[i]);
#pragma unroll
        for (int i = 0; i < 2; i++) block<TURNED>(v[i], m->v[j], 2 * half + i);
        add_values(y, high, v);
        add_values(y, low, v);
        if (j == 0) break;
#pragma unroll
        for (int i = 0; i < 8; i++) { /* eight keys of both rows */
            float2 d = *(const float2 *)(m->total[j] + 8 * i + threadIdx.x % 4 * 2);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t *p = &f[i / 2][i % 2 * 2 + h];
                *p = pack(times(unpack(*p), d));
            }
        }
    }
}

/* y += r S */
static __device__ __forceinline__ void add_state(float y[4][4], const rows16 &r, const struct state &state) {
#pragma unroll
    for (int s = 0; s < 4; s++) {
        uint32_t f[4];
        block<LEFT>(f, r, s);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const float *p = &state.s[n / 2][2 * s][n % 2 * 2], *q = &state.s[n / 2][2 * s + 1][n % 2 * 2];
            multiply(y[n], f, pack2<bf16>(p[0], p[1]), pack2<bf16>(q[0], q[1]));
        }
    }
}

/* S = diag(total) S + k^T v */
static __device__ __forceinline__ void step_state(struct state &state, const rows16 &k, const rows16 &v, int half,
                                                  const float *total) {
    uint32_t left[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) block<TURNED_LEFT>(left[i], v, 2 * half + i);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint32_t f[4];
        block<TURNED>(f, k, j);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float2 d = *(const float2 *)(total + 8 * (2 * j + h) + threadIdx.x % 4 * 2);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float *s = state.s[i][2 * j + h];
                s[0] = __fmul_rn(s[0], d.x);
                s[1] = __fmul_rn(s[1], d.y);
                s[2] = __fmul_rn(s[2], d.x);
                s[3] = __fmul_rn(s[3], d.y);
                multiply(s, left[i], f[2 * h], f[2 * h + 1]);
            }
        }
    }
}

/* Reads or writes a state [key, value]. */
template <bool SAVE> static __device__ __forceinline__ void move_state(struct state &state, float *slot) {
    int lane = threadIdx.x % 32, half = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float *there = slot + (8 * j + lane % 4 * 2 + e % 2) * HEAD + 32 * half + 16 * i + lane / 4 + e / 2 * 8;
                if (SAVE) *there = state.s[i][j][e];
                else state.s[i][j][e] = *there;
            }
}

/* y of a tile for this warp's values, into the tile's room; then the state, if it is to be kept. */
template <bool STATE>
static __device__ __forceinline__ void make_y(struct shared *m, struct state &state, int tile, int set, bool started,
                                              bool keep) {
    int lane = threadIdx.x % 32, half = threadIdx.x / 32;
    float y[4][4] = {};
    uint32_t v[2][4];
    uint4 high = m->high[tile][lane], low = m->low[tile][lane];
    const uint32_t a[2][4] = {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
#pragma unroll
    for (int i = 0; i < 2; i++) block<TURNED>(v[i], m->v[set + tile], 2 * half + i);
    add_values(y, a[0], v);
    add_values(y, a[1], v);
    if (STATE && started) add_state(y, m->r[tile], state);
    else add_seen(m, y, m->r[tile], set + tile, half);
    int to = place(m, m->work[tile].wide) + lane / 4 * 256 + (half * 128 + lane % 4 * 8 ^ mix32(lane / 4));
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            at<float2>(m, (to ^ n * 32) + h * 8 * 256) = make_float2(y[n][2 * h], y[n][2 * h + 1]);
    if (STATE && keep) step_state(state, m->k[set + tile], m->v[set + tile], half, m->total[set + tile]);
}

/* ---- norm and gate ----------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ float inverse_root(float a) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(a));
    return y;
}
static __device__ __forceinline__ float gate_of(float a) { /* a sigmoid(a) = a/2 + a/2 tanh(a/2) */
    float half = 0.5f * a;
    return __fmaf_rn(half, tanh_short(half), half);
}
static __device__ __forceinline__ void load8(float *a, const float *p) {
    *(float4 *)a = *(const float4 *)p;
    *(float4 *)(a + 4) = *(const float4 *)(p + 4);
}
static __device__ __forceinline__ float sum_of_8(const float *a) {
    return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
}
static __device__ __forceinline__ float sum_over_8(float a) {
#pragma unroll
    for (int d = 4; d; d /= 2) a += __shfl_xor_sync(~0u, a, d);
    return a;
}

/* out = (GroupNorm(y) w + b) silu(g): eight lanes a token, eight values a lane. */
static __device__ __forceinline__ void store_tile(struct shared *m, const rows32 &y, const struct chunk_args &a,
                                                  size_t first, int count, const uint4 gate[4], const float *weight,
                                                  const float *bias) {
    int lane = threadIdx.x % 32, part = lane % 8, row = lane / 8; /* mix32 looks at two bits of a row */
    int from = place(m, y) + row * 256 + (part * 32 ^ mix32(row));
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int t = 4 * i + row;
        float z[8], square[2] = {};
        *(float4 *)z = at<float4>(m, from + i * 4 * 256);
        *(float4 *)(z + 4) = at<float4>(m, (from ^ 16) + i * 4 * 256);
        float mean = sum_over_8(sum_of_8(z)) * (1.0f / HEAD);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            z[j] -= mean;
            square[j % 2] = __fmaf_rn(z[j], z[j], square[j % 2]);
        }
        float scale = inverse_root(__fmaf_rn(sum_over_8(square[0] + square[1]), 1.0f / HEAD, GROUP_NORM_EPS));
        uint32_t g[4] = {gate[i].x, gate[i].y, gate[i].z, gate[i].w}, out[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float2 b = unpack(g[j]);
            out[j] = pack2<bf16>(__fmaf_rn(z[2 * j] * scale, weight[2 * j], bias[2 * j]) * gate_of(b.x),
                                 __fmaf_rn(z[2 * j + 1] * scale, weight[2 * j + 1], bias[2 * j + 1]) * gate_of(b.y));
        }
        if (t < count)
            __stcg((uint4 *)(a.out + first + (size_t)t * a.C + part * 8), make_uint4(out[0], out[1], out[2], out[3]));
    }
}

static __device__ __forceinline__ void load_gate(uint4 gate[4], const struct chunk_args &a, size_t at, int count) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int t = 4 * i + lane / 8;
        gate[i] = t < count ? *(const uint4 *)(a.g + at + (size_t)t * a.C + lane % 8 * 8) : make_uint4(0, 0, 0, 0);
    }
}

/* ---- a piece ----------------------------------------------------------------------------------------------------- */

struct piece {
    int first, last, from, to, column;
};

/* STATE: without, the piece is a fresh sequence whole, and short enough to need none. */
template <int STEPS, bool STATE>
static __device__ __forceinline__ void run_piece(struct shared *m, const struct chunk_args &a, const struct piece &p,
                                                 int warp) {
    int lane = threadIdx.x % 32, set = 0; /* the first tile's place among those kept */
    size_t in_slot = (size_t)p.column * HEAD;
    bool started = STATE && p.from >= 0, lasting = p.to >= 0 || p.last - p.first > CHUNK_GRAIN;
    struct state state = {};
    send_turn(m, a, (size_t)p.first * a.C + p.column, min(TURN, p.last - p.first), set);
    float2 u = *(const float2 *)(a.u + p.column + 2 * lane);
    if (started) move_state<false>(state, a.slots + (size_t)p.from * a.slot_stride + in_slot);
#pragma unroll 1
    for (int t = p.first; t < p.last; t += TURN, set ^= WARPS) {
        int count = min(TURN, p.last - t), next = t + TURN, mine = count - TILE * warp;
        size_t here = (size_t)(t + TILE * warp) * a.C + p.column;
        uint4 gate[4];
        float weight[8], bias[8];
        if (STATE && t - p.first >= CHUNK_GRAIN) started = true;
        if (mine > 0) decay_up<STEPS>(m, m->work[warp].wide, a, t + TILE * warp, p.last, p.column);
        copies_wait();
        __syncthreads();
        if (mine > 0) make_tile(m, warp, set, u);
        __syncthreads();
        load_gate(gate, a, here, mine);
#pragma unroll 1
        for (int tile = 0; tile * TILE < count; tile++) {
            bool later = next < p.last || (tile + 1) * TILE < count;
            make_y<STATE>(m, state, tile, set, started, started ? later || p.to >= 0 : lasting);
        }
        load8(weight, a.weight + p.column + lane % 8 * 8);
        load8(bias, a.bias + p.column + lane % 8 * 8);
        __syncthreads();
        if (next < p.last) send_turn(m, a, (size_t)next * a.C + p.column, min(TURN, p.last - next), set ^ WARPS);
        if (mine > 0) store_tile(m, m->work[warp].wide, a, here, mine, gate, weight, bias);
        __syncwarp();
    }
    if (STATE && p.to >= 0) move_state<true>(state, a.slots + (size_t)p.to * a.slot_stride + in_slot);
}

template <int STEPS> static __global__ void __launch_bounds__(THREADS, BLOCKS) wkv_chunk(const struct chunk_args a) {
    if (!HAS_BF16) return;
    __shared__ __align__(256) struct shared m;
    int number = blockIdx.x / a.H, lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    let_next_kernel_start();
    if (number >= a.meta.head[1]) return;
    /* One load for all four, and by shuffles: else the compiler loads again where they are needed, and waits again. */
    const int *there = lane < 2 ? a.meta.start + lane : lane == 2 ? a.meta.from : a.meta.to;
    int value = there[number];
    struct piece p = {__shfl_sync(~0u, value, 0), __shfl_sync(~0u, value, 1), __shfl_sync(~0u, value, 2),
                      __shfl_sync(~0u, value, 3), (int)blockIdx.x % a.H * HEAD};
    wait_for_kernels_before(); /* the numbers of the pass come from none */
    if (p.last - p.first <= CHUNK_GRAIN && p.from < 0 && p.to < 0) run_piece<STEPS, false>(&m, a, p, warp);
    else run_piece<STEPS, true>(&m, a, p, warp);
}

/* ---- verb -------------------------------------------------------------------------------------------------------- */

bool chunk_fits(const struct device *dev) {
    return dev->in == BF16 && dev->dims.N == HEAD;
}

template <int STEPS> static void launch(const struct worker *w, const struct chunk_args &a) {
    cudaFuncSetAttribute(wkv_chunk<STEPS>, cudaFuncAttributePreferredSharedMemoryCarveout,
                         cudaSharedmemCarveoutMaxShared);
    dim3 grid((unsigned)w->grid.S * (unsigned)a.H);
    launch_early(overlaps(w), w->stream, wkv_chunk<STEPS>, grid, THREADS, 0, a);
}

enum status chunk_run(struct worker *w, const struct wkv *a, float *slots, size_t slot_stride, struct error *e) {
    const struct dims *d = &w->dev->dims;
    const struct weight *up = w->decay.w2;
    int K = (int)(up->bytes / sizeof(bf16) / (size_t)up->n); /* padded */
    struct chunk_args args = {w->meta,
                              (const bf16 *)a->r,
                              (const bf16 *)a->k,
                              (const bf16 *)a->v,
                              (const bf16 *)a->g,
                              w->low,
                              (const uint4 *)up->data,
                              vector_of(w->decay.time_decay),
                              up->k,
                              K,
                              vector_of(a->u),
                              vector_of(a->ln_x.weight),
                              vector_of(a->ln_x.bias),
                              slots,
                              slot_stride,
                              (bf16 *)a->out,
                              d->C,
                              d->H};
    if (up->k == 64) launch<4>(w, args);
    else if (up->k == 128) launch<8>(w, args);
    else launch<0>(w, args);
    return LAUNCHED(w, "wkv", e);
}
