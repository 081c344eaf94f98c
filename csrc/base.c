/* Ground floor; see base.h. */
#include "base.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

enum { CACHE_LINE = 64, HUGE_PAGE = 2 << 20 };

enum status fail(struct error *e, enum status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    e->status = status;
    vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    return status;
}

bool size_mul(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}

bool size_add(size_t a, size_t b, size_t *out) {
    return !__builtin_add_overflow(a, b, out);
}

void meter_add(struct meter *m, size_t bytes) {
    size_t now = __atomic_add_fetch(&m->now, bytes, __ATOMIC_RELAXED);
    size_t peak = __atomic_load_n(&m->peak, __ATOMIC_RELAXED);
    while (now > peak)
        if (__atomic_compare_exchange_n(&m->peak, &peak, now, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) break;
}

void meter_sub(struct meter *m, size_t bytes) {
    __atomic_sub_fetch(&m->now, bytes, __ATOMIC_RELAXED);
}

static size_t padded_to(size_t bytes, size_t align) {
    return (bytes + align - 1) / align * align;
}

/* Large blocks are mapped, not taken from the heap: there a temporary array between two weights would stay for good. */
static void *large_new(size_t padded) {
#if defined(__linux__)
    char *p = mmap(NULL, padded + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    size_t before = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE, after = HUGE_PAGE - before;
    if (before) munmap(p, before);
    if (after) munmap(p + before + padded, after);
    (void)madvise(p + before, padded, MADV_HUGEPAGE); /* a wish; slower without, never wrong */
    return p + before;
#else
    return aligned_alloc(HUGE_PAGE, padded);
#endif
}

static void large_free(void *p, size_t padded) {
#if defined(__linux__)
    munmap(p, padded);
#else
    (void)padded;
    free(p);
#endif
}

void *memory_new(struct meter *m, size_t bytes) {
    size_t most;
    if (!size_add(bytes, 2 * (size_t)HUGE_PAGE, &most)) return NULL;
    void *p = bytes >= HUGE_PAGE ? large_new(padded_to(bytes, HUGE_PAGE))
                                 : aligned_alloc(CACHE_LINE, padded_to(bytes ? bytes : 1, CACHE_LINE));
    if (p && m) meter_add(m, bytes);
    return p;
}

void memory_free(struct meter *m, void *p, size_t bytes) {
    if (!p) return;
    if (bytes >= HUGE_PAGE) large_free(p, padded_to(bytes, HUGE_PAGE));
    else free(p);
    if (m) meter_sub(m, bytes);
}

size_t dtype_bytes(enum dtype t) {
    return t == F32 ? 4 : 2;
}

const char *dtype_name(enum dtype t) {
    return t == F32 ? "float32" : t == F16 ? "float16" : "bfloat16";
}

size_t array_count(const struct array *a) {
    size_t n = 1;
    for (int i = 0; i < a->ndim; i++) n *= (size_t)a->shape[i];
    return n;
}

static float bits_to_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint32_t float_to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000 | mantissa << 13);
    if (exponent) return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
    float tiny = (float)mantissa * 0x1p-24f; /* subnormal halves are normal floats */
    return sign ? -tiny : tiny;
}

float bfloat16_to_float(uint16_t h) {
    return bits_to_float((uint32_t)h << 16);
}

uint16_t float_to_bfloat16(float f) {
    uint32_t u = float_to_bits(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

uint16_t float_to_half(float f) {
    uint32_t u = float_to_bits(f), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and up round to infinity */
    if (magnitude < 0x38800000) {
        /* Adding 0.5 puts the half's last place at the float's: the processor rounds to nearest even for us. */
        return (uint16_t)(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000));
    }
    return (uint16_t)(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

void array_to_float(const struct array *a, size_t first, size_t n, float *out) {
    const uint16_t *half = (const uint16_t *)a->data + first;
    switch (a->dtype) {
    case F32: memcpy(out, (const float *)a->data + first, n * sizeof *out); break;
    case F16:
        for (size_t i = 0; i < n; i++) out[i] = half_to_float(half[i]);
        break;
    case BF16:
        for (size_t i = 0; i < n; i++) out[i] = bfloat16_to_float(half[i]);
        break;
    }
}

bool floats_finite(const float *x, size_t n) {
    const uint32_t exponent = 0x7f800000u;
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bad |= (bits & exponent) == exponent;
    }
    return !bad;
}

size_t array_not_finite(const struct array *a) {
    /* An exponent of all ones is NaN or infinity in each format. The first loop has no exit, so that it vectorises. */
    size_t n = array_count(a), bad = 0;
    if (a->dtype == F32) {
        const uint32_t *u = a->data;
        for (size_t i = 0; i < n; i++) bad += (u[i] & 0x7f800000) == 0x7f800000;
        for (size_t i = 0; bad && i < n; i++)
            if ((u[i] & 0x7f800000) == 0x7f800000) return i;
    } else {
        const uint16_t *u = a->data, ones = a->dtype == F16 ? 0x7c00 : 0x7f80;
        for (size_t i = 0; i < n; i++) bad += (u[i] & ones) == ones;
        for (size_t i = 0; bad && i < n; i++)
            if ((u[i] & ones) == ones) return i;
    }
    return SIZE_MAX;
}
