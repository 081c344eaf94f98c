/* Numbers to int8 and exact sums back to numbers, written once on vector.h. See int8_kernels in kernels.h.
 *
 * Every step is one rounding of the same numbers in the same order whatever LANES is, and nothing is fused: all
 * instruction sets give the same bits. The including file defines NARROW8(i), the low bytes of 32-bit lanes. */

typedef int8_t bvec __attribute__((vector_size(LANES)));

enum { TURN_VECTORS = TURN / LANES };

/* Lanes that lie `half` apart: the lower becomes their sum, the upper their difference. */
VECTOR_FN vec turn_lanes(vec v, int half) {
    const ivec lane = EACH_LANE;
    ivec upper = (lane & half) != 0;
    return swap_lanes(v, half) + (vec)((ivec)v ^ (upper & INT32_MIN));
}

/* The fast Walsh-Hadamard transform of TURN numbers, distances ascending. Returns them in v. */
VECTOR_FN void turn(vec *v) {
#pragma GCC unroll 4
    for (int half = 1; half < LANES; half *= 2)
#pragma GCC unroll 16
        for (int i = 0; i < TURN_VECTORS; i++) v[i] = turn_lanes(v[i], half);
#pragma GCC unroll 4
    for (int half = 1; half < TURN_VECTORS; half *= 2)
#pragma GCC unroll 16
        for (int i = 0; i < TURN_VECTORS; i++)
            if (!(i & half)) {
                vec lower = v[i], upper = v[i + half];
                v[i] = lower + upper;
                v[i + half] = lower - upper;
            }
}

VECTOR_FN void widen_row(int k, const uint16_t *in, float *line) {
    int i = 0;
    for (; i + LANES <= k; i += LANES) {
        hvec h;
        memcpy(&h, in + i, sizeof h);
        store(line + i, (vec)(__builtin_convertvector(h, uvec) << 16));
    }
    for (; i < k; i++) line[i] = bfloat16_to_float(in[i]);
}

/* Turns all of a line and returns its largest magnitude. Magnitudes are compared as integers, so that NaN, which stands
 * above infinity, is not lost: it becomes the row's scale. */
VECTOR_FN float turn_line(int k_padded, float *line) {
    ivec most = {0};
    for (int at = 0; at < k_padded; at += TURN) {
        vec v[TURN_VECTORS];
#pragma GCC unroll 16
        for (int i = 0; i < TURN_VECTORS; i++) v[i] = load(line + at + i * LANES);
        turn(v);
#pragma GCC unroll 16
        for (int i = 0; i < TURN_VECTORS; i++) {
            ivec magnitude = (ivec)v[i] & INT32_MAX, greater = magnitude > most;
            most = (greater & magnitude) | (~greater & most);
            store(line + at + i * LANES, v[i]);
        }
    }
    int32_t largest = 0;
    for (int i = 0; i < LANES; i++)
        if (most[i] > largest) largest = most[i];
    float magnitude;
    memcpy(&magnitude, &largest, sizeof magnitude);
    return magnitude;
}

static float quantise(int k, int k_padded, const uint16_t *in, float *line, int8_t *out) {
    const vec magic = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    if (in) widen_row(k, in, line);
    memset(line + k, 0, sizeof *line * (size_t)(k_padded - k));
    float largest = turn_line(k_padded, line), inverse = largest != 0 ? 127.0f / largest : 0.0f;
    for (int i = 0; i < k_padded; i += LANES) {
        bvec bytes = NARROW8((ivec)(load(line + i) * inverse + magic) - (ivec)magic);
        memcpy(out + i, &bytes, sizeof bytes);
    }
    return largest / 127.0f;
}

static void dequantise(int m, const float *rows, const float *outputs, const int32_t *excess, float *c) {
    for (int i = 0; i < m; i++, c += PANEL)
        for (int j = 0; j < PANEL; j += LANES) {
            uvec sum, more;
            memcpy(&sum, c + j, sizeof sum);
            memcpy(&more, excess + j, sizeof more);
            vec y = __builtin_convertvector((ivec)(sum - more), vec);
            store(c + j, y * load(outputs + j) * rows[i]);
        }
}
