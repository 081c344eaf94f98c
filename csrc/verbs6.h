/* What RWKV-6 alone asks of a backend: its data-dependent token shift and its recurrence. See backend.h. */
#ifndef RWKVSTS_VERBS6_H
#define RWKVSTS_VERBS6_H

#include "backend.h"

enum { MIXES6 = 5 };                     /* w k v r g, the order of time_maa_w1 and time_maa_w2 */
enum { SHIFT_RANK = 0, DECAY_RANK = 1 }; /* of dims.rank: R of time_maa_w2, D of time_decay_w1 */

struct shift6 { /* a = LN1(x); d = prev(a) - a; z = tanh((a + d maa_x) W1); mixed_j = a + d (maa_j + z_j W2_j) */
    int layer;
    const float *x; /* [T, C] */
    struct norm ln1;
    float *past;                      /* [slot, L, C] */
    const struct weight *maa_x;       /* [C] */
    const struct weight *maa[MIXES6]; /* [C] each */
    const struct weight *w1, *w2;     /* [C, 5R], [5, R, C] */
    void *mixed[MIXES6];              /* [T, C] in */
};

/* decay = exp(-exp(time_decay + low W2)); per head: y = r (S + diag(u) k^T v); S = diag(decay) S + k^T v;
 * out = (GroupNorm(y) w + b) g */
struct wkv6 {
    int layer;
    const void *r, *k, *v, *g;            /* [T, C] out; g as SILU wrote it */
    const void *low;                      /* [T, D] low, as LOW_TANH wrote it */
    const struct weight *time_decay, *w2; /* [C], [D, C] */
    float *decay;                         /* [T, C] room for the backend's own use */
    const struct weight *u;               /* time_faaaa [H, N] */
    struct norm ln_x;
    float *states; /* [slot, L, H, N, N] (key, value) */
    void *out;     /* [T, C] in */
};

struct verbs6 {
    /* Refuses sizes that no kernel takes; NULL: all fit. */
    enum status (*fits)(const struct dims *dims, struct error *e);
    enum status (*shift)(struct worker *w, const struct shift6 *a, struct error *e);
    enum status (*wkv)(struct worker *w, const struct wkv6 *a, struct error *e);
};

#endif
