/* Products: which way each goes, and the passes that finish what cublasLt cannot.
 *
 * At open every algorithm that might be used is run on random rows and compared, bit by bit, with the one that cublasLt
 * holds best for many rows; what differs is dropped, and of the rest the fastest is kept for each of a few numbers of
 * rows. So a row's result is one and the same whatever the pass, whichever way was taken. */
#include "cuda.h"
#include "launch.cuh"
#include "mma.cuh"

#include <string.h>

enum { THREADS = 256, WIDTH = 8, TIMES = 3 };

/* ---- passes after a product ------------------------------------------------------------------------------------ */

template <typename E> static __global__ void __launch_bounds__(THREADS) square_relu(const int *T, int n, E *out) {
    size_t i = 4 * ((size_t)blockIdx.x * THREADS + threadIdx.x);
    if (i >= (size_t)*T * n) return;
    float4 a = load4(out + i);
    store4(out + i,
           make_float4(relu_squared<E>(a.x), relu_squared<E>(a.y), relu_squared<E>(a.z), relu_squared<E>(a.w)));
}

template <typename Out>
static __global__ void __launch_bounds__(THREADS)
    add_gated(const int *T, int n, float *x, const Out *gate, const Out *y) {
    size_t i = 4 * ((size_t)blockIdx.x * THREADS + threadIdx.x);
    if (i >= (size_t)*T * n) return;
    float4 a = load4(x + i), g = load4(gate + i), b = load4(y + i);
    store4(x + i, make_float4(gate_add<Out>(a.x, g.x, b.x), gate_add<Out>(a.y, g.y, b.y), gate_add<Out>(a.z, g.z, b.z),
                              gate_add<Out>(a.w, g.w, b.w)));
}

static unsigned blocks_of(int rows, int n) {
    return (unsigned)(((size_t)rows * (size_t)n / 4 + THREADS - 1) / THREADS);
}

static void launch_square(const struct device *dev, cudaStream_t stream, const int *T, int rows, int n, void *out) {
    unsigned blocks = blocks_of(rows, n);
    if (dev->in == BF16) square_relu<<<blocks, THREADS, 0, stream>>>(T, n, (bf16 *)out);
    else if (dev->in == F16) square_relu<<<blocks, THREADS, 0, stream>>>(T, n, (half_t *)out);
    else square_relu<<<blocks, THREADS, 0, stream>>>(T, n, (float *)out);
}

template <typename Out> static void launch_gate(const struct worker *w, const struct product *p) {
    add_gated<Out><<<blocks_of(w->grid.T, p->n), THREADS, 0, w->stream>>>(w->meta.head, p->n, (float *)p->out,
                                                                          (const Out *)p->gate, (const Out *)w->temp);
}

/* ---- running ----------------------------------------------------------------------------------------------------- */

static const struct lt_algorithm *algorithm_for(const struct plan *plan, int rows) {
    int i = 0;
    while (i + 1 < SIZES && rows > plan->rows[i] * 7 / 5) i++;
    return &plan->algorithm[i];
}

static enum status run_one(struct worker *w, enum plan_kind kind, const struct product *p, struct error *e) {
    const struct device *dev = w->dev;
    const struct plan *plan = &dev->plans[kind];
    void *out = p->kind == GATE_ADD ? w->temp : p->out;
    TRY(lt_run(&dev->lt, plan, algorithm_for(plan, w->grid.T), w->grid.T, p->w, p->in, out, w->stream, e));
    if (p->kind == RELU2) launch_square(dev, w->stream, w->meta.head, w->grid.T, p->n, p->out);
    if (p->kind == GATE_ADD) dev->out == BF16 ? launch_gate<bf16>(w, p) : launch_gate<float>(w, p);
    return LAUNCHED(w, "a product", e);
}

enum status product_run(struct worker *w, enum plan_kind kind, const struct product *p, int count, struct error *e) {
    const struct device *dev = w->dev;
    if (w->grid.T <= FEW_ROWS && dev->few[kind] && count <= MOST_FEW)
        return cuda_status(w->dev, few_run(dev, w->stream, overlaps(w), w->meta.head, w->grid.T, p, count),
                           "a product of few rows", e);
    for (int i = 0; i < count; i++) TRY(run_one(w, kind, &p[i], e));
    return OK;
}

