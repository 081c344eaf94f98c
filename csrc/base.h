/* Ground floor: the error value, checked sizes, counted aligned memory, arrays as they come from a file.
 *
 * Every function that can fail returns an enum status and, when it is not OK, has filled the caller's
 * struct error: the lowest function that understands the failure writes what, where, expected, found and
 * what to do. Nothing here or above prints, exits, opens a file or keeps state of its own. */
#ifndef RWKVSTS_BASE_H
#define RWKVSTS_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum status { OK = 0, BAD_INPUT, NO_MEMORY, DEVICE_FAILED, INTERRUPTED };

struct error {
    enum status status;
    char text[500];
};

#if defined(__GNUC__)
#define PRINTF_LIKE(format_at, first_at) __attribute__((format(printf, format_at, first_at)))
#else
#define PRINTF_LIKE(format_at, first_at)
#endif

/* Fills *e and returns the status, so that a failure is one statement: return fail(e, BAD_INPUT, ...). */
enum status fail(struct error *e, enum status status, const char *format, ...) PRINTF_LIKE(3, 4);

/* Passes a failure up unchanged. Functions with something to close use `goto done` instead. */
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        enum status status_ = (call);                                                                                  \
        if (status_ != OK) return status_;                                                                             \
    } while (0)

/* Elements of an array that is declared in sight. */
#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* *out = a * b, a + b; false when the result does not fit. */
bool size_mul(size_t a, size_t b, size_t *out);
bool size_add(size_t a, size_t b, size_t *out);

/* Bytes held now and the most ever held. Shared by the sessions of a model: changed atomically. */
struct meter {
    size_t now, peak;
};
void meter_add(struct meter *m, size_t bytes);
void meter_sub(struct meter *m, size_t bytes);

/* Memory aligned to a cache line, or to a huge page where it is large: weights are streamed once a pass and
 * 4 KiB pages would cost a TLB miss every 64 lines. Not zeroed. m may be NULL. */
void *memory_new(struct meter *m, size_t bytes);
void memory_free(struct meter *m, void *p, size_t bytes);

enum dtype { F32, F16, BF16 };
size_t dtype_bytes(enum dtype t); /* 4, 2, 2 */
const char *dtype_name(enum dtype t);

/* A dense row-major array that somebody else owns. */
struct array {
    enum dtype dtype;
    int ndim;
    int64_t shape[4];
    const void *data;
};
size_t array_count(const struct array *a);

float half_to_float(uint16_t h);     /* IEEE binary16, exact */
float bfloat16_to_float(uint16_t h); /* exact */
uint16_t float_to_bfloat16(float f); /* to nearest, ties to even; NaN stays NaN */
uint16_t float_to_half(float f);     /* to nearest, ties to even; overflow gives infinity */

/* out[n] = elements first .. first + n of a, in single precision. */
void array_to_float(const struct array *a, size_t first, size_t n, float *out);

/* Whether none of n floats is NaN or infinite. */
bool floats_finite(const float *x, size_t n);

/* Index of the first element that is NaN or infinite, or SIZE_MAX. */
size_t array_not_finite(const struct array *a);

#ifdef __cplusplus
}
#endif

#endif
