/* Every kernel of csrc/cuda/route.h alone: checked against float64, timed, set beside what the device can do.
 *
 * bench/cuda_kernels.py compiles and runs it. Shapes are Finch-1B6's (C = 2048, F = 7168, heads of 64), one block, random
 * weights. "Many" is a pass of 64 rows a multiprocessor, "few" one of 54 rows, a pair. A kernel is timed as one of many
 * launches in a CUDA graph, its weights among copies that do not fit the second-level cache together, median of 7 graphs.
 * KB are those that must move: operands once in, results once out. The ceilings are measured first: a copy within the
 * device, bytes read and written, and the largest product by cublasLt. */
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "elements.cuh"
#include "product/product.h"
#include "rwkv6/rwkv6.h"
#include "worker.h"

enum { C = 2048, F = 7168, N = 64, H = C / N, R = 32, D = 64, V = 4096, PAIR = 54, SQUARE = 8192, GRAPHS = 7 };

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        cudaError_t status_ = (call);                                                                                  \
        if (status_ != cudaSuccess) stop(#call, cudaGetErrorString(status_));                                          \
    } while (0)
#define WORKS(call)                                                                                                    \
    do {                                                                                                               \
        if ((call) != OK) stop(#call, e.text);                                                                         \
    } while (0)

static void stop(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

extern "C" const struct backend *rwkvsts_cuda_backend(int abi);

static struct error e;
static const struct backend *be;
static struct device *dev;
static struct meter meter;
static struct worker *w;
static double copy_rate, product_rate; /* bytes and operations a second */

/* ---- arrays --------------------------------------------------------------------------------------------------------- */

static __global__ void fill(void *p, enum dtype type, size_t n, unsigned seed, float scale, float about) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        unsigned h = (unsigned)i * 2654435761u ^ seed;
        h = (h ^ h >> 15) * 2246822519u;
        h = (h ^ h >> 13) * 3266489917u;
        float a = about + scale * ((float)((h ^ h >> 16) & 0xffff) / 32768.0f - 1.0f);
        if (type == F32) ((float *)p)[i] = a;
        else if (type == F16) ((half_t *)p)[i] = __float2half_rn(a);
        else ((bf16 *)p)[i] = __float2bfloat16_rn(a);
    }
}

static __global__ void copy(const float4 *from, float4 *to, size_t n) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        to[i] = from[i];
}

static unsigned seeds = 1;

/* An array on the device: random, or to be written. */
struct array_on {
    void *p = NULL;
    enum dtype type = F32;
    size_t n = 0;

    array_on() {
    }
    array_on(enum dtype type_, size_t n_, float scale = 1, float about = 0) : type(type_), n(n_) {
        MUST(cudaMalloc(&p, n * dtype_bytes(type)));
        fill<<<512, 256>>>(p, type, n, seeds++, scale, about);
        MUST(cudaDeviceSynchronize());
    }
    std::vector<double> host(void) const {
        std::vector<unsigned char> raw(n * dtype_bytes(type));
        MUST(cudaDeviceSynchronize());
        MUST(cudaMemcpy(raw.data(), p, raw.size(), cudaMemcpyDeviceToHost));
        std::vector<double> out(n);
        for (size_t i = 0; i < n; i++)
            out[i] = type == F32   ? ((const float *)raw.data())[i]
                     : type == F16 ? half_to_float(((const uint16_t *)raw.data())[i])
                                   : bfloat16_to_float(((const uint16_t *)raw.data())[i]);
        return out;
    }
};

/* A weight as the backend packs it, and its values as packed to `in`. */
struct packed {
    struct weight weight = {};
    std::vector<double> values;

    packed(enum role role, std::vector<int64_t> shape, float scale = 1, float about = 0) {
        size_t n = 1;
        for (int64_t size : shape) n *= (size_t)size;
        array_on source(role == VECTOR ? F32 : dev->in, n, scale, about);
        std::vector<unsigned char> raw(n * dtype_bytes(source.type));
        MUST(cudaMemcpy(raw.data(), source.p, raw.size(), cudaMemcpyDeviceToHost));
        values = source.host();
        MUST(cudaFree(source.p));
        struct array a = {};
        a.dtype = source.type;
        a.ndim = (int)shape.size();
        for (size_t i = 0; i < shape.size(); i++) a.shape[i] = shape[i];
        a.data = raw.data();
        WORKS(be->pack(dev, role, &a, &weight, &e));
    }
};

