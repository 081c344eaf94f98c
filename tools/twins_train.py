"""Trains the twins of TWINS.md on the next token, three seeds each, and scores every pair.

    python tools/twins_train.py PREPARED OUT --seconds 525

Assumes the files of twins_prepare.py, and a GPU with nvcc, or a CPU and --tiny. The number of steps
is the same for all six trainings: --steps, or as many as fit into --seconds, all else included.
Leaves, rewritten after every model so that an interrupted run keeps what it has:
`scores_rwkv.npz`, `scores_softmax.npz`, `scores_untrained.npz` (see twins_score.py), `curves.csv`
(loss by step) and `run.json` (sizes, steps, digests of the data order, bits per byte).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from prepare_demo import load_prepared
from rwkv6_torch import Shape
from torch import Tensor
from train_demo import autocast, check_kernel
from twins_model import SHAPE, Twin, parameters
from twins_names import MIXERS, SEEDS
from twins_score import Sentences, score

PEAK, LAST = 1e-3, 1e-4  # learning rate
WARM_UP = 0.05  # share of the steps
EVALUATIONS = 10  # of a sample of the held-out text, in one training
SAMPLE = 128  # held-out windows of that sample
LOG_EVERY = 10  # steps, whose mean loss is one row of curves.csv
RESERVE = 0.95  # share of the measured speed to count on


@dataclass(frozen=True)
class Size:
    """What one training step takes: a model's shape, windows of `window` tokens, so many."""

    shape: Shape
    window: int
    windows: int


FULL = Size(SHAPE, 512, 64)
TINY = Size(Shape(hidden_size=64, num_hidden_layers=2, mix_rank=8, decay_rank=8), 32, 4)


