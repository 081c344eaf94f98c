/* Making the plans: every way that a product might take is tried on random rows when the device is opened.
 *
 * Each is compared, bit by bit and with what follows the product, with the algorithm that cublasLt holds best for many
 * rows; what differs is dropped. Of the rest the fastest is kept for each of a few numbers of rows: an algorithm of
 * cublasLt, or wgmma.cu where that is clearly faster. So a row's result is one and the same whatever the pass. */
#include "elements.cuh"
#include "product/product.h"

#include <stdio.h>
#include <string.h>

enum { THREADS = 256 };

enum status lt_product(const struct queue *q, const struct plan *plan, const struct lt_algorithm *algorithm,
                       const struct product *p, struct error *e) {
    void *out = p->epilogue == GATE_ADD ? q->temp : p->out;
    TRY(lt_run(&q->dev->lt, &plan->shape, algorithm, q->rows, p->w, p->in, out, q->stream, e));
    if (p->epilogue == RELU2) square_relu_run(q, p->n, p->out);
    if (p->epilogue == GATE_ADD) add_gated_run(q, p, q->temp);
    return OK;
}

/* ---- random rows, and comparing --------------------------------------------------------------------------------- */

static __device__ __forceinline__ float noise(size_t i, unsigned seed) {
    unsigned h = (unsigned)i * 2654435761u ^ seed;
    h = (h ^ h >> 15) * 2246822519u;
    h = (h ^ h >> 13) * 3266489917u;
    return (float)((h ^ h >> 16) & 0xffff) / 32768.0f - 1.0f;
}

template <typename E> static __global__ void fill_noise(E *p, size_t n, unsigned seed, float scale) {
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (size_t)gridDim.x * THREADS)
        p[i] = from_float<E>(noise(i, seed) * scale);
}

static __global__ void count_different(const uint32_t *a, const uint32_t *b, size_t n, int *different) {
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (size_t)gridDim.x * THREADS)
        if (a[i] != b[i]) atomicOr(different, 1);
}

/* Room and inputs of the comparison. Rounds of timing: of every algorithm, of the best one against wgmma.cu. */
enum { ROUNDS = 4, MORE_ROUNDS = 12, MARKS = 2 * MORE_ROUNDS + 1 };
/* Products that only store are timed so many together, as the heads' come: a shared launch waits once for its last tiles. */
enum { TOGETHER = 4 };
struct trial {
    struct device *dev;
    int rows;
    void *w, *in, *gate, *temp, *out, *expected;
    size_t w_bytes, in_bytes, gate_bytes, out_bytes;
    int *numbers; /* rows; whether anything differed */
    cudaStream_t stream;
    cudaEvent_t marks[MARKS];
};

static void fill(const struct trial *t, void *p, enum dtype type, size_t bytes, unsigned seed, float scale) {
    size_t n = bytes / dtype_bytes(type);
    if (type == BF16) fill_noise<<<1024, THREADS, 0, t->stream>>>((bf16 *)p, n, seed, scale);
    else if (type == F16) fill_noise<<<1024, THREADS, 0, t->stream>>>((half_t *)p, n, seed, scale);
    else fill_noise<<<1024, THREADS, 0, t->stream>>>((float *)p, n, seed, scale);
}

static enum status same_bits(const struct trial *t, size_t bytes, bool *same, struct error *e) {
    int different = 1;
    CUDA_TRY(t->dev, cudaMemsetAsync(t->numbers + 1, 0, sizeof(int), t->stream), "comparing products", e);
    count_different<<<1024, THREADS, 0, t->stream>>>((const uint32_t *)t->out, (const uint32_t *)t->expected,
                                                     bytes / sizeof(uint32_t), t->numbers + 1);
    CUDA_TRY(t->dev, cudaMemcpyAsync(&different, t->numbers + 1, sizeof different, cudaMemcpyDeviceToHost, t->stream),
             "comparing products", e);
    CUDA_TRY(t->dev, cudaStreamSynchronize(t->stream), "comparing products", e);
    *same = !different;
    return OK;
}

/* A way that a product may go. */
struct way {
    enum kernel kernel;
    const struct lt_algorithm *algorithm; /* BY_CUBLASLT */
};

static struct product product_of(const struct trial *t, const struct plan *plan, void *out) {
    return product{t->w, t->in, out, t->gate, plan->kind.n, plan->kind.k, plan->kind.epilogue, plan->shape.alpha};
}

static size_t result_bytes(const struct plan *plan, int rows) {
    return (size_t)rows * (size_t)plan->kind.n *
           (plan->kind.epilogue == GATE_ADD ? sizeof(float) : dtype_bytes(plan->shape.out));
}

