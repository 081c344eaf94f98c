/* RWKV World tokenizer over a double-array trie; see tokenizer.h.
 *
 * A state is an index into `cells`; from state s byte c leads to t = cells[s].base + c if s is t's parent.
 * One load and one comparison a byte; the World vocabulary takes 3 MB, of which text touches little. */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

enum { BYTES = 256, MOST_ID = (1 << 24) - 1, ROOT = 0, NOBODY = -1 };

struct cell {
    int32_t base, parent, id; /* id 0: no entry ends here */
};

struct tokenizer {
    struct cell *cells;
    size_t n_cells; /* at least BYTES beyond the last state's base: a look-up never leaves the array */
    uint8_t *blob;  /* the entries' bytes, one after the other */
    size_t blob_size;
    size_t *at;       /* [ids] where an id's bytes begin */
    int32_t *lengths; /* [ids] 0 for ids that no entry has */
    int32_t ids;      /* the largest id + 1 */
};

void tokenizer_close(struct tokenizer *t) {
    if (!t) return;
    free(t->cells);
    free(t->blob);
    free(t->at);
    free(t->lengths);
    free(t);
}

/* ---- building ---- */

static int by_bytes(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    int order = memcmp(x->bytes, y->bytes, x->length < y->length ? x->length : y->length);
    return order ? order : (x->length > y->length) - (x->length < y->length);
}

static enum status check_entries(const struct entry *sorted, size_t count, struct error *e) {
    bool single[BYTES] = {false};
    for (size_t i = 0; i < count; i++) {
        if (sorted[i].id < 1 || sorted[i].id > MOST_ID)
            return fail(e, BAD_INPUT, "vocabulary id %d: expected 1 .. %d", sorted[i].id, MOST_ID);
        if (!sorted[i].length) return fail(e, BAD_INPUT, "vocabulary id %d has no bytes", sorted[i].id);
        if (sorted[i].length > MOST_ENTRY)
            return fail(e, BAD_INPUT, "vocabulary id %d has %zu bytes: expected at most %d", sorted[i].id,
                        sorted[i].length, MOST_ENTRY);
        if (i && !by_bytes(&sorted[i - 1], &sorted[i]))
            return fail(e, BAD_INPUT, "vocabulary ids %d and %d have the same bytes", sorted[i - 1].id, sorted[i].id);
        if (sorted[i].length == 1) single[sorted[i].bytes[0]] = true;
    }
    for (int c = 0; c < BYTES; c++)
        if (!single[c])
            return fail(e, BAD_INPUT, "the vocabulary lacks the single byte 0x%02x: some texts would have no encoding",
                        c);
    return OK;
}

static enum status copy_bytes(struct tokenizer *t, const struct entry *entries, size_t count, struct error *e) {
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        if (!size_add(t->blob_size, entries[i].length, &t->blob_size))
            return fail(e, BAD_INPUT, "the vocabulary is too large");
        if (entries[i].id >= t->ids) t->ids = entries[i].id + 1;
    }
    t->blob = malloc(t->blob_size);
    t->at = calloc((size_t)t->ids, sizeof *t->at);
    t->lengths = calloc((size_t)t->ids, sizeof *t->lengths);
    if (!t->blob || !t->at || !t->lengths) return fail(e, NO_MEMORY, "no memory for %zu vocabulary entries", count);
    for (size_t i = 0; i < count; i++) {
        int32_t id = entries[i].id;
        if (t->lengths[id]) return fail(e, BAD_INPUT, "vocabulary id %d is there twice", id);
        memcpy(t->blob + used, entries[i].bytes, entries[i].length);
        t->at[id] = used;
        t->lengths[id] = (int32_t)entries[i].length;
        used += entries[i].length;
    }
    return OK;
}

static bool grow(struct tokenizer *t, size_t n) {
    if (n <= t->n_cells) return true;
    size_t larger = n + n / 2;
    struct cell *cells = larger > INT32_MAX ? NULL : realloc(t->cells, larger * sizeof *cells);
    if (!cells) return false;
    for (size_t i = t->n_cells; i < larger; i++) cells[i] = (struct cell){0, NOBODY, 0};
    t->cells = cells;
    t->n_cells = larger;
    return true;
}

/* The lowest base at which all the bytes of `next` find free cells; 0 without memory. No base is ever 0: a
 * state without children keeps 0, and leads to cells whose parent it is not. */
static int32_t place(struct tokenizer *t, const uint8_t *next, int n, size_t *first_free) {
    while (*first_free < t->n_cells && t->cells[*first_free].parent != NOBODY) ++*first_free;
    for (size_t at = *first_free > next[0] ? *first_free : (size_t)next[0] + 1;; at++) {
        size_t base = at - next[0];
        if (!grow(t, base + 2 * BYTES)) return 0;
        int fits = 0;
        while (fits < n && t->cells[base + next[fits]].parent == NOBODY) fits++;
        if (fits == n) return (int32_t)base;
    }
}

