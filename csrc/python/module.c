/* rwkvsts._core: the module, its exceptions and what its types share; see python.h. */
#define RWKVSTS_IMPORTS_NUMPY
#include "python.h"

#include <fenv.h>
#include <string.h>

#include "../cpu/cpu.h"

PyObject *raise_error(PyTypeObject *type, const struct error *e) {
    const struct module *state = PyType_GetModuleState(type);
    PyObject *kinds[] = {NULL, PyExc_ValueError, PyExc_MemoryError, state->device_error, NULL};
    /* Names from a file may be no UTF-8, or cut inside a character. */
    PyObject *text = kinds[e->status] ? PyUnicode_DecodeUTF8(e->text, (Py_ssize_t)strlen(e->text), "replace") : NULL;
    if (text) PyErr_SetObject(kinds[e->status], text);
    Py_XDECREF(text);
    return NULL;
}

PyArrayObject *as_array(PyObject *o, int type, int ndim, const char *name) {
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

PyObject *new_array(int type, int ndim, const npy_intp *shape) {
    return PyArray_SimpleNew(ndim, (npy_intp *)(uintptr_t)shape, type);
}

bool is_tuple(PyObject *o, const char *what) {
    if (!PyTuple_Check(o)) PyErr_Format(PyExc_TypeError, "%s: found %s", what, Py_TYPE(o)->tp_name);
    return PyTuple_Check(o);
}

/* ---- the module ------------------------------------------------------------------------------------------------ */

static PyObject *cpu_facts(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    PyObject *facts = PyDict_New();
    for (int i = 0; facts && cpu_isa_names[i]; i++)
        if (strcmp(cpu_isa_names[i], "portable") &&
            PyDict_SetItemString(facts, cpu_isa_names[i], cpu_isa_available(cpu_isa_names[i]) ? Py_True : Py_False) < 0)
            Py_CLEAR(facts);
    return facts;
}

/* NumPy rounds as the process does, and another library may have changed that. */
static PyObject *in_default_floats(PyObject *module, PyObject *function) {
    (void)module;
    fenv_t callers;
    fegetenv(&callers);
    fesetenv(FE_DFL_ENV);
    PyObject *result = PyObject_CallNoArgs(function);
    fesetenv(&callers);
    return result;
}

static PyMethodDef module_functions[] = {
    {"cpu_features", cpu_facts, METH_NOARGS,
     "cpu_features() -> dict[str, bool]: instruction sets that may be used here"},
    {"in_default_floats", in_default_floats, METH_O,
     "in_default_floats(function): what it returns, called with the default rounding and subnormals"},
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

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* what two threads may change at a time is guarded, see run.c and bind.c */
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "rwkvsts._core",
    .m_doc = "The C core of rwkvsts: tokenizer and forward passes.",
    .m_size = sizeof(struct module),
    .m_methods = module_functions,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(&module_def);
}
