"""A study that is killed goes on where it was: finished passes stay, and the table is the same.

The real program is killed by SIGKILL, which leaves it no moment to tidy up.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makecheckpoint import write_safetensors
from tinymodel import random_weights
from wordcounts import WordCounts, made_up_pairs

import rwkvsts
from rwkvsts.study import StudyConfig, experiment, folder, passes
from rwkvsts.study.methods import Cost
from rwkvsts.study.settings import Reading

WORDS = [f"w{i}" for i in range(50)]
POOLINGS = ("mean", "last", "weighted", "max")


def write_inputs(place: Path) -> list[str]:
    """A model, pairs in two splits and word vectors in files; the command that scores them."""
    write_safetensors(place / "model.safetensors", random_weights(5, L=4, V=256))
    rng = np.random.default_rng(2)
    lines = ["sentence1\tsentence2\tlabel\tsplit"]
    for i in range(240):
        one, other = (" ".join(rng.choice(WORDS, 12)) for _ in range(2))
        lines.append(f"{one}\t{other}\t{i % 5}\t{'validation' if i < 120 else 'test'}")
    (place / "pairs.tsv").write_text("\n".join(lines))
    (place / "glove.txt").write_text("\n".join(f"{w} {i % 7} {i % 3}" for i, w in enumerate(WORDS)))
    command = f"study --model {place}/model.safetensors --pairs {place}/pairs.tsv --layers all "
    command += f"--glove {place}/glove.txt --tokenizer bytes --device cpu --dtype float32 "
    command += f"--pooling {','.join(POOLINGS)} --timed-pairs 2 --resamples 100"
    return [sys.executable, "-m", "rwkvsts", *command.split()]


def table_without_costs(out: Path) -> str:
    with (out / "table.csv").open(newline="") as file:
        rows = [
            {k: v for k, v in row.items() if k not in vars(Cost())} for row in csv.DictReader(file)
        ]
    return json.dumps(rows)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(rwkvsts.__file__).parents[1])}


def killed_and_resumed(place: Path, kills: int, seed: int) -> None:
    command = write_inputs(place)
    undisturbed = place / "undisturbed"
    start = time.perf_counter()
    # Away from the checkout, where python -m takes the source tree, which may not be built.
    here = {"env": environment(), "cwd": place}
    subprocess.run([*command, "--out", undisturbed], check=True, capture_output=True, **here)
    whole = time.perf_counter() - start
    moments = random.Random(seed)
    out = place / "killed"
    ended = 0
    for _ in range(kills):
        process = subprocess.Popen(
            [*command, "--out", str(out)],
            **here,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(moments.uniform(0, whole))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            ended += 1
        else:  # it had finished: begin anew, or the rest of the kills would meet nothing
            assert process.returncode == 0
            compare(undisturbed, out)
            for left in (out / folder.PASSES).iterdir():
                left.unlink()
    assert ended > 0
    subprocess.run([*command, "--out", out], check=True, capture_output=True, **here)
    compare(undisturbed, out)


def compare(undisturbed: Path, out: Path) -> None:
    assert table_without_costs(out) == table_without_costs(undisturbed)
    scores = "scores.parquet"
    assert (out / scores).read_bytes() == (undisturbed / scores).read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in undisturbed.iterdir()}
    kept = [{path.name for path in (p / folder.PASSES).iterdir()} for p in (out, undisturbed)]
    assert kept[0] == kept[1]


def test_a_killed_study_gives_the_undisturbed_table(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, kills=1, seed=1)


@pytest.mark.slow
def test_a_study_killed_fifty_times_gives_the_undisturbed_table(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, kills=50, seed=2)


CONFIG = StudyConfig(timed_pairs=2)
READING = Reading(layers=(1, 3))


def run_kept(place: Path, model: Any = None, **change: Any) -> tuple[passes.Pass, int]:
    """A pass through a new `Keep` on the folder, and how many texts it encoded."""
    model = model or WordCounts()
    inputs = {"reading": READING, "layers": [1, 3], "pairs": made_up_pairs(), "config": CONFIG}
    found = passes.Keep(place).run(model, **{**inputs, **change}, fit_on=[])
    return found, sum(call["texts"] for call in model.calls)


def test_a_finished_pass_is_not_computed_again(tmp_path: Path) -> None:
    first, many = run_kept(tmp_path)
    again, few = run_kept(tmp_path)
    assert many > 100 and few == len(passes.PROBE)
    assert np.array_equal(first.scores, again.scores)
    assert np.array_equal(first.seconds, again.seconds)
    assert (first.batch_seconds, first.peak_bytes) == (again.batch_seconds, again.peak_bytes)


class OtherModel(WordCounts):
    def encode(self, texts: list[str], layers: Any, **how: Any) -> np.ndarray:
        return super().encode(texts, layers, **how) + np.float32(0.001)


class OtherDevice(WordCounts):
    device = "cuda"


@pytest.mark.parametrize(
    "change",
    [
        {"model": OtherModel()},
        {"model": OtherDevice()},
        {"layers": [3, 1]},
        {"reading": Reading(pooling="last", layers=(1, 3))},
        {"reading": Reading(prompt="In short: {text}", layers=(1, 3))},
        {"reading": Reading(skip_first=True, layers=(1, 3))},
        {"reading": Reading(lead=True, layers=(1, 3))},
        {"pairs": made_up_pairs(61)},
        {"config": StudyConfig(timed_pairs=2, max_length=64)},
        {"config": StudyConfig(timed_pairs=3)},
    ],
)
def test_whatever_changes_a_score_is_another_pass(tmp_path: Path, change: dict[str, Any]) -> None:
    run_kept(tmp_path)
    _, texts = run_kept(tmp_path, **change)
    assert texts > 100


@pytest.mark.parametrize("length", [0, 10, 300, -1])
def test_a_damaged_pass_is_computed_again(tmp_path: Path, length: int) -> None:
    first, _ = run_kept(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:length])
    again, texts = run_kept(tmp_path)
    assert texts > 100 and np.array_equal(first.scores, again.scores)
    assert run_kept(tmp_path)[1] == len(passes.PROBE)


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".abc.npz.123.part").mkdir()
    (tmp_path / ".abc.npz.123.part" / "abc.npz").write_bytes(b"half")
    run_kept(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_a_full_disk_does_not_end_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "glove.txt").write_text("w1 1 0\nw2 0 1\n")
    monkeypatch.setattr(experiment.models, "open_model", lambda *_: WordCounts())
    monkeypatch.setattr(experiment.datasets, "load", lambda *_, **__: made_up_pairs())
    monkeypatch.setattr(os, "fsync", full)
    config = StudyConfig(
        tasks=("mrpc",),
        splits=("validation",),
        glove=tmp_path / "glove.txt",
        resamples=20,
        timed_pairs=0,
    )
    study = experiment.run(config, tmp_path / "passes")
    assert len(study.rows) == 9
    assert study.failures == [
        "finished passes were not kept: [Errno 28] No space left on device"
    ]
    assert list((tmp_path / "passes").iterdir()) == []
