"""Trains the demo model: RWKV-6 on the prepared corpora, with a sentence objective besides.

    python tools/train_demo.py PREPARED OUT --steps 2000

Every step takes language modelling windows and sentence triples. The sentence objective works on
the mean of what enters block 0, the normalised embeddings, and has two parts. Contrast: of all
positives and thirds of the batch, an anchor shall be nearest to its own positive. Order: of two
pairs of sentences with different grades, the cosine of the higher one shall be higher. The blocks
learn language modelling, and to keep: what they add to a segment shall not turn its mean.
Leaves the moving average of the weights, its blocks in `run.safetensors` and embedding, last
norm and LM head in `run.ends.safetensors`, and `run.json`: losses, Spearman on the
development pairs where PREPARED's folder has dev.npz, held-out bits per byte. Seed and number of
steps fix the schedule and every draw. Assumes a GPU with nvcc, or a C compiler and patience.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from prepare_demo import load_prepared
from rwkv6_torch import RWKV6, Shape, pooled, wkv6, wkv6_plain
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

WIDTH = 40  # tokens of a sentence, at most
WINDOW = 256  # tokens of a language modelling sequence
PEAK, LAST = 2e-3, 1e-4  # learning rate
EMBEDDING_RATE = 0.03  # times the others': rows stay small, so that the first norm leaves them free
WARM_UP = 0.03  # share of the steps
AVERAGE = 0.995  # of the weights, a step
SEQUENCES, TRIPLES = 64, 768  # of a batch
SEGMENT = 32  # tokens whose mean the blocks shall keep; divides WINDOW
KEEP_WEIGHT = 0.5  # at 4 layer 11 keeps nearly all, for 0.05 bits a byte
TEMPERATURE = 0.05
THIRD_WEIGHT = 0.5  # of a third in the contrast; a positive of another anchor weighs 1
ORDER_WEIGHT, ORDER_TEMPERATURE = 3.0, 0.07
TIE = 0.1  # grades nearer than this are not ordered


class Data:
    """Training windows and triples on the device, drawn at random.

    Triples with a longer sentence than WIDTH tokens are left out: all batches have one shape, which
    is compiled once, and little of it is padding.
    """

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
        lengths = torch.from_numpy(prepared["lengths"].astype(np.int64)).to(device)
        ends = lengths.reshape(-1).cumsum(0).view(-1, 3)
        fit = lengths.amax(1) <= WIDTH
        self.lengths, ends = lengths[fit], ends[fit]
        self.grades = torch.from_numpy(prepared["grades"].astype(np.float32) / 100).to(device)[fit]
        place = (ends - self.lengths)[..., None] + torch.arange(WIDTH, device=device)
        inside = place < ends[..., None]
        self.triples = flat[place.clamp(max=len(flat) - 1)] * inside  # [n, 3, WIDTH]

    def windows(self, count: int) -> Tensor:
        """`count` windows of WINDOW + 1 ids from anywhere in the stream."""
        last = len(self.tokens) - WINDOW - 1
        start = torch.randint(last, (count, 1), generator=self.rng, device=self.device)
        return self.tokens[start + torch.arange(WINDOW + 1, device=self.device)].long()

    def sentences(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors, positives, thirds: ids [3 count, WIDTH], lengths [3 count]; grades [count]."""
        rows = torch.randint(len(self.triples), (count,), generator=self.rng, device=self.device)
        ids = self.triples[rows].transpose(0, 1).reshape(3 * count, WIDTH).long()
        return ids, self.lengths[rows].T.reshape(-1), self.grades[rows]


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


def language_losses(model: RWKV6, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of the next token, in nats; how far the blocks turn segments' means."""
    stream = model.stream(windows[:, :-1])
    logits = model.head(model.ln_out(stream[-1]))
    language = F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())
    first, *later = (unit_means(x) for x in stream)
    kept = [(x - first.detach()).square().sum(-1).mean() for x in later]
    return language, torch.stack(kept).mean()


def unit_means(x: Tensor) -> Tensor:
    """Directions of the means of all segments of SEGMENT tokens; x is [B, T, C]."""
    return F.normalize(x.float().unflatten(1, (-1, SEGMENT)).mean(2), dim=-1)


