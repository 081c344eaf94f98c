/* Tensors to bound weights, by an architecture's table; see model.h.
 *
 * A tensor that the table names must have its shape, dimensions of one left aside: files carry time_decay as [1, 1, C] or
 * [H, N, 1], by converter. */
#include "model.h"

#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AT(field) offsetof(struct model, field)
static const struct tensor_spec OUTER[] = {
    {"emb.weight", TABLE, "V C", AT(emb), false},
    {"blocks.0.ln0.weight", VECTOR, "C", AT(ln0_weight), false},
    {"blocks.0.ln0.bias", VECTOR, "C", AT(ln0_bias), false},
    {"ln_out.weight", VECTOR, "C", AT(ln_out_weight), false},
    {"ln_out.bias", VECTOR, "C", AT(ln_out_bias), false},
};
enum { OUTER_TENSORS = COUNT(OUTER), LN_OUT = 3 }; /* OUTER[LN_OUT ..] are read for "final" only */

static char *block_of(const struct model *m, int block) {
    return m->blocks + (size_t)block * m->architecture->block_bytes;
}

/* The spec of a tensor that this model reads and where its weight lies; NULL for any other. */
static const struct tensor_spec *find_spec(const struct model *m, const char *name, struct weight **weight) {
    const char *leaf = NULL;
    int outer = m->final_norm ? OUTER_TENSORS : LN_OUT, block = split_name(name, &leaf);
    for (int i = 0; i < outer; i++)
        if (!strcmp(name, OUTER[i].name)) {
            *weight = (struct weight *)(void *)((char *)(uintptr_t)m + OUTER[i].at);
            return &OUTER[i];
        }
    if (block < 0 || block >= m->dims.L) return NULL;
    for (int i = 0; i < m->architecture->tensor_count; i++) {
        const struct tensor_spec *spec = &m->architecture->tensors[i];
        if (strcmp(leaf, spec->name)) continue;
        *weight = (struct weight *)(void *)(block_of(m, block) + spec->at);
        return block == 0 && spec->not_first ? NULL : spec;
    }
    return NULL;
}

bool model_wants(const struct model *m, const char *name) {
    struct weight *weight;
    return find_spec(m, name, &weight) != NULL;
}

/* ---- shapes -------------------------------------------------------------------------------------------------- */

static void print_shape(char *text, size_t n, const int64_t *shape, int ndim) {
    size_t used = (size_t)snprintf(text, n, "[");
    for (int i = 0; i < ndim && used < n; i++)
        used += (size_t)snprintf(text + used, n - used, i ? ", %lld" : "%lld", (long long)shape[i]);
    if (used < n) snprintf(text + used, n - used, "]");
}

static int parse_shape(const struct model *m, const char *words, int64_t out[4]) {
    int n = 0;
    while (*words && n < 4) {
        size_t length = strcspn(words, " ");
        out[n++] = size_of(m->architecture, &m->dims, words, length);
        words += length + (words[length] == ' ');
    }
    return n;
}

static int drop_ones(const int64_t *shape, int ndim, int64_t out[4]) {
    int n = 0;
    for (int i = 0; i < ndim; i++)
        if (shape[i] != 1) out[n++] = shape[i];
    return n;
}

static bool same_shape(const int64_t *a, int a_ndim, const int64_t *b, int b_ndim) {
    int64_t left[4], right[4];
    int n = drop_ones(a, a_ndim, left), m = drop_ones(b, b_ndim, right);
    return n == m && !memcmp(left, right, (size_t)n * sizeof *left);
}

