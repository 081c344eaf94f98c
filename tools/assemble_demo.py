"""Makes the bundled model of a training run, or a random one of the same shape.

    python tools/assemble_demo.py run RUN.safetensors --out rwkvsts/assets/demo
    python tools/assemble_demo.py random --seed 101 [--idle] --out FOLDER --vocabulary FILE

`random` writes an untrained model with every weight matrix at PyTorch's default, or, with --idle,
with output projections of zero besides. Promises model.safetensors (bfloat16, no LM head) and
config.json.
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


def write_random(seed: int, idle: bool, vocabulary: Path, out: Path) -> None:
    """A folder that the package opens."""
    write(random_model(seed, idle), out)
    shutil.copy(vocabulary, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    run = kinds.add_parser("run")
    run.add_argument("run", type=Path)
    random = kinds.add_parser("random")
    random.add_argument("--seed", type=int, default=101)
    random.add_argument("--idle", action="store_true")
    random.add_argument("--vocabulary", type=Path, required=True)
    for kind in (run, random):
        kind.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.kind == "run":
        ends = options.run.with_suffix(".ends.safetensors")
        write({**load_file(options.run), **load_file(ends)}, options.out)
    else:
        write_random(options.seed, options.idle, options.vocabulary, options.out)


if __name__ == "__main__":
    main()
