/* What follows a product of few rows, as it leaves the registers: shared by the kernels of few.cu and stream.cu.
 *
 * Outputs come in pairs, so n is even. What is added to is loaded for all pairs before any is stored: left between the
 * stores, each load would be waited for by itself. */
#ifndef RWKVSTS_CUDA_EPILOGUE_CUH
#define RWKVSTS_CUDA_EPILOGUE_CUH

#include "elements.cuh"
#include "product/product.h"

/* What two neighbouring outputs of one row are added to. */
struct addends {
    float2 x, gate;
};

template <typename Out> static __device__ __forceinline__ float2 load_pair(const Out *p) {
    if constexpr (sizeof(Out) == 4) return *(const float2 *)p;
    uint32_t u = *(const uint32_t *)p;
    const Out *e = (const Out *)&u;
    return make_float2(to_float(e[0]), to_float(e[1]));
}
template <typename E> static __device__ __forceinline__ void store_pair(E *p, float a, float b) {
    if constexpr (sizeof(E) == 4) *(float2 *)p = make_float2(a, b);
    else *(uint32_t *)p = pack2<E>(a, b);
}

/* Reads nothing where nothing is added, or past the end. */
template <typename Out>
static __device__ __forceinline__ struct addends load_addends(const struct product &p, int row, int output, int T) {
    struct addends a = {};
    if ((p.epilogue != ADD && p.epilogue != GATE_ADD) || row >= T || output >= p.n) return a;
    size_t index = (size_t)row * p.n + output;
    a.x = *(const float2 *)((const float *)p.out + index);
    if (p.epilogue == GATE_ADD) a.gate = load_pair((const Out *)p.gate + index);
    return a;
}

template <typename In, typename Out>
static __device__ __forceinline__ void finish(const struct product &p, int row, int output, int T, float a, float b,
                                              struct addends to) {
    if (row >= T || output >= p.n) return;
    size_t index = (size_t)row * p.n + output;
    switch (p.epilogue) {
    case RELU2: store_pair((In *)p.out + index, relu_squared<In>(a), relu_squared<In>(b)); break;
    case ADD: store_pair((float *)p.out + index, __fmaf_rn(a, p.scale, to.x.x), __fmaf_rn(b, p.scale, to.x.y)); break;
    case GATE_ADD:
        store_pair((float *)p.out + index, gate_add<Out>(to.x.x, to.gate.x, __fmul_rn(a, p.scale)),
                   gate_add<Out>(to.x.y, to.gate.y, __fmul_rn(b, p.scale)));
        break;
    case LOW: store_pair((float *)p.out + index, a, b); break;
    default: store_pair((Out *)p.out + index, a, b); break;
    }
}

#endif
