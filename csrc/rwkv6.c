/* RWKV-6 "Finch": the forward pass, written once, in the order of the equations; see rwkv6.h and backend.h.
 *
 * Source of the equations: BlinkDL/RWKV-LM (RWKV-v6) and the paper arXiv 2404.05892. What a reader may miss elsewhere:
 * the token shift sees the normalised input, wkv is read before the decay, the bonus is raw, and ln0 belongs to block 0.
 * Which tensors there are and what they must look like is weights.c's; this room assumes them bound. */
#include "weights.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = 256 };                /* bytes; what every device is content with */
enum { MEAN_LENGTH = 16, FEW = 64 }; /* a pass takes a sequence per 16 rows: sentences are longer, pooled rows wide */
enum { W, K, V, R, G, MIXES };       /* order of the five mixes in time_maa_w1 and w2 */
enum { CARRY = 0, FIRST = 2, LAST = 3 }; /* state slots: two for the sequence that goes on, the given one, the asked */

struct session {
    struct rwkv6 *m;
    const struct backend *be;
    struct worker *w;
    int rows, grain, sequences, states;
    /* One slab a row; buffers share memory where their lives do not overlap, as session_slice says. */
    float *x, *decay;
    void *mixed[MIXES], *y, *r, *k, *v, *g, *ffn_k, *ffn_r, *ffn_mixed_k, *ffn_mixed_r;
    struct state slots; /* device */
    struct pass pass;
    int32_t *numbers; /* start, before, total, from, to of the pass */
};

/* ---- the equations ------------------------------------------------------------------------------------------ */

static enum status time_mix(struct session *s, const struct block *b, int layer, struct error *e) {
    const struct backend *be = s->be;
    TRY(be->time_shift(s->w,
                       &(struct time_shift){
                           .layer = layer,
                           .x = s->x,
                           .ln1 = {&b->ln1_weight, &b->ln1_bias},
                           .maa_x = &b->time_maa_x,
                           .maa = {&b->time_maa_w, &b->time_maa_k, &b->time_maa_v, &b->time_maa_r, &b->time_maa_g},
                           .w1 = &b->time_maa_w1,
                           .w2 = &b->time_maa_w2,
                           .mixed = {s->mixed[W], s->mixed[K], s->mixed[V], s->mixed[R], s->mixed[G]},
                       },
                       e));
    TRY(be->gemm(s->w,
                 (const struct gemm[]){
                     {&b->key, s->mixed[K], STORE, s->k, NULL},
                     {&b->value, s->mixed[V], STORE, s->v, NULL},
                     {&b->receptance, s->mixed[R], STORE, s->r, NULL},
                     {&b->gate, s->mixed[G], SILU, s->g, NULL},
                 },
                 4, e));
    TRY(be->decay(s->w,
                  &(struct decay){
                      .mixed_w = s->mixed[W],
                      .time_decay = &b->time_decay,
                      .w1 = &b->time_decay_w1,
                      .w2 = &b->time_decay_w2,
                      .decay = s->decay,
                  },
                  e));
    TRY(be->wkv(s->w,
                &(struct wkv){
                    .layer = layer,
                    .r = s->r,
                    .k = s->k,
                    .v = s->v,
                    .g = s->g,
                    .decay = s->decay,
                    .u = &b->time_faaaa,
                    .ln_x = {&b->ln_x_weight, &b->ln_x_bias},
                    .out = s->y,
                },
                e));
    return be->gemm(s->w, &(struct gemm){&b->output, s->y, ADD, s->x, NULL}, 1, e);
}

static enum status channel_mix(struct session *s, const struct block *b, int layer, struct error *e) {
    const struct backend *be = s->be;
    TRY(be->channel_shift(s->w,
                          &(struct channel_shift){
                              .layer = layer,
                              .x = s->x,
                              .ln2 = {&b->ln2_weight, &b->ln2_bias},
                              .maa_k = &b->ffn_maa_k,
                              .maa_r = &b->ffn_maa_r,
                              .mixed_k = s->ffn_mixed_k,
                              .mixed_r = s->ffn_mixed_r,
                          },
                          e));
    TRY(be->gemm(s->w,
                 (const struct gemm[]){
                     {&b->ffn_key, s->ffn_mixed_k, RELU2, s->ffn_k, NULL},
                     {&b->ffn_receptance, s->ffn_mixed_r, SIGMOID, s->ffn_r, NULL},
                 },
                 2, e));
    return be->gemm(s->w, &(struct gemm){&b->ffn_value, s->ffn_k, GATE_ADD, s->x, s->ffn_r}, 1, e);
}

