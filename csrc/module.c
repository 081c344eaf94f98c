/* rwkvsts._core: the core as Python sees it. The only file that knows Python.h and NumPy.
 *
 * Arrays are checked here for dtype, shape and order; sizes and names of tensors by the rooms below. The GIL is released
 * while C works. Sessions of a model are kept for the next call, never shared by two calls at a time. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

#include <dlfcn.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cpu/cpu.h"
#include "rwkv6.h"
#include "tokenizer.h"

struct module {
    PyObject *device_error, *tokenizer_type, *model_type;
};

/* Raises the Python exception of a failure. After INTERRUPTED the callback has raised its own. */
static PyObject *raise_error(PyTypeObject *type, const struct error *e) {
    const struct module *state = PyType_GetModuleState(type);
    PyObject *kinds[] = {NULL, PyExc_ValueError, PyExc_MemoryError, state->device_error, NULL};
    /* Names from a file may be no UTF-8, or cut inside a character. */
    PyObject *text = kinds[e->status] ? PyUnicode_DecodeUTF8(e->text, (Py_ssize_t)strlen(e->text), "replace") : NULL;
    if (text) PyErr_SetObject(kinds[e->status], text);
    Py_XDECREF(text);
    return NULL;
}

/* A C-contiguous array of that type and number of dimensions, as the caller's own object: no copies in silence. */
static PyArrayObject *as_array(PyObject *o, int type, int ndim, const char *name) {
    PyArrayObject *a = (PyArrayObject *)o;
    if (!PyArray_Check(o) || PyArray_TYPE(a) != type || !PyArray_IS_C_CONTIGUOUS(a) || !PyArray_ISALIGNED(a) ||
        !PyArray_ISNOTSWAPPED(a) || (ndim >= 0 && PyArray_NDIM(a) != ndim)) {
        const char *kind = type == NPY_INT32    ? "int32"
                           : type == NPY_INT64  ? "int64"
                           : type == NPY_UINT16 ? "uint16"
                                                : "float32";
        PyErr_Format(PyExc_ValueError, "%s must be a C-contiguous %s array%s", name, kind,
                     ndim == 1   ? " of one dimension"
                     : ndim == 3 ? " of three dimensions"
                                 : "");
        return NULL;
    }
    return a;
}

static PyObject *new_array(int type, int ndim, const npy_intp *shape) {
    return PyArray_SimpleNew(ndim, (npy_intp *)(uintptr_t)shape, type);
}

