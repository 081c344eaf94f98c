"""A projection to fewer numbers: whitening's values, the same bits in any company, and refusals.

The right values are those of `Whitening`, whose own test compares with the covariance; the bits are
those of sums in Python's whole numbers, which have no rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from makecheckpoint import write_safetensors
from test_callers import MODES, X86, processor
from tinymodel import random_weights

from rwkvsts import RWKV6, DataError, cli, corpus
from rwkvsts.study.postprocess import Whitening

TEXTS = [f"text {i} of {'many ' * (i % 7)}words, {i * 7919 % 101}" for i in range(90)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RWKV6:
    return opened(tmp_path_factory.mktemp("model"), seed=5)


def opened(folder: Path, seed: int, **how: Any) -> RWKV6:
    path = folder / "model.safetensors"
    write_safetensors(path, random_weights(seed, L=3, V=256))
    return RWKV6.from_pretrained(
        path, **{"device": "cpu", "dtype": "float32", "tokenizer": "bytes", **how}
    )


@pytest.fixture(scope="module")
def fitted(model: RWKV6) -> corpus.Projection:
    return corpus.fit(model, TEXTS, 12, layers=(2, "final"), pooling="max", prompt="p ")


def test_it_is_a_whitening(model: RWKV6, fitted: corpus.Projection) -> None:
    rows = model.encode(TEXTS, [2, "final"], "max", "p ")
    expected = Whitening(12).fit(rows).transform(rows)
    found = fitted.transform(rows)
    assert found.shape == (90, 2, 12) and found.dtype == np.float32
    # C steps of 2 ** -24 of a row's largest number and as small ones of the matrix, both rounded.
    most = np.abs(rows - fitted.mean).max(-1) * np.abs(fitted.steps * fitted.unit[..., None]).max()
    assert np.abs(found - expected).max() <= 64 * 2**-22 * most.max()
    covariance = np.cov(found[:, 0], rowvar=False)
    assert np.allclose(covariance, np.eye(12), atol=1e-3)


def test_sums_are_exact_so_that_no_order_and_no_company_changes_a_bit(
    model: RWKV6, fitted: corpus.Projection
) -> None:
    rows = model.encode(TEXTS, [2, "final"], "max", "p ")
    found = fitted.transform(rows)
    for n in range(90):
        assert np.array_equal(fitted.transform(rows[n : n + 1])[0], found[n])
    centred = rows[:, 0].astype(float) - fitted.mean[0]
    for n in (0, 17):
        power = int(np.frexp(np.abs(centred[n]).max())[1])
        steps = [round(x * 2.0 ** (23 - power)) for x in centred[n]]
        assert max(map(abs, steps)) <= 2**23
        for k in range(12):
            column = [int(step) for step in fitted.steps[0, k]]
            assert sum(abs(a * b) for a, b in zip(steps, column, strict=True)) <= 2**53
            exact = sum(a * b for a, b in zip(steps, column, strict=True))
            value = np.float32(exact * 2.0 ** (power - 23) * fitted.unit[0, k])
            assert found[n, 0, k] == value


@pytest.mark.skipif(not X86, reason="sets the modes of an x86-64 processor")
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_processor_change_no_bit(
    model: RWKV6, fitted: corpus.Projection, mode: str
) -> None:
    rows = model.encode(TEXTS, [2, "final"], "max", "p ")
    expected = fitted.transform(rows, normalize=True)
    with processor(MODES[mode]):
        assert np.array_equal(fitted.transform(rows, normalize=True), expected)


def test_a_row_that_is_not_finite_leaves_the_others_alone(fitted: corpus.Projection) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 2, 64)).astype(np.float32)
    expected = fitted.transform(rows)
    rows[1, 0, 5] = np.inf
    found = fitted.transform(rows)
    assert not np.isfinite(found[1, 0]).any()
    assert np.array_equal(found[[0, 2]], expected[[0, 2]])


def test_a_file_holds_all_of_it_and_fewer_numbers_are_the_first(
    fitted: corpus.Projection, tmp_path: Path
) -> None:
    for name in ("a.npz", "b.npz"):
        fitted.save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = corpus.Projection.load(tmp_path / "a.npz")
    assert again.identity() == fitted.identity() and again.about["texts"] == 90
    rows = np.random.default_rng(0).normal(size=(5, 2, 64)).astype(np.float32)
    assert np.array_equal(again.transform(rows), fitted.transform(rows))
    part = again.narrow(["final"], 5)
    assert part.width == 5 and part.identity() != again.identity()
    assert np.array_equal(part.transform(rows[:, 1:]), fitted.transform(rows)[:, 1:, :5])
    unit = part.transform(rows[:, 1:], normalize=True)
    assert np.allclose(np.linalg.norm(unit, axis=-1), 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("probe"),
        lambda arrays: arrays.update(about=np.array("[]")),
        lambda arrays: arrays.update(mean=arrays["mean"][:, 1:]),
        lambda arrays: arrays.update(steps=arrays["steps"].astype(np.float64)),
        lambda arrays: arrays.update(unit=np.array([object()])),
        lambda arrays: arrays["mean"].fill(np.nan),
        None,
    ],
)
def test_other_files_are_no_projection(
    change: Callable[[dict[str, Any]], Any] | None, fitted: corpus.Projection, tmp_path: Path
) -> None:
    path = tmp_path / "p.npz"
    fitted.save(path)
    if change is None:
        path.write_bytes(path.read_bytes()[:-100])
    else:
        with np.load(path) as file:
            arrays = dict(file)
        change(arrays)
        np.savez(path, **arrays)
    with pytest.raises(DataError, match=r"p\.npz is no projection; rwkvsts fit makes one"):
        corpus.Projection.load(path)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        corpus.Projection.load(tmp_path)


def test_it_is_known_by_what_it_was_fitted_on(
    model: RWKV6, fitted: corpus.Projection, tmp_path: Path
) -> None:
    fitted.check(model, "max", "p ")
    fitted.check(opened(tmp_path, 5, dtype="bfloat16", instruction_set="avx2"), "max", "p ")
    for other, pooling, prompt, message in [
        (opened(tmp_path, 6), "max", "p ", "fitted on another model, called 'model.safetensors'"),
        (model, "mean", "p ", "embeddings of pooling 'max', these are of 'mean'"),
        (model, "max", None, "embeddings of prompt 'p ', these are of None"),
    ]:
        with pytest.raises(DataError, match=message):
            fitted.check(other, pooling, prompt)
    with pytest.raises(DataError, match="embeddings of max_length None, these are of 9"):
        fitted.check(model, "max", "p ", 9)
    wider = replace(fitted, about={**fitted.about, "width": 65})
    with pytest.raises(DataError, match="embeddings of width 65, these are of 64"):
        wider.check(model, "max", "p ")
    with pytest.raises(DataError, match="fitted on layers 2,final, not on 1"):
        fitted.narrow([2, 1])
    for width in (0, 13):
        with pytest.raises(DataError, match=f"--dim {width}: the projection was fitted for"):
            fitted.narrow(width=width)


def test_the_commands(
    model: RWKV6,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("\n".join([*TEXTS, ""]) + "\n")
    how = ["--model", model.source, "--layers", "1", "--tokenizer", "bytes", "--device", "cpu"]
    how += ["--dtype", "float32"]
    assert cli.main(["fit", "a.txt", *how, "--dim", "8", "--texts", "80", "--out", "p.npz"]) == 0
    assert "64 numbers to 8, of layers 1" in (told := capsys.readouterr().err)
    assert told.rstrip().endswith("learned from 80 texts")
    job = ["embed", "a.txt", *how, "--on-empty", "null", "--projection", "p.npz", "--normalize"]
    assert cli.main([*job, "--dim", "6", "--shard-rows", "50", "--out", "out"]) == 0
    table = pyarrow.parquet.read_table("out")
    column = table.column("layer_1").combine_chunks()
    assert set(map(len, column.drop_null().to_pylist())) == {6} and column.null_count == 1
    part = corpus.Projection.load(Path("p.npz")).narrow(width=6)
    expected = part.transform(model.encode(TEXTS, [1]), normalize=True)[:, 0]
    assert np.array_equal(column.drop_null().flatten().to_numpy().reshape(-1, 6), expected)
    noted = json.loads(Path("out/_manifest.json").read_text())["job"]
    assert noted["embedding"]["projection"] == part.identity()
    assert json.loads(table.schema.metadata[b"rwkvsts"])["embedding"] == noted["embedding"]
    assert cli.main([*job, "--dim", "6", "--out", "x.npy"]) == 0
    rows = np.load("x.npy")
    assert np.array_equal(rows[:90], expected) and np.isnan(rows[90]).all()
    capsys.readouterr()
    for wrong, message in [
        ([*job, "--dim", "5", "--shard-rows", "50", "--out", "out"], "embedding.projection.dim"),
        (["embed", "a.txt", *how, "--dim", "5", "--out", "o"], "--dim: fewer numbers are made by"),
        ([*job, "--dim", "9", "--out", "o"], "--dim 9: the projection was fitted for 1 .. 8"),
        ([*job, "--pooling", "last", "--out", "o"], "embeddings of pooling 'mean', these are of"),
        (["embed", "a.txt", "--projection", "q.npz", "--out", "o"], "q.npz: there is no such file"),
        (["fit", "a.txt", *how, "--dim", "90", "--out", "q.npz"], "--dim 90: 90 texts were found"),
        (["fit", "a.txt", *how, "--dim", "70", "--out", "q.npz"], "--dim 70: expected 1 .. 64"),
        (["fit", "a.txt", *how, "--dim", "8", "--out", "q.bin"], "expected the name of a .npz"),
    ]:
        assert cli.main(wrong) == 1
        assert message in capsys.readouterr().err
    assert not Path("q.npz").exists() and not Path("o").exists()
