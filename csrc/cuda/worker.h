/* The worker: what one call needs of a device, and the pass under way.
 *
 * Launches are sized by `grid` and guarded by the T and S that lie in device memory, so that a recorded pass serves every
 * pass of its bucket. */
#ifndef RWKVSTS_CUDA_WORKER_H
#define RWKVSTS_CUDA_WORKER_H

#include "device.h"

enum { FLIGHTS = 2, RECORDS = 32 };

/* What a block of wkv_chunk works through: a piece, or a part of a long one. */
struct unit {
    int first, last; /* rows */
    int from, to;    /* as the pass's; or from an interim state: FROM_INTERIM - its number */
};
/* A long piece, whose units are the parts of PART tokens each; what each but the first starts from is an interim state. */
struct long_piece {
    int first, last, from, to; /* as those of a unit */
    int number;                /* among the pieces */
    int unit, interim;         /* its first unit, its first interim state */
};
enum { PART = 128 };

/* Where the numbers of the pass lie in device memory. */
struct meta {
    const int *head;  /* T, S, side, units */
    const int *ids;   /* [T] */
    const int *prev;  /* [T] row before in the same sequence, or NO_PAST, or a slot: FROM_SLOT - slot */
    const int *save;  /* [T] slot to leave this row in, or -1 */
    const int *start; /* [S+1] */
    const int *before, *total, *skip, *from, *to; /* [S] */
    const struct unit *units;                     /* first those of the long pieces */
    const struct long_piece *long_pieces;
    const int *order; /* [S] pieces by how RWKV-7 walks along them: enum walk7 */
};
enum { NO_PAST = -1, FROM_SLOT = -2, FROM_INTERIM = -2, HEAD_INTS = 4 };

struct allocation {
    struct allocation *next;
    void *p;
    size_t bytes;
};

/* Pooled rows of a pass on their way to the caller. */
struct flight {
    float *pinned;
    float *target;
    size_t bytes;           /* 0: nothing is under way */
    cudaEvent_t done, read; /* pooled rows have left the device; the staged numbers were read */
    int *staged;
};

/* What makes two passes the same work, but for the numbers in device memory. */
struct shape {
    int T, S, top, columns, pooling;
    uint64_t layers; /* hash */
};
struct record {
    struct shape shape;
    cudaGraphExec_t exec; /* NULL: seen once, recorded when seen again */
    unsigned used;
};

struct worker {
    struct device *dev;
    int rows, sequences, columns;
    cudaStream_t stream, copies;
    struct allocation *allocations;
    struct pass pass;
    struct {
        int T, S, units;               /* what launches are sized for: the pass's own numbers, or its bucket's */
        int long_pieces, long_units;   /* none in a bucket: a pass of few rows has none */
        int ahead_pieces, ahead_units; /* of these, the first: whose states go ahead in RWKV-7 */
        int four_warps;                /* pieces, in the order after those */
    } grid;
    struct meta meta;
    int *numbers;  /* device, what meta points into */
    void *temp;    /* [rows, C] in or out type, between two kernels of one verb */
    float *low;    /* [rows, the widest low rank], likewise */
    float2 *stats; /* [rows] mean, 1 / deviation */
    float *pooled; /* [sequences, columns, C] */
    float *carry;  /* [2, columns, C] pooled so far of the sequence that goes on: one is read, one left */
    struct flight flights[FLIGHTS];
    int side;        /* which of the two flights, and of the two rows of carry, this pass takes */
    bool not_finite; /* a pooled row that was delivered since the last finish is not */
    bool pool_waits; /* the pooled rows of the pass before may still be leaving */
    cudaEvent_t computed;
    struct record records[RECORDS], *record;
    bool capturing;
    unsigned clock;
};

/* worker.cu */
enum status cuda_worker_open(struct device *dev, int rows, int sequences, int columns, struct worker **out,
                             struct error *e);
void cuda_worker_close(struct worker *w);
size_t cuda_worker_row_bytes(const struct device *dev, int columns);
enum status cuda_alloc(struct worker *w, size_t bytes, void **out, struct error *e);
enum status cuda_upload(struct worker *w, void *device, const void *host, size_t bytes, struct error *e);
enum status cuda_download(struct worker *w, void *host, const void *device, size_t bytes, struct error *e);

/* pass.cu */
enum status cuda_begin(struct worker *w, const struct pass *pass, bool *replay, struct error *e);
enum status cuda_end(struct worker *w, struct error *e);
enum status cuda_finish(struct worker *w, bool *finite, struct error *e);
size_t number_bytes(int T, int S);

/* rows/ */
enum status cuda_embed(struct worker *w, const struct embed *a, struct error *e);
enum status cuda_shift(struct worker *w, const struct shift *a, struct error *e);
/* The same, leaving the rows' statistics in w->stats too; with no mixes, those alone. */
enum status shift_with_stats(struct worker *w, const struct shift *a, struct error *e);
enum status cuda_pool(struct worker *w, const struct pool *a, struct error *e);

#endif
