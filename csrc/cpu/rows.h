/* What verbs over rows share: how rows are cut into items, and the norm with its token shift. */
#ifndef RWKVSTS_CPU_ROWS_H
#define RWKVSTS_CPU_ROWS_H

#include "worker.h"

/* Rows first .. first + count of the pass, one item's share. */
struct rows {
    int first, count;
};

struct rows rows_of_item(const struct worker *w, int item);
/* Runs work over all rows of the pass, an item for each run of them. */
void run_rows(struct worker *w, team_work *work, void *context);

struct token_shift {
    const float *x;
    struct norm ln;
    float *past; /* [slot, L, C] */
    int layer;
};

/* Elements between rows of `normal` and `d` below. */
static inline size_t shift_stride(const struct worker *w) {
    return (size_t)w->dev->dims.C + SHIFT_PAD;
}

/* normal [1 + count, C] = the row before, then LN of the rows; d [count, C] = previous - this; rows shift_stride apart.
 * Where another item owns the row before, it is normalised anew: cheaper than waiting for it, and the same bits. */
void normal_and_difference(const struct worker *w, const struct token_shift *s, struct rows rows, float *normal,
                           float *d);

/* Leaves the last normalised row of every piece that is asked for in its slot. */
void save_past(const struct worker *w, const struct token_shift *s);

#endif
