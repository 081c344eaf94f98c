"""What the tests share: where given data lies, and the flag that asks for the paper's table."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tinymodel import FEATURES, SETS

# Data that cannot be shipped with the project; CONTRIBUTING.md lists it.
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(os.environ.get("RWKVSTS_TEST_DATA", BESIDE))


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
    parser.addoption("--rwkv7", help="a real RWKV-7 .pth, to compare with the package rwkv")
    parser.addoption("--embedding-rwkv", help="a real one, to compare with the package rwkv-emb")


def pytest_configure() -> None:
    # Under nohup and behind `&` in a script Ctrl-C is ignored, here and in every program that the
    # tests start: those that send it would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=SETS)
def instructions(request: pytest.FixtureRequest) -> str:
    """Every instruction set that this processor has."""
    if request.param != "portable" and not FEATURES[request.param]:
        pytest.skip(f"this processor, or its system, does not offer {request.param}")
    return str(request.param)


@pytest.fixture(scope="session")
def device() -> tuple[int, int]:
    """The GPU's compute capability; a test that asks for it skips where there is none."""
    from rwkvsts import DeviceError
    from rwkvsts.device import query_cuda

    try:
        return query_cuda().capability
    except DeviceError as missing:
        pytest.skip(str(missing))


@pytest.fixture(params=["bfloat16", "float16", "float32"])
def dtype(request: pytest.FixtureRequest, device: tuple[int, int]) -> str:
    """Each that the GPU has."""
    if request.param == "bfloat16" and device < (8, 0):
        pytest.skip("this device has no bfloat16")
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data sets and tiny checkpoints; a test that asks for it skips without."""
    if not DATA.is_dir():
        pytest.skip(
            "needs data that cannot be shipped, in the folder RWKVSTS_TEST_DATA: CONTRIBUTING.md "
            "says where each file is to be had (the tiny RWKV models and their logits: folder "
            "tests of github.com/RWKV/rwkv.cpp)"
        )
    return DATA
