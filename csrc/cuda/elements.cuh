/* Element types, and the functions of the equations whose bits two kernels must share.
 *
 * Every product here is one chain of tensor-core products in ascending k from zero: the order that makes a row's result
 * independent of how many rows there are. Functions that appear in a fused and in a separate pass are written once,
 * with explicit roundings, so that the compiler cannot contract them differently. */
#ifndef RWKVSTS_CUDA_ELEMENTS_CUH
#define RWKVSTS_CUDA_ELEMENTS_CUH

#include "ptx.cuh"

static __device__ __forceinline__ float to_float(float a) {
    return a;
}
static __device__ __forceinline__ float to_float(bf16 a) {
    return __bfloat162float(a);
}
static __device__ __forceinline__ float to_float(half_t a) {
    return __half2float(a);
}

template <typename E> __device__ __forceinline__ E from_float(float a);
template <> __device__ __forceinline__ float from_float<float>(float a) {
    return a;
}
template <> __device__ __forceinline__ bf16 from_float<bf16>(float a) {
    return __float2bfloat16_rn(a);
}
/* Saturates: an infinity would turn a whole row into NaN one product later. */
template <> __device__ __forceinline__ half_t from_float<half_t>(float a) {
    return __float2half_rn(fminf(fmaxf(a, -65504.0f), 65504.0f));
}

template <typename E> __device__ __forceinline__ uint32_t pack2(float low, float high) {
    E e[2] = {from_float<E>(low), from_float<E>(high)};
    return *reinterpret_cast<uint32_t *>(e);
}

/* Four neighbours in one access. */
template <typename E> struct four {
    E e[4];
};
template <typename E> __device__ __forceinline__ float4 load4(const E *p) {
    if constexpr (sizeof(E) == 4) {
        return *reinterpret_cast<const float4 *>(p);
    } else {
        uint2 u = *reinterpret_cast<const uint2 *>(p);
        const four<E> *f = reinterpret_cast<const four<E> *>(&u);
        return make_float4(to_float(f->e[0]), to_float(f->e[1]), to_float(f->e[2]), to_float(f->e[3]));
    }
}
template <typename E> __device__ __forceinline__ void store4(E *p, float4 a) {
    if constexpr (sizeof(E) == 4) {
        *reinterpret_cast<float4 *>(p) = a;
    } else {
        uint2 u;
        four<E> *f = reinterpret_cast<four<E> *>(&u);
        f->e[0] = from_float<E>(a.x);
        f->e[1] = from_float<E>(a.y);
        f->e[2] = from_float<E>(a.z);
        f->e[3] = from_float<E>(a.w);
        *reinterpret_cast<uint2 *>(p) = u;
    }
}

/* ---- functions of the equations ---------------------------------------------------------------------------- */

static constexpr float LOG2_E = 1.44269504f, LOG2_LOG2_E = 0.528766373f;

static __device__ __forceinline__ float sigmoid(float a) {
    return inverse_fast(1.0f + exp2_fast(-LOG2_E * a));
}
static __device__ __forceinline__ float silu(float a) {
    return a * sigmoid(a);
}
static __device__ __forceinline__ float tanh_fast(float a) { /* 1e-6 absolute, far inside what the product rounds to */
    return __fmaf_rn(-2.0f, inverse_fast(1.0f + exp2_fast(2.0f * LOG2_E * a)), 1.0f);
}
/* exp(-exp(w)) = 2^-(2^(w log2 e + log2 log2 e)) */
static __device__ __forceinline__ float decay_of(float w) {
    return exp2_fast(-exp2_fast(__fmaf_rn(w, LOG2_E, LOG2_LOG2_E)));
}

/* relu^2 reaches 65504 at 255.9: in half it is kept 2^-8 times its size, right up to an input of 4095, and the product
 * that reads it multiplies by 2^8. Rounded to E before squaring, as the separate pass finds it. */
template <typename E> struct relu_scale {
    static constexpr float down = 1.0f, up = 1.0f;
};
template <> struct relu_scale<half_t> {
    static constexpr float down = 1.0f / 256.0f, up = 256.0f;
};
template <typename E> __device__ __forceinline__ float relu_squared(float a) {
    float r = fmaxf(to_float(from_float<E>(a)), 0.0f);
    return __fmul_rn(__fmul_rn(r, r), relu_scale<E>::down);
}
template <typename Out> __device__ __forceinline__ float gate_add(float x, float gate, float y) {
    return __fmaf_rn(sigmoid(gate), to_float(from_float<Out>(y)), x);
}

static __device__ __forceinline__ float normalise(float x, float mean, float scale, float weight, float bias) {
    return __fmaf_rn(__fmul_rn(__fsub_rn(x, mean), scale), weight, bias);
}
static __device__ __forceinline__ float4 normalise4(float4 x, float2 stats, float4 w, float4 b) {
    return make_float4(normalise(x.x, stats.x, stats.y, w.x, b.x), normalise(x.y, stats.x, stats.y, w.y, b.y),
                       normalise(x.z, stats.x, stats.y, w.z, b.z), normalise(x.w, stats.x, stats.y, w.w, b.w));
}
static __device__ __forceinline__ float lerp(float a, float before, float mix) {
    return __fmaf_rn(__fsub_rn(before, a), mix, a);
}

/* ---- over a warp ----------------------------------------------------------------------------------------------- */

/* Sums COUNT values over a warp, each by the same tree. Lane l is left with value l / (32 / COUNT). */
template <int COUNT> static __device__ __forceinline__ float sum_many(float a[COUNT]) {
    int lane = threadIdx.x % 32, distance = 16;
#pragma unroll
    for (int n = COUNT; n > 1; n /= 2, distance /= 2) {
        bool upper = lane & distance;
#pragma unroll
        for (int i = 0; i < n / 2; i++) {
            float send = upper ? a[i] : a[i + n / 2], keep = upper ? a[i + n / 2] : a[i];
            a[i] = keep + __shfl_xor_sync(~0u, send, distance);
        }
    }
    float sum = a[0];
#pragma unroll
    for (int d = 16 / COUNT; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    return sum;
}

#endif
