/* The CPU kernels by themselves: checks every product, then times it against the peak that this machine shows in the
 * same run. Stand-alone:
 *
 *   gcc -O3 -std=c11 -D_DEFAULT_SOURCE -Icsrc bench/cpu_kernels.c $(ls csrc/cpu/[a-z]*.c) csrc/base.c \
 *       -lpthread -lm -o /tmp/cpu_kernels
 *   /tmp/cpu_kernels [check | peak | pairs | time | all] [threads] [instruction set]
 *
 * `pairs` runs the peak loop on every two processors at a time: hyperthreads of one core slow each other down, also where
 * the system calls them cores. bench/cpu_verbs.c times the verbs.
 *
 * With -DEMULATE_AMX='"../../bench/amx_model.h"' the AMX kernel runs on a software model of the tile registers: layout
 * and tail errors show on any machine. Products are checked against double precision on ragged random sizes, with
 * the bits of each row compared between batches; the tolerance is the worst case of a float32 sum. */
#include "cpu_bench.h"

#include <math.h>
#include <stdatomic.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

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
    pthread_t thread[MOST_THREADS];
    double rate[MOST_THREADS], sum = 0;
    void *both[MOST_THREADS][2];
    for (int i = 0; i < threads; i++) {
        both[i][0] = &loop, both[i][1] = &rate[i];
        pthread_create(&thread[i], NULL, run_peak, both[i]);
    }
    for (int i = 0; i < threads; i++) pthread_join(thread[i], NULL), sum += rate[i];
    return sum;
}

static void *run_peak_on(void *argument) {
    void **all = argument;
    run_only_on(*(int *)all[2]);
    return run_peak(argument);
}

/* The rates of two loops at a time, each on its processor; the same one twice: of one alone. */
static double peak_of_pair(peak_loop *loop, int a, int b) {
    pthread_t thread[2];
    double rate[2] = {0, 0};
    void *all[2][3] = {{&loop, &rate[0], &a}, {&loop, &rate[1], &b}};
    int count = a == b ? 1 : 2;
    for (int i = 0; i < count; i++) pthread_create(&thread[i], NULL, run_peak_on, all[i]);
    for (int i = 0; i < count; i++) pthread_join(thread[i], NULL);
    return rate[0] + rate[1];
}

static void pairs(peak_loop *loop, const char *name) {
    int n = processors_here(), slow = 0;
    double alone[MOST_THREADS];
    for (int i = 0; i < n; i++) alone[i] = peak_of_pair(loop, i, i);
    printf("%s, GFLOP/s of each processor alone:", name);
    for (int i = 0; i < n; i++) printf(" %.0f", 1e-9 * alone[i]);
    printf("\npairs below 80 %% of their sum:");
    for (int i = 0; i < n; i++)
        for (int j = i + 1; j < n; j++) {
            double share = peak_of_pair(loop, i, j) / (alone[i] + alone[j]);
            if (share < 0.8) printf(" %d+%d %.0f %%", i, j, 100 * share), slow++;
        }
    printf(" (%d of %d)\nall %d at once: %.0f GFLOP/s\n", slow, n * (n - 1) / 2, n, 1e-9 * peak_of(loop, n));
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

static void every_pair(void) {
    struct cpu_features f = cpu_features();
    if (f.amx_bf16) pairs(peak_amx, "AMX");
    if (f.avx512) pairs(peak_avx512, "AVX-512");
    else if (f.avx2_fma) pairs(peak_avx2, "AVX2");
}
#else
static void every_pair(void) {
}

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
    pthread_t thread[MOST_THREADS];
    void *both[MOST_THREADS][2];
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

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "all", *only = argc > 3 ? argv[3] : NULL;
    int threads = argc > 2 ? atoi(argv[2]) : 2, failures = 0;
    bool every = !strcmp(what, "all");
    if (threads == 1) clock_used = CLOCK_THREAD_CPUTIME_ID;
    if (every || !strcmp(what, "peak")) memory_rate(threads);
    if (!strcmp(what, "pairs")) every_pair();
    for (int i = 0; cpu_isa_names[i]; i++) {
        const char *isa = cpu_isa_names[i];
        if (!cpu_isa_available(isa) || (only && strcmp(only, isa))) continue;
        if (every || !strcmp(what, "check")) failures += check(isa, threads);
        if (every || !strcmp(what, "time")) time_isa(isa, threads);
    }
    return failures > 0;
}
