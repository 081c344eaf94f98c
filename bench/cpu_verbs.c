/* The verbs of one RWKV-6 block of Finch-1B6's size: microseconds a token by a team of threads, beside what as many
 * processors reach when none waits for another, which is a worker of one thread on each, all at the same time.
 *
 *   gcc -O3 -std=c11 -D_DEFAULT_SOURCE -Icsrc bench/cpu_verbs.c $(ls csrc/cpu/[a-z]*.c) csrc/base.c \
 *       -lpthread -lm -o /tmp/cpu_verbs
 *   /tmp/cpu_verbs [threads] [bfloat16 | float32] [instruction set]
 *
 * "one" is the first processor alone. Each figure is the best of some calls; the workers of one thread wait for each other
 * before every call, so that all of them run the same verb. Rows are those of a pass; the weights are one block's. */
#include "cpu_bench.h"
#include "verbs6.h"

enum { C = 2048, H = 32, N = 64, F = 7168, R = 32, D = 64, VOCABULARY = 1000, LENGTH = 28, MOST_ROWS = 4096 };
enum { REPEATS = 4 };
enum verb { EMBED, TIME_SHIFT, KVRG, WKV, OUTPUT, CHANNEL_SHIFT, KEY, VALUE, POOL, VERBS };
static const char *const NAMES[] = {"embed",         "time shift", "k v r g, decay", "decay, wkv", "output",
                                    "channel shift", "ffn key, r", "ffn value",      "pool"};

struct block {
    struct weight vector, table, heads, maa_w1, maa_w2, decay_w1, decay_w2, key, value, receptance, gate, output;
    struct weight ffn_key, ffn_receptance, ffn_value;
};

/* What all workers share. */
struct setting {
    const struct backend *be;
    struct device *dev;
    struct block w;
    struct meter meter;
    struct pass pass;
    pthread_barrier_t together;
};

/* A worker and the buffers of its pass; in type and out type share them, as float32 is the larger. */
struct crew {
    struct setting *s;
    int processor; /* -1: any */
    struct worker *w;
    float *x, *decay, *low, *wide, *pooled, *mixed[MIXES6], *heads[4], *y, *ffn_mixed[2], *ffn_r;
    double best[VERBS]; /* seconds */
    struct error e;
};

static struct weight pack_random(struct setting *s, enum role role, int g, int rows, int columns) {
    size_t n = (size_t)g * (size_t)rows * (size_t)columns;
    void *data = random_array(BF16, n, 0.02f, NULL); /* as released weights are */
    struct array a = {.dtype = BF16, .ndim = 3, .shape = {g, rows, columns}, .data = data};
    if (role != LORA_UP) a = (struct array){.dtype = BF16, .ndim = 2, .shape = {rows, columns}, .data = data};
    struct weight w;
    struct error e;
    must(s->be->pack(s->dev, role, &a, &w, &e), &e);
    free(data);
    return w;
}

static struct block random_block(struct setting *s) {
    return (struct block){
        .vector = pack_random(s, VECTOR, 1, 1, C),
        .table = pack_random(s, TABLE, 1, VOCABULARY, C),
        .heads = pack_random(s, VECTOR, 1, H, N),
        .maa_w1 = pack_random(s, LORA_DOWN, 1, C, 5 * R),
        .maa_w2 = pack_random(s, LORA_UP, 5, R, C),
        .decay_w1 = pack_random(s, LORA_DOWN, 1, C, D),
        .decay_w2 = pack_random(s, LORA_UP, 1, D, C),
        .key = pack_random(s, LINEAR, 1, C, C),
        .value = pack_random(s, LINEAR, 1, C, C),
        .receptance = pack_random(s, LINEAR, 1, C, C),
        .gate = pack_random(s, LINEAR, 1, C, C),
        .output = pack_random(s, LINEAR, 1, C, C),
        .ffn_key = pack_random(s, LINEAR, 1, F, C),
        .ffn_receptance = pack_random(s, LINEAR, 1, C, C),
        .ffn_value = pack_random(s, LINEAR, 1, C, F),
    };
}

/* Large pages, as a session's slab has them. */
static float *matrix(const struct setting *s, int columns) {
    size_t bytes = (size_t)s->pass.T * (size_t)columns * sizeof(float);
    return memset(memory_new(NULL, bytes), 0, bytes);
}

