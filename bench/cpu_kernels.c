/* The workshop of the CPU kernels: checks every product, then times it against the peak that this machine shows in the
 * same run. Stand-alone:
 *
 *   gcc -O3 -std=c11 -D_DEFAULT_SOURCE -Icsrc bench/cpu_kernels.c $(ls csrc/cpu/[a-z]*.c) csrc/base.c \
 *       -lpthread -lm -o /tmp/cpu_kernels
 *   /tmp/cpu_kernels [check | peak | time | verbs | all] [threads] [instruction set]
 *
 * With -DEMULATE_AMX='"../../bench/amx_model.h"' the AMX kernel runs on a software model of the tile registers: layout
 * and tail errors show on any machine. Products are checked against double precision on ragged random sizes, with
 * the bits of each row compared between batches; the tolerance is the worst case of a float32 sum. */
#define _GNU_SOURCE
#include "cpu/cpu.h"
#include "verbs6.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* With one thread its own processor time: right on a machine that is busy with other things too. */
static clockid_t clock_used = CLOCK_MONOTONIC;

static double now(void) {
    struct timespec t;
    clock_gettime(clock_used, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t seed = 88172645463325252u;

static float random_float(void) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (float)((double)(seed >> 11) * 0x1p-53 * 2.0 - 1.0);
}

static int random_int(int low, int high) {
    return low + (int)((random_float() * 0.5f + 0.5f) * (float)(high - low + 1)) % (high - low + 1);
}

static void must(enum status status, const struct error *e) {
    if (status == OK) return;
    fprintf(stderr, "%s\n", e->text);
    exit(1);
}

/* ---- one product on the backend -------------------------------------------------------------------------------- */

struct bench {
    const struct backend *be;
    struct device *dev;
    struct worker *w;
    struct meter meter;
    struct error e;
    enum dtype dtype;
};

static bool bench_open(struct bench *b, const char *isa, enum dtype dtype, int threads, int C, int F, int rows) {
    memset(b, 0, sizeof *b);
    b->be = cpu_backend();
    b->dtype = dtype;
    struct dims dims = {.L = 1, .C = C, .H = 1, .N = 1, .F = F, .rank = {1, 1}, .V = 1};
    struct device_options options = {.dtype = dtype, .threads = threads, .isa = isa};
    if (b->be->open(&dims, NULL, 0, &options, &b->meter, &b->dev, &b->e) != OK) return false;
    must(b->be->worker_open(b->dev, rows, rows, 1, &b->w, &b->e), &b->e);
    return true;
}

static void bench_close(struct bench *b) {
    b->be->worker_close(b->w);
    b->be->close(b->dev);
}

static void bench_rows(struct bench *b, int T) {
    int32_t start[2] = {0, T}, zero = 0, none = -1;
    struct pass pass = {.T = T, .S = 1, .start = start, .before = &zero, .total = &T, .from = &none, .to = &none};
    bool replay;
    must(b->be->begin(b->w, &pass, &replay, &b->e), &b->e);
}

/* n numbers of a dtype, and what they are as floats. */
static void *random_array(enum dtype dtype, size_t n, float scale, float *exact) {
    char *p = aligned_alloc(64, (n * dtype_bytes(dtype) + 63) / 64 * 64);
    for (size_t i = 0; i < n; i++) {
        float f = scale * random_float();
        if (dtype == BF16) {
            uint16_t h = float_to_bfloat16(f);
            f = bfloat16_to_float(h);
            memcpy(p + 2 * i, &h, 2);
        } else {
            memcpy(p + 4 * i, &f, 4);
        }
        if (exact) exact[i] = f;
    }
    return p;
}

static struct weight pack(struct bench *b, enum dtype dtype, int n, int k, const void *data) {
    struct array a = {.dtype = dtype, .ndim = 2, .shape = {n, k}, .data = data};
    struct weight w;
    must(b->be->pack(b->dev, LINEAR, &a, &w, &b->e), &b->e);
    return w;
}

/* ---- checks ---------------------------------------------------------------------------------------------------- */

static double reference(enum epilogue epilogue, double y, double out, double gate) {
    switch (epilogue) {
    case SILU: return y / (1 + exp(-y));
    case SIGMOID: return 1 / (1 + exp(-y));
    case RELU2: return y > 0 ? y * y : 0;
    case ADD: return out + y;
    case GATE_ADD: return out + gate * y;
    default: return y;
    }
}

/* Random sizes, one epilogue; returns the worst error over the bound. */
static double check_once(const char *isa, enum dtype dtype, enum dtype weights, int threads, enum epilogue epilogue) {
    struct bench b;
    int M = random_int(1, 300), N = random_int(1, 200), K = random_int(1, random_int(0, 3) ? 700 : 2600);
    int part = random_int(1, M);
    if (!bench_open(&b, isa, dtype, threads, K, N, M)) return -1;
    size_t mk = (size_t)M * (size_t)K, nk = (size_t)N * (size_t)K, mn = (size_t)M * (size_t)N;
    float *a = malloc(mk * 4), *w = malloc(nk * 4), *gate = malloc(mn * 4), *before = malloc(mn * 4),
          *out = malloc(mn * 4);
    void *in = random_array(dtype, mk, 1, a), *linear = random_array(weights, nk, 1, w);
    for (size_t i = 0; i < mn; i++) gate[i] = random_float(), before[i] = random_float();
    struct weight packed = pack(&b, weights, N, K, linear);
    /* All rows at once, then the first `part` alone: the bits must be the same. */
    memcpy(out, before, mn * 4);
    bench_rows(&b, M);
    must(b.be->gemm(b.w, &(struct gemm){.w = &packed, .in = in, .epilogue = epilogue, .out = out, .gate = gate}, 1,
                    &b.e),
         &b.e);
    float *alone = malloc(mn * 4);
    memcpy(alone, before, mn * 4);
    bench_rows(&b, part);
    must(b.be->gemm(b.w, &(struct gemm){.w = &packed, .in = in, .epilogue = epilogue, .out = alone, .gate = gate}, 1,
                    &b.e),
         &b.e);
    bool half = epilogue == RELU2 && dtype == BF16;
    double worst = memcmp(out, alone, (size_t)part * (size_t)N * (half ? 2 : 4)) ? INFINITY : 0;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double y = 0, size = 0;
            for (int k = 0; k < K; k++) {
                double product =
                    (double)a[(size_t)i * (size_t)K + (size_t)k] * (double)w[(size_t)j * (size_t)K + (size_t)k];
                y += product, size += fabs(product);
            }
            size_t at = (size_t)i * (size_t)N + (size_t)j;
            uint16_t h;
            memcpy(&h, (char *)out + 2 * at, 2);
            double got = half ? (double)bfloat16_to_float(h) : (double)out[at];
            double want = reference(epilogue, y, (double)before[at], (double)gate[at]);
            /* A sum of K terms errs by at most K eps times the sum of magnitudes; relu^2 doubles |y| times that. */
            double error = (K + 8) * 0x1p-24 * size, slope = epilogue == RELU2 ? 2 * fabs(y) + error : 1.2;
            double bound = error * slope + fabs(want) * (half ? 0x1p-8 : 0x1p-21) + 1e-30;
            double ratio = fabs(got - want) / bound;
            if (!(ratio <= worst)) worst = ratio;
        }
    b.be->unpack(b.dev, &packed);
    bench_close(&b);
    free(a), free(w), free(gate), free(before), free(out), free(alone), free(in), free(linear);
    return worst;
}

