"""Files that are whole under their final name, whoever dies while writing them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import rwkvsts
from rwkvsts.files.writing import remove_left, replacing

WRITER = """
import sys, time
from pathlib import Path
from rwkvsts.files.writing import replacing
with replacing(Path(sys.argv[1])) as part:
    part.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def start_writing(path: Path) -> subprocess.Popen[str]:
    """A process that has begun to write a file and does not come to an end."""
    root = str(Path(rwkvsts.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        cwd=path.parent,  # in a checkout python -c takes the source tree, which may not be built
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with replacing(path) as part:
        part.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("newer")
        raise KeyboardInterrupt
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_what_gets_its_name_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []
    replace = os.replace

    def fsync(file: int) -> None:
        synced.append((os.fstat(file).st_ino, os.fstat(file).st_size))

    def checked(part: Path, path: Path) -> None:
        assert (part.stat().st_ino, part.stat().st_size) in synced
        replace(part, path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", checked)
    with replacing(tmp_path / "x") as part, part.open("w") as file:
        file.write("new")
    assert (tmp_path / "x").read_text() == "new"


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "x").symlink_to(there / "y")
    for content in ("new", "newer"):
        with replacing(tmp_path / "x") as part:
            part.write_text(content)
        assert (tmp_path / "x").is_symlink() and (there / "y").read_text() == content
    assert [path.name for path in there.iterdir()] == ["y"]


def test_a_name_as_long_as_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    with replacing(path) as part:
        part.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "x"
    process = start_writing(path)
    process.kill()
    process.wait()
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(path) as part:
        part.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    process = start_writing(path)
    try:
        remove_left(tmp_path)
        with replacing(path) as part:
            part.write_text("new")
        (place,) = (entry for entry in tmp_path.iterdir() if entry != path)
        assert (place / "x").read_text() == "half"
    finally:
        process.kill()
        process.wait()
    remove_left(tmp_path, "another")
    assert place.exists()
    remove_left(tmp_path, "x")
    assert not place.exists()


def test_many_writers_of_one_file_never_mix(tmp_path: Path) -> None:
    """With one process id, as in two containers on one volume: every writer has its own place."""
    path = tmp_path / "x"
    failures = []

    def write(letter: str) -> None:
        try:
            for _ in range(30):
                with replacing(path) as part, part.open("x") as file:
                    file.write(letter * 5000)
                    file.write(letter * 5000)
                assert len(set(path.read_text())) == 1
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(path.read_text()) == 10_000 and list(tmp_path.iterdir()) == [path]
