/* Tensor maps: how the copy engine of Hopper sees a bfloat16 matrix. Host code.
 *
 * Boxes are 64 inputs (128 bytes) wide and lie in shared memory with a swizzle of 128 bytes; what is outside of the
 * matrix is read as zeros. */
#ifndef RWKVSTS_CUDA_TENSOR_MAP_H
#define RWKVSTS_CUDA_TENSOR_MAP_H

#include <cuda.h>
#include <dlfcn.h>

/* The driver's cuTensorMapEncodeTiled. */
typedef CUresult (*tensor_map_encoder)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                       const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                                       CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                       CUtensorMapFloatOOBfill);

/* NULL where the driver has none. */
static inline void *tensor_map_entry(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW); /* the runtime has it open */
    return driver ? dlsym(driver, "cuTensorMapEncodeTiled") : NULL;
}

/* Sizes and box innermost first; strides in bytes, of the second dimension on. */
static inline bool tensor_map_encode(void *entry, CUtensorMap *map, const void *p, int rank, const cuuint64_t *sizes,
                                     const cuuint64_t *strides, const cuuint32_t *box) {
    const cuuint32_t ones[3] = {1, 1, 1};
    return ((tensor_map_encoder)entry)(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)rank, const_cast<void *>(p),
                                       sizes, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                       CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                       CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

#endif