/* ---- timing and reporting ---------------------------------------------------------------------------------------------- */

/* Microseconds of one run, of `count` in a graph. */
static double time_of(int count, const std::function<void(int)> &run) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t start, end;
    std::vector<double> times;
    run(0);
    MUST(cudaStreamSynchronize(w->stream));
    MUST(cudaStreamBeginCapture(w->stream, cudaStreamCaptureModeRelaxed));
    for (int i = 0; i < count; i++) run(i);
    MUST(cudaStreamEndCapture(w->stream, &graph));
    MUST(cudaGraphInstantiate(&exec, graph, 0));
    MUST(cudaEventCreate(&start));
    MUST(cudaEventCreate(&end));
    for (int i = 0; i <= GRAPHS; i++) {
        float ms;
        MUST(cudaEventRecord(start, w->stream));
        MUST(cudaGraphLaunch(exec, w->stream));
        MUST(cudaEventRecord(end, w->stream));
        MUST(cudaEventSynchronize(end));
        MUST(cudaEventElapsedTime(&ms, start, end));
        if (i) times.push_back(1e3 * ms / count);
    }
    MUST(cudaGraphExecDestroy(exec));
    MUST(cudaGraphDestroy(graph));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

/* Of one kernel: what must move and what must be multiplied for a pass, and how wrong it is. */
static void report(const char *name, double us, double bytes, double flop, double error) {
    double floor = std::max(bytes / copy_rate, flop / product_rate) * 1e6;
    printf("%-46s %9.2f us %10.0f KB %8.1f GFLOP  %5.1f %%", name, us, bytes / 1024, flop / 1e9, 100 * floor / us);
    printf("  error %.1e%s", error, error < 1e-2 ? "" : "  WRONG");
    printf("\n");
    fflush(stdout);
}

/* ||found - right|| / ||right|| */
struct difference {
    double off = 0, all = 0;
    void add(double found, double right) {
        off += (found - right) * (found - right);
        all += right * right;
    }
    double value(void) const {
        return off == off && all > 0 ? std::sqrt(off / all) : 1e9;
    }
};

static int sample(int i, int of) {
    return (int)((unsigned)i * 2654435761u % (unsigned)of);
}

/* ---- a pass ------------------------------------------------------------------------------------------------------------ */

struct lengths {
    std::vector<int32_t> ids, start, zeros, total, none;
    struct pass pass = {};

    lengths(int T, int length) {
        for (int at = 0; at < T; at += length) start.push_back(at), total.push_back(std::min(length, T - at));
        start.push_back(T);
        zeros.assign(total.size(), 0), none.assign(total.size(), -1), ids.resize((size_t)T);
        for (int t = 0; t < T; t++) ids[(size_t)t] = sample(t, V);
        pass.T = T, pass.S = pass.finished = (int)total.size();
        pass.ids = ids.data(), pass.start = start.data(), pass.before = pass.skip = zeros.data();
        pass.total = total.data(), pass.from = pass.to = none.data();
        pass.top = pass.columns = 1, pass.layers = zeros.data();
    }
    /* Its numbers go to the device; nothing is recorded. */
    void begin(void) {
        bool replay;
        memset(w->records, 0, sizeof w->records);
        WORKS(be->begin(w, &pass, &replay, &e));
    }
    /* Row before t in its sequence; -1: none. */
    int before(int t) const {
        return std::binary_search(start.begin(), start.end(), t) ? -1 : t - 1;
    }
};

/* ---- products ---------------------------------------------------------------------------------------------------------- */

