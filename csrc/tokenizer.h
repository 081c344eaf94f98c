/* RWKV World tokenizer: at each byte the longest vocabulary entry that matches, over a trie.
 *
 * No pre-split, no normalisation, no BOS (as in ChatRWKV's rwkv_tokenizer).
 * Immutable once open: any number of threads may encode with one tokenizer. Id 0 is the end of a text and has no bytes. */
#ifndef RWKVSTS_TOKENIZER_H
#define RWKVSTS_TOKENIZER_H

#include "base.h"

struct tokenizer;

struct entry { /* one vocabulary line; bytes belong to the caller and are copied */
    int32_t id;
    const uint8_t *bytes;
    size_t length;
};

enum { MOST_ENTRY = 1024 }; /* bytes of an entry; World's longest has 128. It bounds the time of encode */

/* Refuses empty, repeated or longer entries, ids outside 1 .. 2^24 - 1, repeated ids, and a vocabulary that lacks one of
 * the 256 single bytes: with all of them every byte string can be encoded. */
enum status tokenizer_open(const struct entry *entries, size_t count, struct tokenizer **out, struct error *e);
void tokenizer_close(struct tokenizer *t);

/* Asked each some 10 milliseconds whether to go on, over one text or many; false stops. */
struct watch {
    bool (*go_on)(void *user);
    void *user;
    size_t read; /* bytes looked at since; 0 to begin with */
};

/* Writes at most `length` ids (a token has at least one byte) and returns how many; SIZE_MAX if the watch stopped it. At
 * most MOST_ENTRY bytes are looked at for each byte of the text. */
size_t tokenizer_encode(const struct tokenizer *t, const uint8_t *text, size_t length, int32_t *ids,
                        struct watch *watch);

/* The bytes of an id; NULL for an id that is not in the vocabulary (length 0 and not NULL for id 0). */
const uint8_t *tokenizer_bytes(const struct tokenizer *t, int32_t id, size_t *length);

#endif
