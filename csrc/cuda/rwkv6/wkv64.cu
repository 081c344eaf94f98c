/* wkv6 for heads of 64 outside of bfloat16: a head's state lives in registers while its sequence goes by, a token at a
 * time, in float32.
 *
 * Two warps own a head: a lane keeps 16 keys by 4 values, so that what it reads from shared memory serves many
 * multiplications. Tokens come eight a turn; while one turn is worked on the next is on its way. y is summed over a lane's
 * keys in ascending order, then over four lanes. The bonus, r (u k) v, is one number a token. GroupNorm and gate follow at
 * the end of a turn. */
#include "elements.cuh"
#include "launch.cuh"
#include "rwkv6/rwkv6.h"

enum { HEAD = 64, TOKENS = 8, WARPS = 2, THREADS = 32 * WARPS };
enum { OWN = TOKENS / WARPS }; /* tokens whose norm a warp makes */

template <typename Out> struct turn {
    Out r[TOKENS][HEAD], k[TOKENS][HEAD], v[TOKENS][HEAD]; /* as they came */
    float decay[TOKENS][HEAD];
    Out g[2][TOKENS][HEAD]; /* of this turn and of the next */
    struct {
        float r[TOKENS][HEAD], k[TOKENS][HEAD], decay[TOKENS][HEAD];
        float v[TOKENS][HEAD]; /* and, a token once done, its y */
        float bonus[WARPS][TOKENS];
    } now;
};

/* Sends for `count` tokens of one array. */
template <typename E>
__device__ __forceinline__ void send(E (*to)[HEAD], const void *from, size_t at, int C, int count) {
    constexpr int EACH = 16 / sizeof(E), ROW = HEAD / EACH;
#pragma unroll
    for (int i = 0; i < TOKENS * ROW / THREADS; i++) {
        int index = i * THREADS + threadIdx.x, t = index / ROW, n = index % ROW * EACH;
        if (t < count) copy16(&to[t][n], (const E *)from + at + (size_t)t * C + n);
    }
}

template <typename Out>
static __device__ __forceinline__ void send_turn(struct turn<Out> *c, const struct wkv_args &a, size_t at, int count,
                                                 int set) {
    send(c->r, a.r, at, a.C, count);
    send(c->k, a.k, at, a.C, count);
    send(c->v, a.v, at, a.C, count);
    send(c->decay, a.decay, at, a.C, count);
    send(c->g[set], a.g, at, a.C, count);
}

/* What came, in float32. Tokens past the end hold what was there before: nothing made of them is kept. */
template <typename Out> static __device__ __forceinline__ void unpack_turn(struct turn<Out> *c) {
#pragma unroll
    for (int i = 0; i < TOKENS * HEAD / 4 / THREADS; i++) {
        int index = i * THREADS + threadIdx.x, t = index / (HEAD / 4), n = index % (HEAD / 4) * 4;
        float4 d = load4(&c->decay[t][n]);
        store4(&c->now.r[t][n], load4(&c->r[t][n]));
        store4(&c->now.k[t][n], load4(&c->k[t][n]));
        store4(&c->now.v[t][n], load4(&c->v[t][n]));
        store4(&c->now.decay[t][n], make_float4(decay_of(d.x), decay_of(d.y), decay_of(d.z), decay_of(d.w)));
    }
}

/* bonus[t] = r (u k), each warp for itself. */
template <typename Out> static __device__ __forceinline__ void load_bonus(struct turn<Out> *c, float2 u) {
    int lane = threadIdx.x % 32;
    float a[TOKENS];
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {
        float2 r = *(const float2 *)&c->now.r[i][2 * lane], k = *(const float2 *)&c->now.k[i][2 * lane];
        a[i] = __fmaf_rn(__fmul_rn(r.x, u.x), k.x, __fmul_rn(__fmul_rn(r.y, u.y), k.y));
    }
    float sum = sum_many<TOKENS>(a);
    if (lane % (32 / TOKENS) == 0) c->now.bonus[threadIdx.x / 32][lane / (32 / TOKENS)] = sum;
    __syncwarp();
}

