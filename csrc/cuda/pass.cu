/* A pass: its numbers on their way to the device, recorded launches, pooled rows on their way home.
 *
 * The host never waits for the pass it has just queued: the numbers of a pass are staged twice over, and pooled rows leave
 * on a stream of their own while the next pass runs; they are handed to the caller two passes later or by finish(). A pass
 * of few rows is launched as one graph once its bucket has been seen before. */
#include "pass_size.h"
#include "worker.h"

#include <string.h>

/* ---- recorded passes ---------------------------------------------------------------------------------------------------- */

static uint64_t hash_layers(const struct pass *p) {
    uint64_t h = 14695981039346656037u;
    for (int i = 0; i < p->columns; i++) h = (h ^ (uint64_t)(uint32_t)p->layers[i]) * 1099511628211u;
    return h;
}

static struct shape bucket_of(const struct worker *w, const struct pass *p) {
    struct shape shape;
    memset(&shape, 0, sizeof shape); /* compared as bytes */
    shape.T = bucket_rows(p->T, w->rows);
    shape.S = bucket_sequences(p->S, w->sequences);
    shape.top = p->top;
    shape.columns = p->columns;
    shape.pooling = p->pooling;
    shape.layers = hash_layers(p);
    return shape;
}

/* The record of that shape: found, or taken from the one that was not used for longest. */
static struct record *record_of(struct worker *w, const struct shape *shape, bool *seen) {
    struct record *oldest = &w->records[0];
    *seen = false;
    for (int i = 0; i < RECORDS; i++) {
        struct record *r = &w->records[i];
        if (r->used && !memcmp(&r->shape, shape, sizeof *shape)) {
            *seen = true;
            r->used = ++w->clock;
            return r;
        }
        if (r->used < oldest->used) oldest = r;
    }
    if (oldest->exec) cudaGraphExecDestroy(oldest->exec);
    oldest->exec = NULL;
    oldest->shape = *shape;
    oldest->used = ++w->clock;
    return oldest;
}

/* ---- a pass ---------------------------------------------------------------------------------------------------------------- */

/* Hands the pooled rows of an earlier pass to the caller. */
static enum status deliver(struct worker *w, struct flight *f, struct error *e) {
    if (!f->bytes) return OK;
    CUDA_TRY(w->dev, cudaEventSynchronize(f->done), "waiting for a pass", e);
    if (!floats_finite(f->pinned, f->bytes / sizeof *f->pinned)) w->not_finite = true;
    memcpy(f->target, f->pinned, f->bytes);
    f->bytes = 0;
    return OK;
}

enum { UNIT_INTS = sizeof(struct unit) / sizeof(int), LONG_INTS = sizeof(struct long_piece) / sizeof(int) };

/* At most so many units, long pieces. */
static size_t most_units(int T, int S) {
    return (size_t)S + (size_t)T / PART;
}
static size_t most_long(int T) {
    return (size_t)T / LONG_PIECE;
}

size_t number_bytes(int T, int S) {
    size_t per_piece = 7 * (size_t)S + 1, units = UNIT_INTS * most_units(T, S) + LONG_INTS * most_long(T);
    return (HEAD_INTS + 3 * (size_t)T + per_piece + units) * sizeof(int);
}

static void lay_out(struct worker *w) {
    const int *at = w->numbers;
    int T = w->grid.T, S = w->grid.S;
    w->meta.head = at;
    w->meta.ids = at += HEAD_INTS;
    w->meta.prev = at += T;
    w->meta.save = at += T;
    w->meta.start = at += T;
    w->meta.before = at += S + 1;
    w->meta.total = at += S;
    w->meta.skip = at += S;
    w->meta.from = at += S;
    w->meta.to = at += S;
    w->meta.order = at += S;
    w->meta.units = (const struct unit *)(at += S);
    w->meta.long_pieces = (const struct long_piece *)(at + UNIT_INTS * most_units(T, S));
}

