/* A session: what one concurrent call of a model needs, and the running of requests in packed passes.
 *
 * Sessions of one model may run side by side. Everything is allocated in session_open; running allocates nothing. The
 * session knows passes and states; the architecture's file knows what a block computes. */
#ifndef RWKVSTS_SESSION_H
#define RWKVSTS_SESSION_H

#include "model.h"

struct session;

/* Passes of `rows` tokens (0: what the device prefers); at most `columns` pooled layers, `firsts` given states and
 * `lasts` returned states a pass (0: none). */
struct session_size {
    int rows, columns, firsts, lasts;
};
enum status session_open(struct model *m, struct session_size size, struct session **out, struct error *e);
void session_close(struct session *s);

struct request {
    int64_t S;
    const int32_t *ids;   /* [start[S]], each in 0 .. V-1 */
    const int64_t *start; /* [S+1], ascending; no sequence is empty */
    const int32_t *skip;  /* [S] first tokens that are not pooled, fewer than the sequence has; NULL: none */
    int columns;
    const int32_t *layers; /* [columns] 0 .. blocks-1, or blocks for "final" */
    enum pooling pooling;
    float *out;                /* [S, columns, C]; may be NULL when columns is 0 */
    int64_t firsts;            /* given states */
    const struct state *first; /* [firsts] what sequences start from; NULL: zeros */
    const int64_t *origin;     /* [S] which of them; NULL: the only one */
    const struct state *last;  /* [S] states are left here; NULL: not asked */
    bool more;                 /* another request follows: what would not fill a pass is left to it */
    /* Between blocks: sequences done, and tokens, those of a pass block by block; not OK stops the run. */
    enum status (*poll)(void *user, int64_t done, int64_t tokens, struct error *e);
    void *user;
};

struct outcome {
    int64_t done; /* sequences that were run, the first ones; all of them unless `more` */
    bool finite;  /* no pooled row of theirs holds NaN or infinity */
};

/* A sequence may be longer than a pass: it goes on in the next one from its own state, with the same bits. */
enum status session_run(struct session *s, const struct request *r, struct outcome *out, struct error *e);

#endif