/* A lane's keys are 16 i + 4 (lane%4) + 0..3, its values four from value_of(). */
struct share {
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

template <typename Out> static __device__ __forceinline__ void step(struct turn<Out> *c, struct share &state, int t) {
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

/* out = (GroupNorm(y) w + b) silu(g) for the OWN tokens from `first`. */
template <typename In, typename Out>
static __device__ __forceinline__ void store_part(const struct turn<Out> *c, const struct wkv_args &a, size_t at,
                                                  int first, int count, int set, float2 weight, float2 bias) {
    int lane = threadIdx.x % 32;
    float2 y[OWN];
    float part[OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        y[i] = *(const float2 *)&c->now.v[first + i][2 * lane];
        part[i] = y[i].x + y[i].y;
    }
    float mean = sum_many<OWN>(part) * (1.0f / HEAD);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        float m = __shfl_sync(~0u, mean, i * (32 / OWN));
        y[i] = make_float2(y[i].x - m, y[i].y - m);
        part[i] = __fmaf_rn(y[i].x, y[i].x, __fmul_rn(y[i].y, y[i].y));
    }
    float scale = rsqrtf(sum_many<OWN>(part) * (1.0f / HEAD) + GROUP_NORM_EPS);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        float s = __shfl_sync(~0u, scale, i * (32 / OWN));
        if (first + i >= count) continue;
        const Out *g = &c->g[set][first + i][2 * lane];
        float p = __fmaf_rn(y[i].x * s, weight.x, bias.x) * silu(to_float(g[0]));
        float q = __fmaf_rn(y[i].y * s, weight.y, bias.y) * silu(to_float(g[1]));
        In *out = (In *)a.out + at + (size_t)(first + i) * a.C + 2 * lane;
        if constexpr (sizeof(In) == 2) *(uint32_t *)out = pack2<In>(p, q);
        else *(float2 *)out = make_float2(p, q);
    }
}

/* Reads or writes a state [key, value]. */
template <bool SAVE> static __device__ __forceinline__ void move_state(struct share &state, float *slot) {
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
    __shared__ __align__(16) struct turn<Out> c;
    int piece = blockIdx.x / a.H, head = blockIdx.x % a.H, lane = threadIdx.x % 32, mine = threadIdx.x / 32 * OWN;
    let_next_kernel_start();
    wait_for_kernels_before();
    if (piece >= a.meta.head[1]) return;
    int first = a.meta.start[piece], last = a.meta.start[piece + 1], from = a.meta.from[piece], to = a.meta.to[piece],
        set = 0;
    size_t column = (size_t)head * HEAD, in_slot = column * HEAD;
    send_turn(&c, a, (size_t)first * a.C + column, min(TOKENS, last - first), set);
    float2 u = *(const float2 *)(a.u + column + 2 * lane);
    float2 weight = *(const float2 *)(a.weight + column + 2 * lane),
           bias = *(const float2 *)(a.bias + column + 2 * lane);
    struct share state = {};
    if (from >= 0) move_state<false>(state, a.slots + (size_t)from * a.slot_stride + in_slot);
    for (int t = first; t < last; t += TOKENS, set ^= 1) {
        int count = min(TOKENS, last - t), next = t + TOKENS;
        copies_wait_all();
        __syncthreads();
        unpack_turn(&c);
        __syncthreads();
        if (next < last) send_turn(&c, a, (size_t)next * a.C + column, min(TOKENS, last - next), set ^ 1);
        load_bonus(&c, u);
#pragma unroll 1
        for (int i = 0; i < count; i++) step(&c, state, i);
        __syncthreads();
        if (mine < count) store_part<In, Out>(&c, a, (size_t)t * a.C + column, mine, count, set, weight, bias);
    }
    if (to >= 0) move_state<true>(state, a.slots + (size_t)to * a.slot_stride + in_slot);
}

template <typename In> static cudaError_t launch(const struct worker *w, const struct wkv_args *a) {
    cudaFuncSetAttribute(wkv_64<In, float>, cudaFuncAttributePreferredSharedMemoryCarveout,
                         cudaSharedmemCarveoutMaxShared);
    dim3 grid((unsigned)w->grid.S * (unsigned)a->H);
    return launch_early(overlaps(w), w->stream, wkv_64<In, float>, grid, THREADS, 0, *a);
}

cudaError_t wkv_64_run(const struct worker *w, const struct wkv_args *a) {
    return w->dev->in == F16 ? launch<half_t>(w, a) : launch<float>(w, a);
}
