/* What verbs over rows share: how rows are shared out, and the norm with its token shift. */
#ifndef RWKVSTS_CPU_ROWS_H
#define RWKVSTS_CPU_ROWS_H

#include "worker.h"

/* Rows first .. first + count of the pass. */
struct rows {
    int first, count;
};

struct rows rows_of(const struct worker *w, struct span span);
/* Runs work over all rows of the pass, at most MOST_ROWS at a time. */
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
 * Where another thread may own the row before, it is normalised anew: cheaper than waiting for it, and the same bits. */
void normal_and_difference(const struct worker *w, const struct token_shift *s, struct rows rows, float *normal,
                           float *d);

/* Leaves the last normalised row of every piece that is asked for in its slot. */
void save_past(const struct worker *w, const struct token_shift *s);

#endif