enum status product_join(struct worker *w, enum plan_kind kind, const struct product *p, struct error *e) {
    struct product all[MOST_FEW];
    int count = w->held_count;
    w->held_count = 0;
    memcpy(all, w->held, sizeof w->held);
    all[count] = *p;
    if (w->dev->few[kind]) return product_run(w, kind, all, count + 1, e);
    if (count) TRY(product_run(w, PLAN_HEADS, all, count, e));
    return product_run(w, kind, p, 1, e);
}

static enum plan_kind kind_of(const struct gemm *a) {
    switch (a->epilogue) {
    case ADD: return PLAN_OUTPUT;
    case RELU2: return PLAN_KEY;
    case GATE_ADD: return PLAN_VALUE;
    default: return PLAN_HEADS;
    }
}

enum status cuda_gemm(struct worker *w, const struct gemm *a, int count, struct error *e) {
    struct product p[MOST_FEW];
    if (count > MOST_FEW) return fail(e, BAD_INPUT, "%d products at a time: expected at most %d", count, MOST_FEW);
    bool few = w->grid.T <= FEW_ROWS;
    for (int i = 0; i < count; i++) {
        p[i] = product{a[i].w->data, a[i].in, a[i].out, a[i].gate, a[i].w->n, a[i].w->k, (int)a[i].epilogue};
        few = few && w->dev->few[kind_of(&a[i])];
    }
    if (few && count == 4) { /* the heads': rwkv6.c asks for the decay next */
        memcpy(w->held, p, sizeof w->held);
        w->held_count = count;
        return OK;
    }
    if (few) /* whatever their shapes, in one launch */
        return cuda_status(w->dev, few_run(w->dev, w->stream, overlaps(w), w->meta.head, w->grid.T, p, count),
                           "products of few rows", e);
    for (int i = 0; i < count; i++) TRY(run_one(w, kind_of(&a[i]), &p[i], e));
    return OK;
}

/* ---- choosing ---------------------------------------------------------------------------------------------------- */

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

/* Room and inputs of the comparison. */
struct trial {
    struct device *dev;
    int rows;
    void *w, *in, *out, *expected;
    size_t w_bytes, in_bytes, out_bytes;
    int *numbers; /* rows for the kernel of few rows; whether anything differed */
    cudaStream_t stream;
    cudaEvent_t start, stop;
};

