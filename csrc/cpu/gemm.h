/* Packing of weights and inputs, and the product of a block of rows with a range of panels. Single-threaded: who splits
 * the work calls gemm_block for each part, and no part ever shares a sum with another. */
#ifndef RWKVSTS_CPU_GEMM_H
#define RWKVSTS_CPU_GEMM_H

#include "kernels.h"

#include <stdatomic.h>

/* What weight.data points to for a weight that enters products. The numbers lie apart: 64 bytes in front of them would
 * cost most matrices a huge page, as their sizes are multiples of one. */
struct packed {
    enum dtype dtype;
    int g, n, k;          /* groups, outputs, inputs */
    int k_padded, panels; /* a group's */
    size_t panel_bytes;
    unsigned char *data;
};

enum { ROW_BLOCK = 256, PANEL_BLOCK = 16, FEW_ROWS = 64 };

/* Packs a LINEAR, LORA_DOWN or LORA_UP array for a device whose products read `in` type. bfloat16 weights stay bfloat16
 * even under float32 inputs: widened in the kernel they are the same numbers at half the traffic. */
enum status gemm_pack_weight(const struct tile_product *product, enum dtype in, enum role role, const struct array *a,
                             struct meter *meter, struct weight *out, struct error *e);

void gemm_unpack_weight(struct meter *meter, struct weight *w);

static inline const struct packed *packed_of(const struct weight *w) {
    return w->data;
}

/* Bytes of `rows` rows of k inputs once packed. */
size_t gemm_input_bytes(const struct tile_product *product, int rows, int k);

/* Packs rows of k elements of in type, `stride` elements apart. */
void gemm_pack_input(const struct tile_product *product, bool bf16, const void *in, size_t stride, int rows, int k,
                     void *out);

/* Packed rows, and the bytes from one tile of them to the next. */
struct input {
    const void *p;
    size_t tile_bytes;
};

/* Scratch of gemm_block for that many rows. */
size_t gemm_scratch_bytes(const struct tile_product *product, int rows);

/* Around the calls of gemm_block: a thread's AMX state is set up and given up. */
static inline void gemm_enter(const struct tile_product *product) {
    if (product->enter) product->enter();
}

static inline void gemm_leave(const struct tile_product *product) {
    if (product->leave) product->leave();
    atomic_thread_fence(memory_order_seq_cst); /* what was written past the caches is there for other threads */
}

/* Panels panel .. panel + panels of group g, for the rows of `in`: rows row .. row + rows of the output. */
struct gemm_part {
    const struct packed *weight;
    int g, panel, panels;
    struct input in;
    int rows;
    size_t row;
};
void gemm_block(const struct tile_product *product, finish_kernel *apply, const struct gemm_part *part,
                const struct finish *finish, float *scratch);

#endif
