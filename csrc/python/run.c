/* rwkvsts._core.Model.run: one call of a model, checked, and the sessions that are kept for the next.
 *
 * The small arrays are copied, so that no other thread can change what was checked. `out` and the given states stay the
 * caller's; they must not overlap. */
#include "model.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

enum { STATES = 16 }; /* states on the device at a time: they are large */

/* ---- arguments --------------------------------------------------------------------------------------------------- */

struct call { /* what run() was given, checked */
    struct request request;
    struct state first, last;
    PyArrayObject *given[3], *returned[3]; /* att_x, ffn_x, wkv of first and of last */
    PyArrayObject *copies[5];              /* of ids, start, layers, skip, origin */
    PyObject *held[8];                     /* weak references to arrays that must keep their memory */
    int n_held, rows;
};

static void release(struct call *call) {
    for (int i = 0; i < 3; i++) Py_XDECREF(call->returned[i]);
    for (int i = 0; i < 5; i++) Py_XDECREF(call->copies[i]);
    for (int i = 0; i < call->n_held; i++) Py_DECREF(call->held[i]);
}

/* Keeps an array's memory where it is while the GIL is released: NumPy does not resize an array in place that somebody
 * holds a weak reference to, not even with refcheck=False. A view has its memory from its base. */
static bool hold(struct call *call, PyArrayObject *a) {
    PyObject *base = PyArray_BASE(a);
    PyObject *owner = base && PyArray_Check(base) ? base : (PyObject *)a;
    if (!(call->held[call->n_held] = PyWeakref_NewRef(owner, NULL))) return false;
    call->n_held++;
    return true;
}

/* The data of a copy of a one-dimensional array of `n` elements (-1: any), or NULL with an exception. */
static const void *copied(PyObject *o, int type, npy_intp n, const char *name, PyArrayObject **copy) {
    PyArrayObject *a = as_array(o, type, 1, name);
    if (!a) return NULL;
    if (n >= 0 && PyArray_DIM(a, 0) != n) {
        PyErr_Format(PyExc_ValueError, "%s has %zd numbers: expected %zd, one a sequence", name, PyArray_DIM(a, 0), n);
        return NULL;
    }
    *copy = (PyArrayObject *)PyArray_NewCopy(a, NPY_CORDER);
    return *copy ? PyArray_DATA(*copy) : NULL;
}

/* Sizes of one state's array i of att_x, ffn_x, wkv; returns how many. */
static int state_shape(const Model *self, int i, npy_intp shape[4]) {
    const struct dims *d = &self->dims;
    shape[0] = self->blocks;
    shape[1] = i < 2 ? d->C : d->H;
    shape[2] = shape[3] = d->N;
    return i < 2 ? 2 : 4;
}

/* A given array holds one state, or as many as its first dimension says. */
static bool parse_given(const Model *self, PyArrayObject *a, int i, const char *name, int64_t *count) {
    npy_intp want[4];
    int ndim = state_shape(self, i, want), extra = PyArray_NDIM(a) - ndim;
    bool fits = extra == 0 || extra == 1;
    for (int j = 0; fits && j < ndim; j++) fits = PyArray_DIM(a, extra + j) == want[j];
    int64_t n = fits && extra ? PyArray_DIM(a, 0) : 1;
    if (fits && (i == 0 || n == *count) && n > 0) {
        *count = n;
        return true;
    }
    PyObject *found = PyObject_GetAttrString((PyObject *)a, "shape");
    PyObject *expected = PyArray_IntTupleFromIntp(ndim, want);
    if (found && expected)
        PyErr_Format(
            PyExc_ValueError,
            "the state's %s has shape %R: expected %R for the %d blocks of this model, or several such in one array",
            name, found, expected, self->blocks);
    Py_XDECREF(found);
    Py_XDECREF(expected);
    return false;
}

static bool parse_first(PyObject *first, const Model *self, struct call *call) {
    PyObject *o[3];
    static const char *const names[] = {"att_x", "ffn_x", "wkv"};
    float **data[] = {&call->first.att_x, &call->first.ffn_x, &call->first.wkv};
    if (!is_tuple(first, "a state is a tuple (att_x, ffn_x, wkv)")) return false;
    if (!PyArg_ParseTuple(first, "OOO;a state is (att_x, ffn_x, wkv)", &o[0], &o[1], &o[2])) return false;
    for (int i = 0; i < 3; i++) {
        PyArrayObject *a = as_array(o[i], NPY_FLOAT32, -1, names[i]);
        if (!a || !parse_given(self, a, i, names[i], &call->request.firsts) || !hold(call, a)) return false;
        *data[i] = PyArray_DATA(a);
        call->given[i] = a;
    }
    call->request.first = &call->first;
    return true;
}

