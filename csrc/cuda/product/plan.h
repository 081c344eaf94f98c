/* A plan: how one kind of product is made on this device. Chosen in choose.cu when the device is opened, then only read.
 *
 * Its key is (n, k, how the result is written, whether half inputs are scaled); element types follow from these and the
 * device's dtype. */
#ifndef RWKVSTS_CUDA_PLAN_H
#define RWKVSTS_CUDA_PLAN_H

#include "backend.h"
#include "product/lt.h"

enum { SIZES = 5, MOST_PLANS = 16 };

struct plan {
    struct product_kind kind; /* its epilogue as written_as() gives it */
    struct lt_shape shape;
    /* For about rows[i] rows, ascending: an algorithm of cublasLt, and whether wgmma.cu is clearly faster. */
    int rows[SIZES];
    struct lt_algorithm algorithm[SIZES];
    bool wgmma[SIZES];
    bool few; /* the kernel for few rows gives the same bits here */
};

/* Epilogues that are written alike share a plan: activations are applied by who reads the result. */
static inline enum epilogue written_as(enum epilogue epilogue) {
    switch (epilogue) {
    case SILU:
    case SIGMOID: return STORE;
    case LOW_TANH:
    case LOW_SIGMOID: return LOW;
    default: return epilogue;
    }
}

#endif