static int check(const char *isa, int threads) {
    int failures = 0;
    static const struct {
        enum dtype in, weights;
    } kinds[] = {{F32, F32}, {F32, BF16}, {BF16, BF16}};
    for (int kind = 0; kind < 3; kind++) {
        double worst = 0;
        for (int i = 0; i < 24; i++) {
            double ratio = check_once(isa, kinds[kind].in, kinds[kind].weights, threads, (enum epilogue)(i % 6));
            if (ratio < 0) return 0;
            if (!(ratio <= worst)) worst = ratio;
        }
        failures += !(worst <= 1);
        printf("check %-11s in %-8s weights %-8s worst error / bound %.3f %s\n", isa, dtype_name(kinds[kind].in),
               dtype_name(kinds[kind].weights), worst, worst <= 1 ? "ok" : "FAILED");
    }
    return failures;
}

/* ---- peaks ----------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
enum { PEAK_STEPS = 20000000 };
typedef double peak_loop(void);

#define PEAK_LOOP(name, isa, type, zero, flops, step)                                                                  \
    __attribute__((target(isa))) static double name(void) {                                                            \
        type s0 = zero, s1 = zero, s2 = zero, s3 = zero, s4 = zero, s5 = zero, s6 = zero, s7 = zero;                   \
        type s8 = zero, s9 = zero;                                                                                     \
        double start = now();                                                                                          \
        for (int i = 0; i < PEAK_STEPS; i++) {                                                                         \
            step(s0) step(s1) step(s2) step(s3) step(s4) step(s5) step(s6) step(s7) step(s8) step(s9)                  \
        }                                                                                                              \
        return 10.0 * PEAK_STEPS * (flops) / (now() - start);                                                          \
    }
#define STEP(instruction, x) __asm__ volatile(instruction " %0, %0, %0" : "+v"(x));
#define FMA_STEP(x) STEP("vfmadd231ps", x)
#define DP_STEP(x) STEP("vdpbf16ps", x)
PEAK_LOOP(peak_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), 16, FMA_STEP)
PEAK_LOOP(peak_avx512, "avx512f", __m512, _mm512_setzero_ps(), 32, FMA_STEP)
PEAK_LOOP(peak_bf16, "avx512f,avx512bf16", __m512, _mm512_setzero_ps(), 64, DP_STEP)

__attribute__((target("amx-tile,amx-bf16"))) static double peak_amx(void) {
#if defined(EMULATE_AMX)
    return NAN;
#else
    static const unsigned char config[64] __attribute__((aligned(64))) = {
        1, 0, [16] = 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0, [48] = 16, 16, 16, 16, 16, 16, 16, 16};
    _tile_loadconfig(config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    double start = now();
    for (int i = 0; i < PEAK_STEPS / 8; i++) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    double rate = 4.0 * (PEAK_STEPS / 8) * 16 * 16 * 32 * 2 / (now() - start);
    _tile_release();
    return rate;
#endif
}

static void *run_peak(void *argument) {
    void **both = argument;
    *(double *)both[1] = (*(peak_loop **)both[0])();
    return NULL;
}

static double peak_of(peak_loop *loop, int threads) {
    pthread_t thread[64];
    double rate[64], sum = 0;
    void *both[64][2];
    for (int i = 0; i < threads; i++) {
        both[i][0] = &loop, both[i][1] = &rate[i];
        pthread_create(&thread[i], NULL, run_peak, both[i]);
    }
    for (int i = 0; i < threads; i++) pthread_join(thread[i], NULL), sum += rate[i];
    return sum;
}

/* The peak of the instruction that a product of this dtype runs on. */
static double peak(const char *isa, enum dtype dtype, int threads) {
    struct cpu_features f = cpu_features();
    if (!strcmp(isa, "amx") && dtype == BF16) return f.amx_bf16 ? peak_of(peak_amx, threads) : NAN;
    if (!strcmp(isa, "avx512bf16") && dtype == BF16) return f.avx512bf16 ? peak_of(peak_bf16, threads) : NAN;
    if (!strcmp(isa, "portable")) return NAN;
    if (!strcmp(isa, "avx2")) return f.avx2_fma ? peak_of(peak_avx2, threads) : NAN;
    return f.avx512 ? peak_of(peak_avx512, threads) : NAN;
}
#else
static double peak(const char *isa, enum dtype dtype, int threads) {
    (void)isa, (void)dtype, (void)threads;
    return NAN;
}
#endif

