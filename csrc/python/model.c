/* rwkvsts._core.Model: tensors of a checkpoint become a model; see ../model.h. Running it is run.c's. */
#include "model.h"

#include <dlfcn.h>
#include <string.h>

#include "../cpu/cpu.h"

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

/* The tensors that a checkpoint lists; the names are the tuple's. */
struct listing {
    PyObject *tuple;
    struct tensor_info *infos;
    size_t count;
};

static bool parse_listing(PyObject *tensors, struct listing *l) {
    l->tuple = PySequence_Tuple(tensors); /* of our own: nobody can change it */
    if (!l->tuple) return false;
    l->count = (size_t)PyTuple_GET_SIZE(l->tuple);
    l->infos = PyMem_Calloc(l->count + 1, sizeof *l->infos);
    bool fine = l->infos != NULL;
    if (!fine) PyErr_NoMemory();
    for (size_t i = 0; fine && i < l->count; i++)
        fine = parse_tensor(PyTuple_GET_ITEM(l->tuple, (Py_ssize_t)i), &l->infos[i]);
    return fine;
}

static void drop_listing(struct listing *l) {
    PyMem_Free(l->infos);
    Py_XDECREF(l->tuple);
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
    static char *names[] = {"tensors", "blocks",  "dtype",  "threads", "isa",
                            "cuda",    "library", "budget", "ordinal", NULL};
    PyObject *tensors;
    const char *dtype = "float32", *library = NULL;
    int blocks = 0, cuda = 0;
    Py_ssize_t budget = 0;
    struct device_options options = {.threads = 1};
    struct error e = {OK, ""};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|isizpzni", names, &tensors, &blocks, &dtype, &options.threads,
                                     &options.isa, &cuda, &library, &budget, &options.ordinal))
        return NULL;
    if (options.threads < 1 || budget < 0 || options.ordinal < 0) {
        PyErr_SetString(PyExc_ValueError, "threads must be at least 1, budget and ordinal not negative");
        return NULL;
    }
    options.budget = (size_t)budget;
    if (!parse_dtype(dtype, &options.dtype)) return NULL;
    Model *self = (Model *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    struct listing l = {0};
    bool parsed = parse_listing(tensors, &l);
    enum status st = parsed ? identify(l.infos, l.count, &self->architecture, &self->dims, &e) : BAD_INPUT;
    if (st == OK) {
        self->blocks = blocks ? blocks : self->dims.L;
        Py_BEGIN_ALLOW_THREADS;
        const struct backend *backend = cuda ? load_cuda(library, &e) : cpu_backend();
        st = DEVICE_FAILED;
        if (backend) st = model_open(backend, self->architecture, &self->dims, self->blocks, &options, &self->m, &e);
        if (st == OK) st = model_check(self->m, l.infos, l.count, &e);
        Py_END_ALLOW_THREADS;
    }
    drop_listing(&l);
    if (st == OK) return (PyObject *)self;
    if (parsed) raise_error(type, &e);
    Py_DECREF(self);
    return NULL;
}

static void Model_dealloc(Model *self) {
    PyTypeObject *type = Py_TYPE(self);
    drop_idle(self);
    if (self->m) model_close(self->m);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *Model_wants(Model *self, PyObject *name) {
    const char *text = PyUnicode_AsUTF8(name);
    return text ? PyBool_FromLong(model_wants(self->m, text)) : NULL;
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
    st = model_put(self->m, name, &a, &e);
    Py_END_ALLOW_THREADS;
    if (st != OK) return raise_error(Py_TYPE(self), &e);
    Py_RETURN_NONE;
}

static PyObject *Model_seal(Model *self, PyObject *none) {
    (void)none;
    struct error e;
    if (model_seal(self->m, &e) != OK) return raise_error(Py_TYPE(self), &e);
    self->sealed = true;
    Py_RETURN_NONE;
}

static PyObject *Model_memory(Model *self, PyObject *none) {
    (void)none;
    const struct meter *meter = &self->m->meter;
    size_t weights = model_weight_bytes(self->m), now = meter->now;
    return Py_BuildValue("{s:n,s:n,s:n}", "weights", (Py_ssize_t)weights, "workspace",
                         (Py_ssize_t)(now > weights ? now - weights : 0), "peak", (Py_ssize_t)meter->peak);
}

static PyObject *Model_config(Model *self, void *none) {
    (void)none;
    const struct dims *d = &self->dims;
    return Py_BuildValue("{s:i,s:i,s:i,s:i,s:i,s:i}", "n_layer", d->L, "n_embd", d->C, "n_head", d->H, "head_size",
                         d->N, "n_ffn", d->F, "n_vocab", d->V);
}

static PyObject *Model_ranks(Model *self, void *none) {
    (void)none;
    const int *rank = self->dims.rank;
    return Py_BuildValue("(iiii)", rank[0], rank[1], rank[2], rank[3]);
}

static PyObject *Model_device(Model *self, void *none) {
    (void)none;
    return PyUnicode_FromString(self->m->be->describe(self->m->dev));
}

static PyObject *Model_architecture(Model *self, void *none) {
    (void)none;
    return PyUnicode_FromString(self->architecture->name);
}

static PyMethodDef Model_methods[] = {
    {"wants", (PyCFunction)Model_wants, METH_O, "wants(name: str) -> bool: whether the tensor is read"},
    {"put", (PyCFunction)Model_put, METH_VARARGS, "put(name: str, array, dtype: str): float32, or 16 bits as uint16"},
    {"seal", (PyCFunction)Model_seal, METH_NOARGS, "seal(): no tensor is missing; the model can run"},
    {"memory", (PyCFunction)Model_memory, METH_NOARGS, "memory() -> dict of bytes: weights, workspace, peak"},
    {"run", (PyCFunction)(void (*)(void))Model_run, METH_VARARGS | METH_KEYWORDS,
     "run(ids, start, layers, pooling, out, first, last, rows, progress, skip=None, origin=None) -> whether all rows "
     "of out are finite or, where last is asked for, the states (att_x, ffn_x, wkv)"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Model_getset[] = {
    {"config", (getter)Model_config, NULL, "sizes of the checkpoint", NULL},
    {"ranks", (getter)Model_ranks, NULL, "ranks of the low-rank terms in the architecture's own order, 0: not used",
     NULL},
    {"device", (getter)Model_device, NULL, "what the model runs on, in words", NULL},
    {"architecture", (getter)Model_architecture, NULL, "\"RWKV-6\"", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Model_slots[] = {
    {Py_tp_new, Model_new},
    {Py_tp_dealloc, Model_dealloc},
    {Py_tp_methods, Model_methods},
    {Py_tp_getset, Model_getset},
    {Py_tp_doc, "Model(tensors, blocks=0, dtype='float32', threads=1, isa=None, cuda=False, library=None, budget=0, "
                "ordinal=0)"},
    {0, NULL},
};

PyType_Spec Model_spec = {"rwkvsts._core.Model", sizeof(Model), 0, Py_TPFLAGS_DEFAULT, Model_slots};