/* ---- Tokenizer ----------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    struct tokenizer *t;
} Tokenizer;

static enum status open_tokenizer(Tokenizer *self, PyArrayObject *ids, PyArrayObject *offsets, const uint8_t *blob,
                                  struct error *e) {
    size_t n = (size_t)PyArray_DIM(ids, 0);
    const int32_t *id = PyArray_DATA(ids);
    const int64_t *at = PyArray_DATA(offsets);
    struct entry *entries = memory_new(NULL, n * sizeof *entries);
    if (!entries) return fail(e, NO_MEMORY, "no memory for %zu vocabulary entries", n);
    for (size_t i = 0; i < n; i++) entries[i] = (struct entry){id[i], blob + at[i], (size_t)(at[i + 1] - at[i])};
    enum status st = tokenizer_open(entries, n, &self->t, e);
    memory_free(NULL, entries, n * sizeof *entries);
    return st;
}

static PyObject *Tokenizer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *ids_object, *offsets_object;
    Py_buffer blob;
    static char *names[] = {"ids", "blob", "offsets", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oy*O", names, &ids_object, &blob, &offsets_object)) return NULL;
    Tokenizer *self = NULL;
    PyArrayObject *ids = as_array(ids_object, NPY_INT32, 1, "ids");
    PyArrayObject *offsets = ids ? as_array(offsets_object, NPY_INT64, 1, "offsets") : NULL;
    if (!offsets) goto done;
    npy_intp n = PyArray_DIM(ids, 0);
    const int64_t *at = PyArray_DATA(offsets);
    bool sound = PyArray_DIM(offsets, 0) == n + 1 && at[0] == 0 && at[n] == blob.len;
    for (npy_intp i = 0; sound && i < n; i++) sound = at[i] <= at[i + 1];
    if (!sound) {
        PyErr_SetString(PyExc_ValueError, "offsets must ascend from 0 to len(blob) and be one more than ids");
        goto done;
    }
    self = (Tokenizer *)type->tp_alloc(type, 0);
    if (!self) goto done;
    struct error e;
    if (open_tokenizer(self, ids, offsets, blob.buf, &e) != OK) {
        raise_error(type, &e);
        Py_CLEAR(self);
    }
done:
    PyBuffer_Release(&blob);
    return (PyObject *)self;
}

static void Tokenizer_dealloc(Tokenizer *self) {
    PyTypeObject *type = Py_TYPE(self);
    if (self->t) tokenizer_close(self->t);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *Tokenizer_encode_many(Tokenizer *self, PyObject *texts) {
    /* A tuple of our own: nobody can take a text away while the GIL is released. */
    PyObject *tuple = PySequence_Tuple(texts), *ids = NULL, *start = NULL, *pair = NULL;
    if (!tuple) return NULL;
    npy_intp n = PyTuple_GET_SIZE(tuple), bytes = 0, rows = n + 1;
    for (npy_intp i = 0; i < n; i++) {
        PyObject *text = PyTuple_GET_ITEM(tuple, i);
        if (!PyBytes_Check(text)) {
            PyErr_Format(PyExc_TypeError, "texts[%zd] is %s: expected bytes", i, Py_TYPE(text)->tp_name);
            goto done;
        }
        bytes += PyBytes_GET_SIZE(text);
    }
    start = new_array(NPY_INT64, 1, &rows);
    int32_t *scratch = start ? PyMem_RawMalloc(((size_t)bytes + 1) * sizeof *scratch) : NULL;
    if (!scratch) {
        if (start) PyErr_NoMemory();
        goto done;
    }
    int64_t *at = PyArray_DATA((PyArrayObject *)start);
    npy_intp used = at[0] = 0;
    Py_BEGIN_ALLOW_THREADS;
    for (npy_intp i = 0; i < n; i++) {
        PyObject *text = PyTuple_GET_ITEM(tuple, i);
        const uint8_t *bytes_of = (const uint8_t *)PyBytes_AS_STRING(text);
        used += (npy_intp)tokenizer_encode(self->t, bytes_of, (size_t)PyBytes_GET_SIZE(text), scratch + used);
        at[i + 1] = used;
    }
    Py_END_ALLOW_THREADS;
    ids = new_array(NPY_INT32, 1, &used);
    if (ids) memcpy(PyArray_DATA((PyArrayObject *)ids), scratch, (size_t)used * sizeof *scratch);
    PyMem_RawFree(scratch);
    if (ids) pair = PyTuple_Pack(2, ids, start);
done:
    Py_XDECREF(ids);
    Py_XDECREF(start);
    Py_DECREF(tuple);
    return pair;
}

static PyObject *Tokenizer_encode(Tokenizer *self, PyObject *text) {
    PyObject *texts = PyTuple_Pack(1, text), *pair = texts ? Tokenizer_encode_many(self, texts) : NULL;
    PyObject *ids = pair ? PyArray_ToList((PyArrayObject *)PyTuple_GET_ITEM(pair, 0)) : NULL;
    Py_XDECREF(pair);
    Py_XDECREF(texts);
    return ids;
}

/* An id that the vocabulary has, or -1 with an exception. */
static int32_t parse_id(const Tokenizer *self, PyObject *item, Py_ssize_t i, size_t *length) {
    int overflow;
    long id = PyLong_AsLongAndOverflow(item, &overflow);
    if (id == -1 && PyErr_Occurred()) return -1;
    if (!overflow && id >= 0 && id <= INT32_MAX && tokenizer_bytes(self->t, (int32_t)id, length)) return (int32_t)id;
    PyErr_Format(PyExc_ValueError, "ids[%zd] = %S is not in the vocabulary", i, item);
    return -1;
}

static PyObject *Tokenizer_decode(Tokenizer *self, PyObject *ids) {
    /* A tuple of our own, each item read once: its __index__ may run any code. */
    PyObject *tuple = PySequence_Tuple(ids), *out = NULL;
    if (!tuple) return NULL;
    Py_ssize_t n = PyTuple_GET_SIZE(tuple);
    size_t length = 0, bytes = 0;
    int32_t *id = PyMem_Calloc((size_t)n + 1, sizeof *id);
    if (!id) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        id[i] = parse_id(self, PyTuple_GET_ITEM(tuple, i), i, &length);
        if (id[i] < 0) goto done;
        bytes += length;
    }
    out = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes);
    char *end = out ? PyBytes_AS_STRING(out) : NULL;
    for (Py_ssize_t i = 0; out && i < n; i++, end += length) {
        const uint8_t *from = tokenizer_bytes(self->t, id[i], &length);
        memcpy(end, from, length);
    }
