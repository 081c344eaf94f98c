/* The states of long pieces, ahead of wkv_chunk: so that all parts of a piece run side by side.
 *
 * wkv_chunk walks along a piece, and a pass of few long ones would leave most of the device idle. What follows token after
 * token is only S = diag(prod w) S + k^T v, a tile of 16 tokens at a time. wkv_keys makes its operands, all tiles side by
 * side: k decayed to the end of its tile, and the decay over the tile. wkv_states then walks: a block has 32 keys by 32
 * values of a head, and leaves the state before each part. Operations on a state and their order are those of wkv_chunk,
 * so whether a piece goes this way changes no bit. */
#include "rwkv6/chunk.cuh"

/* ---- operands -------------------------------------------------------------------------------------------------------- */

/* One tile of a warp: a lane has two keys. What stands past `last` does not decay, and its k is not stored. */
static __device__ __forceinline__ void store_tile_keys(void *m, int exponents, const struct chunk_args &a, int first,
                                                       int last, int column, float *totals) {
    const size_t here = (size_t)first * a.C + column + threadIdx.x % 32 * 2;
    const bf16 *from = a.k + here;
    bf16 *to = a.keys + here;
    const int count = min(TILE, last - first);
    float2 w[TILE];
    uint32_t k[TILE];
#pragma unroll
    for (int t = 0; t < TILE; t++) k[t] = t < count ? *(const uint32_t *)(from + (size_t)t * a.C) : 0;
#pragma unroll
    for (int t = 0; t < TILE; t++) {
        float2 d = at<float2>(m, (exponents + (int)threadIdx.x % 32 * 8 ^ mix32(t)) + t * 256);
        w[t] = make_float2(decay_of(d.x), decay_of(d.y));
    }
    float2 p = w[0], q = w[TILE - 1];
    if (TILE <= count) *(uint32_t *)(to + (size_t)(TILE - 1) * a.C) = k[TILE - 1];
#pragma unroll
    for (int i = 1; i < TILE; i++) { /* products as in store_ends */
        const int t = TILE - 1 - i;
        if (t < count) *(uint32_t *)(to + (size_t)t * a.C) = pack(times(unpack(k[t]), q));
        p = times(p, w[i]);
        if (i < TILE - 1) q = times(q, w[t]);
    }
    *(float2 *)(totals + column + threadIdx.x % 32 * 2) = p;
}

template <int STEPS> static __global__ void __launch_bounds__(THREADS, 6) wkv_keys(const struct chunk_args a) {
    if (!AMPERE_CODE) return;
    __shared__ __align__(256) rows32 exponents[WARPS];
    int number = blockIdx.x / a.H, column = (int)blockIdx.x % a.H * HEAD;
    int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    const struct unit unit = a.meta.units[number];
#pragma unroll 1
    for (int tile = warp; unit.first + tile * TILE < unit.last; tile += WARPS) {
        int first = unit.first + tile * TILE;
        decay_up<STEPS>(exponents, exponents[warp], a, first, unit.last, column);
        __syncwarp();
        store_tile_keys(exponents, offset(exponents, exponents[warp]), a, first, unit.last, column,
                        a.totals + ((size_t)number * (PART / TILE) + tile) * a.C);
        __syncwarp(); /* the exponents were read */
    }
}

/* ---- states ---------------------------------------------------------------------------------------------------------- */

/* A block's share of a head, its warps' share of that, and what is on its way: STAGE tokens at a time. */
enum { SHARE = 32, SHARES = HEAD / SHARE, WALKERS = 128, STAGE = 64, STAGES = 5, STAGE_TILES = STAGE / TILE };

/* Rows of 32 in 16-bit lie in four parts of 16 bytes, mixed by their row so that eight rows' same part meets all banks. */
struct stage {
    bf16 k[STAGE][SHARE], v[STAGE][SHARE];
    float total[STAGE_TILES][SHARE];
};

static __device__ __forceinline__ int part_at(int row, int part) {
    return row * (SHARE * 2) + ((part ^ row / 2 % 4) * 16);
}

/* A walk along one piece. */
struct walk {
    const struct chunk_args &a;
    struct long_piece piece;
    int keys, values; /* first column of the block's keys, of its values */

    /* Zeros past the end. */
    __device__ __forceinline__ void send(struct stage *to, int tokens) const {
        int thread = threadIdx.x, row = thread / 4, part = thread % 4, length = piece.last - piece.first;
#pragma unroll
        for (int i = 0; i < STAGE; i += WALKERS / 4, row += WALKERS / 4) {
            bool there = tokens + row < length;
            size_t at = (size_t)(piece.first + (there ? tokens + row : 0)) * a.C + part * 8;
            copy16_or_zeros(shared_address(to->k) + part_at(row, part), a.keys + at + keys, there);
            copy16_or_zeros(shared_address(to->v) + part_at(row, part), a.v + at + values, there);
        }
        if (thread < STAGE_TILES * 8) {
            int tile = tokens / TILE + thread / 8;
            bool there = tile * TILE < length;
            const float *from = a.totals + ((size_t)piece.unit * (PART / TILE) + (there ? tile : 0)) * a.C + keys;
            copy16_or_zeros(shared_address(&to->total[thread / 8][thread % 8 * 4]), from + thread % 8 * 4, there);
        }
    }
};

