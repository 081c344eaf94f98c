/* Tensor names and shapes: shapes to sizes, tensors to bound weights; see rwkv6.h.
 *
 * One table says what there is. A tensor that the table does not name is not ours to read; one that it names must have
 * its shape, dimensions of one left aside: files carry time_decay as [1, 1, C] or [H, N, 1], by converter. */
#include "weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct spec {
    const char *name;
    enum role role;
    const char *shape; /* letters of struct dims, P for 5R, 5 for five; "C" also admits [H, N] */
    size_t at;         /* of its struct weight */
};

#define IN_MODEL(field) offsetof(struct rwkv6, field)
static const struct spec MODEL[] = {
    {"emb.weight", TABLE, "VC", IN_MODEL(emb)},
    {"blocks.0.ln0.weight", VECTOR, "C", IN_MODEL(ln0_weight)},
    {"blocks.0.ln0.bias", VECTOR, "C", IN_MODEL(ln0_bias)},
    {"ln_out.weight", VECTOR, "C", IN_MODEL(ln_out_weight)},
    {"ln_out.bias", VECTOR, "C", IN_MODEL(ln_out_bias)},
};

#define IN_BLOCK(field) offsetof(struct block, field)
static const struct spec BLOCK[] = {
    {"ln1.weight", VECTOR, "C", IN_BLOCK(ln1_weight)},
    {"ln1.bias", VECTOR, "C", IN_BLOCK(ln1_bias)},
    {"att.time_maa_x", VECTOR, "C", IN_BLOCK(time_maa_x)},
    {"att.time_maa_w", VECTOR, "C", IN_BLOCK(time_maa_w)},
    {"att.time_maa_k", VECTOR, "C", IN_BLOCK(time_maa_k)},
    {"att.time_maa_v", VECTOR, "C", IN_BLOCK(time_maa_v)},
    {"att.time_maa_r", VECTOR, "C", IN_BLOCK(time_maa_r)},
    {"att.time_maa_g", VECTOR, "C", IN_BLOCK(time_maa_g)},
    {"att.time_maa_w1", LORA_DOWN, "CP", IN_BLOCK(time_maa_w1)},
    {"att.time_maa_w2", LORA_UP, "5RC", IN_BLOCK(time_maa_w2)},
    {"att.time_decay", VECTOR, "C", IN_BLOCK(time_decay)},
    {"att.time_decay_w1", LORA_DOWN, "CD", IN_BLOCK(time_decay_w1)},
    {"att.time_decay_w2", LORA_UP, "DC", IN_BLOCK(time_decay_w2)},
    {"att.time_faaaa", VECTOR, "C", IN_BLOCK(time_faaaa)},
    {"att.receptance.weight", LINEAR, "CC", IN_BLOCK(receptance)},
    {"att.key.weight", LINEAR, "CC", IN_BLOCK(key)},
    {"att.value.weight", LINEAR, "CC", IN_BLOCK(value)},
    {"att.gate.weight", LINEAR, "CC", IN_BLOCK(gate)},
    {"att.output.weight", LINEAR, "CC", IN_BLOCK(output)},
    {"att.ln_x.weight", VECTOR, "C", IN_BLOCK(ln_x_weight)},
    {"att.ln_x.bias", VECTOR, "C", IN_BLOCK(ln_x_bias)},
    {"ln2.weight", VECTOR, "C", IN_BLOCK(ln2_weight)},
    {"ln2.bias", VECTOR, "C", IN_BLOCK(ln2_bias)},
    {"ffn.time_maa_k", VECTOR, "C", IN_BLOCK(ffn_maa_k)},
    {"ffn.time_maa_r", VECTOR, "C", IN_BLOCK(ffn_maa_r)},
    {"ffn.key.weight", LINEAR, "FC", IN_BLOCK(ffn_key)},
    {"ffn.receptance.weight", LINEAR, "CC", IN_BLOCK(ffn_receptance)},
    {"ffn.value.weight", LINEAR, "CF", IN_BLOCK(ffn_value)},
};
enum { MODEL_TENSORS = sizeof MODEL / sizeof *MODEL, BLOCK_TENSORS = sizeof BLOCK / sizeof *BLOCK };
enum { LN_OUT = 3 }; /* MODEL[LN_OUT ..] are read for "final" only */