static double error_of(const struct product &p, const array_on &in, const std::vector<double> &weights,
                       const std::vector<double> &before, const array_on &gate, const array_on &out, int T) {
    const std::vector<double> rows = in.host(), found = out.host(), gates = gate.n ? gate.host() : rows;
    struct difference d;
    for (int i = 0; i < 400; i++) {
        int t = sample(i, T), n = sample(i * 7 + 3, p.n);
        size_t at = (size_t)t * (size_t)p.n + (size_t)n;
        double sum = 0;
        for (int k = 0; k < p.k; k++) sum += rows[(size_t)t * p.k + k] * weights[(size_t)n * p.k + k];
        if (p.epilogue == RELU2) sum = (sum > 0 ? sum * sum : 0) * (dev->in == F16 ? 1.0 / 256 : 1);
        sum *= p.scale;
        if (p.epilogue == GATE_ADD) sum /= 1 + std::exp(-gates[at]);
        if (p.epilogue == ADD || p.epilogue == GATE_ADD) sum += before[at];
        d.add(found[at], sum);
    }
    return d.value();
}

static const struct plan *plan_of(int n, int k, enum epilogue epilogue) {
    for (int i = 0; i < dev->plan_count; i++) {
        const struct product_kind &kind = dev->plans[i].kind;
        if (kind.n == n && kind.k == k && kind.epilogue == epilogue) return &dev->plans[i];
    }
    return NULL;
}

/* `together` products of one kind, the way that is named. */
static void product(const char *name, enum kernel way, int T, int n, int k, enum epilogue epilogue, int together) {
    const struct plan *plan = plan_of(n, k, epilogue);
    const struct queue q = {dev, w->stream, w->meta.head, w->grid.T, w->temp, false};
    const size_t rows = (size_t)q.rows; /* of its bucket: cublasLt writes them all */
    const bool few = T <= FEW_ROWS, adds = epilogue == ADD || epilogue == GATE_ADD;
    size_t weight_bytes = (size_t)n * (size_t)k * dtype_bytes(dev->in);
    int copies =
        std::max(together, (int)((few ? (size_t)256 << 20 : weight_bytes) / weight_bytes)) / together * together;
    std::vector<array_on> weights;
    for (int i = 0; i < copies; i++) weights.emplace_back(dev->in, (size_t)n * (size_t)k, 0.05f);
    const enum dtype out_type = epilogue == RELU2 ? dev->in : adds || epilogue == LOW ? F32 : dev->out;
    array_on in(dev->in, rows * (size_t)k), gate;
    std::vector<array_on> out;
    for (int i = 0; i < together; i++) out.emplace_back(out_type, rows * (size_t)n);
    if (epilogue == GATE_ADD) gate = array_on(dev->out, rows * (size_t)n, 4);
    const std::vector<double> before = out[0].host();
    auto run = [&](int i) {
        struct product p[MOST_PRODUCTS];
        for (int j = 0; j < together; j++)
            p[j] = {weights[(size_t)((i * together + j) % copies)].p,
                    in.p,
                    out[(size_t)j].p,
                    gate.p,
                    n,
                    k,
                    epilogue,
                    plan->shape.alpha};
        if (way == BY_CUBLASLT) {
            int size = 0;
            while (size + 1 < SIZES && q.rows > plan->rows[size] * 7 / 5) size++;
            for (int j = 0; j < together; j++) WORKS(lt_product(&q, plan, &plan->algorithm[size], &p[j], &e));
        } else {
            MUST(way == BY_WGMMA    ? wgmma_run(&q, p, together)
                 : way == BY_STREAM ? stream_run(&q, p, together)
                                    : few_run(&q, p, together));
        }
    };
    const struct product last = {
        weights[(size_t)together - 1].p, in.p, NULL, gate.p, n, k, epilogue, plan->shape.alpha};
    run(0);
    const double error = error_of(last, in, weights[(size_t)together - 1].host(), before, gate, out.back(), T);
    double results = (double)T * n * (dtype_bytes(out_type) * (adds ? 2 : 1) + (gate.n ? dtype_bytes(dev->out) : 0));
    double bytes = together * ((double)weight_bytes + results + (double)T * k * dtype_bytes(dev->in));
    report(name, time_of(few ? 24 : 8, run), bytes, 2.0 * together * T * n * k, error);
    for (std::vector<array_on> *all : {&weights, &out})
        for (array_on &a : *all) MUST(cudaFree(a.p));
    MUST(cudaFree(in.p));
    MUST(cudaFree(gate.p));
}