static volatile uint64_t sink;

static void *read_memory(void *argument) {
    void **both = argument;
    const uint64_t *p = both[0];
    uint64_t sum = 0;
    for (size_t i = 0; i < *(size_t *)both[1] / 8; i++) sum += p[i];
    sink = sum;
    return NULL;
}

static void memory_rate(int threads) {
    size_t bytes = (size_t)512 << 20;
    pthread_t thread[64];
    void *both[64][2];
    for (int i = 0; i < threads; i++) {
        both[i][0] = memory_new(NULL, bytes), both[i][1] = &bytes;
        memset(both[i][0], 1, bytes);
    }
    double start = now();
    for (int i = 0; i < threads; i++) pthread_create(&thread[i], NULL, read_memory, both[i]);
    for (int i = 0; i < threads; i++) pthread_join(thread[i], NULL);
    printf("memory read, %d threads: %.1f GB/s\n", threads, 1e-9 * (double)bytes * threads / (now() - start));
    for (int i = 0; i < threads; i++) memory_free(NULL, both[i][0], bytes);
}

/* ---- times ----------------------------------------------------------------------------------------------------- */

enum { COPIES_BYTES = 200 << 20 }; /* weights go round so many bytes: from memory, as in a pass over the blocks */

static void time_shape(const char *isa, enum dtype dtype, enum dtype weights, int threads, int N, int K, double top) {
    static const int rows[] = {1, 16, 54, 256, 1024};
    struct bench b;
    if (!bench_open(&b, isa, dtype, threads, 2048, 7168, 1024)) return;
    size_t weight_bytes = (size_t)N * (size_t)K * dtype_bytes(weights);
    int copies = (int)(COPIES_BYTES / weight_bytes) + 1;
    struct weight packed[64];
    void *linear = random_array(weights, (size_t)N * (size_t)K, 0.02f, NULL);
    for (int i = 0; i < copies; i++) packed[i] = pack(&b, weights, N, K, linear);
    void *in = random_array(dtype, (size_t)1024 * (size_t)K, 1, NULL);
    float *out = memory_new(NULL, (size_t)1024 * (size_t)N * 4);
    memset(out, 0, (size_t)1024 * (size_t)N * 4);
    printf("%-11s %-8s x %-8s N %4d K %4d:", isa, dtype_name(dtype), dtype_name(weights), N, K);
    for (int r = 0; r < 5; r++) {
        double best = 1e9, flops = 2.0 * rows[r] * N * K;
        int repeats = (int)(2e10 / (flops + 1e9)) + 2;
        bench_rows(&b, rows[r]);
        for (int i = 0; i < repeats; i++) {
            double start = now();
            struct gemm product = {.w = &packed[i % copies], .in = in, .epilogue = STORE, .out = out};
            must(b.be->gemm(b.w, &product, 1, &b.e), &b.e);
            double took = now() - start;
            if (took < best) best = took;
        }
        if (rows[r] < 54) printf("  M %d: %.1f GB/s", rows[r], 1e-9 * (double)weight_bytes / best);
        else printf("  M %d: %.0f GF/s", rows[r], 1e-9 * flops / best);
        if (r == 4) printf(" %.0f %%\n", 100 * flops / best / top);
    }
    for (int i = 0; i < copies; i++) b.be->unpack(b.dev, &packed[i]);
    bench_close(&b);
    memory_free(NULL, out, (size_t)1024 * (size_t)N * 4);
    free(in), free(linear);
}

