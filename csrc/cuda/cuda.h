/* What the rooms of the CUDA backend share: the opened device, the worker, errors.
 *
 * One device, one stream a worker; everything a verb does is queued on that stream, sized by `grid` and guarded by the
 * T and S that lie in device memory, so that a recorded pass serves every pass of its bucket. Buffers that pass from
 * verb to verb hold what suits the reader: SILU and SIGMOID are applied where their value is read, decay lies as the
 * exponent's argument, or as its low rank where wkv makes it of that. `in` is what products read, `out` what they write:
 * bfloat16 both, or half and float, or float. */
#ifndef RWKVSTS_CUDA_H
#define RWKVSTS_CUDA_H

#include <cuda_runtime.h>

#include "backend.h"
#include "lt.h"

enum { MOST_RANK = 128, MOST_SHIFT_RANK = 64 };

/* The kinds of product a model has; each has its one pinned algorithm. */
enum plan_kind { PLAN_HEADS, PLAN_OUTPUT, PLAN_KEY, PLAN_VALUE, PLAN_SHIFT_DOWN, PLAN_DECAY_DOWN, PLANS };

struct device {
    struct dims dims;
    enum dtype in, out;
    struct meter *meter;
    size_t budget;
    long pid; /* a CUDA context does not survive a fork */
    int sms, major, minor;
    char name[200];
    struct lt lt;
    struct plan plans[PLANS];
    void *encode;    /* the driver's cuTensorMapEncodeTiled; NULL: not Hopper, or not bfloat16 */
    bool few[PLANS]; /* the kernel for few rows gives the same bits as the plan here */
    bool waits;      /* kernels hold code that waits for those in front, as launch.cuh wants */
    enum dtype table_dtype;
    bool table_on_host;
    bool dead; /* an error that poisons the context was seen */
    char why[300];
};

/* Where the numbers of the pass lie in device memory. */
struct meta {
    const int *head;  /* T, S, turn */
    const int *ids;   /* [T] */
    const int *prev;  /* [T] row before in the same sequence, or NO_PAST, or a slot: FROM_SLOT - slot */
    const int *save;  /* [T] slot to leave this row in, or -1 */
    const int *start; /* [S+1] */
    const int *before, *total, *from, *to; /* [S] */
};
enum { NO_PAST = -1, FROM_SLOT = -2, HEAD_INTS = 4 };

enum { FLIGHTS = 2, RECORDS = 32 };

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

/* out = in w^T and what follows. */
struct product {
    const void *w;  /* [n, k] in type */
    const void *in; /* [T, k] in type */
    void *out;
    const void *gate;
    int n, k;
    int kind; /* enum epilogue, or STORE_FLOAT */
};
enum { STORE_FLOAT = 100 }; /* for low ranks: the reader applies tanh */
enum { HEADS = 4 };         /* products that read the five mixes, but for the decay's */

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
        int T, S;
    } grid; /* what launches are sized for: the pass's own numbers, or its bucket's */
    struct meta meta;
    int *numbers;       /* device, what meta points into */
    void *temp;         /* [rows, C] in or out type: the mixed input of time_shift, the product of GATE_ADD */
    float *low;         /* [rows, max(5R, D)] */
    struct decay decay; /* what wkv makes for itself out of low, where chunk_fits */
    float2 *stats;      /* [rows] mean, 1 / deviation */
    float *pooled;      /* [sequences, columns, C] */
    float *carry; /* [2, columns, C] pooled so far of the sequence that goes on: head[2] is read, the other left */
    struct flight flights[FLIGHTS];
    int turn;
    bool pool_waits; /* the pooled rows of the pass before may still be leaving */
    cudaEvent_t computed;
    struct record records[RECORDS], *record;
    bool capturing;
    struct product held[HEADS]; /* r k v g of a pass of few rows: the decay's product goes with them */
    int held_count;
    unsigned clock;
};

/* Turns a CUDA status into ours: out of memory leaves the device usable, anything else marks it dead. */
enum status cuda_status(struct device *dev, cudaError_t status, const char *doing, struct error *e);
enum status device_usable(const struct device *dev, struct error *e);
enum status device_alloc(struct device *dev, size_t bytes, void **out, struct error *e);
void device_free(struct device *dev, void *p, size_t bytes);
#define CUDA_TRY(dev, call, doing, e) TRY(cuda_status((dev), (call), (doing), (e)))
#define LAUNCHED(w, what, e) cuda_status((w)->dev, cudaGetLastError(), (what), (e))