static void fill(const struct trial *t, void *p, size_t bytes, unsigned seed, float scale) {
    size_t n = bytes / dtype_bytes(t->dev->in);
    if (t->dev->in == BF16) fill_noise<<<1024, THREADS, 0, t->stream>>>((bf16 *)p, n, seed, scale);
    else if (t->dev->in == F16) fill_noise<<<1024, THREADS, 0, t->stream>>>((half_t *)p, n, seed, scale);
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

static size_t result_bytes(const struct plan *plan, int rows) {
    return (size_t)rows * (size_t)plan->n * dtype_bytes(plan->out);
}

/* One product into fresh room: what beta adds to is the same each time. */
static enum status try_once(const struct trial *t, const struct plan *plan, const struct lt_algorithm *a, int rows,
                            void *out, struct error *e) {
    CUDA_TRY(t->dev, cudaMemsetAsync(out, 0, result_bytes(plan, rows), t->stream), "comparing products", e);
    return lt_run(&t->dev->lt, plan, a, rows, t->w, t->in, out, t->stream, e);
}

static enum status time_algorithm(const struct trial *t, const struct plan *plan, const struct lt_algorithm *a,
                                  int rows, float *best, struct error *e) {
    *best = 1e30f;
    for (int i = 0; i < TIMES; i++) {
        float ms = 0;
        CUDA_TRY(t->dev, cudaEventRecord(t->start, t->stream), "timing products", e);
        TRY(lt_run(&t->dev->lt, plan, a, rows, t->w, t->in, t->out, t->stream, e));
        CUDA_TRY(t->dev, cudaEventRecord(t->stop, t->stream), "timing products", e);
        CUDA_TRY(t->dev, cudaEventSynchronize(t->stop), "timing products", e);
        CUDA_TRY(t->dev, cudaEventElapsedTime(&ms, t->start, t->stop), "timing products", e);
        if (ms < *best) *best = ms;
    }
    return OK;
}

/* The fastest algorithm for so many rows among those that give the expected bits; `anchor` always does. */
static enum status choose_for(const struct trial *t, const struct plan *plan, const struct lt_algorithm *anchor,
                              int rows, struct lt_algorithm *chosen, struct error *e) {
    struct lt_algorithm candidates[CANDIDATES + 1] = {*anchor};
    int count = 0;
    float best = 1e30f;
    TRY(lt_candidates(&t->dev->lt, plan, rows, candidates + 1, &count, e));
    for (int i = 0; i <= count; i++) {
        bool same = false;
        float ms;
        struct error refused; /* an algorithm that will not run here is no failure of ours */
        if (try_once(t, plan, &candidates[i], rows, t->out, &refused) != OK && i > 0) continue;
        TRY(same_bits(t, result_bytes(plan, rows), &same, e));
        if (!same) continue;
        TRY(time_algorithm(t, plan, &candidates[i], rows, &ms, e));
        if (ms < best) *chosen = candidates[i], best = ms;
    }
    return best < 1e30f ? OK
                        : fail(e, DEVICE_FAILED,
                               "cublasLt's product of %d outputs from %d inputs changes with the number of "
                               "rows on this device: use device='cpu'",
                               plan->n, plan->k);
}

/* Whether the kernel for few rows gives the expected bits too, however it cuts the work: alone, and several in a launch. */
static enum status check_few(const struct trial *t, enum plan_kind kind, struct error *e) {
    struct device *dev = t->dev;
    const struct plan *plan = &dev->plans[kind];
    int rows = t->rows < FEW_ROWS - 3 ? t->rows : FEW_ROWS - 3, most = plan->beta != 0 ? 1 : MOST_FEW;
    struct product p[MOST_FEW];
    for (int i = 0; i < MOST_FEW; i++)
        p[i] = product{t->w,
                       t->in,
                       t->out,
                       NULL,
                       plan->n,
                       plan->k,
                       kind == PLAN_KEY   ? (int)RELU2
                       : plan->beta != 0  ? (int)ADD
                       : plan->out == F32 ? (int)STORE_FLOAT
                                          : (int)STORE};
    if (!few_fits(dev, p)) return OK;
    CUDA_TRY(dev, cudaMemcpyAsync(t->numbers, &rows, sizeof rows, cudaMemcpyHostToDevice, t->stream),
             "comparing products", e);
    if (kind == PLAN_KEY) launch_square(dev, t->stream, t->numbers, rows, plan->n, t->expected);
    dev->few[kind] = true;
    for (int count = 1; count <= most && dev->few[kind]; count++) {
        CUDA_TRY(dev, cudaMemsetAsync(t->out, 0, result_bytes(plan, rows), t->stream), "comparing products", e);
        CUDA_TRY(dev, few_run(dev, t->stream, false, t->numbers, rows, p, count), "comparing products", e);
        TRY(same_bits(t, result_bytes(plan, rows), &dev->few[kind], e));
    }
    return OK;
}

static enum status choose(const struct trial *t, enum plan_kind kind, struct error *e) {
    struct plan *plan = &t->dev->plans[kind];
    struct lt_algorithm anchors[CANDIDATES];
    float alpha = plan->alpha; /* a power of two: it changes no bit but the exponent's */
    int count = 0;
    plan->alpha = 1;
    fill(t, t->w, (size_t)plan->n * (size_t)plan->k * dtype_bytes(plan->in), 1, 0.05f);
    fill(t, t->in, (size_t)t->rows * (size_t)plan->k * dtype_bytes(plan->in), 2, 1.0f);
    TRY(lt_candidates(&t->dev->lt, plan, t->rows, anchors, &count, e));
    TRY(try_once(t, plan, &anchors[0], t->rows, t->expected, e));
    for (int i = 0; i < SIZES; i++) {
        int rows = t->rows >> (SIZES - 1 - i);
        plan->rows[i] = rows ? rows : 1;
        TRY(choose_for(t, plan, &anchors[0], plan->rows[i], &plan->algorithm[i], e));
    }
    enum status status = check_few(t, kind, e);
    plan->alpha = alpha;
    return status;
}

static enum status trial_open(struct trial *t, struct error *e) {
    struct device *dev = t->dev;
    const struct dims *d = &dev->dims;
    size_t C = (size_t)d->C, F = (size_t)d->F, in = dtype_bytes(dev->in);
    size_t ranks = (size_t)(5 * d->R > d->D ? 5 * d->R : d->D);
    size_t single = ranks > C ? ranks : C; /* widest of what may leave in float32 */
    size_t widest = F > single ? F : single;
    t->rows = 64 * dev->sms;
    while (t->rows > 1024 && (size_t)t->rows * widest * 12 > dev->budget / 4) t->rows /= 2;
    t->w_bytes = widest * C * in;
    t->in_bytes = (size_t)t->rows * widest * in;
    t->out_bytes = (size_t)t->rows * (in * F > sizeof(float) * single ? in * F : sizeof(float) * single);
    TRY(device_alloc(dev, t->w_bytes, &t->w, e));
    TRY(device_alloc(dev, t->in_bytes, &t->in, e));
    TRY(device_alloc(dev, t->out_bytes, &t->out, e));
    TRY(device_alloc(dev, t->out_bytes, &t->expected, e));
    TRY(device_alloc(dev, 2 * sizeof(int), (void **)&t->numbers, e));
    CUDA_TRY(dev, cudaStreamCreateWithFlags(&t->stream, cudaStreamNonBlocking), "opening a stream", e);
    CUDA_TRY(dev, cudaEventCreate(&t->start), "opening an event", e);
    CUDA_TRY(dev, cudaEventCreate(&t->stop), "opening an event", e);
    return OK;
}

static void trial_close(struct trial *t) {
    if (t->stream) cudaStreamDestroy(t->stream);
    if (t->start) cudaEventDestroy(t->start);
    if (t->stop) cudaEventDestroy(t->stop);
    device_free(t->dev, t->w, t->w_bytes);
    device_free(t->dev, t->in, t->in_bytes);
    device_free(t->dev, t->out, t->out_bytes);
    device_free(t->dev, t->expected, t->out_bytes);
    device_free(t->dev, t->numbers, 2 * sizeof(int));
}

enum status products_open(struct device *dev, struct error *e) {
    const struct dims *d = &dev->dims;
    float up = dev->in == F16 ? relu_scale<half_t>::up : 1.0f;
    const struct {
        int n, k;
        enum dtype out;
        float alpha, beta;
    } kinds[PLANS] = {
        {d->C, d->C, dev->out, 1, 0},  /* PLAN_HEADS */
        {d->C, d->C, F32, 1, 1},       /* PLAN_OUTPUT */
        {d->F, d->C, dev->in, 1, 0},   /* PLAN_KEY */
        {d->C, d->F, dev->out, up, 0}, /* PLAN_VALUE */
        {5 * d->R, d->C, F32, 1, 0},   /* PLAN_SHIFT_DOWN */
        {d->D, d->C, F32, 1, 0},       /* PLAN_DECAY_DOWN */
    };
    struct trial t = {};
    t.dev = dev;
    enum status status = trial_open(&t, e);
    for (int i = 0; status == OK && i < PLANS; i++) {
        struct plan *plan = &dev->plans[i];
        plan->n = kinds[i].n;
        plan->k = kinds[i].k;
        plan->in = dev->in;
        plan->out = kinds[i].out;
        plan->alpha = kinds[i].alpha;
        plan->beta = kinds[i].beta;
        status = choose(&t, (enum plan_kind)i, e);
    }
    trial_close(&t);
    return status;
}
