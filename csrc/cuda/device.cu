/* The CUDA device behind backend.h: opening it, errors, counted memory, planning of rows. The first device is used.
 *
 * Built by nvcc as a shared object with the runtime linked in: it loads on a machine without driver or GPU, where opening
 * and rwkvsts_cuda_query say what is missing. Nothing is kept outside struct device. */
#include "cuda.h"
#include "plan.h"

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
                    dev->name, dev->major, dev->minor, dev->major, dev->minor);
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

static enum status find_device(struct cudaDeviceProp *p, size_t *available, size_t *total, struct error *e) {
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaSuccess && !count) status = cudaErrorNoDevice;
    if (status == cudaSuccess) status = cudaGetDeviceProperties(p, 0);
    if (status == cudaSuccess) status = cudaMemGetInfo(available, total);
    cudaGetLastError();
    if (status != cudaSuccess) return fail(e, DEVICE_FAILED, "no CUDA device can be used: %s", what_is_missing(status));
    if (p->major * 10 + p->minor < 75)
        return fail(e, DEVICE_FAILED, "%s has compute capability %d.%d: 7.5 or newer is needed", p->name, p->major,
                    p->minor);
    return OK;
}

/* What the kernels cannot do is refused here, in one place. */
static enum status check_model(const struct dims *d, const struct cudaDeviceProp *p, enum dtype dtype,
                               struct error *e) {
    if (dtype == BF16 && p->major < 8)
        return fail(e, DEVICE_FAILED, "dtype bfloat16 needs compute capability 8.0, and %s has %d.%d: use float16",
                    p->name, p->major, p->minor);
    if (d->C % 16 || d->C > 8192 || d->F % 8)
        return fail(e, DEVICE_FAILED,
                    "a model %d wide with feed-forwards of %d: on CUDA the width must be a multiple of 16 up "
                    "to 8192, the other of 8; use device='cpu'",
                    d->C, d->F);
    if (!wkv_fits(d->N))
        return fail(e, DEVICE_FAILED, "head size %d: on CUDA 8, 16, 32, 64 or 128 is expected; use device='cpu'", d->N);
    if (d->R > MOST_SHIFT_RANK || d->D > MOST_RANK)
        return fail(e, DEVICE_FAILED, "low ranks %d and %d: on CUDA at most %d and %d are expected; use device='cpu'",
                    d->R, d->D, MOST_SHIFT_RANK, MOST_RANK);
    return OK;
}

static void device_close(struct device *dev) {
    struct error ignored;
    if (device_usable(dev, &ignored) == OK) lt_close(&dev->lt);
    free(dev);
}

static enum status device_open(const struct dims *dims, const struct device_options *options, struct meter *meter,
                               struct device **out, struct error *e) {
    struct cudaDeviceProp p;
    size_t available = 0, total = 0;
    *out = NULL;
    TRY(find_device(&p, &available, &total, e));
    TRY(check_model(dims, &p, options->dtype, e));
    struct device *dev = (struct device *)calloc(1, sizeof *dev);
    if (!dev) return fail(e, NO_MEMORY, "no memory for a device");
    dev->dims = *dims;
    dev->in = options->dtype;
    dev->out = options->dtype == BF16 ? BF16 : F32; /* half would overflow where k or v are large */
    dev->meter = meter;
    available -= available / 32; /* the driver rounds what it gives, and keeps records of passes itself */
    dev->budget = options->budget && options->budget < available ? options->budget : available;
    dev->pid = (long)getpid();
    dev->sms = p.multiProcessorCount;
    dev->major = p.major;
    dev->minor = p.minor;
    snprintf(dev->name, sizeof dev->name, "cuda %.190s", p.name);
    if (dev->major == 9 && dev->in == BF16) dev->encode = stream_encoder();
    enum status status = lt_open(&dev->lt, e);
    if (status == OK) status = products_open(dev, e);
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
    return plan_rows(dev->budget, dev->meter->now + bytes_fixed + SLACK, row, dev->sms);
}

static int device_grain(const struct device *dev) {
    return chunk_fits(dev) ? CHUNK_GRAIN : 1;
}

static size_t device_in_bytes(const struct device *dev) {
    return dtype_bytes(dev->in);
}

static size_t device_out_bytes(const struct device *dev) {
    return dtype_bytes(dev->out);
}

/* ---- what the library exports ----------------------------------------------------------------------------------------------- */

/* Name, compute capability and memory of the device that would be used. Not OK: `text` says why there is none. */
EXPORT int rwkvsts_cuda_query(char *text, size_t n, int *major, int *minor, size_t *available, size_t *total) {
    struct cudaDeviceProp p;
    struct error e = {OK, ""};
    *major = *minor = 0;
    *available = *total = 0;
    enum status status = find_device(&p, available, total, &e);
    snprintf(text, n, "%s", status == OK ? p.name : e.text);
    if (status != OK) return status;
    *major = p.major;
    *minor = p.minor;
    return OK;
}

EXPORT const struct backend *rwkvsts_cuda_backend(int abi) {
    static const struct backend backend = {
        device_open,       device_close,  device_describe, cuda_pack,       cuda_unpack,        cuda_worker_open,
        cuda_worker_close, device_rows,   device_grain,    device_in_bytes, device_out_bytes,   cuda_alloc,
        cuda_upload,       cuda_download, cuda_begin,      cuda_end,        cuda_finish,        cuda_embed,
        cuda_time_shift,   cuda_gemm,     cuda_decay,      cuda_wkv,        cuda_channel_shift, cuda_pool,
    };
    return abi == CUDA_BACKEND_ABI ? &backend : NULL;
}
