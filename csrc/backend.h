/* The seam between the forward pass and a device: a table of verbs, one argument struct each.
 *
 * A verb is a step of RWKV-6, not a tensor algebra: a backend may fuse everything inside one, and rwkv6.c
 * never knows. Rules that every backend keeps:
 *   - Same text, same bits: what a verb writes to a row depends on that row's own sequence alone, never on T, S,
 *     the neighbours, their order or the number of threads. Every reduction has one declared order.
 *   - x, norms, decay, wkv state and pooling are single precision everywhere.
 *   - Verbs queue or run; only finish() promises results. They allocate nothing.
 *   - After a verb has failed, or a run was stopped inside a pass, the only call that follows is worker_close.
 *   - "in type" is what products read (float32, bfloat16 or half), "out type" what they write and wkv reads. Matrices of
 *     in type pass from verb to verb only: their elements lie in an order of the backend's own, in room for whole groups
 *     of IN_ROWS rows.
 *
 * Dimensions: T rows of this pass, S sequences, C embedding = H heads * N head size, F feed-forward, R and D the
 * ranks of the token-shift and decay low-rank terms, L blocks loaded, V vocabulary. Matrices are row-major. */
#ifndef RWKVSTS_BACKEND_H
#define RWKVSTS_BACKEND_H

#include "base.h"

enum { IN_ROWS = 32 };

struct dims {
    int L, C, H, N, F, R, D, V;
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

/* A weight as its backend packed it. g groups of n outputs from k inputs. */
struct weight {
    void *data;
    size_t bytes;
    enum role role;
    int g, n, k;
};

struct norm {
    const struct weight *weight, *bias; /* [C] each */
};

/* The ragged batch of one pass: consecutive pieces of sequences, packed without padding. Piece s is rows
 * start[s] .. start[s+1]. Only the first piece can continue an earlier pass and only the last go on in a later one, cut
 * at a multiple of the grain. */
enum pooling { POOL_MEAN, POOL_LAST, POOL_WEIGHTED, POOL_MAX };

struct pass {
    int T, S;
    const int32_t *ids;         /* [T] */
    const int32_t *start;       /* [S+1] */
    const int32_t *before;      /* [S] tokens of the sequence that earlier passes have seen */
    const int32_t *total;       /* [S] tokens of the whole sequence */
    const int32_t *from, *to;   /* [S] state slot to start from, to leave the state in; -1: zeros, nowhere */
    const float *att_x, *ffn_x; /* device: state slots [slot, L, C]; the same pointers in every pass of a session */
    const float *wkv;           /* [slot, L, H, N, N] (key, value) */
    enum pooling pooling;
    int top;               /* blocks that this pass runs */
    int columns;           /* pooled layers */
    const int32_t *layers; /* [columns] which, for recognising a pass seen before */
    float *pooled;         /* host, [finished sequences, columns, C]; valid after finish() */
};

/* ---- verbs, in the order of the equations ---------------------------------------------------------------- */

struct embed { /* x = LN0(table[ids]) */
    const struct weight *table;
    struct norm ln0;
    float *x; /* [T, C] */
};

struct time_shift { /* a = LN1(x); d = prev(a) - a; z = tanh((a + d maa_x) W1); mixed_j = a + d (maa_j + z_j W2_j) */
    int layer;
    const float *x; /* [T, C] */
    struct norm ln1;
    const struct weight *maa_x;   /* [C] */
    const struct weight *maa[5];  /* w k v r g, [C] each */
    const struct weight *w1, *w2; /* [C, 5R], [5, R, C] */
    void *mixed[5];               /* w k v r g, [T, C] in type */
};

enum epilogue {
    STORE,    /* out = y                 out type */
    SILU,     /* out = y sigmoid(y)      out type */
    SIGMOID,  /* out = sigmoid(y)        out type */
    RELU2,    /* out = max(y, 0)^2       in type: it feeds the next product */
    ADD,      /* x += y                  float32 */
    GATE_ADD, /* x += gate * y           float32 */
};

/* y = in W^T, then the epilogue */
struct gemm {
    const struct weight *w; /* LINEAR [n, k] */
    const void *in;         /* [T, k] in type */
    enum epilogue epilogue;
    void *out;        /* [T, n] */
    const void *gate; /* [T, n] out type, for GATE_ADD */
};

struct decay { /* decay = exp(-exp(time_decay + tanh(mixed_w W1) W2)), or what the same backend's wkv wants of it */
    const void *mixed_w;                       /* [T, C] in type */
    const struct weight *time_decay, *w1, *w2; /* [C], [C, D], [D, C] */
    float *decay;                              /* [T, C] */
};

struct wkv { /* per head: y = r (S + diag(u) k^T v); S = diag(decay) S + k^T v; out = (GroupNorm(y) w + b) * g */
    int layer;
    const void *r, *k, *v, *g; /* [T, C] out type */
    const float *decay;        /* [T, C] */
    const struct weight *u;    /* time_faaaa [H, N] */
    struct norm ln_x;
    void *out; /* [T, C] in type */
};

struct channel_shift { /* b = LN2(x); d = prev(b) - b; mixed_k = b + d maa_k; mixed_r = b + d maa_r */
    int layer;
    const float *x;
    struct norm ln2;
    const struct weight *maa_k, *maa_r;
    void *mixed_k, *mixed_r; /* [T, C] in type */
};

struct pool { /* adds the rows of x, or of LN(x), to their sequences' pooled rows */
    const float *x;
    const struct norm *ln; /* NULL: the stream itself */
    int column;
};

struct device_options {
    enum dtype dtype;
    int threads;     /* CPU: at least 1 */
    const char *isa; /* CPU: NULL chooses the best; "portable", "avx2", "avx512", "avx512bf16", "amx" force one */
    size_t budget;   /* bytes of device memory to stay within; 0: what is free */
};

struct backend {
    /* Opening fails where the device, the dtype or the instruction set is not to be had. The meter counts all
     * device bytes, weights and workspaces. dims.L is the number of blocks that will be loaded. */
    enum status (*open)(const struct dims *dims, const struct device_options *options, struct meter *meter,
                        struct device **out, struct error *e);
    void (*close)(struct device *dev);
    const char *(*describe)(const struct device *dev); /* "cpu avx512bf16, 2 threads" */

