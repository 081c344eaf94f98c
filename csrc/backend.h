/* The seam between a pass and a device: a table of verbs, one argument struct each.
 *
 * A verb is a step of the forward pass, not tensor algebra: a backend may fuse everything inside one. The verbs here serve
 * any RWKV; those of one architecture are in verbs6.h and its like. Rules that every backend keeps:
 *   - Same text, same bits: what a verb writes to a row depends on that row's own sequence alone, never on T, S, the
 *     neighbours, their order or the number of threads. Every reduction has one declared order.
 *   - x, norms, decay, wkv state and pooling are single precision everywhere.
 *   - Verbs queue or run; only finish() promises results. They allocate nothing.
 *   - After a verb has failed, or a run was stopped inside a pass, the only call that follows is worker_close.
 *
 * Dimensions: T rows of this pass, S sequences, C embedding = H heads * N head size, F feed-forward, L blocks loaded,
 * V vocabulary. Matrices are row-major. Three kinds of matrix pass from verb to verb:
 *   in    what products read: float32, bfloat16 or half. Its elements lie in an order of the backend's own, in room for
 *         whole groups of IN_ROWS rows.
 *   out   what products write and wkv reads: float32 or bfloat16.
 *   low   a low rank between its two products: 4 bytes an element, in a form of the backend's own. */
#ifndef RWKVSTS_BACKEND_H
#define RWKVSTS_BACKEND_H

#include "base.h"

enum { IN_ROWS = 32, LOW_BYTES = 4, MOST_RANKS = 4, MOST_MIXES = 6, MOST_PRODUCTS = 8 };

struct dims {
    int L, C, H, N, F, V;
    int rank[MOST_RANKS]; /* of the low-rank terms, in the architecture's own order; 0: not used */
};

struct device; /* one opened device: owns packed weights, immutable once the model is sealed */
struct worker; /* what one call needs of it: its threads or stream, scratch, captured graphs */

enum role {
    VECTOR,    /* [n]       kept in float32 */
    TABLE,     /* [V, C]    rows are gathered */
    LINEAR,    /* [n, k]    y = x W^T */
    LORA_DOWN, /* [k, n]    y = x W */
    LORA_UP,   /* [g, k, n] y_g = x_g W_g; g = 1 when the array has two dimensions */
};

/* A weight as its backend packed it: g groups of n outputs from k inputs. */
struct weight {
    void *data;
    size_t bytes;
    enum role role;
    int g, n, k;
    unsigned char given; /* a tensor was put here, or is being put */
};

struct norm {
    const struct weight *weight, *bias; /* [C] each */
};

/* The past of sequences: att_x [n, L, C], ffn_x [n, L, C], wkv [n, L, H, N, N], float32. On a device n counts slots. */
struct state {
    float *att_x, *ffn_x, *wkv;
};

enum pooling { POOL_MEAN, POOL_LAST, POOL_WEIGHTED, POOL_MAX };

/* The ragged batch of one pass: consecutive pieces of sequences, packed without padding. Piece s is rows
 * start[s] .. start[s+1]. Only the first piece can continue an earlier pass, and only the last can go on in a later one,
 * cut at a multiple of the grain. */
struct pass {
    int T, S, finished;       /* finished: pieces that end their sequence, S or S - 1 */
    const int32_t *ids;       /* [T] */
    const int32_t *start;     /* [S+1] */
    const int32_t *before;    /* [S] tokens of the sequence that earlier passes have seen */
    const int32_t *total;     /* [S] tokens of the whole sequence */
    const int32_t *skip;      /* [S] first tokens of the sequence that are not pooled, fewer than total */
    const int32_t *from, *to; /* [S] state slot to start from, to leave the state in; -1: zeros, nowhere */
    enum pooling pooling;
    int top;               /* blocks that this pass runs */
    int columns;           /* pooled layers */
    const int32_t *layers; /* [columns] which, for recognising a pass seen before */
    float *pooled;         /* host, [finished, columns, C]; valid after finish() */
};

/* ---- the verbs of any RWKV, in the order of the equations ---------------------------------------------------- */

struct embed { /* x = LN0(table[ids]) */
    const struct weight *table;
    struct norm ln0;
    float *x; /* [T, C] */
};

struct shift { /* a = LN(x); d = prev(a) - a; mixed_j = a + d mix_j, for j below `mixes` */
    int layer, mixes;
    const float *x; /* [T, C] */
    struct norm ln;
    float *past;                          /* [slot, L, C] the state's rows of a: prev of a sequence's first row */
    const struct weight *mix[MOST_MIXES]; /* [C] each */
    void *mixed[MOST_MIXES];              /* [T, C] in */
};

enum epilogue {
    STORE,       /* y                 out */
    SILU,        /* y sigmoid(y)      out */
    SIGMOID,     /* sigmoid(y)        out */
    RELU2,       /* max(y, 0)^2       in: it feeds the next product */
    ADD,         /* x += y            float32 */
    GATE_ADD,    /* x += gate * y     float32 */
    LOW,         /* y                 low */
    LOW_TANH,    /* tanh(y)           low */
    LOW_SIGMOID, /* sigmoid(y)        low */
};

