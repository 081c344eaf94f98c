/* What RWKV-7 alone asks of a backend: its low ranks and its delta rule. See backend.h. */
#ifndef RWKVSTS_VERBS7_H
#define RWKVSTS_VERBS7_H

#include "backend.h"

enum { MIXES7 = 6 };                               /* r w k v a g */
enum { DECAY_LOW, RATE_LOW, VALUE_LOW, GATE_LOW }; /* of dims.rank; w, a, v and g in the tensors' names */

struct low_rank {                   /* base + low up */
    const void *low;                /* [T, R] low, as its epilogue wrote it */
    const struct weight *base, *up; /* [C] or NULL for zeros; LORA_DOWN [R, C] */
    void *out; /* [T, C] room for the sum: float32 for the decay, out for the others; v's in block 0 too */
};

/* w = exp(-exp(-1/2) sigmoid(decay)); al = sigmoid(rate); v += (v_first - v) sigmoid(value), but not in block 0
 * kk = k k_k, each head divided by its length, which is at least 1e-12; k = k (1 + (al - 1) k_a)
 * per head, S (value, key): S = S diag(w) + (S (-kk)) (kk al)^T + v k^T; y = S r
 * out = (GroupNorm(y) ln_x + (sum over the head of r k r_k) v) gate */
struct wkv7 {
    int layer;
    void *r, *k, *v;                      /* [T, C] out; may be changed */
    const void *v_first;                  /* [T, C] out: block 0's v; in block 0 the same matrix as v */
    struct low_rank low[MOST_RANKS];      /* decay, rate, value, gate; value's is not read in block 0 */
    const struct weight *k_k, *k_a, *r_k; /* [C], [C], [H, N] */
    struct norm ln_x;
    float *states; /* [slot, L, H, N, N] (value, key) */
    void *out;     /* [T, C] in */
};

struct verbs7 {
    /* Refuses sizes that no kernel takes; NULL: all fit. */
    enum status (*fits)(const struct dims *dims, struct error *e);
    enum status (*wkv)(struct worker *w, const struct wkv7 *a, struct error *e);
};

#endif
