/* Which tensors RWKV-6 has, what they must look like, and the model they are bound into.
 *
 * Shared by weights.c, which fills it, and rwkv6.c, which reads it: nobody else looks inside struct rwkv6. */
#ifndef RWKVSTS_WEIGHTS_H
#define RWKVSTS_WEIGHTS_H

#include "rwkv6.h"

struct block {
    struct weight ln1_weight, ln1_bias, ln2_weight, ln2_bias;                             /* [C] */
    struct weight time_maa_x, time_maa_w, time_maa_k, time_maa_v, time_maa_r, time_maa_g; /* [C] */
    struct weight time_maa_w1, time_maa_w2;                                               /* [C, 5R] [5, R, C] */
    struct weight time_decay, time_decay_w1, time_decay_w2, time_faaaa;                   /* [C] [C, D] [D, C] [H, N] */
    struct weight receptance, key, value, gate, output, ln_x_weight, ln_x_bias;           /* [C, C], [C] */
    struct weight ffn_maa_k, ffn_maa_r, ffn_key, ffn_receptance, ffn_value;               /* [C] [F, C] [C, C] [C, F] */
};

struct rwkv6 {
    const struct backend *be;
    struct device *dev;
    struct dims dims; /* L is the number of blocks loaded */
    struct meter meter;
    bool final_norm;
    struct weight emb, ln0_weight, ln0_bias, ln_out_weight, ln_out_bias; /* [V, C], [C] */
    struct block *blocks;
};

#endif
