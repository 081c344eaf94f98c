/* wkv6: a head's state lives in registers while its sequence goes by, a token at a time, in float32.
 *
 * For heads of 64 two warps own a head: a lane keeps 16 keys by 4 values, so that what it reads from shared memory serves
 * many multiplications. Tokens come in chunks of 8; while one is worked on the next is on its way. y is summed over a
 * lane's keys in ascending order, then over four lanes. The bonus, r (u k) v, is one number a token. GroupNorm and gate
 * follow at the end of a chunk. Other head sizes take a plain kernel; heads of 64 in bfloat16 are wkv_chunk.cu's. */
#include "cuda.h"
#include "launch.cuh"
#include "mma.cuh"

enum { HEAD = 64, CHUNK = 8, WARPS = 2, THREADS = 32 * WARPS, PART = CHUNK / WARPS };

struct wkv_args {
    struct meta meta;
    const void *r, *k, *v, *g; /* [T, C] out type; g before silu */
    const float *decay;        /* [T, C] before exp(-exp()) */
    const float *u, *weight, *bias;
    float *slots; /* [slot, L, H, N, N], at this layer */
    size_t slot_stride;
    void *out; /* [T, C] in type */
    int C, H;
};

template <typename Out> struct chunk {
    Out r[CHUNK][HEAD], k[CHUNK][HEAD], v[CHUNK][HEAD]; /* as they came */
    float decay[CHUNK][HEAD];
    Out g[2][CHUNK][HEAD]; /* of this chunk and of the next */
    struct {
        float r[CHUNK][HEAD], k[CHUNK][HEAD], decay[CHUNK][HEAD];
        float v[CHUNK][HEAD]; /* and, a token once done, its y */
        float bonus[WARPS][CHUNK];
    } now;
};

static __device__ __forceinline__ void copy16(void *to, const void *from) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from));
#else
    *(uint4 *)to = *(const uint4 *)from;
#endif
}
static __device__ __forceinline__ void copies_wait(void) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;");
#endif
}

/* Sends for `count` tokens of one array. */
template <typename E>
__device__ __forceinline__ void send(E (*to)[HEAD], const void *from, size_t at, int C, int count) {
    constexpr int EACH = 16 / sizeof(E), ROW = HEAD / EACH;
#pragma unroll
    for (int i = 0; i < CHUNK * ROW / THREADS; i++) {
        int index = i * THREADS + threadIdx.x, t = index / ROW, n = index % ROW * EACH;
        if (t < count) copy16(&to[t][n], (const E *)from + at + (size_t)t * C + n);
    }
}

template <typename Out>
static __device__ __forceinline__ void send_chunk(struct chunk<Out> *c, const struct wkv_args &a, size_t at, int count,
                                                  int turn) {
    send(c->r, a.r, at, a.C, count);
    send(c->k, a.k, at, a.C, count);
    send(c->v, a.v, at, a.C, count);
    send(c->decay, a.decay, at, a.C, count);
    send(c->g[turn], a.g, at, a.C, count);
}

/* What came, in float32. Tokens past the end hold what was there before: nothing made of them is kept. */
template <typename Out> static __device__ __forceinline__ void unpack_chunk(struct chunk<Out> *c) {
#pragma unroll
    for (int i = 0; i < CHUNK * HEAD / 4 / THREADS; i++) {
        int index = i * THREADS + threadIdx.x, t = index / (HEAD / 4), n = index % (HEAD / 4) * 4;
        float4 d = load4(&c->decay[t][n]);
        store4(&c->now.r[t][n], load4(&c->r[t][n]));
        store4(&c->now.k[t][n], load4(&c->k[t][n]));
        store4(&c->now.v[t][n], load4(&c->v[t][n]));
        store4(&c->now.decay[t][n], make_float4(decay_of(d.x), decay_of(d.y), decay_of(d.z), decay_of(d.w)));
    }
}

