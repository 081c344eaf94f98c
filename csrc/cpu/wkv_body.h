/* wkv6 of one head, then its group norm and gate, written once on vector.h. See kernels.h.
 *
 * The state is [key][value]; a token reads it before it decays. Values are the vector axis, so nothing is summed across
 * lanes but r.(u k), a number per token, which carries the bonus: y = sum_i r_i S_i + (r . u k) v. */

/* What one token brings: rows of N, v and y padded to whole vectors. */
struct wkv_step {
    const float *r, *k, *decay;
    float bonus;
    float v[MAX_HEAD], y[MAX_HEAD];
};

/* `tokens` tokens one after the other over `vectors` vectors of values from `first` on, so that the state is loaded and
 * stored once for them all: each element sees the same operations as with one token at a time. */
VECTOR_FN void wkv_sweep(int tokens, int vectors, int N, size_t width, struct wkv_step *step, float *state, int first) {
    vec sum[2][4], value[2][4];
    for (int t = 0; t < tokens; t++)
        for (int j = 0; j < vectors; j++) {
            value[t][j] = load(step[t].v + first + j * LANES);
            sum[t][j] = value[t][j] * step[t].bonus;
        }
    for (int i = 0; i < N; i++) {
        float *row = state + (size_t)i * width + first;
        vec s[4];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) s[j] = load(row + j * LANES);
#pragma GCC unroll 2
        for (int t = 0; t < tokens; t++) {
            vec read = all(step[t].r[i]), keep = all(step[t].decay[i]), key = all(step[t].k[i]);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) {
                sum[t][j] = FMA(read, s[j], sum[t][j]);
                s[j] = FMA(keep, s[j], key * value[t][j]);
            }
        }
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) store(row + j * LANES, s[j]);
    }
    for (int t = 0; t < tokens; t++)
        for (int j = 0; j < vectors; j++) store(step[t].y + first + j * LANES, sum[t][j]);
}

VECTOR_FN void wkv_tokens(int tokens, int N, int width, struct wkv_step *step, float *state) {
    int first = 0;
    for (; first + WKV_VECTORS * LANES <= width; first += WKV_VECTORS * LANES)
        wkv_sweep(tokens, WKV_VECTORS, N, (size_t)width, step, state, first);
    for (; first < width; first += LANES) wkv_sweep(tokens, 1, N, (size_t)width, step, state, first);
}

VECTOR_FN float bonus_of(int N, const float *r, const float *u, const float *k) {
    vec sum = {0};
    for (int i = 0; i < N; i += LANES)
        sum = FMA(load_some(r + i, N - i) * load_some(u + i, N - i), load_some(k + i, N - i), sum);
    return sum_lanes(sum);
}

VECTOR_FN void norm_and_gate(const struct wkv_head *h, int N, int t, const float *y) {
    size_t at = (size_t)t * h->stride, row = h->row + (size_t)t;
    float mean, scale = row_scale(N, y, GROUP_NORM_EPS, &mean);
    for (int i = 0; i < N; i += LANES) {
        int n = N - i;
        vec centred = (load_some(y + i, n) - mean) * scale;
        vec normal = FMA(centred, load_some(h->weight + i, n), load_some(h->bias + i, n));
        store_in_type(h->out, in_place(h->tiled, h->stride, row, h->column + (size_t)i),
                      normal * load_some(h->g + at + i, n), n, h->bf16);
    }
}

/* A head's columns lie a row apart: no hardware prefetcher follows, and a miss costs as much as a token. */
VECTOR_FN void fetch(const struct wkv_head *h, int N, int t) {
    size_t at = (size_t)(t < h->T ? t : h->T - 1) * h->stride;
    for (size_t i = 0; i < (size_t)N; i += 16) {
        __builtin_prefetch(h->r + at + i);
        __builtin_prefetch(h->k + at + i);
        __builtin_prefetch(h->v + at + i);
        __builtin_prefetch(h->g + at + i);
        __builtin_prefetch(h->decay + at + i);
    }
}

VECTOR_FN void wkv_of(const struct wkv_head *h, int N) {
    int width = wkv_padded(N);
    struct wkv_step step[2];
    for (int i = 0; i < 2; i++) memset(step[i].v, 0, sizeof *step[i].v * (size_t)width);
    for (int t = 0; t < h->T; t += 2) {
        int tokens = h->T - t < 2 ? 1 : 2;
        for (int i = 0; i < tokens; i++) {
            size_t at = (size_t)(t + i) * h->stride;
            fetch(h, N, t + i + 2);
            step[i].r = h->r + at;
            step[i].k = h->k + at;
            step[i].decay = h->decay + at;
            step[i].bonus = bonus_of(N, step[i].r, h->u, step[i].k);
            memcpy(step[i].v, h->v + at, sizeof *step[i].v * (size_t)N);
        }
        if (tokens == 2) wkv_tokens(2, N, width, step, h->state);
        else wkv_tokens(1, N, width, step, h->state);
        for (int i = 0; i < tokens; i++) norm_and_gate(h, N, t + i, step[i].y);
    }
}

static void wkv(const struct wkv_head *h) {
    if (h->N == 64) wkv_of(h, 64); /* every released model: a constant spares all tails */
    else wkv_of(h, h->N);
}