/* Cuts a long piece into its parts. */
static void add_long(struct worker *w, int number, struct unit piece, struct unit *units, struct long_piece *out,
                     int *interim) {
    int n = w->grid.long_units;
    *out = long_piece{piece.first, piece.last, piece.from, piece.to, number, n, *interim};
    for (int first = piece.first; first < piece.last; first += PART) {
        int last = first + PART < piece.last ? first + PART : piece.last;
        units[n++] = unit{first, last, first == piece.first ? piece.from : FROM_INTERIM - (*interim)++, -1};
    }
    w->grid.long_units = n;
    w->grid.long_pieces++;
}

/* The order of pieces for RWKV-7; and the units of a pass, those of long pieces first, as kernels before wkv_chunk work on
 * these alone: by the same order, so that those whose states go ahead in RWKV-7 come first. */
static void fill_units(struct worker *w, const struct pass *p, int *order, struct unit *units,
                       struct long_piece *long_pieces) {
    int interim = 0, n = 0, of_walk[TWO_WARPS + 1] = {};
    w->grid.long_pieces = w->grid.long_units = w->grid.ahead_units = 0;
    for (int walk = STATES_AHEAD; walk <= TWO_WARPS; walk++) {
        for (int s = 0; s < p->S; s++) {
            const int length = p->start[s + 1] - p->start[s];
            if (route_walk7(w->dev->dims.H, p->T, length) != walk) continue;
            of_walk[walk]++;
            *order++ = s;
            if (!route_is_long(length)) continue;
            const struct unit piece = {p->start[s], p->start[s + 1], p->from[s], p->to[s]};
            add_long(w, s, piece, units, &long_pieces[w->grid.long_pieces], &interim);
        }
        if (walk == STATES_AHEAD) w->grid.ahead_units = w->grid.long_units;
    }
    w->grid.ahead_pieces = of_walk[STATES_AHEAD];
    w->grid.four_warps = of_walk[FOUR_WARPS];
    n = w->grid.long_units;
    for (int s = 0; s < p->S; s++)
        if (!route_is_long(p->start[s + 1] - p->start[s]))
            units[n++] = unit{p->start[s], p->start[s + 1], p->from[s], p->to[s]};
    w->grid.units = n;
}

static void fill_numbers(struct worker *w, const struct pass *p, int *out) {
    int T = w->grid.T, S = w->grid.S, *ids = out + HEAD_INTS, *prev = ids + T, *save = prev + T, *start = save + T;
    int *before = start + S + 1, *total = before + S, *skip = total + S, *from = skip + S, *to = from + S;
    int *order = to + S;
    struct unit *units = (struct unit *)(order + S);
    size_t pieces_bytes = (size_t)p->S * sizeof(int);
    out[0] = p->T;
    out[1] = p->S;
    out[2] = w->side;
    fill_units(w, p, order, units, (struct long_piece *)(units + most_units(T, S)));
    out[3] = w->grid.units;
    if (w->grid.units < S) w->grid.units = S; /* of a bucket */
    if (w->grid.four_warps == p->S) w->grid.four_warps = S;
    memcpy(ids, p->ids, (size_t)p->T * sizeof(int));
    memcpy(start, p->start, pieces_bytes + sizeof(int));
    memcpy(before, p->before, pieces_bytes);
    memcpy(total, p->total, pieces_bytes);
    memcpy(skip, p->skip, pieces_bytes);
    memcpy(from, p->from, pieces_bytes);
    memcpy(to, p->to, pieces_bytes);
    for (int s = 0; s < p->S; s++) {
        for (int t = p->start[s]; t < p->start[s + 1]; t++) {
            prev[t] = t - 1;
            save[t] = -1;
        }
        prev[p->start[s]] = p->from[s] < 0 ? NO_PAST : FROM_SLOT - p->from[s];
        save[p->start[s + 1] - 1] = p->to[s];
    }
}

static enum status stage_numbers(struct worker *w, const struct pass *p, struct error *e) {
    struct flight *f = &w->flights[w->side];
    CUDA_TRY(w->dev, cudaEventSynchronize(f->read), "waiting for a pass", e);
    lay_out(w);
    fill_numbers(w, p, f->staged);
    CUDA_TRY(
        w->dev,
        cudaMemcpyAsync(w->numbers, f->staged, number_bytes(w->grid.T, w->grid.S), cudaMemcpyHostToDevice, w->stream),
        "starting a pass", e);
    return cuda_status(w->dev, cudaEventRecord(f->read, w->stream), "starting a pass", e);
}

