/* The embedding: x = LN0(table[ids]), a block a row. */
#include "rows/row.cuh"

struct embed_args {
    const int *T, *ids;
    const void *table;
    enum dtype dtype;
    const float *weight, *bias;
    float *x;
    int C;
    float inverse; /* 1 / C */
};

template <int Q> static __global__ void __launch_bounds__(OWNERS) embed_rows(const struct embed_args a) {
    constexpr int TH = OWNERS;
    __shared__ sums<1> room;
    int t = blockIdx.x;
    let_next_kernel_start();
    wait_for_kernels_before();
    if (t >= *a.T) return;
    size_t from = (size_t)a.ids[t] * a.C;
    row<Q, TH> r;
    float2 stats;
    EACH_GROUP(i) {
        size_t at = from + deal<Q, TH>::first() + deal<Q, TH>::offset(i);
        r.a[i] = !deal<Q, TH>::has(i, a.C) ? make_float4(0, 0, 0, 0)
                 : a.dtype == F32          ? load4((const float *)a.table + at)
                 : a.dtype == F16          ? load4((const half_t *)a.table + at)
                                           : load4((const bf16 *)a.table + at);
    }
    row_stats<Q, TH, 1>(&stats, &r, a.C, a.inverse, room);
    normalise_row(r, stats, a.weight, a.bias, a.C);
    store_row(r, a.x + (size_t)t * a.C, a.C);
}

struct embed_launch {
    struct worker *w;
    struct embed_args args;
    template <int Q> void run() const {
        launch_early(overlaps(w), w->stream, embed_rows<Q>, dim3((unsigned)w->grid.T), OWNERS, 0, args);
    }
};

enum status cuda_embed(struct worker *w, const struct embed *a, struct error *e) {
    struct embed_args args = {
        w->meta.head,           w->meta.ids, a->table->data, w->dev->table_dtype,         vector_of(a->ln0.weight),
        vector_of(a->ln0.bias), a->x,        w->dev->dims.C, 1.0f / (float)w->dev->dims.C};
    for_columns(args.C, embed_launch{w, args});
    return LAUNCHED(w, "the embedding", e);
}
