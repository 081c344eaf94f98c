/* What the files of rwkvsts._core share: the module's state, exceptions, checked arrays. The only files that know Python.h
 * and NumPy are in this folder.
 *
 * Arrays are checked here for dtype, shape and order; sizes and names of tensors are checked by what these files call. The
 * GIL is released while C works. */
#ifndef RWKVSTS_PYTHON_H
#define RWKVSTS_PYTHON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL rwkvsts_array_api
#ifndef RWKVSTS_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "../base.h"

/* What only one thread at a time may do with an object. Where there is a GIL, that is the guard. */
#ifndef Py_BEGIN_CRITICAL_SECTION
#define Py_BEGIN_CRITICAL_SECTION(object) {
#define Py_END_CRITICAL_SECTION() }
#endif

struct module {
    PyObject *device_error, *tokenizer_type, *model_type;
};

/* Raises the Python exception of a failure. After INTERRUPTED the callback has raised its own. */
PyObject *raise_error(PyTypeObject *type, const struct error *e);

/* A C-contiguous array of that type and number of dimensions (-1: any), as the caller's own object: no copies in silence. */
PyArrayObject *as_array(PyObject *o, int type, int ndim, const char *name);
PyObject *new_array(int type, int ndim, const npy_intp *shape);

/* PyArg_ParseTuple takes anything else for a mistake of ours: SystemError. */
bool is_tuple(PyObject *o, const char *what);

extern PyType_Spec Tokenizer_spec, Model_spec;

#endif
