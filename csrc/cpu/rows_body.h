/* Row kernels, written once on vector.h: norms, token shift, epilogues, pooling. See kernels.h. */

#define VECTORS(i, n) for (int i = 0; i < (n); i += LANES)

/* x - mean, absent lanes zero. */
VECTOR_FN vec centred_at(const float *x, int n, float mean) {
    vec c = load_some(x, n) - mean;
    if (n >= LANES) return c;
    float lane[LANES];
    store(lane, c);
    return load_some(lane, n);
}

/* Mean and 1/sqrt(variance + eps), biased, in two passes: the sum of squares would cancel. Four chains of sums hide the
 * latency of the addition; which element goes to which depends on n alone. */
VECTOR_FN float row_scale(int n, const float *x, float eps, float *mean) {
    vec s[4] = {{0}, {0}, {0}, {0}}, q[4] = {{0}, {0}, {0}, {0}};
    int whole = n / (4 * LANES) * (4 * LANES);
    for (int i = 0; i < whole; i += 4 * LANES)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) s[j] += load(x + i + j * LANES);
    for (int i = whole; i < n; i += LANES) s[0] += load_some(x + i, n - i);
    float m = sum_lanes((s[0] + s[1]) + (s[2] + s[3])) / (float)n;
    for (int i = 0; i < whole; i += 4 * LANES)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            vec c = load(x + i + j * LANES) - m;
            q[j] = FMA(c, c, q[j]);
        }
    for (int i = whole; i < n; i += LANES) {
        vec c = centred_at(x + i, n - i, m);
        q[0] = FMA(c, c, q[0]);
    }
    *mean = m;
    return 1.0f / sqrtf(sum_lanes((q[0] + q[1]) + (q[2] + q[3])) / (float)n + eps);
}

static void layer_norm(int n, const float *x, const float *weight, const float *bias, float *out) {
    float mean, scale = row_scale(n, x, LN_EPS, &mean);
    VECTORS(i, n) {
        vec centred = (load_some(x + i, n - i) - mean) * scale;
        vec y = FMA(centred, load_some(weight + i, n - i), load_some(bias + i, n - i));
        store_some(out + i, y, n - i);
    }
}

static void difference(int n, const float *previous, const float *a, float *d) {
    VECTORS(i, n) store_some(d + i, load_some(previous + i, n - i) - load_some(a + i, n - i), n - i);
}

VECTOR_FN void lerp_row(int n, const float *a, const float *d, const float *maa, const struct mixed *mixed, size_t row,
                        bool tiled) {
    VECTORS(i, n) {
        vec y = FMA(load_some(d + i, n - i), load_some(maa + i, n - i), load_some(a + i, n - i));
        store_in_type(mixed->p, in_place(tiled, (size_t)n, row, (size_t)i), y, n - i, mixed->bf16);
    }
}

static void lerp(int n, const float *a, const float *d, const float *maa, const struct mixed *mixed, size_t row) {
    if (mixed->tiled) lerp_row(n, a, d, maa, mixed, row, true);
    else lerp_row(n, a, d, maa, mixed, row, false);
}

static void add_scaled(int n, float scale, const float *x, float *sum) {
    VECTORS(i, n)
    store_some(sum + i, FMA(load_some(x + i, n - i), all(scale), load_some(sum + i, n - i)), n - i);
}

static void maximum(int n, const float *x, float *most) {
    VECTORS(i, n) store_some(most + i, larger(load_some(x + i, n - i), load_some(most + i, n - i)), n - i);
}

/* Past the caches, so that a line is not read from memory just to be overwritten. */
VECTOR_FN void write_out(const struct finish *f, float *out, vec y, int n) {
    if (f->past && n >= LANES) STREAM(out, y);
    else store_some(out, y, n);
}

