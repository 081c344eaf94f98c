/* cublasLt, found at run time: a wheel must load where it is absent, and CI builds without its headers.
 *
 * Only what is called here is declared; the numbers are cublasLt.h's and part of its ABI since version 11. No algorithm
 * that is asked for splits k, and choose.cu takes only those that it has seen give the same bits on the device at hand: so
 * a row's bits do not depend on its neighbours. */
#ifndef RWKVSTS_CUDA_LT_H
#define RWKVSTS_CUDA_LT_H

#include <cuda_runtime.h>

#include "base.h"

struct lt_algorithm {
    uint64_t data[8];
};

enum { CANDIDATES = 8 };

/* out [rows, n] = alpha in [rows, k] w [n, k]^T + beta out */
struct lt_shape {
    int n, k;
    enum dtype in, out;
    float alpha, beta;
};

struct lt {
    void *library, *handle;
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*desc_create)(void **desc, int compute, int scale);
    int (*desc_destroy)(void *desc);
    int (*desc_set)(void *desc, int attribute, const void *value, size_t bytes);
    int (*layout_create)(void **layout, int type, uint64_t rows, uint64_t columns, int64_t ld);
    int (*layout_destroy)(void *layout);
    int (*preference_create)(void **preference);
    int (*preference_destroy)(void *preference);
    int (*preference_set)(void *preference, int attribute, const void *value, size_t bytes);
    int (*heuristic)(void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference, int wanted,
                     void *results, int *found);
    int (*matmul)(void *handle, void *desc, const void *alpha, const void *a, void *la, const void *b, void *lb,
                  const void *beta, const void *c, void *lc, void *d, void *ld, const struct lt_algorithm *algorithm,
                  void *workspace, size_t bytes, cudaStream_t stream);
};

enum status lt_open(struct lt *lt, struct error *e);
void lt_close(struct lt *lt);
/* The algorithms that cublasLt holds best for that many rows, best first; at least one. */
enum status lt_candidates(const struct lt *lt, const struct lt_shape *shape, int rows, struct lt_algorithm *out,
                          int *count, struct error *e);
enum status lt_run(const struct lt *lt, const struct lt_shape *shape, const struct lt_algorithm *algorithm, int rows,
                   const void *w, const void *in, void *out, cudaStream_t stream, struct error *e);

#endif
