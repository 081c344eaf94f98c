"""EmbeddingRWKV: the vector of its own README and of its evaluation, through the usual calls."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import reference7
from makecheckpoint import bf16, write_torch
from test_callers import MODES, X86, processor
from tinymodel import error, random_ids
from tinymodel7 import Arrays, embedder_names, random_weights7

import rwkvsts
from rwkvsts import CheckpointError
from rwkvsts.cli import main
from rwkvsts.embedding_rwkv import EOS, _readings

V, C = 65536, 64
TOLERANCE = 1e-4  # as in test_rwkv7.py


@cache
def stored() -> Arrays:
    return embedder_names(random_weights7(1, L=2, C=C, V=V))


def load(folder: Path, tensors: Arrays, **options: Any) -> rwkvsts.EmbeddingRWKV:
    write_torch(folder / "emb.pth", tensors)
    options = {"device": "cpu", "dtype": "float32", "tokenizer": "bytes", **options}
    model = rwkvsts.load(folder / "emb.pth", **options)
    assert isinstance(model, rwkvsts.EmbeddingRWKV)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> rwkvsts.EmbeddingRWKV:
    return load(tmp_path_factory.mktemp("emb"), stored())


def head(x: np.ndarray, task: str) -> np.ndarray:
    """LayerNorm(fc2 relu(fc1 x) + x) in float64."""
    w = {n.removeprefix(f"head.{task}_head."): a.astype(np.float64) for n, a in stored().items()}
    y = np.maximum(x @ w["fc1.weight"].T, 0) @ w["fc2.weight"].T + x
    return reference.layer_norm(y, w["norm.weight"], w["norm.bias"], 1e-5)


def expected(ids: list[int], task: str) -> np.ndarray:
    """The head of the mean over the rows of "final" where the id is 65535."""
    weights = {n.removeprefix("rwkv."): a for n, a in stored().items() if n.startswith("rwkv.")}
    final = reference7.forward(weights, ids)[0][-1]
    return head(final[np.array(ids) == EOS].mean(0), task)


TEXTS = ["one", "a longer text", "x" * 300, "äöü"]


def as_ids(text: str) -> list[int]:
    return list(text.encode())


@pytest.mark.parametrize("task", ["retr", "sts", "cls"])
def test_the_readmes_vector(model: rwkvsts.EmbeddingRWKV, task: Any) -> None:
    found = model.encode(TEXTS, layers=task)
    wanted = np.array([expected([*as_ids(text), EOS], task) for text in TEXTS])
    assert found.shape == (4, C) and error(found[:, None], wanted[:, None]) < TOLERANCE
    if task == "retr":
        assert model.encode(TEXTS).tobytes() == found.tobytes()


def test_the_evaluations_vector(model: rwkvsts.EmbeddingRWKV) -> None:
    found = model.encode(TEXTS, layers="sts", recipe="evaluation")
    wanted = np.array([expected([*as_ids(text), EOS] * 4, "sts") for text in TEXTS])
    assert error(found[:, None], wanted[:, None]) < TOLERANCE


def test_the_evaluations_readings() -> None:
    """Repeated below 512 tokens, cut in four up to 2044, cut by contexts and then in four above."""
    for length in (1, 511, 512, 514, 2044, 2045, 5000):
        ids = np.arange(length, dtype=np.int32)
        ends = np.flatnonzero(_readings(ids) == EOS)
        assert _readings(ids)[-1] == EOS
        text = np.delete(_readings(ids), ends).tolist()
        assert text == (ids.tolist() * 4 if length < 512 else ids.tolist()), length
        contexts = 1 if length <= 2044 else -(-length // 2048)
        assert len(ends) == 4 * contexts, length
    ends = np.flatnonzero(_readings(np.arange(514, dtype=np.int32)) == EOS)
    assert np.diff(ends).tolist() == [130, 130, 128]


def test_a_prompt_is_read_as_one_text(model: rwkvsts.EmbeddingRWKV) -> None:
    prompt = "Instruct: Retrieve semantically similar text\nQuery: "
    joined = model.encode([prompt + text for text in TEXTS], layers="sts")
    assert model.encode(TEXTS, layers="sts", prompt=prompt).tobytes() == joined.tobytes()
    twice = model.encode(TEXTS[:2], prompt="{text} is {text}.")
    assert twice.tobytes() == model.encode([f"{t} is {t}." for t in TEXTS[:2]]).tobytes()


def test_bits_ignore_the_batch(model: rwkvsts.EmbeddingRWKV) -> None:
    for recipe in ("once", "evaluation"):
        alone = [model.encode(text, recipe=recipe).tobytes() for text in TEXTS]
        for order in ([3, 1, 0, 2], [2, 2, 1], [0]):
            rows = model.encode([TEXTS[i] for i in order], recipe=recipe, batch_tokens=37)
            for i, row in zip(order, rows, strict=True):
                assert row.tobytes() == alone[i], (recipe, order)


def test_texts_that_come_some_at_a_time(
    model: rwkvsts.EmbeddingRWKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text whose ends of sentence lie in two runs is read again in the second."""
    texts = [text * (1 + i % 3) for i, text in enumerate(TEXTS * 3)]
    whole = {recipe: model.encode(texts, recipe=recipe) for recipe in ("once", "evaluation")}
    monkeypatch.setattr("rwkvsts.batch.SLICE", 5)
    for recipe, rows in whole.items():
        for limit in (64, 300, None):
            found = model.encode(texts, recipe=recipe, batch_tokens=limit)
            assert found.tobytes() == rows.tobytes(), (recipe, limit)
    reader = model.reader("retr", prompt="Query: ", max_length=20)
    found = np.empty((len(texts), *reader.shape), np.float32)
    reader.fill(texts, found, False)
    assert found[:, 0].tobytes() == model.encode(texts, None, "mean", "Query: ", 20).tobytes()
    assert reader.prepare(["abc", "x" * 99], 0).lengths.tolist() == [10, 106]