/* A warp's 16 values by 16 keys: s[h] are values lane/4 (+ 8), keys 8 h + 2 (lane%4) (+ 1), as wkv_chunk has them. */
struct walker {
    float s[2][4];
    int keys, values; /* of the warp, within the block's */

    __device__ __forceinline__ void step(const struct stage *m, int tile) {
        int lane = threadIdx.x % 32, low = lane / 8 % 2, high = lane / 16, rows = tile * (TILE * SHARE * 2);
        uint32_t v[4], k[4];
        load_matrices_transposed(v, shared_address(m->v) + rows + part_at(lane % 8 + 8 * high, values / 8 + low));
        load_matrices_transposed(k, shared_address(m->k) + rows + part_at(lane % 8 + 8 * low, keys / 8 + high));
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float2 d = *(const float2 *)&m->total[tile][keys + 8 * h + lane % 4 * 2];
            s[h][0] = __fmul_rn(s[h][0], d.x);
            s[h][1] = __fmul_rn(s[h][1], d.y);
            s[h][2] = __fmul_rn(s[h][2], d.x);
            s[h][3] = __fmul_rn(s[h][3], d.y);
            multiply(s[h], v, k[2 * h], k[2 * h + 1]);
        }
    }
    /* Reads or writes a state [key, value] of the block's share. */
    template <bool SAVE> __device__ __forceinline__ void move(float *state) {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int key = keys + 8 * h + lane % 4 * 2 + e % 2, value = values + lane / 4 + e / 2 * 8;
                if (SAVE) state[key * HEAD + value] = s[h][e];
                else s[h][e] = state[key * HEAD + value];
            }
    }
};

static __global__ void __launch_bounds__(WALKERS) wkv_states(const struct chunk_args a) {
    if (!AMPERE_CODE) return;
    __shared__ __align__(128) struct stage ring[STAGES];
    int share = (int)blockIdx.x % (SHARES * SHARES), head = (int)blockIdx.x / (SHARES * SHARES) % a.H;
    int key = share % SHARES * SHARE, value = share / SHARES * SHARE, warp = threadIdx.x / 32;
    const struct walk walk = {a, a.meta.long_pieces[blockIdx.x / (SHARES * SHARES * a.H)], head * HEAD + key,
                              head * HEAD + value};
    const struct long_piece &p = walk.piece;
    const size_t in_state = (size_t)(head * HEAD + key) * HEAD + value, interim = (size_t)a.C * HEAD;
    const int length = p.last - p.first, tiles = (length + TILE - 1) / TILE;
    struct walker mine = {{}, warp % 2 * 16, warp / 2 * 16};
    if (p.from >= 0) mine.move<false>(a.slots + (size_t)p.from * a.slot_stride + in_state);
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        walk.send(&ring[i], i * STAGE);
        copies_commit();
    }
    float *next = a.interim + (size_t)p.interim * interim + in_state;
    for (int i = 0, slot = 0; i * STAGE_TILES < tiles; i++, slot = slot + 1 < STAGES ? slot + 1 : 0) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        walk.send(&ring[slot ? slot - 1 : STAGES - 1], (i + STAGES - 1) * STAGE);
        copies_commit();
        if (i && i * STAGE % PART == 0) {
            mine.move<true>(next);
            next += interim;
        }
        if ((i + 1) * STAGE_TILES <= tiles) {
#pragma unroll
            for (int tile = 0; tile < STAGE_TILES; tile++) mine.step(&ring[slot], tile);
        } else {
            for (int tile = 0; i * STAGE_TILES + tile < tiles; tile++) mine.step(&ring[slot], tile);
        }
    }
    if (p.to >= 0) mine.move<true>(a.slots + (size_t)p.to * a.slot_stride + in_state);
}

/* ---- running ----------------------------------------------------------------------------------------------------------- */

cudaError_t wkv_states_run(const struct worker *w, const struct chunk_args *a) {
    auto keys = a->D == 64 ? wkv_keys<4> : a->D == 128 ? wkv_keys<8> : wkv_keys<0>;
    dim3 units((unsigned)w->grid.long_units * (unsigned)a->H);
    dim3 shares((unsigned)w->grid.long_pieces * (unsigned)a->H * SHARES * SHARES);
    cudaError_t status = launch_early(false, w->stream, keys, units, THREADS, 0, *a);
    if (status != cudaSuccess) return status;
    return launch_early(false, w->stream, wkv_states, shares, WALKERS, 0, *a);
}