static void products(int T) {
    const bool few = T <= FEW_ROWS;
    const struct {
        const char *name;
        int n, k;
        enum epilogue epilogue;
        int together;
    } all[] = {{"k v r g", C, C, STORE, 4},           {"output", C, C, ADD, 1},
               {"ffn key", F, C, RELU2, 1},           {"ffn value", C, F, GATE_ADD, 1},
               {"low rank, shift", 5 * R, C, LOW, 1}, {"low rank, decay", D, C, LOW, 1}};
    for (const auto &p : all) {
        const struct product_kind kind = {p.n, p.k, p.epilogue, p.epilogue == GATE_ADD};
        std::vector<enum kernel> ways = {BY_CUBLASLT};
        const enum kernel best = route_product(&dev->gpu, dev->in, &kind, few);
        if (best == BY_STREAM) ways.push_back(BY_FEW_ROWS);
        if (best != BY_CUBLASLT) ways.push_back(best);
        for (enum kernel way : ways) {
            char name[100];
            snprintf(name, sizeof name, "%s, %s", p.name, way == BY_WGMMA ? "wgmma_product" : kernel_name(way));
            product(name, way, T, p.n, p.k, p.epilogue, p.together);
        }
    }
}

/* ---- rows --------------------------------------------------------------------------------------------------------------- */

/* The block's weights beside the products. */
struct block {
    struct packed table{TABLE, {V, C}}, ln_w{VECTOR, {C}, 0.2f, 1}, ln_b{VECTOR, {C}, 0.2f};
    std::vector<packed> mix;
    struct packed w1{LORA_DOWN, {C, 5 * R}, 0.03f}, w2{LORA_UP, {5, R, C}, 0.1f};
    struct packed time_decay{VECTOR, {C}, 2, -3}, decay2{LORA_UP, {D, C}, 0.1f}, u{VECTOR, {H, N}, 0.5f};
    array_on past{F32, (size_t)2 * C};

    block() {
        for (int j = 0; j < MOST_MIXES; j++) mix.emplace_back(VECTOR, std::vector<int64_t>{C}, 0.5f, 0.5f);
    }
    struct norm ln(void) const {
        return {&ln_w.weight, &ln_b.weight};
    }
    /* LN of one row. */
    std::vector<double> normal(const double *x) const {
        double mean = 0, square = 0;
        for (int c = 0; c < C; c++) mean += x[c] / C;
        for (int c = 0; c < C; c++) square += (x[c] - mean) * (x[c] - mean) / C;
        std::vector<double> out(C);
        for (int c = 0; c < C; c++)
            out[(size_t)c] =
                (x[c] - mean) / std::sqrt(square + LN_EPS) * ln_w.values[(size_t)c] + ln_b.values[(size_t)c];
        return out;
    }
};

static void embedding(const struct block &b, const struct lengths &l) {
    array_on x(F32, (size_t)l.pass.T * C);
    const struct embed a = {&b.table.weight, b.ln(), (float *)x.p};
    double us = time_of(16, [&](int) { WORKS(be->embed(w, &a, &e)); });
    const std::vector<double> found = x.host();
    struct difference d;
    for (int i = 0; i < 20; i++) {
        int t = sample(i, l.pass.T);
        const std::vector<double> right = b.normal(&b.table.values[(size_t)l.ids[(size_t)t] * C]);
        for (int c = 0; c < C; c++) d.add(found[(size_t)t * C + c], right[(size_t)c]);
    }
    report("embed_rows", us, (double)l.pass.T * C * (4 + dtype_bytes(dev->in)), 0, d.value());
    MUST(cudaFree(x.p));
}

