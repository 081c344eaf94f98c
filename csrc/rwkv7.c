/* RWKV-7 "Goose": its tensors, the buffers of a pass, and its equations in order; see architecture.h.
 *
 * Source of the equations: BlinkDL/RWKV-LM (RWKV-v7) and the paper arXiv 2503.14456. What a reader may miss elsewhere: the
 * mixes are static, the state is read after its update, block 0's v is kept for all blocks above, and the feed-forward
 * has no receptance. */
#include "verbs7.h"

#include "architecture.h"

/* ---- tensors ------------------------------------------------------------------------------------------------- */

struct block {
    struct weight ln1_weight, ln1_bias, ln2_weight, ln2_bias, ln_x_weight, ln_x_bias; /* [C] */
    struct weight x_r, x_w, x_k, x_v, x_a, x_g, ffn_x_k;                              /* [C] */
    struct weight w0, w1, w2, a0, a1, a2, v0, v1, v2, g1, g2;                         /* [C] [C, R] [R, C] */
    struct weight k_k, k_a, r_k;                                                      /* [C] [C] [H, N] */
    struct weight receptance, key, value, output;                                     /* [C, C] */
    struct weight ffn_key, ffn_value;                                                 /* [F, C] [C, F] */
};

#define AT(field) offsetof(struct block, field)
static const struct tensor_spec TENSORS[] = {
    {"ln1.weight", VECTOR, "C", AT(ln1_weight), false},
    {"ln1.bias", VECTOR, "C", AT(ln1_bias), false},
    {"att.x_r", VECTOR, "C", AT(x_r), false},
    {"att.x_w", VECTOR, "C", AT(x_w), false},
    {"att.x_k", VECTOR, "C", AT(x_k), false},
    {"att.x_v", VECTOR, "C", AT(x_v), false},
    {"att.x_a", VECTOR, "C", AT(x_a), false},
    {"att.x_g", VECTOR, "C", AT(x_g), false},
    {"att.w0", VECTOR, "C", AT(w0), false},
    {"att.w1", LORA_DOWN, "C W", AT(w1), false},
    {"att.w2", LORA_DOWN, "W C", AT(w2), false},
    {"att.a0", VECTOR, "C", AT(a0), false},
    {"att.a1", LORA_DOWN, "C A", AT(a1), false},
    {"att.a2", LORA_DOWN, "A C", AT(a2), false},
    {"att.v0", VECTOR, "C", AT(v0), true},
    {"att.v1", LORA_DOWN, "C B", AT(v1), true},
    {"att.v2", LORA_DOWN, "B C", AT(v2), true},
    {"att.g1", LORA_DOWN, "C G", AT(g1), false},
    {"att.g2", LORA_DOWN, "G C", AT(g2), false},
    {"att.k_k", VECTOR, "C", AT(k_k), false},
    {"att.k_a", VECTOR, "C", AT(k_a), false},
    {"att.r_k", VECTOR, "C", AT(r_k), false},
    {"att.receptance.weight", LINEAR, "C C", AT(receptance), false},
    {"att.key.weight", LINEAR, "C C", AT(key), false},
    {"att.value.weight", LINEAR, "C C", AT(value), false},
    {"att.output.weight", LINEAR, "C C", AT(output), false},
    {"att.ln_x.weight", VECTOR, "C", AT(ln_x_weight), false},
    {"att.ln_x.bias", VECTOR, "C", AT(ln_x_bias), false},
    {"ln2.weight", VECTOR, "C", AT(ln2_weight), false},
    {"ln2.bias", VECTOR, "C", AT(ln2_bias), false},
    {"ffn.x_k", VECTOR, "C", AT(ffn_x_k), false},
    {"ffn.key.weight", LINEAR, "F C", AT(ffn_key), false},
    {"ffn.value.weight", LINEAR, "C F", AT(ffn_value), false},
};

