"""Other programs on the same checkpoint, sentences and threads, for a ratio beside each figure.

    llama-cpp-python   GGUF files written here (F32, BF16, Q8_0; needs gguf), mean pooling, 32
                       ragged sequences in a batch; all blocks, as it cannot stop earlier
    rwkv               the official package, one sentence a call; all blocks and the head
    rwkv.cpp           likewise; its librwkv.so has to be on LD_LIBRARY_PATH. FP16 stands beside
                       bfloat16, which its files cannot hold

What is not installed is left out, saying so. Rescaling is off, so llama.cpp's rows can be compared
with ours: the cosine printed at the end shows that both computed the same thing.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import checkpoint
import numpy as np
from checkpoint import Size, floats

import rwkvsts

if TYPE_CHECKING:
    from cpu import Program

SEQUENCES = 32  # in one batch of llama.cpp's
NAMES = {
    "ln1": "attn_norm",
    "ln2": "attn_norm_2",
    "att.time_maa_x": "time_mix_lerp_x",
    "att.time_maa_w1": "time_mix_w1",
    "att.time_maa_w2": "time_mix_w2",
    "att.time_decay": "time_mix_decay",
    "att.time_decay_w1": "time_mix_decay_w1",
    "att.time_decay_w2": "time_mix_decay_w2",
    "att.time_faaaa": "time_mix_first",
    "att.ln_x": "time_mix_ln",
    "att.key": "time_mix_key",
    "att.value": "time_mix_value",
    "att.receptance": "time_mix_receptance",
    "att.gate": "time_mix_gate",
    "att.output": "time_mix_output",
    "ffn.time_maa_k": "channel_mix_lerp_k",
    "ffn.time_maa_r": "channel_mix_lerp_r",
    "ffn.key": "channel_mix_key",
    "ffn.value": "channel_mix_value",
    "ffn.receptance": "channel_mix_receptance",
}
OUTSIDE = {
    "emb": "token_embd",
    "head": "output",
    "ln_out": "output_norm",
    "blocks.0.ln0": "token_embd_norm",
}


def gguf_tensors(size: Size) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint in llama.cpp's names and orientations: low-rank factors transposed, five mixes
    stacked; matrices as bfloat16 bits, the rest float32."""
    mixes: dict[str, np.ndarray] = {}
    for name, bits in checkpoint.tensors(size):
        stem, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            stem, kind = name, "weight"
        if stem in OUTSIDE:
            yield f"{OUTSIDE[stem]}.{kind}", bits if bits.ndim == 2 else floats(bits)
            continue
        _, block, stem = stem.split(".", 2)
        if stem.startswith("att.time_maa_") and stem[-1] in "wkvrg":
            mixes[stem[-1]] = floats(bits).reshape(1, 1, -1)
            if len(mixes) == 5:
                yield (
                    f"blk.{block}.time_mix_lerp_fused.weight",
                    np.stack([mixes[j] for j in "wkvrg"]),
                )
                mixes.clear()
            continue
        if stem in ("att.time_maa_w1", "att.time_decay_w1", "att.time_decay_w2"):
            bits = np.ascontiguousarray(bits.T)
        elif stem == "att.time_maa_w2":
            bits = np.ascontiguousarray(bits.transpose(0, 2, 1))
        elif stem == "att.time_decay":
            bits = bits.ravel()
        matrix = stem.partition(".")[2] in ("key", "value", "receptance", "gate", "output")
        yield f"blk.{block}.{NAMES[stem]}.{kind}", bits if matrix else floats(bits)


def write_gguf(path: Path, size: Size, kind: str) -> None:
    import gguf

    if path.exists():
        return
    part = path.with_suffix(".part")
    w = gguf.GGUFWriter(part, "rwkv6")
    w.add_context_length(1 << 20)
    w.add_embedding_length(size.C)
    w.add_block_count(size.L)
    w.add_layer_norm_eps(1e-5)
    w.add_rescale_every_n_layers(0)
    w.add_wkv_head_size(size.N)
    w.add_time_mix_extra_dim(size.R)
    w.add_time_decay_extra_dim(size.D)
    w.add_feed_forward_length(size.F)
    w.add_head_count(0)
    w.add_tokenizer_model("no_vocab")
    w.add_vocab_size(size.V)
    write_tensors(w, gguf_tensors(size), kind)
    part.rename(path)


