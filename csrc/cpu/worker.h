/* The CPU's device and worker, shared by backend.c, which opens them, and the verbs, which run on them. */
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

/* Rows that a verb takes at a time: so few that all it makes on the way stays in the second-level cache. */
enum { MOST_ROWS = 64 };

/* Rows of the scratch lie a line more than C apart: at a multiple of 4 KiB they would all fall into one cache set. */
enum { SHIFT_PAD = 16 };

/* What one thread needs for a span; pointers into one allocation a thread. */
struct thread_scratch {
    float *normal, *d;       /* [MOST_ROWS + 1, C + SHIFT_PAD], [MOST_ROWS, C + SHIFT_PAD] */
    void *mix, *low_rank;    /* [MOST_ROWS, C], [MOST_ROWS, MOST_MIXES * widest rank] in type */
    void *packed, *packed_z; /* inputs of a product from C or a rank, and of MOST_MIXES from a rank each */
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
    int32_t *piece;         /* [rows] which piece a row belongs to */
    float *zeros;           /* [C] what precedes a fresh sequence */
    float *carry[2];        /* [columns, C] pooled so far of the sequence that goes on: this pass reads */
    int turn;               /* carry[turn] and leaves carry[!turn] */
    atomic_bool not_finite; /* a pooled row since the last finish is not */
    unsigned char *packed;  /* inputs of gemm, packed */
    size_t packed_bytes;
    struct thread_scratch *scratch; /* [threads] */
    struct allocation *allocations;
};

static inline int least(int a, int b) {
    return a < b ? a : b;
}

/* Pieces of `size` that cover n. */
static inline int pieces(int n, int size) {
    return (n + size - 1) / size;
}

static inline const float *vector_of(const struct weight *w) {
    return w->data;
}

/* Element `index` of a matrix of in type. */
static inline const void *in_at(const struct worker *w, const void *p, size_t index) {
    return (const char *)p + index * dtype_bytes(w->dev->dtype);
}

static inline bool is_bf16(const struct worker *w) {
    return w->dev->dtype == BF16;
}

/* A state slot's head, [N, N], or NULL. */
static inline float *head_slot(const struct worker *w, float *states, int slot, int layer, int head) {
    const struct dims *d = &w->dev->dims;
    if (slot < 0) return NULL;
    size_t heads = ((size_t)slot * (size_t)d->L + (size_t)layer) * (size_t)d->H + (size_t)head;
    return states + heads * (size_t)d->N * (size_t)d->N;
}

enum status cpu_embed(struct worker *w, const struct embed *a, struct error *e);
enum status cpu_shift(struct worker *w, const struct shift *a, struct error *e);
enum status cpu_gemm(struct worker *w, const struct gemm *a, int count, struct error *e);
enum status cpu_pool(struct worker *w, const struct pool *a, struct error *e);
extern const struct verbs6 cpu_rwkv6;
extern const struct verbs7 cpu_rwkv7;

#endif
