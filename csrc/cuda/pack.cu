/* Weights on the device: `in` type, inputs innermost, whichever way the checkpoint has them.
 *
 * An array is uploaded as it is and put into order on the device. Low ranks that go up are padded with zeros to what the fragments
 * of rwkv6/up.cu count in. The table of embeddings keeps the type of the file, and stays in the host's memory, read row by
 * row over the bus, where the device's would be short. */
#include "elements.cuh"
#include "worker.h"

#include <stdlib.h>
#include <string.h>

enum { THREADS = 256 };

struct order {
    int g, n, k, K;    /* groups, outputs, inputs, inputs padded */
    bool inputs_first; /* the source is [g, k, n] */
    bool fragments;    /* in the order that up.cu's lanes load */
};

/* Where element i of the result comes from: [g, n, K], or with fragments [g, n / 16, K / 16, lane, 8]: a lane's eight are
 * two pairs of k of one column and of the column two further. */
static __device__ __forceinline__ void origin(const struct order &t, size_t i, size_t *g, size_t *n, size_t *k) {
    if (!t.fragments) {
        *k = i % t.K, *n = i / t.K % t.n, *g = i / t.K / t.n;
        return;
    }
    size_t e = i % 8, lane = i / 8 % 32, step = i / 256 % (t.K / 16), group = i / 256 / (t.K / 16);
    *k = step * 16 + lane % 4 * 2 + e / 2 % 2 * 8 + e % 2;
    *n = group % (t.n / 16) * 16 + lane / 8 * 4 + lane / 4 % 2 + e / 4 * 2;
    *g = group / (t.n / 16);
}

template <typename From, typename To>
static __global__ void __launch_bounds__(THREADS)
    order_array(const From *from, To *to, const struct order t, int *overflow) {
    size_t count = (size_t)t.g * t.n * t.K;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += (size_t)gridDim.x * THREADS) {
        size_t g, n, k;
        origin(t, i, &g, &n, &k);
        size_t at = t.inputs_first ? (g * t.k + k) * t.n + n : (g * t.n + n) * t.k + k;
        float a = k < (size_t)t.k ? to_float(from[at]) : 0.0f;
        if (sizeof(To) == 2 && fabsf(a) > 65504.0f) *overflow = 1;
        to[i] = from_float<To>(a);
    }
}

template <typename From>
static void order_from(const void *from, enum dtype to, void *out, const struct order &t, int *overflow) {
    if (to == F32) order_array<<<1024, THREADS>>>((const From *)from, (float *)out, t, overflow);
    else if (to == F16) order_array<<<1024, THREADS>>>((const From *)from, (half_t *)out, t, overflow);
    else order_array<<<1024, THREADS>>>((const From *)from, (bf16 *)out, t, overflow);
}

/* Uploads the array into room of its own, puts it into order in `out`. */
static enum status order_weight(struct device *dev, const struct array *a, const struct order *t, void *out,
                                struct error *e) {
    size_t bytes = array_count(a) * dtype_bytes(a->dtype), align = 256, flag = (bytes + align - 1) / align * align;
    void *room = NULL;
    int overflow = 0;
    TRY(device_alloc(dev, flag + sizeof(int), &room, e));
    int *device_overflow = (int *)((char *)room + flag);
    cudaError_t status = cudaMemcpy(room, a->data, bytes, cudaMemcpyHostToDevice);
    if (status == cudaSuccess) status = cudaMemset(device_overflow, 0, sizeof(int));
    if (status == cudaSuccess) {
        if (a->dtype == F32) order_from<float>(room, dev->in, out, *t, device_overflow);
        else if (a->dtype == F16) order_from<half_t>(room, dev->in, out, *t, device_overflow);
        else order_from<bf16>(room, dev->in, out, *t, device_overflow);
        status = cudaGetLastError();
    }
    if (status == cudaSuccess) status = cudaMemcpy(&overflow, device_overflow, sizeof overflow, cudaMemcpyDeviceToHost);
    device_free(dev, room, flag + sizeof(int));
    TRY(cuda_status(dev, status, "loading a weight", e));
    if (overflow && dev->in == F16)
        return fail(e, BAD_INPUT,
                    "a weight is beyond 65504, the largest float16: use dtype='float32', or 'bfloat16' where the "
                    "device has it");
    return OK;
}

/* ---- the table ----------------------------------------------------------------------------------------------------- */

/* On the device if half the rows that a pass likes best still find room beside it. What a block takes is an estimate:
 * six products C x C, two with F, each low rank down and up. */