/* One vector of a tile; `at` is its place in out and gate, `shift` in a and d. */
VECTOR_FN void finish_vector(const struct finish *f, int kind, size_t at, size_t shift, size_t column, vec y, int n) {
    float *out = (float *)f->out + at;
    switch (kind) {
    case STORE: write_out(f, out, y, n); break;
    case SILU: write_out(f, out, y * sigmoid_vec(y), n); break;
    case SIGMOID: write_out(f, out, sigmoid_vec(y), n); break;
    case RELU2:
        y = larger(y, all(0));
        store_in_type(f->out, at, y * y, n, f->bf16);
        break;
    case ADD: store_some(out, load_some(out, n) + y, n); break;
    case GATE_ADD: store_some(out, FMA(load_some(f->gate + at, n), y, load_some(out, n)), n); break;
    case LOW: store_in_type(f->out, at, y, n, f->bf16); break;
    case LOW_TANH: store_in_type(f->out, at, tanh_vec(y), n, f->bf16); break;
    case LOW_SIGMOID: store_in_type(f->out, at, sigmoid_vec(y), n, f->bf16); break;
    case FINISH_LERP:
        y = FMA(load_some(f->d + shift, n), load_some(f->vector + column, n) + y, load_some(f->a + shift, n));
        store_in_type(f->out, at, y, n, f->bf16);
        break;
    case FINISH_DECAY: write_out(f, out, exp_vec(-exp_vec(load_some(f->vector + column, n) + y)), n); break;
    case FINISH_DECAY7:
        y = sigmoid_vec(load_some(f->vector + column, n) + y);
        write_out(f, out, exp_vec(y * -0.60653065971f), n); /* exp(-1/2) */
        break;
    case FINISH_RATE: write_out(f, out, sigmoid_vec(load_some(f->vector + column, n) + y), n); break;
    case FINISH_BLEND: {
        vec v = load_some(out, n);
        y = sigmoid_vec(load_some(f->vector + column, n) + y);
        store_some(out, FMA(load_some(f->gate + at, n) - v, y, v), n);
        break;
    }
    }
}

VECTOR_FN void finish_tile(const struct finish *f, int kind, int m, int n, size_t row, size_t column,
                           const float *tile) {
    for (int i = 0; i < m; i++) {
        size_t at = in_place(f->tiled, f->stride, row + (size_t)i, column);
        size_t shift = (row + (size_t)i) * f->shift_stride + column;
        for (size_t j = 0; j < (size_t)n; j += LANES)
            finish_vector(f, kind, at + j, shift + j, column + j, load(tile + i * PANEL + (int)j), n - (int)j);
    }
}

static void finish_rows(const struct finish *f, int m, int n, size_t row, size_t column, const float *tile) {
    switch (f->kind) { /* a constant in each call: the inner switch disappears */
    case STORE: finish_tile(f, STORE, m, n, row, column, tile); break;
    case SILU: finish_tile(f, SILU, m, n, row, column, tile); break;
    case SIGMOID: finish_tile(f, SIGMOID, m, n, row, column, tile); break;
    case RELU2: finish_tile(f, RELU2, m, n, row, column, tile); break;
    case ADD: finish_tile(f, ADD, m, n, row, column, tile); break;
    case GATE_ADD: finish_tile(f, GATE_ADD, m, n, row, column, tile); break;
    case LOW: finish_tile(f, LOW, m, n, row, column, tile); break;
    case LOW_TANH: finish_tile(f, LOW_TANH, m, n, row, column, tile); break;
    case LOW_SIGMOID: finish_tile(f, LOW_SIGMOID, m, n, row, column, tile); break;
    case FINISH_LERP: finish_tile(f, FINISH_LERP, m, n, row, column, tile); break;
    case FINISH_DECAY: finish_tile(f, FINISH_DECAY, m, n, row, column, tile); break;
    case FINISH_DECAY7: finish_tile(f, FINISH_DECAY7, m, n, row, column, tile); break;
    case FINISH_RATE: finish_tile(f, FINISH_RATE, m, n, row, column, tile); break;
    case FINISH_BLEND: finish_tile(f, FINISH_BLEND, m, n, row, column, tile); break;
    }
}
