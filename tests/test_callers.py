"""What callers do to the core while it works: processor modes, threads, forks, shared memory."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makecheckpoint import safetensors_bytes
from tinymodel import load, random_ids, random_weights

from rwkvsts import RWKV, CheckpointError, State, _core
from rwkvsts.files.checkpoint import Checkpoint

C = ctypes.CDLL(None)
X86 = platform.machine() == "x86_64"
MXCSR = 28  # where glibc's fenv_t keeps it on x86-64
MODES = {"down": 0x2000, "up": 0x4000, "to zero": 0x6000, "flush to zero": 0x8040}
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the core runs on Linux")


@contextmanager
def processor(mode: int) -> Iterator[Callable[[], int]]:
    """This thread with another rounding, as a library may leave it; gives a look at the mode."""
    before, after = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)

    def look() -> int:
        C.fegetenv(after)
        return int.from_bytes(after.raw[MXCSR : MXCSR + 4], "little") & 0xE040

    C.fegetenv(before)
    changed = bytearray(before.raw)
    csr = int.from_bytes(changed[MXCSR : MXCSR + 4], "little") & ~0xE040 | mode
    changed[MXCSR : MXCSR + 4] = csr.to_bytes(4, "little")
    C.fesetenv((ctypes.c_char * 64).from_buffer(changed))
    try:
        yield look
    finally:
        C.fesetenv(before)


@pytest.mark.skipif(not X86, reason="sets the modes of an x86-64 processor")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_processor_change_no_bit(tmp_path: Path, mode: str, dtype: str) -> None:
    """For one thread and two, sessions made before and models packed under the mode; it is kept."""
    weights, ids = random_weights(L=2), random_ids(3, [9, 40, 1])
    models = [load(tmp_path, weights, threads=n, dtype=dtype) for n in (1, 2)]
    expected = models[0].encode_ids(ids, layers=[0, 1, "final"]).tobytes()
    state = models[0].state([1, 2, 3])
    with processor(MODES[mode]) as look:
        models.append(load(tmp_path, weights, threads=2, dtype=dtype))
        found = [m.encode_ids(ids, layers=[0, 1, "final"]).tobytes() for m in models * 2]
        states = [m.state([1, 2, 3]) for m in models]
        kept = look()
    assert found == [expected] * 6
    assert kept == MODES[mode]
    assert [[a.tobytes() for a in s] for s in states] == [[a.tobytes() for a in state]] * 3


@pytest.mark.skipif(not X86, reason="sets the modes of an x86-64 processor")
@pytest.mark.parametrize("mode", MODES)
def test_nor_do_they_change_what_numpy_makes_of_rows(tmp_path: Path, mode: str) -> None:
    m = load(tmp_path, random_weights(L=2, V=256), tokenizer="bytes")
    texts = [f"text {i}" * (1 + i % 3) for i in range(20)]

    def everything() -> list[bytes]:
        how: dict[str, Any] = {"normalize": True, "skip_first": True}
        arrays = [m.encode(texts, [0, 1, "final"], p, **how) for p in m.poolings]
        arrays.append(m.branch(texts, [" is", " was"], normalize=True))
        arrays += [m.encode_states(texts, width=w, normalize=True) for w in (50, None)]
        return [array.tobytes() for array in [*arrays, m.norms(texts)]]

    expected = everything()
    with processor(MODES[mode]) as look:
        assert everything() == expected
        assert look() == MODES[mode]
        with pytest.raises(ZeroDivisionError):
            _core.in_default_floats(lambda: 1 // 0)
        assert look() == MODES[mode]


@pytest.mark.skipif(not X86, reason="sets the modes of an x86-64 processor")
def test_a_callback_finds_its_own_mode_and_may_change_it(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(L=2, C=128, F=512), threads=1)
    ids = random_ids(1, [400] * 100)
    expected = m.encode_ids(ids, layers=1).tobytes()
    seen = []
    with processor(MODES["down"]) as look:

        def progress(_: int, __: int) -> None:
            seen.append(look())
            C.fesetround(0x400 if len(seen) % 2 else 0x800)  # down, up

        assert run(m, ids, progress).tobytes() == expected
        after = look()
    assert len(seen) > 1 and set(seen) == {MODES["down"], MODES["up"]}
    assert after == (MODES["down"] if len(seen) % 2 else MODES["up"])


def run(m: RWKV, ids: list[list[int]], progress: Any = None, **how: Any) -> np.ndarray:
    """The core's own entry, layer 1."""
    start = np.cumsum([0, *map(len, ids)])
    flat = how.get("flat", np.concatenate(ids).astype(np.int32))
    out = how.get("out", np.empty((len(ids), 1, m.width), np.float32))
    m._core.run(flat, start, np.array([1], np.int32), 0, out, None, False, 0, progress)
    return out


def test_ids_may_change_and_be_overwritten_meanwhile(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(L=2, C=128, F=512), threads=1)
    ids = random_ids(1, [400] * 60)
    expected = run(m, ids).tobytes()
    flat = np.concatenate(ids).astype(np.int32)

    def spoil(_: int, __: int) -> None:
        flat[:] = 2**30

    assert run(m, ids, spoil, flat=flat).tobytes() == expected
    assert (flat == 2**30).all()
    size = 60 * 128
    memory = np.zeros(size + 24_000, np.float32)
    shared = memory[: 60 * 400].view(np.int32)
    shared[:] = np.concatenate(ids)
    out = memory[1000 : 1000 + size].reshape(60, 1, 128)  # overlaps the ids
    assert run(m, ids, flat=shared, out=out).tobytes() == expected