def test_streams_and_heads_in_one_call(model: rwkvsts.EmbeddingRWKV) -> None:
    assert model.layers == (0, 1, "final", "retr", "sts", "cls") and model.poolings == ("mean",)
    both = model.encode(TEXTS, layers=["cls", 1, "final", "retr"])
    assert both.shape == (4, 4, C)
    for column, layer in enumerate(["cls", 1, "final", "retr"]):
        assert both[:, column].tobytes() == model.encode(TEXTS, layers=layer).tobytes()
    ids = [[*as_ids(text), EOS] for text in TEXTS]
    assert model.encode_ids(ids, layers=["cls", 1, "final", "retr"]).tobytes() == both.tobytes()
    out = np.empty((4, C), np.float32)
    assert model.encode(TEXTS, normalize=True, out=out) is out
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, rtol=1e-6)


def test_heads_in_bfloat16(tmp_path: Path, model: rwkvsts.EmbeddingRWKV) -> None:
    m = load(tmp_path, {n: bf16(a) for n, a in stored().items()})
    found, wanted = m.encode(TEXTS), model.encode(TEXTS)
    cosine = (
        (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    )
    assert cosine.min() > 0.99 and cosine.max() < 0.9999999


def test_what_is_refused(tmp_path: Path, model: rwkvsts.EmbeddingRWKV) -> None:
    with pytest.raises(ValueError, match=r"ids\[1\] holds no 65535"):
        model.encode_ids([[1, EOS], [1, 2]])
    with pytest.raises(ValueError, match="recipe='twice': expected one of once, evaluation"):
        model.encode("x", recipe="twice")
    with pytest.raises(ValueError, match="expected one of mean"):
        model.encode("x", pooling="max")
    with pytest.raises(ValueError, match=r'"final" and "retr" and "sts" and "cls"'):
        model.encode("x", layers=7)
    with pytest.raises(ValueError, match="skip_first: this model pools the ends of sentence"):
        model.encode_ids([[1, EOS]], skip_first=True)
    with pytest.raises(ValueError, match="branch: this model pools the ends of sentence"):
        model.branch(["x"], ["y"])
    with pytest.raises(ValueError, match=r'layer "retr" has no state: name one of layers 0 \.\. 1'):
        model.encode_states(["x"])
    with pytest.raises(ValueError, match=r'"retr" has no stream: .* 0 \.\. 1 and "final"'):
        model.norms(["x"])
    with pytest.raises(ValueError, match=r"texts\[1\] is empty"):
        model.encode(["x", ""], prompt="say ")
    part = {n: a for n, a in stored().items() if n != "head.sts_head.norm.bias"}
    with pytest.raises(CheckpointError, match=r"head\.sts_head\.norm\.bias: expected shape \[64\]"):
        load(tmp_path, part)
    small = embedder_names(random_weights7(1, L=1, C=C, V=300))
    with pytest.raises(CheckpointError, match="emb.weight has 300 rows: expected more than 65535"):
        load(tmp_path, small)


def test_states_and_norms_are_the_inner_models(model: rwkvsts.EmbeddingRWKV) -> None:
    lengths = model.norms(["abc"], ["final", 0], positions=4)
    assert lengths.shape == (1, 2, 4) and np.isnan(lengths[0, :, 3]).all()
    weights = {n.removeprefix("rwkv."): a for n, a in stored().items() if n.startswith("rwkv.")}
    final = reference7.forward(weights, as_ids("abc"))[0][-1]
    np.testing.assert_allclose(lengths[0, 0, :3], np.linalg.norm(final, axis=1), rtol=1e-4)
    assert model.encode_states(["abc", "d"], 1, width=7).shape == (2, 7)


def test_blocks_above_max_layer_take_the_heads_along(tmp_path: Path) -> None:
    m = load(tmp_path, stored(), max_layer=0)
    assert m.layers == (0,) and m.encode("abc", layers=0).shape == (C,)
    assert "retr" in load(tmp_path, stored(), max_layer="default").layers


# ---- through the stack ---------------------------------------------------------------------------


def test_the_command_line(tmp_path: Path, model: rwkvsts.EmbeddingRWKV) -> None:
    write_torch(tmp_path / "emb.pth", stored())
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), "utf-8")
    command = ["embed", str(tmp_path / "texts.txt"), "--model", str(tmp_path / "emb.pth")]
    command += ["--tokenizer", "bytes", "--device", "cpu", "--dtype", "float32"]
    for layers, wanted in (([], "retr"), (["--layers", "sts"], "sts"), (["--layers", "1"], 1)):
        out = tmp_path / "rows.npy"
        assert main([*command, *layers, "--out", str(out)]) == 0
        rows = model.encode(TEXTS, layers=wanted)  # type: ignore[arg-type]
        assert np.load(out).tobytes() == rows.tobytes(), layers