static void crew_buffers(struct crew *c) {
    const struct setting *s = c->s;
    float **all[] = {&c->x,        &c->decay,    &c->low,      &c->pooled,       &c->mixed[0],    &c->mixed[1],
                     &c->mixed[2], &c->mixed[3], &c->mixed[4], &c->heads[0],     &c->heads[1],    &c->heads[2],
                     &c->heads[3], &c->y,        &c->ffn_r,    &c->ffn_mixed[0], &c->ffn_mixed[1]};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) *all[i] = matrix(s, C);
    c->wide = matrix(s, F);
}

static enum status time_shift(struct crew *c) {
    const struct block *b = &c->s->w;
    const struct weight *v = &b->vector;
    struct shift6 shift = {.x = c->x, .ln1 = {v, v}, .past = c->pooled, .maa_x = v, .maa = {v, v, v, v, v}};
    shift.w1 = &b->maa_w1;
    shift.w2 = &b->maa_w2;
    for (int i = 0; i < MIXES6; i++) shift.mixed[i] = c->mixed[i];
    return c->s->be->rwkv6->shift(c->w, &shift, &c->e);
}

static enum status kvrg(struct crew *c) {
    const struct block *b = &c->s->w;
    const struct gemm five[] = {
        {.w = &b->key, .in = c->mixed[1], .epilogue = STORE, .out = c->heads[0]},
        {.w = &b->value, .in = c->mixed[2], .epilogue = STORE, .out = c->heads[1]},
        {.w = &b->receptance, .in = c->mixed[3], .epilogue = STORE, .out = c->heads[2]},
        {.w = &b->gate, .in = c->mixed[4], .epilogue = SILU, .out = c->heads[3]},
        {.w = &b->decay_w1, .in = c->mixed[0], .epilogue = LOW_TANH, .out = c->low},
    };
    return c->s->be->gemm(c->w, five, 5, &c->e);
}

static enum status wkv(struct crew *c) {
    const struct block *b = &c->s->w;
    const struct weight *v = &b->vector;
    struct wkv6 wkv = {.k = c->heads[0], .v = c->heads[1], .r = c->heads[2], .g = c->heads[3], .low = c->low};
    wkv.time_decay = v;
    wkv.w2 = &b->decay_w2;
    wkv.decay = c->decay;
    wkv.u = &b->heads;
    wkv.ln_x = (struct norm){v, v};
    wkv.out = c->y;
    return c->s->be->rwkv6->wkv(c->w, &wkv, &c->e);
}

static enum status channel_shift(struct crew *c) {
    const struct weight *v = &c->s->w.vector;
    struct shift shift = {.mixes = 2, .x = c->x, .ln = {v, v}, .past = c->pooled, .mix = {v, v}};
    shift.mixed[0] = c->ffn_mixed[0];
    shift.mixed[1] = c->ffn_mixed[1];
    return c->s->be->shift(c->w, &shift, &c->e);
}

static enum status key(struct crew *c) {
    const struct gemm two[] = {
        {.w = &c->s->w.ffn_key, .in = c->ffn_mixed[0], .epilogue = RELU2, .out = c->wide},
        {.w = &c->s->w.ffn_receptance, .in = c->ffn_mixed[1], .epilogue = SIGMOID, .out = c->ffn_r},
    };
    return c->s->be->gemm(c->w, two, 2, &c->e);
}

static enum status run_verb(struct crew *c, enum verb verb) {
    const struct setting *s = c->s;
    struct gemm output = {.w = &s->w.output, .in = c->y, .epilogue = ADD, .out = c->x};
    struct gemm value = {.w = &s->w.ffn_value, .in = c->wide, .epilogue = GATE_ADD, .out = c->x, .gate = c->ffn_r};
    value.of_squares = true;
    switch (verb) {
    case EMBED: return s->be->embed(c->w, &(struct embed){&s->w.table, {&s->w.vector, &s->w.vector}, c->x}, &c->e);
    case TIME_SHIFT: return time_shift(c);
    case KVRG: return kvrg(c);
    case WKV: return wkv(c);
    case OUTPUT: return s->be->gemm(c->w, &output, 1, &c->e);
    case CHANNEL_SHIFT: return channel_shift(c);
    case KEY: return key(c);
    case VALUE: return s->be->gemm(c->w, &value, 1, &c->e);
    default: return s->be->pool(c->w, &(struct pool){c->x, NULL, 0}, &c->e);
    }
}

