/* rwkvsts._core.Tokenizer: the World tokenizer for Python, over many texts at a time; see tokenizer.h. */
#include "../tokenizer.h"

#include "python.h"

#include <string.h>

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

/* Ctrl-C above all. */
static bool no_signal(void *user) {
    PyThreadState **thread = user;
    PyEval_RestoreThread(*thread);
    bool fine = PyErr_CheckSignals() == 0;
    *thread = PyEval_SaveThread();
    return fine;
}

/* Encodes the texts of a tuple one after the other; at[i + 1] is where text i ends. False with an exception. */
static bool encode_all(const struct tokenizer *t, PyObject *texts, int32_t *ids, int64_t *at) {
    PyThreadState *thread = PyEval_SaveThread();
    struct watch watch = {no_signal, &thread, 0};
    size_t n = 0;
    for (Py_ssize_t i = 0; n != SIZE_MAX && i < PyTuple_GET_SIZE(texts); i++) {
        PyObject *text = PyTuple_GET_ITEM(texts, i);
        const uint8_t *bytes = (const uint8_t *)PyBytes_AS_STRING(text);
        n = tokenizer_encode(t, bytes, (size_t)PyBytes_GET_SIZE(text), ids + at[i], &watch);
        at[i + 1] = at[i] + (int64_t)n;
    }
    PyEval_RestoreThread(thread);
    return n != SIZE_MAX;
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
    at[0] = 0;
    bool whole = encode_all(self->t, tuple, scratch, at);
    npy_intp used = whole ? (npy_intp)at[n] : 0;
    ids = whole ? new_array(NPY_INT32, 1, &used) : NULL;
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

PyType_Spec Tokenizer_spec = {"rwkvsts._core.Tokenizer", sizeof(Tokenizer), 0, Py_TPFLAGS_DEFAULT, Tokenizer_slots};