def test_scikit_learn(model: rwkvsts.EmbeddingRWKV) -> None:
    pytest.importorskip("sklearn", reason="pip install scikit-learn, for its transformer")
    from rwkvsts.integrations.sklearn import Embedder

    assert Embedder(model).fit_transform(TEXTS).tobytes() == model.encode(TEXTS).tobytes()
    sts = Embedder(model, layer="sts").fit_transform(TEXTS)
    assert sts.tobytes() == model.encode(TEXTS, layers="sts").tobytes()


def test_a_copy_embeds_alike(tmp_path: Path, model: rwkvsts.EmbeddingRWKV) -> None:
    again = pickle.loads(pickle.dumps(model))
    assert again.encode(TEXTS).tobytes() == model.encode(TEXTS).tobytes()


# ---- the models' own code -----------------------------------------------------------------------


def own_code() -> types.ModuleType:
    """The package rwkv-emb, on a CPU and in float32.

    Its source wants a GPU: device and dtype are replaced in its text as it is loaded, and in place
    of its CUDA kernel stands the recurrence in Python that its reranker uses, with the kernel's
    meaning of w: exp(-exp(-1/2) w).
    """
    found = importlib.util.find_spec("rwkv_emb")
    assert found is not None and found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0])
    package = types.ModuleType("rwkv_emb_cpu")
    package.__path__ = [str(folder)]
    sys.modules["rwkv_emb_cpu"] = package
    modules = {}
    for name in ("reference.rwkv7", "model"):
        path = folder / (name.replace(".", "/") + ".py")
        text = path.read_text("utf-8").replace('"cuda"', '"cpu"').replace("'cuda'", "'cpu'")
        text = text.replace("DTYPE = torch.half", "DTYPE = torch.float32")
        start = text.find('load(name="rwkv7_state_fwd_fp16"')
        if start >= 0:
            text = text[:start] + "pass\n" + text[text.index("class WKV_7(", start) :]
        text = text.replace("@MyFunction", "").replace("@MyStatic", "")
        text = text.replace("MyModule = torch.jit.ScriptModule", "MyModule = nn.Module")
        text = text.replace("import torch\n", "import torch\nimport torch.nn as nn\n", 1)
        if name == "model":
            text = text.replace(
                "from transformers import SiglipVisionModel, SiglipVisionConfig", ""
            )
        module = types.ModuleType(f"rwkv_emb_cpu.{name}")
        module.__package__ = "rwkv_emb_cpu" + (".reference" if "." in name else "")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module
        exec(compile(text, str(path), "exec"), module.__dict__)
        modules[name] = module
    _replace_kernel(modules["reference.rwkv7"], modules["model"])
    return modules["model"]


