/* A tile in shared memory: 16 tokens of a head of 64 in bfloat16, and its products on tensor cores, by one warp.
 *
 * Rows of 64 in 16 bits lie in eight parts of 16 bytes, mixed by their row so that eight rows' same part meets all banks.
 * All is aligned to a row, so that mixing is one xor on an offset in bytes. Accumulators are as mma16816 leaves them, and
 * serve as the next product's left operand: rows lane / 4 and + 8, columns 2 (lane % 4) and + 1. */
#ifndef RWKVSTS_CUDA_TILE_CUH
#define RWKVSTS_CUDA_TILE_CUH

#include "elements.cuh"

enum { HEAD = 64, TILE = 16 };
typedef bf16 rows16[TILE][HEAD];
typedef float rows32[TILE][HEAD];

static __device__ __forceinline__ constexpr int mix16(int row) {
    return (row & 7) * 16;
}

/* Where something lies in shared memory, in bytes; what lies there. */
static __device__ __forceinline__ int offset(const void *m, const void *p) {
    return (int)((const char *)p - (const char *)m);
}
template <typename T> static __device__ __forceinline__ T &at(void *m, int offset) {
    return *(T *)((char *)m + offset);
}

/* Sixteen rows by sixteen columns of a[.][16 s ..], as an operand of a product. LEFT: its rows are the result's; RIGHT:
 * its rows are the result's columns, {0,1} the first eight; TRANSPOSED: its rows are summed over, {0,1} the first eight
 * columns; TRANSPOSED_LEFT: the same, its columns being the result's rows. */
enum operand { LEFT, RIGHT, TRANSPOSED, TRANSPOSED_LEFT };

template <enum operand AS> static __device__ __forceinline__ void block(uint32_t f[4], const rows16 &a, int s) {
    int lane = threadIdx.x % 32, low = lane / 8 % 2, high = lane / 16;
    int row = lane % 8 + 8 * (AS == LEFT || AS == TRANSPOSED ? low : high),
        part = AS == LEFT || AS == TRANSPOSED ? high : low;
    uint32_t p = shared_address(&a) + row * 128 + (part * 16 ^ mix16(row));
    p ^= s * 32;
    if (AS == LEFT || AS == RIGHT) load_matrices(f, p);
    else load_matrices_transposed(f, p);
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

/* A lane has two columns of a tile: `pair` is those of token t in rows that start at `rows`. */
static __device__ __forceinline__ uint32_t &pair(void *m, int rows, int t) {
    return at<uint32_t>(m, (rows + (int)threadIdx.x % 32 * 4 ^ mix16(t)) + t * 128);
}

/* As sum_many: lanes 2 t and 2 t + 1 are left with the sum of token t. By recursion, so that `a` stays in registers. */
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

/* ---- norms: eight lanes a token, eight columns a lane ------------------------------------------------------------ */

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

#endif
