"""The documentation is true where a program can tell: links lead somewhere, examples run.

The slow test builds the pages with every warning an error; it needs the extra `docs`.
"""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import rwkvsts
from rwkvsts.cli.main import _parser

PACKAGE = Path(rwkvsts.__file__).parent
EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text("utf-8")]
ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("rwkvsts/assets/*.md")]
FOLDERS = ("csrc", "rwkvsts", "tests", "bench", "tools", "docs", ".github")


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "README.md", "docs/ARCHITECTURE.md"])
def test_named_source_files_exist(name: str) -> None:
    """`session.c` is some file of that name, `cpu/backend.c` one that ends so."""
    held = [f"/{path.relative_to(ROOT)}" for d in FOLDERS for path in (ROOT / d).rglob("*.*")]
    held += [f"/{path.name}" for path in ROOT.iterdir()]
    for token in re.findall(r"`([\w./-]+\.(?:c|h|cu|cuh|py|sh|md|yml))`", prose(ROOT / name)):
        if "N." not in token:  # rwkvN.c is a file to come
            assert any(path.endswith(f"/{token}") for path in held), token


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_blocks_are_taken(page: Path) -> None:
    """Each option of `rwkvsts` is known; each script exists and names the options it is given."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.findall(r"(?:rwkvsts (?!\[)|python (?=\w+/)).*?(?= && |$)", line):
                words = shlex.split(command, comments=True)
                if words[0] == "rwkvsts":
                    _parser().parse_args(words[1:])  # exits where it is not taken
                    continue
                script = (ROOT / words[1]).read_text("utf-8")
                options = [word for word in words[2:] if word.startswith("--")]
                assert not [option for option in options if f'"{option}"' not in script], command


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_examples_in_docstrings_run(path: Path) -> None:
    place = path.relative_to(PACKAGE.parent).with_suffix("")
    name = ".".join(place.parts).removesuffix(".__init__")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(str(error))  # it names the extra that is not installed
    assert doctest.testmod(module).failed == 0


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    for library in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(library, reason='needs the extra "docs"')
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(ROOT / "docs")]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