static void shifts(const struct block &b, const struct lengths &l, int mixes) {
    const int T = l.pass.T;
    array_on x(F32, (size_t)T * C);
    std::vector<array_on> out;
    struct shift a = {};
    a.mixes = mixes, a.x = (float *)x.p, a.ln = b.ln(), a.past = (float *)b.past.p;
    for (int j = 0; j < mixes; j++) {
        out.emplace_back(dev->in, (size_t)T * C);
        a.mix[j] = &b.mix[(size_t)j].weight, a.mixed[j] = out[(size_t)j].p;
    }
    double us = time_of(16, [&](int) { WORKS(be->shift(w, &a, &e)); });
    const std::vector<double> rows = x.host(), found = out[(size_t)mixes - 1].host();
    struct difference d;
    for (int i = 0; i < 20; i++) {
        int t = sample(i, T), before = l.before(t);
        const std::vector<double> now = b.normal(&rows[(size_t)t * C]);
        const std::vector<double> prev = before < 0 ? std::vector<double>(C) : b.normal(&rows[(size_t)before * C]);
        for (size_t c = 0; c < C; c++)
            d.add(found[(size_t)t * C + c], now[c] + (prev[c] - now[c]) * b.mix[(size_t)mixes - 1].values[c]);
    }
    char name[60];
    snprintf(name, sizeof name, "%s, %d mixes", kernel_name(route_shift(&dev->gpu, C, T)), mixes);
    report(name, us, (double)T * C * (4 + mixes * dtype_bytes(dev->in)), 0, d.value());
    MUST(cudaFree(x.p));
    for (array_on &m : out) MUST(cudaFree(m.p));
}

/* The whole verb; the lerps alone are what it takes beyond the first mix and the low rank. */
static void shift6(const struct block &b, const struct lengths &l) {
    const int T = l.pass.T;
    array_on x(F32, (size_t)T * C), out[MIXES6];
    struct shift6 a = {};
    a.x = (float *)x.p, a.ln1 = b.ln(), a.past = (float *)b.past.p, a.maa_x = &b.mix[5].weight;
    a.w1 = &b.w1.weight, a.w2 = &b.w2.weight;
    for (int j = 0; j < MIXES6; j++) {
        out[j] = array_on(dev->in, (size_t)T * C);
        a.maa[j] = &b.mix[(size_t)j].weight, a.mixed[j] = out[j].p;
    }
    double us = time_of(8, [&](int) { WORKS(be->rwkv6->shift(w, &a, &e)); });
    const std::vector<double> rows = x.host(), found = out[4].host();
    struct difference d;
    for (int i = 0; i < 12; i++) {
        int t = sample(i, T), before = l.before(t);
        const std::vector<double> now = b.normal(&rows[(size_t)t * C]);
        const std::vector<double> prev = before < 0 ? std::vector<double>(C) : b.normal(&rows[(size_t)before * C]);
        std::vector<double> z(R, 0.0);
        for (size_t c = 0; c < C; c++)
            for (size_t r = 0; r < R; r++)
                z[r] += (now[c] + (prev[c] - now[c]) * b.mix[5].values[c]) * b.w1.values[c * 5 * R + 4 * R + r];
        for (size_t c = 0; c < C; c++) {
            double m = b.mix[4].values[c];
            for (size_t r = 0; r < R; r++) m += std::tanh(z[r]) * b.w2.values[(4 * R + r) * C + c];
            d.add(found[(size_t)t * C + c], now[c] + (prev[c] - now[c]) * m);
        }
    }
    double in = (double)dtype_bytes(dev->in), bytes = (double)T * C * (4 + 2 * in + 4 + 5 * in) + 2.0 * T * 5 * R * 4;
    char name[100];
    snprintf(name, sizeof name, "token shift: first mix, low rank, %s",
             kernel_name(route_lerps(&dev->gpu, dev->in, C, R)));
    report(name, us, bytes, 0, d.value());
    MUST(cudaFree(x.p));
    for (array_on &m : out) MUST(cudaFree(m.p));
}

/* ---- wkv ---------------------------------------------------------------------------------------------------------------- */

