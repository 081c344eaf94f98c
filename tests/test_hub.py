"""Finding weights: paths, folders, and repositories through the real client and a loopback hub."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hubserver import Hub, Repo, serve
from huggingface_hub import constants
from makecheckpoint import bf16, hf_names, write_safetensors, write_sharded, write_torch
from tinymodel import random_weights

from rwkvsts import RWKV6
from rwkvsts.errors import CheckpointError, HubError
from rwkvsts.files.checkpoint import open_checkpoint
from rwkvsts.files.hub import Source, fetch, resolve

OLD, NEW = "a" * 40, "b" * 40
VOCABULARY = "rwkv_vocab_v20230424.txt"
REPO = "org/tiny"
ARRAYS = {
    "emb.weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "head.weight": np.ones((4, 3), np.float32),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def values(source: Source) -> dict[str, list[float]]:
    with open_checkpoint(source) as checkpoint:
        return {name: checkpoint.read(name).ravel().tolist() for name in checkpoint.tensors}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository: `main` at NEW, its older commit OLD with other values."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "modeling_rwkv6.py").write_text("raise SystemExit('remote code ran')")
    (folder / VOCABULARY).write_text("1 'a' 1\n")
    write_torch(folder / "pytorch_model.bin", ARRAYS)
    new = contents(folder)
    write_torch(folder / "pytorch_model.bin", {name: -array for name, array in ARRAYS.items()})
    old = contents(folder)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve({REPO: Repo({OLD: old, NEW: new}, {"main": NEW})}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


class TestPaths:
    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "x.pth"])
    def test_file_and_folder(self, tmp_path: Path, name: str) -> None:
        write = write_safetensors if name.endswith("safetensors") else write_torch
        write(tmp_path / name, ARRAYS)
        (tmp_path / VOCABULARY).write_text("")
        for given in (tmp_path / name, str(tmp_path / name), tmp_path, str(tmp_path)):
            source = resolve(given)
            assert source.files == (tmp_path / name,)
            assert source.vocabulary == tmp_path / VOCABULARY
            assert source.name == os.fspath(given)
            assert source.revision is None
            assert values(source) == {name: a.ravel().tolist() for name, a in ARRAYS.items()}

    @pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
    def test_shards(self, tmp_path: Path, suffix: str) -> None:
        index = write_sharded(tmp_path, ARRAYS, suffix)
        source = resolve(tmp_path)
        assert source.index == index
        assert len(source.files) == 2
        assert values(source) == {name: a.ravel().tolist() for name, a in ARRAYS.items()}

    def test_safetensors_win_over_bin(self, tmp_path: Path) -> None:
        write_torch(tmp_path / "pytorch_model.bin", ARRAYS)
        write_torch(tmp_path / "other.pth", ARRAYS)
        write_safetensors(tmp_path / "model.safetensors", ARRAYS)
        assert resolve(tmp_path).files == (tmp_path / "model.safetensors",)

    def test_several_models_are_refused_by_name(self, tmp_path: Path) -> None:
        for name in ("small.pth", "large.pth"):
            write_torch(tmp_path / name, ARRAYS)
        with pytest.raises(CheckpointError, match="2 weight files: large.pth, small") as caught:
            resolve(tmp_path)
        assert "file='large.pth' (--file on the command line)" in str(caught.value)
        for name in ("small.pth", "large.pth"):
            assert resolve(tmp_path, file=name).files == (tmp_path / name,)
        with pytest.raises(CheckpointError, match=r"file='no.pth', found .* there is large.pth"):
            resolve(tmp_path, file="no.pth")
        with pytest.raises(CheckpointError, match="small.pth is a file itself; leave file= out"):
            resolve(tmp_path / "small.pth", file="small.pth")

    def test_what_training_leaves_is_no_model(self, tmp_path: Path) -> None:
        for name in ("RWKV.pth", "training_args.bin", "optimizer.pt", "rng_state_0.pth"):
            write_torch(tmp_path / name, ARRAYS)
        assert resolve(tmp_path).files == (tmp_path / "RWKV.pth",)

    def test_weights_in_a_subfolder(self, tmp_path: Path) -> None:
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
        write_torch(tmp_path / "a" / "x.pth", ARRAYS)
        (tmp_path / VOCABULARY).write_text("")
        source = resolve(tmp_path)
        assert source.files == (tmp_path / "a" / "x.pth",)
        assert source.vocabulary == tmp_path / VOCABULARY
        write_torch(tmp_path / "b" / "y.pth", ARRAYS)
        with pytest.raises(CheckpointError, match="2 weight files: a/x.pth, b/y.pth"):
            resolve(tmp_path)
        for file in ("b/y.pth", "y.pth"):
            assert resolve(tmp_path, file=file).files == (tmp_path / "b" / "y.pth",)
        write_torch(tmp_path / "top.pth", ARRAYS)
        assert resolve(tmp_path).files == (tmp_path / "top.pth",)

    @pytest.mark.parametrize("name", ["x.st", "weights"])
    def test_a_file_that_is_given_may_have_any_name(self, tmp_path: Path, name: str) -> None:
        write_safetensors(tmp_path / name, ARRAYS)
        assert resolve(tmp_path / name).files == (tmp_path / name,)

    def test_an_index_may_be_given_itself(self, tmp_path: Path) -> None:
        index = write_sharded(tmp_path, ARRAYS, ".bin")
        assert resolve(index) == replace(resolve(tmp_path), name=str(index))
        assert resolve(tmp_path, file=index.name) == resolve(tmp_path)

    @pytest.mark.parametrize(
        ("name", "call"),
        [
            ("org/m/x.pth", "source='org/m', file='x.pth'"),
            ("https://huggingface.co/org/m", "source='org/m'"),
            (
                "https://huggingface.co/org/m/resolve/main/a/x.pth?download=true",
                "source='org/m', file='a/x.pth'",
            ),
            ("https://hf.co/org/m/blob/v1/x.pth", "source='org/m', revision='v1', file='x.pth'"),
            ("https://huggingface.co/org/m/", "source='org/m'"),
            ("huggingface.co/org/m", "source='org/m'"),
            ("hf://org/m", "source='org/m'"),
            ("hf://org/m@v1/x.pth", "source='org/m', revision='v1', file='x.pth'"),
            ("org/m/", "source='org/m'"),
            ("org/m/tree/main", "source='org/m'"),
            ("org/m@v1", "source='org/m', revision='v1'"),
        ],
    )
    def test_an_address_says_how_to_give_it(self, name: str, call: str) -> None:
        with pytest.raises(FileNotFoundError, match="no such path") as caught:
            resolve(name)
        assert f"is given as {call}." in str(caught.value)

    def test_a_path_with_a_nul_is_no_path(self) -> None:
        with pytest.raises(FileNotFoundError, match="no NUL"):
            resolve("a\0b")

    def test_folder_without_weights(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no weight file"):
            resolve(tmp_path)
        (tmp_path / "a.gguf").touch()
        with pytest.raises(CheckpointError, match=r"no weight file among 'a.gguf'.* is not read"):
            resolve(tmp_path)

    @pytest.mark.parametrize(
        "name", ["", "nowhere", "./a/b", "a/b/c", "/a/b", "~/a", "org/model.pth", "a\\b", "../a"]
    )
    def test_missing_path_is_not_looked_up(
        self, hub: Hub, cache: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(cache.parent)
        with pytest.raises(FileNotFoundError, match="no such path"):
            resolve(name, cache_dir=cache)
        with pytest.raises(FileNotFoundError, match="no such path"):
            resolve(Path(REPO), cache_dir=cache)
        assert hub.log == []

    def test_vocabulary_only_if_unambiguous(self, tmp_path: Path) -> None:
        write_torch(tmp_path / "x.pth", ARRAYS)
        assert resolve(tmp_path).vocabulary is None
        (tmp_path / "my_vocab_1.txt").write_text("")
        assert resolve(tmp_path).vocabulary == tmp_path / "my_vocab_1.txt"
        (tmp_path / "my_vocab_2.txt").write_text("")
        assert resolve(tmp_path).vocabulary is None
        assert resolve(tmp_path).vocabularies == ("my_vocab_1.txt", "my_vocab_2.txt")
        named = resolve(tmp_path, vocabulary="my_vocab_2.txt")
        assert (named.vocabulary, named.vocabularies) == (tmp_path / "my_vocab_2.txt", ())
        assert resolve(tmp_path / "x.pth", vocabulary="my_vocab_1.txt").vocabulary is not None
        with pytest.raises(CheckpointError, match="vocabulary='none.txt'.*there is my_vocab_1.txt"):
            resolve(tmp_path, vocabulary="none.txt")
        (tmp_path / VOCABULARY).write_text("")
        assert resolve(tmp_path).vocabulary == tmp_path / VOCABULARY


class TestIndex:
    def damage(self, folder: Path, **changes: str | None) -> None:
        index = write_sharded(folder, ARRAYS, ".safetensors")
        content = json.loads(index.read_text())
        for name, file in changes.items():
            content["weight_map"][name.replace("_weight", ".weight")] = file
        kept = {name: file for name, file in content["weight_map"].items() if file}
        index.write_text(json.dumps({"weight_map": kept}))

    def test_missing_shard(self, tmp_path: Path) -> None:
        self.damage(tmp_path)
        (tmp_path / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(CheckpointError, match="1 missing: model-00002-of-00002.safetensors"):
            resolve(tmp_path)

    def test_only_what_is_read_must_agree_with_the_index(self, tmp_path: Path) -> None:
        """A tensor that no shard holds, one in another shard, one that the index does not name."""
        self.damage(
            tmp_path,
            ln_out_weight="model-00002-of-00002.safetensors",
            head_weight="model-00001-of-00002.safetensors",
        )
        extra = {"emb.weight": ARRAYS["emb.weight"], "extra": ARRAYS["emb.weight"]}
        write_safetensors(tmp_path / "model-00001-of-00002.safetensors", extra)
        with open_checkpoint(resolve(tmp_path)) as checkpoint:
            assert checkpoint.read("emb.weight").tolist() == ARRAYS["emb.weight"].tolist()
            with pytest.raises(CheckpointError, match=r"'head.weight': expected it in model-00001"):
                checkpoint.read("head.weight")
            with pytest.raises(CheckpointError, match="'extra': expected no such tensor"):
                checkpoint.read("extra")
            with pytest.raises(CheckpointError, match=r"'ln_out.weight', found none of this name"):
                checkpoint.read("ln_out.weight")

    def test_a_tensor_in_two_shards_matters_where_it_is_read(self, tmp_path: Path) -> None:
        write_sharded(tmp_path, ARRAYS, ".safetensors")
        write_safetensors(tmp_path / "model-00002-of-00002.safetensors", ARRAYS)
        with open_checkpoint(resolve(tmp_path)) as checkpoint:
            assert checkpoint.read("head.weight").tolist() == ARRAYS["head.weight"].tolist()
            with pytest.raises(CheckpointError, match=r"one tensor for 'emb.weight'.*00001-of"):
                checkpoint.read("emb.weight")

    @pytest.mark.parametrize("file", ["../x.bin", "/etc/x.bin", "a\\x.bin", "C:x.bin", "..", ""])
    def test_shard_outside_the_folder(self, tmp_path: Path, file: str) -> None:
        index = {"weight_map": {"emb.weight": file}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="'emb.weight': expected the name of a weight"):
            resolve(tmp_path)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', "[" * 100_000, "\xff"])
    def test_not_an_index(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "pytorch_model.bin.index.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(CheckpointError, match=r"index\.json: expected"):
            resolve(tmp_path)


class TestRepository:
    def test_first_download_then_offline(
        self,
        hub: Hub,
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("TQDM_POSITION", "-1")  # Progress also without a terminal.
        online = resolve(REPO, cache_dir=cache)
        assert "100%" in capsys.readouterr().err
        assert online.revision == NEW
        assert online.name == REPO
        assert online.vocabulary is not None
        assert online.vocabulary.read_text() == "1 'a' 1\n"
        assert hub.fetched() == {"pytorch_model.bin", VOCABULARY}
        assert values(online)["emb.weight"] == ARRAYS["emb.weight"].ravel().tolist()
        hub.stop()
        assert resolve(REPO, cache_dir=cache) == online
        assert resolve(REPO, cache_dir=cache, local_files_only=True) == online

    def test_endpoint_with_a_slash(
        self, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint + "/")
        assert resolve(REPO, cache_dir=cache).revision == NEW

    def test_cached_copy_asks_for_nothing_again(self, hub: Hub, cache: Path) -> None:
        first = resolve(REPO, cache_dir=cache)
        hub.log.clear()
        assert resolve(REPO, cache_dir=cache) == first
        assert hub.fetched() == set()
        hub.log.clear()
        assert resolve(REPO, cache_dir=cache, local_files_only=True) == first
        assert hub.log == []

    def test_pinned_revision(self, hub: Hub, cache: Path) -> None:
        hub.repos[REPO].refs["v1"] = OLD
        for revision in (OLD, "v1"):
            source = resolve(REPO, revision=revision, cache_dir=cache)
            assert source.revision == OLD
            assert values(source)["head.weight"] == [-1.0] * 12
        hub.stop()
        for revision in (OLD, "v1"):
            assert resolve(REPO, revision=revision, cache_dir=cache).revision == OLD
        with pytest.raises(HubError, match="revision 'main' is not wholly in the cache"):
            resolve(REPO, cache_dir=cache)

    def test_branch_that_moved(self, hub: Hub, cache: Path) -> None:
        hub.repos[REPO].refs["main"] = OLD
        assert resolve(REPO, cache_dir=cache).revision == OLD
        hub.repos[REPO].refs["main"] = NEW
        assert resolve(REPO, cache_dir=cache).revision == NEW
        hub.stop()
        assert resolve(REPO, cache_dir=cache).revision == NEW

    @pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
    def test_shards(self, hub: Hub, cache: Path, tmp_path: Path, suffix: str) -> None:
        folder = tmp_path / "sharded"
        folder.mkdir()
        index = write_sharded(folder, ARRAYS, suffix)
        (folder / "training_args.bin").write_text("not weights")
        hub.repos["org/sharded"] = Repo({NEW: contents(folder)}, {"main": NEW})
        source = resolve("org/sharded", cache_dir=cache)
        assert hub.fetched() == {index.name, *(file.name for file in source.files)}
        assert values(source) == {name: a.ravel().tolist() for name, a in ARRAYS.items()}
        assert source.vocabulary is None
        hub.stop()
        assert resolve("org/sharded", cache_dir=cache) == source
        source.files[1].unlink()
        with pytest.raises(HubError, match=f"missing: {source.files[1].name}"):
            resolve("org/sharded", cache_dir=cache)

    def test_single_pth(self, hub: Hub, cache: Path) -> None:
        files = hub.repos[REPO].commits[NEW]
        files["RWKV-x060.pth"] = files.pop("pytorch_model.bin")
        assert resolve(REPO, cache_dir=cache).files[0].name == "RWKV-x060.pth"
        hub.stop()
        assert resolve(REPO, cache_dir=cache).files[0].name == "RWKV-x060.pth"


    def test_one_of_several_files(self, hub: Hub, cache: Path) -> None:
        files = hub.repos[REPO].commits[NEW]
        files["b.pth"] = files.pop("pytorch_model.bin")
        files["a.pth"] = hub.repos[REPO].commits[OLD]["pytorch_model.bin"]
        source = resolve(REPO, file="a.pth", cache_dir=cache)
        assert hub.fetched() == {"a.pth", VOCABULARY}
        assert values(source)["head.weight"] == [-1.0] * 12
        hub.stop()
        assert resolve(REPO, file="a.pth", cache_dir=cache) == source
        with pytest.raises(HubError, match="file='b.pth', found no such file; there is a.pth"):
            resolve(REPO, file="b.pth", cache_dir=cache)

    def test_a_subfolder(self, hub: Hub, cache: Path) -> None:
        """Chosen once, from one listing; or refused before anything is transferred."""
        files = hub.repos[REPO].commits[NEW]
        files["models [v1]/x.pth"] = files.pop("pytorch_model.bin")
        source = resolve(REPO, cache_dir=cache)
        assert hub.fetched() == {"models [v1]/x.pth", VOCABULARY}
        assert source.vocabulary is not None and source.vocabulary.name == VOCABULARY
        assert values(source)["emb.weight"] == ARRAYS["emb.weight"].ravel().tolist()
        hub.stop()
        assert resolve(REPO, cache_dir=cache) == source

    def test_shards_in_a_subfolder(self, hub: Hub, cache: Path, tmp_path: Path) -> None:
        folder = tmp_path / "sharded"
        folder.mkdir()
        write_sharded(folder, ARRAYS, ".safetensors")
        inner = {f"hf/{name}": content for name, content in contents(folder).items()}
        hub.repos[REPO].commits[NEW] = inner
        source = resolve(REPO, cache_dir=cache)
        assert values(source)["emb.weight"] == ARRAYS["emb.weight"].ravel().tolist()
        assert hub.fetched() == set(inner)


class TestRefusals:
    def test_unknown_repository(self, hub: Hub, cache: Path) -> None:
        for token in (None, "some-token"):  # 401 and 404.
            with pytest.raises(HubError, match="org/none: no such repository, or a private one"):
                resolve("org/none", cache_dir=cache, token=token)

    def test_private_repository(self, hub: Hub, cache: Path) -> None:
        hub.repos[REPO].token = "secret"
        for token in (None, "wrong"):
            with pytest.raises(HubError, match="pass token="):
                resolve(REPO, cache_dir=cache, token=token)
        assert resolve(REPO, cache_dir=cache, token="secret").revision == NEW

    def test_gated_repository(self, hub: Hub, cache: Path) -> None:
        hub.repos[REPO].gated = True
        with pytest.raises(HubError, match=f"gated: accept its terms on {hub.endpoint}/{REPO}"):
            resolve(REPO, cache_dir=cache)

    @pytest.mark.parametrize(
        ("status", "words"),
        [
            (401, "the token that was sent is not accepted.*public repository needs none.*unset"),
            (403, "access denied"),
            (410, "hub refused"),
        ],
    )
    def test_other_refusals(self, hub: Hub, cache: Path, status: int, words: str) -> None:
        hub.status = status
        with pytest.raises(HubError, match=words):
            resolve(REPO, cache_dir=cache, token="some-token")

    def test_unknown_revision(self, hub: Hub, cache: Path) -> None:
        with pytest.raises(HubError, match="no revision 'v9': give a branch"):
            resolve(REPO, revision="v9", cache_dir=cache)

    def test_repository_without_weights(self, hub: Hub, cache: Path) -> None:
        del hub.repos[REPO].commits[NEW]["pytorch_model.bin"]
        with pytest.raises(CheckpointError, match=f"{REPO}: expected .* found no weight file"):
            resolve(REPO, cache_dir=cache)
        assert hub.fetched() == set()

    def test_repository_without_a_shard(self, hub: Hub, cache: Path, tmp_path: Path) -> None:
        folder = tmp_path / "sharded"
        folder.mkdir()
        write_sharded(folder, ARRAYS, ".bin")
        (folder / "pytorch_model-00002-of-00002.bin").unlink()
        hub.repos[REPO].commits[NEW] = contents(folder)
        with pytest.raises(CheckpointError, match="1 missing: pytorch_model-00002-of-00002.bin"):
            resolve(REPO, cache_dir=cache)

    def test_repository_of_several_models(self, hub: Hub, cache: Path) -> None:
        files = hub.repos[REPO].commits[NEW]
        files["a.pth"] = files["b.pth"] = files.pop("pytorch_model.bin")
        with pytest.raises(CheckpointError, match="2 weight files: a.pth, b.pth"):
            resolve(REPO, cache_dir=cache)
        assert hub.fetched() == set()

    def test_no_network_and_no_cache(self, hub: Hub, cache: Path) -> None:
        hub.stop()
        with pytest.raises(HubError, match="the hub cannot be reached .* check the network"):
            resolve(REPO, cache_dir=cache)
        with pytest.raises(HubError, match="'main' is not .* run once without local_files_only"):
            resolve(REPO, cache_dir=cache, local_files_only=True)

    def test_hub_that_is_down(self, hub: Hub, cache: Path) -> None:
        hub.status = 503
        with pytest.raises(HubError, match="in trouble"):
            resolve(REPO, cache_dir=cache)
        hub.status = 200
        online = resolve(REPO, cache_dir=cache)
        hub.status = 503
        assert resolve(REPO, cache_dir=cache) == online

    @pytest.mark.parametrize("status", [408, 429, 500, 503])
    def test_a_hub_that_is_busy_leaves_the_cache(
        self, hub: Hub, cache: Path, status: int
    ) -> None:
        online = resolve(REPO, cache_dir=cache)
        hub.status = status
        assert resolve(REPO, cache_dir=cache) == online
        assert fetch(REPO, VOCABULARY, cache_dir=cache) == online.vocabulary
        what = "busy" if status < 500 else "in trouble"
        with pytest.raises(HubError, match=f"the hub is {what}.*wait a while"):
            resolve(REPO, cache_dir=cache.parent / "other")

    def test_forbidden_by_the_environment(
        self, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        online = resolve(REPO, cache_dir=cache)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert resolve(REPO, cache_dir=cache) == online
        with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids to ask the hub: unset it"):
            resolve(REPO, cache_dir=cache.parent / "other")

    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ({"token": "a\nb"}, "no token has; copy it"),
            ({"token": "\xfc"}, "no token has; copy it"),
            ({"revision": ""}, "revision='': expected the name"),
            ({"revision": "a b"}, "revision='a b': expected the name"),
        ],
    )
    def test_what_cannot_be_sent(
        self, hub: Hub, cache: Path, how: dict[str, str], message: str
    ) -> None:
        with pytest.raises(HubError, match=message) as caught:
            resolve(REPO, cache_dir=cache, **how)  # type: ignore[arg-type]
        assert "a\nb" not in str(caught.value) and not hub.log

    @pytest.mark.parametrize("endpoint", ["junk", "http://", "ftp://huggingface.co"])
    def test_an_endpoint_that_is_no_address(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
    ) -> None:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(HubError, match=f"HF_ENDPOINT='{endpoint}': expected an address"):
            resolve(REPO, cache_dir=cache)

    def test_names_that_lead_elsewhere_are_not_taken(self, hub: Hub, cache: Path) -> None:
        hub.repos[REPO].commits[hub.repos[REPO].refs["main"]] = {"../../x.pth": b"", "/x.pth": b""}
        with pytest.raises(CheckpointError, match="no weight file"):
            resolve(REPO, cache_dir=cache)
        assert not hub.fetched()

    def test_a_cache_that_cannot_be_written(self, hub: Hub, cache: Path) -> None:
        cache.write_text("a file in the place of the folder")
        with pytest.raises(HubError, match=r"the cache cannot be written .* cache_dir="):
            resolve(REPO, cache_dir=cache)

    def test_name_that_cannot_be_a_repository(self, hub: Hub, cache: Path) -> None:
        with pytest.raises(HubError, match="not a repository's name"):
            resolve("org/a--b", cache_dir=cache)


class TestBrokenTransfer:
    def test_resumes_where_it_broke_off(
        self, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 256)
        hub.cut["pytorch_model.bin"] = 512
        try:
            source = resolve(REPO, cache_dir=cache)
        except HubError:  # Some versions of the client resume in the same call, some in the next.
            source = resolve(REPO, cache_dir=cache)
        assert values(source)["emb.weight"] == ARRAYS["emb.weight"].ravel().tolist()
        assert ("GET", f"/{REPO}/resolve/{NEW}/pytorch_model.bin", "bytes=512-") in hub.log

    def test_next_call_completes_it(self, hub: Hub, cache: Path) -> None:
        hub.cut["pytorch_model.bin"] = 500
        hub.status_after_cut = 503
        with pytest.raises(HubError, match=r"broke off .* run it again"):
            resolve(REPO, cache_dir=cache)
        with pytest.raises(HubError, match="not wholly in the cache"):
            resolve(REPO, cache_dir=cache)
        hub.status, hub.status_after_cut = 200, 200
        source = resolve(REPO, cache_dir=cache)
        assert values(source)["emb.weight"] == ARRAYS["emb.weight"].ravel().tolist()

    def test_complete_files_are_kept(self, hub: Hub, cache: Path, tmp_path: Path) -> None:
        folder = tmp_path / "sharded"
        folder.mkdir()
        first, second = write_sharded(folder, ARRAYS, ".bin"), "pytorch_model-00002-of-00002.bin"
        hub.repos["org/sharded"] = Repo({NEW: contents(folder)}, {"main": NEW})
        hub.cut[second] = 100
        hub.status_after_cut = 503
        with pytest.raises(HubError, match="broke off"):
            resolve("org/sharded", cache_dir=cache)
        hub.status, hub.status_after_cut = 200, 200
        hub.log.clear()
        assert len(resolve("org/sharded", cache_dir=cache).files) == 2
        assert first.name not in hub.fetched()
        assert second in hub.fetched()


def test_a_damaged_download_says_to_delete_it(hub: Hub, cache: Path) -> None:
    commit = hub.repos[REPO].refs["main"]
    hub.repos[REPO].commits[commit] = {"x.pth": b"PK\3\4" + bytes(99)}
    with pytest.raises(CheckpointError, match=r"x\.pth.*It lies in a cache: delete it there first"):
        RWKV6.from_pretrained(REPO, cache_dir=cache, device="cpu", tokenizer=None)


def test_from_pretrained_downloads_once_and_encodes_offline(hub: Hub, cache: Path) -> None:
    """The whole way of a user: a repository's name, texts, embeddings, then without the network."""
    weights = {name: bf16(array) for name, array in random_weights(L=2, V=300).items()}
    folder = cache.parent / "model"
    folder.mkdir()
    write_torch(folder / "pytorch_model.bin", hf_names(weights))
    lines = [f"{i + 1} {bytes([i])!r} 1" for i in range(256)]
    (folder / VOCABULARY).write_text("\n".join(lines) + "\n")
    hub.repos[REPO].commits[NEW] = contents(folder)

    def rows(**options: Any) -> tuple[bytes, str | None]:
        m = RWKV6.from_pretrained(REPO, device="cpu", cache_dir=cache, **options)
        return m.encode(["ab", "\u00e9"], layers=[0, 1]).tobytes(), m.revision

    first = rows()
    assert first[1] == NEW
    named = RWKV6.from_pretrained(REPO, device="cpu", cache_dir=cache)
    hub.repos[REPO].refs["main"] = OLD  # a copy is of the commit that was opened
    assert pickle.loads(pickle.dumps(named)).revision == NEW
    hub.repos[REPO].refs["main"] = NEW
    hub.stop()
    assert rows() == first and rows(local_files_only=True, revision=NEW) == first
    local = RWKV6.from_pretrained(folder, device="cpu", tokenizer=None)
    ids = [[b + 1 for b in text.encode()] for text in ("ab", "\u00e9")]
    assert local.encode_ids(ids, layers=[0, 1]).tobytes() == first[0]