static void *run_crew(void *argument) {
    struct crew *c = argument;
    struct setting *s = c->s;
    if (c->processor >= 0) run_only_on(c->processor);
    must(s->be->worker_open(s->dev, s->pass.T, s->pass.S, 1, &c->w, &c->e), &c->e);
    crew_buffers(c);
    struct pass pass = s->pass;
    pass.pooled = c->pooled;
    bool replay;
    must(s->be->begin(c->w, &pass, &replay, &c->e), &c->e);
    for (int verb = 0; verb < VERBS; verb++) {
        c->best[verb] = 1e9;
        for (int i = 0; i < REPEATS; i++) {
            pthread_barrier_wait(&s->together);
            double began = now();
            must(run_verb(c, (enum verb)verb), &c->e);
            double took = now() - began;
            if (took < c->best[verb]) c->best[verb] = took;
        }
    }
    s->be->worker_close(c->w);
    return NULL; /* buffers go with the process */
}

/* As many ragged sequences as make a pass of this device. */
static struct pass random_pass(const struct backend *be, struct device *dev) {
    static int32_t ids[MOST_ROWS], start[MOST_ROWS + 1], zeros[MOST_ROWS], total[MOST_ROWS], none[MOST_ROWS], layers[1];
    int S = be->rows(dev, 1, 0) / LENGTH, T = S * LENGTH;
    for (int i = 0; i < S; i++) start[i] = i * LENGTH, total[i] = LENGTH;
    start[S] = T;
    for (int i = 0; i < T; i++) ids[i] = random_int(0, VOCABULARY - 1), none[i] = -1;
    struct pass pass = {.T = T, .S = S, .finished = S, .ids = ids, .start = start, .before = zeros, .total = total};
    pass.skip = zeros;
    pass.from = pass.to = none;
    pass.columns = 1;
    pass.layers = layers;
    return pass;
}

/* `crews` workers of `threads` threads at the same time: microseconds a token of them all. */
static int time_crews(const struct device_options *options, int crews, double micros[VERBS]) {
    static struct crew crew[MOST_THREADS];
    pthread_t thread[MOST_THREADS];
    struct setting s = {.be = cpu_backend()};
    struct dims dims = {.L = 1, .C = C, .H = H, .N = N, .F = F, .rank = {R, D}, .V = VOCABULARY};
    struct error e;
    must(s.be->open(&dims, NULL, 0, options, &s.meter, &s.dev, &e), &e);
    s.w = random_block(&s);
    s.pass = random_pass(s.be, s.dev);
    pthread_barrier_init(&s.together, NULL, (unsigned)crews);
    for (int i = 0; i < crews; i++) {
        crew[i] = (struct crew){.s = &s, .processor = options->threads == 1 ? i : -1};
        pthread_create(&thread[i], NULL, run_crew, &crew[i]);
    }
    for (int i = 0; i < crews; i++) pthread_join(thread[i], NULL);
    for (int verb = 0; verb < VERBS; verb++) {
        double passes = 0;
        for (int i = 0; i < crews; i++) passes += 1 / crew[i].best[verb];
        micros[verb] = 1e6 / passes / s.pass.T;
    }
    struct weight *all = &s.w.vector;
    for (size_t i = 0; i < sizeof s.w / sizeof *all; i++) s.be->unpack(s.dev, all + i);
    printf("%s, %d at once, %d tokens a pass\n", s.be->describe(s.dev), crews, s.pass.T);
    s.be->close(s.dev);
    return s.pass.T;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : processors_here();
    struct device_options options = {.dtype = BF16, .threads = 1, .isa = argc > 3 ? argv[3] : NULL};
    if (argc > 2 && !strcmp(argv[2], "float32")) options.dtype = F32;
    if (threads < 1 || threads > processors_here()) {
        fprintf(stderr, "%s threads: expected 1 .. %d, the processors here\n", argv[1], processors_here());
        return 2;
    }
    double one[VERBS], apart[VERBS], team[VERBS], sum[3] = {0};
    time_crews(&options, 1, one);
    time_crews(&options, threads, apart);
    options.threads = threads;
    time_crews(&options, 1, team);
    printf("us a token           one  %3d at once  team of %d   of one x %d   of at once\n", threads, threads, threads);
    for (int verb = 0; verb < VERBS; verb++) {
        printf("%-16s %8.2f %12.3f %12.3f %10.0f %% %10.0f %%\n", NAMES[verb], one[verb], apart[verb], team[verb],
               100 * one[verb] / threads / team[verb], 100 * apart[verb] / team[verb]);
        sum[0] += one[verb], sum[1] += apart[verb], sum[2] += team[verb];
    }
    printf("%-16s %8.2f %12.3f %12.3f %10.0f %% %10.0f %%\n", "all", sum[0], sum[1], sum[2],
           100 * sum[0] / threads / sum[2], 100 * sum[1] / sum[2]);
    return 0;
}
