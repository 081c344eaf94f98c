/* Long pieces on the emulator: wkv_chunk along whole pieces against wkv_keys, wkv_states and wkv_chunk over their parts,
 * as bytes; states against the recurrence in double; both kernels of pooling against sums in order, as bytes. Arguments are
 * the lengths of the pieces of one pass. */
#include "emulate.h"

#include <stdio.h>
#include <stdlib.h>

#include <random>
#include <vector>

#include "rwkv6/rwkv6.h"

enum { H = 2, N = 64, C = H * N, D = 64, SLOTS = 4, COLUMNS = 1 };

enum status cuda_status(struct device *, cudaError_t status, const char *, struct error *) {
    return status == cudaSuccess ? OK : DEVICE_FAILED;
}
enum status device_usable(const struct device *, struct error *) {
    return OK;
}
enum status shift_with_stats(struct worker *, const struct shift *, struct error *) {
    return OK; /* the statistics are the test's own */
}
void up_weight(const struct worker *w, const struct weight *weight, struct up_args *args) {
    args->meta = w->meta;
    args->w = weight->data;
    args->k = weight->k;
    args->K = D;
    args->C = C;
}

static std::mt19937 generator(1);
static float normal(float scale) {
    return scale * std::normal_distribution<float>()(generator);
}
static std::vector<bf16> random_bf16(size_t n, float scale) {
    std::vector<bf16> a(n);
    for (bf16 &x : a) x = __float2bfloat16_rn(normal(scale));
    return a;
}
static std::vector<float> random_floats(size_t n, float scale, float about = 0) {
    std::vector<float> a(n);
    for (float &x : a) x = about + normal(scale);
    return a;
}

/* One pass and everything that it reads. */
struct bench {
    std::vector<int32_t> ids, start, before, total, skip, from, to;
    std::vector<bf16> r, k, v, g, w2, out;
    std::vector<float> low, time_decay, u, weight, bias, slots, decay, temp, x, pooled, carry;
    std::vector<float2> stats;
    std::vector<int> numbers, staged;
    struct device device;
    struct worker worker;
    struct weight decay_weight, base_weight;
    struct pass pass;

    explicit bench(const std::vector<int> &lengths) {
        start.push_back(0);
        for (int length : lengths) start.push_back(start.back() + length);
        int S = (int)lengths.size(), T = start.back();
        size_t cells = (size_t)T * C;
        ids.assign((size_t)T, 0);
        before.assign((size_t)S, 0), skip.assign((size_t)S, 0);
        from.assign((size_t)S, -1), to.assign((size_t)S, -1);
        total = std::vector<int32_t>(lengths.begin(), lengths.end());
        from[0] = 1, before[0] = 640, total[0] += 640, skip[0] = 700; /* goes on from an earlier pass */
        to[S - 1] = 2, total[S - 1] += 100;                           /* goes on in a later one */
        if (S > 2) to[1] = 3;
        r = random_bf16(cells, 1), k = random_bf16(cells, 1), v = random_bf16(cells, 1), g = random_bf16(cells, 1);
        w2 = random_bf16((size_t)C * D, 0.1f);
        low = random_floats((size_t)T * D, 1), time_decay = random_floats(C, 1.5f, -3);
        u = random_floats(C, 0.5f), weight = random_floats(C, 0.1f, 1), bias = random_floats(C, 0.1f);
        slots = random_floats((size_t)SLOTS * C * N, 0.3f);
        x = random_floats(cells, 1), carry = random_floats(2 * C * COLUMNS, 1);
        out.resize(cells), decay.resize(cells), temp.resize(cells), pooled.resize((size_t)S * C * COLUMNS);
        for (int t = 0; t < T; t++) stats.push_back(make_float2(normal(0.1f), 1 + normal(0.1f)));
        numbers.resize(number_bytes(T, S) / sizeof(int)), staged = numbers;
        device = {}, worker = {}, pass = {};
        device.dims.L = 1, device.dims.C = C, device.dims.H = H, device.dims.N = N;
        device.in = device.out = BF16;
        device.gpu = {90, 90, 0, 132};
        worker.dev = &device;
        worker.rows = T, worker.sequences = S, worker.columns = COLUMNS;
        worker.numbers = numbers.data();
        worker.temp = temp.data(), worker.stats = stats.data();
        worker.pooled = pooled.data(), worker.carry = carry.data();
        for (struct flight &f : worker.flights) f.staged = staged.data();
        pass.T = T, pass.S = S, pass.finished = S - 1;
        pass.ids = ids.data(), pass.start = start.data(), pass.before = before.data(), pass.total = total.data();
        pass.skip = skip.data(), pass.from = from.data(), pass.to = to.data();
        pass.columns = COLUMNS, pass.pooling = POOL_WEIGHTED;
        decay_weight = {w2.data(), w2.size() * 2, LORA_UP, 1, C, D, 1};
        base_weight = {time_decay.data(), C * sizeof(float), VECTOR, 1, C, 1, 1};
    }

