/* Running requests in packed passes; see session.h. Knows no architecture.
 *
 * State slots on the device: two for the sequence that is cut and goes on in the next pass, then those given by the
 * caller, then those to be returned. */
#include "session.h"

#include <fenv.h>
#include <stdlib.h>
#include <string.h>

enum { MEAN_LENGTH = 16, FEW = 64 }; /* a pass takes a sequence per 16 rows: sentences are longer, pooled rows wide */
enum { CARRY_SLOTS = 2 };

struct session {
    struct model *m;
    const struct backend *be;
    struct worker *w;
    struct session_size size;
    int grain, sequences;
    float *x;           /* [rows, C] the stream */
    void *buffers;      /* the architecture's */
    struct state slots; /* device */
    struct pass pass;
    int32_t *numbers;    /* start, before, total, skip, from, to of the pass */
    struct given *given; /* [firsts] what lies in the slots of given states */
    int64_t passes;      /* of this request so far */
    int64_t tokens;      /* likewise, of the passes that are done */
    fenv_t callers;      /* rounding and subnormals outside the core */
};

/* A slot with one of the caller's states. */
struct given {
    int64_t origin; /* which; -1: none */
    int64_t pass;   /* the last pass that reads it */
};

static int last_slot(const struct session *s) {
    return CARRY_SLOTS + s->size.firsts;
}

static int slot_count(struct session_size size) {
    return CARRY_SLOTS + size.firsts + size.lasts;
}

/* ---- open and close ------------------------------------------------------------------------------------------- */

static struct formats formats_of(const struct model *m) {
    return (struct formats){&m->dims, m->be->in_bytes(m->dev), m->be->out_bytes(m->dev)};
}

/* Bytes of stream and buffers for `rows` rows, which become whole groups of IN_ROWS; with a slab, points into it. */
static size_t slice(const struct model *m, size_t rows, char *slab, float **x, void *buffers) {
    struct formats f = formats_of(m);
    rows = (rows + IN_ROWS - 1) / IN_ROWS * IN_ROWS;
    size_t stream = aligned(rows * (size_t)m->dims.C * sizeof(float));
    if (slab) *x = (float *)(void *)slab;
    return stream + m->architecture->lay_out(&f, rows, slab ? slab + stream : NULL, buffers);
}

static size_t state_bytes(const struct dims *d, size_t *shift, size_t *wkv) {
    *shift = (size_t)d->L * (size_t)d->C * sizeof(float);
    *wkv = *shift * (size_t)d->N;
    return 2 * *shift + *wkv;
}

static enum status alloc_numbers(struct session *s, struct error *e) {
    size_t n = (size_t)s->size.rows, firsts = (size_t)s->size.firsts;
    s->numbers = malloc((6 * n + 1) * sizeof *s->numbers);
    s->given = malloc((firsts + 1) * sizeof *s->given);
    s->buffers = calloc(1, s->m->architecture->buffers_bytes);
    if (!s->numbers || !s->given || !s->buffers)
        return fail(e, NO_MEMORY, "no memory for a session of %d rows", s->size.rows);
    s->pass.start = s->numbers;
    s->pass.before = s->numbers + n + 1;
    s->pass.total = s->pass.before + n;
    s->pass.skip = s->pass.total + n;
    s->pass.from = s->pass.skip + n;
    s->pass.to = s->pass.from + n;
    return OK;
}

static enum status alloc_device(struct session *s, struct error *e) {
    size_t shift, wkv, slots = (size_t)slot_count(s->size), rows = (size_t)s->size.rows;
    void *slab = NULL, *att_x = NULL, *ffn_x = NULL, *states = NULL;
    state_bytes(&s->m->dims, &shift, &wkv);
    TRY(s->be->alloc(s->w, slice(s->m, rows, NULL, NULL, NULL), &slab, e));
    slice(s->m, rows, slab, &s->x, s->buffers);
    TRY(s->be->alloc(s->w, slots * shift, &att_x, e));
    TRY(s->be->alloc(s->w, slots * shift, &ffn_x, e));
    TRY(s->be->alloc(s->w, slots * wkv, &states, e));
    s->slots = (struct state){att_x, ffn_x, states};
    return OK;
}

