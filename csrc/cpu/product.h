/* Products inside the verbs: inputs as a product reads them, and a few rows times a whole weight. */
#ifndef RWKVSTS_CPU_PRODUCT_H
#define RWKVSTS_CPU_PRODUCT_H

#include "rows.h"

/* Whether a float32 matrix of this pass is too large to wait in the caches for who reads it. */
bool goes_past(const struct worker *w, const void *out, int columns);

/* Rows row .. row + rows and columns column .. column + k of a matrix of in type with `stride` columns, for a product:
 * where they lie, if they lie as it reads them, else packed into `room`. */
struct input input_of(const struct worker *w, const void *in, size_t stride, size_t row, size_t column, int rows, int k,
                      void *room);

/* Rows row .. of `in`, a matrix with as many columns as the weight has inputs, times all of the weight. */
void multiply(struct worker *w, const struct weight *weight, const void *in, size_t row, struct rows rows,
              size_t out_row, const struct thread_scratch *s, const struct finish *finish);

#endif