done:
    PyMem_Free(id);
    Py_DECREF(tuple);
    return out;
}

static PyMethodDef Tokenizer_methods[] = {
    {"encode", (PyCFunction)Tokenizer_encode, METH_O, "encode(text: bytes) -> list[int]"},
    {"encode_many", (PyCFunction)Tokenizer_encode_many, METH_O,
     "encode_many(texts: Sequence[bytes]) -> (ids int32 [T], start int64 [S+1])"},
    {"decode", (PyCFunction)Tokenizer_decode, METH_O, "decode(ids: Sequence[int]) -> bytes"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Tokenizer_slots[] = {
    {Py_tp_new, Tokenizer_new},
    {Py_tp_dealloc, Tokenizer_dealloc},
    {Py_tp_methods, Tokenizer_methods},
    {Py_tp_doc, "Tokenizer(ids: int32 [n], blob: bytes, offsets: int64 [n+1])\n\nEntry i has id ids[i] and the bytes "
                "blob[offsets[i]:offsets[i + 1]]."},
    {0, NULL},
};

static PyType_Spec Tokenizer_spec = {"rwkvsts._core.Tokenizer", sizeof(Tokenizer), 0, Py_TPFLAGS_DEFAULT,
                                     Tokenizer_slots};

/* ---- Model --------------------------------------------------------------------------------------------------- */

enum { KEPT = 8 }; /* idle sessions a model keeps; more than that many threads rarely call at once */

struct kept {
    struct session *session;
    int rows, columns, states;
    long pid; /* threads and device contexts do not survive a fork */
};

typedef struct {
    PyObject_HEAD
    struct rwkv6 *m;
    struct dims dims; /* of the checkpoint: L is all its blocks */
    int blocks;
    bool sealed;
    struct kept idle[KEPT];
    int n_idle;
} Model;

/* PyArg_ParseTuple takes anything else for a mistake of ours: SystemError. */
static bool is_tuple(PyObject *o, const char *what) {
    if (!PyTuple_Check(o)) PyErr_Format(PyExc_TypeError, "%s: found %s", what, Py_TYPE(o)->tp_name);
    return PyTuple_Check(o);
}

static bool parse_tensor(PyObject *item, struct tensor_info *t) {
    PyObject *shape;
    if (!is_tuple(item, "a tensor is a tuple (name, shape)")) return false;
    if (!PyArg_ParseTuple(item, "sO!;a tensor is (name, shape)", &t->name, &PyTuple_Type, &shape)) return false;
    Py_ssize_t ndim = PyTuple_GET_SIZE(shape);
    t->ndim = (int)ndim;
    for (int i = 0; i < t->ndim && i < 4; i++) {
        t->shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
        if (t->shape[i] == -1 && PyErr_Occurred()) return false;
    }
    return true;
}

static bool parse_dims(PyTypeObject *type, PyObject *tensors, struct dims *dims) {
    PyObject *tuple = PySequence_Tuple(tensors); /* of our own: it keeps the names alive */
    if (!tuple) return false;
    Py_ssize_t n = PyTuple_GET_SIZE(tuple);
    struct tensor_info *infos = PyMem_Calloc((size_t)n + 1, sizeof *infos);
    bool fine = infos != NULL;
    if (!fine) PyErr_NoMemory();
    for (Py_ssize_t i = 0; fine && i < n; i++) fine = parse_tensor(PyTuple_GET_ITEM(tuple, i), &infos[i]);
    struct error e;
    if (fine && rwkv6_dims(infos, (size_t)n, dims, &e) != OK) {
        raise_error(type, &e);
        fine = false;
    }
    PyMem_Free(infos);
    Py_DECREF(tuple);
    return fine;
}

static bool parse_dtype(const char *name, enum dtype *out) {
    for (enum dtype t = F32; t <= BF16; t++)
        if (!strcmp(name, dtype_name(t))) {
            *out = t;
            return true;
        }
    PyErr_Format(PyExc_ValueError, "dtype is \"%s\": expected float32, float16 or bfloat16", name);
    return false;
}

/* The CUDA backend's library stays loaded: the driver does not like to be unloaded. */
static const struct backend *load_cuda(const char *library, struct error *e) {
    void *handle = library ? dlopen(library, RTLD_NOW | RTLD_LOCAL) : NULL;
    cuda_backend_entry entry = NULL;
    if (handle) *(void **)&entry = dlsym(handle, CUDA_BACKEND_SYMBOL);
    const struct backend *backend = entry ? entry(CUDA_BACKEND_ABI) : NULL;
    if (!backend)
        fail(e, DEVICE_FAILED,
             "the CUDA part cannot be loaded (%s): install the package where nvcc is, with "
             "RWKVSTS_CUDA=1",
             library ? handle ? "another version" : dlerror() : "it was not built");
    return backend;
}

static PyObject *Model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tensors", "blocks", "dtype", "threads", "isa", "cuda", "library", "budget", NULL};
    PyObject *tensors;
    const char *dtype = "float32", *library = NULL;
    int blocks = 0, cuda = 0;
    Py_ssize_t budget = 0;
    struct device_options options = {.threads = 1};
    struct error e = {OK, ""};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|isizpzn", names, &tensors, &blocks, &dtype, &options.threads,
                                     &options.isa, &cuda, &library, &budget))
        return NULL;
    if (options.threads < 1 || budget < 0) {
        PyErr_SetString(PyExc_ValueError, "threads must be at least 1 and the budget not negative");
        return NULL;
    }
    options.budget = (size_t)budget;
    if (!parse_dtype(dtype, &options.dtype)) return NULL;
    Model *self = (Model *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    const struct backend *backend = NULL;
    if (!parse_dims(type, tensors, &self->dims)) goto failed;
    self->blocks = blocks ? blocks : self->dims.L;
    backend = cuda ? load_cuda(library, &e) : cpu_backend();
    if (!backend || rwkv6_open(backend, &self->dims, self->blocks, &options, &self->m, &e) != OK) {
        raise_error(type, &e);
        goto failed;
    }
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

static void drop_idle(Model *self) {
    while (self->n_idle) {
        struct kept *k = &self->idle[--self->n_idle];
        if (k->pid == (long)getpid()) rwkv6_session_close(k->session); /* else its threads are gone: let it lie */
    }
}

static void Model_dealloc(Model *self) {
    PyTypeObject *type = Py_TYPE(self);
    drop_idle(self);
    if (self->m) rwkv6_close(self->m);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *Model_wants(Model *self, PyObject *name) {
    const char *text = PyUnicode_AsUTF8(name);
    return text ? PyBool_FromLong(rwkv6_wants(self->m, text)) : NULL;
}

static PyObject *Model_put(Model *self, PyObject *args) {
    const char *name, *dtype;
    PyObject *o;
    struct array a;
    struct error e;
    if (!PyArg_ParseTuple(args, "sOs", &name, &o, &dtype) || !parse_dtype(dtype, &a.dtype)) return NULL;
    if (self->sealed) {
        PyErr_SetString(PyExc_ValueError, "the model is sealed: its weights cannot change");
        return NULL;
    }
    PyArrayObject *array = as_array(o, a.dtype == F32 ? NPY_FLOAT32 : NPY_UINT16, -1, name);
    if (!array) return NULL;
    a.ndim = PyArray_NDIM(array);
    if (a.ndim > 4) {
        PyErr_Format(PyExc_ValueError, "%s has %d dimensions: expected at most 4", name, a.ndim);
        return NULL;
    }
    for (int i = 0; i < a.ndim; i++) a.shape[i] = PyArray_DIM(array, i);
    a.data = PyArray_DATA(array);
    enum status st;
    Py_BEGIN_ALLOW_THREADS;
    st = rwkv6_put(self->m, name, &a, &e);
    Py_END_ALLOW_THREADS;
    if (st != OK) return raise_error(Py_TYPE(self), &e);
    Py_RETURN_NONE;
}

static PyObject *Model_seal(Model *self, PyObject *none) {
    (void)none;
    struct error e;
    if (rwkv6_seal(self->m, &e) != OK) return raise_error(Py_TYPE(self), &e);
    self->sealed = true;
    Py_RETURN_NONE;
}

static PyObject *Model_memory(Model *self, PyObject *none) {
    (void)none;
    const struct meter *meter = rwkv6_meter(self->m);
    size_t weights = rwkv6_weight_bytes(self->m), now = meter->now;
    return Py_BuildValue("{s:n,s:n,s:n}", "weights", (Py_ssize_t)weights, "workspace",
                         (Py_ssize_t)(now > weights ? now - weights : 0), "peak", (Py_ssize_t)meter->peak);
}

/* ---- Model.run ------------------------------------------------------------------------------------------------ */

struct call { /* what run() was given, checked */
    struct request request;
    struct state first, last;
    PyArrayObject *arrays[3]; /* of last */
    int rows;
};

struct poll {
    PyThreadState *thread;
    PyObject *progress;
    struct timespec next;
};

/* Between blocks: a signal's handler, Ctrl-C above all, and the caller's progress. Twenty times a second is enough, and
 * taking the GIL more often would let a busy Python thread hold up the device. */
static enum status poll(void *user, int64_t done, struct error *e) {
    struct poll *p = user;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec < p->next.tv_sec || (now.tv_sec == p->next.tv_sec && now.tv_nsec < p->next.tv_nsec)) return OK;
    p->next = now;
    p->next.tv_nsec += 50000000;
    if (p->next.tv_nsec >= 1000000000) p->next = (struct timespec){now.tv_sec + 1, p->next.tv_nsec - 1000000000};
    PyEval_RestoreThread(p->thread);
    bool raised = PyErr_CheckSignals() != 0;
    if (!raised && p->progress != Py_None) {
        PyObject *result = PyObject_CallFunction(p->progress, "L", (long long)done);
        raised = !result;
        Py_XDECREF(result);
    }
    p->thread = PyEval_SaveThread();
    return raised ? fail(e, INTERRUPTED, "interrupted") : OK;
}

static bool parse_first(PyObject *first, const struct dims *d, int blocks, struct state *out) {
    PyObject *o[3];
    static const char *const names[] = {"att_x", "ffn_x", "wkv"};
    float **data[] = {&out->att_x, &out->ffn_x, &out->wkv};
    npy_intp counts[] = {(npy_intp)blocks * d->C, (npy_intp)blocks * d->C, (npy_intp)blocks * d->C * d->N};
    if (!is_tuple(first, "a state is a tuple (att_x, ffn_x, wkv)")) return false;
    if (!PyArg_ParseTuple(first, "OOO;a state is (att_x, ffn_x, wkv)", &o[0], &o[1], &o[2])) return false;
    for (int i = 0; i < 3; i++) {
        PyArrayObject *a = as_array(o[i], NPY_FLOAT32, -1, names[i]);
        if (!a) return false;
        if (PyArray_SIZE(a) != counts[i]) {
            PyErr_Format(PyExc_ValueError, "the state's %s has %zd numbers: expected %zd for %d blocks of this model",
                         names[i], PyArray_SIZE(a), counts[i], blocks);
            return false;
        }
        *data[i] = PyArray_DATA(a);
    }
    return true;
}

static bool new_last(struct call *call, const Model *self) {
    const struct dims *d = &self->dims;
    npy_intp S = (npy_intp)call->request.S, L = self->blocks;
    npy_intp shift[] = {S, L, d->C}, wkv[] = {S, L, d->H, d->N, d->N};
    for (int i = 0; i < 3; i++)
        if (!(call->arrays[i] = (PyArrayObject *)new_array(NPY_FLOAT32, i < 2 ? 3 : 5, i < 2 ? shift : wkv)))
            return false;
    call->last =
        (struct state){PyArray_DATA(call->arrays[0]), PyArray_DATA(call->arrays[1]), PyArray_DATA(call->arrays[2])};
    call->request.last = &call->last;
    return true;
}

static bool parse_out(PyObject *o, const Model *self, struct request *r) {
    if (o == Py_None && r->columns == 0) return true;
    PyArrayObject *out = as_array(o, NPY_FLOAT32, 3, "out");
    if (!out) return false;
    if (PyArray_DIM(out, 0) != r->S || PyArray_DIM(out, 1) != r->columns || PyArray_DIM(out, 2) != self->dims.C ||
        !PyArray_ISWRITEABLE(out)) {
        PyErr_Format(PyExc_ValueError, "out must be writable float32 of shape [%zd, %d, %d]", (Py_ssize_t)r->S,
                     r->columns, self->dims.C);
        return false;
    }
    r->out = PyArray_DATA(out);
    return true;
}

static bool parse_call(Model *self, PyObject *args, PyObject *kwargs, struct call *call, PyObject **progress) {
    static char *names[] = {"ids", "start", "layers", "pooling", "out", "first", "last", "rows", "progress", NULL};
    PyObject *ids_o, *start_o, *layers_o, *out_o, *first;
    int pooling, last;
    struct request *r = &call->request;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOiOOpiO", names, &ids_o, &start_o, &layers_o, &pooling, &out_o,
                                     &first, &last, &call->rows, progress))
        return false;
    PyArrayObject *ids = as_array(ids_o, NPY_INT32, 1, "ids");
    PyArrayObject *start = ids ? as_array(start_o, NPY_INT64, 1, "start") : NULL;
    PyArrayObject *layers = start ? as_array(layers_o, NPY_INT32, 1, "layers") : NULL;
    if (!layers) return false;
    r->S = PyArray_DIM(start, 0) - 1;
    r->ids = PyArray_DATA(ids);
    r->start = PyArray_DATA(start);
    r->columns = (int)PyArray_DIM(layers, 0);
    r->layers = PyArray_DATA(layers);
    r->pooling = (enum pooling)pooling;
    bool sound = r->S >= 0 && r->start[0] == 0 && r->start[r->S] == PyArray_DIM(ids, 0);
    for (int64_t i = 0; sound && i < r->S; i++) sound = r->start[i] <= r->start[i + 1];
    if (!sound || pooling < POOL_MEAN || pooling > POOL_MAX) {
        PyErr_SetString(PyExc_ValueError, "start must ascend from 0 to len(ids), pooling be 0 .. 3");
        return false;
    }
    if (first != Py_None) {
        if (!parse_first(first, &self->dims, self->blocks, &call->first)) return false;
        r->first = &call->first;
    }
    return parse_out(out_o, self, r) && (!last || new_last(call, self));
}