/* "blocks.12.att.key.weight" -> 12 and "att.key.weight"; -1 for any other name. */
static int split_name(const char *name, const char **leaf) {
    int block = -1, used = 0;
    if (sscanf(name, "blocks.%5d.%n", &block, &used) != 1 || !used || block < 0) return -1;
    *leaf = name + used;
    return block;
}

static const struct spec *find_spec(const char *name, int *block) {
    const char *leaf = NULL;
    *block = -1;
    for (int i = 0; i < MODEL_TENSORS; i++)
        if (!strcmp(name, MODEL[i].name)) return &MODEL[i];
    *block = split_name(name, &leaf);
    for (int i = 0; *block >= 0 && i < BLOCK_TENSORS; i++)
        if (!strcmp(leaf, BLOCK[i].name)) return &BLOCK[i];
    return NULL;
}

bool rwkv6_wants(const struct rwkv6 *m, const char *name) {
    int block;
    const struct spec *spec = find_spec(name, &block);
    if (!spec) return false;
    return block >= 0 ? block < m->dims.L : m->final_norm || spec < &MODEL[LN_OUT];
}

/* ---- shapes to sizes ----------------------------------------------------------------------------------------- */

struct listing {
    const struct tensor_info *tensors;
    size_t count;
};

static const struct tensor_info *find(struct listing l, const char *name) {
    for (size_t i = 0; i < l.count; i++)
        if (!strcmp(l.tensors[i].name, name)) return &l.tensors[i];
    return NULL;
}

static bool in_block_0(struct listing l, const char *leaf) {
    char name[96];
    snprintf(name, sizeof name, "blocks.0.%s", leaf);
    return find(l, name) != NULL;
}

/* The model family, by the tensors of block 0 that only it has; NULL for RWKV-6 itself. */
static const char *other_family(struct listing l) {
    if (in_block_0(l, "att.r_k") || in_block_0(l, "att.k_k")) return "RWKV-7";
    if (in_block_0(l, "att.time_maa_rkvw_w1")) return "the RWKV-6 variant x060b or x060c";
    if (in_block_0(l, "att.gate_w1")) return "the RWKV-6 variant x060a";
    if (in_block_0(l, "att.time_maa_x")) return NULL;
    if (in_block_0(l, "att.ln_x.weight")) return in_block_0(l, "att.gate.weight") ? "RWKV-5.1 or 5.2" : "RWKV-5.0";
    if (in_block_0(l, "att.time_mix_k")) return "RWKV-4";
    return "no RWKV model that is known here";
}

static enum status refuse_others(struct listing l, struct error *e) {
    const char *family = other_family(l);
    if (family)
        return fail(e, BAD_INPUT,
                    "this checkpoint is %s by its tensors; only RWKV-6 runs here: take one such as "
                    "RWKV/v6-Finch-1B6-HF",
                    family);
    for (size_t i = 0; i < l.count; i++)
        if (strstr(l.tensors[i].name, ".att.time_state"))
            return fail(e, BAD_INPUT,
                        "%.200s: this checkpoint is state-tuned, which would be ignored in silence: remove "
                        "the time_state tensors to run the plain model",
                        l.tensors[i].name);
    return OK;
}

/* Reads one size: dimension `axis` of a tensor that must have `ndim` dimensions, within 1 .. most. */
static enum status read_size(struct listing l, const char *name, int ndim, int axis, int most, int *out,
                             struct error *e) {
    const struct tensor_info *t = find(l, name);
    if (!t) return fail(e, BAD_INPUT, "%s is missing from the checkpoint", name);
    if (t->ndim != ndim) return fail(e, BAD_INPUT, "%s has %d dimensions: expected %d", name, t->ndim, ndim);
    if (t->shape[axis] < 1 || t->shape[axis] > most)
        return fail(e, BAD_INPUT, "%s has size %lld in dimension %d: expected 1 .. %d", name, (long long)t->shape[axis],
                    axis, most);
    *out = (int)t->shape[axis];
    return OK;
}