static enum status pool(struct session *s, int layer, const struct norm *ln, struct error *e) {
    for (int c = 0; c < s->pass.columns; c++)
        if (s->pass.layers[c] == layer) TRY(s->be->pool(s->w, &(struct pool){s->x, ln, c}, e));
    return OK;
}

static enum status forward(struct session *s, const struct request *r, int64_t done, struct error *e) {
    const struct rwkv6 *m = s->m;
    bool replay = false;
    TRY(r->poll(r->user, done, e));
    TRY(s->be->begin(s->w, &s->pass, &replay, e));
    if (!replay) {
        TRY(s->be->embed(s->w, &(struct embed){&m->emb, {&m->ln0_weight, &m->ln0_bias}, s->x}, e));
        for (int i = 0; i < s->pass.top; i++) {
            TRY(time_mix(s, &m->blocks[i], i, e));
            TRY(channel_mix(s, &m->blocks[i], i, e));
            TRY(pool(s, i, NULL, e));
            TRY(r->poll(r->user, done, e));
        }
        TRY(pool(s, m->dims.L, &(struct norm){&m->ln_out_weight, &m->ln_out_bias}, e)); /* "final" */
    }
    return s->be->end(s->w, e);
}

/* ---- sessions ------------------------------------------------------------------------------------------------ */

