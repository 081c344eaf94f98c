/* Passes that finish what cublasLt cannot do itself: relu^2 in place, and the gated sum. */
#include "elements.cuh"
#include "product/product.h"

enum { THREADS = 256 };

template <typename E> static __global__ void __launch_bounds__(THREADS) square_relu(const int *T, int n, E *out) {
    size_t i = 4 * ((size_t)blockIdx.x * THREADS + threadIdx.x);
    if (i >= (size_t)*T * n) return;
    float4 a = load4(out + i);
    store4(out + i,
           make_float4(relu_squared<E>(a.x), relu_squared<E>(a.y), relu_squared<E>(a.z), relu_squared<E>(a.w)));
}

template <typename Out>
static __global__ void __launch_bounds__(THREADS)
    add_gated(const int *T, int n, float *x, const Out *gate, const Out *y) {
    size_t i = 4 * ((size_t)blockIdx.x * THREADS + threadIdx.x);
    if (i >= (size_t)*T * n) return;
    float4 a = load4(x + i), g = load4(gate + i), b = load4(y + i);
    store4(x + i, make_float4(gate_add<Out>(a.x, g.x, b.x), gate_add<Out>(a.y, g.y, b.y), gate_add<Out>(a.z, g.z, b.z),
                              gate_add<Out>(a.w, g.w, b.w)));
}

static unsigned blocks_of(int rows, int n) {
    return (unsigned)(((size_t)rows * (size_t)n / 4 + THREADS - 1) / THREADS);
}

void square_relu_run(const struct queue *q, int n, void *out) {
    unsigned blocks = blocks_of(q->rows, n);
    if (q->dev->in == BF16) square_relu<<<blocks, THREADS, 0, q->stream>>>(q->T, n, (bf16 *)out);
    else if (q->dev->in == F16) square_relu<<<blocks, THREADS, 0, q->stream>>>(q->T, n, (half_t *)out);
    else square_relu<<<blocks, THREADS, 0, q->stream>>>(q->T, n, (float *)out);
}

void add_gated_run(const struct queue *q, const struct product *p, const void *y) {
    unsigned blocks = blocks_of(q->rows, p->n);
    float *x = (float *)p->out;
    if (q->dev->out == BF16)
        add_gated<<<blocks, THREADS, 0, q->stream>>>(q->T, p->n, x, (const bf16 *)p->gate, (const bf16 *)y);
    else add_gated<<<blocks, THREADS, 0, q->stream>>>(q->T, p->n, x, (const float *)p->gate, (const float *)y);
}
