/* RWKV-6 "Finch": its tensors, the buffers of a pass, and its equations in order; see architecture.h.
 *
 * Source of the equations: BlinkDL/RWKV-LM (RWKV-v6) and the paper arXiv 2404.05892. What a reader may miss elsewhere:
 * the token shift sees the normalised input, wkv is read before the decay, the bonus is raw, and ln0 belongs to block 0. */
#include "verbs6.h"

#include "architecture.h"

/* ---- tensors ------------------------------------------------------------------------------------------------- */

struct block {
    struct weight ln1_weight, ln1_bias, ln2_weight, ln2_bias;                             /* [C] */
    struct weight time_maa_x, time_maa_w, time_maa_k, time_maa_v, time_maa_r, time_maa_g; /* [C] */
    struct weight time_maa_w1, time_maa_w2;                                               /* [C, 5R] [5, R, C] */
    struct weight time_decay, time_decay_w1, time_decay_w2, time_faaaa;                   /* [C] [C, D] [D, C] [H, N] */
    struct weight receptance, key, value, gate, output, ln_x_weight, ln_x_bias;           /* [C, C], [C] */
    struct weight ffn_maa_k, ffn_maa_r, ffn_key, ffn_receptance, ffn_value;               /* [C] [F, C] [C, C] [C, F] */
};

#define AT(field) offsetof(struct block, field)
static const struct tensor_spec TENSORS[] = {
    {"ln1.weight", VECTOR, "C", AT(ln1_weight), false},
    {"ln1.bias", VECTOR, "C", AT(ln1_bias), false},
    {"att.time_maa_x", VECTOR, "C", AT(time_maa_x), false},
    {"att.time_maa_w", VECTOR, "C", AT(time_maa_w), false},
    {"att.time_maa_k", VECTOR, "C", AT(time_maa_k), false},
    {"att.time_maa_v", VECTOR, "C", AT(time_maa_v), false},
    {"att.time_maa_r", VECTOR, "C", AT(time_maa_r), false},
    {"att.time_maa_g", VECTOR, "C", AT(time_maa_g), false},
    {"att.time_maa_w1", LORA_DOWN, "C 5R", AT(time_maa_w1), false},
    {"att.time_maa_w2", LORA_UP, "5 R C", AT(time_maa_w2), false},
    {"att.time_decay", VECTOR, "C", AT(time_decay), false},
    {"att.time_decay_w1", LORA_DOWN, "C D", AT(time_decay_w1), false},
    {"att.time_decay_w2", LORA_UP, "D C", AT(time_decay_w2), false},
    {"att.time_faaaa", VECTOR, "C", AT(time_faaaa), false},
    {"att.receptance.weight", LINEAR, "C C", AT(receptance), false},
    {"att.key.weight", LINEAR, "C C", AT(key), false},
    {"att.value.weight", LINEAR, "C C", AT(value), false},
    {"att.gate.weight", LINEAR, "C C", AT(gate), false},
    {"att.output.weight", LINEAR, "C C", AT(output), false},
    {"att.ln_x.weight", VECTOR, "C", AT(ln_x_weight), false},
    {"att.ln_x.bias", VECTOR, "C", AT(ln_x_bias), false},
    {"ln2.weight", VECTOR, "C", AT(ln2_weight), false},
    {"ln2.bias", VECTOR, "C", AT(ln2_bias), false},
    {"ffn.time_maa_k", VECTOR, "C", AT(ffn_maa_k), false},
    {"ffn.time_maa_r", VECTOR, "C", AT(ffn_maa_r), false},
    {"ffn.key.weight", LINEAR, "F C", AT(ffn_key), false},
    {"ffn.receptance.weight", LINEAR, "C C", AT(ffn_receptance), false},
    {"ffn.value.weight", LINEAR, "C F", AT(ffn_value), false},
};