def contrast(anchor: Tensor, positive: Tensor, third: Tensor) -> Tensor:
    """Cross entropy of each anchor's own positive, and of each positive's own anchor."""
    own = torch.arange(len(anchor), device=anchor.device)
    weight = torch.ones(2 * len(anchor), device=anchor.device)
    weight[len(anchor) :] = THIRD_WEIGHT
    forth = anchor @ torch.cat([positive, third]).T / TEMPERATURE + weight.log()
    back = positive @ torch.cat([anchor, third]).T / TEMPERATURE + weight.log()
    return (F.cross_entropy(forth, own) + F.cross_entropy(back, own)) / 2


def order(units: tuple[Tensor, Tensor, Tensor], grades: Tensor) -> Tensor:
    """Pairwise logistic loss of cosines in the wrong order; a foreign sentence has grade 0."""
    anchor, positive, third = units
    partners = (positive, third, positive.roll(1, 0))
    cosines = torch.cat([(anchor * partner).sum(1) for partner in partners])
    grade = torch.cat([torch.ones_like(grades), grades, torch.zeros_like(grades)])
    higher = (grade[:, None] - grade[None] > TIE).float()
    wrong = F.softplus((cosines[None] - cosines[:, None]) / ORDER_TEMPERATURE)
    return (wrong * higher).sum() / higher.sum()


def sentence_losses(model: RWKV6, batch: tuple) -> tuple[Tensor, Tensor]:
    """Contrast and order over the batch, of the means of what enters block 0."""
    ids, lengths, grades = batch
    with torch.autocast(ids.device.type, enabled=False):
        units = F.normalize(pooled(model.entering(ids), lengths), dim=1).chunk(3)
        return contrast(*units), order(units, grades)


def optimizer_for(model: RWKV6) -> torch.optim.Optimizer:
    """AdamW; weight decay on the blocks' matrices and the head alone."""
    matrices, rest = [], []
    embeddings = list(model.embeddings.parameters())
    for name, parameter in model.named_parameters():
        is_matrix = parameter.squeeze().dim() > 1 and "time" not in name
        if not name.startswith("embeddings"):
            (matrices if is_matrix else rest).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": 0.1, "times": 1.0},
        {"params": rest, "weight_decay": 0.0, "times": 1.0},
        {"params": embeddings, "weight_decay": 0.0, "times": EMBEDDING_RATE},
    ]
    return torch.optim.AdamW(groups, lr=0, betas=(0.9, 0.99), fused=embeddings[0].is_cuda)


def rate(progress: float) -> float:
    """Learning rate at a share of the steps: linear warm-up, then a cosine."""
    if progress < WARM_UP:
        return PEAK * progress / WARM_UP
    phase = (progress - WARM_UP) / (1 - WARM_UP)
    return LAST + (PEAK - LAST) * 0.5 * (1 + math.cos(math.pi * min(phase, 1.0)))


def autocast(device: str) -> torch.autocast:
    """Matrix products in bfloat16."""
    return torch.autocast(device, torch.bfloat16)


def backward(model: RWKV6, data: Data) -> dict[str, Tensor]:
    """Gradients of one batch; its losses by name."""
    with autocast(data.device):
        language, kept = language_losses(model, data.windows(SEQUENCES))
        contrasted, ordered = sentence_losses(model, data.sentences(TRIPLES))
    (language + KEEP_WEIGHT * kept + contrasted + ORDER_WEIGHT * ordered).backward()
    return {"lm_nats": language, "keep": kept, "contrast": contrasted, "order": ordered}


def train(model: RWKV6, data: Data, steps: int, log: Callable, store: Callable) -> RWKV6:
    """Train; returns the moving average of the weights, handed to `store` on the way, too."""
    optimizer = optimizer_for(model)
    average = copy.deepcopy(model).requires_grad_(False)
    pairs = list(zip(average.parameters(), model.parameters(), strict=True))
    slow, fast = [a for a, _ in pairs], [b.data for _, b in pairs]
    begin = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["times"] * rate((step + 1) / steps)
        optimizer.zero_grad(set_to_none=True)
        losses = backward(model, data)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch._foreach_lerp_(slow, fast, 1 - min(AVERAGE, step / (step + 10)))
        if step % 100 == 0 or step == steps - 1:
            values = {name: round(loss.item(), 4) for name, loss in losses.items()}
            log({"step": step, "seconds": round(time.monotonic() - begin, 1)} | values)
        if step == int(0.6 * steps) or step == steps - 1:
            store(average)
    return average


