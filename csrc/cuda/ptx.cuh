/* Every PTX instruction that the kernels use, each in a function of its own; no other file holds asm.
 *
 * Sections: overlapping launches, arithmetic, memory, asynchronous copies, fragments and mma for Ampere and newer, then
 * what only Hopper has: mbarrier, clusters, tensor copies (TMA), wgmma. Addresses of shared memory are 32 bits wide, as
 * shared_address() gives them. A kernel that uses Hopper's section must put it into #if HOPPER_CODE: its instructions
 * exist in code for sm_90a alone. What is called here "queued" has only been asked for when the function returns. */
#ifndef RWKVSTS_CUDA_PTX_CUH
#define RWKVSTS_CUDA_PTX_CUH

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#include <string.h>

typedef __nv_bfloat16 bf16;
typedef __half half_t;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_CODE 1
#else
#define HOPPER_CODE 0
#endif
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define AMPERE_CODE 1
#else
#define AMPERE_CODE 0
#endif

static __device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- overlapping launches: see launch.cuh ------------------------------------------------------------------------- */

/* Waits until the kernels in front have ended and their writes are seen. */
static __device__ __forceinline__ void wait_for_kernels_before(void) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* Lets the kernel behind take what room is left once every block has come here. */
static __device__ __forceinline__ void let_next_kernel_start(void) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* ---- arithmetic: the hardware's own functions, without range checks -------------------------------------------------- */

/* 2 units in the last place; infinities and zeros come out as they should. */
static __device__ __forceinline__ float exp2_fast(float a) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(a));
    return y;
}
static __device__ __forceinline__ float inverse_fast(float a) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(a));
    return y;
}
static __device__ __forceinline__ float inverse_root_fast(float a) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(a));
    return y;
}
static __device__ __forceinline__ float tanh_approx(float a) { /* 2^-11 */
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(a));
    return y;
}

/* ---- memory ------------------------------------------------------------------------------------------------------- */

/* Read where it is needed: left to the compiler, such loads leave the loop, for registers that are not there. */
static __device__ __forceinline__ float4 load_again(const float *p) {
    float4 a;
    asm volatile("ld.global.nc.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(a.x), "=f"(a.y), "=f"(a.z), "=f"(a.w) : "l"(p));
    return a;
}
/* Calls a line into the second-level cache. */
static __device__ __forceinline__ void prefetch_line(const void *p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}
/* Predicated stores, no branch. They do not say that they write memory, so that the compiler may mix the arithmetic
 * around them: what is stored so must not be read in the same kernel. */
static __device__ __forceinline__ void store_if(void *to, const uint32_t (&w)[4], bool wanted) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %5, 0; @p st.global.v4.b32 [%0], {%1,%2,%3,%4};}" ::"l"(to), "r"(w[0]),
                 "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"((int)wanted));
}
static __device__ __forceinline__ void store_if(void *to, const uint32_t (&w)[2], bool wanted) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %3, 0; @p st.global.v2.b32 [%0], {%1,%2};}" ::"l"(to), "r"(w[0]),
                 "r"(w[1]), "r"((int)wanted));
}
/* Waits for the other threads at barrier 1, from any place in the code: __syncthreads wants one and the same. */
template <int THREADS> __device__ __forceinline__ void meet_anywhere(void) {
    asm volatile("barrier.sync 1, %0;" ::"n"(THREADS) : "memory");
}

/* ---- asynchronous copies into shared memory ------------------------------------------------------------------------- */

/* Queues a copy of BYTES, or nothing. Before Ampere it is made at once. */
template <int BYTES> static __device__ __forceinline__ void copy_if(void *to, const void *from, bool wanted) {
#if AMPERE_CODE
    if constexpr (BYTES == 16)
        asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p cp.async.cg.shared.global [%0], [%1], 16;}" ::"r"(
                         shared_address(to)),
                     "l"(from), "r"((int)wanted));
    else
        asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p cp.async.ca.shared.global [%0], [%1], %3;}" ::"r"(
                         shared_address(to)),
                     "l"(from), "r"((int)wanted), "n"(BYTES));