    void begin(void) {
        bool replay;
        struct error e;
        if (cuda_begin(&worker, &pass, &replay, &e) != OK) abort();
    }
    /* As a pass without long pieces would have it: a unit a piece. */
    void make_whole(void) {
        auto *units = (struct unit *)const_cast<struct unit *>(worker.meta.units);
        for (int s = 0; s < pass.S; s++) units[s] = {start[s], start[s + 1], from[s], to[s]};
        const_cast<int *>(worker.meta.head)[3] = worker.grid.units = pass.S;
        worker.grid.long_pieces = worker.grid.long_units = 0;
    }
    void wkv(void) {
        struct wkv6 a = {};
        struct wkv_args args = {};
        a.low = low.data(), a.w2 = &decay_weight, a.time_decay = &base_weight, a.decay = decay.data();
        args.meta = worker.meta;
        args.r = r.data(), args.k = k.data(), args.v = v.data(), args.g = g.data();
        args.u = u.data(), args.weight = weight.data(), args.bias = bias.data();
        args.slots = slots.data(), args.slot_stride = (size_t)C * N;
        args.out = out.data(), args.C = C, args.H = H;
        if (wkv_chunk_run(&worker, &a, &args) != cudaSuccess) abort();
    }
    void pool(enum pooling pooling, bool normed) {
        struct norm ln = {&base_weight, &base_weight};
        struct pool a = {x.data(), normed ? &ln : NULL, 0};
        struct error e;
        worker.pass.pooling = pooling;
        if (cuda_pool(&worker, &a, &e) != OK) abort();
    }
};

template <typename T> static bool same(const std::vector<T> &a, const std::vector<T> &b) {
    return a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof(T));
}

/* The weight of the decay's low rank, as pack.cu lays it out. */
static double up_at(const struct bench &b, int n, int k) {
    int lane = (n % 16 / 4 * 2 + n % 2) * 4 + k % 8 / 2, e = k % 2 + k % 16 / 8 * 2 + n % 4 / 2 * 4;
    return __bfloat162float(b.w2[(size_t)n / 16 * 16 * D + (size_t)k / 16 * 256 + (size_t)lane * 8 + (size_t)e]);
}

/* ||found - expected|| / ||expected|| of the state that head `head` of piece s leaves, by the recurrence in double. */
static double state_error(const struct bench &b, const std::vector<float> &first, int s, int head) {
    std::vector<double> state(N * N, 0.0);
    size_t in_state = (size_t)head * N * N;
    if (b.from[s] >= 0)
        for (int i = 0; i < N * N; i++) state[i] = first[(size_t)b.from[s] * C * N + in_state + i];
    for (int t = b.start[s]; t < b.start[s + 1]; t++)
        for (int i = 0; i < N; i++) {
            size_t at = (size_t)t * C + (size_t)head * N;
            double w = b.time_decay[(size_t)head * N + i];
            for (int d = 0; d < D; d++) w += tanh((double)b.low[(size_t)t * D + d]) * up_at(b, head * N + i, d);
            for (int j = 0; j < N; j++) {
                double &cell = state[(size_t)i * N + j];
                cell = cell * exp(-exp(w)) + (double)__bfloat162float(b.k[at + i]) * __bfloat162float(b.v[at + j]);
            }
        }
    double off = 0, all = 0;
    for (int i = 0; i < N * N; i++) {
        double found = b.slots[(size_t)b.to[s] * C * N + in_state + i];
        off += (found - state[i]) * (found - state[i]);
        all += state[i] * state[i];
    }
    return sqrt(off / all);
}

/* Whether every piece holds the sums of its rows in order. */
static bool pools_right(const struct bench &b, int pooling, bool normed) {
    for (int s = 0; s < b.pass.S; s++)
        for (int c = 0; c < C; c++) {
            float sum = b.before[s] ? b.carry[c] : 0;
            for (int t = b.start[s]; t < b.start[s + 1]; t++) {
                int position = b.before[s] + t - b.start[s] - b.skip[s];
                float a = b.x[(size_t)t * C + c], w = b.time_decay[c];
                if (normed) a = fmaf((a - b.stats[t].x) * b.stats[t].y, w, w);
                if (pooling == POOL_LAST) sum = a;
                if (position < 0 || pooling == POOL_LAST) continue;
                if (pooling == POOL_MEAN) sum += a;
                if (pooling == POOL_WEIGHTED) sum = fmaf((float)(position + 1), a, sum);
                if (pooling == POOL_MAX) sum = position ? fmaxf(sum, a) : a;
            }
            double n = b.total[s] - b.skip[s];
            bool ends = s < b.pass.finished;
            if (ends && pooling == POOL_MEAN) sum /= (float)n;
            if (ends && pooling == POOL_WEIGHTED) sum /= (float)(0.5 * n * (n + 1));
            if (sum != (ends ? b.pooled[(size_t)s * C + c] : b.carry[C + c])) return false;
        }
    return true;
}

int main(int count, char **lengths) {
    std::vector<int> pieces;
    for (int i = 1; i < count; i++) pieces.push_back(atoi(lengths[i]));
    struct bench whole(pieces);
    generator.seed(1);
    struct bench again(pieces);
    const std::vector<float> first = again.slots;
    for (struct bench *b : {&whole, &again}) {
        b->begin();
        if (b == &whole) b->make_whole();
        b->wkv();
    }
    printf("long %d units %d\n", again.worker.grid.long_pieces, again.worker.grid.units);
    printf("y %s\n", same(whole.out, again.out) ? "same" : "DIFFERS");
    printf("states %s\n", same(whole.slots, again.slots) ? "same" : "DIFFER");
    for (int s = 0; s < again.pass.S; s++)
        if (again.to[s] >= 0) printf("error %.6f\n", state_error(again, first, s, 1));
    for (int pooling = POOL_MEAN; pooling <= POOL_MAX; pooling++)
        for (int normed = 0; normed < 2; normed++) {
            again.pool((enum pooling)pooling, normed);
            printf("pooling %d %d %s\n", pooling, normed, pools_right(again, pooling, normed) ? "same" : "DIFFERS");
        }
    return 0;
}
