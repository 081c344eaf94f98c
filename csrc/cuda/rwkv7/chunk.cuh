/* The delta rule of RWKV-7 for heads of 64 in bfloat16: sixteen tokens at a time, on tensor cores.
 *
 * Let e_t be the product of decays from the tile's first token to token t, d_t = 1 / |kk_t|, D their diagonal, and
 *   A_t = -kk_t e_(t-1)    B_t = kk_t al_t / e_t    K_t = k_t / e_t    R_t = r_t e_t        rows [16, 64], kk not normed
 * Then with S (value, key) before the tile, and lower() without, lower'() with its diagonal,
 *   P = lower(A K^T) v + A S^T             what the state holds in the directions that are removed
 *   U = X P                                X = D (1 - D lower(A B^T) D)^-1 D: each removal sees those before it
 *   y = lower'(R K^T) v + lower'(R B^T) U + R S^T
 *   S = (S + v^T K + U^T B) diag(e_15)
 * A decay is at least 2^-0.875, so 1 / e stays below 2^14 over a tile and nothing overflows.
 *
 * A warp makes A, B, K, R and the four matrices between tokens of a tile; then every warp goes over a tile with its share
 * of the values, transposed, so that a product's accumulators are the next one's left operand. S stays in registers in
 * float32. Operands are rounded to bfloat16, and those that are sums are kept in two parts; sums are float32. Tiles are
 * counted from where a run starts a sequence, and a pass cuts at whole tiles. How many warps share a head, and whether
 * tiles were made ahead of the walk, changes no operation on a value and no order. */
#ifndef RWKVSTS_CUDA_CHUNK7_CUH
#define RWKVSTS_CUDA_CHUNK7_CUH

#include "launch.cuh"
#include "rwkv7/delta.cuh"
#include "tile.cuh"

enum { GROUP = 4 };   /* tokens whose rows are read before any is written */
enum { STRIDE = 20 }; /* floats of a row of a matrix between tokens */
enum { PARTS = 2 };   /* of an operand that is a sum: its bfloat16, and what that leaves */

/* A matrix between tokens [t, s] as an operand: four quarters, of which that above the diagonal is zero. */
typedef uint4 fragments[PARTS][32];

/* What the state's step over a tile needs. */
struct step {
    rows16 k, v, away, back;          /* K, v, A and B; at first k, v, the rate and the value's blend */
    fragments solve, removes_written; /* X, lower(A K^T) */
    float total[HEAD];                /* e_15 */
};

/* Of a tile that was made ahead, what does not lie in the pass's own rows. */
struct made {
    fragments solve, removes_written;
    float total[HEAD], bonus[TILE];
};

/* A tile in shared memory: what its y needs, too. */
struct tile : step {
    rows16 r; /* R; at first r */
    union {
        rows16 v_first;
        struct {
            fragments reads_removed, reads_written; /* lower'(R B^T), lower'(R K^T) */
        };
    };
    union {
        rows32 decay; /* its low rank's sum, on its way to the exponents */
        rows32 y;
        float between[2][TILE][STRIDE]; /* lower(A B^T) transposed; X */
    };
    float bonus[TILE], scale[TILE]; /* sum over the head of r k r_k; d */
};

/* ---- loading ----------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ void send_rows(rows16 &to, const void *from, size_t at, int C, int count) {
    const int lane = threadIdx.x % 32, part = lane % 8, row = lane / 8; /* four tokens at a time */
    const bf16 *p = (const bf16 *)from + at + part * 8;
#pragma unroll
    for (int t = row; t < TILE; t += 4) {
        bool there = t < count;
        copy16_or_zeros(shared_address(&to) + t * 128 + (part * 16 ^ mix16(t)), there ? p + (size_t)t * C : p, there);
    }
}

static __device__ __forceinline__ void send_decay(rows32 &to, const float *from, size_t at, int C, int count) {
    const int lane = threadIdx.x % 32, part = lane % 16, row = lane / 16; /* two tokens at a time */
    const float *p = from + at + part * 4;
#pragma unroll
    for (int t = row; t < TILE; t += 2) {
        bool there = t < count;
        copy16_or_zeros(shared_address(&to[t][part * 4]), there ? p + (size_t)t * C : p, there);
    }
}