static inline int pieces(int n, int size) {
    return (n + size - 1) / size;
}
static inline const float *vector_of(const struct weight *w) {
    return (const float *)w->data;
}

/* worker.cu */
enum status cuda_worker_open(struct device *dev, int rows, int sequences, int columns, struct worker **out,
                             struct error *e);
void cuda_worker_close(struct worker *w);
size_t cuda_worker_row_bytes(const struct device *dev, int columns);
enum status cuda_alloc(struct worker *w, size_t bytes, void **out, struct error *e);
enum status cuda_upload(struct worker *w, void *device, const void *host, size_t bytes, struct error *e);
enum status cuda_download(struct worker *w, void *host, const void *device, size_t bytes, struct error *e);
enum status cuda_begin(struct worker *w, const struct pass *pass, bool *replay, struct error *e);
enum status cuda_end(struct worker *w, struct error *e);
enum status cuda_finish(struct worker *w, struct error *e);

/* pack.cu */
enum status cuda_pack(struct device *dev, enum role role, const struct array *a, struct weight *out, struct error *e);
void cuda_unpack(struct device *dev, struct weight *w);

/* product.cu */
enum status products_open(struct device *dev, struct error *e);
enum status product_run(struct worker *w, enum plan_kind plan, const struct product *p, int count, struct error *e);
/* The heads' products, if they wait for this one that only the same mixes feed, go with it in one launch. */
enum status product_join(struct worker *w, enum plan_kind plan, const struct product *p, struct error *e);
enum status cuda_gemm(struct worker *w, const struct gemm *a, int count, struct error *e);

/* few.cu */
enum { FEW_ROWS = 256, MOST_FEW = 5 };
bool few_fits(const struct device *dev, const struct product *p);
/* `early`: the kernel may start before the one in front of it has ended. */
cudaError_t few_run(const struct device *dev, cudaStream_t stream, bool early, const int *T, int grid_rows,
                    const struct product *p, int count);

/* stream.cu: the same on Hopper */
void *stream_encoder(void);
bool stream_fits(const struct device *dev, const struct product *p, int count);
cudaError_t stream_run(const struct device *dev, cudaStream_t stream, bool early, const int *T, int grid_rows,
                       const struct product *p, int count);

/* hopper.cu: many rows on Hopper */
enum { CUTS = 3 };
bool hopper_fits(const struct device *dev, int cut, const struct product *p);
cudaError_t hopper_run(const struct device *dev, cudaStream_t stream, int cut, int T, const struct product *p,
                       int count); /* at most MOST_FEW; T as the host knows it: the bucket's in a recorded pass */

/* rows.cu */
enum status cuda_embed(struct worker *w, const struct embed *a, struct error *e);
enum status cuda_channel_shift(struct worker *w, const struct channel_shift *a, struct error *e);
enum status cuda_pool(struct worker *w, const struct pool *a, struct error *e);
enum status shift_first(struct worker *w, const struct time_shift *a, struct error *e); /* temp = a + d maa_x, stats */

/* lerp.cu */
struct lerp_args {
    struct meta meta;
    const float *low; /* [T, 5 k] before tanh */
    const void *w;    /* [5, C, K] in type, k padded to K with zeros, ordered as pack.cu says */
    const float *x, *weight, *bias, *slots;
    const float2 *stats;
    size_t slot_stride;
    const float *maa[5];
    void *mixed[5];
    int k, C;
};
bool lerp_fits(const struct worker *w, const struct lerp_args *a, int K);
enum status lerp_run(struct worker *w, const struct lerp_args *a, int K, struct error *e);

/* lowrank.cu */
enum status cuda_time_shift(struct worker *w, const struct time_shift *a, struct error *e);
enum status cuda_decay(struct worker *w, const struct decay *a, struct error *e);

/* wkv.cu */
enum status cuda_wkv(struct worker *w, const struct wkv *a, struct error *e);
bool wkv_fits(int N);

/* wkv_chunk.cu: heads of 64 in bfloat16. `decay` leaves its low rank in w->low and itself in w->decay. */
enum { CHUNK_GRAIN = 64 };
bool chunk_fits(const struct device *dev);
enum status chunk_run(struct worker *w, const struct wkv *a, float *slots, size_t slot_stride, struct error *e);

#endif
