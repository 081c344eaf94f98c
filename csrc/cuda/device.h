/* What every room of the CUDA backend shares: the opened device, errors, memory.
 *
 * One device, one stream a worker; everything a verb does is queued on that stream. Kinds of matrix, as backend.h names
 * them: `in` is what products read, `out` what they write: bfloat16 both, or half and float, or float. Activations are
 * applied where their value is read: what SILU, SIGMOID, LOW_TANH and LOW_SIGMOID write is the plain product, and low
 * matrices hold it in float32. */
#ifndef RWKVSTS_CUDA_DEVICE_H
#define RWKVSTS_CUDA_DEVICE_H

#include <cuda_runtime.h>

#include "backend.h"
#include "product/lt.h"
#include "product/plan.h"
#include "route.h"

struct device {
    struct dims dims;
    enum dtype in, out;
    struct meter *meter;
    size_t budget;
    long pid; /* a CUDA context does not survive a fork */
    int ordinal;
    struct gpu gpu;
    char name[200];
    struct lt lt;
    struct plan plans[MOST_PLANS];
    int plan_count;
    void *encode; /* the driver's cuTensorMapEncodeTiled; NULL where gpu.hopper is not set */
    enum dtype table_dtype;
    bool table_on_host;
    bool dead; /* an error that poisons the context was seen */
    char why[300];
};

/* Makes a device the current one, and at the end of the scope the one that was. */
struct on_device {
    int before, now;
    explicit on_device(int ordinal) : before(ordinal), now(ordinal) {
        if (cudaGetDevice(&before) != cudaSuccess) before = now;
        if (before != now) cudaSetDevice(now);
        cudaGetLastError(); /* an error left behind, here or by another library, is not the next launch's */
    }
    ~on_device() {
        if (before != now) cudaSetDevice(before);
    }
    on_device(const on_device &) = delete;
    on_device &operator=(const on_device &) = delete;
};

/* Turns a CUDA status into ours: out of memory leaves the device usable, anything else marks it dead. */
enum status cuda_status(struct device *dev, cudaError_t status, const char *doing, struct error *e);
enum status device_usable(const struct device *dev, struct error *e);
enum status device_alloc(struct device *dev, size_t bytes, void **out, struct error *e);
void device_free(struct device *dev, void *p, size_t bytes);
#define CUDA_TRY(dev, call, doing, e) TRY(cuda_status((dev), (call), (doing), (e)))
#define LAUNCHED(w, what, e) cuda_status((w)->dev, cudaGetLastError(), (what), (e))

/* pack.cu: weights on the device, in the order that kernels read. */
enum status cuda_pack(struct device *dev, enum role role, const struct array *a, struct weight *out, struct error *e);
void cuda_unpack(struct device *dev, struct weight *w);

static inline int pieces_of(int n, int size) {
    return (n + size - 1) / size;
}
static inline const float *vector_of(const struct weight *w) {
    return (const float *)w->data;
}

#endif