enum status session_open(struct model *m, struct session_size size, struct session **out, struct error *e) {
    enum { MOST_ROWS = 1 << 24 };
    size_t shift, wkv, fixed = (size_t)slot_count(size) * state_bytes(&m->dims, &shift, &wkv);
    size_t pooled = (size_t)size.columns * (size_t)m->dims.C * sizeof(float); /* a sequence */
    size_t row = slice(m, 1024, NULL, NULL, NULL) / 1024 + pooled / MEAN_LENGTH;
    if (size.rows < 0 || size.rows > MOST_ROWS)
        return fail(e, BAD_INPUT, "a pass of %d tokens: expected 1 .. %d", size.rows, MOST_ROWS);
    struct session *s = calloc(1, sizeof *s);
    if (!s) return fail(e, NO_MEMORY, "no memory for a session");
    s->m = m;
    s->be = m->be;
    s->size = size;
    s->grain = m->be->grain(m->dev);
    if (!size.rows) s->size.rows = m->be->rows(m->dev, row, fixed + FEW * pooled);
    if (s->size.rows < s->grain) s->size.rows = s->grain;
    int rows = s->size.rows;
    s->sequences = rows / MEAN_LENGTH > FEW ? rows / MEAN_LENGTH : rows < FEW ? rows : FEW;
    enum status st = m->be->worker_open(m->dev, rows, s->sequences, size.columns, &s->w, e);
    if (st == OK) st = alloc_numbers(s, e);
    if (st == OK) st = alloc_device(s, e);
    if (st == OK) *out = s;
    else session_close(s);
    return st;
}

void session_close(struct session *s) {
    if (!s) return;
    if (s->w) s->be->worker_close(s->w);
    free(s->numbers);
    free(s->given);
    free(s->buffers);
    free(s);
}

/* ---- one pass --------------------------------------------------------------------------------------------------- */

static enum status pool(struct session *s, int layer, const struct norm *ln, struct error *e) {
    for (int c = 0; c < s->pass.columns; c++)
        if (s->pass.layers[c] == layer) TRY(s->be->pool(s->w, &(struct pool){s->x, ln, c}, e));
    return OK;
}

/* After so many blocks of the pass. The callback is the caller's code: it finds the caller's rounding, and may change it. */
static enum status poll(struct session *s, const struct request *r, int64_t done, int blocks, struct error *e) {
    int64_t tokens = s->tokens + (blocks ? (int64_t)s->pass.T * blocks / s->pass.top : 0);
    fesetenv(&s->callers);
    enum status st = r->poll(r->user, done, tokens, e);
    fegetenv(&s->callers);
    fesetenv(FE_DFL_ENV);
    return st;
}

static enum status run_blocks(struct session *s, const struct request *r, int64_t done, struct error *e) {
    struct model *m = s->m;
    struct step step = {.be = s->be, .w = s->w, .buffers = s->buffers, .x = s->x, .slots = &s->slots};
    TRY(s->be->embed(s->w, &(struct embed){&m->emb, {&m->ln0_weight, &m->ln0_bias}, s->x}, e));
    for (int i = 0; i < s->pass.top; i++) {
        step.layer = i;
        step.block = m->blocks + (size_t)i * m->architecture->block_bytes;
        TRY(m->architecture->forward(&step, e));
        TRY(pool(s, i, NULL, e));
        TRY(poll(s, r, done, i + 1, e));
    }
    return pool(s, m->dims.L, &(struct norm){&m->ln_out_weight, &m->ln_out_bias}, e); /* "final" */
}

static enum status run_pass(struct session *s, const struct request *r, int64_t done, struct error *e) {
    bool replay = false;
    TRY(poll(s, r, done, 0, e));
    TRY(s->be->begin(s->w, &s->pass, &replay, e));
    if (!replay) TRY(run_blocks(s, r, done, e));
    s->tokens += s->pass.T;
    return s->be->end(s->w, e);
}

/* ---- states ----------------------------------------------------------------------------------------------------- */

