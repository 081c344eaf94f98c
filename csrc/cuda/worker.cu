/* Opening and closing a worker, and its memory. What a pass does with it is pass.cu's. */
#include "worker.h"

#include <stdlib.h>
#include <string.h>

/* ---- memory ---------------------------------------------------------------------------------------------------------- */

enum status cuda_alloc(struct worker *w, size_t bytes, void **out, struct error *e) {
    struct allocation *a = (struct allocation *)malloc(sizeof *a);
    if (!a) return fail(e, NO_MEMORY, "no memory for a workspace's entry");
    enum status status = device_alloc(w->dev, bytes ? bytes : 1, &a->p, e);
    if (status != OK) {
        free(a);
        return status;
    }
    a->bytes = bytes ? bytes : 1;
    a->next = w->allocations;
    w->allocations = a;
    *out = a->p;
    return OK;
}

enum status cuda_upload(struct worker *w, void *device, const void *host, size_t bytes, struct error *e) {
    TRY(device_usable(w->dev, e));
    CUDA_TRY(w->dev, cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, w->stream), "an upload", e);
    return cuda_status(w->dev, cudaStreamSynchronize(w->stream), "an upload", e);
}

enum status cuda_download(struct worker *w, void *host, const void *device, size_t bytes, struct error *e) {
    TRY(device_usable(w->dev, e));
    CUDA_TRY(w->dev, cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, w->stream), "a download", e);
    return cuda_status(w->dev, cudaStreamSynchronize(w->stream), "a download", e);
}

/* ---- open and close --------------------------------------------------------------------------------------------------- */

static size_t temp_bytes(const struct device *dev) {
    size_t in = dtype_bytes(dev->in), out = dtype_bytes(dev->out);
    return (size_t)dev->dims.C * (in > out ? in : out);
}

static size_t low_width(const struct device *dev) {
    int widest = 0;
    for (int i = 0; i < dev->plan_count; i++)
        if (dev->plans[i].kind.epilogue == LOW && dev->plans[i].kind.n > widest) widest = dev->plans[i].kind.n;
    return (size_t)widest;
}

size_t cuda_worker_row_bytes(const struct device *dev, int columns) {
    enum { MEAN_LENGTH = 16 }; /* session.c takes a sequence for every 16 rows */
    size_t pooled = (size_t)columns * (size_t)dev->dims.C * sizeof(float) / MEAN_LENGTH;
    return temp_bytes(dev) + low_width(dev) * sizeof(float) + sizeof(float2) + 9 * sizeof(int) + pooled;
}

static enum status flight_open(struct worker *w, struct flight *f, struct error *e) {
    size_t pooled = (size_t)w->sequences * (size_t)w->columns * (size_t)w->dev->dims.C * sizeof(float);
    size_t numbers = number_bytes(w->rows, w->sequences);
    cudaError_t status = cudaEventCreateWithFlags(&f->done, cudaEventDisableTiming);
    if (status == cudaSuccess) status = cudaEventCreateWithFlags(&f->read, cudaEventDisableTiming);
    if (status == cudaSuccess) status = cudaHostAlloc((void **)&f->staged, numbers, cudaHostAllocDefault);
    if (status == cudaSuccess && pooled) status = cudaHostAlloc((void **)&f->pinned, pooled, cudaHostAllocDefault);
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return fail(e, NO_MEMORY, "no page-locked host memory: %zu bytes asked; fewer batch_tokens need less",
                    pooled + numbers);
    }
    return cuda_status(w->dev, status, "opening a session", e);
}

static enum status worker_memory(struct worker *w, struct error *e) {
    size_t rows = (size_t)w->rows, side = (size_t)w->columns * (size_t)w->dev->dims.C * sizeof(float);
    TRY(cuda_alloc(w, number_bytes(w->rows, w->sequences), (void **)&w->numbers, e));
    TRY(cuda_alloc(w, rows * temp_bytes(w->dev), &w->temp, e));
    TRY(cuda_alloc(w, rows * low_width(w->dev) * sizeof(float), (void **)&w->low, e));
    TRY(cuda_alloc(w, rows * sizeof(float2), (void **)&w->stats, e));
    TRY(cuda_alloc(w, (size_t)w->sequences * side, (void **)&w->pooled, e));
    TRY(cuda_alloc(w, 2 * side, (void **)&w->carry, e));
    for (int i = 0; i < FLIGHTS; i++) TRY(flight_open(w, &w->flights[i], e));
    return OK;
}

enum status cuda_worker_open(struct device *dev, int rows, int sequences, int columns, struct worker **out,
                             struct error *e) {
    *out = NULL;
    TRY(device_usable(dev, e));
    struct worker *w = (struct worker *)calloc(1, sizeof *w);
    if (!w) return fail(e, NO_MEMORY, "no memory for a worker");
    w->dev = dev;
    w->rows = rows;
    w->sequences = sequences;
    w->columns = columns;
    cudaError_t opened = cudaStreamCreateWithFlags(&w->stream, cudaStreamNonBlocking);
    if (opened == cudaSuccess) opened = cudaStreamCreateWithFlags(&w->copies, cudaStreamNonBlocking);
    if (opened == cudaSuccess) opened = cudaEventCreateWithFlags(&w->computed, cudaEventDisableTiming);
    enum status status = cuda_status(dev, opened, "opening a session", e);
    if (status == OK) status = worker_memory(w, e);
    if (status == OK) *out = w;
    else cuda_worker_close(w);
    return status;
}

static void stop(struct worker *w) {
    if (w->capturing) {
        cudaGraph_t graph = NULL;
        cudaStreamEndCapture(w->stream, &graph);
        if (graph) cudaGraphDestroy(graph);
    }
    if (w->stream) cudaStreamSynchronize(w->stream);
    if (w->copies) cudaStreamSynchronize(w->copies);
    for (int i = 0; i < RECORDS; i++)
        if (w->records[i].exec) cudaGraphExecDestroy(w->records[i].exec);
    for (int i = 0; i < FLIGHTS; i++) {
        struct flight *f = &w->flights[i];
        if (f->done) cudaEventDestroy(f->done);
        if (f->read) cudaEventDestroy(f->read);
        if (f->staged) cudaFreeHost(f->staged);
        if (f->pinned) cudaFreeHost(f->pinned);
    }
    if (w->computed) cudaEventDestroy(w->computed);
    if (w->copies) cudaStreamDestroy(w->copies);
    if (w->stream) cudaStreamDestroy(w->stream);
    cudaGetLastError(); /* what failed here has been reported where it happened */
}

void cuda_worker_close(struct worker *w) {
    struct error ignored;
    if (!w) return;
    if (device_usable(w->dev, &ignored) == OK) stop(w);
    while (w->allocations) {
        struct allocation *a = w->allocations;
        w->allocations = a->next;
        device_free(w->dev, a->p, a->bytes);
        free(a);
    }
    free(w);
}
