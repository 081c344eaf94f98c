"""Trains the demo model: RWKV-6 on the prepared corpora, then with a sentence objective besides.

    python tools/train_demo.py PREPARED OUT [--minutes 5] [--resume LM_CHECKPOINT]

Stage 1 is language modelling alone and leaves `lm.safetensors`. Stage 2 goes on with language
modelling and adds a contrastive loss on the mean-pooled residual stream after blocks
SENTENCE_LAYERS: of all positives and hard negatives of the batch, an anchor shall be nearest to its
own positive. It leaves `model.safetensors`; each has its LM head beside it in `*.head.safetensors`,
and `log.json` holds the loss curve. Assumes a GPU with nvcc, or patience: on the CPU the plain
recurrence runs. The schedule follows the clock, so two runs differ by the steps they manage.
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
from torch.nn import functional as F  # noqa: N812

SENTENCE_LAYERS = (3, 5)
TEMPERATURE = 0.1
HARD_WEIGHT = 0.3  # of a hard negative; a positive of another anchor weighs 1
WINDOW = 256  # tokens of a language modelling sequence
WARM_UP = 0.02  # share of a stage


@dataclass(frozen=True)
class Stage:
    """One stage: its share of the time, peak and last learning rate, sequences, triples."""

    name: str
    share: float
    peak: float
    last: float
    sequences: int
    triples: int


STAGES = (
    Stage("lm", 0.55, 2e-3, 2e-4, 128, 0),
    Stage("model", 0.45, 1e-3, 0.0, 48, 512),
)


class Data:
    """Training windows and triples on the device, drawn at random."""

    def __init__(self, prepared: dict[str, np.ndarray], device: str, seed: int) -> None:
        self.rng = torch.Generator(device).manual_seed(seed)
        self.device = device
        tokens = prepared["tokens"]
        starts = np.flatnonzero(tokens == 0)
        documents = np.split(tokens, starts[1:])
        repeated = [d for d, n in zip(documents, prepared["repeats"], strict=True) for _ in range(n)]
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
        """Ids [3 * count, TRIPLE_TOKENS] and lengths of `count` triples: anchors, positives, negatives."""
        rows = torch.randint(len(self.triples), (count,), generator=self.rng, device=self.device)
        ids, lengths = self.triples[rows], self.lengths[rows]
        return ids.transpose(0, 1).reshape(3 * count, -1).long(), lengths.T.reshape(-1)


def check_kernel() -> None:
    """Refuse to train with a kernel that differs from the plain recurrence, or whose gradients do."""
    rng = torch.Generator("cuda").manual_seed(0)
    size = (3, 37, 3, 64)
    r, k, v, w, gy = (torch.randn(size, device="cuda", generator=rng) for _ in range(5))
    u = torch.randn(size[2:], device="cuda", generator=rng)
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


def sentence_loss(model: RWKV6, ids: Tensor, lengths: Tensor) -> Tensor:
    """Contrastive loss over the batch, mean over SENTENCE_LAYERS and both directions."""
    streams = model.stream(ids, max(SENTENCE_LAYERS) + 1)
    losses = []
    for layer in SENTENCE_LAYERS:
        units = F.normalize(pooled(streams[layer], lengths), dim=1)
        anchor, positive, negative = units.chunk(3)
        own = torch.arange(len(anchor), device=ids.device)
        weight = torch.ones(2 * len(anchor), device=ids.device)
        weight[len(anchor) :] = HARD_WEIGHT
        forth = anchor @ torch.cat([positive, negative]).T / TEMPERATURE + weight.log()
        back = positive @ torch.cat([anchor, negative]).T / TEMPERATURE + weight.log()
        losses += [F.cross_entropy(forth, own), F.cross_entropy(back, own)]
    return torch.stack(losses).mean()


def optimizer_for(model: RWKV6) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices alone."""
    matrices = [p for name, p in model.named_parameters() if p.squeeze().dim() > 1 and "time" not in name]
    rest = [p for name, p in model.named_parameters() if not (p.squeeze().dim() > 1 and "time" not in name)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0, betas=(0.9, 0.99), fused=next(model.parameters()).is_cuda)


def rate(stage: Stage, progress: float) -> float:
    """Learning rate at a share of the stage: linear warm-up, then a cosine."""
    if progress < WARM_UP:
        return stage.peak * progress / WARM_UP
    phase = (progress - WARM_UP) / (1 - WARM_UP)
    return stage.last + (stage.peak - stage.last) * 0.5 * (1 + math.cos(math.pi * min(phase, 1.0)))


def autocast(device: str) -> torch.autocast:
    """bfloat16 products on a GPU; float32 on the CPU, where it is for checking."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def backward(stage: Stage, model: RWKV6, data: Data) -> dict[str, Tensor]:
    """Gradients of one batch of the stage; its losses by name."""
    with autocast(data.device):
        losses = {"lm_nats": language_loss(model, data.windows(stage.sequences))}
        if stage.triples:
            losses["sentence_nats"] = sentence_loss(model, *data.sentences(stage.triples))
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
            entry = {"stage": stage.name, "step": steps, "seconds": round(elapsed, 1)}
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
        loss = F.cross_entropy(logits.flatten(0, 1).float(), target, ignore_index=0, reduction="sum")
        nats += loss.item()
    return nats / math.log(2) / int(prepared["held_out_bytes"])


def save(model: RWKV6, out: Path, name: str) -> None:
    """The weights, and their LM head in a file of its own."""
    tensors = model.checkpoint()
    head = {"head.weight": tensors.pop("head.weight")}
    save_file(tensors, out / f"{name}.safetensors", {"format": "pt"})
    save_file(head, out / f"{name}.head.safetensors", {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared", type=Path, help="prepared.npz.xz of prepare_demo.py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--resume", type=Path, help="lm.safetensors: run stage 2 alone")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    prepared = load_prepared(options.prepared)
    data = Data(prepared, device, options.seed)
    model = RWKV6(Shape()).to(device)
    stages = STAGES
    if options.resume:
        head = options.resume.with_suffix(".head.safetensors")
        model.restore({**load_file(options.resume), **load_file(head)})
        stages = STAGES[1:]
    if device == "cuda":
        check_kernel()
        for block in model.blocks:
            block.compile(dynamic=False)
        begin = time.monotonic()
        for stage in stages:  # compiles outside the schedule's time
            backward(stage, model, data)
        print(f"compiled in {time.monotonic() - begin:.1f} s", flush=True)
    entries: list[dict[str, object]] = []

    def log(entry: dict[str, object]) -> None:
        print(entry, flush=True)
        entries.append(entry)
        (options.out / "log.json").write_text(json.dumps(entries))

    for stage in stages:
        seconds = 60 * options.minutes * stage.share / sum(s.share for s in stages)
        steps = run_stage(stage, model, data, seconds, log)
        save(model, options.out, stage.name)
        bpb = bits_per_byte(model, prepared, device)
        log({"stage": stage.name, "steps": steps, "seconds": seconds, "bits_per_byte": bpb})


if __name__ == "__main__":
    main()
