"""The source distribution: it holds what git holds, and installs where nothing else is.

Needs git and a checkout to compare with, and setuptools as the build back end; skips, saying so,
where either is absent. The slow test installs from it, with the index that pip uses.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ADDED = {"PKG-INFO", "setup.cfg"}

BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout to compare the source distribution with")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = {name for name in listed.stdout.decode().split("\0") if name}
    return {name for name in names if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def sdist(tracked: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the tests leave no egg-info in the tree."""
    pytest.importorskip("setuptools", reason="setuptools builds the source distribution")
    copy, target = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    subprocess.run([sys.executable, "-c", BUILD, str(target)], cwd=copy, check=True)
    (found,) = target.glob("*.tar.gz")
    return found


def test_it_holds_what_git_holds(sdist: Path, tracked: set[str]) -> None:
    with tarfile.open(sdist) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    held = {name for name in names if ".egg-info/" not in name} - ADDED
    assert held == tracked


@pytest.mark.slow
def test_it_installs_and_embeds(sdist: Path, tmp_path: Path) -> None:
    """With every dependency from the index, into an environment of its own, away from the tree."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RWKVSTS_CUDA")}
    subprocess.run(
        [python, "-m", "pip", "install", "-q", str(sdist)],
        env={**clean, "RWKVSTS_CUDA": "0"},
        check=True,
    )
    said = subprocess.run(
        [
            python,
            "-c",
            "import rwkvsts; print(rwkvsts.RWKV6.from_pretrained('demo').encode(['a']).shape)",
        ],
        env=clean,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.startswith("(1, ")
