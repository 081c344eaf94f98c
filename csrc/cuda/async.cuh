/* Hopper's asynchronous copies and products, in the few shapes used here. Compiled to nothing elsewhere.
 *
 * Tiles lie in shared memory as tensor maps with a swizzle of 128 bytes leave them: boxes of 64 inputs (128 bytes) by
 * some rows, each box on a boundary of 1024 bytes. */
#ifndef RWKVSTS_CUDA_ASYNC_CUH
#define RWKVSTS_CUDA_ASYNC_CUH

#include <cuda.h>
#include <stdint.h>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_CODE 1
#else
#define HOPPER_CODE 0
#endif

/* The driver's cuTensorMapEncodeTiled. */
typedef CUresult (*encoder)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                            const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                            CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static __device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

#if HOPPER_CODE

/* ---- barriers ---------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ void barrier_init(uint64_t *barrier, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count));
}
/* Makes initialised barriers visible to the copy engine. */
static __device__ __forceinline__ void barriers_publish(void) {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
static __device__ __forceinline__ void barrier_expect(uint64_t *barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
static __device__ __forceinline__ void barrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/* Whether the phase is over, without waiting for it. */
static __device__ __forceinline__ bool barrier_over(uint64_t *barrier, unsigned parity) {
    unsigned over;
    asm volatile(
        "{ .reg .pred done; mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return over;
}
static __device__ __forceinline__ void barrier_wait(uint64_t *barrier, unsigned parity) {
    asm volatile("{ .reg .pred done; again:"
                 " mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;"
                 " @!done bra again; }" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}
/* ---- copies ------------------------------------------------------------------------------------------------------ */

static __device__ __forceinline__ void copy_boxes(void *to, const CUtensorMap *map, int row, int box,
                                                  uint64_t *barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
        "[%2];" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(row), "r"(box)
        : "memory");
}
/* Calls the boxes into the second-level cache. */
static __device__ __forceinline__ void fetch_boxes(const CUtensorMap *map, int row, int box) {
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(map), "r"(0), "r"(row),
                 "r"(box)
                 : "memory");
}
static __device__ __forceinline__ void fetch_map(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

/* Of a tile with inputs innermost, swizzled; 16 inputs further are 32 bytes further. */
static __device__ __forceinline__ uint64_t tile_descriptor(uint32_t address) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
static __device__ __forceinline__ void products_fence(void) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void products_commit(void) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int LEFT> __device__ __forceinline__ void products_wait(void) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

/* sum += a b^T in bfloat16: 64 rows of a, N of b, 16 inputs. Lane l of warp w holds of rows 16 w + l / 4 and + 8 the
 * columns 8 i + 2 (l % 4) and + 1, in sum[4 i ..]. */
template <int N> __device__ __forceinline__ void add_product64(float *sum, uint64_t a, uint64_t b);

#define SUMS_8(i)                                                                                                      \
    "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3]), "+f"(sum[i + 4]), "+f"(sum[i + 5]),            \
        "+f"(sum[i + 6]), "+f"(sum[i + 7])
#define ADD_PRODUCT64(N, sums, A, B, ...)                                                                              \
    template <> __device__ __forceinline__ void add_product64<N>(float *sum, uint64_t a, uint64_t b) {                 \
        asm volatile("{ .reg .pred add; setp.ne.b32 add, 1, 0; wgmma.mma_async.sync.aligned.m64n" #N                   \
                     "k16.f32.bf16.bf16 {" sums "}, " A ", " B ", add, 1, 1, 0, 0; }"                                  \
                     : __VA_ARGS__                                                                                     \
                     : "l"(a), "l"(b));                                                                                \
    }

ADD_PRODUCT64(16, "%0, %1, %2, %3, %4, %5, %6, %7", "%8", "%9", SUMS_8(0))
ADD_PRODUCT64(64,
              "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
              "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31",
              "%32", "%33", SUMS_8(0), SUMS_8(8), SUMS_8(16), SUMS_8(24))
ADD_PRODUCT64(80,
              "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
              "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
              "%32, %33, %34, %35, %36, %37, %38, %39",
              "%40", "%41", SUMS_8(0), SUMS_8(8), SUMS_8(16), SUMS_8(24), SUMS_8(32))
ADD_PRODUCT64(128,
              "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
              "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
              "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
              "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63",
              "%64", "%65", SUMS_8(0), SUMS_8(8), SUMS_8(16), SUMS_8(24), SUMS_8(32), SUMS_8(40), SUMS_8(48),
              SUMS_8(56))
#undef ADD_PRODUCT64
#undef SUMS_8

#endif
#endif
