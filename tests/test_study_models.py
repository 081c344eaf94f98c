"""Which loader opens a model of a study, and both kinds of model in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makecheckpoint import write_safetensors
from tinymodel import random_weights

from rwkvsts.errors import DataError, HubError
from rwkvsts.study import StudyConfig, experiment, models
from rwkvsts.study.settings import Reading

CONFIG = StudyConfig()


def test_a_file_or_folder_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert models.is_softmax(CONFIG, str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rwkv6"}))
    assert not models.is_softmax(CONFIG, str(tmp_path))
    for content in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(content)
        assert not models.is_softmax(CONFIG, str(tmp_path))
    (tmp_path / "weights.pth").write_bytes(b"")
    assert not models.is_softmax(CONFIG, str(tmp_path / "weights.pth"))
    assert models.is_softmax(CONFIG, "anything.gguf")
    assert not models.is_softmax(CONFIG, "demo")


def test_a_repository_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"org/llama": "llama", "RWKV/v6-Finch-1B6-HF": "rwkv6"}

    def fetch(repo: str, file: str, **how: Any) -> Path:
        assert file == "config.json" and how["revision"] is None
        if repo not in files:
            raise HubError("no such file")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": files[repo]}))
        return tmp_path / "config.json"

    monkeypatch.setattr(models, "fetch", fetch)
    found = [models.is_softmax(CONFIG, repo) for repo in (*files, "BlinkDL/rwkv-6-world")]
    assert found == [True, False, False]


def test_a_model_with_its_own_tokenizer_reads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "is_softmax", lambda config, source: source == "softmax")
    config = StudyConfig(recipe=("paper", "world"))
    assert len(models.readings_of(config, "rwkv")) == 3
    own = models.readings_of(config, "softmax")
    assert own == [Reading(None), Reading(None, layers="all")]
    both = StudyConfig(tokenizers=("gpt2", "world"), lead=True)
    assert models.readings_of(both, "softmax") == [Reading(None)]


def test_a_file_is_chosen_of_several(tmp_path: Path) -> None:
    small, large = (random_weights(L=1, C=C, V=256) for C in (64, 128))
    write_safetensors(tmp_path / "small.safetensors", small)
    write_safetensors(tmp_path / "large.safetensors", large)
    for file, width in (("small.safetensors", 64), ("large.safetensors", 128)):
        config = StudyConfig(models=(str(tmp_path),), file=file, device="cpu")
        reading = Reading("bytes", layers=(0,))
        assert models.open_model(config, str(tmp_path), [reading]).width == width
    with pytest.raises(DataError, match="file speaks of one model, and 2 are given"):
        StudyConfig(models=("a", "b"), file="small.safetensors")


def test_rwkv_and_softmax_stand_in_one_table(tmp_path: Path) -> None:
    """Small random models of both kinds, real loaders: every row scored, named by its model."""
    torch = pytest.importorskip("torch", reason="the extra softmax is not installed")
    transformers = pytest.importorskip("transformers", reason="the extra softmax is not installed")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    alphabet = {chr(i): i for i in range(32, 127)}
    letters = tokenizers.Tokenizer(tokenizers.models.BPE(alphabet, [], unk_token=" "))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=letters)
    fast.save_pretrained(tmp_path / "llama")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 127}
    config = transformers.LlamaConfig(**sizes, **heads)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    (tmp_path / "rwkv").mkdir()
    write_safetensors(tmp_path / "rwkv" / "model.safetensors", random_weights(5, L=3, V=256))
    rng = np.random.default_rng(0)
    rows = ["sentence1\tsentence2\tlabel"]
    for i in range(30):
        one, other = ("".join(rng.choice(list("abcdef "), 20)) for _ in range(2))
        rows.append(f"x{one}y\tx{other}y\t{i % 4}")
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    study = experiment.run(
        StudyConfig(
            models=(str(tmp_path / "rwkv"), str(tmp_path / "llama")),
            tasks=(),
            pairs=(tmp_path / "pairs.tsv",),
            tokenizers=("bytes",),
            layers="all",
            device="cpu",
            dtype="float32",
            resamples=20,
            timed_pairs=2,
            norms=True,
        ),
        tmp_path / "passes",
    )
    found = [(row.method, row.layer) for row in study.rows if row.pooling]
    layers = [0, 1, 2, "final"]
    assert found == [(f"{m}", x) for m in ("rwkv mean, bytes", "llama mean") for x in layers]
    assert not np.isnan([row.spearman for row in study.rows]).any()
    assert [len(n["norms"][0]) for n in study.norms] == [4, 4]
    assert [m["architecture"] for m in study.facts["models"]] == ["RWKV-6", "llama"]
