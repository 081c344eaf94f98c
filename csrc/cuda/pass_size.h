/* Arithmetic of the host alone: how many rows a pass takes, which bucket a small pass falls into. Tested without a GPU.
 *
 * Nothing here changes a bit of a result: rows of a bucket beyond the pass's own are dead. */
#ifndef RWKVSTS_CUDA_PASS_SIZE_H
#define RWKVSTS_CUDA_PASS_SIZE_H

#include <stddef.h>

/* Rows of a pass. Every multiprocessor is to be busy with whole tiles several times over: 64 rows each do that for a model as
 * wide as Finch-1B6. A narrower model takes more rows in the same 4 MiB each, so that its launches are fewer and long pieces
 * are more, at most 256. Or as many as memory has room for. */
static inline int pass_rows(size_t budget, size_t used, size_t bytes_per_row, int multiprocessors) {
    const size_t room = 4 << 20, tile = 64, most = 256, least = 64, step = 128;
    size_t each = room / bytes_per_row / tile * tile, fit = budget > used ? (budget - used) / bytes_per_row : 0;
    each = each < tile ? tile : each < most ? each : most;
    size_t best = each * (size_t)multiprocessors, rows = fit < best ? fit : best;
    if (rows > step) rows = rows / step * step;
    return (int)(rows < least ? least : rows);
}

/* Rows that a recorded pass of T is sized for, at most `most`: few enough buckets that they are met again. */
static inline int bucket_rows(int T, int most) {
    int step = T <= 64 ? 8 : T <= 128 ? 16 : 64, up = (T + step - 1) / step * step;
    return up < most ? up : most;
}

/* Sequences likewise: the next power of two. */
static inline int bucket_sequences(int S, int most) {
    int up = 1;
    while (up < S) up *= 2;
    return up < most ? up : most;
}

#endif
