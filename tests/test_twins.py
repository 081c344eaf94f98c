"""The twins of tools/TWINS.md: each mixer is what it says, both learn, both read the same data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rwkvsts

torch = pytest.importorskip("torch", reason="the twins are trained with PyTorch")
save_file = pytest.importorskip("safetensors.torch").save_file
TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(scope="module", autouse=True)
def tools_on_path():
    sys.path.insert(0, str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


def shape(**sizes):
    from rwkv6_torch import Shape

    small = {"hidden_size": 128, "num_hidden_layers": 3, "mix_rank": 8, "decay_rank": 8}
    return Shape(vocab_size=300, **small | sizes)


def shaken(mixer, seed=1):
    """A twin whose every weight counts: none of the zeros that training starts from."""
    from twins_model import Twin

    model = Twin(mixer, seed, shape())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_rwkv_twin_is_the_rwkv6_that_the_package_runs(tmp_path):
    model = shaken("rwkv")
    tensors = model.checkpoint()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(model.shape.as_config()))
    model.load_state_dict(
        {name: tensors[name if name == "head.weight" else f"rwkv.{name}"].float()
         for name in model.state_dict()}
    )  # fmt: skip
    ids = torch.randint(1, 300, (1, 23))
    with torch.no_grad():
        expected = [x[0].mean(0).numpy() for x in model.streams(ids)[1:]]
    loaded = rwkvsts.load(tmp_path, device="cpu", dtype="float32", tokenizer=None)
    found = loaded.encode_ids([ids[0].tolist()], layers=[0, 1, 2, "final"])
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=2e-4)


def test_softmax_twin_is_softmax_attention_worked_by_hand():
    model = shaken("softmax").double()
    attention = model.blocks[0].attention
    a = torch.randn(1, 7, 128, dtype=torch.float64)
    with torch.no_grad():
        found = attention(a)[0].numpy()
    q, k, v, out = (
        getattr(attention, name).weight.detach().numpy()
        for name in ("query", "key", "value", "output")
    )
    a = a[0].numpy()
    mixed = np.zeros((7, 128))
    for h in range(2):
        part = slice(64 * h, 64 * h + 64)
        # Channels i and i + 32 as one complex number, turned by its position.
        turn = np.exp(1j * np.arange(7)[:, None] * 10000.0 ** (-np.arange(32) / 32))
        queries, keys = ((a @ m[part].T) for m in (q, k))
        queries, keys = ((x[:, :32] + 1j * x[:, 32:]) * turn for x in (queries, keys))
        for t in range(7):
            logits = (queries[t] * keys[: t + 1].conj()).real.sum(1) / 8
            weights = np.exp(logits) / np.exp(logits).sum()
            mixed[t, part] = weights @ (a[: t + 1] @ v[part].T)
    np.testing.assert_allclose(found, mixed @ out.T, atol=1e-5)  # angles are float32


@pytest.mark.parametrize("mixer", ["rwkv", "softmax"])
def test_only_the_past_is_read(mixer):
    model = shaken(mixer)
    ids = torch.randint(1, 300, (1, 12))
    other = ids.clone()
    other[0, 8] = 299 - ids[0, 8]
    with torch.no_grad():
        a, b = model.streams(ids)[-1], model.streams(other)[-1]
    assert torch.allclose(a[:, :8], b[:, :8], atol=1e-5)
    assert not torch.allclose(a[:, 9:], b[:, 9:], atol=1e-3), "the mixer moves nothing onward"


def test_channel_mix_moves_nothing_between_positions():
    mix = shaken("softmax").blocks[1].feed_forward
    b = torch.randn(1, 5, 128)
    with torch.no_grad():
        assert torch.allclose(mix(b)[:, 3], mix(b[:, 3:4])[:, 0], atol=1e-6)


def test_twins_of_one_seed_start_alike_and_are_of_one_size():
    from twins_model import SHAPE, Twin, hidden_size, parameters

    first, second = Twin("rwkv", 5, shape()), Twin("softmax", 5, shape())
    assert torch.equal(first.embeddings.weight, second.embeddings.weight)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, Twin("rwkv", 6, shape()).head.weight)
    with torch.device("meta"):
        sizes = [parameters(Twin(mixer, 1, SHAPE)) for mixer in ("rwkv", "softmax")]
    assert abs(sizes[0] / sizes[1] - 1) < 0.005
    assert (hidden_size("rwkv", SHAPE), hidden_size("softmax", SHAPE)) == (1344, 1760)


def write_prepared(folder):
    """A text with a rule (nine ids again and again in a document) and some pairs."""
    from prepare_demo import save_prepared

    rng = np.random.default_rng(0)

    def documents(count):
        made = [np.r_[0, np.tile(rng.integers(1, 50, 9), 9)] for _ in range(count)]
        return np.concatenate(made).astype(np.uint16)

    arrays = {
        "tokens": documents(60),
        "repeats": np.repeat([1, 2], 30).astype(np.uint8),
        "held_out": documents(5),
        "held_out_bytes": np.int64(2000),
    }
    save_prepared(folder / "text.npz.xz", arrays)
    lengths = rng.integers(2, 30, 24).astype(np.uint16)
    ids = rng.integers(1, 300, lengths.sum()).astype(np.uint16)
    np.savez_compressed(
        folder / "pairs.npz", **{"demo/all": ids, "demo/all/lengths": lengths}
    )  # fmt: skip
    return np.split(ids, lengths.astype(int).cumsum()[:-1])


def test_windows_of_an_epoch_do_not_overlap_and_documents_are_read_as_often_as_said(tmp_path):
    from prepare_demo import load_prepared
    from twins_train import TINY, Text

    write_prepared(tmp_path)
    prepared = load_prepared(tmp_path / "text.npz.xz")
    text = Text(prepared, TINY, "cpu")
    counted = np.bincount(text.tokens.numpy(), minlength=50)
    documents = np.split(prepared["tokens"], np.flatnonzero(prepared["tokens"] == 0)[1:])
    pairs = zip(documents, prepared["repeats"], strict=True)
    expected = sum(times * np.bincount(document, minlength=50) for document, times in pairs)
    assert np.array_equal(counted, expected)
    an_epoch = (len(text.tokens) - 1) // TINY.window - 1
    starts = text.order(3, an_epoch // TINY.windows).ravel()
    assert np.diff(np.sort(starts)).min() == TINY.window
    assert starts.max() + TINY.window < len(text.tokens)
    assert np.array_equal(starts, text.order(3, an_epoch // TINY.windows).ravel())
    assert not np.array_equal(starts, text.order(4, an_epoch // TINY.windows).ravel())


@pytest.mark.slow
def test_both_twins_learn_and_are_scored(tmp_path):
    texts = write_prepared(tmp_path)
    command = [sys.executable, TOOLS / "twins_train.py", tmp_path, tmp_path / "out"]
    done = subprocess.run(
        [*command, "--steps", "60", "--tiny"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    models = {(m["mixer"], m["seed"]): m for m in facts["models"]}
    assert len(models) == 6
    for seed in (1, 2, 3):
        assert models["rwkv", seed]["data"] == models["softmax", seed]["data"]
        for mixer in ("rwkv", "softmax"):
            assert models[mixer, seed]["held_out_nats"] < np.log(8192) - 1
    for mixer in ("rwkv", "softmax"):
        with np.load(tmp_path / "out" / f"scores_{mixer}.npz") as scores:
            assert scores["2/demo/all"].shape == (len(texts) // 2, 3, 4)
            assert np.abs(scores["2/demo/all"]).max() <= 1 + 1e-5


@pytest.mark.parametrize("mixer", ["rwkv", "softmax"])
def test_scores_are_cosines_of_means_of_one_text_at_a_time(tmp_path, mixer):
    from twins_score import Sentences, score

    texts = write_prepared(tmp_path)
    model = shaken(mixer)
    found = score(model, Sentences(tmp_path / "pairs.npz"), "cpu")["demo/all"]

    def means(ids):
        with torch.no_grad():
            alone = model.streams(torch.tensor(ids[None].astype(int)))
            behind = model.streams(torch.tensor(np.r_[0, ids][None].astype(int)))
        layers = zip(alone, behind, strict=True)
        rows = [(a[0].mean(0), a[0, 1:].mean(0), b[0, 1:].mean(0)) for a, b in layers]
        return np.array([[x.numpy() for x in row] for row in rows])

    for pair in range(len(texts) // 2):
        a, b = means(texts[2 * pair]), means(texts[2 * pair + 1])
        norms = np.linalg.norm(a, axis=2) * np.linalg.norm(b, axis=2)
        np.testing.assert_allclose(found[pair].T, (a * b).sum(2) / norms, atol=1e-5)
