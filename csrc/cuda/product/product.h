/* Products: out = in w^T and what follows. gemm.cu is the verb, choose.cu makes the plans, and each way has its file.
 *
 *   lt.cu      cublasLt; what it cannot do follows in a pass of its own (after.cu)
 *   few.cu     few rows, Ampere and newer
 *   stream.cu  few rows, Hopper
 *   wgmma.cu   many rows, Hopper                                                     which when: route.h */
#ifndef RWKVSTS_CUDA_PRODUCT_H
#define RWKVSTS_CUDA_PRODUCT_H

#include "device.h"

struct product {
    const void *w;  /* [n, k] in */
    const void *in; /* [T, k] in */
    void *out;
    const void *gate;
    int n, k;
    enum epilogue epilogue; /* as written_as() gives it */
    float scale;            /* what the sums are multiplied by: not 1 where half inputs are kept scaled down */
};

/* Where products are queued: a worker's stream and room, or those of the comparison in choose.cu. */
struct queue {
    const struct device *dev;
    cudaStream_t stream;
    const int *T; /* on the device */
    int rows;     /* that launches are sized for, at least *T */
    void *temp;   /* [rows, C] out type, for what the gate waits for */
    bool early;   /* a kernel may start before the one in front of it has ended */
};

/* choose.cu */
enum status plans_open(struct device *dev, const struct product_kind *kinds, int count, struct error *e);
/* A line a plan: "2048 from 2048, stored: few rows stream_product; wgmma_product at 528:no .. 8448:yes". Writes as
 * snprintf does. */
int plans_print(const struct device *dev, char *text, size_t n);
/* By cublasLt, with what it cannot do in a pass behind it. */
enum status lt_product(const struct queue *q, const struct plan *plan, const struct lt_algorithm *algorithm,
                       const struct product *p, struct error *e);

/* gemm.cu */
enum status cuda_gemm(struct worker *w, const struct gemm *a, int count, struct error *e);

/* At most MOST_PRODUCTS in one launch, all of them of route_product's way. */
cudaError_t few_run(const struct queue *q, const struct product *p, int count);
cudaError_t stream_run(const struct queue *q, const struct product *p, int count);
cudaError_t wgmma_run(const struct queue *q, const struct product *p, int count);

/* after.cu */
void square_relu_run(const struct queue *q, int n, void *out);
void add_gated_run(const struct queue *q, const struct product *p, const void *y);

#endif
