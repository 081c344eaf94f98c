/* wkv6 of one head, then its group norm and gate, written once on vector.h. See kernels.h.
 *
 * The state is [key][value]; a token reads it before it decays. Values are the vector axis, so nothing is summed across
 * lanes but r.(u k), a number per token, which carries the bonus: y = sum_i r_i S_i + (r . u k) v. */

/* BLOCK vectors of values, T tokens one after the other are the caller's loop. */
VECTOR_FN void wkv_token(int blocks, int N, size_t width, const float *r, const float *k, const float *decay,
                         float bonus, const float *v, float *state, float *y) {
    vec sum[4], value[4];
    for (int b = 0; b < blocks; b++) {
        value[b] = load(v + b * LANES);
        sum[b] = value[b] * bonus;
    }
    for (int i = 0; i < N; i++) {
        vec read = all(r[i]), keep = all(decay[i]), key = all(k[i]);
        float *row = state + (size_t)i * width;
        for (int b = 0; b < blocks; b++) {
            vec s = load(row + b * LANES);
            sum[b] = FMA(read, s, sum[b]);
            store(row + b * LANES, FMA(keep, s, key * value[b]));
        }
    }
    for (int b = 0; b < blocks; b++) store(y + b * LANES, sum[b]);
}

VECTOR_FN float bonus_of(int N, const float *r, const float *u, const float *k) {
    vec sum = {0};
    for (int i = 0; i < N; i += LANES)
        sum = FMA(load_some(r + i, N - i) * load_some(u + i, N - i), load_some(k + i, N - i), sum);
    return sum_lanes(sum);
}

VECTOR_FN void norm_and_gate(const struct wkv_head *h, size_t at, const float *y) {
    float mean, scale = row_scale(h->N, y, GROUP_NORM_EPS, &mean);
    for (int i = 0; i < h->N; i += LANES) {
        int n = h->N - i;
        vec centred = (load_some(y + i, n) - mean) * scale;
        vec normal = FMA(centred, load_some(h->weight + i, n), load_some(h->bias + i, n));
        store_in_type(h->out, at + (size_t)i, normal * load_some(h->g + at + i, n), n, h->bf16);
    }
}

static void wkv(const struct wkv_head *h) {
    int width = wkv_padded(h->N), vectors = width / LANES;
    float v[MAX_HEAD], y[MAX_HEAD];
    memset(v, 0, sizeof *v * (size_t)width);
    for (int t = 0; t < h->T; t++) {
        size_t at = (size_t)t * h->stride;
        const float *r = h->r + at, *k = h->k + at, *decay = h->decay + at;
        memcpy(v, h->v + at, sizeof *v * (size_t)h->N);
        float bonus = bonus_of(h->N, r, h->u, k);
        for (int b = 0; b < vectors;) {
            int first = b * LANES;
            if (vectors - b >= 4) {
                wkv_token(4, h->N, (size_t)width, r, k, decay, bonus, v + first, h->state + first, y + first);
                b += 4;
            } else {
                wkv_token(1, h->N, (size_t)width, r, k, decay, bonus, v + first, h->state + first, y + first);
                b += 1;
            }
        }
        norm_and_gate(h, at, y);
    }
}