/* A warp sends for its tile of `count` tokens; `at` is the head's first column in the first. What stands past them is 0. */
static __device__ __forceinline__ void send_tile(struct tile *m, const struct wkv7_args &a, size_t at, int count) {
    send_rows(m->r, a.r, at, a.C, count);
    send_rows(m->k, a.k, at, a.C, count);
    send_rows(m->v, a.v, at, a.C, count);
    send_rows(m->away, a.rate, at, a.C, count);
    send_decay(m->decay, a.decay, at, a.C, count);
    if (!a.value) return;
    send_rows(m->back, a.value, at, a.C, count);
    send_rows(m->v_first, a.v_first, at, a.C, count);
}

/* A warp sends `bytes` of whole 16. */
static __device__ __forceinline__ void send_bytes(void *to, const void *from, int bytes) {
    for (int i = threadIdx.x % 32 * 16; i < bytes; i += 32 * 16)
        copy16_or_zeros(shared_address(to) + i, (const char *)from + i, true);
}

/* ---- rows: a lane has two columns, and walks over the tokens --------------------------------------------------------- */

static __device__ __forceinline__ float sigmoid_approx(float a) { /* 2^-12, an eighth of what its bfloat16 rounds to */
    return __fmaf_rn(0.5f, tanh_approx(0.5f * a), 0.5f);
}
static __device__ __forceinline__ float2 load2(const float *p) {
    return __ldg((const float2 *)p + threadIdx.x % 32);
}
static __device__ __forceinline__ float blend(float v, float first, float a) {
    return __fmaf_rn(first - v, sigmoid_approx(a), v);
}

/* v += (v_first - v) sigmoid(v0 + value) */
static __device__ __forceinline__ void blend_values(struct tile *m, const struct wkv7_args &a, int column) {
    const float2 v0 = load2(a.v0 + column);
    const int vs = offset(m, m->v), values = offset(m, m->back), firsts = offset(m, m->v_first);
#pragma unroll
    for (int t = 0; t < TILE; t += GROUP) {
        float2 v[GROUP], first[GROUP], d[GROUP];
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            v[i] = unpack(pair(m, vs, t + i));
            first[i] = unpack(pair(m, firsts, t + i));
            d[i] = unpack(pair(m, values, t + i));
        }
#pragma unroll
        for (int i = 0; i < GROUP; i++)
            pair(m, vs, t + i) =
                pack2<bf16>(blend(v[i].x, first[i].x, v0.x + d[i].x), blend(v[i].y, first[i].y, v0.y + d[i].y));
    }
}

/* A, B, K and R in place, and what a token's columns sum to. Tokens from `count` on are zero and do not decay. Tokens go by
 * in groups, as no load passes a store: else each would wait for the one before. */
static __device__ __forceinline__ void make_rows(struct tile *m, const struct wkv7_args &a, int column, int count) {
    const int lane = threadIdx.x % 32, rs = offset(m, m->r), ks = offset(m, m->k), as = offset(m, m->away),
              bs = offset(m, m->back);
    const float2 w0 = load2(a.w0 + column), a0 = load2(a.a0 + column), k_k = load2(a.k_k + column),
                 k_a = load2(a.k_a + column), r_k = load2(a.r_k + column);
    float2 exponent = make_float2(0, 0), before = make_float2(1, 1); /* of the decay so far; that before the token */
    float squares[TILE], bonus[TILE];
#pragma unroll
    for (int t = 0; t < TILE; t += GROUP) {
        uint32_t r[GROUP], k[GROUP], rate[GROUP];
        float2 d[GROUP];
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            r[i] = pair(m, rs, t + i), k[i] = pair(m, ks, t + i), rate[i] = pair(m, as, t + i);
            d[i] = *(const float2 *)&m->decay[t + i][2 * lane];
        }
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const bool there = t + i < count;
            exponent.x += there ? decay_exponent(w0.x + d[i].x) : 0;
            exponent.y += there ? decay_exponent(w0.y + d[i].y) : 0;
            d[i] = exponent;
        }
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const float2 write = unpack(k[i]), read = unpack(r[i]), add = unpack(rate[i]);
            const float2 al = make_float2(sigmoid_approx(a0.x + add.x), sigmoid_approx(a0.y + add.y));
            const float2 kk = times(write, k_k), key = make_float2(write.x * __fmaf_rn(al.x - 1.0f, k_a.x, 1.0f),
                                                                   write.y * __fmaf_rn(al.y - 1.0f, k_a.y, 1.0f));
            const float2 decay = make_float2(exp2_fast(d[i].x), exp2_fast(d[i].y));
            const float2 grow = make_float2(exp2_fast(-d[i].x), exp2_fast(-d[i].y));
            squares[t + i] = __fmaf_rn(kk.x, kk.x, __fmul_rn(kk.y, kk.y));
            bonus[t + i] = __fmaf_rn(read.x * key.x, r_k.x, __fmul_rn(read.y * key.y, r_k.y));
            pair(m, rs, t + i) = pack(times(read, decay));
            pair(m, ks, t + i) = pack(times(key, grow));
            pair(m, as, t + i) = pack2<bf16>(-kk.x * before.x, -kk.y * before.y);
            pair(m, bs, t + i) = pack(times(times(kk, al), grow));
            before = decay;
        }
    }
    *(float2 *)&m->total[2 * lane] = before;
    const float length = sqrtf(sum_tokens<TILE>(squares)), sum = sum_tokens<TILE>(bonus);
    if (lane % 2) return; /* lanes 2 t and 2 t + 1 hold the sums of token t */
    m->scale[lane / 2] = 1.0f / fmaxf(length, 1e-12f);
    m->bonus[lane / 2] = sum;
}