/* The arrays of n-th elements of host or device states. */
static struct state state_at(const struct dims *d, const struct state *states, int64_t n) {
    size_t shift, wkv, at = (size_t)n;
    state_bytes(d, &shift, &wkv);
    return (struct state){states->att_x + at * shift / sizeof(float), states->ffn_x + at * shift / sizeof(float),
                          states->wkv + at * wkv / sizeof(float)};
}

static enum status upload_state(struct session *s, int slot, const struct state *host, int64_t n, struct error *e) {
    size_t shift, wkv;
    struct state to = state_at(&s->m->dims, &s->slots, slot), from = state_at(&s->m->dims, host, n);
    state_bytes(&s->m->dims, &shift, &wkv);
    TRY(s->be->upload(s->w, to.att_x, from.att_x, shift, e));
    TRY(s->be->upload(s->w, to.ffn_x, from.ffn_x, shift, e));
    return s->be->upload(s->w, to.wkv, from.wkv, wkv, e);
}

static enum status download_states(struct session *s, const struct state *host, int64_t done, int n, struct error *e) {
    size_t shift, wkv, count = (size_t)n;
    struct state from = state_at(&s->m->dims, &s->slots, last_slot(s)), to = state_at(&s->m->dims, host, done);
    state_bytes(&s->m->dims, &shift, &wkv);
    TRY(s->be->download(s->w, to.att_x, from.att_x, count * shift, e));
    TRY(s->be->download(s->w, to.ffn_x, from.ffn_x, count * shift, e));
    return s->be->download(s->w, to.wkv, from.wkv, count * wkv, e);
}

/* The slot that holds what a sequence starts from: -1 for zeros. A state that is not there takes a slot that this pass does
 * not read yet; *full: there is none. */
static enum status slot_of_origin(struct session *s, const struct request *r, int64_t sequence, int *slot, bool *full,
                                  struct error *e) {
    int64_t origin = r->origin ? r->origin[sequence] : 0;
    int there = -1, unread = -1;
    *slot = -1;
    *full = false;
    if (!r->first) return OK;
    for (int i = 0; i < s->size.firsts; i++) {
        if (s->given[i].origin == origin) there = i;
        if (s->given[i].pass != s->passes) unread = i;
    }
    if (there < 0) {
        *full = unread < 0;
        if (*full) return OK;
        there = unread;
        s->given[there].origin = origin;
        TRY(upload_state(s, CARRY_SLOTS + there, r->first, origin, e));
    }
    s->given[there].pass = s->passes;
    *slot = CARRY_SLOTS + there;
    return OK;
}

/* ---- running a request ------------------------------------------------------------------------------------------- */

static enum status check_sequence(const struct session *s, const struct request *r, int64_t i, struct error *e) {
    int64_t first = r->start[i], length = r->start[i + 1] - first;
    if (length < 1 || length > INT32_MAX)
        return fail(e, BAD_INPUT, "sequence %lld has %lld tokens: expected 1 .. %d", (long long)i, (long long)length,
                    INT32_MAX);
    if (r->skip && (r->skip[i] < 0 || r->skip[i] >= length))
        return fail(e, BAD_INPUT, "sequence %lld has %lld tokens, of which %d are not to be pooled: none would be left",
                    (long long)i, (long long)length, r->skip[i]);
    if (r->origin && (r->origin[i] < 0 || r->origin[i] >= r->firsts))
        return fail(e, BAD_INPUT, "sequence %lld starts from state %lld: expected 0 .. %lld", (long long)i,
                    (long long)r->origin[i], (long long)r->firsts - 1);
    for (int64_t t = 0; t < length; t++)
        if (r->ids[first + t] < 0 || r->ids[first + t] >= s->m->dims.V)
            return fail(e, BAD_INPUT, "token %lld of sequence %lld is %d: expected 0 .. %d, the rows of emb.weight",
                        (long long)t, (long long)i, r->ids[first + t], s->m->dims.V - 1);
    return OK;
}