def test_an_out_that_overlaps_the_state_is_refused(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(L=2))
    state = m.state([1, 2])
    memory = np.empty(state.wkv.size + 64, np.float32)
    wkv = memory[:-64].reshape(state.wkv.shape)
    wkv[:] = state.wkv
    given = State(state.att_x, state.ffn_x, wkv)
    with pytest.raises(ValueError, match="out shares memory with the given state"):
        m.encode_ids([[1]], layers=0, state=given, out=memory[-100:-36].reshape(1, 64))
    expected = m.encode_ids([[1]], layers=0, state=state).tobytes()
    beside = memory[-64:].reshape(1, 64)
    assert m.encode_ids([[1]], layers=0, state=given, out=beside).tobytes() == expected


def test_out_and_state_keep_their_memory_meanwhile(tmp_path: Path) -> None:
    """NumPy lets refcheck=False free what somebody writes to, but not what is held."""
    m = load(tmp_path, random_weights(L=2, C=128, F=512), threads=1)
    ids = random_ids(1, [400] * 60)
    out = np.empty((60, 128), np.float32)
    refused = []

    def shrink(_: int, __: int) -> None:
        try:
            out.resize((1, 1), refcheck=False)
        except ValueError as error:
            refused.append(error)

    run(m, ids, shrink, out=out.reshape(60, 1, 128))
    assert refused and out.shape == (60, 128)
    assert out.tobytes() == run(m, ids).tobytes()
    out.resize((1, 1), refcheck=False)  # let go


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_inside_a_callback_ends_in_the_child(tmp_path: Path) -> None:
    m = load(tmp_path, random_weights(L=2, C=128, F=512), threads=2)
    ids = random_ids(1, [400] * 60)
    expected = run(m, ids).tobytes()
    children: list[int] = []
    parent = os.getpid()

    def fork(_: int, __: int) -> None:
        if not children:
            children.append(os.fork())

    try:
        found = run(m, ids, fork).tobytes()
    except RuntimeError as error:
        # In the child the call ends, and the next one works.
        told = "forked inside a callback" in str(error)
        os._exit(0 if told and run(m, ids).tobytes() == expected else 1)
    finally:
        if os.getpid() != parent:
            os._exit(2)
    assert found == expected
    deadline = time.monotonic() + 300
    while (ended := os.waitpid(children[0], os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(children[0], signal.SIGKILL)
        time.sleep(0.01)
    assert ended[1] == 0


def test_a_tensor_is_taken_once_by_whoever_comes_first() -> None:
    weights = random_weights(L=2, C=256, F=1024, V=500)
    core = _core.Model([(name, array.shape) for name, array in weights.items()])
    names = [name for name in weights if core.wants(name)]
    accepted = []

    def put() -> None:
        for name in names:
            try:
                core.put(name, weights[name], "float32")
                accepted.append(name)
            except ValueError as error:
                assert "was given twice" in str(error)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(accepted) == sorted(names)
    core.seal()


def long_entry(length: int) -> _core.Tokenizer:
    """A vocabulary of all bytes and `length` times an a: a text of fewer is slow to encode."""
    ids = np.arange(1, 258, dtype=np.int32)
    offsets = np.append(np.arange(257), 256 + length).astype(np.int64)
    return _core.Tokenizer(ids, bytes(range(256)) + b"a" * length, offsets)


@pytest.mark.parametrize("size", [1023, 10_000_000])
def test_ctrl_c_is_heard_in_texts_that_take_long(size: int) -> None:
    """In one text, and between texts that take but a moment each."""
    tokenizer = long_entry(1024)
    assert tokenizer.encode(b"a" * 1023) == [98] * 1023
    assert tokenizer.encode(b"a" * 1024) == [257]
    text = (b"a" * 1023 + b"b") * (size // 1024 + 1)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    texts = [text] * (40_000_000 // len(text))
    ended: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        ended.extend(map(tokenizer.encode_many, [texts]))  # in C, where nobody else hears it
    assert not ended
    assert tokenizer.encode(b"ab") == [98, 99]


def test_an_entry_that_would_make_encode_slow_is_refused() -> None:
    with pytest.raises(ValueError, match="id 257 has 1025 bytes: expected at most 1024"):
        long_entry(1025)


def test_a_wrong_shape_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 GB of a sparse file under the name of a matrix of 64 x 64."""
    weights = random_weights(L=1)
    huge = "blocks.0.att.key.weight"
    header: dict[str, Any] = {}
    data = b""
    for name, array in weights.items():
        if name != huge:
            end = len(data) + array.nbytes
            header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), end]}
            data += array.tobytes()
    size = 2**33
    header[huge] = {
        "dtype": "F32",
        "shape": [2**25, 64],
        "data_offsets": [len(data), len(data) + size],
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes(header, data))
    os.truncate(path, path.stat().st_size + size)
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(CheckpointError, match=rf"{huge} has shape \[33554432, 64\]: expected \[64"):
        RWKV.from_pretrained(path, device="cpu", tokenizer=None)
