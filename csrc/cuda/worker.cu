/* The worker: a stream, the numbers of a pass, pooled rows on their way home, recorded passes.
 *
 * The host never waits for the pass it has just queued: the numbers of a pass are staged twice over, and pooled rows leave
 * on a stream of their own while the next pass runs; they are handed to the caller two passes later or by finish(). A pass
 * of few rows is launched as one graph once its bucket has been seen before. */
#include "cuda.h"
#include "plan.h"

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
    int shift = 5 * dev->dims.R;
    return (size_t)(shift > dev->dims.D ? shift : dev->dims.D);
}

size_t cuda_worker_row_bytes(const struct device *dev, int columns) {
    enum { MEAN_LENGTH = 16 }; /* rwkv6.c takes a sequence for every 16 rows */
    size_t pooled = (size_t)columns * (size_t)dev->dims.C * sizeof(float) / MEAN_LENGTH;
    return temp_bytes(dev) + low_width(dev) * sizeof(float) + sizeof(float2) + 8 * sizeof(int) + pooled;
}

static size_t number_count(int T, int S) {
    return HEAD_INTS + 3 * (size_t)T + 5 * (size_t)S + 1;
}

static enum status flight_open(struct worker *w, struct flight *f, struct error *e) {
    size_t pooled = (size_t)w->sequences * (size_t)w->columns * (size_t)w->dev->dims.C * sizeof(float);
    size_t numbers = number_count(w->rows, w->sequences) * sizeof(int);
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
    TRY(cuda_alloc(w, number_count(w->rows, w->sequences) * sizeof(int), (void **)&w->numbers, e));
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

/* ---- recorded passes ---------------------------------------------------------------------------------------------------- */

static uint64_t hash_layers(const struct pass *p) {
    uint64_t h = 14695981039346656037u;
    for (int i = 0; i < p->columns; i++) h = (h ^ (uint64_t)(uint32_t)p->layers[i]) * 1099511628211u;
    return h;
}

static struct shape bucket_of(const struct worker *w, const struct pass *p) {
    struct shape shape;
    memset(&shape, 0, sizeof shape); /* compared as bytes */
    shape.T = plan_bucket_rows(p->T, w->rows);
    shape.S = plan_bucket_sequences(p->S, w->sequences);
    shape.top = p->top;
    shape.columns = p->columns;
    shape.pooling = p->pooling;
    shape.layers = hash_layers(p);
    return shape;
}

/* The record of that shape: found, or taken from the one that was not used for longest. */
static struct record *record_of(struct worker *w, const struct shape *shape, bool *seen) {
    struct record *oldest = &w->records[0];
    *seen = false;
    for (int i = 0; i < RECORDS; i++) {
        struct record *r = &w->records[i];
        if (r->used && !memcmp(&r->shape, shape, sizeof *shape)) {
            *seen = true;
            r->used = ++w->clock;
            return r;
        }
        if (r->used < oldest->used) oldest = r;
    }
    if (oldest->exec) cudaGraphExecDestroy(oldest->exec);
    oldest->exec = NULL;
    oldest->shape = *shape;
    oldest->used = ++w->clock;
    return oldest;
}

/* ---- a pass ---------------------------------------------------------------------------------------------------------------- */

/* Hands the pooled rows of an earlier pass to the caller. */
static enum status deliver(struct worker *w, struct flight *f, struct error *e) {
    if (!f->bytes) return OK;
    CUDA_TRY(w->dev, cudaEventSynchronize(f->done), "waiting for a pass", e);
    memcpy(f->target, f->pinned, f->bytes);
    f->bytes = 0;
    return OK;
}

static void lay_out(struct worker *w) {
    const int *at = w->numbers;
    int T = w->grid.T, S = w->grid.S;
    w->meta.head = at;
    w->meta.ids = at += HEAD_INTS;
    w->meta.prev = at += T;
    w->meta.save = at += T;
    w->meta.start = at += T;
    w->meta.before = at += S + 1;
    w->meta.total = at += S;
    w->meta.from = at += S;
    w->meta.to = at += S;
}

static void fill_numbers(const struct worker *w, const struct pass *p, int *out) {
    int T = w->grid.T, S = w->grid.S, *ids = out + HEAD_INTS, *prev = ids + T, *save = prev + T, *start = save + T;
    int *before = start + S + 1, *total = before + S, *from = total + S, *to = from + S;
    size_t pieces_bytes = (size_t)p->S * sizeof(int);
    out[0] = p->T;
    out[1] = p->S;
    out[2] = w->turn;
    memcpy(ids, p->ids, (size_t)p->T * sizeof(int));
    memcpy(start, p->start, pieces_bytes + sizeof(int));
    memcpy(before, p->before, pieces_bytes);
    memcpy(total, p->total, pieces_bytes);
    memcpy(from, p->from, pieces_bytes);
    memcpy(to, p->to, pieces_bytes);
    for (int s = 0; s < p->S; s++) {
        for (int t = p->start[s]; t < p->start[s + 1]; t++) {
            prev[t] = t - 1;
            save[t] = -1;
        }
        prev[p->start[s]] = p->from[s] < 0 ? NO_PAST : FROM_SLOT - p->from[s];
        save[p->start[s + 1] - 1] = p->to[s];
    }
}

static enum status stage(struct worker *w, const struct pass *p, struct error *e) {
    struct flight *f = &w->flights[w->turn];
    CUDA_TRY(w->dev, cudaEventSynchronize(f->read), "waiting for a pass", e);
    lay_out(w);
    fill_numbers(w, p, f->staged);
    CUDA_TRY(w->dev,
             cudaMemcpyAsync(w->numbers, f->staged, number_count(w->grid.T, w->grid.S) * sizeof(int),
                             cudaMemcpyHostToDevice, w->stream),
             "starting a pass", e);
    return cuda_status(w->dev, cudaEventRecord(f->read, w->stream), "starting a pass", e);
}

enum status cuda_begin(struct worker *w, const struct pass *pass, bool *replay, struct error *e) {
    bool seen = false;
    *replay = false;
    TRY(device_usable(w->dev, e));
    TRY(deliver(w, &w->flights[w->turn], e));
    w->pass = *pass;
    w->record = NULL;
    w->grid.T = pass->T;
    w->grid.S = pass->S;
    w->pool_waits = true;
    if (pass->T <= FEW_ROWS) {
        struct shape shape = bucket_of(w, pass);
        w->grid.T = shape.T;
        w->grid.S = shape.S;
        w->record = record_of(w, &shape, &seen);
    }
    TRY(stage(w, pass, e));
    if (!seen) {
        w->record = NULL;
        return OK;
    }
    /* A recorded pass cannot wait in its middle for the rows of the pass before: wait here. */
    w->pool_waits = false;
    if (w->flights[w->turn ^ 1].bytes)
        CUDA_TRY(w->dev, cudaStreamWaitEvent(w->stream, w->flights[w->turn ^ 1].done, 0), "waiting for pooled rows", e);
    *replay = w->record->exec != NULL;
    if (*replay) return OK;
    /* Relaxed: poll may run Python between blocks, and there another model's memory may be freed. */
    CUDA_TRY(w->dev, cudaStreamBeginCapture(w->stream, cudaStreamCaptureModeRelaxed), "recording a pass", e);
    w->capturing = true;
    return OK;
}

/* Has the system lay memory under what a pass will be delivered to, while the device works: 33,000 pages of a large new
 * array would keep the device waiting otherwise. What stands there stays as it is. */
static void touch(float *target, size_t bytes) {
    enum { PAGE = 4096 };
    volatile char *p = (volatile char *)target;
    for (size_t i = 0; i < bytes; i += PAGE) p[i] = p[i];
}

static enum status finish_recording(struct worker *w, struct error *e) {
    cudaGraph_t graph = NULL;
    w->capturing = false;
    CUDA_TRY(w->dev, cudaStreamEndCapture(w->stream, &graph), "recording a pass", e);
    cudaError_t status = cudaGraphInstantiate(&w->record->exec, graph, 0);
    cudaGraphDestroy(graph);
    if (status != cudaSuccess) w->record->exec = NULL;
    return cuda_status(w->dev, status, "recording a pass", e);
}

enum status cuda_end(struct worker *w, struct error *e) {
    struct flight *f = &w->flights[w->turn];
    const struct pass *p = &w->pass;
    int finished = p->S;
    if (w->capturing) TRY(finish_recording(w, e));
    if (w->record) CUDA_TRY(w->dev, cudaGraphLaunch(w->record->exec, w->stream), "launching a recorded pass", e);
    if (p->before[p->S - 1] + p->start[p->S] - p->start[p->S - 1] != p->total[p->S - 1]) finished--;
    f->bytes = (size_t)finished * (size_t)p->columns * (size_t)w->dev->dims.C * sizeof(float);
    f->target = p->pooled;
    w->turn ^= 1;
    if (!f->bytes) return OK;
    cudaStream_t home = w->record ? w->stream : w->copies; /* few rows are sooner copied than another stream is told */
    if (!w->record) {
        CUDA_TRY(w->dev, cudaEventRecord(w->computed, w->stream), "ending a pass", e);
        CUDA_TRY(w->dev, cudaStreamWaitEvent(w->copies, w->computed, 0), "ending a pass", e);
    }
    CUDA_TRY(w->dev, cudaMemcpyAsync(f->pinned, w->pooled, f->bytes, cudaMemcpyDeviceToHost, home), "ending a pass", e);
    CUDA_TRY(w->dev, cudaEventRecord(f->done, home), "ending a pass", e);
    touch(f->target, f->bytes);
    return OK;
}

enum status cuda_finish(struct worker *w, struct error *e) {
    TRY(device_usable(w->dev, e));
    TRY(deliver(w, &w->flights[w->turn], e)); /* the older, while the device works on the other */
    TRY(deliver(w, &w->flights[w->turn ^ 1], e));
    return cuda_status(w->dev, cudaStreamSynchronize(w->stream), "finishing", e);
}
