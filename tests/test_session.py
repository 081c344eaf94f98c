"""What a session promises beyond one text after the other.

Tokens that are read and not pooled, a state of each text's own, a floating-point environment of its
own, arguments that nobody changes under way.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import reference
from tinymodel import error, load, random_ids, random_weights

from rwkvsts import RWKV6, _core

LAYERS = np.array([0, 1, 2], np.int32)  # 2 is "final"
LENGTHS = [3, 1, 40, 17, 2, 90, 33]
POOLINGS = ("mean", "last", "weighted", "max")


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    return random_weights(21, L=2)


@pytest.fixture
def model(tmp_path: Path, weights: dict[str, np.ndarray]) -> RWKV6:
    return load(tmp_path, weights, dtype="float32")


def run(
    core: _core.Model,
    ids: list[list[int]],
    pooling: int = 0,
    first: object = None,
    last: bool = False,
    rows: int = 0,
    **more: object,
) -> tuple[np.ndarray, object]:
    """Pooled rows [S, 3, C] and the states."""
    flat = np.concatenate([np.asarray(x, np.int32) for x in ids])
    start = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    out = np.empty((len(ids), len(LAYERS), core.config["n_embd"]), np.float32)
    return out, core.run(flat, start, LAYERS, pooling, out, first, last, rows, None, **more)


@pytest.mark.parametrize("pooling", range(4))
@pytest.mark.parametrize("rows", [0, 7])
def test_skipped_tokens_are_read_and_not_pooled(
    model: RWKV6, weights: dict[str, np.ndarray], pooling: int, rows: int
) -> None:
    """Passes of 7 tokens cut sequences before, in and after what is skipped."""
    ids = random_ids(22, LENGTHS)
    skip = np.array([1, 0, 20, 16, 1, 50, 7], np.int32)
    found, _ = run(model._core, ids, pooling, rows=rows, skip=skip)
    hidden = [reference.forward(weights, sequence)[0] for sequence in ids]
    expected = [
        [reference.pool(layer[n:], POOLINGS[pooling]) for layer in layers]
        for layers, n in zip(hidden, skip, strict=True)
    ]
    assert error(found, np.array(expected)) < 1e-4


def test_skipping_nothing_changes_no_bit(model: RWKV6) -> None:
    ids = random_ids(23, LENGTHS)
    zeros = np.zeros(len(ids), np.int32)
    assert run(model._core, ids)[0].tobytes() == run(model._core, ids, skip=zeros)[0].tobytes()


def test_a_sequence_of_which_nothing_would_be_pooled_is_refused(model: RWKV6) -> None:
    skip = np.array([0, 2], np.int32)
    with pytest.raises(
        ValueError, match="sequence 1 has 2 tokens, of which 2 are not to be pooled"
    ):
        run(model._core, [[1, 2], [3, 4]], skip=skip)


@pytest.mark.parametrize("rows", [0, 16])
def test_every_sequence_goes_on_from_its_own_state(model: RWKV6, rows: int) -> None:
    """40 states, more than a pass holds: each continuation has the bits of the whole text's end."""
    rng = np.random.default_rng(24)
    heads = random_ids(25, rng.integers(1, 30, 40).tolist())
    tails = random_ids(26, rng.integers(1, 30, 40).tolist())
    origin = rng.permutation(40).astype(np.int64)
    whole = [heads[o] + tail for o, tail in zip(origin, tails, strict=True)]
    states = run(model._core, heads, last=True)[1]
    found, _ = run(model._core, tails, 1, states, rows=rows, origin=origin)
    expected, _ = run(model._core, whole, 1)
    assert found.tobytes() == expected.tobytes()


def test_states_and_origins_go_together(model: RWKV6) -> None:
    states = run(model._core, [[1], [2]], last=True)[1]
    with pytest.raises(ValueError, match="origin says which"):
        run(model._core, [[1], [2]], first=states)
    with pytest.raises(ValueError, match="starts from state 2: expected 0 .. 1"):
        run(model._core, [[1], [2]], first=states, origin=np.array([0, 2], np.int64))


def test_a_state_with_exchanged_axes_is_refused(model: RWKV6) -> None:
    att_x, ffn_x, wkv = (a[0] for a in run(model._core, [[1]], last=True)[1])
    with pytest.raises(ValueError, match=r"att_x has shape \(64, 2\): expected \(2, 64\)"):
        run(model._core, [[1]], first=(np.ascontiguousarray(att_x.T), ffn_x, wkv))


def test_out_must_not_lie_in_the_given_state(model: RWKV6) -> None:
    att_x, ffn_x, wkv = run(model._core, [[1]], last=True)[1]
    out = wkv.reshape(-1)[: 3 * 64].reshape(1, 3, 64)
    ids, start = np.array([1], np.int32), np.array([0, 1], np.int64)
    state = (att_x, ffn_x, wkv)
    with pytest.raises(ValueError, match="out shares memory with the given state"):
        model._core.run(ids, start, LAYERS, 0, out, state, False, 0, None)


