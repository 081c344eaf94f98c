/* The Python object of a model, shared by model.c, which loads it, and run.c, which runs it and keeps its sessions. */
#ifndef RWKVSTS_PYTHON_MODEL_H
#define RWKVSTS_PYTHON_MODEL_H

#include "../session.h"

#include "python.h"

enum { KEPT = 8 }; /* idle sessions a model keeps; more than that many threads rarely call at once */

struct kept {
    struct session *session;
    struct session_size size;
    long pid; /* threads and device contexts do not survive a fork */
};

typedef struct {
    PyObject_HEAD
    struct model *m;
    const struct architecture *architecture;
    struct dims dims; /* of the checkpoint: L is all its blocks */
    int blocks;
    bool sealed;
    struct kept idle[KEPT]; /* sessions for the next call, never shared by two calls at a time */
    int n_idle;
} Model;

PyObject *Model_run(Model *self, PyObject *args, PyObject *kwargs);
void drop_idle(Model *self);

#endif