    /* Packs one tensor into the order the kernels read; checked finite and of the right shape before. */
    enum status (*pack)(struct device *dev, enum role role, const struct array *a, struct weight *out, struct error *e);
    void (*unpack)(struct device *dev, struct weight *w); /* frees */

    /* A worker for passes of at most `rows` tokens in `sequences` pieces, with at most `columns` pooled layers. */
    enum status (*worker_open)(struct device *dev, int rows, int sequences, int columns, struct worker **out,
                               struct error *e);
    void (*worker_close)(struct worker *w);
    /* Rows a pass should have when the caller does not say, given what rwkv6.c allocates for each and the pooled rows. */
    int (*rows)(struct device *dev, size_t bytes_per_row, size_t bytes_fixed);
    /* A pass may cut a sequence only after a multiple of so many of its tokens, counted from where this run starts it:
     * what is computed together does not change with the pass then. A pass has room for so many. A text that goes
     * on from a given state counts from there: it has the bits of the whole text where what came before was a multiple,
     * and agrees to rounding elsewhere. */
    int (*grain)(const struct device *dev);
    size_t (*in_bytes)(const struct device *dev), (*out_bytes)(const struct device *dev); /* element sizes */

    enum status (*alloc)(struct worker *w, size_t bytes, void **out, struct error *e); /* freed with the worker */
    enum status (*upload)(struct worker *w, void *device, const void *host, size_t bytes, struct error *e);
    /* Waits for what is queued. */
    enum status (*download)(struct worker *w, void *host, const void *device, size_t bytes, struct error *e);

    /* A pass: begin, the verbs, end. *replay: this very pass shape was recorded before, skip the verbs. */
    enum status (*begin)(struct worker *w, const struct pass *pass, bool *replay, struct error *e);
    enum status (*end)(struct worker *w, struct error *e);
    enum status (*finish)(struct worker *w, struct error *e); /* all passes done, all `pooled` written */

    enum status (*embed)(struct worker *w, const struct embed *a, struct error *e);
    enum status (*time_shift)(struct worker *w, const struct time_shift *a, struct error *e);
    enum status (*gemm)(struct worker *w, const struct gemm *a, int count, struct error *e); /* independent products */
    enum status (*decay)(struct worker *w, const struct decay *a, struct error *e);
    enum status (*wkv)(struct worker *w, const struct wkv *a, struct error *e);
    enum status (*channel_shift)(struct worker *w, const struct channel_shift *a, struct error *e);
    enum status (*pool)(struct worker *w, const struct pool *a, struct error *e);
};

#define LN_EPS 1e-5f
#define GROUP_NORM_EPS 64e-5f /* 1e-5 * head_size_divisor^2, whatever the head size */

const struct backend *cpu_backend(void);

/* The CUDA backend is a shared library of its own that exports this one symbol. */
#define CUDA_BACKEND_ABI 2
#define CUDA_BACKEND_SYMBOL "rwkvsts_cuda_backend"
typedef const struct backend *(*cuda_backend_entry)(int abi);

#endif