static void time_isa(const char *isa, int threads) {
    static const int shapes[][2] = {{2048, 2048}, {7168, 2048}, {2048, 7168}};
    double top32 = peak(isa, F32, threads), top16 = peak(isa, BF16, threads);
    printf("%-11s peak of its instruction: float32 %.0f GF/s, bfloat16 %.0f GF/s\n", isa, 1e-9 * top32, 1e-9 * top16);
    for (int i = 0; i < 3; i++) {
        int N = shapes[i][0], K = shapes[i][1];
        if (strcmp(isa, "avx512bf16") && strcmp(isa, "amx")) {
            time_shape(isa, F32, F32, threads, N, K, top32);
            time_shape(isa, F32, BF16, threads, N, K, top32);
        }
        time_shape(isa, BF16, BF16, threads, N, K, top16);
    }
}

/* ---- verbs ----------------------------------------------------------------------------------------------------- */

enum { C = 2048, H = 32, N = 64, F = 7168, R = 32, D = 64, VOCABULARY = 1000, T = 1008, LENGTH = 28 };

struct block {
    struct weight vector, table, heads, maa_w1, maa_w2, decay_w1, decay_w2, square, wide, narrow;
};

static struct weight pack_random(struct bench *b, enum role role, enum dtype dtype, int g, int rows, int columns) {
    size_t n = (size_t)g * (size_t)rows * (size_t)columns;
    void *data = random_array(dtype, n, 0.1f, NULL);
    struct array a = {.dtype = dtype, .ndim = 3, .shape = {g, rows, columns}, .data = data};
    if (role != LORA_UP) a = (struct array){.dtype = dtype, .ndim = 2, .shape = {rows, columns}, .data = data};
    struct weight w;
    must(b->be->pack(b->dev, role, &a, &w, &b->e), &b->e);
    free(data);
    return w;
}

/* Large pages, as the session's slab has them. */
static float *zeroed(size_t bytes) {
    return memset(memory_new(NULL, bytes), 0, bytes);
}