/* The recurrence of one head along the sequence that starts at row `first`, in double, against rows of `out`. */
static double wkv_error(const struct block &b, const struct lengths &l, int s, int head, const array_on in[5],
                        const array_on &out) {
    const std::vector<double> r = in[0].host(), k = in[1].host(), v = in[2].host(), g = in[3].host(),
                              low = in[4].host();
    const std::vector<double> found = out.host();
    std::vector<double> state(N * N, 0.0), y(N), decay(N);
    struct difference d;
    for (int t = l.start[(size_t)s]; t < l.start[(size_t)s + 1]; t++) {
        const size_t at = (size_t)t * C + (size_t)head * N;
        double bonus = 0, mean = 0, square = 0, z[D];
        for (size_t j = 0; j < D; j++) z[j] = std::tanh(low[(size_t)t * D + j]);
        for (size_t i = 0; i < N; i++) {
            double x = b.time_decay.values[head * N + i];
            for (size_t j = 0; j < D; j++) x += z[j] * b.decay2.values[j * C + head * N + i];
            decay[i] = std::exp(-std::exp(x));
            bonus += r[at + i] * b.u.values[head * N + i] * k[at + i];
            y[i] = 0;
        }
        for (size_t i = 0; i < N; i++)
            for (size_t j = 0; j < N; j++) {
                double &cell = state[i * N + j];
                y[j] += r[at + i] * cell;
                cell = cell * decay[i] + k[at + i] * v[at + j];
            }
        for (size_t j = 0; j < N; j++) y[j] += bonus * v[at + j], mean += y[j] / N;
        for (size_t j = 0; j < N; j++) square += (y[j] - mean) * (y[j] - mean) / N;
        for (size_t j = 0; j < N; j++) {
            double normal = (y[j] - mean) / std::sqrt(square + GROUP_NORM_EPS) * b.ln_w.values[head * N + j];
            double gate = g[at + j] / (1 + std::exp(-g[at + j]));
            d.add(found[at + j], (normal + b.ln_b.values[head * N + j]) * gate);
        }
    }
    return d.value();
}

static void wkv(const struct block &b, const struct lengths &l, const char *what) {
    const size_t T = (size_t)l.pass.T;
    array_on in[5], out(dev->in, T * C), decay(F32, T * C), states(F32, (size_t)C * N, 0);
    for (int i = 0; i < 4; i++) in[i] = array_on(dev->out, T * C);
    in[4] = array_on(F32, T * D);
    struct wkv6 a = {};
    a.r = in[0].p, a.k = in[1].p, a.v = in[2].p, a.g = in[3].p, a.low = in[4].p;
    a.time_decay = &b.time_decay.weight, a.w2 = &b.decay2.weight, a.decay = (float *)decay.p, a.u = &b.u.weight;
    a.ln_x = b.ln(), a.states = (float *)states.p, a.out = out.p;
    double us = time_of(8, [&](int) { WORKS(be->rwkv6->wkv(w, &a, &e)); });
    double bytes = (double)T * C * (4 * dtype_bytes(dev->out) + dtype_bytes(dev->in)) + (double)T * D * 4;
    int piece = l.total[0], last = l.pass.S - 1;
    char name[100];
    snprintf(name, sizeof name, "%s, %s", kernel_name(route_wkv(&dev->gpu, dev->in, N, piece)), what);
    report(name, us, bytes, 0, std::max(wkv_error(b, l, 0, 1, in, out), wkv_error(b, l, last, H - 1, in, out)));
    for (array_on *m : {&in[0], &in[1], &in[2], &in[3], &in[4], &out, &decay, &states}) MUST(cudaFree(m->p));
}

static void pooling(const struct lengths &l, const char *what) {
    const int T = l.pass.T;
    array_on x(F32, (size_t)T * C);
    const struct pool a = {(float *)x.p, NULL, 0};
    w->pool_waits = false;
    double us = time_of(16, [&](int) { WORKS(be->pool(w, &a, &e)); });
    const std::vector<double> rows = x.host();
    std::vector<float> found((size_t)C);
    struct difference d;
    MUST(cudaMemcpy(found.data(), w->pooled + (size_t)(l.pass.S - 1) * C, C * sizeof(float), cudaMemcpyDeviceToHost));
    for (size_t c = 0; c < C; c++) {
        double sum = 0;
        for (int t = l.start[(size_t)l.pass.S - 1]; t < T; t++) sum += rows[(size_t)t * C + c];
        d.add(found[c], sum / l.total.back());
    }
    char name[100];
    snprintf(name, sizeof name, "%s, %s", kernel_name(route_pool(l.total[0])), what);
    report(name, us, (double)T * C * 4, 0, d.value());
    MUST(cudaFree(x.p));
}