enum status rwkv6_dims(const struct tensor_info *tensors, size_t count, struct dims *out, struct error *e) {
    enum { MOST_L = 4096, MOST_C = 1 << 16, MOST_V = 1 << 24, MOST_F = 1 << 20 };
    struct listing l = {tensors, count};
    struct dims d = {0};
    const char *leaf;
    TRY(refuse_others(l, e));
    for (size_t i = 0; i < count; i++) {
        int block = split_name(tensors[i].name, &leaf);
        if (block >= MOST_L)
            return fail(e, BAD_INPUT, "%.200s: at most %d blocks are expected", tensors[i].name, MOST_L);
        if (block >= d.L) d.L = block + 1;
    }
    TRY(read_size(l, "emb.weight", 2, 0, MOST_V, &d.V, e));
    TRY(read_size(l, "emb.weight", 2, 1, MOST_C, &d.C, e));
    TRY(read_size(l, "blocks.0.att.time_faaaa", 2, 0, MOST_C, &d.H, e));
    TRY(read_size(l, "blocks.0.att.time_faaaa", 2, 1, MOST_C, &d.N, e));
    TRY(read_size(l, "blocks.0.ffn.key.weight", 2, 0, MOST_F, &d.F, e));
    TRY(read_size(l, "blocks.0.att.time_maa_w2", 3, 1, MOST_C, &d.R, e));
    TRY(read_size(l, "blocks.0.att.time_decay_w1", 2, 1, MOST_C, &d.D, e));
    if ((int64_t)d.H * d.N != d.C)
        return fail(e, BAD_INPUT,
                    "blocks.0.att.time_faaaa has shape [%d, %d]: expected a product of %d, the width of "
                    "emb.weight",
                    d.H, d.N, d.C);
    *out = d;
    return OK;
}

/* ---- tensors to weights -------------------------------------------------------------------------------------- */

static int64_t size_of(const struct dims *d, char letter) {
    switch (letter) {
    case 'V': return d->V;
    case 'C': return d->C;
    case 'F': return d->F;
    case 'R': return d->R;
    case 'D': return d->D;
    case 'P': return 5 * (int64_t)d->R;
    default: return letter - '0';
    }
}

static void print_shape(char *text, size_t n, const int64_t *shape, int ndim) {
    size_t used = (size_t)snprintf(text, n, "[");
    for (int i = 0; i < ndim && used < n; i++)
        used += (size_t)snprintf(text + used, n - used, i ? ", %lld" : "%lld", (long long)shape[i]);
    if (used < n) snprintf(text + used, n - used, "]");
}

static int drop_ones(const int64_t *shape, int ndim, int64_t out[4]) {
    int n = 0;
    for (int i = 0; i < ndim; i++)
        if (shape[i] != 1) out[n++] = shape[i];
    return n;
}

static enum status check_shape(const struct dims *d, const struct spec *spec, const char *name, const struct array *a,
                               struct array *clean, struct error *e) {
    int64_t want[4], want_squeezed[4], found[4];
    int ndim = (int)strlen(spec->shape);
    for (int i = 0; i < ndim; i++) want[i] = size_of(d, spec->shape[i]);
    int n = drop_ones(want, ndim, want_squeezed), m = drop_ones(a->shape, a->ndim, found);
    int64_t heads[2] = {d->H, d->N}, heads_squeezed[4];
    int h = drop_ones(heads, 2, heads_squeezed);
    bool same = n == m && !memcmp(want_squeezed, found, (size_t)n * sizeof *found);
    if (!same && spec->role == VECTOR) same = h == m && !memcmp(heads_squeezed, found, (size_t)h * sizeof *found);
    if (!same) {
        char expected[96], got[96];
        print_shape(expected, sizeof expected, want, ndim);
        print_shape(got, sizeof got, a->shape, a->ndim);
        return fail(e, BAD_INPUT, "%s has shape %s: expected %s", name, got, expected);
    }
    *clean = (struct array){.dtype = a->dtype, .ndim = ndim, .data = a->data};
    memcpy(clean->shape, want, sizeof want[0] * (size_t)ndim);
    return OK;
}