/* bonus[t] = r (u k), each warp for itself. */
template <typename Out> static __device__ __forceinline__ void load_bonus(struct chunk<Out> *c, float2 u) {
    int lane = threadIdx.x % 32;
    float a[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        float2 r = *(const float2 *)&c->now.r[i][2 * lane], k = *(const float2 *)&c->now.k[i][2 * lane];
        a[i] = __fmaf_rn(__fmul_rn(r.x, u.x), k.x, __fmul_rn(__fmul_rn(r.y, u.y), k.y));
    }
    float sum = sum_many<CHUNK>(a);
    if (lane % (32 / CHUNK) == 0) c->now.bonus[threadIdx.x / 32][lane / (32 / CHUNK)] = sum;
    __syncwarp();
}

/* A lane's keys are 16 i + 4 (lane%4) + 0..3, its values four from value_of(). */
struct tile {
    float s[4][4][4];
};

static __device__ __forceinline__ int value_of(void) {
    return (int)threadIdx.x / 4 * 4;
}

/* Half of y goes to the lane `distance` away, for the same half of its own. */
template <int N> static __device__ __forceinline__ void halve(float y[], bool upper, int distance) {
#pragma unroll
    for (int j = 0; j < N / 2; j++) {
        float send = upper ? y[j] : y[j + N / 2], keep = upper ? y[j + N / 2] : y[j];
        y[j] = keep + __shfl_xor_sync(~0u, send, distance);
    }
}

template <typename Out> static __device__ __forceinline__ void step(struct chunk<Out> *c, struct tile &state, int t) {
    int part = threadIdx.x % 4;
    float v[4], y[4] = {};
    *(float4 *)v = *(const float4 *)&c->now.v[t][value_of()];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float r[4], k[4], d[4];
        *(float4 *)r = *(const float4 *)&c->now.r[t][16 * i + 4 * part];
        *(float4 *)k = *(const float4 *)&c->now.k[t][16 * i + 4 * part];
        *(float4 *)d = *(const float4 *)&c->now.decay[t][16 * i + 4 * part];
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                y[j] = __fmaf_rn(r[n], state.s[i][n][j], y[j]);
                state.s[i][n][j] = __fmaf_rn(state.s[i][n][j], d[n], __fmul_rn(k[n], v[j]));
            }
    }
    halve<4>(y, part & 2, 2);
    halve<2>(y, part & 1, 1);
    __syncwarp(); /* y takes v's place, which four lanes have read */
    float *mine = &c->now.v[t][threadIdx.x];
    *mine = __fmaf_rn(c->now.bonus[threadIdx.x / 32][t], *mine, y[0]);
}

/* out = (GroupNorm(y) w + b) silu(g) for the PART tokens from `first`. */
template <typename In, typename Out>
static __device__ __forceinline__ void store_part(const struct chunk<Out> *c, const struct wkv_args &a, size_t at,
                                                  int first, int count, int turn, float2 weight, float2 bias) {
    int lane = threadIdx.x % 32;
    float2 y[PART];
    float part[PART];
#pragma unroll
    for (int i = 0; i < PART; i++) {
        y[i] = *(const float2 *)&c->now.v[first + i][2 * lane];
        part[i] = y[i].x + y[i].y;
    }
    float mean = sum_many<PART>(part) * (1.0f / HEAD);
#pragma unroll
    for (int i = 0; i < PART; i++) {
        float m = __shfl_sync(~0u, mean, i * (32 / PART));
        y[i] = make_float2(y[i].x - m, y[i].y - m);
        part[i] = __fmaf_rn(y[i].x, y[i].x, __fmul_rn(y[i].y, y[i].y));
    }
    float scale = rsqrtf(sum_many<PART>(part) * (1.0f / HEAD) + GROUP_NORM_EPS);
#pragma unroll
    for (int i = 0; i < PART; i++) {
        float s = __shfl_sync(~0u, scale, i * (32 / PART));
        if (first + i >= count) continue;
        const Out *g = &c->g[turn][first + i][2 * lane];
        float p = __fmaf_rn(y[i].x * s, weight.x, bias.x) * silu(to_float(g[0]));
        float q = __fmaf_rn(y[i].y * s, weight.y, bias.y) * silu(to_float(g[1]));
        In *out = (In *)a.out + at + (size_t)(first + i) * a.C + 2 * lane;
        if constexpr (sizeof(In) == 2) *(uint32_t *)out = pack2<In>(p, q);
        else *(float2 *)out = make_float2(p, q);
    }
}

