/* RWKV-6 "Finch": shapes to configuration, tensors to bound weights, and the forward pass, written once.
 *
 * A model is immutable once sealed. A session is what one concurrent call needs; sessions of one model may run side by
 * side. Everything is allocated in the two open functions; running allocates nothing. Tensor names are those of the
 * official .pth files ("blocks.0.att.time_maa_x"); see backend.h for the dimensions. */
#ifndef RWKVSTS_RWKV6_H
#define RWKVSTS_RWKV6_H

#include "backend.h"

struct tensor_info {
    const char *name;
    int ndim;
    int64_t shape[4]; /* the first four sizes; what has more is refused by ndim */
};

/* Sizes from names and shapes alone. Refuses, by name, RWKV-4, 5 and 7 and the x060a/b/c variants, and missing blocks. */
enum status rwkv6_dims(const struct tensor_info *tensors, size_t count, struct dims *out, struct error *e);

struct rwkv6;
/* blocks <= dims->L are loaded; the layer "final" is to be had when that is all of them. */
enum status rwkv6_open(const struct backend *backend, const struct dims *dims, int blocks,
                       const struct device_options *options, struct rwkv6 **out, struct error *e);
bool rwkv6_wants(const struct rwkv6 *m, const char *name); /* the other tensors need not be read */
enum status rwkv6_put(struct rwkv6 *m, const char *name, const struct array *a, struct error *e);
enum status rwkv6_seal(struct rwkv6 *m, struct error *e); /* refuses while a tensor is missing, naming it */
void rwkv6_close(struct rwkv6 *m);                        /* after its sessions */

const char *rwkv6_device(const struct rwkv6 *m);
size_t rwkv6_weight_bytes(const struct rwkv6 *m);
struct meter *rwkv6_meter(struct rwkv6 *m);

/* The past of sequences, host memory: att_x [n, L, C], ffn_x [n, L, C], wkv [n, L, H, N, N] (key, value), float32. */
struct state {
    float *att_x, *ffn_x, *wkv;
};

struct session;
/* Passes of `rows` tokens (0: what the device prefers), at most `columns` pooled layers, `states` of returned states a pass
 * (0: none are asked). */
enum status rwkv6_session_open(struct rwkv6 *m, int rows, int columns, int states, struct session **out,
                               struct error *e);
void rwkv6_session_close(struct session *s);

struct request {
    int64_t S;
    const int32_t *ids;   /* [start[S]], each in 0 .. V-1 */
    const int64_t *start; /* [S+1], ascending; no sequence is empty */
    int columns;
    const int32_t *layers; /* [columns] 0 .. blocks-1, or blocks for "final" */
    enum pooling pooling;
    float *out;                /* [S, columns, C]; may be NULL when columns is 0 */
    const struct state *first; /* one state (n = 1) that all sequences start from; NULL: zeros */
    const struct state *last;  /* [S] states are left here; NULL: not asked */
    enum status (*poll)(void *user, int64_t done, struct error *e); /* between blocks; not OK stops the run */
    void *user;
};

/* A sequence may be longer than a pass: it goes on in the next one from its own state, with the same bits. */
enum status rwkv6_run(struct session *s, const struct request *r, struct error *e);

#endif