static bool new_last(struct call *call, const Model *self) {
    for (int i = 0; i < 3; i++) {
        npy_intp shape[5] = {(npy_intp)call->request.S};
        int ndim = state_shape(self, i, shape + 1);
        if (!(call->returned[i] = (PyArrayObject *)new_array(NPY_FLOAT32, ndim + 1, shape))) return false;
    }
    call->last = (struct state){PyArray_DATA(call->returned[0]), PyArray_DATA(call->returned[1]),
                                PyArray_DATA(call->returned[2])};
    call->request.last = &call->last;
    return true;
}

static bool overlap(PyArrayObject *a, PyArrayObject *b) {
    const char *x = PyArray_BYTES(a), *y = PyArray_BYTES(b);
    return x < y + PyArray_NBYTES(b) && y < x + PyArray_NBYTES(a);
}

static bool parse_out(PyObject *o, const Model *self, struct call *call) {
    struct request *r = &call->request;
    if (o == Py_None && r->columns == 0) return true;
    PyArrayObject *out = as_array(o, NPY_FLOAT32, 3, "out");
    if (!out) return false;
    if (PyArray_DIM(out, 0) != r->S || PyArray_DIM(out, 1) != r->columns || PyArray_DIM(out, 2) != self->dims.C ||
        !PyArray_ISWRITEABLE(out)) {
        PyErr_Format(PyExc_ValueError, "out must be writable float32 of shape [%zd, %d, %d]", (Py_ssize_t)r->S,
                     r->columns, self->dims.C);
        return false;
    }
    for (int i = 0; i < 3 && call->given[i]; i++)
        if (overlap(out, call->given[i])) {
            PyErr_SetString(PyExc_ValueError,
                            "out shares memory with the given state, which later texts start from: give "
                            "an array of its own");
            return false;
        }
    r->out = PyArray_DATA(out);
    return hold(call, out);
}

static bool parse_sequences(PyObject *ids, PyObject *start, PyObject *layers, int pooling, struct call *call) {
    struct request *r = &call->request;
    if (!(r->ids = copied(ids, NPY_INT32, -1, "ids", &call->copies[0]))) return false;
    if (!(r->start = copied(start, NPY_INT64, -1, "start", &call->copies[1]))) return false;
    if (!(r->layers = copied(layers, NPY_INT32, -1, "layers", &call->copies[2]))) return false;
    r->S = PyArray_DIM(call->copies[1], 0) - 1;
    r->columns = (int)PyArray_DIM(call->copies[2], 0);
    r->pooling = (enum pooling)pooling;
    bool sound = r->S >= 0 && r->start[0] == 0 && r->start[r->S] == PyArray_DIM(call->copies[0], 0);
    for (int64_t i = 0; sound && i < r->S; i++) sound = r->start[i] <= r->start[i + 1];
    if (sound && pooling >= POOL_MEAN && pooling <= POOL_MAX) return true;
    PyErr_SetString(PyExc_ValueError, "start must ascend from 0 to len(ids), pooling be 0 .. 3");
    return false;
}

static bool parse_call(Model *self, PyObject *args, PyObject *kwargs, struct call *call, PyObject **progress) {
    static char *names[] = {"ids",  "start",    "layers", "pooling", "out",  "first", "last",
                            "rows", "progress", "skip",   "origin",  "more", NULL};
    PyObject *ids, *start, *layers, *out, *first, *skip = Py_None, *origin = Py_None;
    int pooling, last, more = 0;
    struct request *r = &call->request;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOiOOpiO|OOp", names, &ids, &start, &layers, &pooling, &out,
                                     &first, &last, &call->rows, progress, &skip, &origin, &more))
        return false;
    r->more = more && !last; /* states are returned of all sequences */
    if (!parse_sequences(ids, start, layers, pooling, call)) return false;
    if (skip != Py_None && !(r->skip = copied(skip, NPY_INT32, r->S, "skip", &call->copies[3]))) return false;
    if (first != Py_None && !parse_first(first, self, call)) return false;
    if (origin != Py_None && !(r->origin = copied(origin, NPY_INT64, r->S, "origin", &call->copies[4]))) return false;
    if (r->first ? r->firsts > 1 && !r->origin : r->origin != NULL) {
        PyErr_SetString(PyExc_ValueError,
                        "origin says which of several given states each sequence starts from: give both");
        return false;
    }
    return parse_out(out, self, call) && (!last || new_last(call, self));
}

/* ---- progress ------------------------------------------------------------------------------------------------------ */

struct poll {
    PyThreadState *thread;
    PyObject *progress;
    struct timespec next;
    long pid;
};

/* Between blocks: a signal's handler, Ctrl-C above all, and the caller's progress. Twenty times a second is enough, and
 * taking the GIL more often would let a busy Python thread hold up the device. */
