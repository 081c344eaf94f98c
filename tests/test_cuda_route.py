"""Which CUDA kernel runs when: the rules of csrc/cuda/route.c, for devices that are not here too.

The rules are plain C and need a C compiler alone. What they bind is tested on a GPU in
test_cuda.py: there a lost fast path would give the right embeddings all the same.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from rwkvsts import DeviceError
from rwkvsts.device import CUDA_LIBRARY, cuda_route

CSRC = Path(__file__).resolve().parents[1] / "csrc"
F32, F16, BF16 = range(3)  # enum dtype
FINCH = (2048, 32, 64, 7168, 32, 64)  # C, H, N, F, R, D
T4 = (75, 75, 0, 40)  # capability, code, Hopper's own code, multiprocessors
A100 = (80, 80, 0, 108)
H200 = (90, 90, 1, 132)
H200_OLD_CODE = (90, 75, 0, 132)  # a build for a T4, run by PTX
B200 = (100, 90, 0, 148)  # code for a Hopper, run by PTX: Hopper's own instructions are not in it
SMALL, LARGE = 54, 8448

PRINT = """
#include "route.h"
#include "verbs6.h"

#include <stdio.h>

int route(char *text, size_t n, const int *g, int dtype, const int *s, int T, int piece) {
    const struct gpu gpu = {g[0], g[1], g[2], g[3]};
    struct dims dims = {.C = s[0], .H = s[1], .N = s[2], .F = s[3]};
    struct error e;
    dims.rank[SHIFT_RANK] = s[4], dims.rank[DECAY_RANK] = s[5];
    enum status status = route_check(&gpu, "this device", (enum dtype)dtype, &dims, &e);
    if (status == OK) status = route_fits6(&dims, &e);
    if (status == OK) route_print(text, n, &gpu, (enum dtype)dtype, &dims, T, piece);
    else snprintf(text, n, "%s", e.text);
    return status;
}

const char *wkv7(const int *g, int dtype, int H, int T, int piece) {
    const struct gpu gpu = {g[0], g[1], g[2], g[3]};
    const struct dims dims = {.C = 64 * H, .H = H, .N = 64};
    return kernel_name(route_wkv7(&gpu, (enum dtype)dtype, &dims, T, piece));
}

int fits7(char *text, size_t n, int C, const int *ranks) {
    struct dims dims = {.C = C, .rank = {ranks[0], ranks[1], ranks[2], ranks[3]}};
    struct error e = {.text = ""};
    enum status status = route_fits7(&dims, &e);
    snprintf(text, n, "%s", e.text);
    return status;
}
"""


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("route")
    source, target = folder / "print.c", folder / "route.so"
    source.write_text(PRINT)
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-shared", "-fPIC"]
    flags.append("-D_DEFAULT_SOURCE")
    sources = [source, CSRC / "cuda" / "route.c", CSRC / "base.c"]
    command = [compiler, *flags, f"-I{CSRC}", f"-I{CSRC / 'cuda'}", *map(str, sources)]
    subprocess.run([*command, "-lm", "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def numbers(values: tuple[int, ...]) -> ctypes.Array[ctypes.c_int]:
    return (ctypes.c_int * len(values))(*values)


def route(
    rules: ctypes.CDLL,
    gpu: tuple[int, int, int, int],
    dtype: int,
    T: int,
    sizes: tuple[int, ...] = FINCH,
    piece: int = 27,
) -> dict[str, str]:
    """Step: kernel; {"refused": why} where the device cannot run it."""
    text = ctypes.create_string_buffer(4000)
    size = ctypes.c_size_t(len(text))
    failed = rules.route(text, size, numbers(gpu), dtype, numbers(sizes), T, piece)
    said = text.value.decode()
    return {"refused": said} if failed else dict(line.split(": ") for line in said.splitlines())


PRODUCTS = ("key, value, receptance, gate", "output", "ffn key", "ffn receptance", "ffn value")
LOW_RANKS = ("low rank of the token shift", "low rank of the decay")


def products(found: dict[str, str]) -> set[str]:
    return {found[name] for name in PRODUCTS}


def low_ranks(found: dict[str, str]) -> set[str]:
    return {found[name] for name in LOW_RANKS}


def test_hopper_in_bfloat16(rules: ctypes.CDLL) -> None:
    few, many = (route(rules, H200, BF16, T) for T in (SMALL, LARGE))
    assert products(few) == low_ranks(few) == {"stream_product"}
    (way,) = products(many)
    assert way.startswith("wgmma_product") and low_ranks(many) == {"cublasLt"}
    assert few["wkv"] == many["wkv"] == "wkv_chunk"
    assert few["lerps of the token shift"] == many["lerps of the token shift"] == "lerp_rows"
    assert few["norm and token shift"] == "shift_rows, wide"
    assert many["norm and token shift"] == "shift_rows, narrow"
    assert few["pass"] == "recorded when seen again, kernels overlap"
    assert many["pass"] == "launched kernel by kernel"


def test_hopper_in_float16_and_float32(rules: ctypes.CDLL) -> None:
    assert products(route(rules, H200, F16, SMALL)) == {"few_rows"}
    assert products(route(rules, H200, F16, LARGE)) == {"cublasLt"}
    assert route(rules, H200, F16, LARGE)["wkv"] == "up_rows, then wkv_64"
    plain = route(rules, H200, F32, SMALL)
    assert products(plain) == {"cublasLt"}
    assert plain["lerps of the token shift"] == "up_rows_plain"


def test_ampere(rules: ctypes.CDLL) -> None:
    few = route(rules, A100, BF16, SMALL)
    assert products(few) == {"few_rows"} and few["wkv"] == "wkv_chunk"
    assert products(route(rules, A100, BF16, LARGE)) == {"cublasLt"}
    assert few["pass"] == "recorded when seen again"


def test_turing(rules: ctypes.CDLL) -> None:
    few = route(rules, T4, F16, SMALL)
    assert products(few) == {"cublasLt"} and few["lerps of the token shift"] == "up_rows"
    assert "needs compute capability 8.0" in route(rules, T4, BF16, SMALL)["refused"]


def test_what_may_run_is_bounded_by_what_was_compiled(rules: ctypes.CDLL) -> None:
    """Code for a T4 runs on an H200 by PTX, without bfloat16: silently wrong, were it not refused.
    In float16 it goes a T4's way."""
    refused = route(rules, H200_OLD_CODE, BF16, SMALL)["refused"]
    assert "code for 7.5" in refused and "RWKVSTS_CUDA_ARCHS=90" in refused
    assert route(rules, H200_OLD_CODE, F16, LARGE) == route(rules, (75, 75, 0, 132), F16, LARGE)


