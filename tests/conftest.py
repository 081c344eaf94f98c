"""What the tests share: where given data lies, and the flag that asks for the paper's table."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reproduce",
        action="store_true",
        help="run the paper's table with the real weights, data and GloVe: 4 GB to download",
    )
    for name, default, what in (
        ("model", "RWKV/v6-Finch-1B6-HF", "repository, folder or file of the real weights"),
        ("data", None, "folder of the data sets; default: from the hub"),
        ("glove", None, "glove.6B.50d.txt, or a .gz of it"),
    ):
        parser.addoption(f"--reproduce-{name}", default=default, help=what)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data sets and tiny checkpoints; a test that asks for it skips without."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data here: {SHARED.parent.name}/{SHARED.name} is absent")
    return SHARED