def test_one_of_two_threads_that_put_a_tensor_is_refused(weights: dict[str, np.ndarray]) -> None:
    big = {**weights, "emb.weight": np.ones((20_000, 64), np.float32)}
    for _ in range(5):
        core = _core.Model([(name, a.shape) for name, a in big.items()])
        failures: list[str] = []
        together = threading.Barrier(4)

        def put(
            core: _core.Model = core,
            together: threading.Barrier = together,
            failures: list[str] = failures,
        ) -> None:
            together.wait()
            try:
                core.put("emb.weight", big["emb.weight"], "float32")
            except ValueError as refused:
                failures.append(str(refused))

        threads = [threading.Thread(target=put) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == ["emb.weight was given twice"] * 3


FE_UPWARD = 0x800  # <fenv.h> on x86


@pytest.mark.skipif(not Path("/lib64/ld-linux-x86-64.so.2").exists(), reason="constants of x86-64")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_rounding_mode_changes_no_bit(
    tmp_path: Path, weights: dict[str, np.ndarray], threads: int, dtype: str
) -> None:
    """Another library may set the process's rounding; helpers are born with what was set then."""
    libm = ctypes.CDLL("libm.so.6")
    ids = random_ids(27, LENGTHS)
    expected = load(tmp_path, weights, dtype=dtype, threads=threads).encode_ids(ids, [0, 1])
    libm.fesetround(FE_UPWARD)
    try:
        m = load(tmp_path, weights, dtype=dtype, threads=threads)
        rows = m.encode_ids(ids, [0, 1])
        kept = libm.fegetround()
    finally:
        libm.fesetround(0)
    assert rows.tobytes() == expected.tobytes()
    assert kept == FE_UPWARD


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals are the main one's"
)
def test_a_signal_is_heard_between_blocks_though_nobody_is_told_of_progress(model: RWKV6) -> None:
    """Signals that wait for the end of the call come as one: the third is heard only under way."""
    heard = []

    def handler(*_: object) -> None:
        heard.append(1)
        if len(heard) == 3:
            raise InterruptedError

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with pytest.raises(InterruptedError):
            model.state(np.zeros(3_000_000, np.int32))  # type: ignore[arg-type]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_call_leaves_nothing_to_the_next(
    tmp_path: Path, weights: dict[str, np.ndarray]
) -> None:
    """Its session, which may be inside a pass, is not used again: not even its word on NaN."""
    weights["blocks.1.ffn.value.weight"][:] = 3e38
    model = load(tmp_path, weights, dtype="float32")

    def end(done: int, tokens: int) -> None:
        if done:
            raise InterruptedError

    def arrays(S: int) -> tuple[np.ndarray, ...]:
        start = np.arange(0, 3 * S + 1, 3, dtype=np.int64)
        return np.ones(3 * S, np.int32), start, np.ones(1, np.int32), np.empty((S, 1, 64), "f4")

    ids, start, layer, out = arrays(5000)
    with pytest.raises(InterruptedError):  # by the core itself: one run is never cut into slices
        model._core.run(ids, start, layer, 0, out, None, False, 16, end)
    assert not np.isfinite(out[0]).all()
    ids, start, layer, out = arrays(1)
    layer[:] = 0
    assert model._core.run(ids, start, layer, 0, out, None, False, 16, None) == (1, True)


def test_arguments_are_read_once(model: RWKV6) -> None:
    """A thread that changes ids and start under way changes nothing: the call has a copy."""
    ids = random_ids(28, [40] * 200)
    flat = np.concatenate([np.asarray(x, np.int32) for x in ids])
    start = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    assert all(b - a == 40 for a, b in pairwise(start))
    out = np.empty((200, 3, 64), np.float32)
    expected = run(model._core, ids)[0]
    stop = threading.Event()

    def spoil() -> None:
        first, last = flat[0], start[-1]
        while not stop.is_set():
            flat[0], start[-1] = 2**30, 2**40
            flat[0], start[-1] = first, last

    thread = threading.Thread(target=spoil)
    thread.start()
    wrong = 0
    try:
        for _ in range(20):
            try:
                model._core.run(flat, start, LAYERS, 0, out, None, False, 0, None)
            except ValueError:  # the copy was made while they were wrong
                continue
            wrong += out.tobytes() != expected.tobytes()
    finally:
        stop.set()
        thread.join()
    assert wrong == 0


@pytest.mark.parametrize(
    ("lengths", "done"),
    [
        ([9, 9, 9, 9], 3),  # 36 of passes of 30: the fourth would be cut, and its end lack company
        ([30, 30], 2),
        ([10, 10, 9], 0),
        ([10, 10, 10], 3),
        ([100, 5], 2),  # longer than a pass: run to its end
        ([9, 100, 5], 3),
        ([20, 20, 20, 5], 3),  # the second is cut, since the rest fills a pass
        ([1] * 29, 0),
        ([], 0),
    ],
)
def test_what_does_not_fill_a_pass_is_left(model: RWKV6, lengths: list[int], done: int) -> None:
    """`more`: the rows of what is run have the usual bits, the others are not touched."""
    ids = random_ids(23, lengths) if lengths else [np.zeros(0, np.int32)][:0]
    flat = np.concatenate([np.zeros(0, np.int32), *ids]).astype(np.int32)
    start = np.cumsum([0, *lengths], dtype=np.int64)
    out = np.full((len(lengths), len(LAYERS), model.width), 7, np.float32)
    call = flat, start, LAYERS, 0, out, None, False, 30, None
    assert model._core.run(*call, more=True) == (done, True)
    expected = model.encode_ids(ids, [int(i) for i in LAYERS[:2]]) if ids else out[:, :2]
    assert np.array_equal(out[:done, :2], expected[:done]) and (out[done:] == 7).all()
    assert model._core.run(*call) == (len(lengths), True)