struct span { /* entries lo .. hi share the bytes that lead to a state; some may end there */
    int32_t state;
    size_t lo, hi, depth;
};

/* Gives the state of a span its id and its children; the children's spans go to `queue`, whose end moves. */
static bool add_children(struct tokenizer *t, const struct entry *sorted, struct span s, struct span *queue,
                         size_t *end, size_t *first_free) {
    uint8_t next[BYTES];
    size_t lows[BYTES + 1];
    int n = 0;
    if (sorted[s.lo].length == s.depth) t->cells[s.state].id = sorted[s.lo++].id;
    for (size_t i = s.lo; i < s.hi; i++)
        if (!n || sorted[i].bytes[s.depth] != next[n - 1]) {
            lows[n] = i;
            next[n++] = sorted[i].bytes[s.depth];
        }
    if (!n) return true;
    lows[n] = s.hi;
    int32_t base = place(t, next, n, first_free);
    if (!base) return false;
    t->cells[s.state].base = base;
    for (int i = 0; i < n; i++) {
        t->cells[base + next[i]].parent = s.state;
        queue[(*end)++] = (struct span){base + next[i], lows[i], lows[i + 1], s.depth + 1};
    }
    return true;
}

static enum status build(struct tokenizer *t, const struct entry *sorted, size_t count, struct error *e) {
    /* A state but the root has a byte of some entry for its own: there are at most blob_size + 1 spans. */
    size_t first_free = 1, begin = 0, end = 1;
    struct span *queue = malloc((t->blob_size + 1) * sizeof *queue);
    bool built = queue && grow(t, 4 * BYTES);
    if (built) {
        t->cells[ROOT].parent = ROOT;
        queue[0] = (struct span){ROOT, 0, count, 0};
    }
    while (built && begin < end) built = add_children(t, sorted, queue[begin++], queue, &end, &first_free);
    free(queue);
    return built ? OK : fail(e, NO_MEMORY, "no memory for the trie of %zu vocabulary entries", count);
}

enum status tokenizer_open(const struct entry *entries, size_t count, struct tokenizer **out, struct error *e) {
    if (!count) return fail(e, BAD_INPUT, "the vocabulary is empty");
    size_t bytes;
    struct tokenizer *t = calloc(1, sizeof *t);
    struct entry *sorted = size_mul(count, sizeof *sorted, &bytes) ? malloc(bytes) : NULL;
    enum status st = t && sorted ? OK : fail(e, NO_MEMORY, "no memory for %zu vocabulary entries", count);
    if (st == OK) {
        memcpy(sorted, entries, count * sizeof *sorted);
        qsort(sorted, count, sizeof *sorted, by_bytes);
        st = check_entries(sorted, count, e);
    }
    if (st == OK) st = copy_bytes(t, entries, count, e);
    if (st == OK) st = build(t, sorted, count, e);
    free(sorted);
    if (st == OK) *out = t;
    else tokenizer_close(t);
    return st;
}

/* ---- using ---- */

/* The longest entry at the start of the text; *read counts the bytes looked at. */
static int32_t longest(const struct tokenizer *t, const uint8_t *text, size_t length, size_t *end, size_t *read) {
    const struct cell *cells = t->cells;
    int32_t state = ROOT, id = 0;
    size_t j = 0;
    for (; j < length; j++) {
        int32_t next = cells[state].base + text[j];
        if (cells[next].parent != state) break;
        state = next;
        if (cells[state].id) {
            id = cells[state].id;
            *end = j + 1;
        }
    }
    *read += j;
    return id; /* found: every single byte is an entry */
}

size_t tokenizer_encode(const struct tokenizer *t, const uint8_t *text, size_t length, int32_t *ids,
                        struct watch *watch) {
    enum { BETWEEN = 1 << 23 }; /* bytes looked at */
    size_t n = 0, i = 0, end = 0;
    while (i < length) {
        ids[n++] = longest(t, text + i, length - i, &end, &watch->read);
        i += end;
        if (watch->read < BETWEEN) continue;
        watch->read = 0;
        if (!watch->go_on(watch->user)) return SIZE_MAX;
    }
    return n;
}

const uint8_t *tokenizer_bytes(const struct tokenizer *t, int32_t id, size_t *length) {
    *length = 0;
    if (id == 0) return t->blob;
    if (id < 0 || id >= t->ids || !t->lengths[id]) return NULL;
    *length = (size_t)t->lengths[id];
    return t->blob + t->at[id];
}
