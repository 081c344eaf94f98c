"""A corpus job that is killed, interrupted or runs into a full disk goes on to the same bytes.

The right value is the folder of a run that nothing disturbed, compared file by file. The children
are forks of this process, so that a thousand of them take minutes; where the test says so, the
real program runs.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from makecheckpoint import write_safetensors
from tinymodel import random_weights

import rwkvsts
from rwkvsts import RWKV6, DataError, corpus

ROWS, SHARD = 240, 20
HOW = corpus.Options(layers=(1, 2), shard_rows=SHARD, on_empty="null")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_safetensors(path, random_weights(5, L=3, C=128, V=256))
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl.gz"
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"{i:04}", "text": None if i % 97 == 5 else "word " * int(rng.integers(1, 12))}
        for i in range(ROWS)
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


@pytest.fixture
def embed(weights: Path, texts: Path) -> Callable[[Path], None]:
    """The job into a folder, from opening the model on."""

    def work(out: Path) -> None:
        found = corpus.survey(corpus.find([str(texts)]), corpus.Columns("text", "id"), "null")
        model = RWKV6.from_pretrained(
            weights, device="cpu", dtype="float32", tokenizer="bytes", threads=1
        )
        corpus.to_folder(model, found, out, HOW)

    return work


def test_a_shard_that_is_damaged_or_of_another_job_is_named(
    embed: Callable[[Path], None], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    embed(out)
    (out / "part-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-00002\.parquet is damaged; delete it and start"):
        embed(out)
    foreign = pyarrow.parquet.read_table(out / "part-00001.parquet")
    mark = {b"rwkvsts.shard": json.dumps({"job": "another", "counts": [1, 0, 0, 1]})}
    pyarrow.parquet.write_table(
        foreign.replace_schema_metadata({**foreign.schema.metadata, **mark}),
        out / "part-00001.parquet",
    )
    with pytest.raises(DataError, match=r"part-00001\.parquet is of another job; delete it"):
        embed(out)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def child(work: Callable[[Path], None], out: Path) -> int:
    """Fork a process that does the work and exits with 0, or 1 after an exception, or 130."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the parent's does
        work(out)
        status = 0
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def ended(pid: int) -> int:
    """Exit status of a child; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def undisturbed(embed: Callable[[Path], None], folder: Path) -> tuple[dict[str, bytes], float]:
    """What the job writes if nothing happens, and its seconds."""
    start = time.monotonic()
    assert ended(child(embed, folder)) == 0
    return content(folder), time.monotonic() - start


def kill_until_done(
    embed: Callable[[Path], None], folder: Path, seconds: float, rng: np.random.Generator
) -> int:
    """Start the job and kill it at random moments until it ends by itself; the number of kills."""
    kills = 0
    while True:
        pid = child(embed, folder)
        time.sleep(rng.uniform(0, seconds * 1.1))
        os.kill(pid, signal.SIGKILL)  # a child that has ended is not yet waited for
        status = ended(pid)
        if status == 0:
            return kills
        assert status == -signal.SIGKILL
        kills += 1


def check_kills(embed: Callable[[Path], None], tmp_path: Path, wanted: int) -> None:
    rng, kills, jobs = np.random.default_rng(7), 0, 0
    expected, seconds = undisturbed(embed, tmp_path / "whole")
    while kills < wanted:
        folder = tmp_path / f"job{jobs}"
        kills, jobs = kills + kill_until_done(embed, folder, seconds, rng), jobs + 1
        assert content(folder) == expected
    print(f"{kills} kills in {jobs} jobs, each of {seconds:.2f} s undisturbed")


def test_kills_at_random_moments(embed: Callable[[Path], None], tmp_path: Path) -> None:
    check_kills(embed, tmp_path, 8)


@pytest.mark.slow
def test_a_thousand_kills(embed: Callable[[Path], None], tmp_path: Path) -> None:
    check_kills(embed, tmp_path, 1000)


def test_the_undisturbed_run_is_what_encode_gives(
    embed: Callable[[Path], None], weights: Path, texts: Path, tmp_path: Path
) -> None:
    embed(tmp_path / "out")
    rows = [json.loads(line) for line in gzip.decompress(texts.read_bytes()).splitlines()]
    table = pyarrow.parquet.read_table(tmp_path / "out").to_pydict()
    assert table["id"] == [row["id"] for row in rows]
    model = RWKV6.from_pretrained(weights, device="cpu", dtype="float32", tokenizer="bytes")
    for row, one, two in zip(rows, table["layer_1"], table["layer_2"], strict=True):
        if row["text"] is None:
            assert one is None and two is None
        else:
            assert np.array_equal(
                np.array([one, two], np.float32), model.encode(row["text"], [1, 2])
            )


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_real_program_cleanly(
    which: signal.Signals, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard under way is dropped, those before it stand, and the next start goes on."""
    monkeypatch.setenv("PYTHONPATH", str(Path(rwkvsts.__file__).parents[1]))
    file, out = tmp_path / "t.txt", tmp_path / "out"
    file.write_text("".join(f"{i} " + "word " * 40 + "\n" for i in range(1000)))
    argv = [sys.executable, "-m", "rwkvsts", "embed", file, "--out", out, "--model", weights]
    argv += ["--layers", "1", "--tokenizer", "bytes", "--device", "cpu", "--shard-rows", "100"]
    with subprocess.Popen(
        argv,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,  # in a checkout python -m takes the source tree, which may not be built
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as running:
        wait_for(out / "part-00001.parquet", running)
        running.send_signal(which)
        _, error = running.communicate(timeout=300)
    assert running.returncode == (130 if which == signal.SIGINT else 143), error
    assert "Traceback" not in error
    left = sorted(path.name for path in out.iterdir())
    assert left[0] == "_job.json" and len(left) < 11
    assert left[1:] == [f"part-{i:05}.parquet" for i in range(len(left) - 1)]
    before = content(out)
    subprocess.run(argv, check=True, capture_output=True, cwd=tmp_path)
    after = content(out)
    assert len(after) == 11 and "_manifest.json" in after
    assert all(after[name] == before[name] for name in left[1:])


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not path.exists():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.005)