/* ---- all of it ---------------------------------------------------------------------------------------------------------- */

static void ceilings(void) {
    const size_t bytes = (size_t)1 << 30;
    array_on a(F32, bytes / 4), b(F32, bytes / 4);
    double us = time_of(4, [&](int) {
        copy<<<16 * dev->gpu.multiprocessors, 512, 0, w->stream>>>((float4 *)a.p, (float4 *)b.p, bytes / 16);
        MUST(cudaGetLastError());
    });
    copy_rate = 2 * (double)bytes / us * 1e6;
    MUST(cudaFree(a.p));
    MUST(cudaFree(b.p));
    const struct plan *plan = plan_of(SQUARE, SQUARE, STORE);
    const size_t cells = (size_t)SQUARE * SQUARE;
    array_on x(dev->in, cells), y(dev->in, cells), z(dev->out, cells);
    const struct queue q = {dev, w->stream, w->meta.head, SQUARE, w->temp, false};
    const struct product p = {y.p, x.p, z.p, NULL, SQUARE, SQUARE, STORE, 1};
    us = time_of(2, [&](int) { WORKS(lt_product(&q, plan, &plan->algorithm[SIZES - 1], &p, &e)); });
    product_rate = 2.0 * SQUARE * SQUARE * SQUARE / us * 1e6;
    for (array_on *m : {&x, &y, &z}) MUST(cudaFree(m->p));
    printf("ceilings: a copy %.2f TB/s, %d x %d x %d %.0f TFLOP/s\n", copy_rate / 1e12, SQUARE, SQUARE, SQUARE,
           product_rate / 1e12);
}

static void open_device(enum dtype dtype) {
    const struct product_kind kinds[] = {
        {C, C, STORE, false},        {C, C, ADD, false},      {F, C, RELU2, false},           {C, F, GATE_ADD, true},
        {5 * R, C, LOW_TANH, false}, {D, C, LOW_TANH, false}, {SQUARE, SQUARE, STORE, false},
    };
    struct dims dims = {1, C, H, N, F, V, {R, D}};
    struct device_options options = {};
    options.dtype = dtype;
    be = rwkvsts_cuda_backend(CUDA_BACKEND_ABI);
    if (!be) stop("the library", "is of another version");
    WORKS(be->open(&dims, kinds, sizeof kinds / sizeof *kinds, &options, &meter, &dev, &e));
    const int most = 64 * dev->gpu.multiprocessors;
    WORKS(be->worker_open(dev, most, most / 16, 1, &w, &e));
}

int main(int count, char **arguments) {
    const std::string name = count > 1 ? arguments[1] : "bfloat16";
    open_device(name == "float32" ? F32 : name == "float16" ? F16 : BF16);
    const int many = 64 * dev->gpu.multiprocessors;
    char plans[4000];
    const struct block b;
    struct lengths first(many, 27);
    first.begin();
    printf("%s, %s\n", be->describe(dev), name.c_str());
    ceilings();
    plans_print(dev, plans, sizeof plans);
    printf("what opening has found:\n%s", plans);
    for (int T : {many, (int)PAIR}) {
        printf("%d rows\n", T);
        struct lengths sentences(T, 27);
        sentences.begin();
        products(T);
        embedding(b, sentences);
        for (int mixes : {1, 2, (int)MOST_MIXES}) shifts(b, sentences, mixes);
        shift6(b, sentences);
        wkv(b, sentences, "texts of 27");
        pooling(sentences, "texts of 27");
    }
    for (int length : {128, 512, 1024, 4096, many}) {
        struct lengths l(many, length);
        char what[40];
        snprintf(what, sizeof what, "texts of %d", length);
        l.begin();
        wkv(b, l, what);
        pooling(l, what);
    }
    be->worker_close(w);
    return 0;
}
