"""Python without a GIL: the core does not switch it on again, and threads get the same bits.

Skips on other interpreters. What is guarded without a GIL (idle sessions, weights that are put) is
guarded by the GIL there, and test_model.py has threads that share a model.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tinymodel import load, random_ids, random_weights

pytestmark = pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"),
    reason="needs a free-threaded Python, such as 3.14t",
)

LOADED = "import rwkvsts, sys; assert not sys._is_gil_enabled()"


def test_loading_the_core_leaves_the_gil_off() -> None:
    """Python would switch it on with a warning, which is an error here."""
    subprocess.run([sys.executable, "-W", "error", "-c", LOADED], check=True)


def test_threads_share_a_model_and_its_sessions(tmp_path: Path) -> None:
    """More threads than sessions are kept, each with calls of different sizes."""
    m = load(tmp_path, random_weights(L=2))
    ids = random_ids(1, [3, 20, 90, 1, 40])
    layers = [0, 1, "final"]
    expected = [m.encode_ids(ids, layers[: 1 + i % 3]).tobytes() for i in range(12)]

    def many(i: int) -> bool:
        return all(m.encode_ids(ids, layers[: 1 + i % 3]).tobytes() == expected[i] for _ in "12345")

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(many, range(12)))