/* y = in W^T, then the epilogue. Products of one call are independent; a backend may run them in one launch. */
struct gemm {
    const struct weight *w; /* LINEAR or LORA_DOWN: n outputs, k inputs */
    const void *in;         /* [T, k] in */
    enum epilogue epilogue;
    void *out;        /* [T, n] */
    const void *gate; /* [T, n] out, for GATE_ADD: what SIGMOID wrote */
    bool of_squares;  /* `in` is what RELU2 wrote, which half keeps scaled down */
};

/* What a device plans a product by: every product of a model is of a kind that open() was told. */
struct product_kind {
    int n, k;
    enum epilogue epilogue;
    bool of_squares;
};

struct pool { /* adds the rows of x, or of LN(x), to their sequences' pooled rows */
    const float *x;
    const struct norm *ln; /* NULL: the stream itself */
    int column;
};

/* ---- the table ------------------------------------------------------------------------------------------------ */

struct device_options {
    enum dtype dtype;
    int threads;     /* CPU: at least 1 */
    const char *isa; /* CPU: NULL chooses the best; a name of cpu_isa_names forces one */
    int ordinal;     /* CUDA: which device */
    size_t budget;   /* bytes of device memory to stay within; 0: what is free */
};

struct verbs6;
struct verbs7;

struct backend {
    /* Opening fails where the device, the dtype or the instruction set is not to be had. The meter counts all
     * device bytes, weights and workspaces. dims.L is the number of blocks that will be loaded. */
    enum status (*open)(const struct dims *dims, const struct product_kind *products, int count,
                        const struct device_options *options, struct meter *meter, struct device **out,
                        struct error *e);
    void (*close)(struct device *dev);
    const char *(*describe)(const struct device *dev); /* "cpu avx512bf16, 2 threads" */

    /* Packs one tensor into the order the kernels read; checked finite and of the right shape before. */
    enum status (*pack)(struct device *dev, enum role role, const struct array *a, struct weight *out, struct error *e);
    void (*unpack)(struct device *dev, struct weight *w); /* frees */

    /* A worker for passes of at most `rows` tokens in `sequences` pieces, with at most `columns` pooled layers. */
    enum status (*worker_open)(struct device *dev, int rows, int sequences, int columns, struct worker **out,
                               struct error *e);
    void (*worker_close)(struct worker *w);
    /* Rows a pass should have when the caller does not say, given what a session allocates for each and besides. */
    int (*rows)(struct device *dev, size_t bytes_per_row, size_t bytes_fixed);
    /* A pass may cut a sequence only after a multiple of so many of its tokens, counted from where this run starts it: what
     * is computed together does not change with the pass then. A pass has room for so many. A text that goes on from a
     * given state counts from there: it has the bits of the whole text where what came before was a multiple, and agrees
     * to rounding elsewhere. */
    int (*grain)(const struct device *dev);
    size_t (*in_bytes)(const struct device *dev), (*out_bytes)(const struct device *dev); /* element sizes */

    enum status (*alloc)(struct worker *w, size_t bytes, void **out, struct error *e); /* freed with the worker */
    enum status (*upload)(struct worker *w, void *device, const void *host, size_t bytes, struct error *e);
    /* Waits for what is queued. */
    enum status (*download)(struct worker *w, void *host, const void *device, size_t bytes, struct error *e);

    /* A pass: begin, the verbs, end. *replay: this very pass shape was recorded before, skip the verbs. */
    enum status (*begin)(struct worker *w, const struct pass *pass, bool *replay, struct error *e);
    enum status (*end)(struct worker *w, struct error *e);
    /* All passes are done, all `pooled` written; *finite: none of it since the last finish is NaN or infinite. */
    enum status (*finish)(struct worker *w, bool *finite, struct error *e);

    enum status (*embed)(struct worker *w, const struct embed *a, struct error *e);
    enum status (*shift)(struct worker *w, const struct shift *a, struct error *e);
    enum status (*gemm)(struct worker *w, const struct gemm *a, int count, struct error *e); /* at most MOST_PRODUCTS */
    enum status (*pool)(struct worker *w, const struct pool *a, struct error *e);

    /* What one architecture asks for besides; NULL where this backend does not run it. */
    const struct verbs6 *rwkv6;
    const struct verbs7 *rwkv7;
};

#define LN_EPS 1e-5f
#define GROUP_NORM_EPS 64e-5f /* 1e-5 * head_size_divisor^2, whatever the head size */

const struct backend *cpu_backend(void);

/* The CUDA backend is a shared library of its own that exports this one symbol. */
#define CUDA_BACKEND_ABI 4
#define CUDA_BACKEND_SYMBOL "rwkvsts_cuda_backend"
typedef const struct backend *(*cuda_backend_entry)(int abi);

#endif
