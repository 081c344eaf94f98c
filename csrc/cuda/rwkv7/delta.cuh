/* What the two kernels of RWKV-7's delta rule share: what they are given, and the exponent of the decay. */
#ifndef RWKVSTS_CUDA_DELTA_CUH
#define RWKVSTS_CUDA_DELTA_CUH

#include "elements.cuh"
#include "rwkv7/rwkv7.h"

struct made; /* chunk.cuh */

/* Of pieces that go ahead, what tiles are made of gives way to the tiles: R, K, v blended, A and B. */
struct wkv7_args {
    struct meta meta;
    void *r, *k, *v;           /* [T, C] out */
    const void *v_first;       /* [T, C] out */
    const float *decay;        /* [T, C] low up, before w0 */
    void *rate;                /* [T, C] out, before a0 */
    const void *value;         /* [T, C] out, before v0; NULL in block 0 */
    void *back;                /* [T, C] out: room for B, value's own where it is not NULL */
    const void *gate;          /* [T, C] out */
    const float *w0, *a0, *v0; /* [C] */
    const float *k_k, *k_a, *r_k, *weight, *bias;
    float *slots; /* [slot, L, H, N, N] (value, key), at this layer */
    size_t slot_stride;
    void *out; /* [T, C] in */
    int C, H;
    struct made *made; /* [units, PART / TILE, H] */
    float *interim;    /* [.., H, N, N] */
};

/* decay = exp(-exp(-1/2) sigmoid(w)) = 2^exponent, between 2^-0.875 and 1 */
static __device__ __forceinline__ float decay_exponent(float w) {
    return -0.606530660f * LOG2_E * sigmoid(w);
}

/* chunk.cu: heads of 64 in bfloat16. */
cudaError_t wkv7_chunk_run(const struct worker *w, const struct wkv7_args *a);

#endif