#else
    if (wanted) memcpy(to, from, BYTES);
#endif
}
static __device__ __forceinline__ void copy16(void *to, const void *from) {
#if AMPERE_CODE
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from));
#else
    *(uint4 *)to = *(const uint4 *)from;
#endif
}
/* 16 bytes, zeros where nothing is there; `from` must be an address all the same. Ampere and newer. */
static __device__ __forceinline__ void copy16_or_zeros(uint32_t to, const void *from, bool there) {
#if AMPERE_CODE
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
#endif
}
/* The same for what is read once in long rows: memory answers 256 bytes at a time. */
static __device__ __forceinline__ void stream16_or_zeros(uint32_t to, const void *from, bool there) {
#if AMPERE_CODE
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
#endif
}
/* Copies since the last commit are a group; waits until at most LEFT groups are on their way. */
static __device__ __forceinline__ void copies_commit(void) {
#if AMPERE_CODE
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int LEFT> static __device__ __forceinline__ void copies_wait(void) {
#if AMPERE_CODE
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}
static __device__ __forceinline__ void copies_wait_all(void) {
#if AMPERE_CODE
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/* ---- fragments of 16-bit matrices, and their product ----------------------------------------------------------------- */

/* Four 8x8 matrices from shared memory; lane l gives the address of row l % 8 of matrix l / 8. */
static __device__ __forceinline__ void load_matrices(uint32_t f[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
                 : "r"(row)
                 : "memory");
}
static __device__ __forceinline__ void load_matrices_transposed(uint32_t f[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
                 : "r"(row)
                 : "memory");
}

/* c += a b: a holds rows lane/4 and +8, k pairs 2 (lane%4) and +8; b column lane/4, the same k; c columns 2 (lane%4). */
template <typename E> __device__ __forceinline__ void mma16816(float c[4], const uint32_t a[4], const uint32_t b[2]);

/* Empty before Ampere, which has no bfloat16: route.c keeps such code from being reached. */
template <> __device__ __forceinline__ void mma16816<bf16>(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#if AMPERE_CODE
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
template <> __device__ __forceinline__ void mma16816<half_t>(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#if AMPERE_CODE
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else /* Turing multiplies eight k at a time */
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

#if HOPPER_CODE

/* ---- Hopper: memory accesses that keep their place between products, predicated so that no warp parts ---------------- */

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

/* ---- Hopper: mbarrier, a barrier in shared memory that counts arrivals and bytes ---------------------------------------- */

static __device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
/* Makes initialised barriers visible to the copy engine and to the cluster. */
static __device__ __forceinline__ void barriers_publish(void) {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/* Arrives, and lets the phase end only when so many bytes have come. */
static __device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
static __device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/* Arrives at the barrier that lies at this address in a block of the cluster. */
static __device__ __forceinline__ void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
    asm volatile("{\n\t.reg .b32 there;\n\t"
                 "mapa.shared::cluster.u32 there, %0, %1;\n\t"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n\t}" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}
/* Whether the phase is over, without waiting for it. */
static __device__ __forceinline__ bool barrier_over(uint32_t barrier, uint32_t phase) {
    uint32_t over;
    asm volatile(
        "{ .reg .pred done; mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
        : "=r"(over)
        : "r"(barrier), "r"(phase)
        : "memory");
    return over;
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

/* ---- Hopper: clusters of blocks --------------------------------------------------------------------------------------- */

static __device__ __forceinline__ uint32_t cluster_rank(void) {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
static __device__ __forceinline__ void cluster_sync(void) {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* ---- Hopper: tensor copies (TMA), each counted at an mbarrier ------------------------------------------------------------- */

static __device__ __forceinline__ void fetch_map(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/* A box of a map of two or three dimensions, the innermost first. */
static __device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, int a, int b, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            to),
        "l"(map), "r"(a), "r"(b), "r"(barrier)
        : "memory");
}
static __device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, int a, int b, int c,
                                                uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
        "[%5];" ::"r"(to),
        "l"(map), "r"(a), "r"(b), "r"(c), "r"(barrier)
        : "memory");
}
/* The same into several blocks of the cluster, each of which counts the bytes at its own barrier. */
static __device__ __forceinline__ void copy_box_to_all(uint32_t to, const CUtensorMap *map, int a, int b, int c,
                                                       uint32_t barrier, uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
                 "l"(map), "r"(a), "r"(b), "r"(c), "r"(barrier), "h"(blocks)
                 : "memory");
}
/* Calls a box, or bytes in a row, into the second-level cache. */
static __device__ __forceinline__ void prefetch_box(const CUtensorMap *map, int a, int b, int c) {
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(map), "r"(a), "r"(b),
                 "r"(c)
                 : "memory");
}
static __device__ __forceinline__ void prefetch_bytes(const void *p, int bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
}

/* ---- Hopper: wgmma, products of a warpgroup ---------------------------------------------------------------------------------- */

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

/* Of a tile that lies as a tensor map with a swizzle of 128 bytes leaves it: boxes of 64 inputs (128 bytes) by some rows,
 * each on a boundary of 1024 bytes. 16 inputs further are 32 bytes further. */
static __device__ __forceinline__ uint64_t tile_descriptor(uint32_t address) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
static __device__ __forceinline__ void wgmma_fence(void) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void wgmma_commit(void) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int LEFT> __device__ __forceinline__ void wgmma_wait(void) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

/* sum = a b^T (+ sum, unless `fresh`) in bfloat16: 64 rows of a, N rows of b, 16 inputs. Lane l of warp w holds of rows
 * 16 w + l / 4 and + 8 the columns 8 i + 2 (l % 4) and + 1, in sum[4 i ..]. */
template <int N> __device__ __forceinline__ void wgmma64(float *sum, uint64_t a, uint64_t b, int fresh);

#define SUMS_8(i)                                                                                                      \
    "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3]), "+f"(sum[i + 4]), "+f"(sum[i + 5]),            \
        "+f"(sum[i + 6]), "+f"(sum[i + 7])
#define SUMS_32(i) SUMS_8(i), SUMS_8(i + 8), SUMS_8(i + 16), SUMS_8(i + 24)
#define WGMMA64(N, sums, A, B, FRESH, ...)                                                                             \
    template <> __device__ __forceinline__ void wgmma64<N>(float *sum, uint64_t a, uint64_t b, int fresh) {            \
        asm volatile("{\n\t.reg .pred add;\n\tsetp.eq.s32 add, " FRESH ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #N  \
                     "k16.f32.bf16.bf16 {" sums "}, " A ", " B ", add, 1, 1, 0, 0;\n\t}"                               \
                     : __VA_ARGS__                                                                                     \
                     : "l"(a), "l"(b), "r"(fresh));                                                                    \
    }
#define SUMS_TO_63                                                                                                     \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                           \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                 \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

WGMMA64(16, "%0, %1, %2, %3, %4, %5, %6, %7", "%8", "%9", "%10", SUMS_8(0))
WGMMA64(64,
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31",
        "%32", "%33", "%34", SUMS_32(0))
WGMMA64(80,
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39",
        "%40", "%41", "%42", SUMS_32(0), SUMS_8(32))
WGMMA64(128, SUMS_TO_63, "%64", "%65", "%66", SUMS_32(0), SUMS_32(32))
WGMMA64(256,
        SUMS_TO_63 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
                   "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
                   "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
                   "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127",
        "%128", "%129", "%130", SUMS_32(0), SUMS_32(32), SUMS_32(64), SUMS_32(96))
#undef SUMS_TO_63
#undef WGMMA64
#undef SUMS_32
#undef SUMS_8

#endif
#endif
