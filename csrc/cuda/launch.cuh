/* Launches that overlap: in a recorded pass a kernel is on its way before the one in front has ended.
 *
 * Every kernel launched so calls wait_for_kernels_before() before it touches what another kernel writes or reads. One
 * kernel ends only after its own waiting, so all kernels further in front have ended then, too. */
#ifndef RWKVSTS_CUDA_LAUNCH_CUH
#define RWKVSTS_CUDA_LAUNCH_CUH

#include "ptx.cuh"
#include "worker.h"

/* Queues a kernel; `early`: it may start before the one in front has ended. */
template <typename... P, typename... A>
static cudaError_t launch_early(bool early, cudaStream_t stream, void (*kernel)(P...), dim3 grid, int threads,
                                size_t shared, const A &...args) {
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute;
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = early;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    return cudaLaunchKernelEx(&config, kernel, P(args)...);
}

/* The shared memory that a launch asks for. */
static __device__ __forceinline__ void *dynamic_shared(void) {
    extern __shared__ __align__(256) unsigned char asked_for[];
    return asked_for;
}

/* Whether the pass at hand wants it: only where kernels are short does it pay. */
static inline bool overlaps(const struct worker *w) {
    return w->capturing && route_overlaps(&w->dev->gpu);
}

#endif
