/* Norm and token shift: mixed_j = a + d mix_j for some mixes, a = LN(x), d = the row before less a.
 *
 * A block walks a run of neighbouring rows and keeps the normalised row before in registers; how long the runs are
 * changes no bit. */
#include "rows/row.cuh"

struct shift_args {
    struct meta meta;
    const float *x, *weight, *bias;
    float *slots; /* [slot, L, C], at this layer */
    size_t slot_stride;
    const float *mix[MOST_MIXES];
    void *out[MOST_MIXES];
    float2 *stats;
    int C, run;
    float inverse; /* 1 / C */
};

template <typename In, int Q, int TH>
__device__ __forceinline__ void store_mix(In *out, const row<Q, TH> &now, const row<Q, TH> &before, const float *mix,
                                          int C) {
    out += deal<Q, TH>::first(), mix += deal<Q, TH>::first();
    EACH_GROUP(i) {
        int c = deal<Q, TH>::offset(i);
        if (!deal<Q, TH>::has(i, C)) continue;
        float4 m = load_again(mix + c), n = now.a[i], b = before.a[i];
        store4(out + c,
               make_float4(lerp(n.x, b.x, m.x), lerp(n.y, b.y, m.y), lerp(n.z, b.z, m.z), lerp(n.w, b.w, m.w)));
    }
}

/* What comes before a sequence's first row of the pass: a state's, or zeros. */
template <int Q, int TH>
__device__ __forceinline__ void load_past(row<Q, TH> &r, const struct shift_args &a, int prev) {
    if (prev <= FROM_SLOT) load_row(r, a.slots + (size_t)(FROM_SLOT - prev) * a.slot_stride, a.C);
    else EACH_GROUP(i) r.a[i] = make_float4(0, 0, 0, 0);
}

/* OUTS mixed rows, or none: then only the statistics are wanted. BATCH rows share their barriers, and the next ones are on
 * their way meanwhile. The walk begins one row early, for the row before. */
template <typename In, int Q, int OUTS, int TH, int BATCH, int PER_SM>
static __global__ void __launch_bounds__(TH, PER_SM) shift_rows(const struct shift_args a) {
    __shared__ sums<BATCH> room;
    let_next_kernel_start();
    wait_for_kernels_before();
    int first = blockIdx.x * a.run, last = min(first + a.run, a.meta.head[0]);
    if (first >= last) return;
    row<Q, TH> before, now[BATCH], next[BATCH];
    int from = OUTS ? first - 1 : first;
#pragma unroll
    for (int b = 0; b < BATCH; b++) load_row(next[b], a.x + (size_t)min(max(from + b, 0), last - 1) * a.C, a.C);
    for (; from < last; from += BATCH) {
        int prev[BATCH], save[BATCH];
        float2 stats[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            int t = min(max(from + b, 0), last - 1);
            now[b] = next[b];
            prev[b] = OUTS ? a.meta.prev[t] : 0;
            save[b] = OUTS ? a.meta.save[t] : 0;
        }
        if (from + BATCH < last)
#pragma unroll
            for (int b = 0; b < BATCH; b++) load_row(next[b], a.x + (size_t)min(from + BATCH + b, last - 1) * a.C, a.C);
        row_stats<Q, TH, BATCH>(stats, now, a.C, a.inverse, room);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            int t = from + b;
            if (t >= last) break;
            if (OUTS > 0) normalise_row(now[b], stats[b], a.weight, a.bias, a.C);
            if (t >= first) {
                if (a.stats && threadIdx.x == 0) a.stats[t] = stats[b];
                if constexpr (OUTS > 0) {
                    if (prev[b] < 0) load_past(before, a, prev[b]);
#pragma unroll
                    for (int j = 0; j < OUTS; j++)
                        store_mix((In *)a.out[j] + (size_t)t * a.C, now[b], before, a.mix[j], a.C);
                    if (save[b] >= 0) store_row(now[b], a.slots + (size_t)save[b] * a.slot_stride, a.C);
                }
            }
            before = now[b];
        }
    }
}

/* ---- verb -------------------------------------------------------------------------------------------------------- */

/* How many rows are walked where every group of columns is there: threads a row, walks a multiprocessor. */
template <int Q> struct many {
    static constexpr int threads = Q == 1 ? 64 : 128, walks = Q == 1 ? 8 : Q == 2 ? 4 : 3;
};

struct shift_launch {
    struct worker *w;
    struct shift_args args;
    int outs;
    template <typename In, int Q, int TH, int BATCH, int PER_SM> void run_as() const {
        unsigned blocks = (unsigned)pieces_of(w->grid.T, args.run);
        auto kernel = outs == 0   ? shift_rows<In, Q, 0, TH, BATCH, PER_SM>
                      : outs == 1 ? shift_rows<In, Q, 1, TH, BATCH, PER_SM>
                      : outs == 2 ? shift_rows<In, Q, 2, TH, BATCH, PER_SM>
                                  : shift_rows<In, Q, MOST_MIXES, TH, BATCH, PER_SM>;
        launch_early(overlaps(w), w->stream, kernel, dim3(blocks), TH, 0, args);
    }
    template <typename In, int Q> void run_as() const {
        constexpr int batch = Q < 8 ? 2 : 1, blocks = Q < 4 ? 3 : 1;
        bool narrow = route_shift(&w->dev->gpu, args.C, w->grid.T) == SHIFT_NARROW;
        if constexpr (Q < 8)
            if (narrow) return run_as<In, Q, many<Q>::threads, 1, many<Q>::walks>();
        run_as<In, Q, OWNERS, batch, blocks>();
    }
    template <int Q> void run() const {
        if (w->dev->in == BF16) run_as<bf16, Q>();
        else if (w->dev->in == F16) run_as<half_t, Q>();
        else run_as<float, Q>();
    }
};

static enum status shift_to(struct worker *w, const struct shift *a, float2 *stats, struct error *e) {
    const struct dims *d = &w->dev->dims;
    const int multiprocessors = w->dev->gpu.multiprocessors;
    struct shift_args args = {};
    if (a->mixes > 2 && a->mixes != MOST_MIXES)
        return fail(e, BAD_INPUT, "a token shift with %d mixes: on CUDA 0, 1, 2 or %d are expected", a->mixes,
                    MOST_MIXES);
    args.meta = w->meta;
    args.x = a->x;
    args.weight = vector_of(a->ln.weight);
    args.bias = vector_of(a->ln.bias);
    if (a->past) args.slots = a->past + (size_t)a->layer * (size_t)d->C;
    args.slot_stride = (size_t)d->L * (size_t)d->C;
    for (int j = 0; j < a->mixes; j++) {
        args.mix[j] = vector_of(a->mix[j]);
        args.out[j] = a->mixed[j];
    }
    args.stats = stats;
    args.C = d->C;
    args.inverse = 1.0f / (float)d->C;
    int walks = d->C <= 4 * OWNERS ? many<1>::walks : d->C <= 8 * OWNERS ? many<2>::walks : many<4>::walks;
    bool few = w->grid.T <= ROWS_SIDE_BY_SIDE * multiprocessors;
    args.run = few ? 1 : pieces_of(w->grid.T, walks * multiprocessors);
    for_columns(args.C, shift_launch{w, args, a->mixes});
    return LAUNCHED(w, "the token shift", e);
}

enum status cuda_shift(struct worker *w, const struct shift *a, struct error *e) {
    return shift_to(w, a, NULL, e);
}

enum status shift_with_stats(struct worker *w, const struct shift *a, struct error *e) {
    return shift_to(w, a, w->stats, e);
}