/* Makes of what is wanted an idle session that has at least that, or a new one; those that have not make room first. The
 * new one has what they had too: else states and embeddings in turn would open a session for each call. */
static enum status take_session(Model *self, struct kept *k, struct error *e) {
    struct kept wanted = *k;
    for (int i = self->n_idle - 1; i >= 0; i--) {
        struct kept *idle = &self->idle[i];
        if (idle->pid != k->pid || idle->rows != k->rows) continue;
        if (idle->columns >= k->columns && idle->states >= k->states) {
            *k = *idle;
            *idle = self->idle[--self->n_idle];
            return OK;
        }
        if (wanted.columns < idle->columns) wanted.columns = idle->columns;
        if (wanted.states < idle->states) wanted.states = idle->states;
    }
    drop_idle(self);
    enum status st = rwkv6_session_open(self->m, wanted.rows, wanted.columns, wanted.states, &wanted.session, e);
    if (st != NO_MEMORY) {
        *k = wanted;
        return st;
    }
    return rwkv6_session_open(self->m, k->rows, k->columns, k->states, &k->session, e);
}

/* A session that failed may be inside a pass and is not used again. */
static void give_session(Model *self, const struct kept *k, bool sound) {
    if (sound && self->n_idle < KEPT) self->idle[self->n_idle++] = *k;
    else rwkv6_session_close(k->session);
}