/* ---- matrices between tokens ----------------------------------------------------------------------------------------- */

/* Element i of a quarter: its row and column. */
struct place {
    int t, s;
};
static __device__ __forceinline__ struct place place_of(int right, int i) {
    const int lane = threadIdx.x % 32;
    return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2 + 8 * right};
}

/* What lies on and below the diagonal, or below it alone. */
static __device__ __forceinline__ void cut(float a[2][4], bool diagonal) {
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const struct place p = place_of(n, i);
            if (p.s > p.t || (p.s == p.t && !diagonal)) a[n][i] = 0;
        }
}

/* As an operand whose rows are the result's columns. */
static __device__ __forceinline__ void keep(fragments &to, const float a[2][4]) {
    uint4 high, low;
    pack_parts(a[0][0], a[0][1], &high.x, &low.x);
    pack_parts(a[1][0], a[1][1], &high.y, &low.y);
    pack_parts(a[0][2], a[0][3], &high.z, &low.z);
    pack_parts(a[1][2], a[1][3], &high.w, &low.w);
    to[0][threadIdx.x % 32] = high;
    to[1][threadIdx.x % 32] = low;
}

/* X from lower(A B^T), by forward substitution: a lane has a column of the inverse. */
static __device__ __forceinline__ void solve(struct tile *m, float a[2][4]) {
    const int lane = threadIdx.x % 32, column = lane % 16;
    float (*matrix)[STRIDE] = m->between[0], (*result)[STRIDE] = m->between[1], x[TILE], part[2][4];
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const struct place p = place_of(n, i);
            matrix[p.s][p.t] = m->scale[p.t] * m->scale[p.s] * a[n][i];
        }
    __syncwarp();
#pragma unroll
    for (int t = 0; t < TILE; t++) x[t] = t == column;
#pragma unroll
    for (int s = 0; s < TILE - 1; s++)
#pragma unroll
        for (int t = s / 4 * 4; t < TILE; t += 4) { /* what stands at and above the diagonal is zero */
            const float4 f = *(const float4 *)&matrix[s][t];
            if (t > s) x[t] = __fmaf_rn(f.x, x[s], x[t]);
            if (t + 1 > s) x[t + 1] = __fmaf_rn(f.y, x[s], x[t + 1]);
            if (t + 2 > s) x[t + 2] = __fmaf_rn(f.z, x[s], x[t + 2]);
            if (t + 3 > s) x[t + 3] = __fmaf_rn(f.w, x[s], x[t + 3]);
        }
    if (lane < TILE)
#pragma unroll
        for (int t = 0; t < TILE; t++) result[t][lane] = m->scale[t] * x[t] * m->scale[lane];
    __syncwarp();
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) part[n][i] = result[place_of(n, i).t][place_of(n, i).s];
    keep(m->solve, part);
}

