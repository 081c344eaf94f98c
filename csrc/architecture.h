/* What an architecture is: a table of its tensors, the buffers of a pass, and its equations; nothing else.
 *
 * Each has a file of its own that fills one struct architecture, and a line in architectures.c. It knows no files, no
 * passes and no device: model.h binds its tensors, session.h runs its blocks, backend.h computes. What all RWKV have in
 * common (the embedding, its norm and the last norm) is model.h's. */
#ifndef RWKVSTS_ARCHITECTURE_H
#define RWKVSTS_ARCHITECTURE_H

#include "backend.h"

/* A tensor of a block. Sizes in `shape` are letters with an optional factor, "C 5R"; a VECTOR "C" may lie as [H, N]. */
struct tensor_spec {
    const char *name; /* after "blocks.N." */
    enum role role;
    const char *shape;
    size_t at;      /* of its struct weight in the architecture's struct of a block */
    bool not_first; /* block 0 has no use for it: may be absent there, and is passed over */
};

/* A size that is read off a tensor: dimension `axis` of `ndim`. */
struct size_spec {
    char letter;
    const char *tensor;
    int ndim, axis;
    size_t at;          /* of its int in struct dims */
    const char *unless; /* not asked for where this tensor is absent; NULL: always */
};

/* A kind of product, its sizes as letters; see struct product_kind. */
struct product_spec {
    const char *n, *k;
    enum epilogue epilogue;
    bool of_squares;
};

/* A tensor that marks a file which must not run as this architecture: part of its name, and why. */
struct refusal {
    const char *part, *why;
};

struct formats { /* what a buffer's size depends on */
    const struct dims *dims;
    size_t in, out; /* bytes an element */
};

/* One block of one pass, on its way through the equations. */
struct step {
    const struct backend *be;
    struct worker *w;
    const void *block; /* the architecture's struct of bound tensors */
    const void *buffers;
    float *x; /* [T, C] the stream */
    const struct state *slots;
    int layer;
};

struct architecture {
    const char *name; /* "RWKV-6" */
    const char *mark; /* the tensor of block 0 by which it is known */
    const struct refusal *refusals;
    int refusal_count;
    const struct size_spec *sizes;
    int size_count;
    const struct tensor_spec *tensors;
    int tensor_count;
    size_t block_bytes;
    const struct product_spec *products;
    int product_count;
    size_t buffers_bytes;
    enum status (*runs_on)(const struct backend *be, const struct dims *dims, struct error *e);
    /* Bytes that the buffers take for `rows` rows, a multiple of IN_ROWS. With a slab, also points them into it. */
    size_t (*lay_out)(const struct formats *f, size_t rows, char *slab, void *buffers);
    enum status (*forward)(const struct step *s, struct error *e); /* one block: x = block(x) */
};

/* What runs_on says of a backend that lacks an architecture's verbs. */
static inline enum status lacks(const struct architecture *a, struct error *e) {
    return fail(e, DEVICE_FAILED, "%s does not run on this device: use device='cpu'", a->name);
}

/* Bytes of a buffer, rounded up to what every device is content with. */
static inline size_t aligned(size_t bytes) {
    enum { ALIGN = 256 };
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static inline size_t larger_of(size_t a, size_t b) {
    return a > b ? a : b;
}

extern const struct architecture rwkv6, rwkv7;

/* All of them, NULL at the end. */
extern const struct architecture *const architectures[];

#endif