class Text:
    """Training and held-out text on the device, in windows."""

    def __init__(self, prepared: dict[str, np.ndarray], size: Size, device: str) -> None:
        tokens = prepared["tokens"]
        documents = np.split(tokens, np.flatnonzero(tokens == 0)[1:])
        repeats = prepared["repeats"]
        # A document's second reading comes after all first readings, not right behind its own.
        turns = [
            document
            for turn in range(repeats.max())
            for document, times in zip(documents, repeats, strict=True)
            if times > turn
        ]
        self.size, self.device = size, device
        self.tokens = torch.from_numpy(np.concatenate(turns).astype(np.int32)).to(device)
        held_out = prepared["held_out"]
        self.bytes_a_token = int(prepared["held_out_bytes"]) / len(held_out)
        whole = (len(held_out) - 1) // size.window * size.window
        places = np.arange(0, whole, size.window)[:, None] + np.arange(size.window + 1)
        self.held_out = torch.from_numpy(held_out[places].astype(np.int64)).to(device)

    def order(self, seed: int, steps: int) -> np.ndarray:
        """Where each window starts, [steps, windows]: epochs of windows that do not overlap."""
        rng = np.random.default_rng(seed)
        window, wanted = self.size.window, steps * self.size.windows
        an_epoch = (len(self.tokens) - 1) // window - 1
        epochs = [
            rng.integers(window) + window * rng.permutation(an_epoch)
            for _ in range(-(-wanted // an_epoch))
        ]
        return np.concatenate(epochs)[:wanted].reshape(steps, -1)

    def windows(self, starts: Tensor) -> Tensor:
        """Ids [windows, window + 1] from `starts` [windows]."""
        place = starts[:, None] + torch.arange(self.size.window + 1, device=self.device)
        return self.tokens[place].long()


Loss = Callable[[Tensor], Tensor]


def plain_loss(model: Twin, windows: Tensor) -> Tensor:
    """Mean loss in nats of windows [B, T + 1], uncompiled."""
    with autocast(windows.device.type):
        return model.tail_loss(model.stream(windows[:, :-1])[-1], windows[:, 1:])


def compiled_loss(model: Twin) -> Loss:
    """`plain_loss` block by block, so that one compiled block serves all layers."""
    blocks = [torch.compile(block, dynamic=False) for block in model.blocks]
    tail = torch.compile(model.tail_loss, dynamic=False)

    def loss(windows: Tensor) -> Tensor:
        with autocast(windows.device.type):
            x = model.entering(windows[:, :-1])
            for block in blocks:
                x = block(x)
            return tail(x, windows[:, 1:].contiguous())

    return loss


def optimizer_for(model: Twin) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices alone."""
    named = list(model.named_parameters())
    decays = {name: p.squeeze().dim() > 1 and "time" not in name for name, p in named}
    groups = [
        {"params": [p for name, p in named if decays[name]], "weight_decay": 0.1},
        {"params": [p for name, p in named if not decays[name]], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=named[0][1].is_cuda)


def rate(progress: float) -> float:
    """Learning rate at a share of the steps: linear warm-up, then a cosine."""
    if progress < WARM_UP:
        return PEAK * progress / WARM_UP
    phase = (progress - WARM_UP) / (1 - WARM_UP)
    return LAST + (PEAK - LAST) * 0.5 * (1 + math.cos(math.pi * phase))


def take_step(model: Twin, loss: Loss, optimizer: torch.optim.Optimizer, windows: Tensor) -> Tensor:
    """One step of the optimizer; the loss before it, still on the device."""
    optimizer.zero_grad(set_to_none=True)
    value = loss(windows)
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return value.detach()


@torch.no_grad()
def held_out_nats(model: Twin, windows: Tensor, batch: int) -> float:
    """Mean loss a token of held-out windows [n, T + 1]."""
    losses = [plain_loss(model, part) * len(part) for part in windows.split(batch)]
    return float(torch.stack(losses).sum()) / len(windows)


def train(model: Twin, loss: Loss, text: Text, order: np.ndarray) -> list[tuple[int, float, str]]:
    """Take all steps of `order`; rows of step, nats and which text they are of."""
    optimizer = optimizer_for(model)
    starts = torch.from_numpy(order).to(text.device)
    steps = len(order)
    evaluate_at = {round(steps * (i + 1) / EVALUATIONS) for i in range(EVALUATIONS)}
    stride = max(1, len(text.held_out) // SAMPLE)  # the sample is spread over all of it
    sample = text.held_out[::stride][:SAMPLE]
    rows, losses = [], []
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(step / steps)
        losses.append(take_step(model, loss, optimizer, text.windows(starts[step - 1])))
        if step in evaluate_at:
            nats = held_out_nats(model, sample, text.size.windows)
            rows.append((step, nats, "held-out sample"))
            print(f"    step {step}: {losses[-1]:.4f} nats, held out {nats:.4f}", flush=True)
    nats_by_step = torch.stack(losses).float().cpu()
    for end in range(LOG_EVERY, steps + 1, LOG_EVERY):
        rows.append((end, float(nats_by_step[end - LOG_EVERY : end].mean()), "training"))
    return rows


def digest(text: Text, order: np.ndarray) -> str:
    """SHA-256 of the windows' starts and of the stream that they cut: equal if and only if the data
    and their order are."""
    sha = hashlib.sha256(order.tobytes())
    sha.update(text.tokens.cpu().numpy().tobytes())
    return sha.hexdigest()[:16]


def step_seconds(model: Twin, loss: Loss, text: Text, trials: int) -> float:
    """Time of one step; its changes to the model do not matter, weights are drawn afterwards."""
    optimizer = optimizer_for(model)
    starts = torch.from_numpy(text.order(0, trials + 5)).to(text.device)
    begin = 0.0
    for trial, row in enumerate(starts):
        if trial == 5:
            wait(text.device)
            begin = time.monotonic()
        take_step(model, loss, optimizer, text.windows(row))
    wait(text.device)
    return (time.monotonic() - begin) / trials


def wait(device: str) -> None:
    """Let the device finish."""
    if device == "cuda":
        torch.cuda.synchronize()


class Run:
    """Models with their compiled losses, the text, and what has come out so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.begin = time.monotonic()
        self.out, self.device = options.out, "cuda" if torch.cuda.is_available() else "cpu"
        self.size = TINY if options.tiny else FULL
        self.seconds = options.seconds
        self.out.mkdir(parents=True, exist_ok=True)
        torch._dynamo.config.recompile_limit = 64
        self.text = Text(load_prepared(options.prepared / "text.npz.xz"), self.size, self.device)
        self.sentences = Sentences(options.prepared / "pairs.npz", 40 if options.tiny else None)
        self.models = {mixer: self.fresh(mixer, 0) for mixer in MIXERS}
        self.curves: list[tuple[str, int, int, float, str]] = []
        self.facts: dict[str, object] = {"torch": torch.__version__, "models": []}
        self.say(f"loaded on {self.device}")

    def fresh(self, mixer: str, seed: int) -> Twin:
        """An untrained twin, its weights drawn on the device."""
        with torch.device(self.device):
            return Twin(mixer, seed, self.size.shape)

    def say(self, message: str) -> None:
        print(f"{time.monotonic() - self.begin:6.1f} s  {message}", flush=True)

    def prepare(self, compile_blocks: bool) -> dict[str, Loss]:
        """The training losses by mixer, held to the uncompiled ones on random weights."""
        check_kernel(self.device)
        losses: dict[str, Loss] = {}
        for mixer, model in self.models.items():
            with torch.no_grad():  # output projections of zero would hide the mixers
                for parameter in model.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
            loss = compiled_loss(model) if compile_blocks else lambda w, m=model: plain_loss(m, w)
            windows = self.text.windows(torch.arange(self.size.windows, device=self.device) * 999)
            with torch.no_grad():
                expected = float(plain_loss(model, windows))
            found = loss(windows)
            found.backward()
            value = float(found.detach())
            self.say(f"{mixer}: {parameters(model)} parameters, {value:.4f} = {expected:.4f} nats")
            if not abs(value - expected) < 0.01 * expected:
                raise RuntimeError(f"{mixer}: compiled loss {value}, uncompiled {expected}")
            losses[mixer] = loss
        return losses

    def untrained(self) -> float:
        """Score a twin before its training, when both are the same; how many seconds it takes."""
        begin = time.monotonic()
        model = self.fresh("rwkv", SEEDS[0])
        self.store("untrained", SEEDS[0], model)
        nats = held_out_nats(model, self.text.held_out, self.size.windows)
        seconds = time.monotonic() - begin
        self.say(f"untrained: {nats:.3f} nats; scoring takes {seconds:.1f} s")
        return seconds

    def steps_that_fit(self, losses: dict[str, Loss], scoring: float) -> int:
        """Steps of each training that fit into what is left of the time."""
        models = self.models.items()
        seconds = {m: step_seconds(model, losses[m], self.text, 30) for m, model in models}
        self.say(f"a step takes {seconds} s")
        self.facts["step_seconds"] = seconds
        left = self.seconds - (time.monotonic() - self.begin) - 2 * len(SEEDS) * (scoring + 3)
        steps = RESERVE * left / (len(SEEDS) * sum(seconds.values()))
        return max(EVALUATIONS, int(steps) // 10 * 10)

    def store(self, kind: str, seed: int, model: Twin) -> None:
        """Add a model's scores to the file of its kind."""
        path = self.out / f"scores_{kind}.npz"
        arrays = {}
        if path.exists():
            with np.load(path) as file:
                arrays = dict(file)
        found = score(model, self.sentences, self.device)
        arrays |= {f"{seed}/{name}": value for name, value in found.items()}
        np.savez_compressed(path, **arrays)

    def one(self, mixer: str, seed: int, loss: Loss, steps: int) -> None:
        """Train and score one twin."""
        model = self.models[mixer]
        model.load_state_dict(self.fresh(mixer, seed).state_dict())
        order = self.text.order(seed, steps)
        data = digest(self.text, order)
        self.say(f"{mixer}, seed {seed}: {steps} steps, data {data}")
        begin = time.monotonic()
        rows = train(model, loss, self.text, order)
        took = time.monotonic() - begin
        self.curves += [(mixer, seed, *row) for row in rows]
        nats = held_out_nats(model, self.text.held_out, self.size.windows)
        bits = nats / math.log(2) / self.text.bytes_a_token
        self.say(f"trained in {took:.1f} s: {nats:.4f} nats a token, {bits:.4f} bits a byte")
        fact = {"mixer": mixer, "seed": seed, "data": data, "train_seconds": round(took, 1)}
        self.facts["models"] += [fact | {"held_out_nats": nats, "bits_per_byte": bits}]
        self.store(mixer, seed, model)
        self.write()
        self.say("scored")

    def write(self) -> None:
        """run.json and curves.csv as they are now."""
        (self.out / "run.json").write_text(json.dumps(self.facts, indent=1))
        with (self.out / "curves.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("mixer", "seed", "step", "nats", "text"))
            writer.writerows((*row[:3], f"{row[3]:.5f}", row[4]) for row in self.curves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared", type=Path, help="folder of twins_prepare.py")
    parser.add_argument("out", type=Path)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int)
    budget.add_argument("--seconds", type=float, help="for everything")
    parser.add_argument("--tiny", action="store_true", help="a trial at sizes for a CPU")
    options = parser.parse_args()
    run = Run(options)
    losses = run.prepare(compile_blocks=run.device == "cuda")
    scoring = run.untrained()
    steps = options.steps or run.steps_that_fit(losses, scoring)
    run.facts |= {
        "steps": steps,
        "tokens": steps * run.size.windows * run.size.window,
        "epochs": steps * run.size.windows * run.size.window / len(run.text.tokens),
        "parameters": {mixer: parameters(model) for mixer, model in run.models.items()},
    }
    print(run.facts, flush=True)
    for seed in SEEDS:
        for mixer in MIXERS:
            run.one(mixer, seed, losses[mixer], steps)


if __name__ == "__main__":
    main()