static size_t aligned(size_t bytes) {
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* Bytes of the slab for `rows` rows, which become whole groups of IN_ROWS. With a slab, also points the buffers into it:
 *   x                                 lives through the pass
 *   mixed w | k | v | r | g           until the products; then  y | decay ..; then  ffn mixed_k | mixed_r | ffn_r ..
 *   k | v | r | g                     until wkv;           then  ffn_k                                           */
static size_t session_slice(struct session *s, size_t rows, char *slab) {
    const struct dims *d = &s->m->dims;
    size_t in = s->m->be->in_bytes(s->m->dev), out = s->m->be->out_bytes(s->m->dev);
    rows = (rows + IN_ROWS - 1) / IN_ROWS * IN_ROWS;
    size_t stream = aligned(rows * (size_t)d->C * sizeof(float)), mix = aligned(rows * (size_t)d->C * in);
    size_t head = aligned(rows * (size_t)d->C * out), wide = aligned(rows * (size_t)d->F * in);
    size_t mixes = MIXES * mix;
    if (mixes < mix + stream) mixes = mix + stream;
    if (mixes < 2 * mix + head) mixes = 2 * mix + head;
    if (slab) {
        char *heads = slab + stream + mixes;
        s->x = (float *)slab;
        for (int j = 0; j < MIXES; j++) s->mixed[j] = slab + stream + (size_t)j * mix;
        s->y = s->mixed[W];
        s->decay = s->mixed[K];
        s->ffn_mixed_k = s->mixed[0];
        s->ffn_mixed_r = s->mixed[1];
        s->ffn_r = s->mixed[2];
        s->k = heads;
        s->v = heads + head;
        s->r = heads + 2 * head;
        s->g = heads + 3 * head;
        s->ffn_k = heads;
    }
    return stream + mixes + (4 * head > wide ? 4 * head : wide);
}

static size_t state_bytes(const struct dims *d, size_t *shift, size_t *wkv) {
    *shift = (size_t)d->L * (size_t)d->C * sizeof(float);
    *wkv = *shift * (size_t)d->N;
    return 2 * *shift + *wkv;
}

static enum status session_alloc(struct session *s, struct error *e) {
    size_t shift, wkv, slots = LAST + (size_t)s->states;
    state_bytes(&s->m->dims, &shift, &wkv);
    void *slab = NULL, *att_x = NULL, *ffn_x = NULL, *heads = NULL;
    TRY(s->be->alloc(s->w, session_slice(s, (size_t)s->rows, NULL), &slab, e));
    session_slice(s, (size_t)s->rows, slab);
    TRY(s->be->alloc(s->w, slots * shift, &att_x, e));
    TRY(s->be->alloc(s->w, slots * shift, &ffn_x, e));
    TRY(s->be->alloc(s->w, slots * wkv, &heads, e));
    s->slots = (struct state){att_x, ffn_x, heads};
    size_t n = (size_t)s->rows;
    s->numbers = malloc((5 * n + 1) * sizeof *s->numbers);
    if (!s->numbers) return fail(e, NO_MEMORY, "no memory for a session of %d rows", s->rows);
    s->pass = (struct pass){
        .start = s->numbers,
        .before = s->numbers + n + 1,
        .total = s->numbers + 2 * n + 1,
        .from = s->numbers + 3 * n + 1,
        .to = s->numbers + 4 * n + 1,
        .att_x = att_x,
        .ffn_x = ffn_x,
        .wkv = heads,
    };
    return OK;
}

enum status rwkv6_session_open(struct rwkv6 *m, int rows, int columns, int states, struct session **out,
                               struct error *e) {
    enum { MOST_ROWS = 1 << 24 };
    size_t shift, wkv;
    if (rows < 0 || rows > MOST_ROWS)
        return fail(e, BAD_INPUT, "a pass of %d tokens: expected 1 .. %d", rows, MOST_ROWS);
    struct session *s = calloc(1, sizeof *s);
    if (!s) return fail(e, NO_MEMORY, "no memory for a session");
    s->m = m;
    s->be = m->be;
    s->states = states;
    size_t fixed = (LAST + (size_t)states) * state_bytes(&m->dims, &shift, &wkv);
    size_t pooled = (size_t)columns * (size_t)m->dims.C * sizeof(float); /* a sequence */
    size_t row = session_slice(s, 1024, NULL) / 1024 + pooled / MEAN_LENGTH;
    s->rows = rows ? rows : m->be->rows(m->dev, row, fixed + FEW * pooled);
    s->grain = m->be->grain(m->dev);
    if (s->rows < s->grain) s->rows = s->grain;
    s->sequences = s->rows / MEAN_LENGTH > FEW ? s->rows / MEAN_LENGTH : s->rows < FEW ? s->rows : FEW;
    enum status st = m->be->worker_open(m->dev, s->rows, s->sequences, columns, &s->w, e);
    if (st == OK) st = session_alloc(s, e);
    if (st == OK) *out = s;
    else rwkv6_session_close(s);
    return st;
}

void rwkv6_session_close(struct session *s) {
    if (!s) return;
    if (s->w) s->be->worker_close(s->w);
    free(s->numbers);
    free(s);
}

/* ---- running a request --------------------------------------------------------------------------------------- */

static enum status check_request(const struct session *s, const struct request *r, struct error *e) {
    const struct rwkv6 *m = s->m;
    for (int64_t i = 0; i < r->S; i++) {
        int64_t first = r->start[i], length = r->start[i + 1] - first;
        if (length < 1 || length > INT32_MAX)
            return fail(e, BAD_INPUT, "sequence %lld has %lld tokens: expected 1 .. %d", (long long)i,
                        (long long)length, INT32_MAX);
        for (int64_t t = 0; t < length; t++)
            if (r->ids[first + t] < 0 || r->ids[first + t] >= m->dims.V)
                return fail(e, BAD_INPUT, "token %lld of sequence %lld is %d: expected 0 .. %d, the rows of emb.weight",
                            (long long)t, (long long)i, r->ids[first + t], m->dims.V - 1);
    }
    for (int c = 0; c < r->columns; c++) {
        bool final = r->layers[c] == m->dims.L && m->final_norm;
        if (!final && (r->layers[c] < 0 || r->layers[c] >= m->dims.L))
            return fail(e, BAD_INPUT, "layer %d: this model holds layers 0 .. %d%s", r->layers[c], m->dims.L - 1,
                        m->final_norm ? " and \"final\"" : "");
    }
    return OK;
}

/* Where a request stands: the next sequence and how many of its tokens are done. */
struct cursor {
    int64_t sequence, token;
    int carry; /* which of the two carry slots holds the sequence that goes on */
};

/* Fills the pass with the next tokens, at most `rows`, cutting the last sequence where the backend lets it; returns the
 * sequences that end. */
static int fill_pass(struct session *s, const struct request *r, struct cursor *at) {
    int32_t *start = s->numbers, *before = start + s->rows + 1, *total = before + s->rows;
    int32_t *from = total + s->rows, *to = from + s->rows;
    int T = 0, S = 0, finished = 0;
    s->pass.ids = r->ids + r->start[at->sequence] + at->token;
    while (T < s->rows && S < s->sequences && at->sequence < r->S && !(r->last && finished == s->states)) {
        int64_t length = r->start[at->sequence + 1] - r->start[at->sequence], left = length - at->token;
        int room = s->rows - T, cut = room / s->grain * s->grain;
        bool ends = left <= room;
        if (!ends && !cut) break;
        start[S] = T;
        before[S] = (int32_t)at->token;
        total[S] = (int32_t)length;
        from[S] = at->token ? CARRY + at->carry : r->first ? FIRST : -1;
        to[S] = !ends ? CARRY + !at->carry : r->last ? LAST + finished : -1;
        T += ends ? (int)left : cut;
        S++;
        finished += ends;
        if (ends) *at = (struct cursor){at->sequence + 1, 0, at->carry};
        else *at = (struct cursor){at->sequence, at->token + T - start[S - 1], !at->carry};
    }
    start[S] = T;
    s->pass.T = T;
    s->pass.S = S;
    return finished;
}

/* Moves whole states between a slot on the device and an element of the caller's arrays. */
static enum status upload_first(struct session *s, const struct state *first, struct error *e) {
    size_t shift, wkv;
    state_bytes(&s->m->dims, &shift, &wkv);
    TRY(s->be->upload(s->w, (char *)s->slots.att_x + FIRST * shift, first->att_x, shift, e));
    TRY(s->be->upload(s->w, (char *)s->slots.ffn_x + FIRST * shift, first->ffn_x, shift, e));
    return s->be->upload(s->w, (char *)s->slots.wkv + FIRST * wkv, first->wkv, wkv, e);
}

static enum status download_last(struct session *s, const struct state *last, int64_t done, int n, struct error *e) {
    size_t shift, wkv, at = (size_t)done, count = (size_t)n;
    state_bytes(&s->m->dims, &shift, &wkv);
    const struct state *slots = &s->slots;
    TRY(s->be->download(s->w, (char *)last->att_x + at * shift, (char *)slots->att_x + LAST * shift, count * shift, e));
    TRY(s->be->download(s->w, (char *)last->ffn_x + at * shift, (char *)slots->ffn_x + LAST * shift, count * shift, e));
    return s->be->download(s->w, (char *)last->wkv + at * wkv, (char *)slots->wkv + LAST * wkv, count * wkv, e);
}

enum status rwkv6_run(struct session *s, const struct request *r, struct error *e) {
    TRY(check_request(s, r, e));
    if (r->first) TRY(upload_first(s, r->first, e));
    s->pass.pooling = r->pooling;
    s->pass.columns = r->columns;
    s->pass.layers = r->layers;
    s->pass.top = r->last ? s->m->dims.L : 0; /* a state speaks of every block */
    for (int c = 0; c < r->columns; c++) {
        int blocks = r->layers[c] < s->m->dims.L ? r->layers[c] + 1 : s->m->dims.L;
        if (s->pass.top < blocks) s->pass.top = blocks;
    }
    struct cursor at = {0, 0, 0};
    int64_t done = 0;
    while (at.sequence < r->S) {
        s->pass.pooled = r->columns ? r->out + (size_t)done * (size_t)r->columns * (size_t)s->m->dims.C : NULL;
        int finished = fill_pass(s, r, &at);
        TRY(forward(s, r, done, e));
        if (r->last && finished) TRY(download_last(s, r->last, done, finished, e));
        done += finished;
    }
    TRY(s->be->finish(s->w, e));
    return r->poll(r->user, done, e);
}