/* Reads or writes a state [key, value]. */
template <bool SAVE> static __device__ __forceinline__ void move_state(struct tile &state, float *slot) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int n = 0; n < 4; n++) {
            float4 *there = (float4 *)(slot + (16 * i + 4 * (threadIdx.x % 4) + n) * HEAD + value_of());
            if (SAVE) *there = *(float4 *)state.s[i][n];
            else *(float4 *)state.s[i][n] = *there;
        }
}

/* Eight blocks a multiprocessor: registers and shared memory are counted so that both fit them. */
template <typename In, typename Out>
static __global__ void __launch_bounds__(THREADS, 8) wkv_64(const struct wkv_args a) {
    __shared__ __align__(16) struct chunk<Out> c;
    int piece = blockIdx.x / a.H, head = blockIdx.x % a.H, lane = threadIdx.x % 32, mine = threadIdx.x / 32 * PART;
    let_next_kernel_start();
    wait_for_kernels_before();
    if (piece >= a.meta.head[1]) return;
    int first = a.meta.start[piece], last = a.meta.start[piece + 1], from = a.meta.from[piece], to = a.meta.to[piece],
        turn = 0;
    size_t column = (size_t)head * HEAD, in_slot = column * HEAD;
    send_chunk(&c, a, (size_t)first * a.C + column, min(CHUNK, last - first), turn);
    float2 u = *(const float2 *)(a.u + column + 2 * lane);
    float2 weight = *(const float2 *)(a.weight + column + 2 * lane),
           bias = *(const float2 *)(a.bias + column + 2 * lane);
    struct tile state = {};
    if (from >= 0) move_state<false>(state, a.slots + (size_t)from * a.slot_stride + in_slot);
    for (int t = first; t < last; t += CHUNK, turn ^= 1) {
        int count = min(CHUNK, last - t), next = t + CHUNK;
        copies_wait();
        __syncthreads();
        unpack_chunk(&c);
        __syncthreads();
        if (next < last) send_chunk(&c, a, (size_t)next * a.C + column, min(CHUNK, last - next), turn ^ 1);
        load_bonus(&c, u);
#pragma unroll 1
        for (int i = 0; i < count; i++) step(&c, state, i);
        __syncthreads();
        if (mine < count) store_part<In, Out>(&c, a, (size_t)t * a.C + column, mine, count, turn, weight, bias);
    }
    if (to >= 0) move_state<true>(state, a.slots + (size_t)to * a.slot_stride + in_slot);
}

/* ---- other head sizes: a thread a value column ------------------------------------------------------------------- */

