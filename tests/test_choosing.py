"""Which file of a listing is the model: what people really keep in a folder or a repository."""

from __future__ import annotations

import pytest

from rwkvsts.errors import CheckpointError
from rwkvsts.files.choosing import Wanted, choose

FOUND = {
    "web-rwkv's ending": (["rwkv6.st", "README.md"], "rwkv6.st"),
    "Lightning's ending": (["last.ckpt"], "last.ckpt"),
    "a usual ending beside them": (["last.ckpt", "RWKV.pth", "a.st"], "RWKV.pth"),
    "a folder of DeepSpeed": (
        [
            "latest",
            "global_step5/mp_rank_00_model_states.pt",
            "global_step5/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
            "global_step5/zero_pp_rank_1_mp_rank_00_optim_states.pt",
        ],
        "global_step5/mp_rank_00_model_states.pt",
    ),
    "a folder of accelerate": (
        ["pytorch_model.pt", "optimizer.bin", "optimizer_1.bin", "scheduler.bin", "sampler.bin"],
        "pytorch_model.pt",
    ),
    "shards by a name of their own": (
        ["rwkv-00001-of-00002.safetensors", "rwkv-00002-of-00002.safetensors"]
        + ["rwkv.safetensors.index.json"],
        "rwkv.safetensors.index.json",
    ),
    "the only shard, which needs no index": (
        ["model-00001-of-00001.safetensors"],
        "model-00001-of-00001.safetensors",
    ),
    "an adapter alone": (
        ["adapter_config.json", "adapter_model.safetensors"],
        "adapter_model.safetensors",  # which is refused by its tensors, as what it is
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_one_model_is_found(case: str) -> None:
    names, weights = FOUND[case]
    assert choose("here", names, Wanted()).weights == weights


REFUSED = {
    "an adapter beside the model": (
        ["model.safetensors", "adapter_config.json", "adapter_model.bin"],
        r"adapter_config\.json beside it.*ignored in silence.*Merge.*file='model\.safetensors'",
    ),
    "an adapter beside another name": (
        ["RWKV.pth", "adapter_model.bin"],
        r"adapter_model\.bin beside it.*file='RWKV\.pth'",
    ),
    "shards without an index": (
        ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"],
        r"found 2 of 3 shards without one. Download model\.safetensors\.index\.json",
    ),
    "a quantised file": (["rwkv-Q4_K_M.gguf"], "no weight file among 'rwkv-Q4_K_M.gguf'. GGUF"),
    "a download that goes on": (["RWKV.pth.part"], r"no weight file among 'RWKV\.pth\.part'"),
    "two files": (["a.st", "b.st"], r"2 weight files: a\.st, b\.st"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_certain_is_refused_by_name(case: str) -> None:
    names, words = REFUSED[case]
    with pytest.raises(CheckpointError, match=words):
        choose("here", names, Wanted())


def test_a_model_that_is_named_runs_without_its_adapter() -> None:
    names = ["model.safetensors", "adapter_config.json", "adapter_model.safetensors"]
    assert choose("here", names, Wanted("model.safetensors")).weights == "model.safetensors"


def test_an_empty_name_is_no_default() -> None:
    """As from a shell variable that is not set."""
    with pytest.raises(CheckpointError, match=r"expected file=''.* there is model\.safetensors"):
        choose("here", ["model.safetensors"], Wanted(""))


def test_the_vocabulary_may_lie_elsewhere() -> None:
    official = "rwkv_vocab_v20230424.txt"
    names = ["model.safetensors", f"tokenizer/{official}"]
    assert choose("here", names, Wanted()).vocabulary == f"tokenizer/{official}"
    assert choose("here", [*names, f"old/{official}"], Wanted()).vocabulary is None
    assert choose("here", [*names, official], Wanted()).vocabulary == official
