"""How the command ends: by signals, with closed streams, with a full disk behind them."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makecheckpoint import write_safetensors
from tinymodel import random_weights

import rwkvsts
from rwkvsts.cli.main import _parser
from rwkvsts.command import _is_command


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    """A command that takes a minute or so, and writes x.npy."""
    write_safetensors(tmp_path / "model.safetensors", random_weights(L=2, C=128, F=512, V=256))
    (tmp_path / "t.txt").write_text("word " * 400 + "\n")
    (tmp_path / "long.txt").write_text(("word " * 400 + "\n") * 4000)
    return ["embed", "long.txt", "--out", "x.npy", "--model", "model.safetensors"] + [
        *("--layers", "1", "--tokenizer", "bytes", "--device", "cpu", "--threads", "1")
    ]


def defaults() -> None:
    """In the child: what pytest's own parent may have changed, as under nohup."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(
    folder: Path, argv: list[str], before: Callable[[], None] = defaults, **how: Any
) -> subprocess.Popen[str]:
    root = str(Path(rwkvsts.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "rwkvsts", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
        stderr=how.pop("stderr", subprocess.PIPE),
        text=True,
        preexec_fn=before,
        **how,
    )


def wait_for_a_part(folder: Path) -> None:
    deadline = time.monotonic() + 300
    while not [p for p in folder.iterdir() if p.name.endswith(".part")]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_leaves_nothing_half_done(
    tmp_path: Path, job: list[str], number: signal.Signals, status: int
) -> None:
    (tmp_path / "x.npy").write_bytes(b"the earlier file")
    with start(tmp_path, job) as running:
        wait_for_a_part(tmp_path)
        running.send_signal(number)
        _, error = running.communicate(timeout=300)
    assert running.returncode == status, error
    last = error.splitlines()[-1]
    assert last == (
        "rwkvsts: interrupted" if status == 130 else f"rwkvsts: stopped by {number.name}"
    )
    assert "Traceback" not in error
    assert (tmp_path / "x.npy").read_bytes() == b"the earlier file"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path, job: list[str]) -> None:
    """Under nohup SIGHUP is ignored from the start: the job goes on."""

    def ignore() -> None:
        defaults()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    job[1] = "t.txt"
    with start(tmp_path, job, ignore) as running:
        for _ in range(200):
            running.send_signal(signal.SIGHUP)
            time.sleep(0.01)
        _, error = running.communicate(timeout=300)
    assert running.returncode == 0, error
    assert (tmp_path / "x.npy").exists()


@pytest.mark.parametrize("after", [0.03, 0.08, 0.15, 0.25])
def test_ctrl_c_before_the_command_has_begun(tmp_path: Path, job: list[str], after: float) -> None:
    with start(tmp_path, job) as running:
        time.sleep(after)
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=300)
    assert running.returncode != 0
    # A traceback without a line of the package is of Python itself, which was starting.
    if str(Path(rwkvsts.__file__).parent) in error or "Traceback" not in error:
        assert running.returncode in (130, -signal.SIGINT)
        assert error in ("", "rwkvsts: interrupted\n")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["python", "-m", "rwkvsts", "study"], True),
        (["python3", "-X", "dev", "-m", "rwkvsts"], True),
        (["/usr/bin/python", "/usr/bin/rwkvsts", "info"], True),
        (["rwkvsts", "info"], True),
        (["python", "-m", "pytest", "rwkvsts"], False),
        (["python", "mine.py", "rwkvsts"], False),
        (["python", "-c", "import rwkvsts"], False),
        (["python", "-m"], False),
        ([""], False),
    ],
)
def test_only_the_command_itself_is_hushed(argv: list[str], expected: bool) -> None:
    assert _is_command(argv) is expected


def close(number: int) -> Callable[[], None]:
    def before() -> None:
        defaults()
        os.close(number)

    return before


@pytest.mark.parametrize("number", [1, 2])
def test_closed_streams(tmp_path: Path, job: list[str], number: int) -> None:
    """A daemon's: the work is done, and nothing fails for want of somebody to tell."""
    job[1] = "t.txt"
    with start(tmp_path, job, close(number), stderr=None) as running:
        running.wait(60)
    assert running.returncode == 0
    assert (tmp_path / "x.npy").stat().st_size == 128 + 4 * 128


def test_nowhere_to_print(tmp_path: Path) -> None:
    with start(tmp_path, ["info"], close(1)) as running:
        _, error = running.communicate(timeout=300)
    assert (running.returncode, error) == (
        1,
        "rwkvsts: standard output is closed: there is nowhere to print\n",
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_streams(tmp_path: Path, job: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # nothing would tell whose disk is full
    job[1] = "t.txt"
    with open("/dev/full", "w") as full:
        with start(tmp_path, job, stderr=full) as running:
            running.wait(60)
        assert running.returncode == 0 and (tmp_path / "x.npy").exists()
        with start(tmp_path, ["info"], stdout=full) as running:
            _, error = running.communicate(timeout=300)
        expected = "rwkvsts: standard output: No space left on device\n"
        assert (running.returncode, error) == (1, expected)


def test_every_option_has_a_line_of_help_and_its_default() -> None:
    parser = _parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        text = " ".join(command.format_help().split())
        for action in command._actions:
            assert action.help, (name, action.option_strings)
            if action.default not in (None, False, [], argparse.SUPPRESS):
                default = action.default
                shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
                assert f"(default: {shown})" in text or f"default: {shown}" in text, (name, action)