enum status rwkv6_put(struct rwkv6 *m, const char *name, const struct array *a, struct error *e) {
    int block;
    const struct spec *spec = find_spec(name, &block);
    if (!spec || !rwkv6_wants(m, name))
        return fail(e, BAD_INPUT, "%s is not a tensor of this model of %d blocks", name, m->dims.L);
    char *base = block >= 0 ? (char *)&m->blocks[block] : (char *)m;
    struct weight *w = (struct weight *)(base + spec->at);
    struct array clean;
    if (w->data) return fail(e, BAD_INPUT, "%s was given twice", name);
    TRY(check_shape(&m->dims, spec, name, a, &clean, e));
    size_t bad = array_not_finite(&clean);
    if (bad != SIZE_MAX)
        return fail(e, BAD_INPUT, "%s holds NaN or infinity at element %zu: the checkpoint is damaged, fetch it again",
                    name, bad);
    enum status st = m->be->pack(m->dev, spec->role, &clean, w, e);
    if (st != OK) w->data = NULL;
    return st;
}

static enum status require(const struct spec *spec, const void *base, const char *prefix, struct error *e) {
    const struct weight *w = (const struct weight *)((const char *)base + spec->at);
    return w->data ? OK : fail(e, BAD_INPUT, "%s%s is missing from the checkpoint", prefix, spec->name);
}

enum status rwkv6_seal(struct rwkv6 *m, struct error *e) {
    for (int i = 0; i < (m->final_norm ? MODEL_TENSORS : LN_OUT); i++) TRY(require(&MODEL[i], m, "", e));
    for (int b = 0; b < m->dims.L; b++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "blocks.%d.", b);
        for (int i = 0; i < BLOCK_TENSORS; i++) TRY(require(&BLOCK[i], &m->blocks[b], prefix, e));
    }
    return OK;
}

enum status rwkv6_open(const struct backend *be, const struct dims *dims, int blocks,
                       const struct device_options *options, struct rwkv6 **out, struct error *e) {
    if (blocks < 1 || blocks > dims->L)
        return fail(e, BAD_INPUT, "layer %d asked for: the checkpoint has layers 0 .. %d", blocks - 1, dims->L - 1);
    struct rwkv6 *m = calloc(1, sizeof *m);
    if (!m) return fail(e, NO_MEMORY, "no memory for a model");
    m->be = be;
    m->dims = *dims;
    m->dims.L = blocks;
    m->final_norm = blocks == dims->L;
    m->blocks = calloc((size_t)blocks, sizeof *m->blocks);
    enum status st = m->blocks ? be->open(&m->dims, options, &m->meter, &m->dev, e)
                               : fail(e, NO_MEMORY, "no memory for %d blocks", blocks);
    if (st == OK) *out = m;
    else rwkv6_close(m);
    return st;
}

/* Calls `each` on every weight that is there. */
static void for_weights(const struct rwkv6 *m, void (*each)(const struct rwkv6 *, struct weight *, size_t *),
                        size_t *sum) {
    for (int i = 0; i < MODEL_TENSORS; i++) each(m, (struct weight *)((char *)(uintptr_t)m + MODEL[i].at), sum);
    for (int b = 0; m->blocks && b < m->dims.L; b++)
        for (int i = 0; i < BLOCK_TENSORS; i++) each(m, (struct weight *)((char *)&m->blocks[b] + BLOCK[i].at), sum);
}

static void add_bytes(const struct rwkv6 *m, struct weight *w, size_t *sum) {
    (void)m;
    if (w->data) *sum += w->bytes;
}

static void drop(const struct rwkv6 *m, struct weight *w, size_t *sum) {
    (void)sum;
    if (w->data) m->be->unpack(m->dev, w);
}

size_t rwkv6_weight_bytes(const struct rwkv6 *m) {
    size_t sum = 0;
    for_weights(m, add_bytes, &sum);
    return sum;
}

void rwkv6_close(struct rwkv6 *m) {
    if (!m) return;
    if (m->dev) {
        for_weights(m, drop, NULL);
        m->be->close(m->dev);
    }
    free(m->blocks);
    free(m);
}

const char *rwkv6_device(const struct rwkv6 *m) {
    return m->be->describe(m->dev);
}

struct meter *rwkv6_meter(struct rwkv6 *m) {
    return &m->meter;
}
