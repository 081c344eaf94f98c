/* The verb wkv6, and its plain kernel for other heads than those of 64: a thread a value column, a token at a time. */
#include "elements.cuh"
#include "rwkv6/rwkv6.h"

template <typename In, typename Out, int N>
static __global__ void __launch_bounds__(N < 32 ? 32 : N) wkv_plain(const struct wkv_args a) {
    __shared__ float r[N], k[N], d[N], y[N];
    int piece = blockIdx.x / a.H, head = blockIdx.x % a.H, n = threadIdx.x;
    if (piece >= a.meta.head[1]) return;
    bool mine = n < N;
    int first = a.meta.start[piece], last = a.meta.start[piece + 1], from = a.meta.from[piece], to = a.meta.to[piece];
    size_t column = (size_t)head * N;
    float state[N], u = mine ? a.u[column + n] : 0;
#pragma unroll
    for (int i = 0; i < N; i++)
        state[i] = from >= 0 && mine ? a.slots[(size_t)from * a.slot_stride + (column + i) * N + n] : 0;
    for (int t = first; t < last; t++) {
        size_t at = (size_t)t * a.C + column + n;
        float v = 0, sum = 0, bonus = 0, mean = 0, squares = 0;
        if (mine) {
            r[n] = to_float(((const Out *)a.r)[at]);
            k[n] = to_float(((const Out *)a.k)[at]);
            d[n] = decay_of(a.decay[at]);
            v = to_float(((const Out *)a.v)[at]);
            y[n] = r[n] * u * k[n];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < N; i++) {
            bonus += y[i];
            sum = __fmaf_rn(r[i], state[i], sum);
            state[i] = __fmaf_rn(state[i], d[i], __fmul_rn(k[i], v));
        }
        __syncthreads();
        if (mine) y[n] = __fmaf_rn(bonus, v, sum);
        __syncthreads();
        for (int i = 0; i < N; i++) mean += y[i];
        mean /= N;
        for (int i = 0; i < N; i++) squares = __fmaf_rn(y[i] - mean, y[i] - mean, squares);
        if (mine) {
            float normal = __fmaf_rn((y[n] - mean) * rsqrtf(squares / N + GROUP_NORM_EPS), a.weight[column + n],
                                     a.bias[column + n]);
            ((In *)a.out)[at] = from_float<In>(normal * silu(to_float(((const Out *)a.g)[at])));
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        if (to >= 0 && mine) a.slots[(size_t)to * a.slot_stride + (column + i) * N + n] = state[i];
}

template <typename In, typename Out> static void launch(const struct worker *w, const struct wkv_args &a, int N) {
    unsigned blocks = (unsigned)w->grid.S * (unsigned)a.H;
    switch (N) {
    case 8: wkv_plain<In, Out, 8><<<blocks, 32, 0, w->stream>>>(a); break;
    case 16: wkv_plain<In, Out, 16><<<blocks, 32, 0, w->stream>>>(a); break;
    case 32: wkv_plain<In, Out, 32><<<blocks, 32, 0, w->stream>>>(a); break;
    default: wkv_plain<In, Out, 128><<<blocks, 128, 0, w->stream>>>(a); break;
    }
}

static void run_plain(const struct worker *w, const struct wkv_args &a) {
    if (w->dev->in == BF16) launch<bf16, bf16>(w, a, w->dev->dims.N);
    else if (w->dev->in == F16) launch<half_t, float>(w, a, w->dev->dims.N);
    else launch<float, float>(w, a, w->dev->dims.N);
}

/* ---- verb ---------------------------------------------------------------------------------------------------------- */

static enum status make_decay(struct worker *w, const struct wkv6 *a, struct error *e) {
    struct up_args up = {};
    up_weight(w, a->w2, &up);
    up.low = (const float *)a->low;
    up.time_decay = vector_of(a->time_decay);
    up.decay = a->decay;
    return up_decay(w, &up, e);
}

enum status cuda_wkv6(struct worker *w, const struct wkv6 *a, struct error *e) {
    const struct dims *d = &w->dev->dims;
    const size_t layer = (size_t)d->C * (size_t)d->N;
    const enum kernel way = route_wkv(&w->dev->gpu, w->dev->in, d->N, 1);
    struct wkv_args args = {};
    args.meta = w->meta;
    args.r = a->r;
    args.k = a->k;
    args.v = a->v;
    args.g = a->g;
    args.decay = a->decay;
    args.u = vector_of(a->u);
    args.weight = vector_of(a->ln_x.weight);
    args.bias = vector_of(a->ln_x.bias);
    args.slots = a->states + (size_t)a->layer * layer;
    args.slot_stride = (size_t)d->L * layer;
    args.out = a->out;
    args.C = d->C;
    args.H = d->H;
    if (way == WKV_CHUNK) return cuda_status(w->dev, wkv_chunk_run(w, a, &args), "wkv", e);
    TRY(make_decay(w, a, e));
    if (way == WKV_64) return cuda_status(w->dev, wkv_64_run(w, &args), "wkv", e);
    run_plain(w, args);
    return LAUNCHED(w, "wkv", e);
}