def _replace_kernel(rwkv: Any, model: Any) -> None:
    import torch

    def sequence(state: Any, r: Any, w: Any, k: Any, v: Any, a: Any, b: Any) -> Any:
        batched = [x if x.dim() == 3 else x[None] for x in (r, w, k, v, a, b)]
        batched[1] = torch.log(0.606531 * batched[1])  # its recurrence takes exp(-exp(.)) of it
        past = state if state.dim() == 4 else state[None]
        y, after = model.RWKV7_OP(*batched, past)
        past.copy_(after)
        return y if r.dim() == 3 else y[0]

    rwkv.RWKV7_OP = rwkv.RWKV7_BATCH_OP = sequence
    rwkv.RWKV7_ONE_OP = lambda state, *parts: sequence(state, *(x[None] for x in parts))[0]


@pytest.mark.slow
def test_the_models_own_code_agrees(tmp_path: Path, model: rwkvsts.EmbeddingRWKV) -> None:
    reason = "pip install rwkv-emb, EmbeddingRWKV's own package, to compare with it"
    if importlib.util.find_spec("rwkv_emb") is None:
        pytest.skip(reason)
    pytest.importorskip("torch", reason="the package rwkv-emb needs torch")
    tensors = {n: a for n, a in stored().items() if not n.startswith(("vit.", "proj."))}
    write_torch(tmp_path / "own.pth", tensors)
    own = own_code().EmbeddingRWKV(str(tmp_path / "own.pth"))
    ids = [[*sequence, EOS] for sequence in random_ids(3, [1, 7, 40], V=60000)]
    ids.append([*ids[1], *ids[2]])  # two ends of sentence
    for tag, task in (("[RETR]", "retr"), ("[STS]", "sts"), ("[CLS]", "cls")):
        found = model.encode_ids(ids, layers=task)  # type: ignore[arg-type]
        wanted = [own.forward_text_only(i, None, task_type=tag)[0].detach().numpy()[0] for i in ids]
        assert error(found[:, None], np.array(wanted)[:, None]) < TOLERANCE, task


@pytest.mark.skipif(not X86, reason="sets the modes of an x86-64 processor")
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_processor_change_no_bit(model: rwkvsts.EmbeddingRWKV, mode: str) -> None:
    """Of the heads and of the mean over a text's ends, which NumPy computes."""
    texts = [f"text {i}" for i in range(20)]
    how: dict[str, Any] = {"layers": ["retr", "sts"], "recipe": "evaluation", "normalize": True}
    expected = model.encode(texts, **how).tobytes()
    with processor(MODES[mode]):
        assert model.encode(texts, **how).tobytes() == expected
