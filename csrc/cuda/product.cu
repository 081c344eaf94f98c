/* Products: which way each goes, and the passes that finish what cublasLt cannot.
 *
 * At open every way that might be taken is tried on random rows and compared, bit by bit and with what follows the
 * product, with the algorithm that cublasLt holds best for many rows; what differs is dropped. Of the rest the fastest
 * is kept for each of a few numbers of rows: an algorithm of cublasLt, or Hopper's own kernel where that is clearly
 * faster. So a row's result is one and the same whatever the pass, whichever way was taken. */
#include "cuda.h"
#include "launch.cuh"
#include "mma.cuh"

#include <string.h>

enum { THREADS = 256, WIDTH = 8 };

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

static void launch_gate(const struct device *dev, cudaStream_t stream, const int *T, int rows, const struct product *p,
                        const void *y) {
    unsigned blocks = blocks_of(rows, p->n);
    float *x = (float *)p->out;
    if (dev->out == BF16) add_gated<<<blocks, THREADS, 0, stream>>>(T, p->n, x, (const bf16 *)p->gate, (const bf16 *)y);
    else add_gated<<<blocks, THREADS, 0, stream>>>(T, p->n, x, (const float *)p->gate, (const float *)y);
}

/* ---- running ----------------------------------------------------------------------------------------------------- */

/* Where a product happens: a worker's stream and room, or those of the comparison below. */
struct place {
    const struct device *dev;
    cudaStream_t stream;
    const int *T; /* on the device */
    int rows;
    void *temp; /* [rows, C] out type, for what the gate waits for */
};

/* By cublasLt, with what it cannot do in a pass behind it. */
static enum status run_plain(const struct place *at, const struct plan *plan, const struct lt_algorithm *algorithm,
                             const struct product *p, struct error *e) {
    void *out = p->kind == GATE_ADD ? at->temp : p->out;
    TRY(lt_run(&at->dev->lt, plan, algorithm, at->rows, p->w, p->in, out, at->stream, e));
    if (p->kind == RELU2) launch_square(at->dev, at->stream, at->T, at->rows, p->n, p->out);
    if (p->kind == GATE_ADD) launch_gate(at->dev, at->stream, at->T, at->rows, p, at->temp);
    return OK;
}

static int size_for(const struct plan *plan, int rows) {
    int i = 0;
    while (i + 1 < SIZES && rows > plan->rows[i] * 7 / 5) i++;
    return i;
}

static int cut_for(const struct worker *w, enum plan_kind kind) {
    const struct plan *plan = &w->dev->plans[kind];
    return plan->cut[size_for(plan, w->grid.T)];
}

/* Whether a product that goes Hopper's way may do so by another's cut. */
static bool shares_cut(const struct worker *w, enum plan_kind kind, int cut) {
    const struct plan *plan = &w->dev->plans[kind];
    return cut_for(w, kind) != NO_CUT && plan->right[size_for(plan, w->grid.T)] >> cut & 1;
}

/* Neighbours that go Hopper's way share a launch, cut as the first: its processors wait once for the last tiles. */
static enum status run_all(struct worker *w, const enum plan_kind *kinds, const struct product *p, int count,
                           struct error *e) {
    const struct device *dev = w->dev;
    const struct place at = {dev, w->stream, w->meta.head, w->grid.T, w->temp};
    for (int i = 0, next; i < count; i = next) {
        const struct plan *plan = &dev->plans[kinds[i]];
        int cut = cut_for(w, kinds[i]);
        next = i + 1;
        if (cut == NO_CUT) {
            TRY(run_plain(&at, plan, &plan->algorithm[size_for(plan, at.rows)], &p[i], e));
            continue;
        }
        while (next < count && shares_cut(w, kinds[next], cut)) next++;
        TRY(cuda_status(w->dev, hopper_run(dev, w->stream, cut, at.rows, &p[i], next - i), "products of many rows", e));
    }
    return LAUNCHED(w, "a product", e);
}

