/* Names and shapes to an architecture and its sizes; see model.h.
 *
 * Nothing is guessed from a file's name or its configuration: a tensor that only one architecture has marks it. */
#include "model.h"

#include <stdio.h>
#include <string.h>

struct listing {
    const struct tensor_info *tensors;
    size_t count;
};

int split_name(const char *name, const char **leaf) {
    int block = -1, used = 0;
    if (sscanf(name, "blocks.%5d.%n", &block, &used) != 1 || !used || block < 0) return -1;
    *leaf = name + used;
    return block;
}

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

/* What a checkpoint is that no architecture here runs; NULL if it is no RWKV that is known. */
static const char *other_family(struct listing l) {
    if (in_block_0(l, "att.ln_x.weight")) return in_block_0(l, "att.gate.weight") ? "RWKV-5.1 or 5.2" : "RWKV-5.0";
    if (in_block_0(l, "att.time_mix_k")) return "RWKV-4";
    return NULL;
}

static enum status refuse_family(struct listing l, struct error *e) {
    const char *family = other_family(l);
    if (family)
        return fail(e, BAD_INPUT,
                    "this checkpoint is %s by its tensors, which does not run here: take one such as "
                    "RWKV/v6-Finch-1B6-HF",
                    family);
    return fail(e, BAD_INPUT,
                "this checkpoint is no RWKV model that is known here: block 0 lacks what marks RWKV-6 or RWKV-7, and "
                "the first of its %zu tensors is %.100s: take one such as RWKV/v6-Finch-1B6-HF",
                l.count, l.count ? l.tensors[0].name : "none");
}

static const struct architecture *known(struct listing l) {
    for (int i = 0; architectures[i]; i++)
        if (in_block_0(l, architectures[i]->mark)) return architectures[i];
    for (int i = 0; architectures[i]; i++) /* a variant may lack the mark */
        for (int j = 0; j < architectures[i]->refusal_count; j++)
            if (in_block_0(l, architectures[i]->refusals[j].part)) return architectures[i];
    return NULL;
}

static const struct tensor_spec *spec_of(const struct architecture *a, const char *leaf) {
    for (int i = 0; i < a->tensor_count; i++)
        if (!strcmp(leaf, a->tensors[i].name)) return &a->tensors[i];
    return NULL;
}

/* Tensors that must not be ignored, wherever they lie. */
static enum status check_refusals(const struct architecture *a, const char *name, struct error *e) {
    for (int i = 0; i < a->refusal_count; i++)
        if (strstr(name, a->refusals[i].part)) return fail(e, BAD_INPUT, "%.200s: %s", name, a->refusals[i].why);
    return OK;
}

/* Ignored without a word: what is no part of the stream, such as the head or a training's own numbers. */
static bool harmless(const char *name) {
    static const char *const parts[] = {"emb", "pos_emb", "ln0.", "ln_"}, *const words[] = {"lora", "adapter"};
    for (int i = 0; i < COUNT(parts); i++)
        if (!strncmp(name, parts[i], strlen(parts[i]))) return false;
    for (int i = 0; i < COUNT(words); i++)
        if (strstr(name, words[i])) return !strncmp(name, "head.", 5);
    return true;
}

/* A tensor of a block or of what stands around the blocks either is in the table or changes the model in a way that would
 * be ignored. */
static enum status check_tensor(const struct architecture *a, const char *name, const char *leaf, struct error *e) {
    static const char *const around[] = {"emb.weight", "ln_out.weight", "ln_out.bias"};
    for (int i = 0; i < COUNT(around); i++)
        if (!strcmp(name, around[i])) return OK;
    if (leaf ? spec_of(a, leaf) != NULL : harmless(name)) return OK;
    return fail(e, BAD_INPUT,
                "%.200s: %s has no such tensor, and ignoring it could change every result: remove it from the file if "
                "the model does not need it",
                name, a->name);
}

static enum status count_blocks(struct listing l, const struct architecture *a, int *L, struct error *e) {
    enum { MOST_L = 4096 };
    *L = 0;
    for (size_t i = 0; i < l.count; i++) {
        const char *leaf = NULL, *name = l.tensors[i].name;
        int block = split_name(name, &leaf);
        TRY(check_refusals(a, name, e));
        if (block >= MOST_L) return fail(e, BAD_INPUT, "%.200s: at most %d blocks are expected", name, MOST_L);
        if (block == 0 && !strncmp(leaf, "ln0.", 4)) continue;
        TRY(check_tensor(a, name, leaf, e));
        if (block >= *L) *L = block + 1;
    }
    return OK;
}

static enum status read_size(struct listing l, const char *name, int ndim, int axis, int *out, struct error *e) {
    enum { MOST = 1 << 24 };
    const struct tensor_info *t = find(l, name);
    if (!t) return fail(e, BAD_INPUT, "%s is missing from the checkpoint", name);
    if (t->ndim != ndim) return fail(e, BAD_INPUT, "%s has %d dimensions: expected %d", name, t->ndim, ndim);
    if (t->shape[axis] < 1 || t->shape[axis] > MOST)
        return fail(e, BAD_INPUT, "%s has size %lld in dimension %d: expected 1 .. %d", name, (long long)t->shape[axis],
                    axis, MOST);
    *out = (int)t->shape[axis];
    return OK;
}

enum status identify(const struct tensor_info *tensors, size_t count, const struct architecture **architecture,
                     struct dims *out, struct error *e) {
    struct listing l = {tensors, count};
    struct dims d = {0};
    const struct architecture *a = known(l);
    if (!a) return refuse_family(l, e);
    TRY(count_blocks(l, a, &d.L, e));
    TRY(read_size(l, "emb.weight", 2, 0, &d.V, e));
    TRY(read_size(l, "emb.weight", 2, 1, &d.C, e));
    for (int i = 0; i < a->size_count; i++) {
        const struct size_spec *s = &a->sizes[i];
        if (s->unless && !find(l, s->unless)) continue;
        TRY(read_size(l, s->tensor, s->ndim, s->axis, (int *)(void *)((char *)&d + s->at), e));
    }
    if ((int64_t)d.H * d.N != d.C)
        return fail(e, BAD_INPUT, "%s has shape [%d, %d]: expected a product of %d, the width of emb.weight",
                    a->sizes[0].tensor, d.H, d.N, d.C);
    *architecture = a;
    *out = d;
    return OK;
}

int64_t size_of(const struct architecture *a, const struct dims *d, const char *word, size_t length) {
    int64_t factor = 0;
    for (size_t i = 0; i < length; i++) {
        if (word[i] >= '0' && word[i] <= '9') {
            factor = 10 * factor + (word[i] - '0');
            continue;
        }
        if (!factor) factor = 1;
        if (word[i] == 'C') return factor * d->C;
        if (word[i] == 'V') return factor * d->V;
        for (int j = 0; j < a->size_count; j++)
            if (a->sizes[j].letter == word[i])
                return factor * *(const int *)(const void *)((const char *)d + a->sizes[j].at);
    }
    return factor;
}