static enum status go(const struct trial *t, const struct plan *plan, struct way way, int rows, const struct product *p,
                      int count, struct error *e) {
    const struct queue q = {t->dev, t->stream, t->numbers, rows, t->temp, false};
    cudaError_t status = cudaSuccess;
    if (way.kernel == BY_CUBLASLT)
        for (int i = 0; i < count; i++) TRY(lt_product(&q, plan, way.algorithm, &p[i], e));
    else if (way.kernel == BY_WGMMA) status = wgmma_run(&q, p, count);
    else status = way.kernel == BY_STREAM ? stream_run(&q, p, count) : few_run(&q, p, count);
    if (status == cudaSuccess) return OK;
    cudaGetLastError(); /* refused, and no more: what poisons the device is found when the results are read */
    return fail(e, DEVICE_FAILED, "a kernel for products cannot be launched: %s", cudaGetErrorString(status));
}

/* The product, `count` times over, into fresh room: what is added to is the same each time. */
static enum status try_once(const struct trial *t, const struct plan *plan, struct way way, int rows, int count,
                            void *out, struct error *e) {
    struct product p[MOST_PRODUCTS];
    size_t bytes = result_bytes(plan, rows);
    for (int i = 0; i < count; i++) p[i] = product_of(t, plan, out);
    CUDA_TRY(t->dev, cudaMemcpyAsync(t->numbers, &rows, sizeof rows, cudaMemcpyHostToDevice, t->stream),
             "comparing products", e);
    if (p->epilogue == ADD || p->epilogue == GATE_ADD) fill(t, out, F32, bytes, 4, 1.0f);
    else CUDA_TRY(t->dev, cudaMemsetAsync(out, 0, bytes, t->stream), "comparing products", e);
    return go(t, plan, way, rows, p, count, e);
}

/* Milliseconds of each way. They take turns without a pause, so that a clock that falls under load falls for all; the
 * first round does not count. */
static enum status time_ways(const struct trial *t, const struct plan *plan, const struct way *ways, int count,
                             int rounds, int rows, float *ms, struct error *e) {
    struct product p[TOGETHER];
    int products = plan->kind.epilogue == STORE ? TOGETHER : 1, turns = count * rounds;
    for (int i = 0; i < products; i++) p[i] = product_of(t, plan, t->out);
    for (int i = 0; i < turns; i++) {
        CUDA_TRY(t->dev, cudaEventRecord(t->marks[i], t->stream), "timing products", e);
        TRY(go(t, plan, ways[i % count], rows, p, products, e));
    }
    CUDA_TRY(t->dev, cudaEventRecord(t->marks[turns], t->stream), "timing products", e);
    CUDA_TRY(t->dev, cudaStreamSynchronize(t->stream), "timing products", e);
    for (int i = 0; i < count; i++) ms[i] = 0;
    for (int i = count; i < turns; i++) {
        float one = 0;
        CUDA_TRY(t->dev, cudaEventElapsedTime(&one, t->marks[i], t->marks[i + 1]), "timing products", e);
        ms[i % count] += one / (float)(rounds - 1);
    }
    return OK;
}

/* The fastest algorithm for so many rows among those that give the expected bits; `anchor` always does. */
static enum status choose_algorithm(const struct trial *t, struct plan *plan, int size,
                                    const struct lt_algorithm *anchor, struct error *e) {
    struct lt_algorithm candidates[CANDIDATES + 1] = {*anchor};
    int count = 0, rows = plan->rows[size];
    float best = 1e30f;
    TRY(lt_candidates(&t->dev->lt, &plan->shape, rows, candidates + 1, &count, e));
    for (int i = 0; i <= count; i++) {
        const struct way way = {BY_CUBLASLT, &candidates[i]};
        bool same = false;
        float ms;
        struct error refused; /* an algorithm that will not run here is no failure of ours */
        if (try_once(t, plan, way, rows, 1, t->out, &refused) != OK && i > 0) continue;
        TRY(same_bits(t, result_bytes(plan, rows), &same, e));
        if (!same) continue;
        TRY(time_ways(t, plan, &way, 1, ROUNDS, rows, &ms, e));
        if (ms < best) plan->algorithm[size] = candidates[i], best = ms;
    }
    return best < 1e30f ? OK
                        : fail(e, DEVICE_FAILED,
                               "cublasLt's product of %d outputs from %d inputs changes with the number of "
                               "rows on this device: use device='cpu'",
                               plan->kind.n, plan->kind.k);
}