/* B, the rank of the blend with v_first, is block 1's: older files have none in block 0, newer ones any. */
static const struct size_spec SIZES[] = {
    {'H', "blocks.0.att.r_k", 2, 0, offsetof(struct dims, H), NULL},
    {'N', "blocks.0.att.r_k", 2, 1, offsetof(struct dims, N), NULL},
    {'F', "blocks.0.ffn.key.weight", 2, 0, offsetof(struct dims, F), NULL},
    {'W', "blocks.0.att.w1", 2, 1, offsetof(struct dims, rank[DECAY_LOW]), NULL},
    {'A', "blocks.0.att.a1", 2, 1, offsetof(struct dims, rank[RATE_LOW]), NULL},
    {'B', "blocks.1.att.v1", 2, 1, offsetof(struct dims, rank[VALUE_LOW]), "blocks.1.ln1.weight"},
    {'G', "blocks.0.att.g1", 2, 1, offsetof(struct dims, rank[GATE_LOW]), NULL},
};

static const struct refusal REFUSALS[] = {
    {"ffn.s_emb", "the file is of RWKV-7a or 7b (DeepEmbed), which do not run here"},
    {"qkv.k_emb", "the file is of RWKV-7b (DeepEmbed with attention), which does not run here"},
    {"ffn.enn", "the file is of RWKV-8 (DeepEmbed), which does not run here"},
    {"rosa.q.weight", "the file is of RWKV-8 (ROSA), which does not run here"},
    {"att.time_state",
     "the checkpoint is state-tuned, which would be ignored in silence: remove the time_state tensors "
     "to run the plain model"},
};

static const struct product_spec PRODUCTS[] = {
    {"C", "C", STORE, false},    {"C", "C", ADD, false},   {"F", "C", RELU2, false}, {"C", "F", ADD, true},
    {"W", "C", LOW_TANH, false}, {"A", "C", LOW, false},   {"B", "C", LOW, false},   {"G", "C", LOW_SIGMOID, false},
    {"C", "W", LOW, false},      {"C", "A", STORE, false}, {"C", "B", STORE, false}, {"C", "G", STORE, false},
};

/* ---- buffers of a pass ----------------------------------------------------------------------------------------- */

enum { R, W, K, V, A, G };

struct buffers {
    void *mixed[MIXES7], *r, *k, *v, *v_first, *low[MOST_RANKS], *up[MOST_RANKS], *y, *ffn_mixed_k, *ffn_k;
};

/* Buffers share memory where their lives do not overlap:
 *   mixed r | w | k | v | a | g     until the products; then  y | up of the low ranks; then  ffn mixed_k
 *   r | k | v                       until wkv;          then  ffn_k
 *   low ranks                       from the products to wkv
 *   v_first                         from block 0 on, to the end of the pass                                     */
static size_t lay_out(const struct formats *f, size_t rows, char *slab, void *buffers) {
    const struct dims *d = f->dims;
    struct buffers *b = buffers;
    size_t C = (size_t)d->C, F = (size_t)d->F;
    size_t mix = aligned(rows * C * f->in), head = aligned(rows * C * f->out), wide = aligned(rows * F * f->in);
    size_t stream = aligned(rows * C * sizeof(float));
    size_t mixes = larger_of(MIXES7 * mix, mix + stream + 3 * head), heads = larger_of(3 * head, wide);
    size_t first = mixes + heads, lows = first + head;
    for (size_t j = 0; j < MOST_RANKS; j++) {
        if (slab) b->low[j] = slab + lows;
        lows += aligned(rows * (size_t)d->rank[j] * LOW_BYTES);
    }
    if (!slab) return lows;
    for (size_t j = 0; j < MIXES7; j++) b->mixed[j] = slab + j * mix;
    b->y = b->ffn_mixed_k = slab;
    b->up[DECAY_LOW] = slab + mix;
    for (size_t j = RATE_LOW; j <= GATE_LOW; j++) b->up[j] = slab + mix + stream + (j - RATE_LOW) * head;
    b->r = b->ffn_k = slab + mixes;
    b->k = slab + mixes + head;
    b->v = slab + mixes + 2 * head;
    b->v_first = slab + first;
    return lows;
}

/* ---- the equations ------------------------------------------------------------------------------------------- */

