/* One vector type for every instruction set, on the compiler's own vector extension.
 *
 * The including file defines LANES, FMA(a, b, c), STREAM(p, v), which stores past the caches where that can be done, and
 * BFLOAT16(v) or NARROW(u), the low halves of 32-bit lanes, and has switched its target on. Everything is static: the same
 * text becomes other instructions in each file. Products and sums are never contracted behind our back
 * (-ffp-contract=off), so an instruction set always gives the same result; another may give another, as its FMA rounds
 * once. */
#include <stdint.h>
#include <string.h>

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

#define VECTOR_FN static inline __attribute__((always_inline, unused))

VECTOR_FN vec load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

VECTOR_FN void store(float *p, vec v) {
    memcpy(p, &v, sizeof v);
}

/* The first n lanes, the others zero. Sizes of real models are multiples of LANES: tails need not be fast. */
VECTOR_FN vec load_some(const float *p, int n) {
    if (n >= LANES) return load(p);
    vec v = {0};
    memcpy(&v, p, sizeof *p * (size_t)n);
    return v;
}

VECTOR_FN void store_some(float *p, vec v, int n) {
    if (n >= LANES) store(p, v);
    else memcpy(p, &v, sizeof *p * (size_t)n);
}

VECTOR_FN vec all(float x) {
    return x - (vec){0}; /* not 0 + x: that would lose the sign of -0 */
}

VECTOR_FN vec choose(ivec mask, vec yes, vec no) {
    return (vec)((mask & (ivec)yes) | (~mask & (ivec)no));
}

VECTOR_FN vec larger(vec a, vec b) {
    return choose(a > b, a, b);
}

VECTOR_FN vec smaller(vec a, vec b) {
    return choose(a < b, a, b);
}

#if LANES == 16
#define EACH_LANE {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif LANES == 8
#define EACH_LANE {0, 1, 2, 3, 4, 5, 6, 7}
#else
#define EACH_LANE {0, 1, 2, 3}
#endif

/* Lanes are added in a fixed tree: the upper half to the lower, and so on. gcc keeps it in registers only if told how. */
VECTOR_FN float sum_lanes(vec v) {
#if defined(__clang__)
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
#else
    const ivec lane = EACH_LANE;
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) v += __builtin_shuffle(v, lane + half);
#endif
    return v[0];
}

/* To nearest, ties to even, as float_to_bfloat16 does. */
VECTOR_FN hvec to_bfloat16(vec v) {
#if defined(BFLOAT16)
    return BFLOAT16(v);
#else
    uvec u = (uvec)v;
    uvec rounded = u + 0x7fff + ((u >> 16) & 1);
    uvec nan = (uvec)(v != v);
    return NARROW(((rounded & ~nan) | ((u | 0x400000) & nan)) >> 16);
#endif
}

/* Element i of a row of in type. */
VECTOR_FN void store_in_type(void *row, size_t i, vec v, int n, bool bf16) {
    if (bf16) {
        hvec h = to_bfloat16(v);
        if (n >= LANES) memcpy((uint16_t *)row + i, &h, sizeof h);
        else memcpy((uint16_t *)row + i, &h, sizeof(uint16_t) * (size_t)n);
    } else {
        store_some((float *)row + i, v, n);
    }
}

/* e^x, within 1 ulp or so; 0 below -104, infinite above 88.8. Cephes' reduction, minimax polynomial on +-ln2/2. */
VECTOR_FN vec exp_vec(vec x) {
    x = smaller(larger(x, all(-105.0f)), all(89.0f));
    const vec magic = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    vec n = FMA(x, all(1.44269504088896341f), magic) - magic;
    vec r = FMA(n, all(-0.693145751953125f), x);
    r = FMA(n, all(-1.428606765330187045e-06f), r);
    vec p = all(1.9875691500e-4f);
    p = FMA(p, r, all(1.3981999507e-3f));
    p = FMA(p, r, all(8.3334519073e-3f));
    p = FMA(p, r, all(4.1665795894e-2f));
    p = FMA(p, r, all(1.6666665459e-1f));
    p = FMA(p, r, all(5.0000001201e-1f));
    p = FMA(p, r * r, r) + 1.0f;
    /* 2^n in two steps, so that results below the smallest normal number come out right. */
    ivec whole = __builtin_convertvector(n, ivec), half = whole >> 1;
    return p * (vec)((half + 127) << 23) * (vec)((whole - half + 127) << 23);
}

VECTOR_FN vec sigmoid_vec(vec x) {
    return 1.0f / (1.0f + exp_vec(-x));
}

/* Odd polynomial near zero, where 1 - 2/(e^2x + 1) would cancel. */
VECTOR_FN vec tanh_vec(vec x) {
    vec magnitude = (vec)((ivec)x & 0x7fffffff), s = x * x;
    vec p = all(-5.70498872745e-3f);
    p = FMA(p, s, all(2.06390887954e-2f));
    p = FMA(p, s, all(-5.37397155531e-2f));
    p = FMA(p, s, all(1.33314422036e-1f));
    p = FMA(p, s, all(-3.33332819422e-1f));
    vec near_zero = FMA(p * s, x, x);
    vec far = 1.0f - 2.0f / (exp_vec(magnitude + magnitude) + 1.0f);
    far = (vec)((ivec)far | ((ivec)x & INT32_MIN));
    return choose(magnitude < 0.625f, near_zero, far);
}
