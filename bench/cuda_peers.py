"""Other programs on the same GPU, weights and sentences, in the run that measures ours.

    flash-linear-attention   its RWKV6Model in bfloat16: packed with cu_seqlens, chunk mode, 16,384
                             tokens a call; and padded, sorted by length, 256 sentences a call
    rwkv                     the official package, "cuda fp16" and its kernel, a sentence a call

`bench/cuda.py --peers` calls it. What is not installed is left out, saying so. Both run the blocks
that ours run. Beside each figure stands the lowest cosine to our rows, which shows that the same
was computed: of every pooled layer for the first, of ln_out's rows for the second, whose head is
made an identity to give them. The second compiles for a minute when it is used first.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint import Size

Tensors = dict[str, np.ndarray]  # bfloat16 bits under BlinkDL's names
Ids = list[np.ndarray]
PACK, BATCH, SAMPLE = 16384, 256, 64  # tokens, sentences, sentences
FLA_MIXES = "rwkvg"  # in this order; ours is "wkvrg"
FLA_NAMES = {
    "ln1.weight": "attn_norm.weight",
    "ln1.bias": "attn_norm.bias",
    "ln2.weight": "ffn_norm.weight",
    "ln2.bias": "ffn_norm.bias",
    "att.time_maa_x": "attn.x_proj.0.mu",
    "att.time_decay": "attn.w_proj.linear.lora.2.bias",
    "att.time_faaaa": "attn.bonus",
    "att.receptance.weight": "attn.r_proj.linear.weight",
    "att.key.weight": "attn.k_proj.linear.weight",
    "att.value.weight": "attn.v_proj.linear.weight",
    "att.gate.weight": "attn.g_proj.linear.weight",
    "att.output.weight": "attn.o_proj.weight",
    "att.ln_x.weight": "attn.g_norm.weight",
    "att.ln_x.bias": "attn.g_norm.bias",
    "ffn.time_maa_k": "ffn.key.mu",
    "ffn.time_maa_r": "ffn.receptance.mu",
    "ffn.key.weight": "ffn.key.linear.weight",
    "ffn.receptance.weight": "ffn.receptance.linear.weight",
    "ffn.value.weight": "ffn.value.weight",
}


@dataclass
class Ours:
    """What a peer is held against."""

    seconds: Callable[[], float]  # of one more call for all sentences
    tokens: int  # of all sentences
    pair: float  # seconds
    rows: np.ndarray  # [S, layers, C]
    final: np.ndarray  # [SAMPLE, C]
    rates: list[float] = field(default_factory=list)  # tokens per second, of all turns
    peers: list[dict[str, Any]] = field(default_factory=list)  # rows for bench/table.py


def torch_array(bits: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(bits).view(np.int16)).view(torch.bfloat16)


def lowest_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Over the sentences; a column each for what else there is."""
    dots = np.einsum("s...c,s...c->s...", a, b, dtype=np.float64)
    return (dots / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min(0)


# ---- flash-linear-attention -------------------------------------------------------------------


@functools.cache
def tune_side_by_side() -> None:
    """Lets Triton compile all configurations of a kernel at once, and time each for some 30 ms.

    One after the other, as it does by itself, the hundreds of configurations that
    flash-linear-attention's kernels have keep a GPU waiting for minutes. All are still tried.
    """
    from triton import AsyncCompileMode
    from triton.runtime.autotuner import Autotuner
    from triton.testing import do_bench

    pool, prune = ThreadPoolExecutor(os.cpu_count()), Autotuner.prune_configs

    def compile_first(self: Any, how: dict[str, Any]) -> Any:
        configs = prune(self, how)
        with AsyncCompileMode(pool, ignore_errors=True):
            for config in configs:
                only = {**how, **config.all_kwargs(), "warmup": True}
                self.fn.run(*self.nargs.values(), **only)
        return configs

    Autotuner.prune_configs = compile_first
    Autotuner.do_bench = functools.partial(do_bench, warmup=5, rep=20)


def fla_tensors(tensors: Tensors, size: Size) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint in its names: low ranks as Linear weights, five mixes stacked in its order."""
    order = ["wkvrg".index(mix) for mix in FLA_MIXES]
    yield "embeddings.weight", tensors["emb.weight"]
    for part in ("weight", "bias"):
        yield f"norm.{part}", tensors[f"ln_out.{part}"]
        yield f"layers.0.pre_norm.{part}", tensors[f"blocks.0.ln0.{part}"]
    for i in range(size.L):
        block = f"blocks.{i}."
        for name, theirs in FLA_NAMES.items():
            array = tensors[block + name]
            yield f"layers.{i}.{theirs}", array.ravel() if array.ndim == 3 else array
        attn = f"layers.{i}.attn."
        mixes = [tensors[f"{block}att.time_maa_{mix}"].ravel() for mix in FLA_MIXES]
        down = tensors[f"{block}att.time_maa_w1"].reshape(size.C, 5, size.R)[:, order]
        up = tensors[f"{block}att.time_maa_w2"][order]  # [5, R, C]
        yield f"{attn}x_bias", np.stack(mixes)
        yield f"{attn}x_proj.0.linear.weight", down.reshape(size.C, -1).T
        yield f"{attn}x_proj.2.weight", up.transpose(2, 0, 1).reshape(size.C, -1)
        yield f"{attn}w_proj.linear.lora.0.weight", tensors[f"{block}att.time_decay_w1"].T
        yield f"{attn}w_proj.linear.lora.2.weight", tensors[f"{block}att.time_decay_w2"].T


def fla_model(tensors: Tensors, size: Size, device: str = "cuda") -> Any:
    """RWKV6Model with these weights. Its GroupNorm takes the LayerNorms' eps: set right here."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fla.models.rwkv6 import RWKV6Config, RWKV6Model

        config = RWKV6Config(
            hidden_size=size.C,
            expand_k=1.0,
            intermediate_size=size.F,
            num_hidden_layers=size.L,
            num_heads=size.C // size.N,
            proj_low_rank_dim=size.R,
            gate_low_rank_dim=size.D,
            vocab_size=size.V,
            use_cache=False,
        )
        with torch.device("meta"):
            model = RWKV6Model(config)
    model = model.to(torch.bfloat16).to_empty(device=device).eval()
    state = model.state_dict()
    for name, bits in fla_tensors(tensors, size):
        state.pop(name).copy_(torch_array(bits))
    assert not state, f"not in our checkpoint: {', '.join(state)}"
    for layer in model.layers:
        layer.attn.g_norm.eps = 64e-5
    return model


class Fla:
    """Runs the model; the layers asked for are pooled as they leave their block."""

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        self.model = model
        self.pooled: list[Any] = []
        self.pool: Callable[[Any], Any] = lambda hidden: hidden
        for layer in layers:
            model.layers[layer].register_forward_hook(self._keep)

    def _keep(self, _module: Any, _inputs: Any, outputs: Any) -> None:
        self.pooled.append(self.pool(outputs[0]))

    def _run(self, ids: Any, pool: Callable[[Any], Any], **how: Any) -> Any:
        """[sentences, layers, C] on the device"""
        import torch

        self.pooled, self.pool = [], pool
        with torch.no_grad():
            self.model(input_ids=ids, use_cache=False, **how)
        return torch.stack(self.pooled, 1)

    def packed(self, ids: Ids) -> Any:
        import torch

        lengths = torch.tensor([len(one) for one in ids])
        start = torch.zeros(len(ids) + 1, dtype=torch.int64)
        start[1:] = lengths.cumsum(0)
        device = self.model.device
        owner = torch.repeat_interleave(torch.arange(len(ids)), lengths).to(device)
        count = lengths.to(device)[:, None]

        def pool(hidden: Any) -> Any:
            sums = torch.zeros(len(ids), hidden.shape[-1], device=device)
            return sums.index_add_(0, owner, hidden[0].float()) / count

        flat = torch.from_numpy(np.concatenate(ids)).long().to(device)
        return self._run(flat[None], pool, cu_seqlens=start.to(device))

    def padded(self, ids: Ids) -> Any:
        """Padding on the right: nothing flows backwards, so no mask is needed but in the mean."""
        import torch

        lengths = np.array([len(one) for one in ids])
        table = np.zeros((len(ids), lengths.max()), np.int64)
        for row, one in zip(table, ids, strict=True):
            row[: len(one)] = one
        weight = (np.arange(table.shape[1]) < lengths[:, None]) / lengths[:, None]
        device = self.model.device
        share = torch.from_numpy(weight.astype(np.float32)).to(device)
        return self._run(
            torch.from_numpy(table).to(device),
            lambda hidden: torch.einsum("btc,bt->bc", hidden.float(), share),
        )


def packs(ids: Ids) -> Iterator[list[int]]:
    """Indices of the sentences of each call."""
    call, tokens = [], 0
    for i, one in enumerate(ids):
        if tokens + len(one) > PACK:
            yield call
            call, tokens = [], 0
        call.append(i)
        tokens += len(one)
    yield call


def batches(ids: Ids) -> Iterator[list[int]]:
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for i in range(0, len(order), BATCH):
        yield order[i : i + BATCH]


def measure_fla(
    name: str, run: Callable[[Ids], Any], calls: list[list[int]], ids: Ids, ours: Ours, repeats: int
) -> None:
    """A line: the first round warms up, and what it tunes and compiles is not counted."""
    import torch

    host = torch.empty(ours.rows.shape, pin_memory=torch.cuda.is_available())
    order = [i for call in calls for i in call]

    def every() -> None:
        at = 0
        for call in calls:
            host[at : at + len(call)].copy_(run([ids[i] for i in call]), non_blocking=True)
            at += len(call)
        torch.cuda.synchronize()

    start = time.perf_counter()
    every()
    warm = time.perf_counter() - start
    torch.cuda.reset_peak_memory_stats()
    rates = in_turns(every, sum(map(len, ids)), ours, repeats)
    peak = torch.cuda.max_memory_allocated()
    pairs = (ids[i : i + 2] for i in itertools.count(0, 2))
    pair = seconds(lambda: run(next(pairs)).cpu(), 20)
    rows = np.empty_like(ours.rows)
    rows[order] = host.numpy()
    line(name, rates, pair, peak, ours)
    layers = " ".join(f"{c:.5f}" for c in lowest_cosine(rows, ours.rows))
    print(f"    lowest cosine to our rows, by layer: {layers}; tuned in {warm:.0f} s", flush=True)


def peers_fla(
    tensors: Tensors, size: Size, layers: Sequence[int], ids: Ids, ours: Ours, repeats: int
) -> None:
    import fla

    tune_side_by_side()
    runner = Fla(fla_model(tensors, size), layers)
    name = f"flash-linear-attention {fla.__version__}"
    how = ids, ours, repeats
    measure_fla(f"{name}, packed", runner.packed, list(packs(ids)), *how)
    measure_fla(f"{name}, padded", runner.padded, list(batches(ids)), *how)


# ---- rwkv -------------------------------------------------------------------------------------


def rwkv_model(tensors: Tensors, size: Size, strategy: str) -> Any:
    """The package reads a file. Its head becomes an identity: it returns ln_out's rows."""
    cuda = strategy.startswith("cuda")
    os.environ |= {"RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "1" if cuda else "0", "RWKV_V7_ON": "0"}
    import torch
    from rwkv.model import RWKV

    state = {name: torch_array(bits) for name, bits in tensors.items()}
    state["head.weight"] = torch.eye(size.C, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        torch.save(state, path.with_suffix(".pth"))
        return RWKV(str(path), strategy=strategy, verbose=False)


def peers_rwkv(tensors: Tensors, size: Size, ids: Ids, ours: Ours) -> None:
    from importlib.metadata import version

    import torch

    model = rwkv_model(tensors, size, "cuda fp16")
    few = [one.tolist() for one in ids[:SAMPLE]]

    def encode(one: list[int]) -> np.ndarray:
        return model.forward(one, None, full_output=True)[0].mean(0).cpu().numpy()

    rows = np.stack([encode(one) for one in few])  # and warm
    torch.cuda.reset_peak_memory_stats()
    tokens = sum(map(len, few))
    rates = in_turns(lambda: [encode(one) for one in few], tokens, ours, 3)
    peak = torch.cuda.max_memory_allocated()
    pair = seconds(lambda: [encode(one) for one in few[:2]], 10)
    name = f"rwkv {version('rwkv')}, a sentence a call ({len(few)} of them)"
    line(name, rates, pair, peak, ours, "float16")
    print(f"    lowest cosine to our rows of ln_out: {lowest_cosine(rows, ours.final):.5f}")


# ---- all --------------------------------------------------------------------------------------


def seconds(what: Callable[[], Any], repeats: int) -> float:
    """Median; the first is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        what()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def in_turns(theirs: Callable[[], Any], tokens: int, ours: Ours, repeats: int) -> list[float]:
    """Tokens per second of each of their turns; ours go to `ours.rates`, the latest last."""
    ours.seconds()  # neither's first turn counts, and theirs has been
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        theirs()
        rates.append(tokens / (time.perf_counter() - start))
        ours.rates.append(ours.tokens / ours.seconds())
    return rates


def line(
    name: str, rates: list[float], pair: float, peak: int, ours: Ours, dtype: str = "bfloat16"
) -> None:
    """A line of a peer, and its row; its rate is held against ours of the same turns."""
    row = {"program": name, "dtype": dtype, "tokens/s": rates, "pair ms": [1e3 * pair]}
    ours.peers.append({**row, "peak bytes": peak})
    rate, own = statistics.median(rates), statistics.median(ours.rates[-len(rates) :])
    print(
        f"{name}: {rate:,.0f} tokens/s, we in turns {own:,.0f}, {own / rate:.2f} times that; a pair"
        f" {1e3 * pair:.1f} ms, we {pair / ours.pair:.1f} times faster; peak {peak / 1e9:.2f} GB",
        flush=True,
    )


def measure(
    tensors: Tensors, size: Size, layers: Sequence[int], ids: Ids, ours: Ours, repeats: int = 7
) -> None:
    """Every peer that is here, one after the other, its memory given back before the next."""
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [place for place in sys.path if place != here]  # our cuda.py is not their `cuda`
    for name, run in (
        ("flash-linear-attention", lambda: peers_fla(tensors, size, layers, ids, ours, repeats)),
        ("rwkv", lambda: peers_rwkv(tensors, size, ids, ours)),
    ):
        try:
            import torch

            run()
            gc.collect()
            torch.cuda.empty_cache()
        except Exception as error:  # theirs, and no reason to lose the next one's figures
            kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
            print(f"{name}: left out, {kind}{error}", flush=True)