/* Whether wgmma.cu gives the expected bits, at a ragged number of rows too, and is clearly faster. */
static enum status try_wgmma(const struct trial *t, struct plan *plan, int size, struct error *e) {
    const struct way ways[2] = {{BY_CUBLASLT, &plan->algorithm[size]}, {BY_WGMMA, NULL}};
    int rows = plan->rows[size], ragged = rows > 3 ? rows - 3 : rows;
    bool same = false;
    float ms[2];
    struct error refused;
    plan->wgmma[size] = false;
    if (route_product(&t->dev->gpu, t->dev->in, &plan->kind, false) != BY_WGMMA) return OK;
    if (try_once(t, plan, ways[1], ragged, 1, t->out, &refused) != OK) return OK;
    TRY(same_bits(t, result_bytes(plan, ragged), &same, e));
    if (!same) return OK;
    TRY(time_ways(t, plan, ways, 2, MORE_ROUNDS, rows, ms, e));
    plan->wgmma[size] = ms[1] < 0.98f * ms[0];
    return OK;
}

/* Whether the kernel for few rows gives the expected bits too, however it cuts the work: alone, and several in a launch. */
static enum status check_few(const struct trial *t, struct plan *plan, struct error *e) {
    const struct way way = {route_product(&t->dev->gpu, t->dev->in, &plan->kind, true), NULL};
    int rows = t->rows < FEW_ROWS - 3 ? t->rows : FEW_ROWS - 3;
    int most = plan->kind.epilogue == ADD || plan->kind.epilogue == GATE_ADD ? 1 : MOST_PRODUCTS;
    plan->few = way.kernel != BY_CUBLASLT;
    for (int count = 1; count <= most && plan->few; count++) {
        TRY(try_once(t, plan, way, rows, count, t->out, e));
        TRY(same_bits(t, result_bytes(plan, rows), &plan->few, e));
    }
    return OK;
}

static enum status choose(const struct trial *t, struct plan *plan, struct error *e) {
    size_t n = (size_t)plan->kind.n, k = (size_t)plan->kind.k, in = dtype_bytes(plan->shape.in);
    struct lt_algorithm anchors[CANDIDATES];
    int count = 0;
    fill(t, t->w, plan->shape.in, n * k * in, 1, 0.05f);
    fill(t, t->in, plan->shape.in, (size_t)t->rows * k * in, 2, 1.0f);
    fill(t, t->gate, t->dev->out, t->gate_bytes, 3, 4.0f);
    TRY(lt_candidates(&t->dev->lt, &plan->shape, t->rows, anchors, &count, e));
    TRY(try_once(t, plan, way{BY_CUBLASLT, &anchors[0]}, t->rows, 1, t->expected, e));
    for (int i = 0; i < SIZES; i++) {
        int rows = t->rows >> (SIZES - 1 - i);
        plan->rows[i] = rows ? rows : 1;
        TRY(choose_algorithm(t, plan, i, &anchors[0], e));
        TRY(try_wgmma(t, plan, i, e));
    }
    return check_few(t, plan, e);
}

/* Room for the largest of the kinds. */
static enum status trial_open(struct trial *t, struct error *e) {
    struct device *dev = t->dev;
    size_t widest_in = 0, row_out = 0, row_gate = 16;
    for (int i = 0; i < dev->plan_count; i++) {
        const struct plan *plan = &dev->plans[i];
        size_t n = (size_t)plan->kind.n, k = (size_t)plan->kind.k, weights = n * k * dtype_bytes(dev->in);
        size_t gate = n * dtype_bytes(dev->out);
        if (t->w_bytes < weights) t->w_bytes = weights;
        if (widest_in < k) widest_in = k;
        if (row_out < result_bytes(plan, 1)) row_out = result_bytes(plan, 1);
        if (plan->kind.epilogue == GATE_ADD && row_gate < gate) row_gate = gate;
    }
    size_t row_in = widest_in * dtype_bytes(dev->in), row = row_in + 2 * row_out + 2 * row_gate;
    t->rows = 64 * dev->gpu.multiprocessors;
    while (t->rows > 1024 && (size_t)t->rows * row > dev->budget / 4) t->rows /= 2;
    t->in_bytes = (size_t)t->rows * row_in;
    t->gate_bytes = (size_t)t->rows * row_gate;
    t->out_bytes = (size_t)t->rows * row_out;
    TRY(device_alloc(dev, t->w_bytes, &t->w, e));
    TRY(device_alloc(dev, t->in_bytes, &t->in, e));
    TRY(device_alloc(dev, t->gate_bytes, &t->gate, e));
    TRY(device_alloc(dev, t->gate_bytes, &t->temp, e));
    TRY(device_alloc(dev, t->out_bytes, &t->out, e));
    TRY(device_alloc(dev, t->out_bytes, &t->expected, e));
    TRY(device_alloc(dev, 2 * sizeof(int), (void **)&t->numbers, e));
    CUDA_TRY(dev, cudaStreamCreateWithFlags(&t->stream, cudaStreamNonBlocking), "opening a stream", e);
    for (int i = 0; i < MARKS; i++) CUDA_TRY(dev, cudaEventCreate(&t->marks[i]), "opening an event", e);
    /* cublasLt writes all of it, unseen by those who look for reads of what nobody wrote */
    CUDA_TRY(dev, cudaMemsetAsync(t->temp, 0, t->gate_bytes, t->stream), "comparing products", e);
    return OK;
}