def write_tensors(w: Any, tensors: Iterator[tuple[str, np.ndarray]], kind: str) -> None:
    """Ends a GGUF file: its tensors, of which bfloat16 bits become `kind`, F32, BF16 or Q8_0."""
    import gguf

    for name, array in tensors:
        if array.dtype == np.uint16 and kind == "F32":
            array = floats(array)
        if array.dtype == np.uint16 and kind == "Q8_0":
            q8_0 = gguf.GGMLQuantizationType.Q8_0
            w.add_tensor(name, gguf.quants.quantize(floats(array), q8_0), raw_dtype=q8_0)
        elif array.dtype == np.uint16:
            bytes_ = array.view(np.uint8)
            w.add_tensor(name, bytes_, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            w.add_tensor(name, array)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def llama(path: Path, ids: list[list[int]], threads: int) -> dict[str, Any]:
    """Tokens per second of llama.cpp as an embedder, and its rows."""
    import llama_cpp
    from cpu import peak_rss

    model = llama_cpp.Llama(
        str(path),
        n_ctx=4096,
        n_batch=4096,
        n_ubatch=4096,
        n_seq_max=SEQUENCES,
        n_threads=threads,
        n_threads_batch=threads,
        embedding=True,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN,
        verbose=False,
    )
    batch = llama_cpp.llama_batch_init(4096, 0, 1)

    def encode(few: list[list[int]]) -> list[np.ndarray]:
        at = 0
        for s, sequence in enumerate(few):
            for position, token in enumerate(sequence):
                batch.token[at], batch.pos[at] = token, position
                batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, s, True
                at += 1
        batch.n_tokens = at
        memory = llama_cpp.llama_get_memory(model.ctx)
        llama_cpp.llama_memory_clear(memory, True)
        if llama_cpp.llama_decode(model.ctx, batch):
            raise RuntimeError("llama_decode failed")
        width = model.n_embd()
        rows = (llama_cpp.llama_get_embeddings_seq(model.ctx, s) for s in range(len(few)))
        return [np.array(row[:width], np.float32) for row in rows]

    encode(ids[:1])
    start = time.perf_counter()
    rows = [row for i in range(0, len(ids), SEQUENCES) for row in encode(ids[i : i + SEQUENCES])]
    took = time.perf_counter() - start
    pair = time.perf_counter()
    encode(ids[:2])
    return {
        "tokens/s": sum(map(len, ids)) / took,
        "pair": 1e3 * (time.perf_counter() - pair),
        "rss": peak_rss(),
        "rows": np.array(rows),
    }


def rwkv_pip(path: Path, dtype: str, ids: list[list[int]], threads: int) -> dict[str, Any]:
    """Tokens per second of the rwkv package, a sentence a call."""
    import os

    os.environ |= {"RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": "0"}
    import torch
    from cpu import peak_rss
    from rwkv.model import RWKV

    torch.set_num_threads(threads)
    kind = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    model = RWKV(str(path.with_suffix("")), strategy=f"cpu {kind}", verbose=False)
    model.forward(ids[0], None)
    start = time.perf_counter()
    for sequence in ids:
        model.forward(sequence, None)
    took = time.perf_counter() - start
    pair = time.perf_counter()
    model.forward(ids[0], None)
    model.forward(ids[1], None)
    return {
        "tokens/s": sum(map(len, ids)) / took,
        "pair": 1e3 * (time.perf_counter() - pair),
        "rss": peak_rss(),
    }


def write_pth(path: Path, size: Size) -> None:
    import torch

    if path.exists():
        return
    tensors = {
        name: torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
        for name, bits in checkpoint.tensors(size)
    }
    torch.save(tensors, path)


def write_rwkv_cpp(path: Path, size: Size, kind: str) -> None:
    """What rwkv.cpp's convert_pytorch_to_ggml.py makes: FP16 for matrices, or all FP32."""
    if path.exists():
        return
    part = path.with_suffix(".part")
    half = kind == "FP16"
    with part.open("wb") as file:
        file.write(struct.pack("=6i", 0x67676D66, 101, size.V, size.C, size.L, half))
        for name, bits in checkpoint.tensors(size):
            array = floats(bits)
            if ".time_" in name:
                array = array.squeeze()
            if "time_maa_w1" in name or "time_decay_w" in name:
                array = array.T
            elif "time_maa_w2" in name:
                array = array.transpose(0, 2, 1)
            elif "time_faaaa" in name or "time_decay" in name:
                array = array.reshape(size.C // size.N, size.N, 1)
            small = array.ndim == 1 or ".time_" in name
            array = np.ascontiguousarray(array, np.float16 if half and not small else np.float32)
            text = name.encode()
            file.write(struct.pack("=3i", array.ndim, len(text), array.dtype == np.float16))
            file.write(struct.pack(f"={array.ndim}i", *reversed(array.shape)) + text)
            file.write(array.data)
    part.rename(path)


def rwkv_cpp(path: Path, ids: list[list[int]], threads: int) -> dict[str, Any]:
    """Tokens per second of rwkv.cpp, a sentence a call, and some sentences' logits."""
    import ctypes

    from cpu import peak_rss

    try:
        library = ctypes.CDLL("librwkv.so")
    except OSError as error:
        raise ImportError(f"librwkv.so is not on LD_LIBRARY_PATH: {error}") from error
    library.rwkv_init_from_file.restype = ctypes.c_void_p
    library.rwkv_get_state_len.restype = ctypes.c_size_t
    library.rwkv_eval_sequence.restype = ctypes.c_bool
    context = ctypes.c_void_p(library.rwkv_init_from_file(str(path).encode(), threads, 0))
    if not context:
        raise RuntimeError(f"rwkv.cpp does not open {path}")
    state = np.empty(library.rwkv_get_state_len(context), np.float32)
    logits = np.empty(library.rwkv_get_n_vocab(context), np.float32)
    floats_of = ctypes.POINTER(ctypes.c_float)

    def encode(sequence: list[int]) -> np.ndarray:
        tokens = (ctypes.c_uint32 * len(sequence))(*sequence)
        to = [array.ctypes.data_as(floats_of) for array in (state, logits)]
        if not library.rwkv_eval_sequence(
            context, tokens, ctypes.c_size_t(len(sequence)), None, *to
        ):
            raise RuntimeError("rwkv_eval_sequence failed")
        return logits.copy()

    encode(ids[0])
    start = time.perf_counter()
    for sequence in ids:
        encode(sequence)
    took = time.perf_counter() - start
    pair = time.perf_counter()
    encode(ids[0])
    encode(ids[1])
    return {
        "tokens/s": sum(map(len, ids)) / took,
        "pair": 1e3 * (time.perf_counter() - pair),
        "rss": peak_rss(),
        "logits": np.array([encode(sequence) for sequence in ids[:4]]),
    }


def cosine_of_logits(path: Path, logits: np.ndarray, ids: list[list[int]]) -> float:
    """The least between a peer's logits after a sentence and ours in float32."""
    m = rwkvsts.RWKV6.from_pretrained(path, device="cpu", dtype="float32", tokenizer=None)
    ours = m.encode_ids(ids[: len(logits)], "final", "last") @ m.head().T
    sizes = np.linalg.norm(ours, axis=1) * np.linalg.norm(logits, axis=1)
    return float(((ours * logits).sum(1) / sizes).min())


def cosine(path: Path, rows: np.ndarray, ids: list[list[int]]) -> float:
    """The least between llama.cpp's rows and ours of the final layer."""
    m = rwkvsts.RWKV6.from_pretrained(path, device="cpu", dtype="float32", tokenizer=None)
    ours = m.encode_ids(ids, "final", normalize=True)
    return float((ours * rows / np.linalg.norm(rows, axis=1, keepdims=True)).sum(1).min())


def programs(size: Size, path: Path, dtype: str, count: int, threads: int) -> list[Program]:
    """Those that have this dtype, over all blocks; files are written at their first turn."""
    from cpu import Program, apart, sentences

    ids = sentences(count, size.V)
    kind = {"float32": "F32", "bfloat16": "BF16"}[dtype]

    def run_llama() -> dict[str, Any]:
        file = path.with_suffix(f".{kind}.gguf")
        write_gguf(file, size, kind)
        return apart(llama, file, ids, threads)

    def run_rwkv() -> dict[str, Any]:
        file = path.with_suffix(".pth")
        write_pth(file, size)
        return apart(rwkv_pip, file, dtype, ids, threads)

    half = {"float32": "FP32", "bfloat16": "FP16"}[dtype]

    def run_rwkv_cpp() -> dict[str, Any]:
        file = path.with_suffix(f".{half}.bin")
        write_rwkv_cpp(file, size, half)
        return apart(rwkv_cpp, file, ids, threads)

    return [
        Program(f"llama.cpp {kind}, {size.L} blocks", size.L, run_llama, True, "llama-cpp-python"),
        Program(f"rwkv {dtype}, {size.L} blocks", size.L, run_rwkv, True, "rwkv"),
        Program(f"rwkv.cpp {half}, {size.L} blocks", size.L, run_rwkv_cpp, True),
    ]


def compare(
    programs: list[Program], size: Size, path: Path, dtype: str, count: int, threads: int
) -> None:
    """The lowest cosine of rows that a peer returned to ours in float32."""
    from cpu import apart, sentences

    for program in programs:
        for what, measure in (("rows", cosine), ("logits", cosine_of_logits)):
            if program.results and what in program.results[0]:
                lowest = apart(measure, path, program.results[0][what], sentences(count, size.V))
                print(f"lowest cosine of {program.name} to ours in float32: {lowest:.5f}")
