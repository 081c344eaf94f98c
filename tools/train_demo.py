"""Trains the demo model: RWKV-6 on the prepared corpora, then with a sentence objective besides.

    python tools/train_demo.py lm PREPARED OUT --minutes 2.1
    python tools/train_demo.py a PREPARED OUT --minutes 1.7 --resume OUT/lm.safetensors

Stage "lm" is language modelling alone. Stages "a" to "d" each go on from it with language
modelling and a contrastive loss on the mean-pooled residual stream after some blocks: of all
positives and hard negatives of the batch, an anchor shall be nearest to its own positive. They
differ in the blocks and in the weight of hard negatives; assemble_demo.py makes one model of them.
A stage leaves `<stage>.safetensors`, its LM head in `<stage>.head.safetensors` and its loss curve
in `<stage>.json`. Assumes a GPU with nvcc, or a C compiler and patience. The schedule follows the
clock, so two runs differ by the steps they manage.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from prepare_demo import TRIPLE_TOKENS, load_prepared
from rwkv6_torch import RWKV6, Shape, pooled, wkv6, wkv6_plain
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.1
WINDOW = 256  # tokens of a language modelling sequence
WARM_UP = 0.02  # share of a stage


@dataclass(frozen=True)
class Stage:
    """Peak and last learning rate, sequences and triples of a batch, and the sentence objective.

    `hard_weight` is that of a hard negative; a positive of another anchor weighs 1.
    """

    peak: float
    last: float
    sequences: int
    triples: int = 0
    layers: tuple[int, ...] = ()
    hard_weight: float = 0.0


STAGES = {
    "lm": Stage(2e-3, 2e-4, 128),
    "a": Stage(1e-3, 0.0, 48, 512, (3, 5), 0.3),
    "b": Stage(1e-3, 0.0, 48, 512, (3, 5), 0.05),
    "c": Stage(1e-3, 0.0, 48, 512, (1, 3, 5, 7), 0.15),
    "d": Stage(1e-3, 0.0, 64, 512, (5, 7), 1.0),
}


class Data:
    """Training windows and triples on the device, drawn at random."""

    def __init__(self, prepared: dict[str, np.ndarray], device: str, seed: int) -> None:
        self.rng = torch.Generator(device).manual_seed(seed)
        self.device = device
        tokens = prepared["tokens"]
        starts = np.flatnonzero(tokens == 0)
        documents = np.split(tokens, starts[1:])
        counted = zip(documents, prepared["repeats"], strict=True)
        repeated = [document for document, n in counted for _ in range(n)]
        order = np.random.default_rng(seed).permutation(len(repeated))
        stream = np.concatenate([repeated[i] for i in order])
        self.tokens = torch.from_numpy(stream.astype(np.int32)).to(device)
        flat = torch.from_numpy(prepared["triples"].astype(np.int32)).to(device)
        self.lengths = torch.from_numpy(prepared["lengths"].astype(np.int64)).to(device)
        ends = self.lengths.reshape(-1).cumsum(0)
        place = (ends - self.lengths.reshape(-1))[:, None] + torch.arange(
            TRIPLE_TOKENS, device=device
        )
        inside = place < ends[:, None]
        ids = flat[place.clamp(max=len(flat) - 1)] * inside
        self.triples = ids.view(-1, 3, TRIPLE_TOKENS)

    def windows(self, count: int) -> Tensor:
        """`count` windows of WINDOW + 1 ids from anywhere in the stream."""
        last = len(self.tokens) - WINDOW - 1
        start = torch.randint(last, (count, 1), generator=self.rng, device=self.device)
        return self.tokens[start + torch.arange(WINDOW + 1, device=self.device)].long()

    def sentences(self, count: int) -> tuple[Tensor, Tensor]:
        """Anchors, positives, negatives: ids [3 * count, TRIPLE_TOKENS], lengths [3 * count]."""
        rows = torch.randint(len(self.triples), (count,), generator=self.rng, device=self.device)
        ids, lengths = self.triples[rows], self.lengths[rows]
        return ids.transpose(0, 1).reshape(3 * count, -1).long(), lengths.T.reshape(-1)


def check_kernel(device: str) -> None:
    """Refuse a kernel that differs from the plain recurrence, or whose gradients do."""
    rng = torch.Generator(device).manual_seed(0)
    size = (3, 37, 3, 64)
    r, k, v, w, gy = (torch.randn(size, device=device, generator=rng) for _ in range(5))
    u = torch.randn(size[2:], device=device, generator=rng)
    inputs = [x.double().requires_grad_() for x in (r, k, v, 2 * w - 3, u)]
    expected = wkv6_plain(*inputs)
    expected_grads = torch.autograd.grad(expected, inputs, gy.double())
    inputs = [x.detach().float().requires_grad_() for x in inputs]
    found = wkv6(*inputs)
    found_grads = torch.autograd.grad(found, inputs, gy)
    pairs = zip((expected, *expected_grads), (found, *found_grads), strict=True)
    errors = [((a - b).norm() / a.norm()).item() for a, b in pairs]
    print("kernel against recurrence, relative error of y, dr, dk, dv, dw, du:", errors)
    if not max(errors) < 1e-4:
        raise RuntimeError(f"the wkv6 kernel is wrong: relative errors {errors}")


def language_loss(model: RWKV6, windows: Tensor) -> Tensor:
    """Mean cross entropy of the next token, in nats."""
    stream = model.stream(windows[:, :-1])[-1]
    logits = model.head(model.ln_out(stream))
    return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def sentence_loss(model: RWKV6, stage: Stage, ids: Tensor, lengths: Tensor) -> Tensor:
    """Contrastive loss over the batch, mean over the stage's layers and both directions."""
    streams = model.stream(ids, max(stage.layers) + 1)
    losses = []
    for layer in stage.layers:
        units = F.normalize(pooled(streams[layer], lengths), dim=1)
        anchor, positive, negative = units.chunk(3)
        own = torch.arange(len(anchor), device=ids.device)
        weight = torch.ones(2 * len(anchor), device=ids.device)
        weight[len(anchor) :] = stage.hard_weight
        forth = anchor @ torch.cat([positive, negative]).T / TEMPERATURE + weight.log()
        back = positive @ torch.cat([anchor, negative]).T / TEMPERATURE + weight.log()
        losses += [F.cross_entropy(forth, own), F.cross_entropy(back, own)]
    return torch.stack(losses).mean()