def test_a_file_that_may_not_grow(
    embed: Callable[[Path], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The kernel's own refusal of a write, for any user: a limit on the size of a file."""

    def limited(out: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        embed(out)

    expected, _ = undisturbed(embed, tmp_path / "whole")
    out = tmp_path / "out"
    assert ended(child(limited, out)) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert "part-00000.parquet: File too large; 0 shards stand; start again" in error
    assert list(content(out)) == ["_job.json"]  # nothing half written
    embed(out)
    assert content(out) == expected


def test_a_full_disk(
    embed: Callable[[Path], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected, _ = undisturbed(embed, tmp_path / "whole")
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(map(len, expected.values())) // 2
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk]
    may = os.geteuid() == 0 and shutil.which("mount") is not None
    if not may or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root alone, outside a sandbox")
    try:
        out = disk / "out"
        assert ended(child(embed, out)) == 1
        error = capfd.readouterr().err.splitlines()[-1]
        assert "No space left on device" in error and "shards stand" in error
        stand = sorted(path.name for path in out.iterdir())
        assert 2 < len(stand) < 13 and stand[0] == "_job.json"
        assert all(name.startswith("part-") for name in stand[1:])
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        embed(out)
        assert content(out) == expected
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path) -> None:
    """10 GB of text in long and short rows, within 2 GB on top of a process that embeds little."""

    def peak(count: int) -> int:
        path, out = tmp_path / f"{count}.jsonl", tmp_path / f"out{count}"
        line = json.dumps({"text": "word " * 20_000}) + "\n"
        with path.open("w") as file:
            for i in range(count):
                file.write(line if i % 2 else json.dumps({"text": f"w{i}"}) + "\n")
        code = (
            "import sys, resource; from pathlib import Path; from rwkvsts import RWKV6, corpus\n"
            "m = RWKV6.from_pretrained('demo', device='cpu', max_layer=0)\n"
            f"s = corpus.survey(corpus.find([{str(path)!r}]), corpus.Columns(), 'error')\n"
            "how = corpus.Options(layers=(0,), max_length=8)\n"
            f"corpus.to_folder(m, s, Path({str(out)!r}), how)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        path.unlink()
        assert done.returncode == 0, done.stderr
        return int(done.stdout) << 10

    little, much = peak(100), peak(200_000)
    print(f"peak of {little >> 20} MiB for 5 MB of texts, {much >> 20} MiB for 10 GB")
    assert much - little < 2 << 30