static enum status poll(void *user, int64_t done, int64_t tokens, struct error *e) {
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
        PyObject *result = PyObject_CallFunction(p->progress, "LL", (long long)done, (long long)tokens);
        raised = !result;
        Py_XDECREF(result);
    }
    if (!raised && p->pid != (long)getpid()) {
        PyErr_SetString(PyExc_RuntimeError,
                        "this process was forked inside a callback of encode: the call goes on in the parent alone");
        raised = true;
    }
    p->thread = PyEval_SaveThread();
    return raised ? fail(e, INTERRUPTED, "interrupted") : OK;
}

/* ---- sessions ------------------------------------------------------------------------------------------------------ */

void drop_idle(Model *self) {
    while (self->n_idle) {
        struct kept *k = &self->idle[--self->n_idle];
        if (k->pid == (long)getpid()) session_close(k->session); /* else its threads are gone: let it lie */
    }
}

static int larger(int a, int b) {
    return a > b ? a : b;
}

static bool covers(const struct session_size *have, const struct session_size *want) {
    return have->columns >= want->columns && have->firsts >= want->firsts && have->lasts >= want->lasts;
}

static enum status open_session(Model *self, struct session_size size, struct session **out, struct error *e) {
    enum status st;
    Py_BEGIN_ALLOW_THREADS;
    st = session_open(self->m, size, out, e);
    Py_END_ALLOW_THREADS;
    return st;
}

/* Finds an idle session that is large enough for `k`, or opens one. Sessions that are too small are closed to make room,
 * and the new one is as large as they were too: calls for states and for embeddings in turn would open one each otherwise. */
static enum status take_session(Model *self, struct kept *k, struct error *e) {
    struct session_size wanted = k->size;
    for (int i = self->n_idle - 1; i >= 0; i--) {
        struct kept *idle = &self->idle[i];
        if (idle->pid != k->pid || idle->size.rows != k->size.rows) continue;
        if (covers(&idle->size, &k->size)) {
            *k = *idle;
            *idle = self->idle[--self->n_idle];
            return OK;
        }
        wanted.columns = larger(wanted.columns, idle->size.columns);
        wanted.firsts = larger(wanted.firsts, idle->size.firsts);
        wanted.lasts = larger(wanted.lasts, idle->size.lasts);
    }
    drop_idle(self);
    enum status st = open_session(self, wanted, &k->session, e);
    if (st == NO_MEMORY) return open_session(self, k->size, &k->session, e);
    k->size = wanted;
    return st;
}

/* A session that failed may be inside a pass and is not used again. In a child that was forked during the call its
 * threads are gone, and closing would wait for them: it lies there. */
static void give_session(Model *self, const struct kept *k, bool sound) {
    if (k->pid != (long)getpid()) return;
    if (sound && self->n_idle < KEPT) self->idle[self->n_idle++] = *k;
    else session_close(k->session);
}

/* ---- run ----------------------------------------------------------------------------------------------------------- */

static int at_a_time(int64_t states) {
    return states < STATES ? (int)states : STATES;
}

PyObject *Model_run(Model *self, PyObject *args, PyObject *kwargs) {
    struct call call = {.rows = 0};
    struct error e = {OK, ""};
    struct poll p = {0};
    PyObject *result = NULL;
    struct outcome outcome = {0, true};
    if (!self->sealed) {
        PyErr_SetString(PyExc_ValueError, "the model is not sealed: put all its tensors first");
        return NULL;
    }
    if (!parse_call(self, args, kwargs, &call, &p.progress)) goto done;
    const struct request *r = &call.request;
    struct session_size size = {call.rows, r->columns, at_a_time(r->firsts), r->last ? at_a_time(r->S) : 0};
    struct kept k = {NULL, size, (long)getpid()};
    enum status st;
    Py_BEGIN_CRITICAL_SECTION(self);
    st = take_session(self, &k, &e);
    Py_END_CRITICAL_SECTION();
    if (st == OK) {
        call.request.poll = poll;
        call.request.user = &p;
        p.pid = k.pid;
        p.thread = PyEval_SaveThread();
        st = session_run(k.session, r, &outcome, &e);
        PyEval_RestoreThread(p.thread);
        Py_BEGIN_CRITICAL_SECTION(self);
        give_session(self, &k, st == OK);
        Py_END_CRITICAL_SECTION();
    }
    if (st != OK) raise_error(Py_TYPE(self), &e);
    else if (r->last) result = PyTuple_Pack(3, call.returned[0], call.returned[1], call.returned[2]);
    else result = Py_BuildValue("LO", (long long)outcome.done, outcome.finite ? Py_True : Py_False);
done:
    release(&call);
    return result;
}
