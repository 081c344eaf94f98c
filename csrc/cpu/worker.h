/* The CPU's device and worker, shared by backend.c, which opens them, and verbs.c, which runs on them. */
#ifndef RWKVSTS_CPU_WORKER_H
#define RWKVSTS_CPU_WORKER_H

#include "gemm.h"
#include "team.h"

struct device {
    struct dims dims;
    enum dtype dtype;
    int threads;
    struct kernels kernels;
    const struct tile_product *product; /* the one of dtype */
    bool tiled;                         /* matrices of in type lie as products read them, see kernels.h */
    struct meter *meter;
    char name[64];
};

/* A row kernel's item is a run of rows small enough that all it makes on the way stays in the second-level cache. */
enum { ITEM_ROWS = 64 };

/* Rows of the scratch lie a line more than C apart: at a multiple of 4 KiB they would all fall into one cache set. */
enum { SHIFT_PAD = 16 };

/* What one thread needs for an item; pointers into one allocation a thread. */
struct thread_scratch {
    float *normal, *d;       /* [ITEM_ROWS + 1, C + SHIFT_PAD], [ITEM_ROWS, C + SHIFT_PAD] */
    void *mix, *low_rank;    /* [ITEM_ROWS, C], [ITEM_ROWS, max(5R, D)] in type */
    void *packed, *packed_z; /* inputs of products from C or D, and five from R */
    float *state;            /* [N, wkv_padded(N)] */
    float *products;         /* gemm_block's */
};

struct allocation {
    struct allocation *next;
    void *p;
    size_t bytes;
};

struct worker {
    struct device *dev;
    struct team *team;
    int rows, sequences, columns;
    struct pass pass;
    int32_t *piece;        /* [rows] which piece a row belongs to */
    float *zeros;          /* [C] what precedes a fresh sequence */
    float *carry[2];       /* [columns, C] pooled so far of the sequence that goes on: this pass reads */
    int turn;              /* carry[turn] and leaves carry[!turn] */
    unsigned char *packed; /* inputs of gemm, packed */
    size_t packed_bytes;
    struct thread_scratch *scratch; /* [threads] */
    struct allocation *allocations;
};

/* What `in` type makes of a verb's products. */
static inline bool is_bf16(const struct worker *w) {
    return w->dev->dtype == BF16;
}

enum status cpu_embed(struct worker *w, const struct embed *a, struct error *e);
enum status cpu_time_shift(struct worker *w, const struct time_shift *a, struct error *e);
enum status cpu_gemm(struct worker *w, const struct gemm *a, int count, struct error *e);
enum status cpu_decay(struct worker *w, const struct decay *a, struct error *e);
enum status cpu_wkv(struct worker *w, const struct wkv *a, struct error *e);
enum status cpu_channel_shift(struct worker *w, const struct channel_shift *a, struct error *e);
enum status cpu_pool(struct worker *w, const struct pool *a, struct error *e);

#endif
