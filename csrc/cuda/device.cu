/* The CUDA device behind backend.h: finding and opening it, errors, counted memory, and what the library exports.
 *
 * Built by nvcc as a shared object with the runtime linked in: it loads on a machine without driver or GPU, where opening
 * and rwkvsts_cuda_query say what is missing. Nothing is kept outside struct device. Which kernel runs when is route.h's. */
#include "pass_size.h"
#include "product/product.h"
#include "product/tensor_map.h"
#include "ptx.cuh"
#include "rwkv6/rwkv6.h"
#include "rwkv7/rwkv7.h"
#include "worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

/* ---- errors and memory ----------------------------------------------------------------------------------------------- */

enum status device_usable(const struct device *dev, struct error *e) {
    if (dev->pid != (long)getpid())
        return fail(e, DEVICE_FAILED,
                    "this model was loaded before a fork, and CUDA does not survive one: load the model in "
                    "the child, or start it with multiprocessing's \"spawn\"");
    return dev->dead ? fail(e, DEVICE_FAILED, "%s; the CUDA device cannot be used again in this process", dev->why)
                     : OK;
}

enum status cuda_status(struct device *dev, cudaError_t status, const char *doing, struct error *e) {
    if (status == cudaSuccess) return OK;
    cudaGetLastError();
    if (status == cudaErrorMemoryAllocation) {
        size_t available = 0, total = 0;
        cudaMemGetInfo(&available, &total);
        return fail(e, NO_MEMORY, "no device memory for %s: %zu bytes are free; fewer batch_tokens need less", doing,
                    available);
    }
    if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction)
        return fail(e, DEVICE_FAILED,
                    "%s: this build holds no code for compute capability %d.%d: install again with "
                    "RWKVSTS_CUDA_ARCHS=%d%d",
                    dev->name, dev->gpu.capability / 10, dev->gpu.capability % 10, dev->gpu.capability / 10,
                    dev->gpu.capability % 10);
    snprintf(dev->why, sizeof dev->why, "%s failed: %s", doing, cudaGetErrorString(status));
    dev->dead = true;
    return fail(e, DEVICE_FAILED, "%s", dev->why);
}

enum status device_alloc(struct device *dev, size_t bytes, void **out, struct error *e) {
    size_t available = 0, total = 0, held = dev->meter->now;
    *out = NULL;
    TRY(device_usable(dev, e));
    if (dev->budget < held || bytes > dev->budget - held)
        return fail(e, NO_MEMORY,
                    "%zu bytes of device memory were asked, and %zu of the %zu to stay within are free: fewer "
                    "batch_tokens or blocks need less",
                    bytes, dev->budget > held ? dev->budget - held : 0, dev->budget);
    cudaError_t status = cudaMalloc(out, bytes ? bytes : 1);
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        cudaMemGetInfo(&available, &total);
        return fail(e, NO_MEMORY,
                    "%zu bytes of device memory were asked, %zu of %zu are free: fewer batch_tokens or blocks "
                    "need less",
                    bytes, available, total);
    }
    TRY(cuda_status(dev, status, "taking memory", e));
    meter_add(dev->meter, bytes);
    return OK;
}

void device_free(struct device *dev, void *p, size_t bytes) {
    struct error ignored;
    if (!p) return;
    if (device_usable(dev, &ignored) == OK) cudaFree(p);
    meter_sub(dev->meter, bytes);
}

/* ---- finding a device --------------------------------------------------------------------------------------------------- */

static const char *what_is_missing(cudaError_t status) {
    switch (status) {
    case cudaErrorInsufficientDriver:
        return "no NVIDIA driver was found (libcuda.so.1), or it is older than this build's CUDA needs";
    case cudaErrorNoDevice: return "the NVIDIA driver sees no device";
    case cudaErrorInitializationError:
        return "CUDA does not start in this process; one forked from a process that uses CUDA must be started with "
               "multiprocessing's \"spawn\"";
    default: return cudaGetErrorString(status);
    }
}

/* What this code was compiled for: the only witness is the code itself. PTX that the driver compiles for a newer device
 * still holds what the older one's #if chose. */
static __global__ void what_was_compiled(int *out) {
#ifdef __CUDA_ARCH__
    out[0] = __CUDA_ARCH__ / 10;
    out[1] = HOPPER_CODE;
#endif
}

