"""dtype="int8": what its products compute, to the bit, and how near a model stays to float32.

Sums of int8 are exact, so every instruction set must give the same numbers; a program of plain C
loops says which. A model's rows are held to the float64 reference, and the bundled one's to the
promise of docs/SPEED.md.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import quantised
import reference
from standin import CSRC
from test_cpu import FEATURES, LENGTHS, SIZES, expected_rows
from tinymodel import load, random_ids, random_weights
from tinymodel7 import load7, random_weights7

import rwkvsts
from rwkvsts import _core, cli
from rwkvsts.device import choose

BENCH = CSRC.parent / "bench"
SETS = [name for name, there in FEATURES.items() if there] + ["portable"]
LOWEST_COSINE = 0.999  # of any layer; below it int8 would not be offered
TOLERANCE = (2 * (1 - LOWEST_COSINE)) ** 0.5  # what is off by so much, any way, has that cosine
TEXTS = Path(rwkvsts.__file__).parent / "assets" / "pairs.tsv"


def test_every_instruction_set_gives_the_bits_of_plain_loops(tmp_path: Path) -> None:
    """Ragged random sizes, those beyond every block among them. Where the processor has no AMX but
    what its rows need, the software model of the tiles stands in."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    flags = ["-std=c11", "-O1", "-D_DEFAULT_SOURCE", "-ffp-contract=off", f"-I{CSRC}"]
    names = list(SETS)
    if FEATURES.get("avx512bf16") and not FEATURES["amx"]:
        flags.append(f'-DEMULATE_AMX="{BENCH / "amx_model.h"}"')
        names.append("amx")
    sources = [BENCH / "cpu_kernels.c", CSRC / "base.c", *sorted((CSRC / "cpu").glob("*.c"))]
    program = tmp_path / "cpu_kernels"
    command = [compiler, *flags, *map(str, sources), "-lm", "-lpthread", "-o", str(program)]
    subprocess.run(command, check=True)
    ran = subprocess.run([str(program), "int8", "2"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    for name in names:
        assert f"check {name:11} in bfloat16 products int8: 0 of 16 differ ok" in ran.stdout


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """||found - expected|| / ||expected||, of all rows: of random weights single rows are wild."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("size", ["head size 64", "head size 8", "nothing fits"])
@pytest.mark.parametrize("instructions", dict.fromkeys((SETS[0], "portable")))
def test_agrees_with_the_reference(tmp_path: Path, size: str, instructions: str) -> None:
    weights, ids, expected = expected_rows(size)
    m = load(tmp_path, weights, dtype="int8", instruction_set=instructions, threads=2)
    assert m.dtype == "int8"
    assert apart(m.encode_ids(ids, layers=[0, 1, 2]), expected) < TOLERANCE


def test_rwkv7_runs_on_it(tmp_path: Path) -> None:
    weights, ids = random_weights7(1), random_ids(2, LENGTHS)
    rows = {
        dtype: load7(tmp_path, weights, dtype=dtype).encode_ids(ids, layers=[0, 1])
        for dtype in ("float32", "int8")
    }
    assert 0 < apart(rows["int8"], rows["float32"]) < TOLERANCE


@pytest.mark.parametrize("instructions", SETS)
def test_bits_ignore_batch_order_and_threads(tmp_path: Path, instructions: str) -> None:
    rng = np.random.default_rng(5)
    weights = random_weights(1, L=2, **SIZES["nothing fits"])
    ids = random_ids(2, rng.integers(1, 80, 16).tolist())
    options = {"dtype": "int8", "instruction_set": instructions}
    one, three = (load(tmp_path, weights, threads=n, **options) for n in (1, 3))
    alone = np.concatenate([one.encode_ids([i], [0, 1]) for i in ids])
    for rows in (7, 64, 300):
        order = rng.permutation(len(ids))
        batch = three.encode_ids([ids[i] for i in order], [0, 1], batch_tokens=rows)
        assert batch.tobytes() == alone[order].tobytes(), rows


def test_an_outlying_input_does_not_drown_the_others(tmp_path: Path) -> None:
    """Two columns of a norm a hundred times as large, who reads them as much smaller: the same
    function. That inputs and weights are turned is what keeps it."""
    weights = random_weights(3, L=1, C=192, N=64, F=672)
    scale = np.ones(192, np.float32)
    scale[[5, 77]] = 100
    b = "blocks.0."
    for part in ("weight", "bias"):
        weights[f"{b}ln2.{part}"] = weights[f"{b}ln2.{part}"] * scale
    for name in ("key", "receptance"):
        weights[f"{b}ffn.{name}.weight"] = weights[f"{b}ffn.{name}.weight"] / scale
    ids = random_ids(4, [30, 40, 50])
    expected = np.array([reference.forward(weights, i)[0].mean(1)[:-1] for i in ids])
    plain = quantised.blocks(weights, {"turn": 0})
    unturned = np.array([quantised.forward(weights, plain, i).mean(1) for i in ids])
    assert apart(unturned, expected) > 2 * TOLERANCE
    assert apart(load(tmp_path, weights, dtype="int8").encode_ids(ids, [0]), expected) < TOLERANCE


def test_the_bundled_model_keeps_its_promise() -> None:
    lines = TEXTS.read_text("utf-8").splitlines()
    texts = [text for line in lines[1::8] for text in line.split("\t") if len(text) > 20]
    rows = {}
    for dtype in ("float32", "int8"):
        m = rwkvsts.load("demo", device="cpu", dtype=dtype)
        x = m.encode(texts, layers=m.layers).astype(np.float64)
        rows[dtype] = x / np.linalg.norm(x, axis=-1, keepdims=True)
    assert len(texts) > 50
    assert (rows["float32"] * rows["int8"]).sum(-1).min() > LOWEST_COSINE


def test_weights_take_half_the_room_of_bfloat16(tmp_path: Path) -> None:
    weights = random_weights(1, C=256, N=64, F=1024)
    bytes_of = {
        dtype: load(tmp_path, weights, dtype=dtype).memory()["weights"]
        for dtype in ("bfloat16", "int8")
    }
    assert bytes_of["int8"] < 0.6 * bytes_of["bfloat16"]


def test_it_is_for_cpus_alone() -> None:
    with pytest.raises(ValueError, match="int8 is for CPUs"):
        choose("cuda", "int8")
    assert choose("auto", "int8").device == "cpu"


def test_it_is_no_type_of_a_file() -> None:
    weights = random_weights(1)
    core = _core.Model([(name, a.shape) for name, a in weights.items()], dtype="int8")
    with pytest.raises(ValueError, match="expected float32, float16 or bfloat16"):
        core.put("emb.weight", weights["emb.weight"], "int8")


def test_info_prints_what_it_costs_on_ones_own_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("A first sentence.\n\nAnd a second one, of 12 words or so.\n")
    ask = ["info", "demo", "--accuracy", str(file), "--device", "cpu", "--dtype"]
    assert cli.main([*ask, "int8"]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("cpu int8 against float32, cosine over 2 texts")
    assert [line.split()[0] for line in lines] == [*map(str, range(12)), "final"]
    assert all(LOWEST_COSINE < float(line.split()[1]) < 1 for line in lines[1:])
    assert cli.main([*ask, "float32"]) == 1
    assert "give --dtype" in capsys.readouterr().err
    file.write_text("\n \n")
    assert cli.main([*ask, "int8"]) == 1
    assert "no text" in capsys.readouterr().err
