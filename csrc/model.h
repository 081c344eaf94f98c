/* A model: tensors of a checkpoint bound to what an architecture's table asks for, packed for one device.
 *
 * A model is immutable once sealed. identify.c reads architecture and sizes off names and shapes; bind.c takes the
 * tensors. Names are those of the official .pth files ("blocks.0.att.time_maa_x"). */
#ifndef RWKVSTS_MODEL_H
#define RWKVSTS_MODEL_H

#include "architecture.h"

struct tensor_info {
    const char *name;
    int ndim;
    int64_t shape[4]; /* the first four sizes; what has more is refused by ndim */
};

/* Which architecture the tensors are of, and their sizes. Refuses, by name, families and variants that do not run here,
 * missing blocks, and any tensor of a block that would be ignored. */
enum status identify(const struct tensor_info *tensors, size_t count, const struct architecture **architecture,
                     struct dims *out, struct error *e);

/* The size that a word of a shape stands for: "C", "5R", "5". */
int64_t size_of(const struct architecture *a, const struct dims *d, const char *word, size_t length);

/* "blocks.12.att.key.weight" -> 12 and "att.key.weight"; -1 for any other name. */
int split_name(const char *name, const char **leaf);

struct model {
    const struct architecture *architecture;
    const struct backend *be;
    struct device *dev;
    struct dims dims; /* L is the number of blocks loaded */
    struct meter meter;
    bool final_norm;
    struct weight emb, ln0_weight, ln0_bias, ln_out_weight, ln_out_bias; /* [V, C], [C] */
    char *blocks;                                                        /* [L] of the architecture's struct */
};

/* blocks <= dims->L are loaded; the layer "final" is to be had when that is all of them. */
enum status model_open(const struct backend *be, const struct architecture *a, const struct dims *dims, int blocks,
                       const struct device_options *options, struct model **out, struct error *e);
bool model_wants(const struct model *m, const char *name); /* the other tensors need not be read */
/* Refuses the first tensor that is read and has another shape than the architecture says: before any is read. */
enum status model_check(const struct model *m, const struct tensor_info *tensors, size_t count, struct error *e);
/* Several threads may put tensors at a time. */
enum status model_put(struct model *m, const char *name, const struct array *a, struct error *e);
enum status model_seal(struct model *m, struct error *e); /* refuses while a tensor is missing, naming it */
void model_close(struct model *m);                        /* after its sessions */

size_t model_weight_bytes(const struct model *m);

#endif