def test_newer_devices_go_the_way_of_the_newest_code(rules: ctypes.CDLL) -> None:
    few = route(rules, B200, BF16, SMALL)
    assert products(few) == {"few_rows"} and few["pass"].endswith("kernels overlap")
    assert products(route(rules, B200, BF16, LARGE)) == {"cublasLt"}


def test_long_texts(rules: ctypes.CDLL) -> None:
    for gpu, dtype, wkv in (
        (H200, BF16, "wkv_keys, wkv_states, wkv_chunk"),
        (A100, BF16, "wkv_keys, wkv_states, wkv_chunk"),
        (H200, F16, "up_rows, then wkv_64"),
    ):
        found = route(rules, gpu, dtype, LARGE, piece=4096)
        assert found["wkv"] == wkv and found["pool"] == "pool_long"
    short = route(rules, H200, BF16, LARGE, piece=512)
    assert short["wkv"] == "wkv_chunk" and short["pool"] == "pool_rows"


def test_the_longer_a_piece_of_rwkv_7_the_more_warps_share_it(rules: ctypes.CDLL) -> None:
    """Where pieces of that length alone would leave the device idle, which depends on the heads."""
    rules.wkv7.restype = ctypes.c_char_p

    def kernel(H: int, piece: int, T: int = LARGE, gpu: tuple[int, ...] = H200) -> str:
        found: bytes = rules.wkv7(numbers(gpu), BF16, H, T, piece)
        return found.decode()

    two, four = "wkv7_chunk, two warps", "wkv7_chunk, four warps"
    ahead = "wkv7_tiles, wkv7_states, wkv7_chunk"
    assert kernel(32, 640) == two and kernel(12, 240) == two
    assert kernel(32, 641) == four and kernel(12, 241) == kernel(12, 512) == four
    assert kernel(32, 3072) == four and kernel(32, 3073) == kernel(12, 1153) == ahead
    assert kernel(2, 512) == four and kernel(2, 513) == ahead  # parts are of long pieces alone
    assert kernel(32, 27, T=SMALL) == four
    assert kernel(32, 4096, gpu=T4) == "wkv7_tokens"


def test_ragged_sizes(rules: ctypes.CDLL) -> None:
    """A width that is no multiple of 64 has no kernel of few rows; heads of 16 a plain wkv."""
    found = route(rules, H200, BF16, SMALL, (48, 3, 16, 104, 5, 7))
    assert products(found) == {"cublasLt"} and found["wkv"] == "up_rows, then wkv_plain"
    assert found["lerps of the token shift"] == "up_rows"
    many = route(rules, H200, BF16, LARGE, (1152, 18, 64, 4032, 32, 64))
    assert products(many) == {"cublasLt"} and many["norm and token shift"] == "shift_rows, wide"


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((96, 4, 24, 64, 8, 8), "head size 24"),
        ((72, 9, 8, 64, 8, 8), "multiple of 16"),
        ((64, 1, 64, 64, 65, 8), "low ranks 65 and 8"),
    ],
)
def test_what_no_kernel_can_do_is_refused(
    rules: ctypes.CDLL, sizes: tuple[int, ...], said: str
) -> None:
    assert said in route(rules, H200, BF16, SMALL, sizes)["refused"]


@pytest.mark.parametrize(
    ("C", "ranks", "said"),
    [
        (768, (64, 64, 32, 128), ""),  # the released sizes
        (2048, (96, 96, 64, 256), ""),
        (4096, (128, 128, 96, 480), ""),
        (64, (8, 12, 8, 8), "a low rank of 12"),
        (64, (32, 16, 8, 16), "low ranks of 72 together"),
    ],
)
def test_the_low_ranks_of_rwkv_7(
    rules: ctypes.CDLL, C: int, ranks: tuple[int, ...], said: str
) -> None:
    text = ctypes.create_string_buffer(500)
    refused = rules.fits7(text, ctypes.c_size_t(len(text)), C, numbers(ranks))
    assert bool(refused) == bool(said) and said in text.value.decode()


def test_the_library_prints_the_same(rules: ctypes.CDLL) -> None:
    if not CUDA_LIBRARY.exists():
        pytest.skip("the CUDA part was not built: there was no nvcc")
    assert cuda_route(H200, "bfloat16", FINCH, LARGE, 27) == route(rules, H200, BF16, LARGE)
    assert cuda_route(T4, "float16", FINCH, SMALL, 27) == route(rules, T4, F16, SMALL)
    with pytest.raises(DeviceError, match="code for 7.5"):
        cuda_route(H200_OLD_CODE, "bfloat16", FINCH, LARGE, 27)