static PyObject *Model_run(Model *self, PyObject *args, PyObject *kwargs) {
    enum { STATES = 16 }; /* states that leave the device at a time: they are large */
    struct call call = {.rows = 0};
    struct error e = {OK, ""};
    struct poll p = {0};
    PyObject *result = NULL;
    if (!self->sealed) {
        PyErr_SetString(PyExc_ValueError, "the model is not sealed: put all its tensors first");
        return NULL;
    }
    if (!parse_call(self, args, kwargs, &call, &p.progress)) goto done;
    int states = !call.request.last ? 0 : call.request.S < STATES ? (int)call.request.S : STATES;
    struct kept k = {NULL, call.rows, call.request.columns, states, (long)getpid()};
    enum status st = take_session(self, &k, &e);
    if (st == OK) {
        call.request.poll = poll;
        call.request.user = &p;
        p.thread = PyEval_SaveThread();
        st = rwkv6_run(k.session, &call.request, &e);
        PyEval_RestoreThread(p.thread);
        give_session(self, &k, st == OK);
    }
    if (st != OK) raise_error(Py_TYPE(self), &e);
    else if (call.request.last) result = PyTuple_Pack(3, call.arrays[0], call.arrays[1], call.arrays[2]);
    else result = Py_NewRef(Py_None);
done:
    for (int i = 0; i < 3; i++) Py_XDECREF(call.arrays[i]);
    return result;
}