static cudaError_t read_code(struct gpu *gpu) {
    int *room = NULL, found[2] = {0, 0};
    cudaError_t status = cudaMalloc((void **)&room, sizeof found);
    if (status != cudaSuccess) return status;
    what_was_compiled<<<1, 1>>>(room);
    status = cudaGetLastError();
    if (status == cudaSuccess) status = cudaMemcpy(found, room, sizeof found, cudaMemcpyDeviceToHost);
    cudaFree(room);
    gpu->code = found[0];
    gpu->hopper = found[1] && gpu->capability == 90 && tensor_map_entry() != NULL;
    return status;
}

struct found {
    struct gpu gpu;
    char name[256];
    size_t available, total;
};

/* The device of this number becomes the current one. */
static enum status find_device(int ordinal, struct found *found, struct error *e) {
    struct cudaDeviceProp p;
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaSuccess && !count) status = cudaErrorNoDevice;
    if (status == cudaSuccess && (ordinal < 0 || ordinal >= count)) {
        return fail(e, DEVICE_FAILED, "there is no CUDA device %d: the driver sees %d, counted from 0", ordinal, count);
    }
    if (status == cudaSuccess) status = cudaSetDevice(ordinal);
    if (status == cudaSuccess) status = cudaGetDeviceProperties(&p, ordinal);
    if (status == cudaSuccess) {
        snprintf(found->name, sizeof found->name, "%s", p.name);
        found->gpu.capability = p.major * 10 + p.minor;
        found->gpu.multiprocessors = p.multiProcessorCount;
        status = read_code(&found->gpu);
    }
    if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
        cudaGetLastError();
        return fail(e, DEVICE_FAILED,
                    "%s has compute capability %d.%d, and this build holds no code for it: 7.5 or newer is needed, and "
                    "RWKVSTS_CUDA_ARCHS=%d when installing",
                    p.name, p.major, p.minor, found->gpu.capability);
    }
    if (status == cudaSuccess) status = cudaMemGetInfo(&found->available, &found->total);
    cudaGetLastError();
    return status == cudaSuccess ? OK
                                 : fail(e, DEVICE_FAILED, "no CUDA device can be used: %s", what_is_missing(status));
}

static void device_close(struct device *dev) {
    struct error ignored;
    if (device_usable(dev, &ignored) == OK) lt_close(&dev->lt);
    free(dev);
}

static enum status device_open(const struct dims *dims, const struct product_kind *products, int count,
                               const struct device_options *options, struct meter *meter, struct device **out,
                               struct error *e) {
    const struct on_device here(options->ordinal);
    struct found found = {};
    *out = NULL;
    TRY(find_device(options->ordinal, &found, e));
    TRY(route_check(&found.gpu, found.name, options->dtype, dims, e));
    struct device *dev = (struct device *)calloc(1, sizeof *dev);
    if (!dev) return fail(e, NO_MEMORY, "no memory for a device");
    dev->dims = *dims;
    dev->in = options->dtype;
    dev->out = options->dtype == BF16 ? BF16 : F32; /* half would overflow where k or v are large */
    dev->meter = meter;
    size_t available = found.available - found.available / 32; /* the driver rounds what it gives, and keeps records of
                                                                  passes itself */
    dev->budget = options->budget && options->budget < available ? options->budget : available;
    dev->pid = (long)getpid();
    dev->ordinal = options->ordinal;
    dev->gpu = found.gpu;
    dev->encode = found.gpu.hopper ? tensor_map_entry() : NULL;
    snprintf(dev->name, sizeof dev->name, options->ordinal ? "cuda:%d %.180s" : "cuda%.0d %.180s", options->ordinal,
             found.name);
    enum status status = lt_open(&dev->lt, e);
    if (status == OK) status = plans_open(dev, products, count, e);
    if (status == OK) *out = dev;
    else device_close(dev);
    return status;
}

static const char *device_describe(const struct device *dev) {
    return dev->name;
}

static int device_rows(struct device *dev, size_t bytes_per_row, size_t bytes_fixed) {
    enum { SLACK = 4 << 20 }; /* what allocations lose to alignment */
    size_t row = bytes_per_row + cuda_worker_row_bytes(dev, 0);
    return pass_rows(dev->budget, dev->meter->now + bytes_fixed + SLACK, row, dev->gpu.multiprocessors);
}

static int device_grain(const struct device *dev) {
    return route_wkv(&dev->gpu, dev->in, dev->dims.N, 1) == WKV_CHUNK ? CHUNK_GRAIN : 1;
}

static size_t device_in_bytes(const struct device *dev) {
    return dtype_bytes(dev->in);
}

static size_t device_out_bytes(const struct device *dev) {
    return dtype_bytes(dev->out);
}

