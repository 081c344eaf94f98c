/* RWKV-7's own verb on CUDA: the upper half of its low ranks (low.cu), then its delta rule (wkv.cu). */
#ifndef RWKVSTS_CUDA_RWKV7_H
#define RWKVSTS_CUDA_RWKV7_H

#include "verbs7.h"
#include "worker.h"

enum status cuda_wkv7(struct worker *w, const struct wkv7 *a, struct error *e);

/* low.cu: leaves low up in each low rank's `out`; what it is added to and its activation are wkv.cu's. `room` [T, C] in
 * is written. */
enum status low_ranks_up(struct worker *w, const struct wkv7 *a, void *room, struct error *e);

#endif
