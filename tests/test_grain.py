"""Passes cut at a grain, without a GPU: the CPU's verbs behind the seam of the CUDA library.

A backend may ask that a sequence be cut after whole groups of its tokens only. The CPU's own grain
is 1, so a stand-in with another is compiled here and loaded as the CUDA part would be. Before each
pass it looks whether the promise of backend.h is kept, and counts the cuts: so that there are some.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from standin import compile_cpu, model_on
from tinymodel import random_ids, random_weights

from rwkvsts import RWKV6

GRAIN = 16
ENTRY = """
#include "backend.h"

__attribute__((visibility("default"))) int passes, cuts;

static int grain(const struct device *dev) {
    (void)dev;
    return GRAIN;
}

static enum status begin(struct worker *w, const struct pass *p, bool *replay, struct error *e) {
    for (int s = 0; s < p->S; s++) {
        int length = p->start[s + 1] - p->start[s];
        bool continues = p->before[s] > 0, goes_on = p->before[s] + length < p->total[s];
        bool cut_right = s + 1 == p->S && length % GRAIN == 0;
        if (length < 1 || (continues && s > 0) || (goes_on && !cut_right))
            return fail(e, BAD_INPUT, "piece %d of %d: %d tokens after %d of %d", s, p->S, length,
                        p->before[s], p->total[s]);
        cuts += goes_on;
    }
    passes++;
    return cpu_backend()->begin(w, p, replay, e);
}

__attribute__((visibility("default"))) const struct backend *rwkvsts_cuda_backend(int abi) {
    static struct backend backend;
    backend = *cpu_backend();
    backend.grain = grain;
    backend.begin = begin;
    return abi == CUDA_BACKEND_ABI ? &backend : NULL;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(
        str(compile_cpu(tmp_path_factory.mktemp("grain"), ENTRY, f"-DGRAIN={GRAIN}"))
    )


@pytest.fixture
def model(library: ctypes.CDLL) -> RWKV6:
    return model_on(Path(library._name), random_weights(3, L=2))


def counted(library: ctypes.CDLL, name: str) -> int:
    return ctypes.c_int.in_dll(library, name).value


@pytest.mark.parametrize("batch_tokens", [1, GRAIN, GRAIN + 1, 2 * GRAIN + 7, 64, 100])
def test_cuts_fall_on_the_grain(library: ctypes.CDLL, model: RWKV6, batch_tokens: int) -> None:
    """Lengths around its multiples, and one that no pass holds; fewer rows than the grain too."""
    lengths = [
        1,
        GRAIN - 1,
        GRAIN,
        GRAIN + 1,
        2 * GRAIN,
        3 * GRAIN + 5,
        2,
        4 * GRAIN,
        9 * GRAIN + 3,
    ]
    ids = random_ids(1, lengths)
    right = model.encode_ids(ids, [0, 1, "final"])
    before = counted(library, "cuts")
    found = model.encode_ids(ids, [0, 1, "final"], batch_tokens=batch_tokens)
    assert counted(library, "cuts") > before
    assert found.tobytes() == right.tobytes()


def test_a_text_waits_where_no_whole_group_of_it_fits(library: ctypes.CDLL, model: RWKV6) -> None:
    """Of 40 rows the first text takes 30: the second would have to be cut at 10, and comes next."""
    ids = random_ids(2, [30, 20])
    passes, cuts = counted(library, "passes"), counted(library, "cuts")
    model.encode_ids(ids, 1, batch_tokens=40)
    assert counted(library, "passes") == passes + 2 and counted(library, "cuts") == cuts


def test_states_over_cuts(library: ctypes.CDLL, model: RWKV6) -> None:
    """A given state counts as the beginning; states of texts that several passes share."""
    whole = random_ids(3, [5 * GRAIN])[0]
    at_once, last = model.state(whole), model.encode_ids([whole], [0, 1], pooling="last")
    for cut in (GRAIN, GRAIN + 3):
        state = model.state(whole[:cut])
        before = counted(library, "cuts")
        rest = model.encode_ids(
            [whole[cut:]], [0, 1], pooling="last", state=state, batch_tokens=2 * GRAIN
        )
        assert counted(library, "cuts") > before
        assert rest.tobytes() == last.tobytes()
        for a, b in zip(model.state(whole[cut:], state), at_once, strict=True):
            assert np.array_equal(a, b)
