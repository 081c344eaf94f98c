"""`rwkvsts info`: versions, what the processor and the GPU offer, and a model's sizes."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from .. import device
from .._core import cpu_features
from ..errors import DataError, DeviceError
from ..model import RWKV
from ..study import machine
from . import accuracy


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="file, folder, repository or demo"
    )
    parser.add_argument("--file", help="weight file in a folder or repository of several")
    accuracy.add_options(parser)
    parser.set_defaults(run=run_info)


def run_info(args: argparse.Namespace) -> None:
    """`rwkvsts info`: versions, what the processor and the GPU offer, and a model's sizes."""
    if args.accuracy is None and (args.dtype, args.device) != ("auto", "auto"):
        raise DataError("--dtype, --device: they are of --accuracy FILE; name the texts' file too")
    if args.accuracy is not None:
        if args.model is None:
            raise DataError("--accuracy: of which model? Name it, as in info demo --accuracy FILE")
        for line in accuracy.report(args):
            print(line)
        return
    facts: dict[str, object] = {**machine.machine_facts()}
    for package in ("huggingface_hub", "tokenizers", "pyarrow", "matplotlib"):
        facts[package] = machine.version(package)
    features = [name for name, there in cpu_features().items() if there]
    facts["instruction sets"] = ", ".join(features) or "portable"
    try:
        gpu = device.query_cuda()
        facts["cuda"] = (
            f"{gpu.name}, sm_{gpu.capability[0]}{gpu.capability[1]}, "
            f"{gpu.free >> 20} of {gpu.total >> 20} MiB free"
        )
    except DeviceError as error:
        facts["cuda"] = str(error)
    auto = device.choose("auto", "auto")
    facts["auto"] = f"{auto.device} {auto.dtype}"
    if args.model is not None:
        # One block tells the sizes of all.
        model = RWKV.from_pretrained(
            args.model, device="cpu", tokenizer=None, max_layer=0, file=args.file
        )
        facts |= {"model": model.source, "architecture": model.architecture}
        facts |= {"revision": model.revision, **asdict(model.config)}
        if model.architecture == "RWKV-6":
            facts |= routes(model)
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {'-' if value is None else value}")


def routes(model: RWKV) -> dict[str, object]:
    """Which CUDA kernel runs for each step: a pair of sentences; many; long texts. Empty where no
    CUDA device can run the model."""
    config = model.config
    ranks = model._core.ranks
    sizes = [config.n_embd, config.n_head, config.head_size, config.n_ffn, ranks[0], ranks[1]]
    try:
        facts, dtype = device.cuda_facts(), device.choose("cuda", "auto").dtype
        many = 64 * facts[3]
        return {
            f"{tokens} tokens, texts of {piece}: {step}": kernel
            for tokens, piece in ((54, 27), (many, 27), (many, 4096))
            for step, kernel in device.cuda_route(facts, dtype, sizes, tokens, piece).items()
        }
    except DeviceError:
        return {}
