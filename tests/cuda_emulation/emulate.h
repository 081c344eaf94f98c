/* CUDA kernels on a CPU, for tests: a thread is a fiber, a block runs when the one before has ended.
 *
 * Included before the project's own files, whose launch.cuh and ptx.cuh it stands for: kernels that hold no Hopper code
 * then compile as plain C++. Shared memory is static, so its addresses have 32 bits where the program is linked without
 * position independence. Products are summed in double: compare kernels with each other by bytes, with a GPU by size of
 * error. Asynchronous copies are made at once, so a missing wait is not found here. */
#ifndef RWKVSTS_EMULATE_H
#define RWKVSTS_EMULATE_H

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <functional>

#define RWKVSTS_CUDA_PTX_CUH
#define RWKVSTS_CUDA_LAUNCH_CUH
#define AMPERE_CODE 1
#define HOPPER_CODE 0

typedef __nv_bfloat16 bf16;
typedef __half half_t;

#undef __shared__
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline
#define threadIdx (emulated_thread)
#define blockIdx (emulated_block)
#define cudaFuncSetAttribute(...) cudaSuccess

extern uint3 emulated_thread, emulated_block;

void emulate_run(dim3 grid, int threads, const std::function<void()> &kernel);
void emulate_block_barrier(void);
/* Gives every lane of the warp the 64 bytes that every lane has brought. */
struct lane_data {
    uint32_t word[16];
};
const struct lane_data *emulate_exchange(const struct lane_data &mine);

/* ---- what CUDA declares -------------------------------------------------------------------------------------------- */

static inline int min(int a, int b) {
    return a < b ? a : b;
}
static inline int max(int a, int b) {
    return a > b ? a : b;
}
static inline float __fmul_rn(float a, float b) {
    return a * b;
}
static inline float __fadd_rn(float a, float b) {
    return a + b;
}
static inline float __fsub_rn(float a, float b) {
    return a - b;
}
static inline float __fdiv_rn(float a, float b) {
    return a / b;
}
static inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
static inline float rsqrtf(float a) {
    return 1.0f / sqrtf(a);
}
template <typename T> static inline T __ldg(const T *p) {
    return *p;
}
template <typename T> static inline void __stcg(T *p, T v) {
    *p = v;
}
static inline float __uint_as_float(uint32_t a) {
    float f;
    memcpy(&f, &a, sizeof f);
    return f;
}
static inline void __syncthreads(void) {
    emulate_block_barrier();
}
static inline void __syncwarp(void) {
    emulate_exchange({});
}
template <typename T> static inline T __shfl_sync(unsigned, T value, int from) {
    struct lane_data mine = {};
    memcpy(&mine, &value, sizeof value);
    T result;
    memcpy(&result, &emulate_exchange(mine)[from & 31], sizeof result);
    return result;
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T value, int distance) {
    return __shfl_sync(mask, value, (int)(emulated_thread.x % 32) ^ distance);
}

/* ---- ptx.cuh ----------------------------------------------------------------------------------------------------------- */

static inline uint32_t shared_address(const void *p) {
    return (uint32_t)(uintptr_t)p;
}
static inline void wait_for_kernels_before(void) {
}
static inline void let_next_kernel_start(void) {
}
static inline float exp2_fast(float a) {
    return exp2f(a);
}
static inline float inverse_fast(float a) {
    return 1.0f / a;
}
static inline float inverse_root_fast(float a) {
    return 1.0f / sqrtf(a);
}
static inline float tanh_approx(float a) {
    return tanhf(a);
}
static inline float4 load_again(const float *p) {
    return *(const float4 *)p;
}
template <int BYTES> static inline void copy_if(void *to, const void *from, bool wanted) {
    if (wanted) memcpy(to, from, BYTES);
}
static inline void copy16_or_zeros(uint32_t to, const void *from, bool there) {
    if (there) memcpy((void *)(uintptr_t)to, from, 16);
    else memset((void *)(uintptr_t)to, 0, 16);
}
static inline void copies_commit(void) {
}
template <int LEFT> static inline void copies_wait(void) {
}
static inline void copies_wait_all(void) {
}

static inline void load_matrices_as(uint32_t f[4], uint32_t row, bool turned) {
    const int lane = emulated_thread.x % 32;
    const struct lane_data *rows = emulate_exchange({{row}});
    for (int i = 0; i < 4; i++) {
        uint16_t e[2];
        for (int j = 0; j < 2; j++) {
            int at = turned ? lane % 4 * 2 + j : lane / 4, in_row = turned ? lane / 4 : lane % 4 * 2 + j;
            e[j] = ((const uint16_t *)(uintptr_t)rows[8 * i + at].word[0])[in_row];
        }
        memcpy(&f[i], e, sizeof e);
    }
}
static inline void load_matrices(uint32_t f[4], uint32_t row) {
    load_matrices_as(f, row, false);
}
static inline void load_matrices_transposed(uint32_t f[4], uint32_t row) {
    load_matrices_as(f, row, true);
}

template <typename E> static inline double element_of(uint32_t pair, int i) {
    E e[2];
    memcpy(e, &pair, sizeof e);
    return (double)(float)e[i];
}
template <typename E> static inline void mma16816(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    const int lane = emulated_thread.x % 32;
    const struct lane_data *all = emulate_exchange({{a[0], a[1], a[2], a[3], b[0], b[1]}});
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double sum = 0;
        for (int k = 0; k < 16; k++) {
            uint32_t left = all[row % 8 * 4 + k % 8 / 2].word[row / 8 + k / 8 * 2];
            uint32_t right = all[column * 4 + k % 8 / 2].word[4 + k / 8];
            sum += element_of<E>(left, k % 2) * element_of<E>(right, k % 2);
        }
        c[i] = (float)(c[i] + sum);
    }
}

/* ---- launch.cuh --------------------------------------------------------------------------------------------------------- */

#include "worker.h"

template <typename... P, typename... A>
static cudaError_t launch_early(bool, cudaStream_t, void (*kernel)(P...), dim3 grid, int threads, size_t,
                                const A &...args) {
    emulate_run(grid, threads, [&] { kernel(args...); });
    return cudaSuccess;
}
static inline void *dynamic_shared(void) {
    alignas(256) static char room[128 << 10];
    return room;
}
static inline bool overlaps(const struct worker *) {
    return false;
}

#endif
