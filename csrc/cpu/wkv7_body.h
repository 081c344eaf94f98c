/* The delta rule of RWKV-7 for one head, then its group norm, bonus and gate, written once on vector.h. See kernels.h.
 *
 * The state is [key][value], so that values are the vector axis and only a head's own norms are summed across lanes. A
 * token first needs S (-kk), a sum over the state as the token before left it. That sum is taken in the sweep in which the
 * token before changes the state: each element is loaded and stored once a token. Keys are summed in ascending order. */

/* What one token brings: rows of N, v, y and removed padded to whole vectors. */
struct wkv7_step {
    const float *r, *decay;
    float bonus; /* sum over the head of r k r_k */
    float minus_kk[MAX_HEAD], kk_rate[MAX_HEAD], k[MAX_HEAD];
    float v[MAX_HEAD], removed[MAX_HEAD], y[MAX_HEAD]; /* removed = S (-kk) */
};

/* The direction that is removed, the key that is written, the bonus. */
VECTOR_FN void wkv7_prepare(const struct wkv7_head *h, int N, int t, struct wkv7_step *s) {
    size_t at = (size_t)t * h->stride;
    const float *k = h->k + at, *rate = h->rate + at;
    vec squares = {0}, bonus = {0};
    for (int i = 0; i < N; i += LANES) {
        vec kk = load_some(k + i, N - i) * load_some(h->k_k + i, N - i);
        squares = FMA(kk, kk, squares);
    }
    float length = sqrtf(sum_lanes(squares)), scale = 1.0f / (length > 1e-12f ? length : 1e-12f);
    s->r = h->r + at;
    s->decay = h->decay + at;
    for (int i = 0; i < N; i += LANES) {
        int n = N - i;
        vec key = load_some(k + i, n), al = load_some(rate + i, n), kk = key * load_some(h->k_k + i, n) * scale;
        key = key * FMA(al - 1.0f, load_some(h->k_a + i, n), all(1.0f));
        bonus = FMA(load_some(s->r + i, n) * load_some(h->r_k + i, n), key, bonus);
        store_some(s->minus_kk + i, -kk, n);
        store_some(s->kk_rate + i, kk * al, n);
        store_some(s->k + i, key, n);
    }
    s->bonus = sum_lanes(bonus);
    memcpy(s->v, h->v + at, sizeof *s->v * (size_t)N);
}

/* One token over `vectors` vectors of values from `first` on; `next` is the token whose `removed` is wanted. */
VECTOR_FN void wkv7_sweep(int vectors, int N, size_t width, struct wkv7_step *s, struct wkv7_step *next, float *state,
                          int first) {
    vec value[4], removed[4], sum[4], after[4];
    for (int j = 0; j < vectors; j++) {
        value[j] = load(s->v + first + j * LANES);
        removed[j] = load(s->removed + first + j * LANES);
        sum[j] = after[j] = (vec){0};
    }
    for (int i = 0; i < N; i++) {
        float *row = state + (size_t)i * width + first;
        vec keep = all(s->decay[i]), back = all(s->kk_rate[i]), key = all(s->k[i]), read = all(s->r[i]);
        vec away = all(next->minus_kk[i]);
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) {
            vec e = FMA(removed[j], back, load(row + j * LANES) * keep);
            e = FMA(value[j], key, e);
            sum[j] = FMA(e, read, sum[j]);
            after[j] = FMA(e, away, after[j]);
            store(row + j * LANES, e);
        }
    }
    for (int j = 0; j < vectors; j++) {
        store(s->y + first + j * LANES, sum[j]);
        store(next->removed + first + j * LANES, after[j]);
    }
}

VECTOR_FN void wkv7_token(int N, int width, struct wkv7_step *s, struct wkv7_step *next, float *state) {
    int first = 0;
    for (; first + WKV_VECTORS * LANES <= width; first += WKV_VECTORS * LANES)
        wkv7_sweep(WKV_VECTORS, N, (size_t)width, s, next, state, first);
    for (; first < width; first += LANES) wkv7_sweep(1, N, (size_t)width, s, next, state, first);
}

/* `removed` of a piece's first token, from the state it starts from: the sum that a sweep would have left. */
VECTOR_FN void wkv7_start(int N, int width, struct wkv7_step *s, const float *state) {
    for (int first = 0; first < width; first += LANES) {
        vec sum = {0};
        for (int i = 0; i < N; i++)
            sum = FMA(load(state + (size_t)i * (size_t)width + first), all(s->minus_kk[i]), sum);
        store(s->removed + first, sum);
    }
}

VECTOR_FN void wkv7_finish(const struct wkv7_head *h, int N, int t, const struct wkv7_step *s) {
    size_t at = (size_t)t * h->stride, row = h->row + (size_t)t;
    float mean, scale = row_scale(N, s->y, GROUP_NORM_EPS, &mean);
    for (int i = 0; i < N; i += LANES) {
        int n = N - i;
        vec centred = (load_some(s->y + i, n) - mean) * scale;
        vec y = FMA(centred, load_some(h->weight + i, n), load_some(h->bias + i, n));
        y = FMA(load_some(s->v + i, n), all(s->bonus), y);
        store_in_type(h->out, in_place(h->tiled, h->stride, row, h->column + (size_t)i),
                      y * load_some(h->gate + at + i, n), n, h->bf16);
    }
}

/* A head's columns lie a row apart: no hardware prefetcher follows, and a miss costs as much as a token. */
VECTOR_FN void wkv7_fetch(const struct wkv7_head *h, int N, int t) {
    size_t at = (size_t)(t < h->T ? t : h->T - 1) * h->stride;
    for (size_t i = 0; i < (size_t)N; i += 16) {
        __builtin_prefetch(h->r + at + i);
        __builtin_prefetch(h->k + at + i);
        __builtin_prefetch(h->v + at + i);
        __builtin_prefetch(h->decay + at + i);
        __builtin_prefetch(h->rate + at + i);
        __builtin_prefetch(h->gate + at + i);
    }
}

VECTOR_FN void wkv7_of(const struct wkv7_head *h, int N) {
    int width = wkv_padded(N);
    struct wkv7_step step[2];
    for (int i = 0; i < 2; i++) memset(step[i].v, 0, sizeof *step[i].v * (size_t)width);
    wkv7_prepare(h, N, 0, &step[0]);
    wkv7_start(N, width, &step[0], h->state);
    for (int t = 0; t < h->T; t++) {
        struct wkv7_step *now = &step[t % 2], *next = &step[(t + 1) % 2];
        wkv7_fetch(h, N, t + 2);
        if (t + 1 < h->T) wkv7_prepare(h, N, t + 1, next);
        else memset(next->minus_kk, 0, sizeof *next->minus_kk * (size_t)N);
        wkv7_token(N, width, now, next, h->state);
        wkv7_finish(h, N, t, now);
    }
}

static void wkv7(const struct wkv7_head *h) {
    if (h->N == 64) wkv7_of(h, 64); /* every released model: a constant spares all tails */
    else wkv7_of(h, h->N);
}