static struct block random_block(struct bench *b, enum dtype dtype) {
    return (struct block){
        .vector = pack_random(b, VECTOR, dtype, 1, 1, C),
        .table = pack_random(b, TABLE, dtype, 1, VOCABULARY, C),
        .heads = pack_random(b, VECTOR, dtype, 1, H, N),
        .maa_w1 = pack_random(b, LORA_DOWN, dtype, 1, C, 5 * R),
        .maa_w2 = pack_random(b, LORA_UP, dtype, 5, R, C),
        .decay_w1 = pack_random(b, LORA_DOWN, dtype, 1, C, D),
        .decay_w2 = pack_random(b, LORA_UP, dtype, 1, D, C),
        .square = pack_random(b, LINEAR, dtype, 1, C, C),
        .wide = pack_random(b, LINEAR, dtype, 1, F, C),
        .narrow = pack_random(b, LINEAR, dtype, 1, C, F),
    };
}

/* Microseconds a token that `call` takes, the best of three. */
#define TIME_VERB(name, flops, call)                                                                                   \
    do {                                                                                                               \
        double best = 1e9;                                                                                             \
        for (int i = 0; i < 3; i++) {                                                                                  \
            double began = now();                                                                                      \
            must(call, &b->e);                                                                                         \
            if (now() - began < best) best = now() - began;                                                            \
        }                                                                                                              \
        printf("  %-16s %8.2f us a token %8.1f GF/s\n", name, 1e6 * best / T, 1e-9 * (flops) * T / best);              \
    } while (0)

/* Buffers of a pass; in type and out type share them, as float32 is the larger. */
struct stage {
    struct block w;
    float *x, *decay, *low, *wide, *pooled, *buffer[6];
};

enum { ROW_BYTES = T * C * sizeof(float), WIDE_BYTES = T * F * sizeof(float) };

static struct stage stage_open(struct bench *b, enum dtype dtype) {
    struct stage s = {.w = random_block(b, dtype)};
    s.x = zeroed(ROW_BYTES);
    s.decay = zeroed(ROW_BYTES);
    s.low = zeroed(ROW_BYTES);
    s.pooled = zeroed(ROW_BYTES);
    s.wide = zeroed(WIDE_BYTES);
    for (int i = 0; i < 6; i++) s.buffer[i] = zeroed(ROW_BYTES);
    return s;
}

static void stage_close(struct bench *b, struct stage *s) {
    for (int i = 0; i < 6; i++) memory_free(NULL, s->buffer[i], ROW_BYTES);
    memory_free(NULL, s->x, ROW_BYTES);
    memory_free(NULL, s->decay, ROW_BYTES);
    memory_free(NULL, s->low, ROW_BYTES);
    memory_free(NULL, s->pooled, ROW_BYTES);
    memory_free(NULL, s->wide, WIDE_BYTES);
    struct weight *all = &s->w.vector;
    for (size_t i = 0; i < sizeof s->w / sizeof *all; i++) b->be->unpack(b->dev, all + i);
}

static void time_time_mix(struct bench *b, const struct stage *s) {
    const struct weight *v = &s->w.vector, *square = &s->w.square;
    struct norm ln = {v, v};
    struct shift6 shift = {.x = s->x, .ln1 = ln, .past = s->pooled, .maa_x = v, .maa = {v, v, v, v, v}};
    shift.w1 = &s->w.maa_w1;
    shift.w2 = &s->w.maa_w2;
    for (int i = 0; i < MIXES6; i++) shift.mixed[i] = s->buffer[i];
    TIME_VERB("shift6", 4.0 * C * 5 * R, b->be->rwkv6->shift(b->w, &shift, &b->e));
    const struct gemm five[] = {
        {.w = square, .in = s->buffer[1], .epilogue = STORE, .out = s->x},
        {.w = square, .in = s->buffer[2], .epilogue = STORE, .out = s->x},
        {.w = square, .in = s->buffer[3], .epilogue = STORE, .out = s->x},
        {.w = square, .in = s->buffer[4], .epilogue = SILU, .out = s->x},
        {.w = &s->w.decay_w1, .in = s->buffer[0], .epilogue = LOW_TANH, .out = s->low},
    };
    TIME_VERB("k v r g, decay", 8.0 * C * C + 2.0 * C * D, b->be->gemm(b->w, five, 5, &b->e));
    struct wkv6 wkv = {.r = s->x, .k = s->x, .v = s->x, .g = s->x, .low = s->low, .time_decay = v};
    wkv.w2 = &s->w.decay_w2;
    wkv.decay = s->decay;
    wkv.u = &s->w.heads;
    wkv.ln_x = ln;
    wkv.out = s->buffer[5];
    TIME_VERB("wkv6", 6.0 * C * N + 2.0 * C * D, b->be->rwkv6->wkv(b->w, &wkv, &b->e));
    struct gemm output = {.w = square, .in = s->buffer[5], .epilogue = ADD, .out = s->x};
    TIME_VERB("output", 2.0 * C * C, b->be->gemm(b->w, &output, 1, &b->e));
}

