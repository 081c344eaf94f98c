/* The upper half of RWKV-7's low ranks: what the lower products left is activated and rounded to `in` type, in one launch
 * for all of them, and goes up by the products that all weights go by. */
#include "elements.cuh"
#include "launch.cuh"
#include "product/product.h"
#include "rwkv7/rwkv7.h"

enum { THREADS = 256 };

struct activate_args {
    struct meta meta;
    const float *low[MOST_RANKS]; /* [T, R] as the product left it */
    void *out[MOST_RANKS];        /* [T, R] in */
    int R[MOST_RANKS];
};

static __device__ __forceinline__ float activated(int which, float a) {
    return which == DECAY_LOW ? tanh_fast(a) : which == GATE_LOW ? sigmoid(a) : a;
}

/* A row of the grid for each low rank. */
template <typename In> static __global__ void __launch_bounds__(THREADS) activate_low(const struct activate_args a) {
    let_next_kernel_start();
    wait_for_kernels_before();
    int which = blockIdx.y;
    size_t count = (size_t)a.meta.head[0] * a.R[which];
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += (size_t)gridDim.x * THREADS)
        ((In *)a.out[which])[i] = from_float<In>(activated(which, a.low[which][i]));
}

static enum status activate(struct worker *w, const struct activate_args *a, struct error *e) {
    const dim3 grid((unsigned)pieces_of(w->grid.T, 4), MOST_RANKS);
    auto kernel = w->dev->in == BF16  ? activate_low<bf16>
                  : w->dev->in == F16 ? activate_low<half_t>
                                      : activate_low<float>;
    launch_early(overlaps(w), w->stream, kernel, grid, THREADS, 0, *a);
    return LAUNCHED(w, "the low ranks", e);
}

enum status low_ranks_up(struct worker *w, const struct wkv7 *a, void *room, struct error *e) {
    struct activate_args args = {};
    struct gemm up[MOST_RANKS] = {};
    size_t used = 0, rows = (size_t)pieces_of(w->grid.T, IN_ROWS) * IN_ROWS;
    int count = 0;
    args.meta = w->meta;
    for (int i = 0; i < MOST_RANKS; i++) {
        const struct low_rank *l = &a->low[i];
        if (i == VALUE_LOW && !a->layer) continue;
        args.low[i] = (const float *)l->low;
        args.out[i] = (char *)room + used;
        args.R[i] = l->up->k;
        used += rows * (size_t)l->up->k * dtype_bytes(w->dev->in);
        up[count].w = l->up;
        up[count].in = args.out[i];
        up[count].epilogue = i == DECAY_LOW ? LOW : STORE; /* the decay's sum stays in float32 */
        up[count++].out = l->out;
    }
    TRY(activate(w, &args, e));
    return cuda_gemm(w, up, count, e);
}