static enum status check_shape(const struct model *m, const struct tensor_spec *spec, const char *name,
                               const struct array *a, struct array *clean, struct error *e) {
    int64_t want[4], heads[2] = {m->dims.H, m->dims.N};
    int ndim = parse_shape(m, spec->shape, want);
    bool same = same_shape(want, ndim, a->shape, a->ndim);
    if (!same && spec->role == VECTOR) same = same_shape(heads, 2, a->shape, a->ndim);
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

static enum status check_info(const struct model *m, const struct tensor_info *t, struct error *e) {
    struct weight *w = NULL;
    const struct tensor_spec *spec = find_spec(m, t->name, &w);
    struct array clean, a = {.ndim = t->ndim};
    if (!spec) return OK;
    if (t->ndim > 4) return fail(e, BAD_INPUT, "%s has %d dimensions: expected at most 4", t->name, t->ndim);
    memcpy(a.shape, t->shape, sizeof a.shape);
    return check_shape(m, spec, t->name, &a, &clean, e);
}

enum status model_check(const struct model *m, const struct tensor_info *tensors, size_t count, struct error *e) {
    for (size_t i = 0; i < count; i++) TRY(check_info(m, &tensors[i], e));
    return OK;
}

/* ---- tensors --------------------------------------------------------------------------------------------------- */

enum status model_put(struct model *m, const char *name, const struct array *a, struct error *e) {
    struct weight *w = NULL;
    const struct tensor_spec *spec = find_spec(m, name, &w);
    struct array clean;
    if (!spec) return fail(e, BAD_INPUT, "%s is not a tensor of this model of %d blocks", name, m->dims.L);
    TRY(check_shape(m, spec, name, a, &clean, e));
    size_t bad = array_not_finite(&clean);
    if (bad != SIZE_MAX)
        return fail(e, BAD_INPUT, "%s holds NaN or infinity at element %zu: the checkpoint is damaged, fetch it again",
                    name, bad);
    /* The mark is taken in one step: of two threads with the same tensor one is refused. */
    if (__atomic_exchange_n(&w->given, 1, __ATOMIC_ACQ_REL)) return fail(e, BAD_INPUT, "%s was given twice", name);
    struct weight packed = {0};
    fenv_t callers; /* another library may have set another rounding */
    fegetenv(&callers);
    fesetenv(FE_DFL_ENV);
    enum status st = m->be->pack(m->dev, spec->role, &clean, &packed, e);
    fesetenv(&callers);
    packed.given = st == OK;
    if (st == OK) *w = packed;
    else __atomic_store_n(&w->given, 0, __ATOMIC_RELEASE);
    return st;
}

/* Calls each(m, spec, weight, ...) on every weight that this model reads, until one call fails. */
typedef enum status each_weight(const struct model *m, const char *prefix, const struct tensor_spec *spec,
                                struct weight *w, void *user, struct error *e);

static enum status for_weights(const struct model *m, each_weight *each, void *user, struct error *e) {
    const struct architecture *a = m->architecture;
    for (int i = 0; i < (m->final_norm ? OUTER_TENSORS : LN_OUT); i++)
        TRY(each(m, "", &OUTER[i], (struct weight *)(void *)((char *)(uintptr_t)m + OUTER[i].at), user, e));
    for (int b = 0; m->blocks && b < m->dims.L; b++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "blocks.%d.", b);
        for (int i = 0; i < a->tensor_count; i++)
            if (b || !a->tensors[i].not_first)
                TRY(each(m, prefix, &a->tensors[i], (struct weight *)(void *)(block_of(m, b) + a->tensors[i].at), user,
                         e));
    }
    return OK;
}

static enum status require(const struct model *m, const char *prefix, const struct tensor_spec *spec, struct weight *w,
                           void *user, struct error *e) {
    (void)m, (void)user;
    return w->data ? OK : fail(e, BAD_INPUT, "%s%s is missing from the checkpoint", prefix, spec->name);
}

static enum status add_bytes(const struct model *m, const char *prefix, const struct tensor_spec *spec,
                             struct weight *w, void *user, struct error *e) {
    size_t *sum = user;
    (void)m, (void)prefix, (void)spec, (void)e;
    if (w->data) *sum += w->bytes;
    return OK;
}

static enum status drop(const struct model *m, const char *prefix, const struct tensor_spec *spec, struct weight *w,
                        void *user, struct error *e) {
    (void)prefix, (void)spec, (void)user, (void)e;
    if (w->data) m->be->unpack(m->dev, w);
    return OK;
}

enum status model_seal(struct model *m, struct error *e) {
    return for_weights(m, require, NULL, e);
}

size_t model_weight_bytes(const struct model *m) {
    struct error unused;
    size_t sum = 0;
    for_weights(m, add_bytes, &sum, &unused);
    return sum;
}

/* ---- open and close ---------------------------------------------------------------------------------------------- */

static enum status open_device(struct model *m, const struct device_options *options, struct error *e) {
    const struct architecture *a = m->architecture;
    struct product_kind kinds[2 * MOST_PRODUCTS];
    TRY(a->runs_on(m->be, &m->dims, e));
    if (a->product_count > 2 * MOST_PRODUCTS)
        return fail(e, DEVICE_FAILED, "%s has %d kinds of products: expected at most %d", a->name, a->product_count,
                    2 * MOST_PRODUCTS);
    int count = 0;
    for (int i = 0; i < a->product_count; i++) {
        const struct product_spec *p = &a->products[i];
        int n = (int)size_of(a, &m->dims, p->n, strlen(p->n)), k = (int)size_of(a, &m->dims, p->k, strlen(p->k));
        if (n && k) /* else of a low rank that this model has not */
            kinds[count++] = (struct product_kind){n, k, p->epilogue, p->of_squares};
    }
    return m->be->open(&m->dims, kinds, count, options, &m->meter, &m->dev, e);
}

enum status model_open(const struct backend *be, const struct architecture *a, const struct dims *dims, int blocks,
                       const struct device_options *options, struct model **out, struct error *e) {
    if (blocks < 1 || blocks > dims->L)
        return fail(e, BAD_INPUT, "layer %d asked for: the checkpoint has layers 0 .. %d", blocks - 1, dims->L - 1);
    struct model *m = calloc(1, sizeof *m);
    if (!m) return fail(e, NO_MEMORY, "no memory for a model");
    m->architecture = a;
    m->be = be;
    m->dims = *dims;
    m->dims.L = blocks;
    m->final_norm = blocks == dims->L;
    m->blocks = calloc((size_t)blocks, a->block_bytes);
    enum status st = m->blocks ? open_device(m, options, e) : fail(e, NO_MEMORY, "no memory for %d blocks", blocks);
    if (st == OK) *out = m;
    else model_close(m);
    return st;
}

void model_close(struct model *m) {
    struct error unused;
    if (!m) return;
    if (m->dev) {
        for_weights(m, drop, NULL, &unused);
        m->be->close(m->dev);
    }
    free(m->blocks);
    free(m);
}
