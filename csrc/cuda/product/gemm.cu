/* The verb gemm: of several products, those that go one way share a launch.
 *
 * All ways give a row the same bits, which choose.cu has checked on this device. */
#include "launch.cuh"
#include "product/product.h"

#include <string.h>

/* The plan that was made for about so many rows. */
static int size_for(const struct plan *plan, int rows) {
    int i = 0;
    while (i + 1 < SIZES && rows > plan->rows[i] * 7 / 5) i++;
    return i;
}

static const struct plan *plan_of(const struct device *dev, const struct gemm *a) {
    const enum epilogue epilogue = written_as(a->epilogue);
    const bool scaled = a->of_squares && dev->in == F16;
    for (int i = 0; i < dev->plan_count; i++) {
        const struct product_kind *kind = &dev->plans[i].kind;
        if (kind->n == a->w->n && kind->k == a->w->k && kind->epilogue == epilogue && kind->of_squares == scaled)
            return &dev->plans[i];
    }
    return NULL;
}

/* In one launch; what this shape does not allow goes by itself. */
static enum status run_few(struct device *dev, const struct queue *q, const struct plan *const *plans,
                           const struct product *p, int count, struct error *e) {
    struct product together[MOST_PRODUCTS];
    int n = 0;
    enum kernel way = BY_FEW_ROWS;
    for (int i = 0; i < count; i++) {
        if (plans[i]->few) {
            way = route_product(&dev->gpu, dev->in, &plans[i]->kind, true);
            together[n++] = p[i];
        } else {
            TRY(lt_product(q, plans[i], &plans[i]->algorithm[size_for(plans[i], q->rows)], &p[i], e));
        }
    }
    if (!n) return OK;
    return cuda_status(dev, way == BY_STREAM ? stream_run(q, together, n) : few_run(q, together, n),
                       "products of few rows", e);
}

/* Neighbours that go by wgmma share a launch: its processors wait once for the last tiles. */
static enum status run_many(struct device *dev, const struct queue *q, const struct plan *const *plans,
                            const struct product *p, int count, struct error *e) {
    for (int i = 0, next; i < count; i = next) {
        const int size = size_for(plans[i], q->rows);
        next = i + 1;
        if (!plans[i]->wgmma[size]) {
            TRY(lt_product(q, plans[i], &plans[i]->algorithm[size], &p[i], e));
            continue;
        }
        while (next < count && plans[next]->wgmma[size_for(plans[next], q->rows)]) next++;
        TRY(cuda_status(dev, wgmma_run(q, &p[i], next - i), "products of many rows", e));
    }
    return OK;
}

enum status cuda_gemm(struct worker *w, const struct gemm *a, int count, struct error *e) {
    struct device *dev = w->dev;
    struct product p[MOST_PRODUCTS];
    const struct plan *plans[MOST_PRODUCTS];
    const struct queue q = {dev, w->stream, w->meta.head, w->grid.T, w->temp, overlaps(w)};
    if (count > MOST_PRODUCTS)
        return fail(e, BAD_INPUT, "%d products at a time: expected at most %d", count, MOST_PRODUCTS);
    for (int i = 0; i < count; i++) {
        plans[i] = plan_of(dev, &a[i]);
        if (!plans[i])
            return fail(e, BAD_INPUT,
                        "a product of %d outputs from %d inputs is of no kind that this device was opened for",
                        a[i].w->n, a[i].w->k);
        p[i] =
            product{a[i].w->data,         a[i].in, a[i].out, a[i].gate, a[i].w->n, a[i].w->k, plans[i]->kind.epilogue,
                    plans[i]->shape.alpha};
    }
    TRY(route_is_few(q.rows) ? run_few(dev, &q, plans, p, count, e) : run_many(dev, &q, plans, p, count, e));
    return LAUNCHED(w, "a product", e);
}
