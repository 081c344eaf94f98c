/* Finding and calling cublasLt; see lt.h. */
#include "product/lt.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

enum { COMPUTE_32F = 68, TYPE_32F = 0, TYPE_16F = 2, TYPE_16BF = 14 };
enum { DESC_TRANSA = 3, OPERATION_T = 1 };
enum { PREFERENCE_WORKSPACE = 1, PREFERENCE_REDUCTION = 3 };

struct heuristic_result {
    struct lt_algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

static void *find_library(void) {
    /* By name: where the loader looks, or what Python has brought into the process from a wheel. First the version that
     * this build is of: a newer one may want a newer driver. */
    enum { OWN = CUDART_VERSION / 1000 };
    static const int versions[] = {OWN, 13, 12, 11};
    char name[40];
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        snprintf(name, sizeof name, "libcublasLt.so.%d", versions[i]);
        void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (library) return library;
    }
    return dlopen("libcublasLt.so", RTLD_NOW | RTLD_LOCAL);
}

enum status lt_open(struct lt *lt, struct error *e) {
    const struct {
        const char *name;
        void **slot;
    } wanted[] = {
        {"cublasLtCreate", (void **)&lt->create},
        {"cublasLtDestroy", (void **)&lt->destroy},
        {"cublasLtMatmulDescCreate", (void **)&lt->desc_create},
        {"cublasLtMatmulDescDestroy", (void **)&lt->desc_destroy},
        {"cublasLtMatmulDescSetAttribute", (void **)&lt->desc_set},
        {"cublasLtMatrixLayoutCreate", (void **)&lt->layout_create},
        {"cublasLtMatrixLayoutDestroy", (void **)&lt->layout_destroy},
        {"cublasLtMatmulPreferenceCreate", (void **)&lt->preference_create},
        {"cublasLtMatmulPreferenceDestroy", (void **)&lt->preference_destroy},
        {"cublasLtMatmulPreferenceSetAttribute", (void **)&lt->preference_set},
        {"cublasLtMatmulAlgoGetHeuristic", (void **)&lt->heuristic},
        {"cublasLtMatmul", (void **)&lt->matmul},
    };
    lt->library = find_library();
    if (!lt->library)
        return fail(e, DEVICE_FAILED,
                    "libcublasLt.so (version 11, 12 or 13) was not found: install the CUDA toolkit, or the Python "
                    "package nvidia-cublas, which PyTorch brings too");
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].slot = dlsym(lt->library, wanted[i].name);
        if (!*wanted[i].slot)
            return fail(e, DEVICE_FAILED, "libcublasLt lacks %s: version 11 or newer is needed", wanted[i].name);
    }
    int status = lt->create(&lt->handle);
    return status ? fail(e, DEVICE_FAILED, "cublasLtCreate failed with status %d", status) : OK;
}

void lt_close(struct lt *lt) {
    if (lt->handle) lt->destroy(lt->handle);
    lt->handle = NULL; /* the library stays: its code may still be referenced by the driver */
}

static int type_of(enum dtype t) {
    return t == F32 ? TYPE_32F : t == F16 ? TYPE_16F : TYPE_16BF;
}

/* cublasLt counts columns first: it computes out^T [n, rows] = w [n, k] in^T [k, rows]. */
struct matmul {
    void *desc, *w, *in, *out;
};

static void matmul_close(const struct lt *lt, struct matmul *m) {
    if (m->desc) lt->desc_destroy(m->desc);
    if (m->w) lt->layout_destroy(m->w);
    if (m->in) lt->layout_destroy(m->in);
    if (m->out) lt->layout_destroy(m->out);
}

static int matmul_open(const struct lt *lt, const struct lt_shape *p, int rows, struct matmul *m) {
    int transpose = OPERATION_T, status = lt->desc_create(&m->desc, COMPUTE_32F, TYPE_32F);
    uint64_t n = (uint64_t)p->n, k = (uint64_t)p->k, M = (uint64_t)rows;
    if (!status) status = lt->desc_set(m->desc, DESC_TRANSA, &transpose, sizeof transpose);
    if (!status) status = lt->layout_create(&m->w, type_of(p->in), k, n, (int64_t)k);
    if (!status) status = lt->layout_create(&m->in, type_of(p->in), k, M, (int64_t)k);
    if (!status) status = lt->layout_create(&m->out, type_of(p->out), n, M, (int64_t)n);
    return status;
}

enum status lt_candidates(const struct lt *lt, const struct lt_shape *shape, int rows, struct lt_algorithm *out,
                          int *count, struct error *e) {
    struct matmul m = {NULL, NULL, NULL, NULL};
    struct heuristic_result results[CANDIDATES];
    void *preference = NULL;
    size_t workspace = 0;   /* no algorithm that needs one was faster */
    uint32_t reduction = 0; /* none: a split of k would be summed in an order of its own */
    int found = 0, status = matmul_open(lt, shape, rows, &m);
    memset(results, 0, sizeof results);
    if (!status) status = lt->preference_create(&preference);
    if (!status) status = lt->preference_set(preference, PREFERENCE_WORKSPACE, &workspace, sizeof workspace);
    if (!status) status = lt->preference_set(preference, PREFERENCE_REDUCTION, &reduction, sizeof reduction);
    if (!status)
        status = lt->heuristic(lt->handle, m.desc, m.w, m.in, m.out, m.out, preference, CANDIDATES, results, &found);
    if (preference) lt->preference_destroy(preference);
    matmul_close(lt, &m);
    if (status || !found)
        return fail(e, DEVICE_FAILED,
                    "cublasLt has no algorithm for a product of %d outputs from %d inputs in %s "
                    "(status %d)",
                    shape->n, shape->k, dtype_name(shape->in), status);
    for (int i = 0; i < found; i++) out[i] = results[i].algorithm;
    *count = found;
    return OK;
}

enum status lt_run(const struct lt *lt, const struct lt_shape *shape, const struct lt_algorithm *algorithm, int rows,
                   const void *w, const void *in, void *out, cudaStream_t stream, struct error *e) {
    struct matmul m = {NULL, NULL, NULL, NULL};
    int status = matmul_open(lt, shape, rows, &m);
    if (!status)
        status = lt->matmul(lt->handle, m.desc, &shape->alpha, w, m.w, in, m.in, &shape->beta, out, m.out, out, m.out,
                            algorithm, NULL, 0, stream);
    matmul_close(lt, &m);
    return status
               ? fail(e, DEVICE_FAILED, "cublasLt failed with status %d in a product of %d rows, %d outputs, %d inputs",
                      status, rows, shape->n, shape->k)
               : OK;
}