def steps_within(seconds: float, model: RWKV6, data: Data) -> int:
    """How many steps the machine manages, in whole hundreds; gradients are thrown away."""
    begin = 0.0
    for trial in range(15):
        if trial == 5:
            float(model.head.weight.grad.sum())  # waits for the device
            begin = time.monotonic()
        backward(model, data)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    float(model.head.weight.grad.sum())
    model.zero_grad(set_to_none=True)
    return max(1, int(seconds / ((time.monotonic() - begin) / 10) / 100)) * 100


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


@torch.no_grad()
def development(model: RWKV6, path: Path, device: str) -> dict[str, list[float]]:
    """Spearman by set of development pairs: before block 0, then after every block."""
    scores = {}
    with np.load(path) as file:
        arrays = dict(file)
    for name in sorted({key.split("_")[0] for key in arrays}):
        lengths = arrays[f"{name}_lengths"].astype(np.int64)
        texts = np.split(arrays[f"{name}_ids"].astype(np.int64), lengths.cumsum()[:-1])
        layers = 1 + model.shape.num_hidden_layers
        units = torch.zeros(len(texts), layers, model.shape.hidden_size)
        by_length = np.argsort(lengths, kind="stable")
        for begin in range(0, len(texts), 1024):
            rows = by_length[begin : begin + 1024]
            ids = torch.zeros(len(rows), int(lengths[rows].max()), dtype=torch.long)
            for i, row in enumerate(rows):
                ids[i, : lengths[row]] = torch.from_numpy(texts[row])
            size = torch.from_numpy(lengths[rows]).to(device)
            with autocast(device), torch.compiler.set_stance("force_eager"):
                streams = model.stream(ids.to(device))
                means = torch.stack([pooled(stream, size) for stream in streams], 1)
            units[rows] = F.normalize(means.float(), dim=2).cpu()
        cosines = (units[::2] * units[1::2]).sum(2).numpy()
        label = arrays[f"{name}_labels"]
        scores[name] = [round(float(spearmanr(c, label).statistic), 4) for c in cosines.T]
    return scores


def save(model: RWKV6, out: Path) -> None:
    """The weights in two files: the blocks, and what stands before and behind them."""
    tensors = model.checkpoint()
    blocks = {key: tensors.pop(key) for key in list(tensors) if ".blocks." in key}
    save_file(blocks, out / "run.safetensors", {"format": "pt"})
    save_file(tensors, out / "run.ends.safetensors", {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared", type=Path, help="prepared.npz.xz of prepare_demo.py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seconds", type=float, help="as many steps as will take about so long")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps, seed = options.steps, options.seed
    prepared = load_prepared(options.prepared)
    torch.manual_seed(seed)
    model = RWKV6(Shape()).to(device)
    entries: list[dict[str, object]] = []

    def log(entry: dict[str, object]) -> None:
        print(entry, flush=True)
        entries.append(entry)
        (options.out / "run.json").write_text(json.dumps(entries))

    check_kernel(device)
    data = Data(prepared, device, seed)
    if device == "cuda":
        for block in model.blocks:
            block.compile(dynamic=False)
        begin = time.monotonic()
        backward(model, data)
        print(f"compiled in {time.monotonic() - begin:.1f} s", flush=True)
    if options.seconds:
        steps = steps_within(options.seconds, model, data)
    log({"steps": steps, "seed": seed, "torch": torch.__version__})
    model.zero_grad(set_to_none=True)
    data.rng.manual_seed(seed)  # what compiling and timing drew is drawn again

    average = train(model, data, steps, log, lambda weights: save(weights, options.out))
    if (dev := options.prepared.with_name("dev.npz")).exists():
        log({"development": development(average, dev, device)})
    log({"bits_per_byte": bits_per_byte(average, prepared, device)})


if __name__ == "__main__":
    main()