/* The matrices of what is removed, and those of what is read. */
template <bool REMOVES, bool READS> static __device__ __forceinline__ void make_matrices(struct tile *m) {
    float removes_removed[2][4] = {}, removes_written[2][4] = {}, reads_removed[2][4] = {}, reads_written[2][4] = {};
#pragma unroll
    for (int s = 0; s < HEAD / 16; s++) {
        uint32_t away[4], r[4], back[4], k[4];
        if (REMOVES) block<LEFT>(away, m->away, s);
        if (READS) block<LEFT>(r, m->r, s);
        block<RIGHT>(back, m->back, s);
        block<RIGHT>(k, m->k, s);
#pragma unroll
        for (int n = 0; n < 2; n++) {
            if (REMOVES) multiply(removes_removed[n], away, back[2 * n], back[2 * n + 1]);
            if (REMOVES) multiply(removes_written[n], away, k[2 * n], k[2 * n + 1]);
            if (READS) multiply(reads_removed[n], r, back[2 * n], back[2 * n + 1]);
            if (READS) multiply(reads_written[n], r, k[2 * n], k[2 * n + 1]);
        }
    }
    if (READS) {
        cut(reads_removed, true);
        cut(reads_written, true);
        keep(m->reads_written, reads_written);
        keep(m->reads_removed, reads_removed);
    }
    if (REMOVES) {
        cut(removes_removed, false);
        cut(removes_written, false);
        keep(m->removes_written, removes_written);
        solve(m, removes_removed);
    }
}

/* A warp makes its tile: what the turn needs of it besides the state. */
template <bool READS>
static __device__ __forceinline__ void make_tile(struct tile *m, const struct wkv7_args &a, int column, int count) {
    if (a.value) blend_values(m, a, column);
    make_rows(m, a, column, count);
    __syncwarp();
    make_matrices<true, READS>(m);
}

/* ---- y and the state: a warp's values, 16 ROWS of them, by 16 tokens or by all keys -------------------------------------- */

/* s[i][j]: values 16 i + lane/4 (+ 8) of this warp, keys 8 j + 2 (lane%4) (+ 1). */
template <int ROWS> struct head_state {
    float s[ROWS][8][4];
};
/* c[i][n]: the same values, tokens 8 n + 2 (lane%4) (+ 1). */
template <int ROWS> struct by_token {
    float c[ROWS][2][4];
};
template <int ROWS> struct left {
    uint32_t high[ROWS][4], low[ROWS][4];
};

/* Two neighbouring accumulators as a left operand, in two parts. */
static __device__ __forceinline__ void pack_left(uint32_t high[4], uint32_t low[4], const float a[4],
                                                 const float b[4]) {
    pack_parts(a[0], a[1], &high[0], &low[0]);
    pack_parts(a[2], a[3], &high[1], &low[1]);
    pack_parts(b[0], b[1], &high[2], &low[2]);
    pack_parts(b[2], b[3], &high[3], &low[3]);
}
template <int ROWS>
static __device__ __forceinline__ void pack_left(struct left<ROWS> &to, const struct by_token<ROWS> &from) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) pack_left(to.high[i], to.low[i], from.c[i][0], from.c[i][1]);
}

/* sum += a m^T, m a matrix between tokens. */
template <int ROWS>
static __device__ __forceinline__ void add(struct by_token<ROWS> &sum, const uint32_t a[ROWS][4], const uint4 &m) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        multiply(sum.c[i][0], a[i], m.x, m.y);
        multiply(sum.c[i][1], a[i], m.z, m.w);
    }
}
template <int ROWS>
static __device__ __forceinline__ void add_exact(struct by_token<ROWS> &sum, const uint32_t a[ROWS][4],
                                                 const fragments &m) {
    add(sum, a, m[0][threadIdx.x % 32]);
    add(sum, a, m[1][threadIdx.x % 32]);
}
template <int ROWS>
static __device__ __forceinline__ void add_parts(struct by_token<ROWS> &sum, const struct left<ROWS> &a,
                                                 const fragments &m) {
    add(sum, a.high, m[0][threadIdx.x % 32]);
    add(sum, a.low, m[0][threadIdx.x % 32]);
    add(sum, a.high, m[1][threadIdx.x % 32]);
}