static PyObject *Model_config(Model *self, void *none) {
    (void)none;
    const struct dims *d = &self->dims;
    return Py_BuildValue("{s:i,s:i,s:i,s:i,s:i,s:i}", "n_layer", d->L, "n_embd", d->C, "n_head", d->H, "head_size",
                         d->N, "n_ffn", d->F, "n_vocab", d->V);
}

static PyObject *Model_device(Model *self, void *none) {
    (void)none;
    return PyUnicode_FromString(rwkv6_device(self->m));
}

static PyMethodDef Model_methods[] = {
    {"wants", (PyCFunction)Model_wants, METH_O, "wants(name: str) -> bool: whether the tensor is read"},
    {"put", (PyCFunction)Model_put, METH_VARARGS, "put(name: str, array, dtype: str): float32, or 16 bits as uint16"},
    {"seal", (PyCFunction)Model_seal, METH_NOARGS, "seal(): no tensor is missing; the model can run"},
    {"memory", (PyCFunction)Model_memory, METH_NOARGS, "memory() -> dict of bytes: weights, workspace, peak"},
    {"run", (PyCFunction)(void (*)(void))Model_run, METH_VARARGS | METH_KEYWORDS,
     "run(ids, start, layers, pooling, out, first, last, rows, progress) -> None or the states (att_x, ffn_x, wkv)"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Model_getset[] = {
    {"config", (getter)Model_config, NULL, "sizes of the checkpoint", NULL},
    {"device", (getter)Model_device, NULL, "what the model runs on, in words", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Model_slots[] = {
    {Py_tp_new, Model_new},
    {Py_tp_dealloc, Model_dealloc},
    {Py_tp_methods, Model_methods},
    {Py_tp_getset, Model_getset},
    {Py_tp_doc, "Model(tensors, blocks=0, dtype='float32', threads=1, isa=None, cuda=False, library=None, budget=0)"},
    {0, NULL},
};

static PyType_Spec Model_spec = {"rwkvsts._core.Model", sizeof(Model), 0, Py_TPFLAGS_DEFAULT, Model_slots};

/* ---- the module ------------------------------------------------------------------------------------------------ */

static PyObject *cpu_facts(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    struct cpu_features f = cpu_features();
    return Py_BuildValue("{s:O,s:O,s:O,s:O}", "avx2", f.avx2_fma ? Py_True : Py_False, "avx512",
                         f.avx512 ? Py_True : Py_False, "avx512bf16", f.avx512bf16 ? Py_True : Py_False, "amx",
                         f.amx_bf16 ? Py_True : Py_False);
}

static PyMethodDef module_functions[] = {
    {"cpu_features", cpu_facts, METH_NOARGS,
     "cpu_features() -> dict[str, bool]: instruction sets that may be used here"},
    {NULL, NULL, 0, NULL},
};

static int add_type(PyObject *module, PyType_Spec *spec, PyObject **slot) {
    *slot = PyType_FromModuleAndSpec(module, spec, NULL);
    return *slot ? PyModule_AddType(module, (PyTypeObject *)*slot) : -1;
}

static int module_exec(PyObject *module) {
    struct module *state = PyModule_GetState(module);
    import_array1(-1);
    PyObject *errors = PyImport_ImportModule("rwkvsts.errors");
    if (!errors) return -1;
    state->device_error = PyObject_GetAttrString(errors, "DeviceError");
    Py_DECREF(errors);
    if (!state->device_error) return -1;
    if (add_type(module, &Tokenizer_spec, &state->tokenizer_type) < 0) return -1;
    return add_type(module, &Model_spec, &state->model_type);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    struct module *state = PyModule_GetState(module);
    Py_VISIT(state->device_error);
    Py_VISIT(state->tokenizer_type);
    Py_VISIT(state->model_type);
    return 0;
}

static int module_clear(PyObject *module) {
    struct module *state = PyModule_GetState(module);
    Py_CLEAR(state->device_error);
    Py_CLEAR(state->tokenizer_type);
    Py_CLEAR(state->model_type);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef module_def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "rwkvsts._core",
    .m_doc = "The C core of rwkvsts: tokenizer and RWKV-6 forward pass.",
    .m_size = sizeof(struct module),
    .m_methods = module_functions,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(&module_def);
}