/* r, k, v and the low ranks. Block 0 has none for v, as its v is v_first itself. */
static enum status products(const struct step *s, struct error *e) {
    const struct block *b = s->block;
    const struct buffers *m = s->buffers;
    const struct gemm all[] = {
        {.w = &b->receptance, .in = m->mixed[R], .epilogue = STORE, .out = m->r},
        {.w = &b->key, .in = m->mixed[K], .epilogue = STORE, .out = m->k},
        {.w = &b->value, .in = m->mixed[V], .epilogue = STORE, .out = s->layer ? m->v : m->v_first},
        {.w = &b->w1, .in = m->mixed[W], .epilogue = LOW_TANH, .out = m->low[DECAY_LOW]},
        {.w = &b->a1, .in = m->mixed[A], .epilogue = LOW, .out = m->low[RATE_LOW]},
        {.w = &b->g1, .in = m->mixed[G], .epilogue = LOW_SIGMOID, .out = m->low[GATE_LOW]},
        {.w = &b->v1, .in = m->mixed[V], .epilogue = LOW, .out = m->low[VALUE_LOW]},
    };
    return s->be->gemm(s->w, all, s->layer ? 7 : 6, e);
}

static enum status time_mix(const struct step *s, struct error *e) {
    const struct block *b = s->block;
    const struct buffers *m = s->buffers;
    const struct shift shift = {
        .layer = s->layer,
        .mixes = MIXES7,
        .x = s->x,
        .ln = {&b->ln1_weight, &b->ln1_bias},
        .past = s->slots->att_x,
        .mix = {&b->x_r, &b->x_w, &b->x_k, &b->x_v, &b->x_a, &b->x_g},
        .mixed = {m->mixed[R], m->mixed[W], m->mixed[K], m->mixed[V], m->mixed[A], m->mixed[G]},
    };
    const struct wkv7 wkv = {
        .layer = s->layer,
        .r = m->r,
        .k = m->k,
        .v = s->layer ? m->v : m->v_first,
        .v_first = m->v_first,
        .low = {[DECAY_LOW] = {m->low[DECAY_LOW], &b->w0, &b->w2, m->up[DECAY_LOW]},
                [RATE_LOW] = {m->low[RATE_LOW], &b->a0, &b->a2, m->up[RATE_LOW]},
                [VALUE_LOW] = {m->low[VALUE_LOW], &b->v0, &b->v2, m->up[VALUE_LOW]},
                [GATE_LOW] = {m->low[GATE_LOW], NULL, &b->g2, m->up[GATE_LOW]}},
        .k_k = &b->k_k,
        .k_a = &b->k_a,
        .r_k = &b->r_k,
        .ln_x = {&b->ln_x_weight, &b->ln_x_bias},
        .states = s->slots->wkv,
        .out = m->y,
    };
    const struct gemm output = {.w = &b->output, .in = m->y, .epilogue = ADD, .out = s->x};
    TRY(s->be->shift(s->w, &shift, e));
    TRY(products(s, e));
    TRY(s->be->rwkv7->wkv(s->w, &wkv, e));
    return s->be->gemm(s->w, &output, 1, e);
}

static enum status channel_mix(const struct step *s, struct error *e) {
    const struct block *b = s->block;
    const struct buffers *m = s->buffers;
    const struct shift shift = {
        .layer = s->layer,
        .mixes = 1,
        .x = s->x,
        .ln = {&b->ln2_weight, &b->ln2_bias},
        .past = s->slots->ffn_x,
        .mix = {&b->ffn_x_k},
        .mixed = {m->ffn_mixed_k},
    };
    const struct gemm key = {.w = &b->ffn_key, .in = m->ffn_mixed_k, .epilogue = RELU2, .out = m->ffn_k};
    const struct gemm value = {.w = &b->ffn_value, .in = m->ffn_k, .epilogue = ADD, .out = s->x, .of_squares = true};
    TRY(s->be->shift(s->w, &shift, e));
    TRY(s->be->gemm(s->w, &key, 1, e));
    return s->be->gemm(s->w, &value, 1, e);
}

static enum status forward(const struct step *s, struct error *e) {
    TRY(time_mix(s, e));
    return channel_mix(s, e);
}

static enum status runs_on(const struct backend *be, const struct dims *dims, struct error *e) {
    if (!be->rwkv7) return lacks(&rwkv7, e);
    return be->rwkv7->fits ? be->rwkv7->fits(dims, e) : OK;
}

const struct architecture rwkv7 = {
    .name = "RWKV-7",
    .mark = "att.r_k",
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
