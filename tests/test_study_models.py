"""Which loader opens a model of a study, and both kinds of model in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hubserver import Repo, serve
from huggingface_hub import constants
from makecheckpoint import write_safetensors
from tinymodel import random_weights

from rwkvsts.errors import DataError, HubError
from rwkvsts.study import StudyConfig, experiment, models
from rwkvsts.study.settings import PROMPTS, Reading

CONFIG = StudyConfig()


def test_a_file_or_folder_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert models.kind_of(CONFIG, str(tmp_path)) == "softmax"
    (tmp_path / "modules.json").write_text("[]")
    assert models.kind_of(CONFIG, str(tmp_path)) == "trained"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rwkv6"}))
    assert models.kind_of(CONFIG, str(tmp_path)) == "rwkv"
    (tmp_path / "modules.json").unlink()
    for content in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(content)
        assert models.kind_of(CONFIG, str(tmp_path)) == "rwkv"
    (tmp_path / "weights.pth").write_bytes(b"")
    assert models.kind_of(CONFIG, str(tmp_path / "weights.pth")) == "rwkv"
    assert models.kind_of(CONFIG, "anything.gguf") == "softmax"
    assert models.kind_of(CONFIG, "demo") == "rwkv"


def test_a_repository_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"org/llama": "llama", "RWKV/v6-Finch-1B6-HF": "rwkv6", "org/embedder": "bert"}

    def fetch(repo: str, file: str, **how: Any) -> Path:
        assert how["revision"] is None
        held = {"config.json": repo in kinds, "modules.json": repo == "org/embedder"}
        if not held[file]:
            raise HubError("no such file")
        (tmp_path / file).write_text(json.dumps({"model_type": kinds[repo]}))
        return tmp_path / file

    monkeypatch.setattr(models, "fetch", fetch)
    found = [models.kind_of(CONFIG, repo) for repo in (*kinds, "BlinkDL/rwkv-6-world")]
    assert found == ["softmax", "rwkv", "trained", "rwkv"]


def test_a_model_is_asked_for_what_its_kind_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "kind_of", lambda config, source: source)
    config = StudyConfig(recipe=("paper", "world"))
    assert len(models.readings_of(config, "rwkv")) == 3
    own = models.readings_of(config, "softmax")
    assert own == [Reading(None), Reading(None, layers="all")]
    both = StudyConfig(tokenizers=("gpt2", "world"), lead=True)
    assert models.readings_of(both, "softmax") == [Reading(None)]
    many = StudyConfig(
        poolings=("mean", "state"),
        prompts=(None, PROMPTS["metaeol"]),
        posts=("none", "whitening", "filter", "average"),
        layers=(1, "final"),
    )
    of_states = [r for r in models.readings_of(many, "rwkv") if r.pooling == "state"]
    assert [(r.layers, r.posts) for r in of_states] == [((1,), ("none", "whitening", "average"))]
    read = {(r.pooling, r.prompt) for r in models.readings_of(many, "softmax")}
    assert read == {("mean", None), ("last", PROMPTS["metaeol"])}
    trained = Reading(None, pooling="own", layers=("final",), posts=("none", "whitening"))
    assert models.readings_of(many, "trained") == [trained]
    with pytest.raises(DataError, match="nothing of what is asked has a meaning for this softmax"):
        models.readings_of(StudyConfig(poolings=("state",)), "softmax")


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


def test_each_repository_has_its_own_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit of one is none of the other; what names no revision has the study's."""
    files = {}
    for width in (64, 128, 192):
        write_safetensors(tmp_path / "model.safetensors", random_weights(L=1, C=width, V=256))
        files[width] = {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    one, other, third = "1" * 40, "2" * 40, "3" * 40
    repos = {
        "org/one": Repo({one: files[64], third: files[192]}, {"main": third}),
        "org/other": Repo({other: files[128], third: files[192]}, {"main": third}),
    }
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    sources = (f"org/one@{one}", f"org/other@{other}", "org/other")
    config = StudyConfig(models=sources, cache_dir=tmp_path / "hub", device="cpu", revision="main")
    reading = Reading("bytes", layers=(0,))
    with serve(repos) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert [models.kind_of(config, source) for source in sources] == ["rwkv"] * 3
        opened = [models.open_model(config, source, [reading]) for source in sources]
    assert [m.width for m in opened] == [64, 128, 192]
    assert [(m.source, m.revision) for m in opened[:2]] == [("org/one", one), ("org/other", other)]
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "m@v1").touch()
    monkeypatch.chdir(tmp_path)
    assert models.pinned("org/m@v1") == ("org/m@v1", None)  # a file of that name


def test_a_model_may_be_given_as_a_path(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "tiny.safetensors", random_weights(L=1, V=256))
    config = StudyConfig(
        models=(tmp_path / "tiny.safetensors",),
        tokenizers=("bytes",),
        layers=(0,),
        device="cpu",
        resamples=2,
        timed_pairs=0,
    )
    found = experiment.run(config)
    assert [row.method for row in found.rows if row.pooling] == ["tiny.safetensors mean, bytes"]


def write_models(folder: Path) -> tuple[str, ...]:
    """A small random model of each kind, as its own library writes it."""
    torch = pytest.importorskip("torch", reason="the extra softmax is not installed")
    transformers = pytest.importorskip("transformers", reason="the extra softmax is not installed")
    tokenizers = pytest.importorskip("tokenizers")
    library = pytest.importorskip("sentence_transformers", reason="it is not installed")
    torch.manual_seed(0)
    alphabet = {chr(i): i for i in range(32, 127)}
    letters = tokenizers.Tokenizer(tokenizers.models.BPE(alphabet, [], unk_token=" "))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="~")
    fast.save_pretrained(folder / "llama")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 127}
    config = transformers.LlamaConfig(**sizes, **heads)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "llama")
    inner = library.SentenceTransformer(str(folder / "llama"), device="cpu")
    inner.max_seq_length = 128
    inner.save(str(folder / "trained"))
    (folder / "rwkv").mkdir()
    write_safetensors(folder / "rwkv" / "model.safetensors", random_weights(5, L=3, V=256))
    return tuple(str(folder / name) for name in ("rwkv", "llama", "trained"))


def test_all_kinds_stand_in_one_table(tmp_path: Path) -> None:
    """Small random models of each kind, real loaders: every row scored, named by its model."""
    models = write_models(tmp_path)
    rng = np.random.default_rng(0)
    rows = ["sentence1\tsentence2\tlabel"]
    for i in range(30):
        one, other = ("".join(rng.choice(list("abcdef "), 20)) for _ in range(2))
        rows.append(f"x{one}y\tx{other}y\t{i % 4}")
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    study = experiment.run(
        StudyConfig(
            models=models,
            tasks=(),
            pairs=(tmp_path / "pairs.tsv",),
            tokenizers=("bytes",),
            layers="all",
            posts=("none", "concatenate"),
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
    expected = [
        (name, layer)
        for m in ("rwkv mean, bytes", "llama mean")
        for name, layer in [*((m, x) for x in layers), (f"{m}, concatenate", "0-final")]
    ]
    assert found == [*expected, ("trained own", "final")]
    assert not np.isnan([row.spearman for row in study.rows]).any()
    assert [len(n["norms"][0]) for n in study.norms] == [4, 4]
    assert [m["architecture"] for m in study.facts["models"]] == ["RWKV-6", "llama", "llama"]
