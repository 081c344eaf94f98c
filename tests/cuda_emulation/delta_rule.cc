/* RWKV-7's delta rule on the emulator: wkv7_chunk against the recurrence in double, over the pieces of one pass; all pieces
 * by two warps a head, by four, and each piece cut in two and on its own, as bytes. Arguments are the lengths of the
 * pieces. */
#include "emulate.h"

#include <stdio.h>
#include <stdlib.h>

#include <random>
#include <vector>

#include "rwkv7/rwkv7.h"

enum { H = 2, N = 64, C = H * N, CUT = 64 };

enum status cuda_status(struct device *, cudaError_t status, const char *, struct error *) {
    return status == cudaSuccess ? OK : DEVICE_FAILED;
}
enum status device_usable(const struct device *, struct error *) {
    return OK;
}
enum status low_ranks_up(struct worker *, const struct wkv7 *, void *, struct error *) {
    return OK; /* their sums are the test's own */
}

static std::mt19937 generator(1);
static float normal(float scale, float about = 0) {
    return about + scale * std::normal_distribution<float>()(generator);
}
static std::vector<bf16> random_bf16(size_t n, float scale) {
    std::vector<bf16> a(n);
    for (bf16 &x : a) x = __float2bfloat16_rn(normal(scale));
    return a;
}
static std::vector<float> random_floats(size_t n, float scale, float about) {
    std::vector<float> a(n);
    for (float &x : a) x = normal(scale, about);
    return a;
}

struct inputs {
    std::vector<bf16> r, k, v, v_first, rate, value, gate;
    std::vector<float> decay, w0, a0, v0, k_k, k_a, r_k, weight, bias;
    explicit inputs(int T) {
        const size_t n = (size_t)T * C;
        for (auto *a : {&r, &k, &v, &v_first, &rate, &value, &gate}) *a = random_bf16(n, 1);
        decay = random_floats(n, 1, 0);
        w0 = random_floats(C, 2, -2), a0 = random_floats(C, 1, 0), v0 = random_floats(C, 1, 0);
        k_k = random_floats(C, 0.1f, 0.85f), k_a = random_floats(C, 0.1f, 1), r_k = random_floats(C, 0.3f, 0);
        weight = random_floats(C, 0.1f, 1), bias = random_floats(C, 0.1f, 0);
    }
};

enum way { ROUTED, BY_TWO_WARPS, BY_FOUR_WARPS };

/* Runs the rows of the pieces that start at `start` as one pass, with slots of their own; `in` is a copy to be used up. */
static std::vector<bf16> run(inputs in, int layer, const std::vector<int> &start, const std::vector<int> &from,
                             const std::vector<int> &to, std::vector<float> &slots, enum way way, int *ahead = NULL) {
    const size_t at = (size_t)start[0] * C;
    const int S = (int)start.size() - 1, T = start[S] - start[0];
    std::vector<bf16> out((size_t)T * C);
    std::vector<float> low((size_t)T * C), temp((size_t)T * C / 2);
    std::vector<int> rows, ids((size_t)T), none((size_t)S), numbers(number_bytes(T, S) / sizeof(int)), staged = numbers;
    for (int s : start) rows.push_back(s - start[0]);
    struct device device = {};
    struct worker worker = {};
    struct pass pass = {};
    bool replay;
    device.dims.L = 1, device.dims.C = C, device.dims.H = H, device.dims.N = N;
    device.in = device.out = BF16;
    device.gpu = {90, 90, 0, 132};
    worker.dev = &device;
    worker.rows = T, worker.sequences = S;
    worker.numbers = numbers.data(), worker.low = low.data(), worker.temp = temp.data();
    for (struct flight &f : worker.flights) f.staged = staged.data();
    pass.T = T, pass.S = S, pass.ids = ids.data(), pass.start = rows.data();
    pass.before = pass.total = pass.skip = none.data();
    pass.from = from.data(), pass.to = to.data();
    struct error e;
    if (cuda_begin(&worker, &pass, &replay, &e) != OK) abort();
    if (ahead) *ahead = worker.grid.ahead_pieces;
    if (way != ROUTED) worker.grid.ahead_pieces = worker.grid.ahead_units = 0;
    if (way != ROUTED) worker.grid.four_warps = way == BY_FOUR_WARPS ? worker.grid.S : 0;
    auto vector = [](std::vector<float> &a) { return weight{a.data(), C * sizeof(float), VECTOR, 1, C, 1, 1}; };
    const struct weight w0 = vector(in.w0), a0 = vector(in.a0), v0 = vector(in.v0), k_k = vector(in.k_k),
                        k_a = vector(in.k_a), r_k = vector(in.r_k), weight = vector(in.weight), bias = vector(in.bias);
    struct wkv7 a = {};
    a.r = &in.r[at], a.k = &in.k[at], a.v = &in.v[at], a.v_first = &in.v_first[at];
    a.low[DECAY_LOW] = {NULL, &w0, NULL, &in.decay[at]};
    a.low[RATE_LOW] = {NULL, &a0, NULL, &in.rate[at]};
    a.low[VALUE_LOW] = {NULL, &v0, NULL, &in.value[at]};
    a.low[GATE_LOW] = {NULL, NULL, NULL, &in.gate[at]};
    a.k_k = &k_k, a.k_a = &k_a, a.r_k = &r_k, a.ln_x = {&weight, &bias};
    a.layer = layer;
    /* one layer's states, whichever it is */
    a.states = slots.data() - (size_t)layer * C * N, a.out = out.data();
    if (cuda_wkv7(&worker, &a, &e) != OK) abort();
    return out;
}

static double sigmoid_of(double a) {
    return 1 / (1 + exp(-a));
}