/* held += S A^T; y += S R^T where there is an r. The lower parts of S are summed apart: two short chains, not a long one. */
template <bool READS, int ROWS>
static __device__ __forceinline__ void add_state(struct by_token<ROWS> &held, struct by_token<ROWS> &y,
                                                 const struct head_state<ROWS> &state, const struct step *m,
                                                 const struct tile *full) {
    struct by_token<ROWS> lower = {};
#pragma unroll
    for (int s = 0; s < HEAD / 16; s++) {
        uint32_t away[4], r[4];
        block<RIGHT>(away, m->away, s);
        if (READS) block<RIGHT>(r, full->r, s);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            uint32_t high[4], low[4];
            pack_left(high, low, state.s[i][2 * s], state.s[i][2 * s + 1]);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                multiply(held.c[i][n], high, away[2 * n], away[2 * n + 1]);
                multiply(lower.c[i][n], low, away[2 * n], away[2 * n + 1]);
                if (READS) multiply(y.c[i][n], high, r[2 * n], r[2 * n + 1]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int e = 0; e < 8; e++) held.c[i][e / 4][e % 4] += lower.c[i][e / 4][e % 4];
}

/* S = (S + v^T K + U^T B) diag(e_15) */
template <int ROWS>
static __device__ __forceinline__ void step_state(struct head_state<ROWS> &state, const uint32_t v[ROWS][4],
                                                  const struct left<ROWS> &removed, const struct step *m) {
#pragma unroll
    for (int j = 0; j < HEAD / 16; j++) {
        uint32_t k[4], back[4];
        block<TRANSPOSED>(k, m->k, j);
        block<TRANSPOSED>(back, m->back, j);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float2 d = *(const float2 *)&m->total[8 * (2 * j + h) + threadIdx.x % 4 * 2];
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                float *s = state.s[i][2 * j + h];
                multiply(s, v[i], k[2 * h], k[2 * h + 1]);
                multiply(s, removed.high[i], back[2 * h], back[2 * h + 1]);
                multiply(s, removed.low[i], back[2 * h], back[2 * h + 1]);
                s[0] = __fmul_rn(s[0], d.x);
                s[1] = __fmul_rn(s[1], d.y);
                s[2] = __fmul_rn(s[2], d.x);
                s[3] = __fmul_rn(s[3], d.y);
            }
        }
    }
}

/* In bytes: eight values of four tokens meet all banks. */
static __device__ __forceinline__ int y_at(int t, int value) {
    return t * 256 + (value * 4 ^ (t / 2 & 3) * 32);
}
template <int ROWS>
static __device__ __forceinline__ void store_y(struct tile *m, const struct by_token<ROWS> &y, int warp) {
    const int lane = threadIdx.x % 32, ys = offset(m, m->y);
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                at<float>(m, ys + y_at(8 * n + lane % 4 * 2 + e % 2, 16 * (ROWS * warp + i) + lane / 4 + e / 2 * 8)) =
                    y.c[i][n][e];
}

/* A tile for this warp's values: its y, where it is asked for in `full`; then the state, if it is to be kept. `started`:
 * it is not zero. */
template <bool READS, int ROWS>
static __device__ __forceinline__ void pass_tile(const struct step *m, struct tile *full,
                                                 struct head_state<ROWS> &state, int warp, bool started, bool kept) {
    uint32_t v[ROWS][4];
    struct by_token<ROWS> held = {}, removed = {}, y = {};
    struct left<ROWS> parts;
#pragma unroll
    for (int i = 0; i < ROWS; i++) block<TRANSPOSED_LEFT>(v[i], m->v, ROWS * warp + i);
    add_exact(held, v, m->removes_written); /* first what need not wait for the state */
    if (READS) add_exact(y, v, full->reads_written);
    if (started) add_state<READS>(held, y, state, m, full);
    pack_left(parts, held);
    add_parts(removed, parts, m->solve);
    pack_left(parts, removed);
    if (READS) add_parts(y, parts, full->reads_removed);
    if (kept) step_state(state, v, parts, m);
    if (READS) store_y(full, y, warp);
}

/* Reads or writes a warp's values of a state (value, key). */
template <bool SAVE, int ROWS>
static __device__ __forceinline__ void move_state(struct head_state<ROWS> &state, float *slot, int warp) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float *s = state.s[i][j] + 2 * h;
                float2 *there =
                    (float2 *)(slot + (16 * (ROWS * warp + i) + lane / 4 + 8 * h) * HEAD + 8 * j + lane % 4 * 2);
                if (SAVE) *there = make_float2(s[0], s[1]);
                else s[0] = there->x, s[1] = there->y;
            }
}

/* states.cu: makes the tiles of the pieces that go ahead, and leaves their states before each part and at their ends. */
cudaError_t wkv7_states_run(const struct worker *w, const struct wkv7_args *a);

#endif