static void trial_close(struct trial *t) {
    if (t->stream) cudaStreamDestroy(t->stream);
    for (int i = 0; i < MARKS; i++)
        if (t->marks[i]) cudaEventDestroy(t->marks[i]);
    device_free(t->dev, t->w, t->w_bytes);
    device_free(t->dev, t->in, t->in_bytes);
    device_free(t->dev, t->gate, t->gate_bytes);
    device_free(t->dev, t->temp, t->gate_bytes);
    device_free(t->dev, t->out, t->out_bytes);
    device_free(t->dev, t->expected, t->out_bytes);
    device_free(t->dev, t->numbers, 2 * sizeof(int));
}

/* ---- plans ------------------------------------------------------------------------------------------------------- */

/* The kind as plans are keyed by it, and what cublasLt is asked for. */
static struct plan plan_for(const struct device *dev, const struct product_kind *kind) {
    struct plan plan = {};
    plan.kind = *kind;
    plan.kind.epilogue = written_as(kind->epilogue);
    plan.kind.of_squares = kind->of_squares && dev->in == F16;
    enum dtype out = plan.kind.epilogue == RELU2                              ? dev->in
                     : plan.kind.epilogue == ADD || plan.kind.epilogue == LOW ? F32
                                                                              : dev->out;
    float up = plan.kind.of_squares ? relu_scale<half_t>::up : 1.0f, beta = plan.kind.epilogue == ADD ? 1.0f : 0.0f;
    plan.shape = lt_shape{kind->n, kind->k, dev->in, out, up, beta};
    return plan;
}

static bool is_known(const struct device *dev, const struct product_kind *kind) {
    for (int i = 0; i < dev->plan_count; i++) {
        const struct product_kind *k = &dev->plans[i].kind;
        if (k->n == kind->n && k->k == kind->k && k->epilogue == kind->epilogue && k->of_squares == kind->of_squares)
            return true;
    }
    return false;
}

enum status plans_open(struct device *dev, const struct product_kind *kinds, int count, struct error *e) {
    for (int i = 0; i < count; i++) {
        const struct plan plan = plan_for(dev, &kinds[i]);
        if (is_known(dev, &plan.kind)) continue;
        if (dev->plan_count == MOST_PLANS)
            return fail(e, DEVICE_FAILED, "a model of more than %d kinds of product: on CUDA fewer are expected",
                        MOST_PLANS);
        dev->plans[dev->plan_count++] = plan;
    }
    struct trial t = {};
    t.dev = dev;
    enum status status = trial_open(&t, e);
    for (int i = 0; status == OK && i < dev->plan_count; i++) status = choose(&t, &dev->plans[i], e);
    trial_close(&t);
    return status;
}

int plans_print(const struct device *dev, char *text, size_t n) {
    static const char *const written[] = {"stored", "", "", "squared", "added", "gated", "low"};
    size_t used = 0;
    for (int i = 0; i < dev->plan_count; i++) {
        const struct plan *plan = &dev->plans[i];
        const enum kernel few = plan->few ? route_product(&dev->gpu, dev->in, &plan->kind, true) : BY_CUBLASLT;
        used += (size_t)snprintf(used < n ? text + used : NULL, used < n ? n - used : 0,
                                 "%d from %d, %s: few rows %s; wgmma_product at", plan->kind.n, plan->kind.k,
                                 written[plan->kind.epilogue], kernel_name(few));
        for (int size = 0; size < SIZES; size++)
            used += (size_t)snprintf(used < n ? text + used : NULL, used < n ? n - used : 0, " %d:%s", plan->rows[size],
                                     plan->wgmma[size] ? "yes" : "no");
        used += (size_t)snprintf(used < n ? text + used : NULL, used < n ? n - used : 0, "\n");
    }
    return (int)used;
}