static const struct size_spec SIZES[] = {
    {'H', "blocks.0.att.time_faaaa", 2, 0, offsetof(struct dims, H), NULL},
    {'N', "blocks.0.att.time_faaaa", 2, 1, offsetof(struct dims, N), NULL},
    {'F', "blocks.0.ffn.key.weight", 2, 0, offsetof(struct dims, F), NULL},
    {'R', "blocks.0.att.time_maa_w2", 3, 1, offsetof(struct dims, rank[SHIFT_RANK]), NULL},
    {'D', "blocks.0.att.time_decay_w1", 2, 1, offsetof(struct dims, rank[DECAY_RANK]), NULL},
};

static const struct refusal REFUSALS[] = {
    {"att.time_maa_rkvw_w1", "the file is of the RWKV-6 variant x060b or x060c, which does not run here"},
    {"att.gate_w1", "the file is of the RWKV-6 variant x060a, which does not run here"},
    {"att.time_state",
     "the checkpoint is state-tuned, which would be ignored in silence: remove the time_state tensors "
     "to run the plain model"},
};

static const struct product_spec PRODUCTS[] = {
    {"C", "C", STORE, false}, {"C", "C", SILU, false},    {"C", "C", SIGMOID, false},   {"C", "C", ADD, false},
    {"F", "C", RELU2, false}, {"C", "F", GATE_ADD, true}, {"5R", "C", LOW_TANH, false}, {"D", "C", LOW_TANH, false},
};

/* ---- buffers of a pass ----------------------------------------------------------------------------------------- */

enum { W, K, V, R, G };

struct buffers {
    void *mixed[MIXES6], *low, *k, *v, *r, *g, *y;
    float *decay;
    void *ffn_mixed_k, *ffn_mixed_r, *ffn_k, *ffn_r;
};

/* Buffers share memory where their lives do not overlap:
 *   mixed w | k | v | r | g     until the products; then  y | decay ..; then  ffn mixed_k | mixed_r | ffn_r ..
 *   k | v | r | g               until wkv;          then  ffn_k
 *   low                         from the products to wkv                                                        */
static size_t lay_out(const struct formats *f, size_t rows, char *slab, void *buffers) {
    const struct dims *d = f->dims;
    struct buffers *b = buffers;
    size_t C = (size_t)d->C, F = (size_t)d->F, D = (size_t)d->rank[DECAY_RANK];
    size_t mix = aligned(rows * C * f->in), head = aligned(rows * C * f->out), wide = aligned(rows * F * f->in);
    size_t stream = aligned(rows * C * sizeof(float)), low = aligned(rows * D * LOW_BYTES);
    size_t mixes = larger_of(MIXES6 * mix, larger_of(mix + stream, 2 * mix + head));
    size_t heads = larger_of(4 * head, wide);
    if (!slab) return mixes + heads + low;
    for (size_t j = 0; j < MIXES6; j++) b->mixed[j] = slab + j * mix;
    b->y = b->mixed[W];
    b->decay = (float *)b->mixed[K];
    b->ffn_mixed_k = slab;
    b->ffn_mixed_r = slab + mix;
    b->ffn_r = slab + 2 * mix;
    b->k = b->ffn_k = slab + mixes;
    b->v = slab + mixes + head;
    b->r = slab + mixes + 2 * head;
    b->g = slab + mixes + 3 * head;
    b->low = slab + mixes + heads;
    return mixes + heads + low;
}

/* ---- the equations ------------------------------------------------------------------------------------------- */

