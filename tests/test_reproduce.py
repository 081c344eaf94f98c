"""The paper's table with the real model, data and word vectors: `pytest --reproduce`.

Needs the weights of RWKV/v6-Finch-1B6-HF, GPT-2's tokenizer and MRPC, from the hub's cache or the
network, and about 6 GB of memory. GloVe is compared where --reproduce-glove names the full file.

Tolerance of the published correlations: the paper computed in float16, here products take bfloat16
or float32 and sums are float32. float16 carries 11 bits: through 12 blocks a pooled row is off by
about 1e-3 of its length, a cosine by as much, against a spread of some hundredths between pairs.
Noise of that size moves Spearman's rho by under 0.005 at 408 pairs; 0.01 leaves room for the
library versions of the original run. A wrong tokenizer or layer moves it by more.
"""

from __future__ import annotations

import numpy as np
import pytest

from rwkvsts import RWKV6, HubError
from rwkvsts.files.checkpoint import open_checkpoint
from rwkvsts.files.hub import resolve
from rwkvsts.study import Study, StudyConfig, run

TOLERANCE = 0.01

pytestmark = pytest.mark.reproduce


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> str:
    if not request.config.getoption("--reproduce"):
        pytest.skip("the paper's table takes 4 GB of downloads: run pytest --reproduce")
    name: str = request.config.getoption("--reproduce-model")
    try:
        resolve(name)
    except HubError as error:
        pytest.skip(f"no real weights: {error}")
    return name


@pytest.fixture(scope="module")
def table(model: str, request: pytest.FixtureRequest) -> Study:
    data = request.config.getoption("--reproduce-data")
    glove = request.config.getoption("--reproduce-glove")
    config = StudyConfig(
        models=(model,), tasks=("mrpc",), tokenizers=("gpt2", "world"), data=data, glove=glove
    )
    try:
        return run(config)
    except HubError as error:
        pytest.skip(f"no real data: {error}")


def test_published_correlations(table: Study) -> None:
    """Every layer and split in the paper's own mode, GPT-2's ids."""
    rows = [row for row in table.rows if row.tokenizer == "gpt2"]
    assert len(rows) == 12
    for row in rows:
        assert row.published_spearman is not None
        assert abs(row.spearman - row.published_spearman) < TOLERANCE, row


def test_published_glove(table: Study, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--reproduce-glove") is None:
        pytest.skip("no word vectors: give glove.6B.50d.txt by --reproduce-glove")
    rows = [row for row in table.rows if "GloVe" in row.method and row.published_spearman]
    assert len(rows) == 2
    for row in rows:
        assert row.published_spearman is not None
        assert abs(row.spearman - row.published_spearman) < 0.0005, row  # the same arithmetic


def test_world_mode_differs(table: Study) -> None:
    """The table holds RWKV's own vocabulary too, and it is another measurement."""
    modes = {
        name: np.array([row.spearman for row in table.rows if row.tokenizer == name])
        for name in ("gpt2", "world")
    }
    assert modes["world"].shape == (12,)
    assert np.abs(modes["world"] - modes["gpt2"]).max() > TOLERANCE


def test_published_logits(model: str) -> None:
    """Top logits of two independent PyTorch forwards in float32, after a Python function's head."""
    m = RWKV6.from_pretrained(model, device="cpu", dtype="float32")
    assert m.tokenizer is not None
    prompt = "def fibonacci(n):\n    "
    assert m.tokenizer.encode(prompt) == [7334, 21676, 41943, 41, 111, 501, 28352]
    final = m.encode(prompt, layers="final", pooling="last")
    with open_checkpoint(resolve(model)) as checkpoint:
        head = checkpoint.read("head.weight")
        if checkpoint.tensors["head.weight"].dtype == "BF16":
            head = (head.astype(np.uint32) << 16).view(np.float32)
    logits = head.astype(np.float32) @ final
    expected = {1942: 4.79793, 98: 3.16923, 5170: 2.51246, 42178: 1.95878, 36: 1.62147}
    assert np.argsort(-logits)[:5].tolist() == list(expected)
    np.testing.assert_allclose(logits[list(expected)], list(expected.values()), atol=1e-3)