enum status product_run(struct worker *w, enum plan_kind kind, const struct product *p, int count, struct error *e) {
    const struct device *dev = w->dev;
    if (w->grid.T <= FEW_ROWS && dev->few[kind] && count <= MOST_FEW)
        return cuda_status(w->dev, few_run(dev, w->stream, overlaps(w), w->meta.head, w->grid.T, p, count),
                           "a product of few rows", e);
    for (int i = 0; i < count; i++) TRY(run_all(w, &kind, &p[i], 1, e));
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
    enum plan_kind kinds[MOST_FEW];
    if (count > MOST_FEW) return fail(e, BAD_INPUT, "%d products at a time: expected at most %d", count, MOST_FEW);
    bool few = w->grid.T <= FEW_ROWS, heads = count == HEADS;
    for (int i = 0; i < count; i++) {
        p[i] = product{a[i].w->data, a[i].in, a[i].out, a[i].gate, a[i].w->n, a[i].w->k, (int)a[i].epilogue};
        kinds[i] = kind_of(&a[i]);
        few = few && w->dev->few[kinds[i]];
        heads = heads && kinds[i] == PLAN_HEADS;
    }
    if (few && heads) { /* by the order of the equations the decay comes next, and fetches them */
        memcpy(w->held, p, sizeof w->held);
        w->held_count = count;
        return OK;
    }
    if (few) /* whatever their shapes, in one launch */
        return cuda_status(w->dev, few_run(w->dev, w->stream, overlaps(w), w->meta.head, w->grid.T, p, count),
                           "products of few rows", e);
    return run_all(w, kinds, p, count, e);
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

/* Room and inputs of the comparison. Rounds of timing: of every algorithm, of the best one against another way. */
enum { ROUNDS = 4, MORE_ROUNDS = 12, MARKS = 2 * MORE_ROUNDS + 1 };
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

/* A way that a product may go: by cublasLt's algorithm, cut as on Hopper, or the kernel of few rows. */
struct way {
    const struct lt_algorithm *algorithm; /* NULL: not cublasLt */
    int cut;                              /* NO_CUT: few rows */
};

/* The product of a plan, its epilogue included, into `out`. */
static struct product product_of(const struct trial *t, enum plan_kind kind, void *out) {
    const struct plan *plan = &t->dev->plans[kind];
    int epilogue = kind == PLAN_KEY     ? (int)RELU2
                   : kind == PLAN_VALUE ? (int)GATE_ADD
                   : plan->beta != 0    ? (int)ADD
                   : plan->out == F32   ? (int)STORE_FLOAT
                                        : (int)STORE;
    return product{t->w, t->in, out, t->gate, plan->n, plan->k, epilogue};
}

static size_t result_bytes(const struct trial *t, enum plan_kind kind, int rows) {
    const struct plan *plan = &t->dev->plans[kind];
    return (size_t)rows * (size_t)plan->n * (kind == PLAN_VALUE ? sizeof(float) : dtype_bytes(plan->out));
}

static enum status go(const struct trial *t, enum plan_kind kind, struct way way, int rows, const struct product *p,
                      int count, struct error *e) {
    struct device *dev = t->dev;
    const struct place at = {dev, t->stream, t->numbers, rows, t->temp};
    if (way.algorithm) {
        for (int i = 0; i < count; i++) TRY(run_plain(&at, &dev->plans[kind], way.algorithm, &p[i], e));
        return OK;
    }
    cudaError_t status = way.cut == NO_CUT ? few_run(dev, t->stream, false, t->numbers, rows, p, count)
                                           : hopper_run(dev, t->stream, way.cut, rows, p, count);
    if (status == cudaSuccess) return OK;
    cudaGetLastError(); /* refused, and no more: what poisons the device is found when the results are read */
    return fail(e, DEVICE_FAILED, "a kernel for products cannot be launched: %s", cudaGetErrorString(status));
}

/* The product, `count` times over, into fresh room: what is added to is the same each time. */
static enum status try_once(const struct trial *t, enum plan_kind kind, struct way way, int rows, int count, void *out,
                            struct error *e) {
    struct product p[MOST_FEW];
    size_t bytes = result_bytes(t, kind, rows);
    for (int i = 0; i < count; i++) p[i] = product_of(t, kind, out);
    CUDA_TRY(t->dev, cudaMemcpyAsync(t->numbers, &rows, sizeof rows, cudaMemcpyHostToDevice, t->stream),
             "comparing products", e);
    if (p->kind == ADD || p->kind == GATE_ADD) fill(t, out, F32, bytes, 4, 1.0f);
    else CUDA_TRY(t->dev, cudaMemsetAsync(out, 0, bytes, t->stream), "comparing products", e);
    return go(t, kind, way, rows, p, count, e);
}

/* Milliseconds of each way. They take turns without a pause, so that a clock that falls under load falls for all; the
 * first round does not count. The products that read the token shift come four at a time. */
static enum status time_ways(const struct trial *t, enum plan_kind kind, const struct way *ways, int count, int rounds,
                             int rows, float *ms, struct error *e) {
    struct product p[MOST_FEW];
    int products = kind == PLAN_HEADS ? HEADS : 1, turns = count * rounds;
    for (int i = 0; i < products; i++) p[i] = product_of(t, kind, t->out);
    for (int i = 0; i < turns; i++) {
        CUDA_TRY(t->dev, cudaEventRecord(t->marks[i], t->stream), "timing products", e);
        TRY(go(t, kind, ways[i % count], rows, p, products, e));
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
static enum status choose_algorithm(const struct trial *t, enum plan_kind kind, const struct lt_algorithm *anchor,
                                    int rows, struct lt_algorithm *chosen, struct error *e) {
    const struct plan *plan = &t->dev->plans[kind];
    struct lt_algorithm candidates[CANDIDATES + 1] = {*anchor};
    int count = 0;
    float best = 1e30f;
    TRY(lt_candidates(&t->dev->lt, plan, rows, candidates + 1, &count, e));
    for (int i = 0; i <= count; i++) {
        const struct way way = {&candidates[i], NO_CUT};
        bool same = false;
        float ms;
        struct error refused; /* an algorithm that will not run here is no failure of ours */
        if (try_once(t, kind, way, rows, 1, t->out, &refused) != OK && i > 0) continue;
        TRY(same_bits(t, result_bytes(t, kind, rows), &same, e));
        if (!same) continue;
        TRY(time_ways(t, kind, &way, 1, ROUNDS, rows, &ms, e));
        if (ms < best) *chosen = candidates[i], best = ms;
    }
    return best < 1e30f ? OK
                        : fail(e, DEVICE_FAILED,
                               "cublasLt's product of %d outputs from %d inputs changes with the number of "
                               "rows on this device: use device='cpu'",
                               plan->n, plan->k);
}

/* Whether a cut of Hopper's kernel gives the expected bits, at a ragged number of rows too, and is clearly faster. */
static enum status choose_cut(const struct trial *t, enum plan_kind kind, int size, struct error *e) {
    struct plan *plan = &t->dev->plans[kind];
    struct product p = product_of(t, kind, t->out);
    int rows = plan->rows[size], ragged = rows > 3 ? rows - 3 : rows;
    float best = 0.98f;
    plan->cut[size] = NO_CUT;
    plan->right[size] = 0;
    for (int cut = 0; cut < CUTS; cut++) {
        const struct way ways[2] = {{&plan->algorithm[size], NO_CUT}, {NULL, cut}};
        bool same = false;
        float ms[2];
        struct error refused;
        if (!hopper_fits(t->dev, cut, &p)) continue;
        if (try_once(t, kind, ways[1], ragged, 1, t->out, &refused) != OK) continue;
        TRY(same_bits(t, result_bytes(t, kind, ragged), &same, e));
        if (!same) continue;
        plan->right[size] |= 1u << cut;
        TRY(time_ways(t, kind, ways, 2, MORE_ROUNDS, rows, ms, e));
        if (ms[1] < best * ms[0]) plan->cut[size] = cut, best = ms[1] / ms[0];
    }
    return OK;
}

/* Whether the kernel for few rows gives the expected bits too, however it cuts the work: alone, and several in a launch. */
static enum status check_few(const struct trial *t, enum plan_kind kind, struct error *e) {
    struct device *dev = t->dev;
    struct product p = product_of(t, kind, t->out);
    int rows = t->rows < FEW_ROWS - 3 ? t->rows : FEW_ROWS - 3;
    int most = p.kind == ADD || p.kind == GATE_ADD ? 1 : MOST_FEW;
    dev->few[kind] = few_fits(dev, &p);
    for (int count = 1; count <= most && dev->few[kind]; count++) {
        TRY(try_once(t, kind, way{NULL, NO_CUT}, rows, count, t->out, e));
        TRY(same_bits(t, result_bytes(t, kind, rows), &dev->few[kind], e));
    }
    return OK;
}

static enum status choose(const struct trial *t, enum plan_kind kind, struct error *e) {
    struct plan *plan = &t->dev->plans[kind];
    struct lt_algorithm anchors[CANDIDATES];
    int count = 0;
    fill(t, t->w, plan->in, (size_t)plan->n * (size_t)plan->k * dtype_bytes(plan->in), 1, 0.05f);
    fill(t, t->in, plan->in, (size_t)t->rows * (size_t)plan->k * dtype_bytes(plan->in), 2, 1.0f);
    fill(t, t->gate, t->dev->out, t->gate_bytes, 3, 4.0f);
    TRY(lt_candidates(&t->dev->lt, plan, t->rows, anchors, &count, e));
    TRY(try_once(t, kind, way{&anchors[0], NO_CUT}, t->rows, 1, t->expected, e));
    for (int i = 0; i < SIZES; i++) {
        int rows = t->rows >> (SIZES - 1 - i);
        plan->rows[i] = rows ? rows : 1;
        TRY(choose_algorithm(t, kind, &anchors[0], plan->rows[i], &plan->algorithm[i], e));
        TRY(choose_cut(t, kind, i, e));
    }
    return check_few(t, kind, e);
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
    t->gate_bytes = (size_t)t->rows * C * dtype_bytes(dev->out);
    t->out_bytes = (size_t)t->rows * (in * F > sizeof(float) * single ? in * F : sizeof(float) * single);
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
    struct cudaFuncAttributes code;
    t.dev = dev;
    CUDA_TRY(dev, cudaFuncGetAttributes(&code, fill_noise<float>), "looking at the kernels", e);
    dev->waits = dev->major >= 9 && code.ptxVersion >= 90; /* a build for older devices runs here too, without */
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
