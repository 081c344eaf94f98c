/* RWKV-6's own verbs on CUDA: the data-dependent token shift (shift.cu, lerp.cu, up.cu) and the recurrence (wkv.cu and the
 * kernels that it calls). Which kernel runs when: route.h. */
#ifndef RWKVSTS_CUDA_RWKV6_H
#define RWKVSTS_CUDA_RWKV6_H

#include "verbs6.h"
#include "worker.h"

/* Tokens of a piece that wkv_chunk works on together: where a pass may cut a sequence. */
enum { CHUNK_GRAIN = 64 };

/* shift.cu, wkv.cu */
enum status cuda_shift6(struct worker *w, const struct shift6 *a, struct error *e);
enum status cuda_wkv6(struct worker *w, const struct wkv6 *a, struct error *e);

/* A low rank up: groups of sums of tanh(low) and weights, begun with vectors. */
struct up_args {
    struct meta meta;
    const float *low; /* [T, groups k] before tanh */
    const void *w;    /* [groups, C, K] in type, k padded to K with zeros, ordered as pack.cu says */
    int k, K, C;
    /* the lerps: five groups */
    const float *x, *weight, *bias, *slots;
    const float2 *stats;
    size_t slot_stride;
    const float *maa[MIXES6];
    void *mixed[MIXES6];
    /* the decay: one group */
    const float *time_decay;
    float *
        decay; /* [T, C] before exp(-exp()): that is taken where wkv reads it, which hides it behind its own arithmetic */
};
/* Fills in what is known of a weight [g, k, n] of role LORA_UP. */
void up_weight(const struct worker *w, const struct weight *weight, struct up_args *args);
enum status lerp_run(struct worker *w, const struct up_args *a, struct error *e); /* lerp.cu */
enum status up_lerps(struct worker *w, const struct up_args *a, struct error *e); /* up.cu */
enum status up_decay(struct worker *w, const struct up_args *a, struct error *e);

/* What a kernel for wkv is given. */
struct wkv_args {
    struct meta meta;
    const void *r, *k, *v, *g; /* [T, C] out type; g before silu */
    const float *decay;        /* [T, C] before exp(-exp()) */
    const float *u, *weight, *bias;
    float *slots; /* [slot, L, H, N, N], at this layer */
    size_t slot_stride;
    void *out; /* [T, C] in type */
    int C, H;
};
cudaError_t wkv_64_run(const struct worker *w, const struct wkv_args *a);
/* Heads of 64 in bfloat16; makes the decay itself. */
cudaError_t wkv_chunk_run(const struct worker *w, const struct wkv6 *a, const struct wkv_args *args);

#endif
