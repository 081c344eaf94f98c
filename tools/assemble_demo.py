"""Puts the bundled model together from the training runs, or a random one of the same shape.

    python tools/assemble_demo.py blend LM RUN [RUN ...] --out rwkvsts/assets/demo
    python tools/assemble_demo.py random --seed 101 [--idle] --out FOLDER --vocabulary FILE

`blend` averages the runs of stage 2 and goes FACTOR times as far from the stage 1 model as their
average lies: W = LM + FACTOR (mean(RUN) - LM). The runs share stage 1, so their weights may be
averaged; going further pays because each run was short. `random` writes an untrained model with
every weight matrix at PyTorch's default, or, with --idle, with output projections of zero besides.
Promises model.safetensors (bfloat16, no LM head) and config.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from rwkv6_torch import RWKV6, Shape
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FACTOR = 1.5


def blend(lm: Path, runs: list[Path], factor: float) -> dict[str, Tensor]:
    """Weights in float32, by name."""
    start = {name: tensor.float() for name, tensor in load_file(lm).items()}
    ends = [load_file(run) for run in runs]
    blended = {}
    for name, tensor in start.items():
        mean = torch.stack([end[name].float() for end in ends]).mean(0)
        blended[name] = tensor + factor * (mean - tensor)
    return blended


def random_model(seed: int, idle: bool) -> dict[str, Tensor]:
    """Weights of an untrained model; `idle` blocks add nothing to the stream."""
    torch.manual_seed(seed)
    model = RWKV6(Shape())
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.reset_parameters()
    if idle:
        for block in model.blocks:
            nn.init.zeros_(block.attention.output.weight)
            nn.init.zeros_(block.feed_forward.value.weight)
    return model.checkpoint()


def write(tensors: dict[str, Tensor], out: Path) -> None:
    """model.safetensors without the head, and config.json."""
    out.mkdir(parents=True, exist_ok=True)
    kept = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in tensors.items()
        if name != "head.weight"
    }
    save_file(kept, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(Shape().as_config(), indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    blended = kinds.add_parser("blend")
    blended.add_argument("lm", type=Path)
    blended.add_argument("runs", type=Path, nargs="+")
    random = kinds.add_parser("random")
    random.add_argument("--seed", type=int, default=1)
    random.add_argument("--idle", action="store_true")
    random.add_argument("--vocabulary", type=Path, required=True)
    for kind in (blended, random):
        kind.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.kind == "blend":
        write(blend(options.lm, options.runs, FACTOR), options.out)
    else:
        write(random_model(options.seed, options.idle), options.out)
        shutil.copy(options.vocabulary, options.out)


if __name__ == "__main__":
    main()