template <typename In, typename Out, int N>
static __global__ void __launch_bounds__(N < 32 ? 32 : N) wkv_plain(const struct wkv_args a) {
    __shared__ float r[N], k[N], d[N], y[N];
    int piece = blockIdx.x / a.H, head = blockIdx.x % a.H, n = threadIdx.x;
    if (piece >= a.meta.head[1]) return;
    bool mine = n < N;
    int first = a.meta.start[piece], last = a.meta.start[piece + 1], from = a.meta.from[piece], to = a.meta.to[piece];
    size_t column = (size_t)head * N;
    float state[N], u = mine ? a.u[column + n] : 0;
#pragma unroll
    for (int i = 0; i < N; i++)
        state[i] = from >= 0 && mine ? a.slots[(size_t)from * a.slot_stride + (column + i) * N + n] : 0;
    for (int t = first; t < last; t++) {
        size_t at = (size_t)t * a.C + column + n;
        float v = 0, sum = 0, bonus = 0, mean = 0, squares = 0;
        if (mine) {
            r[n] = to_float(((const Out *)a.r)[at]);
            k[n] = to_float(((const Out *)a.k)[at]);
            d[n] = decay_of(a.decay[at]);
            v = to_float(((const Out *)a.v)[at]);
            y[n] = r[n] * u * k[n];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < N; i++) {
            bonus += y[i];
            sum = __fmaf_rn(r[i], state[i], sum);
            state[i] = __fmaf_rn(state[i], d[i], __fmul_rn(k[i], v));
        }
        __syncthreads();
        if (mine) y[n] = __fmaf_rn(bonus, v, sum);
        __syncthreads();
        for (int i = 0; i < N; i++) mean += y[i];
        mean /= N;
        for (int i = 0; i < N; i++) squares = __fmaf_rn(y[i] - mean, y[i] - mean, squares);
        if (mine) {
            float normal = __fmaf_rn((y[n] - mean) * rsqrtf(squares / N + GROUP_NORM_EPS), a.weight[column + n],
                                     a.bias[column + n]);
            ((In *)a.out)[at] = from_float<In>(normal * silu(to_float(((const Out *)a.g)[at])));
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        if (to >= 0 && mine) a.slots[(size_t)to * a.slot_stride + (column + i) * N + n] = state[i];
}

/* ---- verb ---------------------------------------------------------------------------------------------------------- */

bool wkv_fits(int N) {
    return N == 8 || N == 16 || N == 32 || N == 64 || N == 128;
}

template <typename In, typename Out> static void launch(const struct worker *w, const struct wkv_args &a, int N) {
    unsigned blocks = (unsigned)w->grid.S * (unsigned)a.H;
    cudaStream_t stream = w->stream;
    switch (N) {
    case 8: wkv_plain<In, Out, 8><<<blocks, 32, 0, stream>>>(a); break;
    case 16: wkv_plain<In, Out, 16><<<blocks, 32, 0, stream>>>(a); break;
    case 32: wkv_plain<In, Out, 32><<<blocks, 32, 0, stream>>>(a); break;
    case HEAD:
        if constexpr (sizeof(Out) == 4) { /* in bfloat16 it is wkv_chunk.cu's */
            cudaFuncSetAttribute(wkv_64<In, Out>, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
            launch_early(overlaps(w), stream, wkv_64<In, Out>, dim3(blocks), THREADS, 0, a);
        }
        break;
    default: wkv_plain<In, Out, 128><<<blocks, 128, 0, stream>>>(a); break;
    }
}

enum status cuda_wkv(struct worker *w, const struct wkv *a, struct error *e) {
    const struct dims *d = &w->dev->dims;
    size_t layer = (size_t)d->C * (size_t)d->N, stride = (size_t)d->L * layer;
    float *slots = const_cast<float *>(w->pass.wkv) + (size_t)a->layer * layer;
    if (chunk_fits(w->dev)) return chunk_run(w, a, slots, stride, e);
    struct wkv_args args = {w->meta,
                            a->r,
                            a->k,
                            a->v,
                            a->g,
                            a->decay,
                            vector_of(a->u),
                            vector_of(a->ln_x.weight),
                            vector_of(a->ln_x.bias),
                            slots,
                            stride,
                            a->out,
                            d->C,
                            d->H};
    if (w->dev->in == BF16) launch<bf16, bf16>(w, args, d->N);
    else if (w->dev->in == F16) launch<half_t, float>(w, args, d->N);
    else launch<float, float>(w, args, d->N);
    return LAUNCHED(w, "wkv", e);
}