static enum status check_request(const struct session *s, const struct request *r, struct error *e) {
    const struct model *m = s->m;
    for (int64_t i = 0; i < r->S; i++) TRY(check_sequence(s, r, i, e));
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

/* Whether what comes from `sequence` on, after so many of its tokens, would fill a pass. */
static bool fills(const struct session *s, const struct request *r, int64_t sequence, int64_t tokens) {
    return r->start[r->S] - r->start[sequence] - tokens >= s->size.rows || r->S - sequence >= s->sequences;
}

/* Fills the pass with the next tokens, at most `rows`, cutting the last sequence where the backend lets it; no sequence is
 * cut whose end would be left to another request. */
static enum status fill_pass(struct session *s, const struct request *r, struct cursor *at, struct error *e) {
    int rows = s->size.rows, T = 0, S = 0, finished = 0;
    int32_t *start = s->numbers, *before = start + rows + 1, *total = before + rows, *skip = total + rows;
    int32_t *from = skip + rows, *to = from + rows;
    s->pass.ids = r->ids + r->start[at->sequence] + at->token;
    while (T < rows && S < s->sequences && at->sequence < r->S && !(r->last && finished == s->size.lasts)) {
        int64_t length = r->start[at->sequence + 1] - r->start[at->sequence], left = length - at->token;
        int room = rows - T, cut = room / s->grain * s->grain, slot = at->carry;
        bool ends = left <= room, full = false;
        if (!ends && !cut) break;
        if (!ends && S && r->more && !fills(s, r, at->sequence, cut)) break;
        if (!at->token) TRY(slot_of_origin(s, r, at->sequence, &slot, &full, e));
        if (full) break;
        start[S] = T;
        before[S] = (int32_t)at->token;
        total[S] = (int32_t)length;
        skip[S] = r->skip ? r->skip[at->sequence] : 0;
        from[S] = slot;
        to[S] = !ends ? !at->carry : r->last ? last_slot(s) + finished : -1;
        T += ends ? (int)left : cut;
        S++;
        finished += ends;
        if (ends) *at = (struct cursor){at->sequence + 1, 0, at->carry};
        else *at = (struct cursor){at->sequence, at->token + T - start[S - 1], !at->carry};
    }
    start[S] = T;
    s->pass.T = T;
    s->pass.S = S;
    s->pass.finished = finished;
    return OK;
}

static void begin_request(struct session *s, const struct request *r) {
    s->pass.pooling = r->pooling;
    s->pass.columns = r->columns;
    s->pass.layers = r->layers;
    s->pass.top = r->last ? s->m->dims.L : 0; /* a state speaks of every block */
    for (int c = 0; c < r->columns; c++) {
        int blocks = r->layers[c] < s->m->dims.L ? r->layers[c] + 1 : s->m->dims.L;
        if (s->pass.top < blocks) s->pass.top = blocks;
    }
    for (int i = 0; i < s->size.firsts; i++) s->given[i] = (struct given){-1, -1};
    s->passes = 0;
    s->tokens = 0;
}

static enum status run_passes(struct session *s, const struct request *r, struct outcome *out, struct error *e) {
    struct cursor at = {0, 0, 0};
    int64_t done = 0;
    begin_request(s, r);
    while (at.sequence < r->S && (at.token || !r->more || fills(s, r, at.sequence, 0))) {
        s->pass.pooled = r->columns ? r->out + (size_t)done * (size_t)r->columns * (size_t)s->m->dims.C : NULL;
        TRY(fill_pass(s, r, &at, e));
        TRY(run_pass(s, r, done, e));
        if (r->last && s->pass.finished) TRY(download_states(s, r->last, done, s->pass.finished, e));
        done += s->pass.finished;
        s->passes++;
    }
    out->done = done;
    TRY(s->be->finish(s->w, &out->finite, e));
    return poll(s, r, done, 0, e);
}

/* Rounding and subnormals are the process's to set, and another library may have set them: here they are the default. */
enum status session_run(struct session *s, const struct request *r, struct outcome *out, struct error *e) {
    TRY(check_request(s, r, e));
    fegetenv(&s->callers);
    fesetenv(FE_DFL_ENV);
    enum status st = run_passes(s, r, out, e);
    fesetenv(&s->callers);
    return st;
}
