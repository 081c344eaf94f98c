/* The table of row kernels that an instruction set fills in, and the layouts that packing and kernels agree on.
 *
 * Every kernel works on rows or tiles, is single-threaded and allocates nothing. Its result for an element depends on
 * that element's inputs alone: tails run through the same vector code as the rest.
 *
 * Packed weights: panels of PANEL outputs, the last one filled up with zeros, K rounded up to k_step with zeros.
 *   F32   panel [K][PANEL]          float
 *   BF16  panel [K/2][PANEL][2]     pairs of neighbouring k, what VDPBF16PS and TDPBF16PS read
 * Packed inputs: tiles of tile_rows rows. What stands in absent rows reaches sums of absent rows only.
 *   PACKED_F32    tile [K][rows]        float
 *   PACKED_PAIRS  tile [K/2][rows][2]   bfloat16
 *   PACKED_TILES  tile [K/32][rows][32] bfloat16, AMX tile registers of 16 rows one after the other
 * Where all sizes allow, kernels that make inputs write them as PACKED_TILES at once ("tiled"), in plain rows elsewhere. */
#ifndef RWKVSTS_CPU_KERNELS_H
#define RWKVSTS_CPU_KERNELS_H

#include "../backend.h"

enum { PANEL = 32, TILED = 32 }; /* TILED: rows of a tile, and elements of a row that lie together */

enum input_layout { PACKED_F32, PACKED_PAIRS, PACKED_TILES };

/* c [m][PANEL] = (first ? 0 : c) + a [m, k] * w [k, PANEL], with k a multiple of k_step, summed in ascending k.
 * For a kernel that outruns memory: `soon` are weights of calls to come, this call's share, to be fetched meanwhile. */
struct tile {
    int m, k;
    const void *a, *w;
    float *c;
    bool first;
    const char *soon;
    size_t soon_bytes;
};
typedef void tile_kernel(const struct tile *t);

/* Where element (row, column) of a matrix of k columns lies. Runs of 16 columns from a multiple of 16 lie together. */
static inline size_t in_place(bool tiled, size_t k, size_t row, size_t column) {
    if (!tiled) return row * k + column;
    return row / TILED * TILED * k + column / TILED * TILED * TILED + row % TILED * TILED + column % TILED;
}

struct tile_product {
    enum input_layout layout;
    int tile_rows, k_step;
    int k_block; /* inputs that all panels are multiplied with before the next: a block of rows in the second-level cache */
    int k_chunk; /* inputs that all tiles of rows are multiplied with before the next: a panel in the first-level cache */
    tile_kernel *run[2]; /* by weights: F32, BF16; NULL where weights are never packed so */
    void (*widen)(int k, const void *pairs, float *panel); /* a panel of BF16 as one of F32; NULL where run[0] is */
    void (*enter)(void), (*leave)(void);                   /* around the calls of a block; may be NULL */
};

/* What happens to a tile of y while it is in the first-level cache: a product's epilogue, or what a verb does inside. */
enum finish_kind { FINISH_LERP = LOW_SIGMOID + 1, FINISH_DECAY, FINISH_DECAY7, FINISH_RATE, FINISH_BLEND };

struct finish {
    int kind;         /* enum epilogue or enum finish_kind */
    bool bf16, tiled; /* whether in type is bfloat16; whether out is of in type and tiled */
    void *out;
    size_t stride; /* columns of out and gate */
    bool past;     /* float32 that is only written goes past the caches; stride is a multiple of 16, out of 64 bytes */
    const float *gate;   /* GATE_ADD; BLEND: v_first */
    const float *a, *d;  /* LERP: out = a + d (vector + y) */
    size_t shift_stride; /* elements between rows of a and d */
    const float *vector; /* LERP: mix; DECAY: time_decay; DECAY7, RATE, BLEND: w0, a0, v0 */
};

/* Rows row .. row+m of columns column .. column+n of out, from a tile [m][PANEL]. */
typedef void finish_kernel(const struct finish *f, int m, int n, size_t row, size_t column, const float *tile);

/* One head of one piece of a sequence: T rows. Pointers are at the head's first column of the piece's first row. */
struct wkv_head {
    int T, N;
    size_t stride; /* C */
    const float *r, *k, *v, *g, *decay;
    const float *u, *weight, *bias; /* [N] */
    float *state;                   /* [N (key)][wkv_padded(N) (value)], read and left */
    bool bf16, tiled;
    void *out;          /* [.., stride] in type: the whole matrix, of which this head writes */
    size_t row, column; /* from here */
};

/* The same for RWKV-7, whose decay and rate are ready and whose state's rows are keys here too. */
struct wkv7_head {
    int T, N;
    size_t stride; /* C */
    const float *r, *k, *v, *decay, *rate, *gate;
    const float *k_k, *k_a, *r_k, *weight, *bias; /* [N] */
    float *state;                                 /* [N (key)][wkv_padded(N) (value)], read and left */
    bool bf16, tiled;
    void *out;          /* [.., stride] in type: the whole matrix, of which this head writes */
    size_t row, column; /* from here */
};

struct mixed { /* [.., n] in type */
    void *p;
    bool bf16, tiled;
};

struct row_kernels {
    void (*layer_norm)(int n, const float *x, const float *weight, const float *bias, float *out);
    /* d = previous - a; row of mixed = a + d * maa */
    void (*difference)(int n, const float *previous, const float *a, float *d);
    void (*lerp)(int n, const float *a, const float *d, const float *maa, const struct mixed *mixed, size_t row);
    finish_kernel *finish;
    void (*wkv)(const struct wkv_head *h);
    void (*wkv7)(const struct wkv7_head *h);
    void (*add_scaled)(int n, float scale, const float *x, float *sum); /* sum += scale * x */
    void (*maximum)(int n, const float *x, float *most);
};

enum { MAX_HEAD = 1024, WKV_ALIGN = 16 };
static inline int wkv_padded(int N) {
    return (N + WKV_ALIGN - 1) / WKV_ALIGN * WKV_ALIGN;
}

/* Each instruction set overwrites what it does better, from the portable table upward. */
struct kernels {
    struct row_kernels rows;
    struct tile_product f32, bf16; /* by in type */
};
void kernels_portable(struct kernels *k);
#if defined(__x86_64__)
void kernels_avx2(struct kernels *k);
void kernels_avx512(struct kernels *k);
void kernels_avx512bf16(struct kernels *k);
void kernels_amx(struct kernels *k);
#endif

#endif