static void time_channel_mix(struct bench *b, const struct stage *s) {
    const struct weight *v = &s->w.vector;
    struct shift shift = {.mixes = 2, .x = s->x, .ln = {v, v}, .past = s->pooled, .mix = {v, v}};
    shift.mixed[0] = s->buffer[0];
    shift.mixed[1] = s->buffer[1];
    TIME_VERB("shift", 0, b->be->shift(b->w, &shift, &b->e));
    const struct gemm two[] = {
        {.w = &s->w.wide, .in = s->buffer[0], .epilogue = RELU2, .out = s->wide},
        {.w = &s->w.square, .in = s->buffer[1], .epilogue = SIGMOID, .out = s->buffer[2]},
    };
    TIME_VERB("ffn key, r", 2.0 * C * (C + F), b->be->gemm(b->w, two, 2, &b->e));
    struct gemm value = {.w = &s->w.narrow, .in = s->wide, .epilogue = GATE_ADD, .out = s->x, .gate = s->buffer[2]};
    value.of_squares = true;
    TIME_VERB("ffn value", 2.0 * C * F, b->be->gemm(b->w, &value, 1, &b->e));
}

static void time_verbs(const char *isa, enum dtype dtype, int threads) {
    struct bench bench = {.be = cpu_backend(), .dtype = dtype}, *b = &bench;
    struct dims dims = {.L = 1, .C = C, .H = H, .N = N, .F = F, .rank = {R, D}, .V = VOCABULARY};
    struct device_options options = {.dtype = dtype, .threads = threads, .isa = isa};
    must(b->be->open(&dims, NULL, 0, &options, &b->meter, &b->dev, &b->e), &b->e);
    must(b->be->worker_open(b->dev, T, T, 1, &b->w, &b->e), &b->e);
    struct stage s = stage_open(b, BF16); /* as released weights are */
    static int32_t ids[T], start[T + 1], zeros[T], total[T], none[T], layers[1];
    for (int i = 0; i < T / LENGTH; i++) start[i] = i * LENGTH, total[i] = LENGTH;
    for (int i = 0; i < T; i++) ids[i] = random_int(0, VOCABULARY - 1), none[i] = -1;
    start[T / LENGTH] = T;
    struct pass pass = {.T = T, .S = T / LENGTH, .ids = ids, .start = start, .before = zeros, .total = total};
    pass.finished = T / LENGTH;
    pass.skip = zeros;
    pass.from = pass.to = none;
    pass.columns = 1;
    pass.layers = layers;
    pass.pooled = s.pooled;
    bool replay;
    must(b->be->begin(b->w, &pass, &replay, &b->e), &b->e);
    printf("%s\n", b->be->describe(b->dev));
    struct norm ln = {&s.w.vector, &s.w.vector};
    TIME_VERB("embed", 0, b->be->embed(b->w, &(struct embed){&s.w.table, ln, s.x}, &b->e));
    time_time_mix(b, &s);
    time_channel_mix(b, &s);
    TIME_VERB("pool", 0, b->be->pool(b->w, &(struct pool){s.x, NULL, 0}, &b->e));
    stage_close(b, &s);
    bench_close(b);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "all", *only = argc > 3 ? argv[3] : NULL;
    int threads = argc > 2 ? atoi(argv[2]) : 2, failures = 0;
    bool every = !strcmp(what, "all");
    if (threads == 1) clock_used = CLOCK_THREAD_CPUTIME_ID;
    if (every || !strcmp(what, "peak")) memory_rate(threads);
    for (int i = 0; cpu_isa_names[i]; i++) {
        const char *isa = cpu_isa_names[i];
        if (!cpu_isa_available(isa) || (only && strcmp(only, isa))) continue;
        if (every || !strcmp(what, "check")) failures += check(isa, threads);
        if (every || !strcmp(what, "time")) time_isa(isa, threads);
        if (every || !strcmp(what, "verbs")) time_verbs(isa, F32, threads), time_verbs(isa, BF16, threads);
    }
    return failures > 0;
}