static enum status time_mix(const struct step *s, struct error *e) {
    const struct block *b = s->block;
    const struct buffers *m = s->buffers;
    const struct shift6 shift = {
        .layer = s->layer,
        .x = s->x,
        .ln1 = {&b->ln1_weight, &b->ln1_bias},
        .past = s->slots->att_x,
        .maa_x = &b->time_maa_x,
        .maa = {&b->time_maa_w, &b->time_maa_k, &b->time_maa_v, &b->time_maa_r, &b->time_maa_g},
        .w1 = &b->time_maa_w1,
        .w2 = &b->time_maa_w2,
        .mixed = {m->mixed[W], m->mixed[K], m->mixed[V], m->mixed[R], m->mixed[G]},
    };
    const struct gemm products[] = {
        {.w = &b->key, .in = m->mixed[K], .epilogue = STORE, .out = m->k},
        {.w = &b->value, .in = m->mixed[V], .epilogue = STORE, .out = m->v},
        {.w = &b->receptance, .in = m->mixed[R], .epilogue = STORE, .out = m->r},
        {.w = &b->gate, .in = m->mixed[G], .epilogue = SILU, .out = m->g},
        {.w = &b->time_decay_w1, .in = m->mixed[W], .epilogue = LOW_TANH, .out = m->low},
    };
    const struct wkv6 wkv = {
        .layer = s->layer,
        .r = m->r,
        .k = m->k,
        .v = m->v,
        .g = m->g,
        .low = m->low,
        .time_decay = &b->time_decay,
        .w2 = &b->time_decay_w2,
        .decay = m->decay,
        .u = &b->time_faaaa,
        .ln_x = {&b->ln_x_weight, &b->ln_x_bias},
        .states = s->slots->wkv,
        .out = m->y,
    };
    const struct gemm output = {.w = &b->output, .in = m->y, .epilogue = ADD, .out = s->x};
    TRY(s->be->rwkv6->shift(s->w, &shift, e));
    TRY(s->be->gemm(s->w, products, 5, e));
    TRY(s->be->rwkv6->wkv(s->w, &wkv, e));
    return s->be->gemm(s->w, &output, 1, e);
}

static enum status channel_mix(const struct step *s, struct error *e) {
    const struct block *b = s->block;
    const struct buffers *m = s->buffers;
    const struct shift shift = {
        .layer = s->layer,
        .mixes = 2,
        .x = s->x,
        .ln = {&b->ln2_weight, &b->ln2_bias},
        .past = s->slots->ffn_x,
        .mix = {&b->ffn_maa_k, &b->ffn_maa_r},
        .mixed = {m->ffn_mixed_k, m->ffn_mixed_r},
    };
    const struct gemm products[] = {
        {.w = &b->ffn_key, .in = m->ffn_mixed_k, .epilogue = RELU2, .out = m->ffn_k},
        {.w = &b->ffn_receptance, .in = m->ffn_mixed_r, .epilogue = SIGMOID, .out = m->ffn_r},
    };
    const struct gemm value = {
        .w = &b->ffn_value, .in = m->ffn_k, .epilogue = GATE_ADD, .out = s->x, .gate = m->ffn_r, .of_squares = true};
    TRY(s->be->shift(s->w, &shift, e));
    TRY(s->be->gemm(s->w, products, 2, e));
    return s->be->gemm(s->w, &value, 1, e);
}

static enum status forward(const struct step *s, struct error *e) {
    TRY(time_mix(s, e));
    return channel_mix(s, e);
}

static enum status runs_on(const struct backend *be, const struct dims *dims, struct error *e) {
    if (!be->rwkv6) return lacks(&rwkv6, e);
    return be->rwkv6->fits ? be->rwkv6->fits(dims, e) : OK;
}

const struct architecture rwkv6 = {
    .name = "RWKV-6",
    .mark = "att.time_maa_x",
    .refusals = REFUSALS,
    .refusal_count = COUNT(REFUSALS),
    .sizes = SIZES,
    .size_count = COUNT(SIZES),
    .tensors = TENSORS,
    .tensor_count = COUNT(TENSORS),
    .block_bytes = sizeof(struct block),
    .products = PRODUCTS,
    .product_count = COUNT(PRODUCTS),
    .buffers_bytes = sizeof(struct buffers),
    .runs_on = runs_on,
    .lay_out = lay_out,
    .forward = forward,
};