def optimizer_for(model: RWKV6) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices alone."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.squeeze().dim() > 1 and "time" not in name
        (matrices if is_matrix else rest).append(parameter)
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0, betas=(0.9, 0.99), fused=matrices[0].is_cuda)


def rate(stage: Stage, progress: float) -> float:
    """Learning rate at a share of the stage: linear warm-up, then a cosine."""
    if progress < WARM_UP:
        return stage.peak * progress / WARM_UP
    phase = (progress - WARM_UP) / (1 - WARM_UP)
    return stage.last + (stage.peak - stage.last) * 0.5 * (1 + math.cos(math.pi * min(phase, 1.0)))


def autocast(device: str) -> torch.autocast:
    """Matrix products in bfloat16."""
    return torch.autocast(device, torch.bfloat16)


def backward(stage: Stage, model: RWKV6, data: Data) -> dict[str, Tensor]:
    """Gradients of one batch of the stage; its losses by name."""
    with autocast(data.device):
        losses = {"lm_nats": language_loss(model, data.windows(stage.sequences))}
        if stage.triples:
            losses["sentence_nats"] = sentence_loss(model, stage, *data.sentences(stage.triples))
    sum(losses.values()).backward()
    return losses


def run_stage(stage: Stage, model: RWKV6, data: Data, seconds: float, log: Callable) -> int:
    """Train for `seconds`; returns the number of steps."""
    optimizer = optimizer_for(model)
    begin = time.monotonic()
    steps = 0
    while (elapsed := time.monotonic() - begin) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = rate(stage, max(elapsed / seconds, 1e-3))
        optimizer.zero_grad(set_to_none=True)
        losses = backward(stage, model, data)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if steps % 200 == 0:
            entry = {"step": steps, "seconds": round(elapsed, 1)}
            log(entry | {name: round(loss.item(), 4) for name, loss in losses.items()})
        steps += 1
    return steps


@torch.no_grad()
def bits_per_byte(model: RWKV6, prepared: dict[str, np.ndarray], device: str) -> float:
    """Bits per byte of the held-out documents, each read whole from a zero state after id 0."""
    tokens = prepared["held_out"].astype(np.int64)
    pieces = np.split(tokens, np.flatnonzero(tokens == 0)[1:])
    nats = 0.0
    for begin in range(0, len(pieces), 16):
        batch = pieces[begin : begin + 16]
        ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
        for row, piece in zip(ids, batch, strict=True):
            row[: len(piece)] = torch.from_numpy(piece)
        ids = ids.to(device)
        # Every batch has its own length: compiled code would be compiled anew for each.
        with autocast(device), torch.compiler.set_stance("force_eager"):
            logits = model.head(model.ln_out(model.stream(ids[:, :-1])[-1]))
        target = ids[:, 1:].flatten()  # id 0 occurs only in front and as padding
        logits = logits.flatten(0, 1).float()
        nats += F.cross_entropy(logits, target, ignore_index=0, reduction="sum").item()
    return nats / math.log(2) / int(prepared["held_out_bytes"])


def save(model: RWKV6, out: Path, name: str) -> None:
    """The weights, and their LM head in a file of its own."""
    tensors = model.checkpoint()
    head = {"head.weight": tensors.pop("head.weight")}
    save_file(tensors, out / f"{name}.safetensors", {"format": "pt"})
    save_file(head, out / f"{name}.head.safetensors", {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("prepared", type=Path, help="prepared.npz.xz of prepare_demo.py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--resume", type=Path, help="lm.safetensors, its head beside it")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    prepared = load_prepared(options.prepared)
    data = Data(prepared, device, options.seed)
    model = RWKV6(Shape()).to(device)
    stage = STAGES[options.stage]
    if options.resume:
        head = options.resume.with_suffix(".head.safetensors")
        model.restore({**load_file(options.resume), **load_file(head)})
    check_kernel(device)
    if device == "cuda":
        for block in model.blocks:
            block.compile(dynamic=False)
        begin = time.monotonic()
        backward(stage, model, data)  # compiles outside the schedule's time
        print(f"compiled in {time.monotonic() - begin:.1f} s", flush=True)
    entries: list[dict[str, object]] = []

    def log(entry: dict[str, object]) -> None:
        print(entry, flush=True)
        entries.append(entry)
        (options.out / f"{options.stage}.json").write_text(json.dumps(entries))

    steps = run_stage(stage, model, data, 60 * options.minutes, log)
    save(model, options.out, options.stage)
    log({"steps": steps, "bits_per_byte": bits_per_byte(model, prepared, device)})


if __name__ == "__main__":
    main()
