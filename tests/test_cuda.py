"""The CUDA backend on a real device: against the float64 reference, against itself, its refusals.

Needs a GPU; sanitize_cuda.py walks the same kernels under compute-sanitizer. Sixteen-bit products
round to 2^-9: over a few blocks a row stays so near that its cosine is 0.9995, whichever way it is
off; float32 agrees to 1e-4 of a row's length, as on the CPU.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from standin import ABI
from tinymodel import error, exact_in_bf16, load, random_ids, random_weights

from rwkvsts import RWKV6, DeviceError
from rwkvsts.data import datasets
from rwkvsts.device import cuda_facts, cuda_library, cuda_route, query_cuda
from rwkvsts.study.statistics import cosine, spearman

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("device")]

BITS16_ERROR = (2 * (1 - 0.9995)) ** 0.5
TOLERANCE = {"float32": 1e-4, "bfloat16": BITS16_ERROR, "float16": BITS16_ERROR}
LENGTHS = [1, 2, 3, 17, 64, 65, 200, 31, 1, 128]
SIZES: dict[str, dict[str, int]] = {
    "heads of 64": {"C": 256, "N": 64, "F": 448, "R": 32, "D": 64},
    "heads of 64, a decay of rank 128": {"C": 128, "N": 64, "F": 64, "R": 8, "D": 128},
    "heads of 8": {"C": 64, "N": 8, "F": 224, "R": 8, "D": 64},
    "heads of 16": {"C": 48, "N": 16, "F": 104, "R": 5, "D": 7},
    "heads of 32, large ranks": {"C": 1056, "N": 32, "F": 64, "R": 64, "D": 128},
    "heads of 128": {"C": 2176, "N": 128, "F": 128, "R": 20, "D": 20, "L": 1},
}


@pytest.fixture
def bits16(device: tuple[int, int]) -> str:
    return "bfloat16" if device >= (8, 0) else "float16"


def rounded(**sizes: int) -> dict[str, np.ndarray]:
    """Random weights that bfloat16 holds, and float16 nearly: the reference sees the same."""
    return exact_in_bf16(random_weights(**sizes))


def on_gpu(folder: Path, weights: dict[str, np.ndarray], **options: Any) -> RWKV6:
    return load(folder, weights, **{"device": "cuda", **options})


def expected(weights: dict[str, np.ndarray], ids: list[list[int]], pooling: str) -> np.ndarray:
    return reference.pooled(reference.forward, weights, ids, pooling)


@pytest.mark.parametrize("size", SIZES)
def test_against_the_reference(tmp_path: Path, dtype: str, size: str) -> None:
    weights = rounded(**SIZES[size])
    ids = random_ids(1, LENGTHS)
    m = on_gpu(tmp_path, weights, dtype=dtype)
    found = m.encode_ids(ids, [*range(m.n_blocks), "final"])
    right = expected(weights, ids, "mean")
    assert error(found, right) < TOLERANCE[dtype]


def test_the_figures_of_a_study_do_not_depend_on_the_device(dtype: str) -> None:
    """A trained model on real sentences: Spearman of every layer as on the CPU in float32. A rank
    correlation forgives nothing that a change of arithmetic would reorder."""
    pairs = datasets.load("demo")
    found: list[list[float]] = []
    for options in ({"device": "cuda", "dtype": dtype}, {"device": "cpu", "dtype": "float32"}):
        m = RWKV6.from_pretrained("demo", **options)
        layers = [*range(m.n_blocks), "final"]
        first, second = (m.encode(texts, layers) for texts in (pairs.sentence1, pairs.sentence2))
        scores = [cosine(first[:, i], second[:, i]) for i in range(len(layers))]
        found.append([spearman(score, pairs.label, resamples=1).value for score in scores])
    assert max(found[1]) > 0.1  # the figures say something
    assert np.abs(np.subtract(*found)).max() <= 0.002


@pytest.mark.parametrize("pooling", ["mean", "last", "weighted", "max"])
def test_pooling(tmp_path: Path, pooling: str) -> None:
    weights = random_weights()
    ids = random_ids(2, LENGTHS)
    m = on_gpu(tmp_path, weights, dtype="float32")
    for batch_tokens in (7, 100, None):
        found = m.encode_ids(ids, [0, "final"], pooling=pooling, batch_tokens=batch_tokens)
        assert error(found, expected(weights, ids, pooling)[:, [0, 3]]) < 1e-4


@pytest.mark.parametrize(
    "sizes",
    [
        {"C": 256, "F": 448, "R": 32, "D": 64},
        {"C": 1152, "L": 1},
        {"C": 1024, "F": 448, "R": 64, "D": 64, "L": 1},
    ],
)
def test_the_bits_of_a_text_are_its_own(tmp_path: Path, dtype: str, sizes: dict[str, int]) -> None:
    """Whatever the pass, its neighbours and its kernel: few rows, cublasLt, a recorded pass. With
    few rows, narrow and wide products are cut differently."""
    m = on_gpu(tmp_path, rounded(**sizes), dtype=dtype)
    rng = np.random.default_rng(0)
    ids = random_ids(3, rng.integers(1, 90, 120).tolist())
    layers = [0, m.n_blocks - 1, "final"]
    right = m.encode_ids(ids, layers)
    assert np.isfinite(right).all()
    for batch_tokens in (1, 16, 37, 128, 250, 300, 1000, 4000):
        order = rng.permutation(len(ids))
        found = m.encode_ids([ids[i] for i in order], layers, batch_tokens=batch_tokens)
        assert found.tobytes() == right[order].tobytes(), batch_tokens
    for i in range(0, len(ids), 7):
        assert m.encode_ids([ids[i]], layers)[0].tobytes() == right[i].tobytes()
    state = m.state(ids[0])
    right = m.encode_ids(ids, layers, state=state)
    for batch_tokens in (37, 1000):
        found = m.encode_ids(ids, layers, batch_tokens=batch_tokens, state=state)
        assert found.tobytes() == right.tobytes(), batch_tokens


def test_a_hundred_repeats_are_equal(tmp_path: Path, bits16: str) -> None:
    m = on_gpu(tmp_path, rounded(C=256, F=448), dtype=bits16)
    many, two = random_ids(4, [20] * 50), random_ids(5, [33, 21])
    rows, pair = m.encode_ids(many, 2).tobytes(), m.encode_ids(two, 2).tobytes()
    for _ in range(100):
        assert m.encode_ids(many, 2).tobytes() == rows
        assert m.encode_ids(two, 2).tobytes() == pair


def test_a_longer_text_than_a_pass(tmp_path: Path, dtype: str) -> None:
    m = on_gpu(tmp_path, rounded(), dtype=dtype)
    ids = random_ids(6, [700, 5, 400])
    right = m.encode_ids(ids, [0, 2], pooling="weighted")
    for batch_tokens in (3, 64, 301):
        found = m.encode_ids(ids, [0, 2], pooling="weighted", batch_tokens=batch_tokens)
        assert found.tobytes() == right.tobytes()


def test_a_long_text_has_its_bits_in_any_company(tmp_path: Path, dtype: str) -> None:
    """Its parts run side by side where a pass holds more than 512 tokens of it, else in order."""
    weights = rounded(C=256, F=448, R=32, D=64, L=2)
    m = on_gpu(tmp_path, weights, dtype=dtype)
    ids = random_ids(15, [1500, 30, 513, 512, 2100, 7, 1024])
    layers = [0, 1, "final"]
    for pooling in ("mean", "max"):
        right = m.encode_ids(ids, layers, pooling=pooling)
        for batch_tokens in (64, 500, 640, 1700):
            found = m.encode_ids(ids, layers, pooling=pooling, batch_tokens=batch_tokens)
            assert found.tobytes() == right.tobytes(), batch_tokens
        for i, text in enumerate(ids):
            alone = m.encode_ids([text], layers, pooling=pooling)
            assert alone[0].tobytes() == right[i].tobytes()
    state = m.state(ids[4])
    parts = m.state(ids[4][1280:], m.state(ids[4][:1280]))
    assert all(np.array_equal(a, b) for a, b in zip(parts, state, strict=True))
    near = m.encode_ids(ids[2:3], layers)
    assert error(near, expected(weights, ids[2:3], "mean")) < TOLERANCE[dtype]


@pytest.mark.parametrize("N", [64, 16])
def test_a_state_continues_its_text(tmp_path: Path, dtype: str, N: int) -> None:
    """To the bit after a multiple of 64 tokens: heads of 64 in bfloat16 count in so many."""
    m = on_gpu(tmp_path, rounded(C=128, N=N), dtype=dtype)
    (whole,) = random_ids(7, [90])
    at_once, last = m.state(whole), m.encode_ids([whole], [0, 2], pooling="last")
    for cut in (64, 41):
        state = m.state(whole[:cut])
        both = m.state(whole[cut:], state)
        rest = m.encode_ids([whole[cut:]], [0, 2], pooling="last", state=state)
        if dtype == "bfloat16" and N == 64 and cut % 64:
            assert error(rest, last) < TOLERANCE[dtype]
            for a, b in zip(both, at_once, strict=True):
                assert error(a.ravel(), b.ravel()) < TOLERANCE[dtype]
        else:
            assert rest.tobytes() == last.tobytes()
            assert all(a.tobytes() == b.tobytes() for a, b in zip(both, at_once, strict=True))


@pytest.mark.parametrize("size", [1024.0, 4.0])
def test_large_squares_stay_right_in_float16(tmp_path: Path, size: float) -> None:
    """relu^2 passes 65504, the largest float16, at an input of 256. Inputs here are `size` times
    numbers about 1, up to about 4."""
    weights = rounded(C=128, F=256, L=1)
    weights["blocks.0.ffn.key.weight"] *= size
    ids = random_ids(8, [20, 3, 300])
    found = on_gpu(tmp_path, weights, dtype="float16").encode_ids(ids, 0)
    right = expected(weights, ids, "mean")[:, 0]
    assert (np.abs(right).max() > 65504) == (size > 256)
    assert error(found, right) < BITS16_ERROR


def test_the_table_may_stay_on_the_host(tmp_path: Path, bits16: str) -> None:
    weights = rounded(V=60_000, L=1)
    ids = random_ids(9, [30, 4], V=60_000)
    right = on_gpu(tmp_path, weights, dtype=bits16).encode_ids(ids, 0)
    m = on_gpu(tmp_path, weights, dtype=bits16, device_memory=6 << 20)
    assert m.memory()["peak"] < 6 << 20 < m.memory()["weights"]
    assert m.encode_ids(ids, 0).tobytes() == right.tobytes()


def test_too_little_memory_is_said_and_survived(tmp_path: Path) -> None:
    m = on_gpu(tmp_path, random_weights(), device_memory=32 << 20)
    ids = random_ids(10, [50, 60])
    right = m.encode_ids(ids, 2, batch_tokens=64).tobytes()
    with pytest.raises(MemoryError, match=r"\d+ bytes of device memory were asked"):
        m.encode_ids(ids, 2, batch_tokens=1 << 20)
    assert m.encode_ids(ids, 2, batch_tokens=64).tobytes() == right


def test_many_layers_fit_into_what_is_planned(tmp_path: Path) -> None:
    """Pooled rows of 25 layers are 13 % of such a pass."""
    budget = 80 << 20
    m = on_gpu(tmp_path, random_weights(C=512, F=512, L=1), dtype="float32", device_memory=budget)
    ids = random_ids(11, [20] * 300)
    found = m.encode_ids(ids, [0] * 25)
    assert m.memory()["peak"] <= budget
    assert all(found[:, i].tobytes() == found[:, 0].tobytes() for i in range(25))


def stop_inside(m: RWKV6, ids: list[list[int]]) -> None:
    """Interrupt after the first block: the core asks at most every 50 ms, first before a pass."""
    asked: list[int] = []

    def progress(done: int, _: int) -> None:
        asked.append(done)
        time.sleep(0.06)
        if len(asked) == 2:
            raise KeyboardInterrupt

    flat, start = np.concatenate(ids).astype(np.int32), np.cumsum([0, *map(len, ids)])
    out = np.empty((len(ids), 1, m.config.n_embd), np.float32)
    layer = np.array([2], np.int32)
    with pytest.raises(KeyboardInterrupt):
        m._core.run(flat, start, layer, 0, out, None, False, 0, progress)
    assert len(asked) == 2


def test_a_stop_inside_a_pass_leaves_the_model_usable(tmp_path: Path, bits16: str) -> None:
    """Many rows; few, which are being recorded then, as their shape was seen once."""
    m = on_gpu(tmp_path, rounded(C=256, F=448), dtype=bits16)
    for ids in (random_ids(12, [40] * 20), random_ids(13, [33, 21])):
        right = m.encode_ids(ids, 2).tobytes()
        stop_inside(m, ids)
        for _ in range(3):
            assert m.encode_ids(ids, 2).tobytes() == right


def test_threads_may_share_a_model(tmp_path: Path, bits16: str) -> None:
    m = on_gpu(tmp_path, rounded(C=256, F=448), dtype=bits16)
    ids = random_ids(14, np.random.default_rng(1).integers(1, 60, 200).tolist())
    right = m.encode_ids(ids, [0, 2])

    def part(i: int) -> bool:
        few, many = ids[3 * i : 3 * i + 2], ids[i : i + 60]
        return (
            m.encode_ids(few, [0, 2]).tobytes() == right[3 * i : 3 * i + 2].tobytes()
            and m.encode_ids(many, [0, 2]).tobytes() == right[i : i + 60].tobytes()
        )

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(part, range(60)))


def _in_child(m: RWKV6, answer: Any) -> None:
    try:
        m.encode_ids([[1, 2]], 0)
        answer.send("no error")
    except DeviceError as error:
        answer.send(str(error))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_refused(tmp_path: Path) -> None:
    m = on_gpu(tmp_path, random_weights())
    right = m.encode_ids([[1, 2]], 0).tobytes()
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(m, there))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert "fork" in here.recv()
    assert m.encode_ids([[1, 2]], 0).tobytes() == right


class Kind(ctypes.Structure):
    """struct product_kind of csrc/backend.h."""

    _fields_ = [
        ("n", ctypes.c_int),
        ("k", ctypes.c_int),
        ("epilogue", ctypes.c_int),
        ("of_squares", ctypes.c_bool),
    ]


class Dims(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in "LCHNFV"] + [("rank", ctypes.c_int * 4)]


class Options(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("isa", ctypes.c_char_p),
        ("ordinal", ctypes.c_int),
        ("budget", ctypes.c_size_t),
    ]


def plans_of(C: int, F: int, dtype: int) -> list[str]:
    """What opening a device finds out about a model's products, a line a kind."""
    library = ctypes.CDLL(cuda_library())
    library.rwkvsts_cuda_backend.restype = ctypes.POINTER(ctypes.c_void_p)
    table = library.rwkvsts_cuda_backend(ABI)
    opening = ctypes.CFUNCTYPE(
        ctypes.c_int, *[ctypes.c_void_p] * 2, ctypes.c_int, *[ctypes.c_void_p] * 4
    )
    closing = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    kinds = (Kind * 5)(
        (C, C, 0, False), (C, C, 4, False), (F, C, 3, False), (C, F, 5, True), (160, C, 7, False)
    )
    dims = Dims(1, C, C // 64, 64, F, 100, (ctypes.c_int * 4)(32, 64))
    meter, error_text = (ctypes.c_size_t * 2)(), ctypes.create_string_buffer(600)
    device, text = ctypes.c_void_p(), ctypes.create_string_buffer(4000)
    options = Options(dtype, 1, None, 0, 0)
    arguments = [ctypes.addressof(dims), ctypes.addressof(kinds), 5, ctypes.addressof(options)]
    arguments += [ctypes.addressof(a) for a in (meter, device, error_text)]
    assert opening(table[0])(*arguments) == 0, error_text.raw[4:]
    library.rwkvsts_cuda_plans(device, text, ctypes.c_size_t(len(text)))
    closing(table[1])(device)
    return text.value.decode().splitlines()


def test_no_fast_path_is_lost(device: tuple[int, int]) -> None:
    """A path that gives other bits on this device is dropped at opening; only this would tell."""
    plans = plans_of(2048, 7168, 2 if device >= (8, 0) else 1)
    assert len(plans) == 5
    if device < (8, 0):
        pytest.skip("this device has one way for every product")
    few = "stream_product" if device == (9, 0) else "few_rows"
    assert all(f"few rows {few};" in line for line in plans), plans
    if device == (9, 0):
        assert any("squared" in line and ":yes" in line for line in plans), plans


def test_the_code_that_runs_is_made_for_this_device() -> None:
    """A build for older devices runs here too, by their routes: right, and slow."""
    capability, code, hopper, _ = cuda_facts()
    assert 75 <= code <= capability
    assert query_cuda().capability == divmod(code, 10)
    if code < min(capability, 90):
        pytest.skip("this build is for older devices: RWKVSTS_CUDA_ARCHS")
    assert bool(hopper) == (capability == 90)
    sizes, dtype = (2048, 32, 64, 7168, 32, 64), "bfloat16" if code >= 80 else "float16"
    found = cuda_route(cuda_facts(), dtype, sizes, 54, 27)
    few = "stream_product" if hopper else "few_rows" if code >= 80 else "cublasLt"
    assert found["ffn value"] == few


def test_a_device_is_asked_for_by_number(tmp_path: Path, bits16: str) -> None:
    weights, ids = rounded(), random_ids(16, [20, 5])
    right = on_gpu(tmp_path, weights, dtype=bits16).encode_ids(ids, 2)
    assert (
        on_gpu(tmp_path, weights, dtype=bits16, device="cuda:0").encode_ids(ids, 2).tobytes()
        == right.tobytes()
    )
    with pytest.raises(DeviceError, match="there is no CUDA device 99"):
        query_cuda(99)
    try:
        query_cuda(1)
    except DeviceError:
        pytest.skip("there is one device only")
    other = on_gpu(tmp_path, weights, dtype=bits16, device="cuda:1")
    assert other.encode_ids(ids, 2).tobytes() == right.tobytes()


def test_what_the_kernels_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="head size 24"):
        on_gpu(tmp_path, random_weights(C=96, N=24))
    with pytest.raises(DeviceError, match="multiple of 16"):
        on_gpu(tmp_path, random_weights(C=72, N=8))
