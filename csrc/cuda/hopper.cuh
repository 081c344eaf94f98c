/* What hopper.cu needs of Hopper's instructions beyond async.cuh: clusters, turns, wide products, predicated accesses.
 *
 * Addresses are of shared memory, 32 bits wide: those of a neighbour's barriers are worked out from them. */
#ifndef RWKVSTS_CUDA_HOPPER_CUH
#define RWKVSTS_CUDA_HOPPER_CUH

#include "async.cuh"

#if HOPPER_CODE

/* ---- memory: in asm, so that nothing moves between products; predicated, so that no warp parts ------------ */

static __device__ __forceinline__ void shared_store(uint32_t to, const uint32_t (&a)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
                 : "memory");
}
static __device__ __forceinline__ void shared_store(uint32_t to, const float (&a)[4]) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(a[0]), "f"(a[1]), "f"(a[2]), "f"(a[3])
                 : "memory");
}
static __device__ __forceinline__ uint4 shared_load(uint32_t from) {
    uint4 a;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a.x), "=r"(a.y), "=r"(a.z), "=r"(a.w)
                 : "r"(from)
                 : "memory");
    return a;
}
static __device__ __forceinline__ void global_store(void *to, uint4 a, bool there) {
    asm volatile("{\n\t.reg .pred there;\n\t"
                 "setp.ne.s32 there, %5, 0;\n\t"
                 "@there st.global.v4.b32 [%0], {%1, %2, %3, %4};\n\t}" ::"l"(to),
                 "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"((int)there)
                 : "memory");
}
/* Zeros where there is nothing: a register that is perhaps written would have to live through the whole loop. */
static __device__ __forceinline__ uint4 global_load4(const void *from, bool there) {
    uint4 a = make_uint4(0, 0, 0, 0);
    asm volatile("{\n\t.reg .pred there;\n\t"
                 "setp.ne.s32 there, %5, 0;\n\t"
                 "@there ld.global.v4.b32 {%0, %1, %2, %3}, [%4];\n\t}"
                 : "+r"(a.x), "+r"(a.y), "+r"(a.z), "+r"(a.w)
                 : "l"(from), "r"((int)there)
                 : "memory");
    return a;
}
static __device__ __forceinline__ uint2 global_load2(const void *from, bool there) {
    uint2 a = make_uint2(0, 0);
    asm volatile("{\n\t.reg .pred there;\n\t"
                 "setp.ne.s32 there, %3, 0;\n\t"
                 "@there ld.global.v2.b32 {%0, %1}, [%2];\n\t}"
                 : "+r"(a.x), "+r"(a.y)
                 : "l"(from), "r"((int)there)
                 : "memory");
    return a;
}

/* The next row, worked out when it is needed: a compiler that works all rows' addresses out beforehand spills. */
template <typename E> __device__ __forceinline__ void step_on(E *&p, int by) {
    p += by;
    asm volatile("" : "+l"(p));
}

/* ---- clusters --------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ uint32_t cluster_rank(void) {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
static __device__ __forceinline__ void cluster_sync(void) {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* ---- barriers in shared memory ------------------------------------------------------------------------------------ */

static __device__ __forceinline__ void barrier_open(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
static __device__ __forceinline__ void barriers_opened(void) {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/* Arrives, and lets the phase end only when so many bytes have come. */
static __device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/* Arrives at the barrier that lies at this address in a block of the cluster. */
static __device__ __forceinline__ void barrier_arrive(uint32_t barrier, uint32_t rank) {
    asm volatile("{\n\t.reg .b32 there;\n\t"
                 "mapa.shared::cluster.u32 there, %0, %1;\n\t"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n\t}" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}
static __device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t phase) {
    asm volatile("{\n\t.reg .pred done;\n\t"
                 "again:\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
                 "@done bra gone;\n\t"
                 "bra again;\n\t"
                 "gone:\n\t}" ::"r"(barrier),
                 "r"(phase)
                 : "memory");
}

/* Turns of two warpgroups: one passes, the other waits for it. */
static __device__ __forceinline__ void turn_wait(int whose, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(whose + 1), "r"(threads) : "memory");
}
static __device__ __forceinline__ void turn_pass(int whose, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(whose + 1), "r"(threads) : "memory");
}

/* ---- copies -------------------------------------------------------------------------------------------------------- */

/* A box of a matrix [rows, k], from (row, k) on. */
static __device__ __forceinline__ void copy_box(uint32_t to, const void *map, int k, int row, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            to),
        "l"(map), "r"(k), "r"(row), "r"(barrier)
        : "memory");
}
/* A box of a matrix seen as [D, rows / D, k], into several blocks of the cluster, each of which counts the bytes at its
 * own barrier. */
static __device__ __forceinline__ void copy_box_to_all(uint32_t to, const void *map, int k, int row, int every,
                                                       uint32_t barrier, uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
                 "l"(map), "r"(k), "r"(row), "r"(every), "r"(barrier), "h"(blocks)
                 : "memory");
}
static __device__ __forceinline__ void prefetch(const void *p, int bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
}

/* ---- products --------------------------------------------------------------------------------------------------------- */

template <int REGISTERS> __device__ __forceinline__ void more_registers(void) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void fewer_registers(void) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/* No use of the sums moves across. */
template <int COUNT> __device__ __forceinline__ void hold(float (&sum)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(sum[i])::"memory");
}

#define SUMS_8(i)                                                                                                      \
    "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3]), "+f"(sum[i + 4]), "+f"(sum[i + 5]),            \
        "+f"(sum[i + 6]), "+f"(sum[i + 7])
#define SUMS_64(i)                                                                                                     \
    SUMS_8(i), SUMS_8(i + 8), SUMS_8(i + 16), SUMS_8(i + 24), SUMS_8(i + 32), SUMS_8(i + 40), SUMS_8(i + 48),          \
        SUMS_8(i + 56)

/* sum = a b^T (+ sum, unless `fresh`): 64 rows of a, 2 COUNT rows of b, 16 inputs. Lane l of warp w holds of rows
 * 16 w + l/4 and +8 the columns 8 i + 2 (l%4) and +1, in sum[4 i ..]. */
static __device__ __forceinline__ void multiply(float (&sum)[128], uint64_t a, uint64_t b, int fresh) {
    asm volatile("{\n\t.reg .pred add;\n\t"
                 "setp.eq.s32 add, %130, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
                 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
                 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
                 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
                 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
                 "}, %128, %129, add, 1, 1, 0, 0;\n\t}"
                 : SUMS_64(0), SUMS_64(64)
                 : "l"(a), "l"(b), "r"(fresh));
}
static __device__ __forceinline__ void multiply(float (&sum)[64], uint64_t a, uint64_t b, int fresh) {
    asm volatile("{\n\t.reg .pred add;\n\t"
                 "setp.eq.s32 add, %66, 0;\n\t"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
                 "}, %64, %65, add, 1, 1, 0, 0;\n\t}"
                 : SUMS_64(0)
                 : "l"(a), "l"(b), "r"(fresh));
}
#undef SUMS_8
#undef SUMS_64

#endif
#endif
