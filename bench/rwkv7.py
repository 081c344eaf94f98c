"""How fast and how right RWKV-7 runs here, on a GPU or a CPU: all blocks, random weights.

    python bench/rwkv7.py [--device cuda] [--size 1b5,0b1] [--check] [--peers] [--texts 2816]

For sentences of MRPC's lengths and for texts of 512 tokens, prints tokens per second end to end
(ids in, mean rows of "final" out), the best of --turns and their median, and one text of 20 tokens;
on a GPU for texts of 1,024, 4,096 and 65,536 tokens, too, without the others.
--check compares three sentences with the float64 reference of tests/ at every layer, and bits over
random batchings. --peers adds, on the same weights and texts, in turn with ours: on a GPU
flash-linear-attention's RWKV7Model, packed; on a CPU llama.cpp in the same dtype (BF16, F32),
pooled means of 32 sequences at a time. What is not installed is left out, saying so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cpu_peers
import numpy as np
from check import against_float64
from checkpoint import floats, mrpc_lengths, noise
from cuda_peers import packs, torch_array, tune_side_by_side

import rwkvsts
from rwkvsts import _core
from rwkvsts.device import choose, cuda_library, threads_here
from rwkvsts.opening import Opened

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

Ids = list[np.ndarray]
Run = Callable[[Ids], tuple[np.ndarray, float]]  # rows, and the seconds that they took
Tensors = dict[str, np.ndarray]  # bfloat16 bits under BlinkDL's names
RANKS = "wavg"


@dataclass(frozen=True)
class Size:
    """L blocks, C embedding, ranks of w, a, v and g; the feed-forward is 4 C wide, heads are 64."""

    L: int
    C: int
    ranks: tuple[int, int, int, int]
    V: int = 65536
    N: int = 64

    @property
    def flop(self) -> int:
        """Floating-point operations that the products of all blocks need for a token."""
        unused = 4 * self.ranks[2] * self.C  # block 0 mixes no v
        return self.L * (24 * self.C * self.C + 4 * sum(self.ranks) * self.C) - unused


SIZES = {
    "0b1": Size(12, 768, (64, 64, 32, 128)),
    "0b4": Size(24, 1024, (64, 64, 32, 128)),
    "1b5": Size(24, 2048, (96, 96, 64, 256)),
}


def shapes_of_block(s: Size) -> dict[str, tuple[tuple[int, ...], float, float]]:
    """Name: shape, scale, mean. Scales keep the stream's size as training does."""
    flat, square, wide, F = (1, 1, s.C), (s.C, s.C), s.C**-0.5, 4 * s.C
    block = {
        f"{n}.{part}": ((s.C,), 0.1, float(part == "weight"))
        for n in ("ln1", "ln2", "att.ln_x")
        for part in ("weight", "bias")
    }
    block |= {f"att.x_{j}": (flat, 0.3, 0.5) for j in "rwkvag"} | {"ffn.x_k": (flat, 0.3, 0.5)}
    for j, R in zip(RANKS, s.ranks, strict=True):
        block |= {f"att.{j}1": ((s.C, R), wide, 0.0), f"att.{j}2": ((R, s.C), 0.5 * R**-0.5, 0.0)}
        if j != "g":
            block[f"att.{j}0"] = (flat, 1.0, -1.0)
    block |= {"att.k_k": (flat, 0.1, 0.85), "att.k_a": (flat, 0.1, 1.0)}
    block["att.r_k"] = ((s.C // s.N, s.N), 0.1, 0.0)
    block |= {f"att.{n}.weight": (square, wide, 0.0) for n in ("receptance", "key", "value")}
    block["att.output.weight"] = (square, wide, 0.0)
    block["ffn.key.weight"] = ((F, s.C), wide, 0.0)
    block["ffn.value.weight"] = ((s.C, F), 0.5 * F**-0.5, 0.0)
    return block


def make_tensors(s: Size) -> Tensors:
    """One block's numbers serve all blocks, so that a large model is made in seconds."""
    rng = np.random.default_rng(0)
    made = {"emb.weight": noise(rng, (s.V, s.C), 0.1, 0.0)}
    for name in ("blocks.0.ln0", "ln_out"):
        made[f"{name}.weight"] = noise(rng, (s.C,), 0.1, 1.0)
        made[f"{name}.bias"] = noise(rng, (s.C,), 0.1, 0.0)
    block = {name: noise(rng, *how) for name, how in shapes_of_block(s).items()}
    for i in range(s.L):
        mine = (n for n in block if i or n not in ("att.v0", "att.v1", "att.v2"))
        made |= {f"blocks.{i}.{n}": block[n] for n in mine}
    return made


def texts(count: int, vocabulary: int) -> dict[str, Ids]:
    """Random ids: sentences with MRPC's lengths, and texts of 512 tokens."""
    rng = np.random.default_rng(0)
    lengths = mrpc_lengths(rng, count)
    kinds = {"MRPC's lengths": lengths, "texts of 512": [512] * max(1, count * 27 // 512)}
    return {
        name: [rng.integers(1, vocabulary, n).astype(np.int32) for n in some]
        for name, some in kinds.items()
    }


def long_texts(vocabulary: int) -> dict[str, Ids]:
    rng = np.random.default_rng(1)
    return {
        f"texts of {n:,}": [rng.integers(1, vocabulary, n).astype(np.int32) for _ in range(count)]
        for count, n in ((128, 1024), (32, 4096), (2, 65536))
    }


def check(m: rwkvsts.RWKV7, tensors: Tensors, ids: Ids) -> None:
    """Every layer of a few sentences against float64; bits over random batchings."""
    against_float64(m, tensors, [one[:24] for one in ids[:3]])
    rng = np.random.default_rng(0)
    right, different = m.encode_ids(ids, "final"), 0
    tries = (60, 300, 1500, 5000, None)
    for batch_tokens in tries:
        order = rng.permutation(len(ids))
        found = m.encode_ids([ids[i] for i in order], "final", batch_tokens=batch_tokens)
        different += found.tobytes() != right[order].tobytes()
    singles = range(0, len(ids), 1 + len(ids) // 40)
    different += sum(
        m.encode_ids([ids[i]], "final")[0].tobytes() != right[i].tobytes() for i in singles
    )
    print(f"bits: {different} of {len(tries) + len(singles)} runs differ", flush=True)


# ---- others -------------------------------------------------------------------------------------


def fla(tensors: Tensors, s: Size) -> Callable[[Ids], np.ndarray]:
    """flash-linear-attention's RWKV7Model in bfloat16, several texts packed in a call."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fla.models.rwkv7 import RWKV7Config, RWKV7Model, modeling_rwkv7
    from tinymodel7 import fla_names

    tune_side_by_side()
    for part in (modeling_rwkv7.RWKV7Attention, modeling_rwkv7.RWKV7FeedForward):
        part._initialize_weights = lambda *_: None  # minutes of random matrices, to be replaced

    w, a, v, g = s.ranks
    config = RWKV7Config(
        hidden_size=s.C,
        intermediate_size=4 * s.C,
        num_hidden_layers=s.L,
        head_dim=s.N,
        decay_low_rank_dim=w,
        a_low_rank_dim=a,
        v_low_rank_dim=v,
        gate_low_rank_dim=g,
        vocab_size=s.V,
        use_cache=False,
    )
    with torch.device("meta"):
        model = RWKV7Model(config)
    model = model.to(torch.bfloat16).to_empty(device="cuda").eval()
    state = model.state_dict()
    for name, bits in fla_names(tensors).items():
        target = state.pop(name.removeprefix("model."))
        target.copy_(torch_array(bits).view(target.shape))
    assert not state, f"not in our checkpoint: {', '.join(state)}"

    def run(ids: Ids) -> np.ndarray:
        rows = []
        for call in ([ids[i] for i in places] for places in packs(ids)):
            lengths = torch.tensor([len(one) for one in call], device="cuda")
            start = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
            flat = torch.from_numpy(np.concatenate(call)).long().cuda()
            with torch.no_grad():
                hidden = model(flat[None], use_cache=False, cu_seqlens=start).last_hidden_state[0]
            owner = torch.repeat_interleave(torch.arange(len(call), device="cuda"), lengths)
            sums = torch.zeros(len(call), s.C, device="cuda").index_add_(0, owner, hidden.float())
            rows.append((sums / lengths[:, None]).cpu().numpy())
        return np.concatenate(rows)

    return run


LLAMA_NAMES = {
    "ln1": "attn_norm",
    "ln2": "attn_norm_2",
    "att.ln_x": "time_mix_ln",
    "att.receptance": "time_mix_receptance",
    "att.key": "time_mix_key",
    "att.value": "time_mix_value",
    "att.output": "time_mix_output",
    "att.k_k": "time_mix_k_k",
    "att.k_a": "time_mix_k_a",
    "att.r_k": "time_mix_r_k",
    "ffn.x_k": "channel_mix_lerp_k",
    "ffn.key": "channel_mix_key",
    "ffn.value": "channel_mix_value",
    **{f"att.{j}{n}": f"time_mix_{j}{n}" for j in RANKS for n in (0, 1, 2)},
}
LLAMA_OUTSIDE = {"emb": "token_embd", "ln_out": "output_norm", "blocks.0.ln0": "token_embd_norm"}


def llama_tensors(tensors: Tensors, s: Size) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint in llama.cpp's names: low ranks transposed, six mixes stacked."""
    yield "output.weight", tensors["emb.weight"]
    for name, bits in tensors.items():
        stem, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            stem, kind = name, "weight"
        if stem in LLAMA_OUTSIDE:
            yield f"{LLAMA_OUTSIDE[stem]}.{kind}", bits if bits.ndim == 2 else floats(bits)
            continue
        _, block, stem = stem.split(".", 2)
        if stem.startswith("att.x_"):
            continue
        low = stem[-1] in "12" and stem[-2] in RANKS
        bits = np.ascontiguousarray(bits.T) if low else bits
        matrix = kind == "weight" and bits.ndim == 2 and not low and stem != "att.r_k"
        flat = bits if bits.ndim == 2 and stem != "att.r_k" else bits.ravel()
        yield f"blk.{block}.{LLAMA_NAMES[stem]}.{kind}", flat if matrix else floats(flat)
        if block == "0" and stem in ("att.a0", "att.a1", "att.a2"):  # wanted, and not used
            yield f"blk.0.time_mix_v{stem[-1]}.weight", floats(flat)
    for i in range(s.L):
        mixes = [floats(tensors[f"blocks.{i}.att.x_{j}"]).reshape(1, 1, -1) for j in "rwkvag"]
        yield f"blk.{i}.time_mix_lerp_fused.weight", np.stack(mixes)


def write_gguf(path: Path, tensors: Tensors, s: Size, kind: str) -> None:
    import gguf

    w = gguf.GGUFWriter(path, "rwkv7")
    w.add_context_length(1 << 20)
    w.add_embedding_length(s.C)
    w.add_block_count(s.L)
    w.add_layer_norm_eps(1e-5)
    w.add_wkv_head_size(s.N)
    decay, rate, value, gate = s.ranks
    w.add_decay_lora_rank(decay)
    w.add_iclr_lora_rank(rate)
    w.add_value_residual_mix_lora_rank(value)
    w.add_gate_lora_rank(gate)
    w.add_feed_forward_length(4 * s.C)
    w.add_head_count(0)
    w.add_tokenizer_model("no_vocab")
    w.add_vocab_size(s.V)
    cpu_peers.write_tensors(w, llama_tensors(tensors, s), kind)


def llama(tensors: Tensors, s: Size, dtype: str, threads: int) -> Run:
    """llama.cpp as an embedder, as cpu_peers.py runs it for RWKV-6; opening does not count."""
    kind = "BF16" if dtype == "bfloat16" else "F32"
    path = Path(tempfile.mkdtemp()) / f"rwkv7.{kind}.gguf"
    write_gguf(path, tensors, s, kind)

    def run(ids: Ids) -> tuple[np.ndarray, float]:
        found = cpu_peers.llama(path, [one.tolist() for one in ids], threads)
        return found["rows"], sum(map(len, ids)) / found["tokens/s"]

    return run


# ---- the run ------------------------------------------------------------------------------------


def timed(run: Callable[[Ids], np.ndarray]) -> Run:
    def both(ids: Ids) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        rows = run(ids)
        return rows, time.perf_counter() - start

    return both


def measure(programs: dict[str, Run], ids: Ids, flop: int, turns: int) -> None:
    """All programs in turn; the first turn warms up and does not count."""
    tokens, times = sum(map(len, ids)), {name: [] for name in programs}
    for turn in range(turns + 1):
        for name, run in programs.items():
            _, took = run(ids)
            if turn:
                times[name].append(took)
    for name, all_times in times.items():
        best, median = tokens / min(all_times), tokens / statistics.median(all_times)
        rate = f"{best:,.0f} tokens/s, median {median:,.0f}, {best * flop / 1e12:.2f} TFLOP/s"
        print(f"    {name}: {rate}", flush=True)
    ours, *others = (programs[name](ids[:64])[0] for name in programs)
    for name, rows in zip(list(programs)[1:], others, strict=True):
        dots = (ours * rows).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(rows, axis=1)
        print(f"    lowest cosine of {name} to ours: {dots.min():.5f}", flush=True)


def open_model(tensors: Tensors, device: str, dtype: str, threads: int | None) -> rwkvsts.RWKV7:
    """From memory: a file of the larger sizes would take longer than the run."""
    choice = choose(device, dtype)
    cuda = choice.ordinal is not None
    core = _core.Model(
        [(name, a.shape) for name, a in tensors.items()],
        dtype=choice.dtype,
        threads=threads or threads_here(),
        cuda=cuda,
        library=cuda_library() if cuda else None,
    )
    for name, bits in tensors.items():
        if core.wants(name):
            core.put(name, bits, "bfloat16")
    core.seal()
    return rwkvsts.RWKV7(Opened(core, None, choice.dtype, core.config["n_layer"], None))


def programs_of(
    m: rwkvsts.RWKV7, tensors: Tensors, size: Size, args: argparse.Namespace
) -> dict[str, Run]:
    """Ours first, then what is installed of the others."""
    programs = {"rwkvsts": timed(lambda ids: m.encode_ids(ids, "final", show_progress=False))}
    if not args.peers:
        return programs
    cuda = m.device.startswith("cuda")
    peer = "flash-linear-attention" if cuda else "llama.cpp"
    try:
        programs[peer] = (
            timed(fla(tensors, size))
            if cuda
            else llama(tensors, size, m.dtype, args.threads or threads_here())
        )
    except ImportError as error:
        print(f"{peer}: left out, {error}")
    return programs


def run(name: str, args: argparse.Namespace) -> None:
    """One size."""
    size = SIZES[name]
    tensors = make_tensors(size)
    start = time.perf_counter()
    m = open_model(tensors, args.device, args.dtype, args.threads)
    took = time.perf_counter() - start
    print(f"\nRWKV-7 {name}, {size.L} blocks of {size.C}; {m.device}, {m.dtype}; open {took:.1f} s")
    programs = programs_of(m, tensors, size, args)
    kinds = texts(args.texts, size.V)
    for kind, ids in kinds.items():
        print(f"  {kind}: {len(ids)} texts, {sum(map(len, ids)):,} tokens", flush=True)
        measure(programs, ids, size.flop, args.turns)
    for kind, ids in long_texts(size.V).items() if m.device.startswith("cuda") else ():
        print(f"  {kind}: {len(ids)} texts", flush=True)
        measure({"rwkvsts": programs["rwkvsts"]}, ids, size.flop, args.turns)
    one = [np.arange(1, 21, dtype=np.int32)]
    alone = [programs["rwkvsts"](one)[1] for _ in range(30)]
    print(f"  one text of 20 tokens: {1e3 * statistics.median(alone[10:]):.2f} ms")
    print("  memory:", {what: f"{n / 1e9:.3f} GB" for what, n in m.memory().items()}, flush=True)
    if args.check:
        check(m, tensors, next(iter(kinds.values()))[:400])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--size", default="0b1", help=", ".join(SIZES))
    parser.add_argument("--texts", type=int, default=2816, help="sentences; fewer for a CPU")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--peers", action="store_true")
    args = parser.parse_args()
    for name in args.size.split(","):
        run(name, args)


if __name__ == "__main__":
    main()
