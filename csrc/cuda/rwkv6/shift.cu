/* RWKV-6's token shift: the first mix, its low rank down, five lerps up. */
#include "product/product.h"
#include "rwkv6/rwkv6.h"

static enum status first_mix(struct worker *w, const struct shift6 *a, struct error *e) {
    struct shift shift = {};
    shift.layer = a->layer;
    shift.mixes = 1;
    shift.x = a->x;
    shift.ln = a->ln1;
    shift.past = a->past;
    shift.mix[0] = a->maa_x;
    shift.mixed[0] = w->temp;
    return shift_with_stats(w, &shift, e);
}

static enum status low_rank_down(struct worker *w, const struct shift6 *a, struct error *e) {
    struct gemm down = {};
    down.w = a->w1;
    down.in = w->temp;
    down.epilogue = LOW_TANH;
    down.out = w->low;
    return cuda_gemm(w, &down, 1, e);
}

enum status cuda_shift6(struct worker *w, const struct shift6 *a, struct error *e) {
    const struct device *dev = w->dev;
    const size_t C = (size_t)dev->dims.C;
    struct up_args up = {};
    TRY(first_mix(w, a, e));
    TRY(low_rank_down(w, a, e));
    up_weight(w, a->w2, &up);
    up.low = w->low;
    up.x = a->x;
    up.weight = vector_of(a->ln1.weight);
    up.bias = vector_of(a->ln1.bias);
    up.stats = w->stats;
    up.slots = a->past + (size_t)a->layer * C;
    up.slot_stride = (size_t)dev->dims.L * C;
    for (int j = 0; j < MIXES6; j++) {
        up.maa[j] = vector_of(a->maa[j]);
        up.mixed[j] = a->mixed[j];
    }
    return route_lerps(&dev->gpu, dev->in, dev->dims.C, up.k) == LERP_ROWS ? lerp_run(w, &up, e) : up_lerps(w, &up, e);
}