/* ---- the current device ------------------------------------------------------------------------------------------------ */

static int ordinal_of(const struct device *dev) {
    return dev->ordinal;
}
static int ordinal_of(const struct worker *w) {
    return w->dev->ordinal;
}

/* An entry of the table with its own device made the current one, and the caller's put back. */
template <auto F> struct guarded;
template <typename R, typename Owner, typename... A, R (*F)(Owner, A...)> struct guarded<F> {
    static R call(Owner owner, A... a) {
        if (!owner) return F(owner, a...);
        const struct on_device here(ordinal_of(owner));
        return F(owner, a...);
    }
};
#define HERE(f) guarded<f>::call

/* ---- what the library exports ----------------------------------------------------------------------------------------------- */

/* Name and memory of a device, and the compute capability of the code that it runs here: at most its own. Not OK: `text`
 * says why it cannot be used. */
EXPORT int rwkvsts_cuda_query(char *text, size_t n, int *major, int *minor, size_t *available, size_t *total,
                              int ordinal) {
    const struct on_device here(ordinal);
    struct found found = {};
    struct error e = {OK, ""};
    enum status status = find_device(ordinal, &found, &e);
    const int code = status == OK ? found.gpu.code : 0;
    if (status != OK) snprintf(text, n, "%s", e.text);
    else if (code == found.gpu.capability) snprintf(text, n, "%s", found.name);
    else snprintf(text, n, "%s by code for %d.%d", found.name, code / 10, code % 10);
    *major = code / 10;
    *minor = code % 10;
    *available = found.available;
    *total = found.total;
    return status;
}

/* What routes are chosen by on a device that is here: capability, code, Hopper's own code, multiprocessors. */
EXPORT int rwkvsts_cuda_facts(int ordinal, int facts[4]) {
    const struct on_device here(ordinal);
    struct found found = {};
    struct error e = {OK, ""};
    enum status status = find_device(ordinal, &found, &e);
    facts[0] = found.gpu.capability, facts[1] = found.gpu.code;
    facts[2] = found.gpu.hopper, facts[3] = found.gpu.multiprocessors;
    return status;
}

/* The route of a pass of RWKV-6, printed, for any device, there or not: see route.h. `sizes` are C, H, N, F, R, D; dtype as
 * in base.h. */
EXPORT int rwkvsts_cuda_route(char *text, size_t n, int capability, int code, int hopper, int multiprocessors,
                              int dtype, const int *sizes, int T, int piece) {
    const struct gpu gpu = {capability, code, hopper, multiprocessors};
    struct dims dims = {};
    struct error e = {OK, ""};
    dims.C = sizes[0], dims.H = sizes[1], dims.N = sizes[2], dims.F = sizes[3];
    dims.rank[SHIFT_RANK] = sizes[4], dims.rank[DECAY_RANK] = sizes[5];
    enum status status = route_check(&gpu, "this device", (enum dtype)dtype, &dims, &e);
    if (status == OK) status = route_fits6(&dims, &e);
    if (status == OK) route_print(text, n, &gpu, (enum dtype)dtype, &dims, T, piece);
    else snprintf(text, n, "%s", e.text);
    return status;
}

/* What opening has found out about the products of a model, a line a kind: see plans_print. */
EXPORT int rwkvsts_cuda_plans(const struct device *dev, char *text, size_t n) {
    return plans_print(dev, text, n);
}

EXPORT const struct backend *rwkvsts_cuda_backend(int abi) {
    static const struct verbs6 rwkv6 = {route_fits6, HERE(cuda_shift6), HERE(cuda_wkv6)};
    static const struct verbs7 rwkv7 = {route_fits7, HERE(cuda_wkv7)};
    static const struct backend backend = {
        device_open,
        HERE(device_close),
        device_describe,
        HERE(cuda_pack),
        HERE(cuda_unpack),
        HERE(cuda_worker_open),
        HERE(cuda_worker_close),
        HERE(device_rows),
        device_grain,
        device_in_bytes,
        device_out_bytes,
        HERE(cuda_alloc),
        HERE(cuda_upload),
        HERE(cuda_download),
        HERE(cuda_begin),
        HERE(cuda_end),
        HERE(cuda_finish),
        HERE(cuda_embed),
        HERE(cuda_shift),
        HERE(cuda_gemm),
        HERE(cuda_pool),
        &rwkv6,
        &rwkv7,
    };
    return abi == CUDA_BACKEND_ABI ? &backend : NULL;
}