static bool table_fits(const struct device *dev, size_t bytes) {
    const struct dims *d = &dev->dims;
    size_t C = (size_t)d->C, F = (size_t)d->F, in = dtype_bytes(dev->in), out = dtype_bytes(dev->out), ranks = 0;
    for (int i = 0; i < dev->plan_count; i++)
        if (dev->plans[i].kind.epilogue == LOW) ranks += (size_t)dev->plans[i].kind.n;
    size_t block = (6 * C + 2 * F + 2 * ranks) * C * in;
    size_t wide = 4 * C * out > F * in ? 4 * C * out : F * in;
    size_t row = 4 * C + 5 * C * in + wide + cuda_worker_row_bytes(dev, 8);
    return (size_t)d->L * block + bytes + row * 32 * (size_t)dev->gpu.multiprocessors < dev->budget;
}

static enum status pack_table(struct device *dev, const struct array *a, struct weight *out, struct error *e) {
    size_t bytes = array_count(a) * dtype_bytes(a->dtype);
    dev->table_dtype = a->dtype;
    dev->table_on_host = !table_fits(dev, bytes);
    *out = weight{NULL, bytes, TABLE, 1, (int)a->shape[1], (int)a->shape[0], 0};
    if (!dev->table_on_host) {
        TRY(device_alloc(dev, bytes, &out->data, e));
        return cuda_status(dev, cudaMemcpy(out->data, a->data, bytes, cudaMemcpyHostToDevice), "loading the embeddings",
                           e);
    }
    cudaError_t status = cudaHostAlloc(&out->data, bytes, cudaHostAllocMapped);
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return fail(e, NO_MEMORY, "no page-locked host memory for the %zu bytes of emb.weight", bytes);
    }
    if (status == cudaSuccess) memcpy(out->data, a->data, bytes);
    return cuda_status(dev, status, "loading the embeddings", e);
}

/* ---- weights --------------------------------------------------------------------------------------------------------- */

static enum status pack_vector(struct device *dev, const struct array *a, struct weight *out, struct error *e) {
    size_t n = array_count(a), bytes = n * sizeof(float);
    *out = weight{NULL, bytes, VECTOR, 1, (int)n, 1, 0};
    float *host = (float *)malloc(bytes);
    if (!host) return fail(e, NO_MEMORY, "no memory for a vector of %zu numbers", n);
    array_to_float(a, 0, n, host);
    enum status status = device_alloc(dev, bytes, &out->data, e);
    if (status == OK)
        status = cuda_status(dev, cudaMemcpy(out->data, host, bytes, cudaMemcpyHostToDevice), "loading a vector", e);
    free(host);
    return status;
}

/* Inputs padded to 16, 32, 64 or 128 of them. */
static int padded(int k) {
    int K = 16;
    while (K < k) K *= 2;
    return K;
}

static enum status pack_matrix(struct device *dev, enum role role, const struct array *a, struct weight *out,
                               struct error *e) {
    struct order t = {1, (int)a->shape[0], (int)a->shape[1], (int)a->shape[1], false, false};
    if (role == LORA_DOWN) t = order{1, (int)a->shape[1], (int)a->shape[0], (int)a->shape[0], true, false};
    if (role == LORA_UP) {
        bool groups = a->ndim == 3;
        int k = (int)a->shape[groups], n = (int)a->shape[1 + groups];
        t = order{groups ? (int)a->shape[0] : 1, n, k, padded(k), true, dev->in != F32};
    }
    size_t bytes = (size_t)t.g * (size_t)t.n * (size_t)t.K * dtype_bytes(dev->in);
    *out = weight{NULL, bytes, role, t.g, t.n, t.k, 0};
    TRY(device_alloc(dev, bytes, &out->data, e));
    if (role == LINEAR && a->dtype == dev->in)
        return cuda_status(dev, cudaMemcpy(out->data, a->data, bytes, cudaMemcpyHostToDevice), "loading a weight", e);
    return order_weight(dev, a, &t, out->data, e);
}

enum status cuda_pack(struct device *dev, enum role role, const struct array *a, struct weight *out, struct error *e) {
    TRY(device_usable(dev, e));
    enum status status = role == TABLE    ? pack_table(dev, a, out, e)
                         : role == VECTOR ? pack_vector(dev, a, out, e)
                                          : pack_matrix(dev, role, a, out, e);
    if (status == OK) /* a copy may outlast its call, and the workers' streams do not wait for the default one */
        status = cuda_status(dev, cudaStreamSynchronize(cudaStreamLegacy), "loading a weight", e);
    if (status != OK && out->data) cuda_unpack(dev, out);
    return status;
}

void cuda_unpack(struct device *dev, struct weight *w) {
    struct error ignored;
    if (w->role == TABLE && dev->table_on_host) {
        if (device_usable(dev, &ignored) == OK) cudaFreeHost(w->data);
    } else {
        device_free(dev, w->data, w->bytes);
    }
    memset(w, 0, sizeof *w);
}
