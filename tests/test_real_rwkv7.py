"""Real checkpoints against their authors' code, on a CPU in float32, for who has some:

    pytest tests/test_real_rwkv7.py --rwkv7 rwkv7-g1-0.1b.pth --embedding-rwkv rwkv0b1-emb.pth

Needs `pip install rwkv rwkv-emb torch`, and memory for the model twice.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_embedding_rwkv import own_code
from test_rwkv7 import OFFICIAL

import rwkvsts
from rwkvsts.embedding_rwkv import EOS, TASKS

pytestmark = pytest.mark.reproduce

SENTENCES = (
    "A man is playing a guitar on the stage.",
    "Someone makes music with a guitar.",
    "The committee will publish its figures on Thursday.",
)


def given(request: pytest.FixtureRequest, option: str, package: str) -> Path:
    path: str | None = request.config.getoption(option)
    if path is None:
        pytest.skip(f"no checkpoint was given: {option} FILE")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"pip install {package.replace('_', '-')}, to compare with it")
    return Path(path)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_a_real_rwkv_7(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The rows after the last norm, by way of a head that is the identity: ids 1 .. 40."""
    torch = pytest.importorskip("torch", reason="the package rwkv needs torch")
    path = given(request, "--rwkv7", "rwkv")
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    tensors["head.weight"] = torch.eye(tensors["emb.weight"].shape[1], dtype=torch.bfloat16)
    torch.save(tensors, tmp_path / "model.pth")
    command = [sys.executable, "-c", OFFICIAL, str(tmp_path / "model"), str(tmp_path / "rows.npy")]
    subprocess.run(command, check=True, capture_output=True, env=dict(os.environ))
    m = rwkvsts.load(path, device="cpu", dtype="float32", tokenizer=None)
    ids = [list(range(1, n)) for n in range(2, 42)]
    found = m.encode_ids(ids, layers="final", pooling="last")
    lowest = cosine(found, np.load(tmp_path / "rows.npy")).min()
    print(f"lowest cosine to the package rwkv: {lowest:.7f}")
    assert lowest > 0.9999


def test_a_real_embedder(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("torch", reason="the package rwkv-emb needs torch")
    path = given(request, "--embedding-rwkv", "rwkv_emb")
    own = own_code().EmbeddingRWKV(str(path))
    m = rwkvsts.load(path, device="cpu", dtype="float32")
    assert isinstance(m, rwkvsts.EmbeddingRWKV) and m.tokenizer is not None
    for task in TASKS:
        found = m.encode(SENTENCES, layers=task)
        wanted = [
            own.forward_text_only(
                [*m.tokenizer.encode(text), EOS], None, task_type=f"[{task!s:.4}]".upper()
            )[0]
            for text in SENTENCES
        ]
        lowest = cosine(found, np.concatenate([row.detach().numpy() for row in wanted])).min()
        print(f"{task}: lowest cosine to the package rwkv-emb: {lowest:.7f}")
        assert lowest > 0.9999
        near, far = cosine(found[:1], found[1:])
        assert near > far, "a paraphrase must be nearer than another subject"
