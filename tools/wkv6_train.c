// RWKV-6 recurrence with gradients on one core: what wkv6_train.cu computes, for machines without a
// GPU. Assumes head size 64 and a zero state before the first token; float32 throughout.
// r, k, v, w, y [B, T, H, 64]; u [H, 64]; the state S is [key, value].
// Compiled by rwkv6_torch.py: cc -O3 -march=native -fopenmp-simd -shared -fPIC.

#include <math.h>
#include <string.h>

enum { N = 64 };

static long at(int b, int t, int h, int T, int H) {
    return (((long)b * T + t) * H + h) * N;
}

// The last argument of both entry points is the CUDA stream of their namesakes, unused here.
int wkv6_forward(int B, int T, int H, const float *r, const float *k, const float *v,
                 const float *w, const float *u, float *y, const void *stream) {
    (void)stream;
    for (int b = 0; b < B; b++)
        for (int h = 0; h < H; h++) {
            float S[N][N];
            memset(S, 0, sizeof S);
            for (int t = 0; t < T; t++) {
                const long p = at(b, t, h, T, H);
                float sum[N] = {0};
                for (int i = 0; i < N; i++) {
                    const float ri = r[p + i], ki = k[p + i], ui = u[h * N + i];
                    const float di = expf(-expf(w[p + i]));
#pragma omp simd
                    for (int j = 0; j < N; j++) {
                        const float kv = ki * v[p + j];
                        sum[j] += ri * (S[i][j] + ui * kv);
                        S[i][j] = S[i][j] * di + kv;
                    }
                }
                memcpy(y + p, sum, sizeof sum);
            }
        }
    return 0;
}

static float dot(const float *a, const float *b) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < N; j++) sum += a[j] * b[j];
    return sum;
}

// First to last token: dr, and the part of r * dr that came through the state.
static void backward_r(int b, int h, int T, int H, const float *r, const float *k, const float *v,
                       const float *w, const float *u, const float *gy, float *dr, float *r_dr) {
    float S[N][N];
    memset(S, 0, sizeof S);
    for (int t = 0; t < T; t++) {
        const long p = at(b, t, h, T, H);
        const float v_gy = dot(v + p, gy + p);
        for (int i = 0; i < N; i++) {
            const float through_state = dot(gy + p, S[i]);
            const float ki = k[p + i], di = expf(-expf(w[p + i]));
            dr[p + i] = through_state + u[h * N + i] * ki * v_gy;
            r_dr[p + i] = r[p + i] * through_state;
#pragma omp simd
            for (int j = 0; j < N; j++) S[i][j] = S[i][j] * di + ki * v[p + j];
        }
    }
}

// Last to first token; G is the gradient by the state, c as in wkv6_train.cu.
static void backward_kvw(int b, int h, int T, int H, const float *r, const float *k,
                         const float *v, const float *w, const float *u, const float *gy,
                         const float *r_dr, float *dk, float *dv, float *dw, float *du) {
    float G[N][N], c[N] = {0};
    memset(G, 0, sizeof G);
    for (int t = T - 1; t >= 0; t--) {
        const long p = at(b, t, h, T, H);
        const float v_gy = dot(v + p, gy + p);
        float ruk = 0, dv_t[N] = {0};
        for (int i = 0; i < N; i++) {
            const float ri = r[p + i], ki = k[p + i], ui = u[h * N + i];
            const float ew = expf(w[p + i]), di = expf(-ew);
            const float through_state = dot(G[i], v + p);
            ruk += ri * ui * ki;
            dk[p + i] = through_state + ui * ri * v_gy;
            du[((long)b * H + h) * N + i] += ri * ki * v_gy;
            const float dlog = c[i] - ki * through_state;
            c[i] = dlog + r_dr[p + i];
            dw[p + i] = -ew * dlog;
#pragma omp simd
            for (int j = 0; j < N; j++) {
                dv_t[j] += G[i][j] * ki;
                G[i][j] = G[i][j] * di + ri * gy[p + j];
            }
        }
        for (int j = 0; j < N; j++) dv[p + j] = dv_t[j] + gy[p + j] * ruk;
    }
}

int wkv6_backward(int B, int T, int H, const float *r, const float *k, const float *v,
                  const float *w, const float *u, const float *gy, float *dr, float *r_dr,
                  float *dk, float *dv, float *dw, float *du, const void *stream) {
    (void)stream;
    memset(du, 0, sizeof(float) * (size_t)B * (size_t)H * N);
    for (int b = 0; b < B; b++)
        for (int h = 0; h < H; h++) {
            backward_r(b, h, T, H, r, k, v, w, u, gy, dr, r_dr);
            backward_kvw(b, h, T, H, r, k, v, w, u, gy, r_dr, dk, dv, dw, du);
        }
    return 0;
}
