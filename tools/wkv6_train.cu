// RWKV-6 recurrence with gradients, for training the demo model: one block per sequence and head,
// 64 threads, state in registers, float32 throughout. Plain C entry points, called through ctypes.
// Assumes head size 64 and a zero state before the first token. Promises, per head and with
// d = exp(-exp(w)): y_t = r_t (S + diag(u) k_t^T v_t), then S = diag(d_t) S + k_t^T v_t.
// r, k, v, w, y [B, T, H, 64]; u [H, 64]. S is [key, value].
// Every loop asks for the next token's values before it works on this one's: with a few warps a
// multiprocessor nothing else would hide the way to memory.

#include <cuda_runtime.h>

constexpr int N = 64;

__device__ inline long at(int b, int t, int h, int T, int H, int i) {
    return (((long)b * T + t) * H + h) * N + i;
}

// Thread j owns the state's value column j.
__global__ void forward_kernel(int T, int H, const float* r, const float* k, const float* v,
                               const float* w, const float* u, float* y) {
    const int b = blockIdx.x / H, h = blockIdx.x % H, j = threadIdx.x;
    __shared__ __align__(16) float rs[N], ks[N], ds[N], us[N];
    float S[N];
#pragma unroll
    for (int i = 0; i < N; i++) S[i] = 0;
    us[j] = u[h * N + j];
    long p = at(b, 0, h, T, H, j);
    float r_t = r[p], k_t = k[p], v_t = v[p], w_t = w[p];
    for (int t = 0; t < T; t++) {
        __syncthreads();
        rs[j] = r_t;
        ks[j] = k_t;
        ds[j] = expf(-expf(w_t));
        __syncthreads();
        const float vj = v_t;
        p = at(b, t, h, T, H, j);
        if (t + 1 < T) {
            const long next = p + (long)H * N;
            r_t = r[next], k_t = k[next], v_t = v[next], w_t = w[next];
        }
        float sum = 0;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float kv = ks[i] * vj;
            sum += rs[i] * (S[i] + us[i] * kv);
            S[i] = S[i] * ds[i] + kv;
        }
        y[p] = sum;
    }
}

// Thread i owns the state's key row i. Writes dr, and the part of r * dr that came through S.
__global__ void backward_r_kernel(int T, int H, const float* r, const float* k, const float* v,
                                  const float* w, const float* u, const float* gy, float* dr,
                                  float* r_dr) {
    const int b = blockIdx.x / H, h = blockIdx.x % H, i = threadIdx.x;
    __shared__ __align__(16) float vs[N], gs[N];
    float S[N];
#pragma unroll
    for (int j = 0; j < N; j++) S[j] = 0;
    const float ui = u[h * N + i];
    long p = at(b, 0, h, T, H, i);
    float r_t = r[p], k_t = k[p], v_t = v[p], w_t = w[p], gy_t = gy[p];
    for (int t = 0; t < T; t++) {
        __syncthreads();
        vs[i] = v_t;
        gs[i] = gy_t;
        __syncthreads();
        const float ri = r_t, ki = k_t, di = expf(-expf(w_t));
        p = at(b, t, h, T, H, i);
        if (t + 1 < T) {
            const long next = p + (long)H * N;
            r_t = r[next], k_t = k[next], v_t = v[next], w_t = w[next], gy_t = gy[next];
        }
        float through_state = 0, v_gy = 0;
#pragma unroll
        for (int j = 0; j < N; j++) {
            through_state += gs[j] * S[j];
            v_gy += gs[j] * vs[j];
            S[j] = S[j] * di + ki * vs[j];
        }
        dr[p] = through_state + ui * ki * v_gy;
        r_dr[p] = ri * through_state;
    }
}

// From the last token to the first. G is the loss's gradient by the state after token t; thread i
// holds its key row i and its value column i. The gradient of the log decay needs no stored states:
// c_t = sum_j G_t[i,j] S_t[i,j] obeys dlogd_t = c_{t+1} - k_t dk_t, c_t = dlogd_t + r_t dr_t.
__global__ void backward_kernel(int T, int H, const float* r, const float* k, const float* v,
                                const float* w, const float* u, const float* gy,
                                const float* r_dr, float* dk, float* dv, float* dw, float* du) {
    const int b = blockIdx.x / H, h = blockIdx.x % H, i = threadIdx.x;
    __shared__ __align__(16) float rs[N], ks[N], vs[N], ds[N], gs[N], us[N];
    float row[N], column[N];
#pragma unroll
    for (int j = 0; j < N; j++) row[j] = column[j] = 0;
    const float ui = u[h * N + i];
    us[i] = ui;
    float c = 0, du_i = 0;
    long p = at(b, T - 1, h, T, H, i);
    float r_t = r[p], k_t = k[p], v_t = v[p], w_t = w[p], gy_t = gy[p], r_dr_t = r_dr[p];
    for (int t = T - 1; t >= 0; t--) {
        const float ew = expf(w_t), r_dr_here = r_dr_t;
        __syncthreads();
        rs[i] = r_t;
        ks[i] = k_t;
        vs[i] = v_t;
        gs[i] = gy_t;
        ds[i] = expf(-ew);
        __syncthreads();
        p = at(b, t, h, T, H, i);
        if (t > 0) {
            const long next = p - (long)H * N;
            r_t = r[next], k_t = k[next], v_t = v[next], w_t = w[next], gy_t = gy[next];
            r_dr_t = r_dr[next];
        }
        const float ri = rs[i], ki = ks[i], di = ds[i], gi = gs[i];
        float through_state = 0, v_gy = 0, dv_i = 0, ruk = 0;
#pragma unroll
        for (int j = 0; j < N; j++) {
            through_state += row[j] * vs[j];
            v_gy += vs[j] * gs[j];
            dv_i += column[j] * ks[j];
            ruk += rs[j] * us[j] * ks[j];
            row[j] = row[j] * di + ri * gs[j];
            column[j] = column[j] * ds[j] + rs[j] * gi;
        }
        dk[p] = through_state + ui * ri * v_gy;
        dv[p] = dv_i + gi * ruk;
        du_i += ri * ki * v_gy;
        const float dlog = c - ki * through_state;
        c = dlog + r_dr_here;
        dw[p] = -ew * dlog;
    }
    du[((long)b * H + h) * N + i] = du_i;
}

extern "C" int wkv6_forward(int B, int T, int H, const float* r, const float* k, const float* v,
                            const float* w, const float* u, float* y, cudaStream_t stream) {
    forward_kernel<<<B * H, N, 0, stream>>>(T, H, r, k, v, w, u, y);
    return cudaGetLastError();
}

// r_dr [B, T, H, 64] is scratch; du [B, H, 64] is left to be summed over sequences.
extern "C" int wkv6_backward(int B, int T, int H, const float* r, const float* k, const float* v,
                             const float* w, const float* u, const float* gy, float* dr,
                             float* r_dr, float* dk, float* dv, float* dw, float* du,
                             cudaStream_t stream) {
    backward_r_kernel<<<B * H, N, 0, stream>>>(T, H, r, k, v, w, u, gy, dr, r_dr);
    backward_kernel<<<B * H, N, 0, stream>>>(T, H, r, k, v, w, u, gy, r_dr, dk, dv, dw, du);
    return cudaGetLastError();
}