/* The recurrence of head `h` over rows first .. last in double, from and into S (value, key); out [rows, N]. */
static void recurrence(const inputs &in, int layer, int h, int first, int last, std::vector<double> &S,
                       std::vector<double> &out) {
    for (int t = first; t < last; t++) {
        double r[N], k[N], v[N], w[N], kk[N], al[N], y[N], squares = 0, bonus = 0, mean = 0, deviation = 0;
        for (int i = 0; i < N; i++) {
            const size_t c = (size_t)h * N + i, at = (size_t)t * C + c;
            r[i] = (float)in.r[at], k[i] = (float)in.k[at], v[i] = (float)in.v[at];
            al[i] = sigmoid_of((double)in.a0[c] + (float)in.rate[at]);
            w[i] = exp(-exp(-0.5) * sigmoid_of((double)in.w0[c] + in.decay[at]));
            if (layer) v[i] += ((float)in.v_first[at] - v[i]) * sigmoid_of((double)in.v0[c] + (float)in.value[at]);
            kk[i] = k[i] * in.k_k[c];
            squares += kk[i] * kk[i];
            k[i] *= 1 + (al[i] - 1) * in.k_a[c];
            bonus += r[i] * k[i] * in.r_k[c];
        }
        for (int i = 0; i < N; i++) kk[i] /= fmax(sqrt(squares), 1e-12);
        for (int i = 0; i < N; i++) {
            double removed = 0;
            double *row = &S[(size_t)i * N];
            y[i] = 0;
            for (int j = 0; j < N; j++) removed -= row[j] * kk[j];
            for (int j = 0; j < N; j++) {
                row[j] = row[j] * w[j] + removed * kk[j] * al[j] + v[i] * k[j];
                y[i] += row[j] * r[j];
            }
            mean += y[i] / N;
        }
        for (int i = 0; i < N; i++) deviation += (y[i] - mean) * (y[i] - mean) / N;
        for (int i = 0; i < N; i++) {
            const size_t c = (size_t)h * N + i;
            const double normed = (y[i] - mean) / sqrt(deviation + GROUP_NORM_EPS) * in.weight[c] + in.bias[c];
            out.push_back((normed + bonus * v[i]) * (float)in.gate[(size_t)t * C + c]);
        }
    }
}

static double error_of(double off, double all) {
    return sqrt(off / all);
}

int main(int count, char **lengths) {
    std::vector<int> start = {0};
    for (int i = 1; i < count; i++) start.push_back(start.back() + atoi(lengths[i]));
    const int S = count - 1;
    inputs in(start[S]);
    for (int layer = 0; layer < 2; layer++) {
        std::vector<int> from((size_t)S, -1), to((size_t)S, -1);
        std::vector<float> slots = random_floats((size_t)3 * C * N, 0.3f, 0), again = slots;
        const std::vector<float> given = slots;
        int ahead;
        from[0] = 0, to[S - 1] = 1; /* the first goes on from a state, the last leaves one */
        const std::vector<bf16> out = run(in, layer, start, from, to, slots, ROUTED, &ahead);
        double off = 0, all = 0;
        for (int s = 0; s < S; s++)
            for (int h = 0; h < H; h++) {
                std::vector<double> state(N * N, 0.0), y;
                const size_t cells = (size_t)h * N * N;
                if (!s) state.assign(given.begin() + cells, given.begin() + cells + N * N);
                recurrence(in, layer, h, start[s], start[s + 1], state, y);
                for (int t = start[s]; t < start[s + 1]; t++)
                    for (int i = 0; i < N; i++) {
                        const double right = y[(size_t)(t - start[s]) * N + i];
                        const double found = (float)out[(size_t)t * C + h * N + i];
                        off += (found - right) * (found - right), all += right * right;
                    }
                if (s < S - 1) continue;
                double state_off = 0, state_all = 0;
                for (int i = 0; i < N * N; i++) {
                    const double found = slots[(size_t)C * N + cells + i];
                    state_off += (found - state[i]) * (found - state[i]), state_all += state[i] * state[i];
                }
                printf("state error %.6f\n", error_of(state_off, state_all));
            }
        printf("error %.6f\n", error_of(off, all));
        bool same = true;
        for (int s = 0; s < S; s++) {
            const int cut = start[s] + (start[s + 1] - start[s] - 1) / CUT * CUT;
            const std::vector<int> whole = {start[s], start[s + 1]}, head = {start[s], cut}, tail = {cut, start[s + 1]};
            std::vector<bf16> alone;
            if (cut > start[s]) {
                alone = run(in, layer, head, {from[s]}, {2}, again, ROUTED);
                const std::vector<bf16> rest = run(in, layer, tail, {2}, {to[s]}, again, ROUTED);
                alone.insert(alone.end(), rest.begin(), rest.end());
            } else alone = run(in, layer, whole, {from[s]}, {to[s]}, again, ROUTED);
            same = same && !memcmp(alone.data(), &out[(size_t)start[s] * C], alone.size() * sizeof(bf16));
        }
        same = same && !memcmp(&slots[C * N], &again[C * N], C * N * sizeof(float));
        printf("cut and alone: %s\n", same ? "same" : "DIFFERS");
        for (enum way way : {BY_TWO_WARPS, BY_FOUR_WARPS}) {
            std::vector<float> others = given;
            const std::vector<bf16> whole = run(in, layer, start, from, to, others, way);
            same = !memcmp(whole.data(), out.data(), out.size() * sizeof(bf16)) && others == slots;
            printf("%s warps: %s\n", way == BY_TWO_WARPS ? "two" : "four", same ? "same" : "DIFFERS");
        }
        printf("ahead %d\n", ahead);
    }
    return 0;
}