enum status cuda_begin(struct worker *w, const struct pass *pass, bool *replay, struct error *e) {
    bool seen = false;
    *replay = false;
    TRY(device_usable(w->dev, e));
    TRY(deliver(w, &w->flights[w->side], e));
    w->pass = *pass;
    w->record = NULL;
    w->grid.T = pass->T;
    w->grid.S = pass->S;
    w->pool_waits = true;
    if (route_is_few(pass->T)) {
        struct shape shape = bucket_of(w, pass);
        w->grid.T = shape.T;
        w->grid.S = shape.S;
        w->record = record_of(w, &shape, &seen);
    }
    TRY(stage_numbers(w, pass, e));
    if (!seen) {
        w->record = NULL;
        return OK;
    }
    /* A recorded pass cannot wait in its middle for the rows of the pass before: wait here. */
    w->pool_waits = false;
    if (w->flights[w->side ^ 1].bytes)
        CUDA_TRY(w->dev, cudaStreamWaitEvent(w->stream, w->flights[w->side ^ 1].done, 0), "waiting for pooled rows", e);
    *replay = w->record->exec != NULL;
    if (*replay) return OK;
    /* Relaxed: poll may run Python between blocks, and there another model's memory may be freed. */
    CUDA_TRY(w->dev, cudaStreamBeginCapture(w->stream, cudaStreamCaptureModeRelaxed), "recording a pass", e);
    w->capturing = true;
    return OK;
}

/* Has the system lay memory under what a pass will be delivered to, while the device works: 33,000 pages of a large new
 * array would keep the device waiting otherwise. What stands there stays as it is. */
static void touch(float *target, size_t bytes) {
    enum { PAGE = 4096 };
    volatile char *p = (volatile char *)target;
    for (size_t i = 0; i < bytes; i += PAGE) p[i] = p[i];
}

static enum status finish_recording(struct worker *w, struct error *e) {
    cudaGraph_t graph = NULL;
    w->capturing = false;
    CUDA_TRY(w->dev, cudaStreamEndCapture(w->stream, &graph), "recording a pass", e);
    cudaError_t status = cudaGraphInstantiate(&w->record->exec, graph, 0);
    cudaGraphDestroy(graph);
    if (status != cudaSuccess) w->record->exec = NULL;
    return cuda_status(w->dev, status, "recording a pass", e);
}

enum status cuda_end(struct worker *w, struct error *e) {
    struct flight *f = &w->flights[w->side];
    const struct pass *p = &w->pass;
    if (w->capturing) TRY(finish_recording(w, e));
    if (w->record) CUDA_TRY(w->dev, cudaGraphLaunch(w->record->exec, w->stream), "launching a recorded pass", e);
    f->bytes = (size_t)p->finished * (size_t)p->columns * (size_t)w->dev->dims.C * sizeof(float);
    f->target = p->pooled;
    w->side ^= 1;
    if (!f->bytes) return OK;
    cudaStream_t home = w->record ? w->stream : w->copies; /* few rows are sooner copied than another stream is told */
    if (!w->record) {
        CUDA_TRY(w->dev, cudaEventRecord(w->computed, w->stream), "ending a pass", e);
        CUDA_TRY(w->dev, cudaStreamWaitEvent(w->copies, w->computed, 0), "ending a pass", e);
    }
    CUDA_TRY(w->dev, cudaMemcpyAsync(f->pinned, w->pooled, f->bytes, cudaMemcpyDeviceToHost, home), "ending a pass", e);
    CUDA_TRY(w->dev, cudaEventRecord(f->done, home), "ending a pass", e);
    touch(f->target, f->bytes);
    return OK;
}

enum status cuda_finish(struct worker *w, bool *finite, struct error *e) {
    TRY(device_usable(w->dev, e));
    TRY(deliver(w, &w->flights[w->side], e)); /* the older, while the device works on the other */
    TRY(deliver(w, &w->flights[w->side ^ 1], e));
    *finite = !w->not_finite;
    w->not_finite = false;
    return cuda_status(w->dev, cudaStreamSynchronize(w->stream), "finishing", e);
}
